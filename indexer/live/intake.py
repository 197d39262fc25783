"""From what is heard to what is stored: tokens of the growing recording, and of those that are still to be stored."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from indexer import store
from indexer.database import DatabaseError
from indexer.live import sound
from indexer.live.recorder import Event, Heard, Recording
from indexer.live.sound import Int16, State
from indexer.live.store import InForce, LiveStore, Put, Switched
from indexer.live.tail import Tail
from model import audio
from model.codebook import Codebook
from model.tokenizer import Tokenizer

TROUBLE_S = 2.0  # until a database that did not answer is asked again
SWITCHES = 5  # of the archive's codebook, one after another, before that is an error

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stored:
    """A recording that is over and stored; `path` is None where its sound is not kept."""

    recording: Recording
    id: int
    duration_s: float
    segments: int
    path: Path | None


class _Growing:
    """A recording with its tokens so far, and as it was stored last; `state` is None before anything came."""

    def __init__(self, recording: Recording, tail: Tail, state: State | None = None) -> None:
        self.recording = recording
        self.tail = tail
        self.state = state
        self.put: Put | None = None
        self.is_stored = False

    def take(self, samples: audio.Samples, state: State) -> None:
        """It goes on: float32 [n], and its file has become `state`."""
        self.tail.take(samples)
        self.state, self.is_stored = state, False


class LiveIntake:
    """Stores what is heard of one source as it comes. Sound that is not `kept` goes when it is stored for good."""

    def __init__(
        self,
        to: LiveStore,
        tokenizer: Tokenizer,
        tokenizers: Callable[[str], Tokenizer | None],
        told: Callable[[Stored], None],
        *,
        kept: bool,
    ) -> None:
        self._store, self._tokenizer, self._tokenizers, self._told, self._kept = to, tokenizer, tokenizers, told, kept
        self._growing: _Growing | None = None
        self._behind: list[Recording] = []  # to be stored from their files
        self._reading: _Growing | None = None  # the first of them
        self._chunks: Iterator[audio.Samples] = iter(())  # of its file, those that are left
        self._made_with: InForce | None = None
        self._codebook: Codebook | None = None
        self._ask_at = 0.0  # the database, not before that
        self.problem: DatabaseError | None = None  # why not all is stored

    def begin(self, left: list[Recording]) -> None:
        """Look at the archive; what is `left` is stored from files. Raises StoreError, DatabaseError."""
        self._behind += left
        self._switch(None)

    def take(self, event: Event) -> None:
        """Something has been heard, or has ended. Raises StoreError."""
        if isinstance(event, Heard):
            if self._growing is None:
                self._growing = _Growing(event.recording, self._tail())
            self._growing.take(_floats(event.samples), event.state)
        else:
            growing, self._growing = self._growing, None
            if growing is None or growing.tail.is_empty:
                _forget(event.recording)
                return
            growing.state = event.state
            if not self._tried(lambda: self._finish(growing)):
                self._behind.append(event.recording)

    def turn(self, behind_s: float) -> bool:
        """Store what is new, then for so many seconds what is behind; whether all is stored. Raises StoreError."""
        return self._tried(lambda: self._turn(behind_s)) and not self._behind

    def _turn(self, behind_s: float) -> None:
        until = time.monotonic() + behind_s
        if self._growing is not None and not self._growing.is_stored and not self._growing.tail.is_empty:
            self._put(self._growing)
        while self._behind and time.monotonic() < until:
            self._read_on()

    def _tried(self, what: Callable[[], None]) -> bool:
        """Do it, unless the database did not answer just now; where it does not, it is to be done later: False."""
        if time.monotonic() < self._ask_at:
            return False
        try:
            what()
        except DatabaseError as error:
            log.warning("%s; what is heard is kept, and stored later", error)
            self.problem = error
            self._ask_at = time.monotonic() + TROUBLE_S
            return False
        self.problem = None
        return True

    def _read_on(self) -> None:
        """Read a part of the first recording that is behind, and store it at its end."""
        try:
            if self._reading is None:
                first = self._behind[0]
                self._reading = _Growing(first, self._tail(), sound.state_of(first.path))
                self._chunks = audio.read_chunks(first.path)
            chunk = next(self._chunks, None)
            if chunk is not None:
                self._reading.tail.take(chunk)
                return
            self._finish(self._reading)
        except (OSError, audio.AudioError) as error:
            log.warning("%s cannot be read any more: %s", self._behind[0].name, error)
        self._reading = None
        self._behind.pop(0)

    def _finish(self, growing: _Growing) -> None:
        """Store a recording for good."""
        recording = growing.recording
        is_new = sound.mark_of(recording.path).exists()
        put = self._put(growing)
        if not self._kept:
            recording.path.unlink(missing_ok=True)
        sound.mark_of(recording.path).unlink(missing_ok=True)
        if is_new:
            path = recording.path if self._kept else None
            self._told(Stored(recording, put.id, growing.tail.duration_s, put.segments, path))

    def _put(self, growing: _Growing) -> Put:
        """Store a recording as it is now, made with what is in force."""
        assert growing.state is not None
        sound.settle(growing.recording.path)  # the sound first: rows speak of what is there
        for _ in range(SWITCHES):
            assert self._made_with is not None
            try:
                growing.put = self._store.put(
                    growing.recording, growing.state, growing.tail.duration_s, growing.tail.final, growing.tail.rest(),
                    self._made_with, growing.put,
                )  # fmt: skip
            except Switched:
                self._switch(growing)
                continue
            growing.is_stored = True
            return growing.put
        raise DatabaseError(f"the codebook of the archive has changed {SWITCHES} times, one after another")

    def _switch(self, growing: _Growing | None) -> None:
        """Look at what is in force now: what is made from here on, and what has been, is made with that."""
        self._made_with = self._store.in_force(self._tokenizer)
        other = self._made_with.tokenizer_sha256
        if self._tokenizer.info.sha256 != other:
            found = self._tokenizers(other)
            if found is None:
                raise store.TokenizerMismatch(f"the archive has another tokenizer by now ({other[:12]}), not at hand")
            self._tokenizer = found
        self._codebook = self._store.codebook(self._made_with)
        for one in {growing, self._growing, self._reading} - {None}:
            assert one is not None
            one.put = None
            if one.tail.tokenizer is self._tokenizer:
                one.tail.use(self._codebook)
            else:
                tail, one.tail = one.tail, self._tail()
                one.tail.take(audio.read(one.recording.path)[: tail.samples])
        known = {recording.name for recording in self._behind}
        known |= {one.recording.name for one in (growing, self._growing) if one is not None}
        self._behind += [one for one in self._store.stale(self._made_with, known) if one.path.is_file()]

    def _tail(self) -> Tail:
        assert self._codebook is not None
        return Tail(self._tokenizer, self._codebook)


def _floats(samples: Int16) -> audio.Samples:
    """As `model.audio` reads them from the file."""
    return samples.astype(np.float32) / np.float32(32_768.0)


def _forget(recording: Recording) -> None:
    """Less than one frame: there is nothing to store."""
    recording.path.unlink(missing_ok=True)
    sound.mark_of(recording.path).unlink(missing_ok=True)
