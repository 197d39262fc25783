"""Measure a frame embedder on the development tasks, in memory: how well it finds words, and what its tokens are like.

    python -m bench.accuracy.probes --speech SPEECH --tasks TASKS
        (--tokenizer FILE.onnx | --student FILE.safetensors | --mfcc) [--task english …] [--condition …]
        [--matcher …] [--size K] [--threads N] [--json]

SPEECH holds dev/<task>/ with the recordings and noise/, TASKS holds <task>.json with its clips. The codebook is fitted
to the archive's own embeddings. Nothing is chosen beforehand: each query meets every recording. Scores are bare
similarities, without the calibration of the product, which MTWV feels: it has one threshold for all queries.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numba
import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

from bench.accuracy import embedders
from bench.accuracy.embedders import Embed, Float32
from model import audio
from model.audio import SAMPLE_RATE, Samples
from model.codebook import PQ_PARTS, Codebook, codebook_size, fit_codebook
from model.tokens import TokenString
from service.errors import NoSpeech
from service.evaluation import (
    FILE_BETA,
    TOLERANCE_S,
    Judged,
    Place,
    TaskError,
    TaskQuery,
    average_precision,
    maximum_twv,
    read_task,
    reciprocal_rank,
)
from service.search import rescoring
from service.search.engine import SPEECH_RMS
from service.search.trim import trim

CONDITIONS = ("isolated", "in_sentence", "isolated_5db")
MATCHERS = ("edit", "centroids", "pq", "continuous")
NOISE_DB = 5.0  # level of the clip over that of the noise laid under it
THREADS = 2  # of the reference machine

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
UInt16 = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class TokenFigures:
    """Of an archive's tokens after run-length collapse: K, tokens a second of audio, entropy as a part of log K.

    `unigram` and `bigram` are the mean Jaccard similarity of the sets of tokens, and of pairs of tokens that follow
    each other, of two speakers' pronunciations of a word (BEST-STD, Singh et al. 2024); None where the task has no
    times.
    """

    size: int
    tokens_per_s: float
    entropy: float
    unigram: float | None
    bigram: float | None
    pairs: int


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


@dataclass(frozen=True, eq=False)
class Found:
    """The best stretch [start, end) of each recording in frames, int32, and its score, float32 [recordings]."""

    score: Float32
    start: Int32
    end: Int32

    @classmethod
    def nothing(cls, recordings: int, score: float = -1.0) -> Found:
        """To be filled."""
        empty = np.zeros(recordings, np.int32)
        return cls(np.full(recordings, score, np.float32), empty, empty.copy())


@dataclass(frozen=True, eq=False)
class Recordings:
    """Sound in order of its names, and its embeddings end to end: float32 [total, dim], int64 offsets [n + 1]."""

    names: tuple[str, ...]
    sounds: list[Samples]
    embeddings: Float32
    offsets: Int64
    frame_seconds: float

    @property
    def seconds(self) -> float:
        """Of sound, in all."""
        return sum(len(sound) for sound in self.sounds) / SAMPLE_RATE

    def stretch(self, place: Place) -> tuple[int, slice]:
        """The number of a place's recording, and its frames among all. Raises TaskError for an unknown recording."""
        if place.name not in self.names:
            raise TaskError(f"the task speaks of {place.name}, and the archive has no such recording")
        number = self.names.index(place.name)
        first, last = int(self.offsets[number]), int(self.offsets[number + 1])
        start = round((place.start_s or 0.0) / self.frame_seconds)
        end = last - first if place.end_s is None else round(place.end_s / self.frame_seconds)
        return number, slice(min(last, first + start), min(last, first + end))


@dataclass(frozen=True, eq=False)
class Tokens:
    """The archive's tokens: `ids` uint16 and `pq` uint8 [total, M] by frame, and the collapsed strings end to end."""

    codebook: Codebook
    ids: UInt16
    pq: npt.NDArray[np.uint8]
    collapsed: UInt16
    offsets: Int64  # of each recording in `collapsed`
    first_frame: Int64  # of each collapsed token and, once more for each recording, its end: [tokens + recordings]


