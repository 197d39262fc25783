import io
import os
import subprocess
import sys
import tracemalloc
import wave
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from model import audio
from tests.indexer import sounds


def reference(path: Path) -> np.ndarray:
    """Every decoded frame through the resampler by itself: what batching must not change."""
    resampler = av.AudioResampler(format="flt", layout="mono", rate=16_000)
    out = []
    with av.open(str(path)) as container:
        for frame in container.decode(audio=0):
            frame.pts = None
            out += resampler.resample(frame)
    out += resampler.resample(None)
    return np.clip(np.concatenate([frame.to_ndarray().reshape(-1) for frame in out]), -1, 1)


@pytest.mark.parametrize("suffix", sorted(sounds.CODECS))
@pytest.mark.parametrize("kinds", [{}, {"rate": 44_100, "channels": 2}], ids=["plain", "stereo"])
def test_every_chunk_size_gives_the_samples_of_frame_by_frame_decoding(
    tmp_path: Path, suffix: str, kinds: dict[str, int]
) -> None:
    path = sounds.write(tmp_path / f"a{suffix}", sounds.babble(4.3, 1), **kinds)
    expected = reference(path)
    assert len(expected) / 16_000 == pytest.approx(4.3, abs=0.15)
    for chunk in (1_000, 16_000, 160_000, 1):
        if chunk == 1 and suffix != ".wav":
            continue
        chunks = list(audio.read_chunks(path, chunk))
        assert {len(part) for part in chunks[:-1]} <= {chunk}
        assert 0 < len(chunks[-1]) <= chunk
        np.testing.assert_array_equal(np.concatenate(chunks), expected)


def test_a_tone_keeps_its_pitch_and_its_level(tmp_path: Path) -> None:
    tone = (0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)).astype(np.float32)
    for name, kinds in {"a.wav": {"rate": 8_000}, "b.flac": {"rate": 96_000}, "c.wav": {}}.items():
        heard = audio.read(sounds.write(tmp_path / name, tone, **kinds))
        spectrum = np.abs(np.fft.rfft(heard[4_000:20_000]))
        assert np.argmax(spectrum) == 440
        assert heard[4_000:20_000].max() == pytest.approx(0.5, abs=0.01)


def test_bytes_and_streams_are_read_like_files(tmp_path: Path) -> None:
    path = sounds.write(tmp_path / "a.flac", sounds.babble(1.0))
    blob = path.read_bytes()
    np.testing.assert_array_equal(audio.read(blob), audio.read(path))
    np.testing.assert_array_equal(audio.read(io.BytesIO(blob)), audio.read(path))
    assert len(audio.read(path, max_s=0.25)) == 4_000
    assert audio.duration_s(path) == pytest.approx(1.0, abs=0.01)


def test_numbers_that_are_none_become_silence_and_loud_ones_are_held(tmp_path: Path) -> None:
    wild = np.array([[0.0, np.nan, np.inf, -np.inf, 9.0, -9.0, 0.25] * 1_000], np.float32)
    path = tmp_path / "wild.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_f32le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(wild, "flt", "mono")
        frame.sample_rate = 16_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    heard = audio.read(path)
    assert heard[:7].tolist() == [0.0, 0.0, 1.0, -1.0, 1.0, -1.0, 0.25]


