"""VQ tokens against generated ones: what they are like, how steady they are, and how well they find words.

    python -m bench.accuracy.pairalign --speech SPEECH --tasks TASKS --pairalign FILE.onnx [FILE.onnx …]
        [--vq FILE.onnx] [--task english malayalam] [--stretches N] [--json]

One column for each: VQ with the codebook in its file, at no price of a change (plain run-length collapse) and at the
price that the product has; VQ with the codebook of the first generated file, where that is another; and each generated
file, for which `sayagain tokenizer build pairalign --rate R --out FILE` serves. All write tokens for embeddings of one
encoder. MAP by edit distance alone and by DTW on the tokens' centroids, each query against every recording. The whole
cascade: `python -m bench.accuracy --tokenizer FILE`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein

from bench.accuracy.archive import Recordings, read_queries, read_recordings, with_noise
from bench.accuracy.embedders import Float32
from bench.accuracy.matchers import ask, matcher
from bench.accuracy.probes import judge
from bench.accuracy.tokens import UInt16, token_figures, tokenize
from bench.accuracy.writers import Generated, of_file
from model.audio import SAMPLE_RATE, Samples
from model.codebook import Codebook
from model.tokenizer import DEFAULT_WEIGHTS, Tokenizer
from model.tokens import TokenString
from service.evaluation.metrics import average_precision, reciprocal_rank
from service.evaluation.tasks import TaskQuery, read_task

STRETCH_S = 3.0
SHIFTS_MS = (10, 20, 40, 60, 100, 150, 200)
TIMED_S = 300.0  # of sound, for the speed
NOISY = 150  # recordings heard in noise too
OWN_PRICES = (0.0, 0.2)  # of VQ with the generated file's codebook
WINDOW_TOKENS = 60  # what a generated window may have at most

Figures = dict[str, float | int | None]


def collapsed(book: Codebook, embeddings: Float32) -> UInt16:
    """Tokens after run-length collapse."""
    ids = book.tokenize(embeddings)
    return ids[np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))] if len(ids) else ids


def distances(pairs: Sequence[tuple[UInt16, UInt16]]) -> tuple[float, float]:
    """Of pairs of token strings: the mean edit distance by the longer one's length, and the mean difference of lengths
    by the first one's."""  # fmt: skip
    edits = [Levenshtein.normalized_distance(a.tolist(), b.tolist()) for a, b in pairs]
    lengths = [abs(len(a) - len(b)) / max(1, len(a)) for a, b in pairs]
    return float(np.mean(edits)), float(np.mean(lengths))


