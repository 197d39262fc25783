"""The ablation's figures as tables in Markdown: one line a row of the ablation, mean and spread over its seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Line = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """One figure: `keys` leads to it in a line of that task, condition and matcher."""

    title: str
    task: str
    condition: str
    matcher: str
    keys: tuple[str, ...]
    digits: int = 3

    def cell(self, lines: list[Line]) -> str:
        """Mean over seeds, with the standard deviation where there are several."""
        values: list[float] = []
        for line in lines:
            if (line["task"], line["condition"], line["matcher"]) == (self.task, self.condition, self.matcher):
                value: Any = line
                for key in self.keys:
                    value = None if value is None else value[key]
                if value is not None:
                    values.append(float(value))
        if not values:
            return "-"
        shown = f"{np.mean(values):.{self.digits}f}"
        return shown if len(values) == 1 else f"{shown} ± {np.std(values, ddof=1):.{self.digits}f}"


EN, ML = "english", "malayalam"
TOKENS = (
    Column("tokens/s, en", EN, "isolated", "edit", ("tokens", "tokens_per_s"), 1),
    Column("tokens/s, ml", ML, "isolated", "edit", ("tokens", "tokens_per_s"), 1),
    Column("entropy, en", EN, "isolated", "edit", ("tokens", "entropy")),
    Column("entropy, ml", ML, "isolated", "edit", ("tokens", "entropy")),
    Column("Jaccard, unigrams", EN, "isolated", "edit", ("tokens", "unigram")),
    Column("Jaccard, bigrams", EN, "isolated", "edit", ("tokens", "bigram")),
)
MATCHERS = tuple(
    Column(f"{short}, {matcher}", task, "isolated", matcher, ("map",))
    for short, task, matchers in (
        ("en", EN, ("edit", "centroids", "pq", "continuous")),
        ("ml", ML, ("edit", "centroids")),
    )
    for matcher in matchers
)
ENGLISH = (
    Column("MAP iv", EN, "isolated", "centroids", ("map_iv",)),
    Column("MAP oov", EN, "isolated", "centroids", ("map_oov",)),
    Column("MRR iv", EN, "isolated", "centroids", ("mrr_iv",)),
    Column("MRR oov", EN, "isolated", "centroids", ("mrr_oov",)),
    Column("MTWV", EN, "isolated", "centroids", ("mtwv",)),
    Column("in its sentence", EN, "in_sentence", "centroids", ("map",)),
    Column("at 5 dB", EN, "isolated_5db", "centroids", ("map",)),
    Column("ml MRR", ML, "isolated", "centroids", ("mrr",)),
    Column("ml MTWV", ML, "isolated", "centroids", ("mtwv",)),
)


def table(lines: list[Line], columns: tuple[Column, ...]) -> str:
    """One table; rows in the order in which they were measured."""
    out = ["| | " + " | ".join(column.title for column in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row in dict.fromkeys(line["row"] for line in lines):
        own = [line for line in lines if line["row"] == row]
        out.append(f"| {row} | " + " | ".join(column.cell(own) for column in columns) + " |")
    return "\n".join(out)


def markdown(lines: list[Line]) -> str:
    """What the tokens are like; MAP of isolated queries by matcher; DTW on centroids in detail."""
    return "\n\n".join(table(lines, columns) for columns in (TOKENS, MATCHERS, ENGLISH))
