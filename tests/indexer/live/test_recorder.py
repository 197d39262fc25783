"""Recordings of a bounded length: cut where somebody pauses, or with what was said last said again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indexer.live import sound
from indexer.live.recorder import Ended, Event, Heard, NotKept, Recorder, recording_at
from indexer.live.sound import Int16, Place
from model import audio

PIECE = 1_000


def noise(seconds: float) -> Int16:
    return (3_000 * np.random.default_rng(0).standard_normal(int(16_000 * seconds))).clip(-32_768, 32_767).astype("i2")


def record(folder: Path, samples: Int16, length_s: float, place: Place | None = None) -> list[Event]:
    events: list[Event] = []
    recorder = Recorder(folder, length_s, events.append)
    for start in range(0, len(samples), PIECE):
        at = None if place is None else Place(place.file, place.samples + start, place.bytes)
        assert recorder.take(samples[start : start + PIECE], at)
    recorder.close()
    assert not recorder.take(samples)
    return events


def kept(events: list[Event]) -> list[Int16]:
    paths = [event.recording.path for event in events if isinstance(event, Ended)]
    return [(audio.read(path) * 32_768.0).astype(np.int16) for path in paths]


def told(events: list[Event]) -> list[Int16]:
    names = [event.recording.name for event in events if isinstance(event, Ended)]
    return [
        np.concatenate([e.samples for e in events if isinstance(e, Heard) and e.recording.name == name])
        for name in names
    ]


def test_a_recording_ends_in_a_pause(tmp_path: Path) -> None:
    samples = noise(70.0)
    for pause_s in (20.0, 37.0, 62.0):  # the first comes too early
        samples[int(pause_s * 16_000) : int((pause_s + 0.5) * 16_000)] = 0
    events = record(tmp_path, samples, 30.0)
    parts = kept(events)
    np.testing.assert_array_equal(np.concatenate(parts), samples)  # nothing lost, nothing said twice
    ends_s = np.cumsum([len(part) for part in parts])[:-1] / 16_000
    assert len(ends_s) == 1  # the last pause comes too early for the second
    assert 37.1 < ends_s[0] < 37.6
    for one, other in zip(told(events), parts, strict=True):
        np.testing.assert_array_equal(one, other)
    for event in events:
        if isinstance(event, Ended):
            assert event.state == sound.state_of(event.recording.path)
            assert recording_at(event.recording.path).name == event.recording.name
            gap_s = (recording_at(event.recording.path).started - event.recording.started).total_seconds()
            assert abs(gap_s) < 0.002
    assert len(sound.marked(tmp_path)) == len(parts)  # nothing is stored yet


def test_where_nobody_pauses_two_seconds_are_in_both(tmp_path: Path) -> None:
    samples = noise(75.0)
    events = record(tmp_path, samples, 30.0, Place("1:1", 1_000, 5))
    first, second = kept(events)
    assert 50.0 <= len(first) / 16_000 < 50.2
    np.testing.assert_array_equal(second[:32_000], first[-32_000:])
    np.testing.assert_array_equal(np.concatenate([first, second[32_000:]]), samples)
    begun, again = (place.samples for _, place in sorted(sound.marked(tmp_path), key=lambda one: one[1].samples))
    assert (begun, again) == (1_000, 1_000 + len(first) - 32_000)
    assert sound.read_place(tmp_path / sound.POSITION) == Place("1:1", 1_000 + len(samples), 5)
    assert sum(isinstance(event, Ended) for event in events) == 2


def test_after_a_gap_a_new_recording_begins(tmp_path: Path) -> None:
    events: list[Event] = []
    recorder = Recorder(tmp_path, 600.0, events.append)
    samples = noise(1.0)
    recorder.take(samples)
    recorder.gap()
    recorder.gap()
    recorder.take(samples[:0])
    recorder.take(samples[:500])
    recorder.close()
    assert [len(part) for part in kept(events)] == [16_000, 500]


def test_a_disk_that_takes_nothing_is_told_of(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "gone", 600.0, lambda _: None)
    with pytest.raises(NotKept, match="No such file"):
        recorder.take(noise(0.1))
