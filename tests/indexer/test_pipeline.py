import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from sqlalchemy import Engine, text

from indexer import store
from indexer.discover import NoAudioFound, discover
from indexer.fitting import CodebookTooLittleAudio
from indexer.messages import Hear, Index, Indexed, Setup, UseCodebook
from indexer.pipeline import CodebookInForce, IndexReport, Progressed, index_archive
from indexer.pool import Pool
from indexer.recordings import get_recording, list_recordings
from indexer.segments import fingerprints, segments_of
from indexer.store import ArchiveBusy, TokenizerMismatch
from indexer.worker import Worker
from model.codebook import FURTHER
from model.tokenizer import Tokenizer
from model.tokens import TokenString
from tests.conftest import ToneFile
from tests.indexer import sounds

Indexing = Callable[..., IndexReport]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "audio").mkdir(exist_ok=True)
    return tmp_path / "audio"


@pytest.fixture
def index(engine: Engine, folder: Path, tokenizer_path: Path) -> Indexing:
    """Indexes the test's folder."""

    def run(*paths: Path, archive: str = "radio", **options: object) -> IndexReport:
        return index_archive(
            engine,
            paths or [folder],
            archive,
            tokenizer_path,
            **({"workers": 1} | options),  # type: ignore[arg-type]
        )

    return run


def rows(engine: Engine, archive: str = "radio", ids: bool = False) -> list[tuple[object, ...]]:
    """Everything that is stored of an archive, without what depends on when."""
    with engine.connect() as connection:
        found = connection.execute(
            text("""
                SELECT recording.id, recording.name, content_sha256, duration_s, position, start_s, frames, tokens
                FROM recording JOIN segment ON segment.recording_id = recording.id
                JOIN archive ON archive.id = recording.archive_id
                WHERE archive.name = :archive ORDER BY recording.name, position
            """),
            {"archive": archive},
        ).all()
    return [
        (*((row[0],) if ids else ()), *(bytes(v) if isinstance(v, memoryview) else v for v in row[1:])) for row in found
    ]


def failures(report: IndexReport) -> list[tuple[str, str]]:
    return [(failure.name, failure.code) for failure in report.failed]


def test_every_format_rate_and_channel_count(index: Indexing, engine: Engine, tone_file: ToneFile) -> None:
    for suffix in sounds.CODECS:
        tone_file(f"a{suffix}", 3.0)
    tone_file("telephone.wav", 3.0, rate=8_000)
    tone_file("studio.wav", 3.0, rate=96_000, channels=6)
    tone_file("cd.flac", 3.0, rate=44_100, channels=2)
    report = index()
    assert failures(report) == []
    assert (report.found, report.indexed) == (10, 10)
    assert report.audio_s == pytest.approx(30.0, abs=1.5)
    assert 0 < report.speech_s <= report.audio_s
    assert report.tokens > 0
    assert report.times_real_time > 0
    assert report.bytes_per_hour > 0
    assert (report.codebook_kind, report.archive) == ("tokenizer", "radio")
    with engine.connect() as connection:
        archive = store.get_archive(connection, "radio")
        assert archive.recordings == 10
        for row in segments_of(
            connection, list(fingerprints(connection, archive.id, archive.codebook_id)[1]), archive.codebook_id
        ):
            string = TokenString.from_bytes(row.tokens)
            assert string.frames * 0.04 == pytest.approx(3.0, abs=0.2)
            assert string.pq is not None


def test_bad_files_are_reported_by_name_and_the_rest_goes_on(
    index: Indexing, folder: Path, tone_file: ToneFile
) -> None:
    tone_file("good.wav", 2.0)
    (folder / "empty.wav").write_bytes(b"")
    (folder / "text.wav").write_text("this is no sound, whatever it is called\n" * 20)
    with wave.open(str(folder / "no-samples.wav"), "wb") as header:
        header.setparams((1, 2, 16_000, 0, "NONE", ""))
    sounds.write(folder / "20ms.wav", sounds.babble(0.02))
    (folder / "dangling.wav").symlink_to(folder / "gone.wav")
    report = index()
    assert report.indexed == 1
    assert failures(report) == [
        ("20ms.wav", "audio_too_short"),
        ("dangling.wav", "audio_unreadable"),
        ("empty.wav", "audio_empty"),
        ("no-samples.wav", "audio_empty"),
        ("text.wav", "audio_undecodable"),
    ]
    assert report.found == 6
    assert all(failure.message and "\n" not in failure.message for failure in report.failed)
    again = index()
    assert (again.indexed, again.unchanged) == (0, 1)
    assert failures(again) == failures(report)


