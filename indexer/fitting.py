"""An archive's first index: a random sample of its files is heard, and the archive's codebook fitted to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from indexer.discover import FoundFile
from indexer.messages import Hear, Heard, Part
from indexer.workforce import Workforce
from model.codebook import SWITCH_PENALTY, Codebook, codebook_size, fit_codebook, with_further
from model.tokenizer import Tokenizer

SAMPLE_S = 3_600.0  # heard at most
LEAST_SPEECH_S = 120.0  # in the archive: with less, the tokenizer's own codebook serves
GROWN = 4.0  # times what its codebook was fitted to: then an archive is better served by a new one
TRIED_AGAIN = 1.25  # the same for one that had too little speech for a codebook of its own
DRIFTED = 0.24  # of the cosine at the fit, lost by what came later; docs/decisions.md has the figures
JUDGED_S = 120.0  # of speech, at least, in a run of which that is said
FRAMES_PER_CENTROID = 8  # of the sample, at least
LEAST_SIZE = 64  # no codebook of an archive is smaller
MARGIN_S = 30.0  # that a file may be longer than its container claims, and a fifth
BYTES_PER_S = 4_000.0  # of a file whose container does not say how long it is: 32 kbit/s

MOST_TOKENS_PER_S = 15.0  # of speech
PRICES = (SWITCH_PENALTY, 0.115, 0.13, 0.15, 0.175, 0.2)  # of a change of token, tried in turn
DRAWN_S = 240.0  # of the sample, whose tokens are counted

Kind = Literal["archive", "tokenizer"]


class CodebookTooLittleAudio(Exception):
    """There is too little sound to fit a codebook to."""

    code = "codebook_too_little_audio"


class CodebookFixed(Exception):
    """A tokenizer that generates its tokens has one codebook, and an archive of its cannot have another."""

    code = "codebook_fixed"


@dataclass(frozen=True)
class Choice:
    """Which codebook is wanted (None: what the audio suggests), with what makes codes or without, and the seed."""

    kind: Kind | None = None
    codes: bool = True
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Fitted:
    """A codebook with its kind and how it came about; `heard` are the files that have been heard whole, by name."""

    codebook: Codebook
    kind: Kind
    parameters: dict[str, Any]
    heard: dict[str, Heard] = field(default_factory=dict)


def fit(
    pool: Workforce,
    tokenizer: Tokenizer,
    files: Sequence[FoundFile],
    durations_s: dict[str, float],
    choice: Choice,
    heard_so_far: Callable[[str, float, float], None],
) -> Fitted:
    """The codebook for an archive of these files: its own where the choice or two minutes of speech say so.

    `heard_so_far` is called with stage, seconds done, seconds in all. Raises CodebookTooLittleAudio where an own one
    is asked for and cannot be had, CodebookFixed where the tokenizer allows none.
    """
    kind, codes, seed = choice.kind, choice.codes, choice.seed
    own = tokenizer.codebook if codes else Codebook(tokenizer.codebook.centroids)
    generated = tokenizer.info.tokens == "generated"
    if generated and kind == "archive":
        raise CodebookFixed(f"the tokenizer {tokenizer.info.name} writes tokens of its own codebook: none is fitted")
    if kind == "tokenizer" or generated:
        return Fitted(own, "tokenizer", {"asked_for": True})
    frame_s = tokenizer.info.frame_seconds
    sample = _sample(pool, files, durations_s, frame_s, seed, heard_so_far)
    frames = sum(_frames(heard) for heard in sample)
    claimed_s = sum(durations_s.values())
    whole = len(sample) == len(files) and all(heard.whole for heard in sample)
    total_s = sum(heard.duration_s for heard in sample) if whole else max(claimed_s, frames * frame_s)
    speech_s = sum(int(part.speech.sum()) for heard in sample for part in heard.parts) * frame_s
    speech_s *= 1.0 if whole or not frames else total_s / (frames * frame_s)
    size = min(codebook_size(int(total_s / frame_s)), _power_of_two(frames // FRAMES_PER_CENTROID))
    if kind is None and (speech_s < LEAST_SPEECH_S or size < LEAST_SIZE):
        return Fitted(own, "tokenizer", {"archive_s": round(total_s, 1)}, _whole(sample))
    if size < LEAST_SIZE:
        needed_s = LEAST_SIZE * FRAMES_PER_CENTROID * frame_s
        raise CodebookTooLittleAudio(
            f"{frames * frame_s:.1f} s of sound cannot carry a codebook: {needed_s:.1f} s are needed at least; "
            "use the tokenizer's own"
        )
    heard_so_far("fitting the codebook", 0.0, 0.0)
    embeddings, sample = _joined(sample)
    codebook = fit_codebook(embeddings, size, seed=seed, parts=0)
    parts = [part for heard in sample for part in heard.parts]
    codebook = held_to_rate(codebook, parts, frame_s, seed)
    if codes:
        codebook = with_further(codebook, embeddings, seed=seed)
    parameters = {
        "seed": seed, "sample_frames": frames, "sample_files": len(sample), "archive_s": round(total_s, 1),
        "method": "spherical k-means in two levels", "cosine": mean_cosine(codebook, parts, frame_s, seed),
    }  # fmt: skip
    return Fitted(codebook, "archive", parameters, _whole(sample))


def outgrown(kind: Kind | None, size: int, parameters: Mapping[str, Any], archive_s: float, frame_s: float) -> bool:
    """Whether an archive has grown so much since its codebook was fitted that a new fit pays.

    A codebook of the tokenizer's that was asked for is never outgrown; one that serves since there was too little audio
    is as soon as there may be enough.
    """
    if kind is None or parameters.get("asked_for"):
        return False
    fitted_s = parameters.get("archive_s", math.inf)
    if kind == "tokenizer":
        return bool(archive_s >= LEAST_SPEECH_S and archive_s >= TRIED_AGAIN * fitted_s)
    return bool(archive_s >= GROWN * fitted_s and codebook_size(int(archive_s / frame_s)) > size)


def drifted(kind: Kind | None, parameters: Mapping[str, Any], speech_s: float, cosine: float) -> bool:
    """Whether so much speech, with that mean cosine, is unlike what an archive's own codebook was fitted to.

    The tokenizer's codebook never drifts, and neither does one that was fitted before the cosine was noted.
    """
    if kind != "archive" or speech_s < JUDGED_S:
        return False
    return bool(cosine < (parameters.get("cosine") or 0.0) - DRIFTED)


def held_to_rate(codebook: Codebook, parts: Sequence[Part], frame_s: float, seed: int = 0) -> Codebook:
    """The codebook with the least of `PRICES` at which a second of speech has at most `MOST_TOKENS_PER_S` tokens.

    Counted on a few minutes of the parts, drawn by chance; where none of the prices is enough the highest is taken.
    """
    drawn = _drawn(parts, frame_s, seed)
    speech_s = sum(int(part.speech.sum()) for part in drawn) * frame_s
    for price in PRICES:
        codebook = replace(codebook, switch_penalty=price)
        tokens = 0
        for part in drawn:
            ids = codebook.tokenize(part.embeddings)
            tokens += int(part.speech[np.flatnonzero(np.diff(ids, prepend=-1) != 0)].sum())
        if tokens <= MOST_TOKENS_PER_S * speech_s:
            break
    return codebook


def mean_cosine(codebook: Codebook, parts: Sequence[Part], frame_s: float, seed: int = 0) -> float | None:
    """Of speech frames with the centroids of their tokens, in a few minutes of the parts; None without speech."""
    total, frames = 0.0, 0
    for part in _drawn(parts, frame_s, seed):
        cosines = codebook.cosines(part.embeddings, codebook.tokenize(part.embeddings))[part.speech]
        total += float(cosines.sum())
        frames += len(cosines)
    return round(total / frames, 4) if frames else None


def _drawn(parts: Sequence[Part], frame_s: float, seed: int) -> list[Part]:
    """`DRAWN_S` of the parts, by chance."""
    out: list[Part] = []
    frames = 0
    for i in np.random.default_rng(seed).permutation(len(parts)):
        if frames * frame_s < DRAWN_S:
            out.append(parts[int(i)])
            frames += len(parts[int(i)].embeddings)
    return out


def _sample(
    pool: Workforce,
    files: Sequence[FoundFile],
    durations_s: dict[str, float],
    frame_s: float,
    seed: int,
    heard_so_far: Callable[[str, float, float], None],
) -> list[Heard]:
    """Files in random order until there is enough, in the order of their names; a long one gives every n-th segment."""
    waiting = [files[i] for i in np.random.default_rng(seed).permutation(len(files))]
    drawn: dict[str, int] = {}
    out: list[Heard] = []
    held_s = 0.0
    aim_s = min(SAMPLE_S, sum(durations_s.values()))
    # Containers may claim more than there is: more files are drawn until there is enough.
    while waiting and held_s < 0.95 * SAMPLE_S:
        tasks: list[Hear] = []
        left_s = SAMPLE_S - held_s
        while waiting and left_s > 0.0:
            file = waiting.pop(0)
            drawn[file.name] = len(drawn)
            long_s = durations_s[file.name]
            tasks.append(Hear(file, max(1, math.ceil(long_s / left_s)), min(left_s, 1.2 * long_s + MARGIN_S)))
            left_s -= min(left_s, long_s)
        for done in pool.run(tasks):
            if isinstance(done.result, Heard):
                out.append(done.result)
                held_s += _frames(done.result) * frame_s
                heard_so_far("listening", held_s, aim_s)
    # And they may claim less: what is too much is let go, the same whoever was heard first.
    out.sort(key=lambda heard: drawn[heard.file.name])
    while len(out) > 1 and held_s > SAMPLE_S:
        held_s -= _frames(out.pop()) * frame_s
    return sorted(out, key=lambda heard: heard.file.name)


def _joined(sample: list[Heard]) -> tuple[npt.NDArray[np.float32], list[Heard]]:
    """All embeddings in one array, and the sample again with views of it: they are in memory once."""
    embeddings = np.concatenate([part.embeddings for heard in sample for part in heard.parts])
    out: list[Heard] = []
    at = 0
    for heard in sample:
        parts: list[Part] = []
        for part in heard.parts:
            parts.append(replace(part, embeddings=embeddings[at : at + len(part.embeddings)]))
            at += len(part.embeddings)
        out.append(replace(heard, parts=parts))
    sample.clear()
    return embeddings, out


def _frames(heard: Heard) -> int:
    return sum(len(part.embeddings) for part in heard.parts)


def _whole(sample: list[Heard]) -> dict[str, Heard]:
    return {heard.file.name: heard for heard in sample if heard.whole}


def _power_of_two(frames: int) -> int:
    return 1 << (frames.bit_length() - 1) if frames > 0 else 0