def read_recordings(folder: Path, embed: Embed, frame_seconds: float, threads: int = THREADS) -> Recordings:
    """Decode and embed all files of a folder."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    if not paths:
        raise TaskError(f"there are no recordings in {folder}")
    with _pool(threads) as pool:
        sounds = list(pool.map(audio.read, paths))
    parts = [_whole_parts(part) for part in embed(sounds)]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    names = tuple(str(path.relative_to(folder)) for path in paths)
    return Recordings(names, sounds, np.concatenate(parts), offsets, frame_seconds)


def tokenize(recordings: Recordings, size: int | None, threads: int = THREADS, given: Codebook | None = None) -> Tokens:
    """Tokenize each recording alone, by a codebook that is fitted to the archive unless one is `given`.

    Raises CodebookError for too few frames.
    """
    everything, offsets = recordings.embeddings, recordings.offsets
    with threadpool_limits(threads, user_api="blas"):
        codebook = given or fit_codebook(everything, size or codebook_size(len(everything)), parts=PQ_PARTS)
    parts = 0 if codebook.pq is None else len(codebook.pq)

    def one(number: int) -> TokenString:
        part = everything[offsets[number] : offsets[number + 1]]
        ids = codebook.tokenize(part)
        codes = codebook.encode(part, ids) if parts else None
        return TokenString.from_frames(ids, recordings.frame_seconds, 0.0, codes)

    with _pool(threads) as pool:
        strings = list(pool.map(one, range(len(recordings.names))))
    codes = rescoring.gather(strings, parts)
    counts = np.concatenate([[0], np.cumsum([len(string) for string in strings])]).astype(np.int64)
    first_frame = np.concatenate([string.boundaries for string in strings])
    return Tokens(codebook, codes.ids, codes.pq, np.concatenate([s.ids for s in strings]), counts, first_frame)


def read_queries(
    queries: Sequence[TaskQuery], condition: str, embed: Embed, clips: Path, recordings: Recordings, noise: Path | None
) -> list[Float32]:
    """Embeddings of each query's speech, as `service.search.trim` finds it; all of it where that finds none.

    Clips are brought to the level that the product gives them, after the noise has been laid under them. A query in
    its sentence is cut from the embeddings of the whole recording, which keeps its own level.
    """
    if condition == "in_sentence":
        out = []
        for query in queries:
            number, frames = recordings.stretch(query.source)
            start, end = round((query.source.start_s or 0.0) * SAMPLE_RATE), query.source.end_s
            sound = recordings.sounds[number][start : None if end is None else round(end * SAMPLE_RATE)]
            out.append(recordings.embeddings[frames][_speech(sound, recordings.frame_seconds)])
        return out
    sounds = [audio.read(clips / query.clip) for query in queries]
    if condition == "isolated_5db":
        if noise is None:
            raise ValueError("a folder with noise is needed for clips in noise")
        files = sorted(path for path in noise.rglob("*") if path.is_file())
        sounds = [with_noise(sound, files, number) for number, sound in enumerate(sounds)]
    cuts = [_speech(sound, recordings.frame_seconds) for sound in sounds]
    heard = embed([_at_speech_level(sound) for sound in sounds])
    return [_whole_parts(part)[cut] for part, cut in zip(heard, cuts, strict=True)]


def with_noise(sound: Samples, files: Sequence[Path], number: int) -> Samples:
    """A clip with a stretch of one of the files under it, `NOISE_DB` below its level; `number` decides which."""
    rng = np.random.default_rng(number)
    noise = audio.read(files[int(rng.integers(len(files)))])
    under = np.resize(np.roll(noise, -int(rng.integers(len(noise)))), len(sound))
    if not under.any():  # some recordings of noise have silence in them
        under = rng.standard_normal(len(sound)).astype(np.float32)
    gain = 10 ** (-NOISE_DB / 20) * np.sqrt(np.mean(sound**2) / np.mean(under**2))
    return np.asarray(sound + np.float32(gain) * under, np.float32)


def _speech(sound: Samples, frame_seconds: float) -> slice:
    try:
        speech = trim(sound)
    except NoSpeech:
        return slice(None)
    return slice(round(speech.start_s / frame_seconds), max(1, round(speech.end_s / frame_seconds)))


def _at_speech_level(sound: Samples) -> Samples:
    rms = float(np.sqrt(np.mean(sound[_speech(sound, 1 / SAMPLE_RATE)] ** 2)))
    return np.asarray(np.clip(sound * np.float32(SPEECH_RMS / max(rms, 1e-6)), -1.0, 1.0), np.float32)


def _whole_parts(embeddings: Float32) -> Float32:
    """Zeros at the end, so that the product quantiser's parts are equal: cosines stay."""
    return np.pad(np.asarray(embeddings, np.float32), ((0, 0), (0, -embeddings.shape[1] % PQ_PARTS)))


