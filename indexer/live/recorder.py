"""Keeps what is heard: recordings of a bounded length, one after another, and an event for whatever was written."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from indexer.live.sound import POSITION, Int16, LiveSound, Place, State, mark, state_of, write_whole
from indexer.segment import FLOOR_DB, FRAME_SAMPLES, PAUSE_DB, SMOOTH_FRAMES, frame_levels
from model.audio import SAMPLE_RATE

SEEK_S = 20.0  # longer than it should be, a recording may wait for a pause to end in
OVERLAP_S = 2.0  # of two recordings, where no pause came


class NotKept(Exception):
    """What is heard cannot be written to the disk."""

    code = "sound_not_kept"


@dataclass(frozen=True)
class Recording:
    """A recording that is being heard; `name` is its path under the folder of all that is kept."""

    name: str
    path: Path
    started: datetime


@dataclass(frozen=True, eq=False)
class Heard:
    """Samples [n] that were added to a recording's file, and the file as it was then."""

    recording: Recording
    samples: Int16
    state: State


@dataclass(frozen=True)
class Ended:
    """A recording's file is finished, and as it will stay."""

    recording: Recording
    state: State


Event = Heard | Ended


class Recorder:
    """Takes samples of one source; threads may share one. Everything raises NotKept."""

    def __init__(self, folder: Path, length_s: float, tell: Callable[[Event], None]) -> None:
        """Files go to `folder`, which is there; a recording ends in the first pause after `length_s`."""
        self._folder = folder
        self._length = round(length_s * SAMPLE_RATE)
        self._tell = tell
        self._lock = threading.Lock()
        self._closed = False
        self._recording: Recording | None = None
        self._sound: LiveSound | None = None
        self._recent: Int16 = np.zeros(0, np.int16)  # the last seconds, where a pause is sought
        self._place = Place()  # of the next sample

    @property
    def place(self) -> Place:
        """How far a file has been heard."""
        return self._place

    def take(self, samples: Int16, place: Place | None = None) -> bool:
        """Keep samples [n]; False where nothing is taken any more. `place` is where they begin in a file."""
        with self._lock, keeping():
            if self._closed:
                return False
            if len(samples) == 0:
                return True
            place = place or Place()
            if self._sound is None:
                self._begin(len(samples), place)
            assert self._sound is not None
            self._place = replace(place, samples=place.samples + len(samples))
            self._written(self._sound.append(samples))
            if self._sound.samples >= self._length - SEEK_S * SAMPLE_RATE:
                self._recent = np.concatenate([self._recent, samples])[-int(SEEK_S * SAMPLE_RATE) :]
                self._divide()
            return True

    def gap(self) -> None:
        """What comes next does not follow what came: the recording ends."""
        with self._lock, keeping():
            self._end()

    def close(self) -> None:
        """Nothing is taken from here on."""
        with self._lock, keeping():
            self._closed = True
            self._end()

    def _divide(self) -> None:
        """End a recording that is long enough where somebody pauses; where nobody does, the next begins before that."""
        assert self._sound is not None
        over = self._sound.samples - self._length
        if over < 0:
            return
        if _pauses(self._recent):
            self._end()
        elif over >= SEEK_S * SAMPLE_RATE:
            again = self._recent[-int(OVERLAP_S * SAMPLE_RATE) :]
            self._end()
            self._begin(len(again), replace(self._place, samples=self._place.samples - len(again)))
            self._written(self._sound.append(again))

    def _begin(self, samples: int, place: Place) -> None:
        started = datetime.now(UTC) - timedelta(seconds=samples / SAMPLE_RATE)
        while (path := self._folder / f"{_stamp(started)}.flac").exists():  # the clock was set back
            started += timedelta(milliseconds=1)
        mark(path, place)
        self._sound = LiveSound(path)
        self._recording = Recording(f"{self._folder.name}/{path.name}", path, started)

    def _written(self, samples: Int16) -> None:
        if len(samples):
            assert self._recording is not None
            assert self._sound is not None
            self._tell(Heard(self._recording, samples, self._sound.state()))

    def _end(self) -> None:
        if self._sound is None or self._recording is None:
            return
        sound, recording = self._sound, self._recording
        self._sound = self._recording = None
        self._recent = self._recent[:0]
        rest = sound.close()
        if self._place.file:
            write_whole(self._folder / POSITION, json.dumps(asdict(self._place)))
        state = state_of(recording.path)
        if len(rest):
            self._tell(Heard(recording, rest, state))
        self._tell(Ended(recording, state))


@contextmanager
def keeping() -> Iterator[None]:
    """Turns errors of the disk into NotKept."""
    try:
        yield
    except OSError as error:
        raise NotKept(f"what is heard cannot be kept: {error.strerror or error}") from error


def recording_at(path: Path, name: str | None = None) -> Recording:
    """The recording whose file that is."""
    name = f"{path.parent.name}/{path.name}" if name is None else name
    try:
        started = datetime.strptime(path.stem, "%Y-%m-%dT%H-%M-%S.%fZ").replace(tzinfo=UTC)
    except ValueError:
        started = datetime.fromtimestamp(0, UTC)
    return Recording(name, path, started)


def _stamp(moment: datetime) -> str:
    """UTC to the millisecond, such as file systems take it."""
    return moment.strftime("%Y-%m-%dT%H-%M-%S.") + f"{moment.microsecond // 1_000:03d}Z"


def _pauses(recent: Int16) -> bool:
    """Whether the last 200 ms are quiet beside what was said before."""
    levels = frame_levels(recent.astype(np.float32) / 32_768.0, FRAME_SAMPLES)
    if len(levels) < SMOOTH_FRAMES:
        return False
    now = 10.0 * np.log10(np.mean(10.0 ** (levels[-SMOOTH_FRAMES:] / 10.0)) + 1e-10)
    return bool(now <= max(FLOOR_DB, float(np.percentile(levels, 90.0)) - PAUSE_DB))