def test_poor_sound_is_indexed_honestly(index: Indexing, engine: Engine, folder: Path, tone_file: ToneFile) -> None:
    sounds.write(folder / "silence.wav", np.zeros(48_000, np.float32))
    sounds.write(folder / "clipped.wav", np.clip(sounds.babble(3.0) * 200, -1, 1))
    whole = tone_file("truncated.mp3", 6.0)
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    report = index()
    assert failures(report) == []
    stored = {row[0]: row[2] for row in rows(engine)}
    assert stored["silence.wav"] == 3.0
    assert stored["clipped.wav"] == 3.0
    assert 1.5 < stored["truncated.mp3"] < 4.5
    index(folder / "silence.wav", archive="quiet")
    (quiet,) = rows(engine, "quiet")
    assert quiet[5] == 75


def test_odd_names(index: Indexing, engine: Engine, folder: Path) -> None:
    names = ["with space.wav", 'it\'s "quoted".wav', "new\nline.wav", "naïve 😀.wav", "a:b%s.wav", "sub dir/x.wav"]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        sounds.write(folder / name, sounds.babble(1.0))
    with open(os.fsencode(folder) + b"/caf\xe9.wav", "wb") as file:
        file.write((folder / "with space.wav").read_bytes())
    report = index()
    assert failures(report) == []
    assert {row[0] for row in rows(engine)} == {*names, "caf\\xe9.wav"}
    assert index().unchanged == len(names) + 1
    with engine.connect() as connection:
        archive = store.get_archive(connection, "radio")
        paths = [recording.path for recording in list_recordings(connection, archive.id, 10)]
    assert all(os.path.exists(path) for path in paths)


def test_nothing_found_makes_no_archive(index: Indexing, engine: Engine) -> None:
    with pytest.raises(NoAudioFound):
        index()
    with engine.connect() as connection:
        assert store.list_archives(connection) == []