def matcher(name: str, recordings: Recordings, tokens: Tokens | None) -> Callable[[Float32], Found]:
    """What takes unit embeddings float32 [frames, dim] of a query and answers the best stretch of each recording."""
    count = len(recordings.names)

    def continuous(query: Float32) -> Found:
        found = Found.nothing(count)
        similarity = query @ recordings.embeddings.T
        warp(similarity, recordings.offsets, found.score, found.start, found.end)
        return found

    if name == "continuous":
        return continuous
    if tokens is None:
        raise ValueError(f"the matcher {name} needs tokens")
    codebook, no_codes = tokens.codebook, np.zeros((len(tokens.ids), 0), np.uint8)
    codes = rescoring.Codes(tokens.ids, tokens.pq if name == "pq" else no_codes, recordings.offsets)

    def look_up(query: Float32) -> Found:
        found = Found.nothing(count)
        for m in rescoring.match(rescoring.make_tables(query, codebook, name == "pq"), codes, per_segment=1):
            found.score[m.segment], found.start[m.segment], found.end[m.segment] = m.similarity, m.start, m.end
        return found

    def edit(query: Float32) -> Found:
        found = Found.nothing(count)
        ids = TokenString.from_frames(codebook.tokenize(query), recordings.frame_seconds).ids
        infix(ids, tokens.collapsed, tokens.offsets, found.score, found.start, found.end)
        shift = tokens.offsets[:-1] + np.arange(count)  # `first_frame` has one more for each recording
        start, end = tokens.first_frame[found.start + shift], tokens.first_frame[found.end + shift]
        return Found(found.score, start.astype(np.int32), end.astype(np.int32))

    return edit if name == "edit" else look_up


@numba.njit(nogil=True, cache=True)
def warp(similarity: Float32, offsets: Int64, score: Float32, start: Int32, end: Int32) -> None:
    """Subsequence DTW of [query frames, total], recording by recording, with the steps of `service.search.rescoring`.

    Fills score (the mean over query frames of the best path), start and end; recordings of no frames are left alone.
    """
    rows = len(similarity)
    for number in range(len(offsets) - 1):
        first, length = offsets[number], offsets[number + 1] - offsets[number]
        if length == 0:
            continue
        # Two frames of nothing lie before each row, so that steps from before the recording need no test.
        total, begin = np.full(length + 2, np.float32(-1e9)), np.zeros(length + 2, np.int32)
        next_total, next_begin = total.copy(), begin.copy()
        total[2:] = similarity[0, first : first + length]
        begin[2:] = np.arange(length)
        for i in range(1, rows):
            local = similarity[i, first : first + length]
            for j in range(length):
                # Choices without branches, so that eight frames or more go in step.
                best, one, two = total[j + 2], total[j + 1], total[j]
                from_, from_one, from_two = begin[j + 2], begin[j + 1], begin[j]
                from_ = from_one if one >= best else from_
                best = one if one >= best else best
                next_begin[j + 2] = from_two if two > best else from_
                next_total[j + 2] = (two if two > best else best) + local[j]
            total, next_total = next_total, total
            begin, next_begin = next_begin, begin
        at = total[2:].argmax()
        score[number], start[number], end[number] = total[at + 2] / np.float32(rows), begin[at + 2], at + 1