class Stretches:
    """Stretches of three seconds, each cut out at every shift and heard alone."""

    def __init__(self, tokenizer: Tokenizer, sounds: Sequence[Samples], count: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        length, most = round(STRETCH_S * SAMPLE_RATE), round(max(SHIFTS_MS) / 1_000 * SAMPLE_RATE)
        long = [sound for sound in sounds if len(sound) >= length + most]
        self.heard: dict[int, list[Float32]] = {shift: [] for shift in (0, *SHIFTS_MS)}
        for number in rng.choice(len(long), min(count, len(long)), replace=False):
            sound = long[int(number)]
            first = int(rng.integers(len(sound) - length - most + 1))
            for shift, rows in self.heard.items():
                at = first + round(shift / 1_000 * SAMPLE_RATE)
                rows.append(tokenizer.embed(sound[at : at + length]))

    def figures(self, book: Codebook) -> Figures:
        """Edit distance to the stretch as it lay, by shift, and how often a stretch ended too soon or not at all."""
        tokens = {shift: [collapsed(book, rows) for rows in heard] for shift, heard in self.heard.items()}
        out: Figures = {}
        for shift in SHIFTS_MS:
            pairs = list(zip(tokens[0], tokens[shift], strict=True))
            edits = [Levenshtein.distance(a.tolist(), b.tolist()) for a, b in pairs]
            out[f"shift {shift} ms, edit distance"] = round(distances(pairs)[0], 3)
            out[f"shift {shift} ms, edits, 95 %"] = round(float(np.percentile(edits, 95)), 1)
        lengths = np.array([len(t) for t in tokens[0]])
        out["3 s with one token"] = int((lengths == 1).sum())
        generated = isinstance(book, Generated)
        out["3 s without an end"] = int((lengths >= WINDOW_TOKENS).sum()) if generated else None
        return out


def words(queries: Sequence[TaskQuery], recordings: Recordings, book: Codebook) -> tuple[float, float] | None:
    """`distances` between a word's source and up to five of its places by other speakers, each a stretch of its
    recording by itself; None where the task has no times."""  # fmt: skip
    pairs = []
    for query in queries:
        places = [query.source, *(p for p in query.relevant if p.name not in query.exclude)]
        if any(place.start_s is None for place in places):
            return None
        spoken = [collapsed(book, recordings.embeddings[recordings.stretch(place)[1]]) for place in places[:6]]
        pairs += [(spoken[0], other) for other in spoken[1:] if len(spoken[0]) and len(other)]
    return distances(pairs)


def figures_of(
    book: Codebook, tokenizer: Tokenizer, queries: Sequence[TaskQuery], recordings: Recordings,
    heard: dict[str, list[Float32]], noisy: list[Float32], stretches: Stretches,
) -> Figures:  # fmt: skip
    """One column."""
    tokens = tokenize(recordings, None, given=book)
    base = token_figures(queries, recordings, tokens)
    hours = recordings.seconds / 3_600
    counts = np.bincount(tokens.collapsed, minlength=book.size)
    spans = list(zip(recordings.offsets[:-1], recordings.offsets[1:], strict=True))
    blobs = [TokenString.from_frames(tokens.ids[a:b], recordings.frame_seconds).to_bytes() for a, b in spans]
    out: Figures = {
        "tokens a second": round(base.tokens_per_s, 2),
        "tokens an hour": round(len(tokens.collapsed) / hours),
        "kB an hour": round(sum(map(len, blobs)) / hours / 1_000, 1),
        "vocabulary used": round(float((counts > 0).mean()), 3),
        "entropy, of log K": round(base.entropy, 3),
        "two speakers, Jaccard, unigrams": None if base.unigram is None else round(base.unigram, 3),
        "two speakers, Jaccard, bigrams": None if base.bigram is None else round(base.bigram, 3),
    }
    spoken = words(queries, recordings, book)
    out["two speakers, edit distance"] = None if spoken is None else round(spoken[0], 3)
    out["two speakers, length error"] = None if spoken is None else round(spoken[1], 3)
    views = [
        (collapsed(book, recordings.embeddings[a:b]), collapsed(book, rows))
        for (a, b), rows in zip(spans, noisy, strict=False)
    ]
    edit, length = distances(views)
    out |= {"noise at 5 dB, edit distance": round(edit, 3), "noise at 5 dB, length error": round(length, 3)}
    out |= stretches.figures(book)
    for condition, rows in heard.items():
        for name in ("edit", "centroids"):
            answers = ask(matcher(name, recordings, tokens), rows, recordings)
            judged = [judge(query, found, recordings, False) for query, found in zip(queries, answers, strict=True)]
            what = f"{condition.replace('_', ' ')}, {name}"
            out[f"MAP, {what}"] = round(float(np.mean([average_precision(j) for j in judged])), 3)
            if name == "edit":
                out[f"MRR, {what}"] = round(float(np.mean([reciprocal_rank(j) for j in judged])), 3)
                ten = [np.mean([right for _, right in j.hits[:10]]) for j in judged]
                out[f"P@10, {what}"] = round(float(np.mean(ten)), 3)
    out["s of one thread to tokenize an hour"] = round(_seconds(book, tokenizer, recordings.sounds), 1)
    return out


def _seconds(book: Codebook, tokenizer: Tokenizer, sounds: Sequence[Samples]) -> float:
    chosen, total = [], 0
    for sound in sounds:
        if total < TIMED_S * SAMPLE_RATE:
            chosen.append(sound)
            total += len(sound)
    collapsed(book, tokenizer.embed(chosen[0]))
    start = time.perf_counter()
    for sound in chosen:
        collapsed(book, tokenizer.embed(sound))
    return (time.perf_counter() - start) * 3_600 / (total / SAMPLE_RATE)


def measure(
    task: Path, folder: Path, noise: Path, vq: Path, generated: Sequence[Path], count: int
) -> dict[str, Figures]:
    """A column for each way to write."""
    tokenizer, book = of_file(vq)
    books = {"VQ": replace(book, switch_penalty=0.0), f"VQ, price {book.switch_penalty:g}": book}
    made = {path.stem: of_file(path)[1] for path in generated}
    own = next(iter(made.values()))
    if not np.array_equal(own.centroids, book.centroids):
        columns = {f"VQ, the decoder's codebook, price {price:g}": price for price in OWN_PRICES}
        books |= {name: Codebook(own.centroids, None, price) for name, price in columns.items()}
    books |= made
    queries = read_task(task)

    def embed(sounds: list[Samples]) -> list[Float32]:
        return [tokenizer.embed(sound) for sound in sounds]

    recordings = read_recordings(folder, embed, tokenizer.info.frame_seconds)
    timed = all(place.start_s is not None for q in queries for place in (q.source, *q.relevant))
    conditions = ("isolated", "in_sentence") if timed else ("isolated",)
    heard = {c: read_queries(queries, c, embed, task.parent, recordings, noise) for c in conditions}
    files = sorted(path for path in noise.rglob("*") if path.is_file())
    noisy = embed([with_noise(sound, files, n) for n, sound in enumerate(recordings.sounds[:NOISY])])
    stretches = Stretches(tokenizer, recordings.sounds, count)
    return {
        name: figures_of(one, tokenizer, queries, recordings, heard, noisy, stretches) for name, one in books.items()
    }


def as_markdown(columns: dict[str, Figures], task: str) -> str:
    """A table with a column for each way to write."""
    lines = [f"| {task} | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for row in next(iter(columns.values())):
        cells = [column[row] for column in columns.values()]
        lines.append(f"| {row} | " + " | ".join("-" if c is None else f"{c:,}" for c in cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--vq", type=Path, default=DEFAULT_WEIGHTS)
    parser.add_argument("--pairalign", type=Path, nargs="+", required=True)
    parser.add_argument("--task", nargs="+", default=["english", "malayalam"])
    parser.add_argument("--stretches", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args(arguments)
    for task in chosen.task:
        columns = measure(
            chosen.tasks / f"{task}.json", chosen.speech / "dev" / task, chosen.speech / "noise", chosen.vq,
            chosen.pairalign, chosen.stretches,
        )  # fmt: skip
        print(json.dumps({"task": task, **columns}) if chosen.json else as_markdown(columns, task) + "\n")


if __name__ == "__main__":
    main()
