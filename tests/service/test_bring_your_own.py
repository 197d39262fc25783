"""Bring your own: an encoder with frames of 20 ms becomes a tokenizer, an archive is made with it, and searched."""

from __future__ import annotations

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from indexer.segment import Segmenter
from model import audio
from model.tokenizer import Tokenizer
from service.clips import Clip
from service.errors import NoSpeech
from service.search.query import hear
from service.tokenizers import app
from tests.model.encoders import DIM, RIGHT_CONTEXT, encoder, saved
from tests.model.test_contract import tiny
from tests.service.conftest import DEMO, Run, run_cli
from tests.service.sounds import write

RADIO = DEMO / "archive" / "skerry-radio"
RECORDINGS = [RADIO / name for name in ("01-monday.opus", "02-tuesday.opus", "03-wednesday.opus", "04-thursday.opus")]
BOUNDED = ("--context", "bounded", "--right-context", str(RIGHT_CONTEXT))


def wrap(folder: Path, *words: str | Path) -> tuple[int, str, str, Path]:
    """Exit code, stdout, stderr, and where the tokenizer is written."""
    path, out = saved(encoder(), folder / "encoder.onnx"), folder / "own.onnx"
    told = ["wrap", path, "--out", out, "--name", "bands", "--frame-seconds", "0.02", "--size", "64", *words]
    result = CliRunner().invoke(app, [str(word) for word in told])
    return result.exit_code, result.stdout, result.stderr, out


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer wrapped by the command, its codebook fitted to demo recordings."""
    code, out, err, path = wrap(tmp_path_factory.mktemp("own"), "--audio", DEMO / "archive" / "field-notes", *BOUNDED)
    assert (code, out) == (0, ""), err
    return path


@pytest.fixture(scope="module")
def indexed(own: Path, tokenizer_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`sayagain` with a home that has an archive of that tokenizer, `own`, and one of the default, `plain`."""
    home = tmp_path_factory.mktemp("home")
    given = own.parent / "given.onnx"
    given.write_bytes(own.read_bytes())

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return run_cli(home, tokenizer_path, *words)

    done = run("index", *RECORDINGS, "--archive", "own", "--tokenizer", given, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["indexed"] == len(RECORDINGS)
    given.unlink()  # the data folder has a copy
    done = run("index", RECORDINGS[0], "--archive", "plain", "--json")
    assert done.returncode == 0, done.stderr
    return run


def spoken(recording: Path) -> tuple[float, float]:
    """Start and end of the first term of a recording, in seconds."""
    with (DEMO / "truth.tsv").open(encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return next((float(r["start"]), float(r["end"])) for r in rows if r["recording"].endswith(recording.name))


def test_wrap_says_what_it_did_and_how_to_go_on(tmp_path: Path) -> None:
    (tmp_path / "sound").mkdir()
    write(tmp_path / "sound" / "speech.wav", audio.read(RECORDINGS[0]))
    (tmp_path / "sound" / "text.wav").write_text("hello")
    code, out, err, path = wrap(tmp_path, "--audio", tmp_path / "sound", "--licence", "MIT", *BOUNDED)
    assert (code, out) == (0, "")
    lines = err.splitlines()
    assert lines[0].startswith("skipped ")
    assert lines[0].endswith("text.wav: not audio that can be decoded")
    assert lines[1].startswith(f"{path}: codebook of 64 x {DIM}, ")
    assert lines[2] == f"{path} honours the tokenizer contract"
    assert lines[3].endswith(f"--tokenizer {path}")
    info = Tokenizer(path).info
    assert (info.name, info.licence, info.trained_on, info.context) == ("bands", "MIT", "not stated", "bounded")


def test_wrap_lists_what_breaks_the_contract(tmp_path: Path) -> None:
    np.save(tmp_path / "centres.npy", np.eye(DIM))
    code, out, err, path = wrap(tmp_path, "--centroids", tmp_path / "centres.npy", "--context", "bounded")
    assert code == 1
    (line,) = out.splitlines()
    assert line.split()[:2] == ["error", "chunks"]
    assert err.splitlines()[-1] == f"{path} breaks the tokenizer contract"


def test_wrap_fails_in_one_line(tmp_path: Path) -> None:
    for words, says in (
        ((), "wrap_failed: audio to fit a codebook to"),
        (("--audio", tmp_path), "no_audio_found: "),
        (("--audio", RECORDINGS[0], "--output", "logits"), "wrap_failed: "),
    ):
        code, out, err, path = wrap(tmp_path, *words)
        assert (code, out) == (1, "")
        assert err.startswith(f"sayagain: {says}")
        assert len(err.splitlines()) == 1
        assert not path.exists()
    assert CliRunner().invoke(app, ["wrap", "encoder.onnx"]).exit_code == 2


def test_stretches_of_recordings_are_found_at_their_places(indexed: Run, tmp_path: Path) -> None:
    stretches = [spoken(recording) for recording in RECORDINGS]
    clips = [
        write(tmp_path / f"{recording.stem}.wav", audio.read(recording)[int(start * 16_000) : int(end * 16_000)])
        for recording, (start, end) in zip(RECORDINGS, stretches, strict=True)
    ]
    done = indexed("search", *clips, "--archive", "own", "--json")
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for recording, (start, _), answer in zip(RECORDINGS, stretches, answers, strict=True):
        hit = answer["hits"][0]
        assert hit["recording"]["name"] == recording.name
        spoken_from, spoken_to = answer["query"]["speech"]
        assert hit["start"] == pytest.approx(start + spoken_from, abs=0.06)
        assert hit["end"] == pytest.approx(start + spoken_to, abs=0.06)
        assert hit["score"] > answer["hits"][1]["score"]
        assert (answer["query"]["tokenizer"], answer["searched"]["recordings"]) == ("bands", len(RECORDINGS))


def test_a_stretch_that_is_named_by_its_times_is_found_too(indexed: Run) -> None:
    start, end = spoken(RECORDINGS[1])
    done = indexed(
        "search", RECORDINGS[1], "--start", str(start), "--end", str(end), "--archive", "own", "--exact", "--json"
    )
    answer = json.loads(done.stdout)
    hit = answer["hits"][0]
    assert hit["recording"]["name"] == RECORDINGS[1].name
    assert (hit["start"], hit["end"]) == pytest.approx(answer["query"]["speech"], abs=0.06)
    assert start - 0.04 <= hit["start"] < hit["end"] <= end + 0.04


def test_the_default_stays_what_it_was(indexed: Run, own: Path, tokenizer_path: Path) -> None:
    archives = {a["name"]: a for a in json.loads(indexed("archives", "--json").stdout)["archives"]}
    fast, wrapped = (Tokenizer(path, threads=1).info for path in (tokenizer_path, own))
    assert archives["own"]["tokenizer_sha256"] == wrapped.sha256
    assert archives["plain"]["tokenizer_sha256"] == fast.sha256
    listed = [json.loads(line) for line in indexed("tokenizer", "list", "--json").stdout.splitlines()]
    assert [(entry["name"], entry["sha256"]) for entry in listed] == [
        ("fast", fast.sha256), (f"bands-{wrapped.sha256[:12]}", wrapped.sha256),
    ]  # fmt: skip
    again = indexed("index", *RECORDINGS, "--archive", "own", "--tokenizer", listed[1]["name"], "--json")
    assert json.loads(again.stdout)["unchanged"] == len(RECORDINGS)
    other = indexed("index", *RECORDINGS, "--archive", "own", "--tokenizer", "fast")
    assert (other.returncode, "tokenizer_mismatch" in other.stderr) == (1, True)


def test_a_clip_shorter_than_a_frame_has_no_speech(tmp_path: Path) -> None:
    (tmp_path / "slow.onnx").write_bytes(tiny(metadata={"frame_seconds": "0.16"}).SerializeToString())
    slow = Tokenizer(tmp_path / "slow.onnx")
    nothing, samples = np.zeros(0, np.float32), audio.read(DEMO / "query.opus")
    loud = samples[4_000:6_400]
    with pytest.raises(NoSpeech, match=r"shorter than one frame of the tokenizer, 0.16 s"):
        hear(Clip(nothing, loud, nothing, 0.0, 0.15), slow, slow.codebook)
    query = hear(Clip(nothing, samples, nothing, 0.0, len(samples) / 16_000), slow, slow.codebook)
    assert query.tokens.duration == pytest.approx(query.speech[1] - query.speech[0], abs=0.32)


def test_segments_last_as_long_as_with_other_frames(own: Path) -> None:
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.standard_normal(45 * 16_000)).astype(np.float32)
    samples[int(30.0 * 16_000) : int(30.6 * 16_000)] *= 0.001
    frame = Tokenizer(own).frame_samples
    found = [[(s.start_frame * size, s.frames * size) for s in Segmenter(frame_samples=size).segments([samples])]
             for size in (640, frame)]  # fmt: skip
    assert frame == 320
    assert len(found[0]) == len(found[1]) == 3
    np.testing.assert_allclose(found[0], found[1], atol=1_600)
