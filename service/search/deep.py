"""Deep rescoring: the sound of the first hits is read again and compared by the embeddings of a larger tokenizer."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from indexer.recordings import RecordingInfo
from model.audio import read_between
from model.tokenizer import LONGEST_S, Tokenizer
from service.clips import Clip
from service.errors import AudioGone, DecoderFailed
from service.search import rescoring
from service.search.calibration import Evidence
from service.search.feedback import SAME, WEIGHT, alongside
from service.search.query import Place, embed_speech
from service.search.rescoring import Float32, Tables
from service.sound import Reader, between

PAD_S = 0.5  # of the sound before and after a hit: codes know its ends only roughly, and the encoder likes context
CONTEXT_S = 2.0  # around a stretch that is the query itself
MOST_KEPT = 2_000  # stretches whose embeddings are remembered, in float16 some 25 kB each


@dataclass(frozen=True)
class Stretch:
    """Seconds [start_s, end_s) of a recording."""

    recording: RecordingInfo
    start_s: float
    end_s: float


class DeepRescorer:
    """Compares by the embeddings of `tokenizer`; threads may share one."""

    def __init__(self, tokenizer: Tokenizer, read: Reader = read_between) -> None:
        """`read` reads the sound of recordings."""
        self.tokenizer = tokenizer
        self._read_between = read
        self._kept: OrderedDict[tuple[int, str, int, int], npt.NDArray[np.float16]] = OrderedDict()
        self._lock = threading.Lock()

    def hear(self, clip: Clip) -> Float32:
        """Unit embeddings of a clip's speech: float32 [frames, dim]. Raises NoSpeech."""
        return embed_speech(clip, self.tokenizer)[0]

    def recall(self, place: Place, recording: RecordingInfo) -> Float32:
        """Unit embeddings of a stretch of a recording, heard in its context. Raises AudioGone, DecoderFailed."""
        first_s = max(0.0, place.start_s - CONTEXT_S)
        sound = between(recording, first_s, place.end_s + CONTEXT_S, self._read_between)
        frame_s = self.tokenizer.info.frame_seconds
        first, last = round((place.start_s - first_s) / frame_s), round((place.end_s - first_s) / frame_s)
        return self.tokenizer.embed(sound)[first : max(first + 1, last)]

    def similarity(
        self, examples: Sequence[Float32], stretches: Sequence[Stretch], first: Evidence, until: float
    ) -> Float32:
        """How like the examples each stretch is, a mean of similarities as `rescoring` has them: float32 [stretches],
        the likest first.

        The best stretch by `first`, the evidence so far, and by what is heard is one more example. The similarity is
        not a number where the sound is not to be had as it was indexed, or where the time of `until`, by
        `time.monotonic`, would have passed; one is heard in any case.
        """
        out = np.full(len(stretches), np.nan, np.float32)
        heard = self._hear_all(stretches, until)
        if not heard:
            return out
        numbers = np.array(sorted(heard))
        codebook = self.tokenizer.codebook
        places = [_Heard(rows := heard[number], codebook.crowding_at(rows)) for number in numbers.tolist()]
        tables = [[place.tables(example) for place in places] for example in examples]
        matches = [[_best(of_place) for of_place in of_example] for of_example in tables]
        similarity = np.array([[match.similarity for match in found] for found in matches], np.float32).mean(axis=0)
        evidence = replace(first.take(numbers), deep=similarity)
        out[numbers] = _second_look(evidence, tables[0], matches[0], places)
        return out

    def _hear_all(self, stretches: Sequence[Stretch], until: float) -> dict[int, Float32]:
        """Embeddings of the stretches by their numbers, as many as there is time for."""
        heard = self._remembered(stretches)
        longest = 0.0
        for number, stretch in enumerate(stretches):
            if number in heard:
                continue
            began = time.monotonic()
            if longest and began + longest > until:
                break
            rows = self._listen(stretch)
            if rows is not None:
                heard[number] = rows
                longest = max(longest, time.monotonic() - began)
        return heard

    def _remembered(self, stretches: Sequence[Stretch]) -> dict[int, Float32]:
        with self._lock:
            out = {}
            for number, stretch in enumerate(stretches):
                key = self._key(stretch)
                if key in self._kept:
                    self._kept.move_to_end(key)
                    out[number] = self._kept[key].astype(np.float32)
            return out

    def _key(self, stretch: Stretch) -> tuple[int, str, int, int]:
        first, last = self._frames(stretch)
        return stretch.recording.id, stretch.recording.sha256, first, last

    def _frames(self, stretch: Stretch) -> tuple[int, int]:
        """First and last frame that are heard, of the recording."""
        frame_s = self.tokenizer.info.frame_seconds
        first = max(0, round((stretch.start_s - PAD_S) / frame_s))
        longest = int(LONGEST_S / frame_s)
        return first, min(first + longest, max(first + 1, round((stretch.end_s + PAD_S) / frame_s)))

    def _listen(self, stretch: Stretch) -> Float32 | None:
        """Embeddings of a stretch, which are remembered; None where its sound is not to be had."""
        first, last = self._frames(stretch)
        frame_s = self.tokenizer.info.frame_seconds
        try:
            sound = between(stretch.recording, first * frame_s, last * frame_s, self._read_between)
        except (AudioGone, DecoderFailed):
            return None
        if len(sound) < self.tokenizer.frame_samples:
            return None
        kept = self.tokenizer.embed(sound).astype(np.float16)
        with self._lock:
            self._kept[self._key(stretch)] = kept
            while len(self._kept) > MOST_KEPT:
                self._kept.popitem(last=False)
        return kept.astype(np.float32)  # as it will be remembered


