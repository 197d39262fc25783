"""Measure a frame embedder on the development tasks, in memory: how well it finds words, and what its tokens are like.

    python -m bench.accuracy.probes --speech SPEECH --tasks TASKS
        (--tokenizer FILE.onnx | --student FILE.safetensors | --mfcc) [--task english …] [--condition …]
        [--twice] [--matcher …] [--size K] [--threads N] [--json]

SPEECH holds dev/<task>/ with the recordings and noise/, TASKS holds <task>.json with its clips. The codebook is fitted
to the archive's own embeddings. Nothing is chosen beforehand: each query meets every recording. Scores are bare
similarities, without the calibration of the product, which MTWV feels: it has one threshold for all queries.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bench.accuracy import embedders
from bench.accuracy.archive import CONDITIONS, THREADS, Recordings, read_queries, read_recordings
from bench.accuracy.embedders import Embed
from bench.accuracy.matchers import MATCHERS, Found, ask, matcher
from bench.accuracy.tokens import TokenFigures, token_figures, tokenize
from service.evaluation.judging import TOLERANCE_S, Judged
from service.evaluation.metrics import average_precision, reciprocal_rank
from service.evaluation.tasks import TaskQuery, read_task
from service.evaluation.twv import FILE_BETA, maximum_twv


@dataclass(frozen=True)
class Row:
    """Figures of a matcher under a condition, by file, with the token figures of the task.

    Groups are all queries, those in vocabulary, and those out of it (None where there are none). `located_map` counts
    a recording right only if its best stretch lies at a reference (None where the task has no times).
    """

    task: str
    condition: str
    matcher: str
    queries: int
    map: float
    map_iv: float | None
    map_oov: float | None
    mrr: float
    mrr_iv: float | None
    mrr_oov: float | None
    mtwv: float
    located_map: float | None
    tokens: TokenFigures | None


def judge(query: TaskQuery, found: Found, recordings: Recordings, located: bool) -> Judged:
    """`judging.judge` for an answer of one stretch for each recording, without a loop over all of them."""
    right = np.zeros(len(recordings.names), bool)
    middle_s = (found.start + found.end) / 2 * recordings.frame_seconds
    number_of = {name: number for number, name in enumerate(recordings.names)}
    for place in query.relevant:
        number = number_of.get(place.name)
        if number is None:
            continue
        if not located:
            right[number] = True
        elif place.start_s is not None and place.end_s is not None:
            right[number] |= place.start_s - TOLERANCE_S <= middle_s[number] <= place.end_s + TOLERANCE_S
    counts = np.array([name not in query.exclude for name in recordings.names])
    order = np.argsort(-found.score, kind="stable")
    order = order[counts[order]]
    hits = tuple(zip(found.score[order].tolist(), right[order].tolist(), strict=True))
    return Judged(hits, len(query.relevant) if located else len({place.name for place in query.relevant}))


def measure(
    embed: Embed,
    frame_seconds: float,
    task_file: Path,
    folder: Path,
    *,
    noise: Path | None = None,
    conditions: Sequence[str] = CONDITIONS,
    matchers: Sequence[str] = MATCHERS,
    size: int | None = None,
    threads: int = THREADS,
) -> list[Row]:
    """One row for each condition and matcher; a condition for which the task has no times, or for which there is no
    noise, is left out. Without a matcher of tokens no codebook is fitted and `tokens` is None.

    `size` is K, by default that of the product for so much sound. Raises TaskError, AudioError, CodebookError, and
    ValueError for a condition or matcher that is unknown.
    """  # fmt: skip
    unknown = [*(set(conditions) - set(CONDITIONS)), *(set(matchers) - set(MATCHERS))]
    if unknown:
        raise ValueError(f"{unknown}: conditions are {CONDITIONS}, matchers {MATCHERS}")
    queries = read_task(task_file)
    recordings = read_recordings(folder, embed, frame_seconds, threads)
    tokens = tokenize(recordings, size, threads) if set(matchers) - {"continuous"} else None
    figures = None if tokens is None else token_figures(queries, recordings, tokens)
    timed = all(place.start_s is not None for q in queries for place in (q.source, *q.relevant))
    rows = []
    for condition in conditions:
        if (condition == "in_sentence" and not timed) or (condition == "isolated_5db" and noise is None):
            continue
        heard = read_queries(queries, condition, embed, task_file.parent, recordings, noise)
        for name in matchers:
            answers = ask(matcher(name, recordings, tokens), heard, recordings, threads)
            rows.append(_row(task_file.stem, condition, name, queries, answers, recordings, timed, figures))
    return rows


def _row(
    task: str,
    condition: str,
    name: str,
    queries: Sequence[TaskQuery],
    answers: list[Found],
    recordings: Recordings,
    timed: bool,
    tokens: TokenFigures | None,
) -> Row:
    judged = [judge(query, found, recordings, False) for query, found in zip(queries, answers, strict=True)]
    located = [judge(q, found, recordings, True) for q, found in zip(queries, answers, strict=True)] if timed else []
    precision, reciprocal = [average_precision(j) for j in judged], [reciprocal_rank(j) for j in judged]
    groups = [True] * len(queries), [not q.oov for q in queries], [q.oov for q in queries]
    means = [[_mean(values, group) for group in groups] for values in (precision, reciprocal)]
    return Row(
        task=task,
        condition=condition,
        matcher=name,
        queries=len(queries),
        map=means[0][0] or 0.0,
        map_iv=means[0][1],
        map_oov=means[0][2],
        mrr=means[1][0] or 0.0,
        mrr_iv=means[1][1],
        mrr_oov=means[1][2],
        mtwv=maximum_twv(judged, float(len(recordings.names)), FILE_BETA)[0],
        located_map=float(np.mean([average_precision(j) for j in located])) if timed else None,
        tokens=tokens,
    )


def mean_average_precision(queries: Sequence[TaskQuery], answers: list[Found], recordings: Recordings) -> float:
    """File-level MAP."""
    judged = [judge(query, found, recordings, False) for query, found in zip(queries, answers, strict=True)]
    return float(np.mean([average_precision(j) for j in judged]))


def _mean(values: Sequence[float], chosen: Sequence[bool]) -> float | None:
    kept = [value for value, keep in zip(values, chosen, strict=True) if keep]
    return float(np.mean(kept)) if kept else None


def _cell(value: float | None, places: int = 3) -> str:
    return "-" if value is None else f"{value:.{places}f}"


def as_markdown(rows: Sequence[Row], name: str) -> str:
    """A table of all rows, then one line of token figures for each task."""
    lines = [
        f"| {name} | condition | matcher | MAP | iv / oov | located | MRR | iv / oov | MTWV |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.task} | {r.condition} | {r.matcher} | {_cell(r.map)} | {_cell(r.map_iv)} / {_cell(r.map_oov)} "
        f"| {_cell(r.located_map)} | {_cell(r.mrr)} | {_cell(r.mrr_iv)} / {_cell(r.mrr_oov)} | {_cell(r.mtwv)} |"
        for r in rows
    ]
    for task, t in _tokens(rows):
        lines.append(
            f"\n{task}: K {t.size}, {t.tokens_per_s:.1f} tokens a second, entropy {t.entropy:.3f} of log K, Jaccard of "
            f"two speakers' tokens {_cell(t.unigram)}, of pairs of tokens {_cell(t.bigram)} ({t.pairs} pairs of words)"
        )
    return "\n".join(lines)


def _tokens(rows: Iterable[Row]) -> list[tuple[str, TokenFigures]]:
    return list({row.task: row.tokens for row in rows if row.tokens is not None}.items())


def as_json_lines(rows: Sequence[Row], name: str) -> list[str]:
    """One object for each row, then one for each task with its token figures."""
    lines = [{k: v for k, v in asdict(row).items() if k != "tokens"} for row in rows]
    lines += [{"task": task, **asdict(tokens)} for task, tokens in _tokens(rows)]
    return [json.dumps({"embedder": name, **line}) for line in lines]


def main(words: Sequence[str] | None = None) -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--tokenizer", type=Path, help="an ONNX file")
    what.add_argument("--student", type=Path, help="a student's safetensors, in torch")
    what.add_argument("--mfcc", action="store_true", help="the features of the baseline")
    parser.add_argument("--task", nargs="+", default=["english", "malayalam"])
    parser.add_argument("--condition", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    parser.add_argument("--matcher", nargs="+", choices=MATCHERS, default=MATCHERS)
    parser.add_argument("--twice", action="store_true", help="heard again half a frame later: twice the frames")
    parser.add_argument("--size", type=int, help="K, by default as the product chooses it")
    parser.add_argument("--threads", type=int, default=THREADS, help="for all but the embedding")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args(words)
    if arguments.tokenizer:
        embedder = embedders.of_tokenizer(arguments.tokenizer)
    else:
        embedder = embedders.of_student(arguments.student) if arguments.student else embedders.of_mfcc()
    embedder = embedders.twice(embedder) if arguments.twice else embedder
    rows: list[Row] = []
    for task in arguments.task:
        rows += measure(
            embedder, embedder.frame_seconds, arguments.tasks / f"{task}.json", arguments.speech / "dev" / task,
            noise=arguments.speech / "noise", conditions=arguments.condition, matchers=arguments.matcher,
            size=arguments.size, threads=arguments.threads,
        )  # fmt: skip
    print("\n".join(as_json_lines(rows, embedder.name)) if arguments.json else as_markdown(rows, embedder.name))


if __name__ == "__main__":
    main()