@numba.njit(nogil=True, cache=True)
def infix(query: UInt16, tokens: UInt16, offsets: Int64, score: Float32, start: Int32, end: Int32) -> None:
    """One minus the least edit distance of any infix over the query's length (Sellers 1980), recording by recording.

    Fills score in [0, 1], and the infix [start, end) in tokens of the recording.
    """
    rows = len(query)
    for number in range(len(offsets) - 1):
        first, length = offsets[number], offsets[number + 1] - offsets[number]
        distance, begin = np.zeros(length + 1, np.int32), np.arange(length + 1).astype(np.int32)
        for i in range(rows):
            left_above, begin_above = distance[0], begin[0]
            distance[0] = i + 1
            for j in range(length):
                best, from_ = left_above + (query[i] != tokens[first + j]), begin_above
                left_above, begin_above = distance[j + 1], begin[j + 1]
                if left_above + 1 < best:
                    best, from_ = left_above + 1, begin_above
                if distance[j] + 1 < best:
                    best, from_ = distance[j] + 1, begin[j]
                distance[j + 1], begin[j + 1] = best, from_
        at = distance.argmin()
        score[number] = np.float32(1.0) - np.float32(distance[at]) / np.float32(rows)
        start[number], end[number] = begin[at], at


def jaccard(one: UInt16, other: UInt16, grams: int) -> float:
    """Shared part of the sets of runs of `grams` tokens, in [0, 1]; 0 where neither has any."""
    a, b = ({tuple(ids[i : i + grams]) for i in range(len(ids) - grams + 1)} for ids in (one.tolist(), other.tolist()))
    return len(a & b) / len(a | b) if a or b else 0.0


def token_figures(queries: Sequence[TaskQuery], recordings: Recordings, tokens: Tokens) -> TokenFigures:
    """Of all tokens, and of each query's source against each of its references by another speaker."""
    counts = np.bincount(tokens.collapsed, minlength=tokens.codebook.size)
    shares = counts[counts > 0] / counts.sum()
    entropy = float(-(shares * np.log(shares)).sum() / np.log(max(2, tokens.codebook.size)))

    def spoken(place: Place) -> UInt16:
        ids = tokens.ids[recordings.stretch(place)[1]]
        return TokenString.from_frames(ids, recordings.frame_seconds).ids

    pairs = [
        (spoken(query.source), spoken(place))
        for query in queries
        for place in query.relevant
        if query.source.start_s is not None and place.start_s is not None and place.name not in query.exclude
    ]
    uni, bi = ([jaccard(a, b, grams) for a, b in pairs] for grams in (1, 2))
    return TokenFigures(
        size=tokens.codebook.size,
        tokens_per_s=len(tokens.collapsed) / recordings.seconds,
        entropy=entropy,
        unigram=float(np.mean(uni)) if pairs else None,
        bigram=float(np.mean(bi)) if pairs else None,
        pairs=len(pairs),
    )


def judge(query: TaskQuery, found: Found, recordings: Recordings, located: bool) -> Judged:
    """`service.evaluation.judge` for an answer of one stretch for each recording, without a loop over all of them."""
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


def ask(
    find: Callable[[Float32], Found], heard: list[Float32], recordings: Recordings, threads: int = THREADS
) -> list[Found]:
    """The answer to each query; one without a frame finds nothing."""

    def one(query: Float32) -> Found:
        return find(query) if len(query) else Found.nothing(len(recordings.names))

    with _pool(threads) as pool:
        return list(pool.map(one, heard))


@contextmanager
def _pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Threads that do their matrix products alone: BLAS threads of their own would only get in each other's way."""
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        yield pool


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
    parser.add_argument("--size", type=int, help="K, by default as the product chooses it")
    parser.add_argument("--threads", type=int, default=THREADS, help="for all but the embedding")
    parser.add_argument("--json", action="store_true", help="one object a line")
    arguments = parser.parse_args(words)
    if arguments.tokenizer:
        embedder = embedders.of_tokenizer(arguments.tokenizer)
    else:
        embedder = embedders.of_student(arguments.student) if arguments.student else embedders.of_mfcc()
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