@dataclass(frozen=True, eq=False)
class _Heard:
    """A stretch as it was heard: unit `rows` float32 [frames, dim], and the `crowding` about each, float32 [frames]."""

    rows: Float32
    crowding: Float32

    def tables(self, example: Float32) -> Tables:
        """Of an example's frames: each frame of the stretch is a code of its own."""
        none = np.zeros((len(example), 0, 256), np.float32)
        return Tables(np.ascontiguousarray(example @ self.rows.T, np.float32), none, self.crowding)


@dataclass(frozen=True)
class _Match:
    """The best path of an example through embeddings: frames [start, end) and the mean similarity."""

    start: int
    end: int
    similarity: float


def _best(tables: Tables) -> _Match:
    frames = tables.token.shape[1]
    codes, none = np.arange(frames, dtype=np.uint16), np.zeros((frames, 0), np.uint8)
    whole = rescoring.Codes(codes, none, np.array([0, frames], np.int64))
    m = rescoring.match(tables, whole, per_segment=1)
    return _Match(int(m.start[0]), int(m.end[0]), float(m.similarity[0]))


def _second_look(
    evidence: Evidence, tables: Sequence[Tables], matches: Sequence[_Match], places: Sequence[_Heard]
) -> Float32:
    """Similarities with the best stretch as a second example, which counts as in `feedback.second_look`."""
    assert evidence.deep is not None
    alike = [
        alongside(of_place, np.arange(match.start, match.end)) for of_place, match in zip(tables, matches, strict=True)
    ]
    scores = np.where(np.array(alike) < SAME, evidence.scores, -1.0)
    best = int(scores.argmax())
    if len(places) < 2 or scores[best] < 0.0:
        return evidence.deep
    example = places[best].rows[matches[best].start : matches[best].end]
    like = np.array([_best(place.tables(example)).similarity for place in places], np.float32)
    like[best] = max(evidence.deep[best], np.delete(like, best).max())
    weight = np.float32(WEIGHT * scores[best])
    return np.asarray((evidence.deep + weight * like) / (1.0 + weight), np.float32)
