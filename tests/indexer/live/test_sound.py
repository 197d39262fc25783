"""Files that grow: what is in them reads back exactly, wherever they are cut off."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from indexer.live import sound
from indexer.live.sound import BLOCK_SAMPLES, Int16, LiveSound, Place
from model import audio
from tests.indexer.sounds import babble


def said(seconds: float, seed: int = 0) -> Int16:
    return np.round(babble(seconds, seed) * 32_767.0).astype(np.int16)


def read(path: Path) -> Int16:
    samples = audio.read(path) * 32_768.0
    assert (samples == np.round(samples)).all()
    return samples.astype(np.int16)


@pytest.mark.parametrize("piece", [100, BLOCK_SAMPLES, 5_000])
def test_a_file_reads_back_while_it_grows_and_after(tmp_path: Path, piece: int) -> None:
    samples = said(2.03)
    path = tmp_path / "a.flac"
    live = LiveSound(path)
    done: list[Int16] = []
    for start in range(0, len(samples), piece):
        done.append(live.append(samples[start : start + piece]))
        state = live.state()
        assert (state.bytes, state.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    so_far = np.concatenate(done)
    np.testing.assert_array_equal(read(path), so_far)
    assert len(samples) - len(so_far) < BLOCK_SAMPLES
    assert len(so_far) == live.samples
    done.append(live.close())
    np.testing.assert_array_equal(np.concatenate(done), samples)
    np.testing.assert_array_equal(read(path), samples)
    assert audio.duration_s(path) == pytest.approx(len(samples) / 16_000, abs=1e-5)
    about = path.read_bytes()[26:42]  # what STREAMINFO says of the sound
    assert about == hashlib.md5(samples.astype("<i2").tobytes(), usedforsecurity=False).digest()


def test_a_file_that_is_cut_off_anywhere_is_whole_up_to_there(tmp_path: Path) -> None:
    samples = said(0.6)
    whole = tmp_path / "a.flac"
    live = LiveSound(whole)
    sizes = [whole.stat().st_size]
    for start in range(0, len(samples) - BLOCK_SAMPLES, BLOCK_SAMPLES):
        live.append(samples[start : start + BLOCK_SAMPLES])
        sizes += [whole.stat().st_size]
    live.close()
    blob = whole.read_bytes()
    cut = tmp_path / "cut.flac"
    for size in {
        *range(0, 60, 7),
        *range(sizes[-3], len(blob), 53),
        *(size + d for size in sizes[1:] for d in (-1, 0, 1)),
    }:
        cut.write_bytes(blob[:size])
        blocks = sum(end <= size for end in sizes[1:])
        kept = samples[: blocks * BLOCK_SAMPLES]
        assert sound.finish(cut) == len(kept), size
        assert cut.exists() == bool(len(kept))
        if len(kept):
            np.testing.assert_array_equal(read(cut), kept)
            assert audio.duration_s(cut) == pytest.approx(len(kept) / 16_000, abs=1e-5)
    assert not list(tmp_path.glob("*.partial"))
    # What comes after the break, as after a power cut, is left out.
    cut.write_bytes(blob[: sizes[4] + 7] + bytes(5_000))
    assert sound.finish(cut) == 4 * BLOCK_SAMPLES


def test_marks_say_what_is_not_finished(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    path.touch()
    assert sound.marked(tmp_path) == []
    sound.mark(path, Place("1:2", 3, 4))
    other = tmp_path / "b.flac"
    sound.mark_of(other).write_text("{", encoding="utf-8")
    assert sound.marked(tmp_path) == [(path, Place("1:2", 3, 4)), (other, Place())]
    assert not sound.is_growing(path)  # nobody is there
    with sound.claimed(tmp_path) as free:
        assert free
        assert sound.is_growing(path)
        with sound.claimed(tmp_path) as again:
            assert not again
        sound.mark_of(path).unlink()
        assert not sound.is_growing(path)
    with sound.claimed(tmp_path) as free:
        assert free
    sound.write_whole(tmp_path / "p", json.dumps({"file": "x"}))
    assert sound.read_place(tmp_path / "p") == Place("x")
    assert sound.read_place(tmp_path / "none") is None