def test_an_unreadable_file(tokenizer_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        for file in ("open.wav", "closed.wav"):
            sounds.write(folder / file, sounds.babble(1.0)).chmod(0o644)
        (folder / "closed.wav").chmod(0)
        done = subprocess.run(
            [sys.executable, "-c", READ, str(tokenizer_path), str(folder)], check=True, capture_output=True, text=True
        )
    assert done.stdout.splitlines() == ["closed.wav audio_unreadable", "open.wav heard"]


def test_a_second_run_skips_and_a_changed_file_is_replaced(
    index: Indexing, engine: Engine, folder: Path, tone_file: ToneFile
) -> None:
    for n in range(3):
        tone_file(f"{n}.wav", 2.0, seed=n)
    assert index().indexed == 3
    before = rows(engine, ids=True)
    again = index()
    assert (again.indexed, again.unchanged, again.moved) == (0, 3, 0)
    os.utime(folder / "0.wav", ns=(1, 1))  # another time, the same sound
    assert (touched := index()).unchanged == 3
    assert touched.indexed == 0
    tone_file("1.wav", 3.0, seed=9)
    changed = index()
    assert (changed.indexed, changed.unchanged) == (1, 2)
    after = rows(engine, ids=True)
    assert [row[0] for row in after] == [row[0] for row in before]
    assert [a == b for a, b in zip(after, before, strict=True)] == [True, False, True]
    tone_file("3.wav", 2.0, seed=3)
    assert (index().indexed, index().unchanged) == (1, 4)


def test_a_file_that_breaks_keeps_its_old_rows(
    index: Indexing, engine: Engine, folder: Path, tone_file: ToneFile
) -> None:
    tone_file("a.wav", 2.0)
    index()
    before = rows(engine)
    (folder / "a.wav").write_text("not sound any more")
    assert failures(index()) == [("a.wav", "audio_undecodable")]
    assert rows(engine) == before


def test_moved_and_conflicting_files(
    index: Indexing, engine: Engine, tmp_path: Path, folder: Path, tone_file: ToneFile
) -> None:
    tone_file("a.wav", 2.0)
    index()
    before = rows(engine, ids=True)
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    assert failures(index(copy)) == [("a.wav", "name_conflict")]
    shutil.rmtree(folder)
    moved = index(copy)
    assert (moved.moved, moved.indexed, failures(moved)) == (1, 0, [])
    assert rows(engine, ids=True) == before
    assert index(copy).unchanged == 1


def test_renamed_and_removed_files(
    index: Indexing, engine: Engine, tmp_path: Path, folder: Path, tone_file: ToneFile
) -> None:
    for n in range(4):
        tone_file(f"{n}.wav", 2.0, seed=n)
    index()
    before = {row[1]: row for row in rows(engine, ids=True)}
    (folder / "deep").mkdir()
    (folder / "0.wav").rename(folder / "deep" / "new.wav")
    (folder / "1.wav").unlink()
    (folder / "2.wav").unlink()
    kept = index()
    assert (kept.moved, kept.unchanged, kept.indexed, kept.removed) == (1, 1, 0, [])
    tone_file("2.wav", 2.0, seed=7)  # back, and another one
    done = index(prune=True)
    assert (done.moved, done.unchanged, done.indexed, done.removed) == (0, 2, 1, ["1.wav"])
    after = {row[1]: row for row in rows(engine, ids=True)}
    assert sorted(after) == ["2.wav", "3.wav", "deep/new.wav"]
    assert after["deep/new.wav"][0] == before["0.wav"][0]
    assert after["deep/new.wav"][2:] == before["0.wav"][2:]
    assert after["3.wav"] == before["3.wav"]
    with engine.connect() as connection:
        archive = store.get_archive(connection, "radio")
        assert get_recording(connection, archive.id, "deep/new.wav").path == str(folder / "deep" / "new.wav")
    assert (archive.recordings, archive.segments) == (3, len(rows(engine)))
    # A folder that is empty by now may be one that is not mounted: nothing is removed.
    shutil.rmtree(folder)
    folder.mkdir()
    with pytest.raises(NoAudioFound):
        index(prune=True)
    assert len(rows(engine)) == archive.segments


def test_the_same_files_give_the_same_rows(index: Indexing, engine: Engine, tone_file: ToneFile) -> None:
    for n in range(6):
        tone_file(f"{n}.wav", 6.0 + n, seed=n)
    index(archive="one", workers=1, codebook="archive")
    index(archive="two", workers=2, codebook="archive")
    one, two = rows(engine, "one", ids=True), rows(engine, "two", ids=True)
    assert [row[1:] for row in one] == [row[1:] for row in two]
    assert [row[0] - one[0][0] for row in one] == [row[0] - two[0][0] for row in two]
    with engine.connect() as connection:
        hashes = connection.execute(text("SELECT DISTINCT sha256 FROM codebook")).all()
    assert len(hashes) == 1


def test_a_long_recording_is_cut_and_its_codebook_fitted(index: Indexing, engine: Engine, tone_file: ToneFile) -> None:
    tone_file("long.flac", 130.0, seed=1)
    stages: list[Progressed] = []
    report = index(codebook="archive", progress=stages.append)
    assert report.codebook_kind == "archive"
    assert report.codebook_size == 256  # 3,250 frames, eight at least for each centroid
    assert 0.5 < report.entropy <= 1.0
    stored = rows(engine)
    assert len(stored) > 6
    assert stored[-1][4] + stored[-1][5] * 0.04 == pytest.approx(130.0, abs=0.05)
    assert {stage.stage for stage in stages} == {"looking", "listening", "fitting the codebook", "indexing"}
    assert stages[-1].done_s == pytest.approx(130.0, abs=1.0)
    with engine.connect() as connection:
        archive = store.get_archive(connection, "radio")
        assert archive.codebook_id is not None
        assert store.load_codebook(connection, archive.codebook_id).size == 256


def test_later_additions_use_the_stored_codebook(index: Indexing, engine: Engine, tone_file: ToneFile) -> None:
    tone_file("a.wav", 40.0)
    first = index(codebook="archive")
    tone_file("b.wav", 40.0, seed=2)
    second = index()
    assert (second.indexed, second.unchanged) == (1, 1)
    assert (second.codebook_kind, second.codebook_size) == ("archive", first.codebook_size)
    with pytest.raises(CodebookInForce) as caught:
        index(codebook="tokenizer")
    assert caught.value.code == "codebook_in_force"
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM codebook")).scalar_one() == 1


def test_a_codebook_needs_some_audio(index: Indexing, engine: Engine, tone_file: ToneFile) -> None:
    tone_file("a.wav", 2.0)
    with pytest.raises(CodebookTooLittleAudio) as caught:
        index(codebook="archive")
    assert caught.value.code == "codebook_too_little_audio"
    assert index().codebook_kind == "tokenizer"


def test_codes_by_a_codebook_of_the_archives_own_are_tokens_of_further_ones(
    index: Indexing, engine: Engine, tone_file: ToneFile
) -> None:
    tone_file("a.wav", 40.0)
    index(codebook="archive")
    with engine.connect() as connection:
        codebook_id = store.get_archive(connection, "radio").codebook_id
        assert codebook_id is not None
        assert store.makes_codes(connection, codebook_id)
        codebook = store.load_codebook(connection, codebook_id)
    assert codebook.pq is None
    assert len(codebook.others) == FURTHER
    for row in rows(engine, "radio"):
        string = TokenString.from_bytes(row[6])  # type: ignore[arg-type]
        assert string.pq is not None
        assert string.pq.shape == (string.frames, codebook.parts)
        tokens = string.pq.view("<u2")
        assert all(0 < len(np.unique(tokens[:, number])) <= codebook.size for number in range(FURTHER))
        # A steady tone is not one token in each of them at the same moments: they cut in other places.
        assert any((np.diff(string.frame_ids) != 0).tolist() != (np.diff(column) != 0).tolist() for column in tokens.T)


def test_without_codes_there_are_tokens_alone(index: Indexing, engine: Engine, tone_file: ToneFile) -> None:
    tone_file("a.wav", 40.0)
    for kind in ("archive", "tokenizer"):
        index(archive=kind, codebook=kind, codes=False)
        assert all(TokenString.from_bytes(row[6]).pq is None for row in rows(engine, kind))  # type: ignore[arg-type]


def test_another_tokenizer_is_refused(
    index: Indexing, engine: Engine, folder: Path, tmp_path: Path, tone_file: ToneFile, tokenizer_path: Path
) -> None:
    tone_file("a.wav", 2.0)
    index()
    before = rows(engine)
    other = onnx.load(tokenizer_path)
    for entry in other.metadata_props:
        if entry.key == "name":
            entry.value = "stranger"
    onnx.save(other, tmp_path / "other.onnx")
    with pytest.raises(TokenizerMismatch, match="stranger") as caught:
        index_archive(engine, [folder], "radio", tmp_path / "other.onnx")
    assert caught.value.code == "tokenizer_mismatch"
    assert rows(engine) == before


def test_two_runs_at_once_are_not_let_in(index: Indexing, engine: Engine, tone_file: ToneFile) -> None:
    tone_file("a.wav", 2.0)
    caught: list[BaseException] = []

    def second(now: Progressed) -> None:
        if now.stage == "indexing" and not caught:
            try:
                index()
            except ArchiveBusy as error:
                caught.append(error)

    assert index(progress=second).indexed == 1
    assert [getattr(error, "code", "") for error in caught] == ["archive_busy"]
    assert index().unchanged == 1  # and the door is open again


@pytest.mark.parametrize(
    ("limits", "codes"),
    [
        ({"stall_s": 0.0}, {"decoder_stalled"}),
        ({"memory_mb": 20.0}, {"memory_exceeded", "worker_died", "internal_error"}),
    ],
)
def test_a_worker_takes_no_more_than_it_may(
    limits: dict[str, float], codes: set[str], tone_file: ToneFile, folder: Path, tokenizer_path: Path
) -> None:
    tone_file("a.wav", 60.0)
    (file,) = discover([folder]).files
    codebook = Tokenizer(tokenizer_path, threads=1).codebook
    for setup, expected in ((Setup(tokenizer_path, "cpu", **limits), codes), (Setup(tokenizer_path, "cpu"), set())):
        with Pool(1, setup) as pool:
            pool.use(UseCodebook(codebook))
            (done,) = pool.run([Index(file)])
        assert {getattr(done.result, "code", "")} - {""} <= codes
        assert isinstance(done.result, Indexed) == (not expected)


# The tokenizer is loaded before root becomes nobody: it may lie where nobody else may read.
READ = """
import os, sys
from pathlib import Path
from indexer.discover import discover
from indexer.messages import Hear, Index, Indexed, Setup, UseCodebook
from indexer.worker import Worker
worker = Worker(Setup(Path(sys.argv[1]), "cpu"))
if os.geteuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
for file in discover([sys.argv[2]]).files:
    print(file.name, getattr(worker.do(Hear(file, 1, 60.0)), "code", "heard"))
"""


def test_a_file_that_changes_while_it_is_read(
    index: Indexing, engine: Engine, folder: Path, tone_file: ToneFile, tokenizer_path: Path
) -> None:
    file = tone_file("a.wav", 60.0)
    worker = Worker(Setup(tokenizer_path, "cpu"))
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            os.utime(file)
            time.sleep(0.001)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        result = worker.do(Hear(discover([file]).files[0], 1, 100.0))
    finally:
        stop.set()
        thread.join()
    assert getattr(result, "code", "") == "file_changed"
