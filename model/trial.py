"""A tokenizer file put through its paces: the rules of the contract that only a run can tell."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from model.audio import SAMPLE_RATE, Samples
from model.codebook import Codebook
from model.declaration import UNIT_TOLERANCE, Declaration, Finding, Level, TokenizerInfo
from model.subgraph import following
from model.tokenizer import Tokenizer, open_session

NOISE_S = (0.5, 3.1, 20.0)
TIE = 1e-4  # of cosine: within it either centroid is the nearest
BATCH_TOLERANCE = 1e-3
CHUNK_TOLERANCE = 1e-4
CHUNK_FRAMES = (37, 1, 130, 17, 400, 64)  # pieces of a long recording, in turn
LONGEST_CONTEXT_S = 60.0  # no longer one is tried

Float32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]
Rule = Callable[[], Iterator[str]]


class _NotJudged(Exception):
    """A rule that cannot be judged, and why."""


@dataclass(frozen=True, eq=False)
class _Outcome:
    """What one clip gave: `ids` [1, frames] and `embeddings` [1, frames, dim], if the contract is kept."""

    name: str
    samples: Samples
    ids: Ids
    embeddings: Float32


class Trial:
    """The runs of one file. A rule yields what is wrong; one that yields nothing holds."""

    def __init__(self, path: Path, read: Declaration, session: ort.InferenceSession) -> None:
        self._path = path
        self._read = read
        self._session = session
        self._outcomes: list[_Outcome] = []
        self._writer: ort.InferenceSession | None = None

    def findings(self) -> Iterator[Finding]:
        """All rules in turn; each depends on the file, and none on whether another holds."""
        rules: tuple[tuple[str, Rule, str], ...] = (
            ("run", self._run, "runs on noise and silence from one frame to 20 s"),
            ("frames", self._frames, "gives one row a frame"),
            ("dimensions", self._dimensions, "has a codebook of as many dimensions as its embeddings"),
            ("finite", self._finite, "gives finite values"),
            ("unit_norm", self._unit_norm, "gives embeddings of unit length"),
            ("ids", self._ids, "gives ids of its codebook, and where they are not generated the nearest centroids"),
            ("determinism", self._determinism, "gives the same for the same"),
            ("batch", self._batch, "gives clips of a batch what each gets alone"),
            ("chunks", self._chunks, "gives chunks with their context exactly the embeddings of one pass"),
        )
        for name, rule, holds in rules:
            try:
                wrong = list(rule())
            except _NotJudged as reason:
                yield Finding("warning", name, f"was not judged by this rule: {reason}")
                continue
            except Exception as error:  # ONNX Runtime raises many kinds
                level: Level = "warning" if name == "batch" else "error"  # the runtime gives one clip a run
                yield Finding(level, name, f"cannot be run for this: {_line(error)}")
                continue
            yield from (Finding("error", name, message) for message in wrong)
            if not wrong and not (name == "chunks" and self._info().context == "segment"):
                yield Finding("ok", name, holds)
        yield from self._speed()

    def _run(self) -> Iterator[str]:
        clips = {f"{seconds:g} s of noise": noise(seconds, seed) for seed, seconds in enumerate(NOISE_S)}
        clips["3.1 s of silence"] = np.zeros(round(3.1 * SAMPLE_RATE), np.float32)
        if self._read.info is not None:
            clips["one frame"] = noise(self._read.info.frame_seconds)
        for name, samples in clips.items():
            try:
                ids, embeddings = self._once(samples[None])
            except Exception as error:  # ONNX Runtime raises many kinds
                yield f"fails on {name}: {_line(error)}"
            else:
                self._outcomes.append(_Outcome(name, samples, ids, embeddings))

    def _frames(self) -> Iterator[str]:
        info = self._info()
        for outcome in self._ran():
            frames = len(outcome.samples) // round(info.frame_seconds * SAMPLE_RATE)
            found = [*outcome.ids.shape[:2]], [*outcome.embeddings.shape[:2]]
            more = info.context == "segment" and found[0] == found[1] and found[0][0] == 1 and found[0][1] >= frames
            if found != ([1, frames], [1, frames]) and not more:
                yield f"gives ids {found[0]} and embeddings {found[1]} for {outcome.name}: [1, {frames}] is needed"

    def _dimensions(self) -> Iterator[str]:
        dim = self._codebook().dim
        for found in {outcome.embeddings.shape[-1] for outcome in self._ran()} - {dim}:
            yield f"has a codebook of {dim} dimensions and embeddings of {found}"

    def _finite(self) -> Iterator[str]:
        for outcome in self._ran():
            if not np.isfinite(outcome.embeddings).all():
                yield f"gives values that are not finite for {outcome.name}"

    def _unit_norm(self) -> Iterator[str]:
        for outcome in self._ran():
            off = np.abs(np.linalg.norm(outcome.embeddings, axis=-1) - 1.0).max(initial=0.0)
            if not off <= UNIT_TOLERANCE:  # so that nan is found as well
                yield f"gives embeddings whose length is off by {off:.2g} for {outcome.name}"

    def _ids(self) -> Iterator[str]:
        codebook = self._codebook()
        for outcome in self._ran():
            ids, embeddings = outcome.ids, outcome.embeddings
            if embeddings.shape != (*ids.shape, codebook.dim):
                raise _NotJudged(f"ids {[*ids.shape]} do not go with embeddings {[*embeddings.shape]}")
            if ids.size and (ids.min() < 0 or ids.max() >= codebook.size):
                yield f"gives ids {ids.min()} to {ids.max()} for {outcome.name}: 0 to {codebook.size - 1} is needed"
                continue
            if self._info().tokens == "generated":
                yield from self._written(outcome)
                continue
            similarity = embeddings @ codebook.centroids.T
            chosen = np.take_along_axis(similarity, ids[..., None], axis=-1)[..., 0]
            wrong = int((chosen < similarity.max(axis=-1) - TIE).sum())
            if wrong:
                yield f"gives {wrong} of {ids.size} ids that are not the nearest centroid for {outcome.name}"

    def _written(self, outcome: _Outcome) -> Iterator[str]:
        """Generated ids must follow from the embeddings alone: indexes keep those and ask for the ids afterwards."""
        if self._writer is None:
            self._writer = open_session(following(self._path.read_bytes(), "embeddings", "ids"))
        ids = self._writer.run(["ids"], {"embeddings": outcome.embeddings})[0]
        if not np.array_equal(ids, outcome.ids):
            yield f"gives other ids for {outcome.name} than follow from its embeddings"

    def _determinism(self) -> Iterator[str]:
        for outcome in self._ran()[-1:]:
            ids, embeddings = self._once(outcome.samples[None])
            if not (
                np.array_equal(ids, outcome.ids) and np.array_equal(embeddings, outcome.embeddings, equal_nan=True)
            ):
                yield f"gives another answer the second time for {outcome.name}"

    def _batch(self) -> Iterator[str]:
        clips = noise(3.1, 1), noise(3.1, 7) * 0.2
        _, together = self._once(np.stack(clips))
        alone = [self._once(clip[None])[1] for clip in clips]
        if together.shape != (2, *alone[0].shape[1:]):
            yield f"gives embeddings {[*together.shape]} for a batch of two and {[*alone[0].shape]} for one"
            return
        off = float(np.abs(together - np.concatenate(alone)).max(initial=0.0))
        if not off <= BATCH_TOLERANCE:
            yield f"gives a clip other embeddings in a batch than alone: off by {off:.2g}"

    def _chunks(self) -> Iterator[str]:
        info = self._info()
        if info.context == "segment":
            return
        tokenizer = Tokenizer.of_session(self._path, info, self._codebook(), self._session)
        context_s = (info.left_context_samples + info.right_context_samples) / SAMPLE_RATE
        if context_s > LONGEST_CONTEXT_S:
            raise _NotJudged(f"a context of {context_s:g} s is too long to be tried")
        frame = tokenizer.frame_samples
        samples = noise(max(30.0, 3.0 * context_s))
        frames = len(samples) // frame
        once = self._once(samples[None])[1][0]
        left = -(-info.left_context_samples // frame) * frame
        start, worst, at = 0, 0.0, 0
        for length in cycle(CHUNK_FRAMES):
            stop = min(start + length, frames)
            low, high = start * frame, stop * frame
            before, after = samples[max(0, low - left) : low], samples[high : high + info.right_context_samples]
            part = tokenizer.embed(samples[low:high], before, after)
            off = float(np.abs(part - once[start:stop]).max())
            worst, at = (off, start) if not off <= worst else (worst, at)
            start = stop
            if start == frames:
                break
        if not worst <= CHUNK_TOLERANCE:
            yield f"needs more context than it declares: a chunk at {at * info.frame_seconds:g} s is off by {worst:.2g}"

    def _speed(self) -> Iterator[Finding]:
        if any(outcome.name == "20 s of noise" for outcome in self._outcomes):
            samples = noise(20.0, 2)[None]
            start = time.perf_counter()
            self._once(samples)
            yield Finding("ok", "speed", f"runs at {20.0 / (time.perf_counter() - start):.0f} times real time here")

    def _once(self, batch: npt.NDArray[np.float32]) -> tuple[Ids, Float32]:
        ids, embeddings = self._session.run(["ids", "embeddings"], {"waveform": batch})
        return np.asarray(ids), np.asarray(embeddings)

    def _ran(self) -> list[_Outcome]:
        if not self._outcomes:
            raise _NotJudged("it does not run")
        return self._outcomes

    def _info(self) -> TokenizerInfo:
        if self._read.info is None:
            raise _NotJudged("its metadata come first")
        return self._read.info

    def _codebook(self) -> Codebook:
        if self._read.codebook is None:
            raise _NotJudged("it has no sound codebook")
        return self._read.codebook


def noise(seconds: float, seed: int = 0) -> Samples:
    """White noise whose level rises and falls, so that what depends on the level of far parts shows."""
    count = round(seconds * SAMPLE_RATE)
    level = 0.02 + 0.1 * np.sin(np.arange(count) * (2.0 * np.pi / (2.3 * SAMPLE_RATE))) ** 2
    level *= 1.0 + np.arange(count) / max(1, count)
    return np.asarray(level * np.random.default_rng(seed).standard_normal(count), np.float32)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