def test_memory_does_not_grow_with_the_recording(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    with wave.open(str(path), "wb") as file:
        file.setparams((2, 2, 48_000, 0, "NONE", ""))
        for _ in range(600):
            file.writeframes(b"\1\2" * 96_000)
    tracemalloc.start()
    total = sum(len(chunk) for chunk in audio.read_chunks(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == pytest.approx(600 * 16_000, abs=100)
    assert peak < 10e6


@pytest.mark.parametrize("kind", ["empty", "text", "no samples", "missing", "folder", "playlist"])
def test_what_is_no_audio_says_so(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.wav"
    expected: type[audio.AudioError] = audio.AudioUndecodable
    if kind == "empty":
        path.write_bytes(b"")
        expected = audio.AudioEmpty
    elif kind == "text":
        path.write_text("no sound at all\n" * 100)
    elif kind == "no samples":
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, 16_000, 0, "NONE", ""))
        expected = audio.AudioEmpty
    elif kind == "playlist":
        real = sounds.write(tmp_path / "real.wav", sounds.babble(1.0))
        path = tmp_path / "list.m3u8"
        path.write_text(
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/{real.name}\n#EXT-X-ENDLIST\n"
        )
    else:
        expected = audio.AudioMissing
    if kind == "folder":
        path.mkdir()
    with pytest.raises(expected) as caught:
        audio.read(path)
    assert "\n" not in str(caught.value)
    assert os.fspath(tmp_path) not in str(caught.value)


def test_a_stream_without_sound(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(3):
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
        container.mux(stream.encode(None))
    with pytest.raises(audio.AudioEmpty):
        audio.read(path)


def test_what_was_cut_off_is_heard_up_to_the_cut(tmp_path: Path) -> None:
    path = sounds.write(tmp_path / "a.mp3", sounds.babble(6.0))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert len(audio.read(path)) / 16_000 == pytest.approx(3.0, abs=0.3)


@pytest.mark.parametrize("suffix", sorted(sounds.CODECS))
def test_a_stretch_is_what_lies_there_in_the_whole(tmp_path: Path, suffix: str) -> None:
    path = sounds.write(tmp_path / f"a{suffix}", sounds.babble(40.0, 3), rate=48_000)
    whole = audio.read(path)
    for start_s, end_s in ((0.0, 2.0), (3.1, 5.0), (14.23, 17.9), (33.0, 33.5), (39.0, 60.0)):
        expected = whole[round(start_s * 16_000) : round(end_s * 16_000)]
        found = audio.read_between(path, start_s, end_s)
        assert abs(len(found) - len(expected)) <= 16
        length = min(len(found), len(expected))
        spectrum = np.fft.rfft(found[:length], 2 * length) * np.conj(np.fft.rfft(expected[:length], 2 * length))
        lags = np.fft.irfft(spectrum)
        lag = int(lags.argmax())
        assert min(lag, 2 * length - lag) <= 16  # a millisecond
        assert lags.max() > 0.97 * np.linalg.norm(found[:length]) * np.linalg.norm(expected[:length])
    assert len(audio.read_between(path, 100.0, 101.0)) == 0


def test_a_stretch_is_read_without_all_that_is_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = sounds.write(tmp_path / "a.flac", sounds.babble(60.0, 3))
    decoded = []
    take = audio._Mixer.take

    def counted(self: audio._Mixer, frame: av.AudioFrame) -> Iterator[np.ndarray]:
        decoded.append(frame.samples / frame.sample_rate)
        return take(self, frame)

    monkeypatch.setattr(audio._Mixer, "take", counted)
    assert len(audio.read_between(path, 50.0, 52.0)) == 32_000
    assert sum(decoded) < 5.0


def test_a_stretch_of_what_is_no_audio_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"RIFF" + bytes(4_000))
    for start_s in (0.0, 60.0):
        with pytest.raises(audio.AudioError):
            audio.read_between(tmp_path / "a.wav", start_s, start_s + 1.0)
        with pytest.raises(audio.AudioMissing):
            audio.read_between(tmp_path / "none.wav", start_s, start_s + 1.0)


def test_nothing_more_is_loaded_to_read_a_file(tmp_path: Path) -> None:
    """Who reads under a limit of memory could not load it any more, and the file would be blamed for a broken setup."""
    paths = [sounds.write(tmp_path / f"a{suffix}", sounds.babble(1.0, 1)) for suffix in sounds.CODECS]
    program = (
        "import sys; from model import audio; before = set(sys.modules);"
        "[list(audio.read_chunks(path)) + [audio.duration_s(path)] for path in sys.argv[1:]];"
        "print(*sorted(set(sys.modules) - before))"
    )
    told = subprocess.run([sys.executable, "-c", program, *paths], capture_output=True, text=True, check=True)
    assert told.stdout.split() == []
