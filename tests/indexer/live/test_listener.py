"""Live sources: what is heard is stored as an index run of what was kept would store it, whatever comes between."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine, text

from bench.speed.radio import FORMATS, Station, encoded, on_air
from indexer import pipeline, store
from indexer.database import DatabaseError
from indexer.live import sound
from indexer.live.decoding import SourceLost
from indexer.live.source import FileSource, source_of
from indexer.live.store import SourceBusy
from indexer.live.tail import Tail
from indexer.recordings import delete_recording, list_recordings
from indexer.segment import Segmenter
from model import audio
from model.tokenizer import Tokenizer
from tests.indexer.live.bed import STATION, listening, rows, same_as_indexed, speech, until
from tests.indexer.sounds import write


@pytest.fixture(scope="module")
def tokenizer(tokenizer_path: Path) -> Tokenizer:
    return Tokenizer(tokenizer_path, threads=1)


def station(*names: str, speed: float = 12.0, form: str = "mp3", **more: object) -> Station:
    return Station(encoded(speech(*names), form), FORMATS[form][3], speed=speed, **more)  # type: ignore[arg-type]


def duration_s(engine: Engine, archive: str) -> float:
    with engine.connect() as connection:
        row = connection.execute(text("SELECT audio_s FROM archive WHERE name = :name"), {"name": archive})
        return float(row.scalar_one_or_none() or 0.0)


@pytest.mark.parametrize("piece", [7_777, 100_000])
def test_a_tail_ends_as_an_index_run_does(tokenizer: Tokenizer, piece: int) -> None:
    samples = speech("01-monday", "02-tuesday")
    info = tokenizer.info
    tail = Tail(tokenizer, tokenizer.codebook)
    final: list[bytes] = []
    for start in range(0, len(samples), piece):
        tail.take(samples[start : start + piece])
        assert [one.tokens for one in tail.final[: len(final)]] == final  # they stay
        final = [one.tokens for one in tail.final]
        if start % (5 * piece) == 0:
            tail.rest()
    assert final
    cutter = Segmenter(info.left_context_samples, info.right_context_samples, tokenizer.frame_samples)
    expected = [
        (s.start_frame * 0.04, tokenizer.collapse(
            tokenizer.embed(s.samples, s.before, s.after), None, s.start_frame * info.frame_seconds).to_bytes())
        for s in cutter.segments([samples])
    ]  # fmt: skip
    found = [(one.start_s, one.tokens) for one in [*tail.final, *tail.rest()]]
    assert [tokens for _, tokens in found] == [tokens for _, tokens in expected]
    assert [start for start, _ in found] == pytest.approx([start for start, _ in expected])


def test_a_stream_is_stored_as_its_file_would_be(
    engine: Engine, tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path
) -> None:
    radio = station("01-monday", "04-thursday", end=True, most_parts=900)  # the connection is lost on the way
    with on_air(radio) as air, listening(engine, "air", source_of(air.url), tokenizer, tmp_path / "kept") as one:
        until(lambda: duration_s(engine, "air") > 4.0)
        early = rows(engine, "air")
        assert early[0][0].startswith(one._listener._source.label + "/")
        until(lambda: len(one.stored) == 2)
        one.finish()
        assert air.connections >= 2
    live = same_as_indexed(engine, "air", tmp_path / "kept", tokenizer_path)
    assert {row[0] for row in live} == {stored.recording.name for stored in one.stored}
    heard_s = sum(stored.duration_s for stored in one.stored)
    assert heard_s == pytest.approx(len(speech("01-monday", "04-thursday")) / 16_000, abs=0.3)
    # Its recordings know where they are from, and keep their ids while they grow.
    with engine.connect() as connection:
        archive = store.get_archive(connection, "air")
        listed = list_recordings(connection, archive.id, 10)
    assert [one_.metadata["source"] for one_ in listed] == [live[0][0].split("/")[0]] * 2
    assert [stored.id for stored in one.stored] == [recording.id for recording in listed]
    assert not sound.marked(Path(listed[0].path).parent)
    # An index run of the folder finds nothing to do.
    report = pipeline.index_archive(engine, [tmp_path / "kept"], "air", tokenizer_path, workers=1)
    assert (report.unchanged, report.indexed, report.failed) == (2, 0, [])


def test_a_file_is_heard_once_over_several_runs(
    engine: Engine, tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path
) -> None:
    samples = speech("01-monday", "02-tuesday")
    data = b"".join(part.data for part in encoded(samples, "mp3"))
    path = tmp_path / "air.mp3"
    kept = tmp_path / "kept"
    for cut in (60_000, 200_000):
        path.write_bytes(data[:cut])
        with listening(engine, "air", FileSource(path), tokenizer, kept) as one:
            until(lambda cut=cut: duration_s(engine, "air") > cut / 8_000 - 1.0)
            one.finish()
    path.write_bytes(data)
    with listening(engine, "air", FileSource(path, once=True), tokenizer, kept, once=True) as one:
        one.over()
    live = same_as_indexed(engine, "air", kept, tokenizer_path)
    names = sorted({row[0] for row in live})
    assert len(names) == 3
    parts = [audio.read(kept / name) for name in names]
    expected = audio.read(path)
    heard = np.concatenate(parts)
    assert len(heard) == len(expected)
    assert np.abs(heard - expected).max() < 1e-4  # every sample once: to 16 bits
    # There is nothing more in it.
    with listening(engine, "air", FileSource(path, once=True), tokenizer, kept, once=True) as one:
        one.over()
    assert rows(engine, "air") == live


def test_long_streams_are_many_recordings_without_a_seam(
    engine: Engine, tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path
) -> None:
    samples = speech("01-monday", "02-tuesday", "03-wednesday", "04-thursday")
    path = write(tmp_path / "air.flac", samples)
    source = FileSource(path, once=True)
    with listening(engine, "air", source, tokenizer, tmp_path / "kept", once=True, length_s=20.0) as one:
        one.over()
    assert len(one.stored) >= 3
    heard = np.concatenate([audio.read(stored.path) for stored in one.stored if stored.path is not None])
    np.testing.assert_array_equal(heard, audio.read(path))
    same_as_indexed(engine, "air", tmp_path / "kept", tokenizer_path)


def test_sound_that_is_not_kept_is_stored_all_the_same(engine: Engine, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "air.flac", speech("01-monday"))
    source = FileSource(path, once=True)
    with listening(engine, "air", source, tokenizer, tmp_path / "kept", once=True, kept=False) as one:
        one.over()
    assert [stored.path for stored in one.stored] == [None]
    assert not [path for path in (tmp_path / "kept").rglob("*.flac") if path.is_file()]
    assert len(rows(engine, "air")) == one.stored[0].segments > 0


def test_what_was_cut_off_is_stored_by_the_next_run(
    engine: Engine, tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path
) -> None:
    radio = station("01-monday", speed=20.0)
    kept = tmp_path / "kept"
    with on_air(radio) as air, listening(engine, "air", source_of(air.url), tokenizer, kept) as one:
        until(lambda: air.sent_s > 15.0)
        one.finish()
        label = one._listener._source.label
    # As if it had been killed before the last rows were stored, and amid a block of sound.
    folder = kept / label
    (path,) = folder.glob("*.flac")
    sound.mark(path, sound.Place())
    blob = path.read_bytes()
    path.write_bytes(blob[:-501])
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM segment WHERE position > 0"))
        connection.execute(text("UPDATE recording SET segments = 1"))
        connection.execute(text("UPDATE archive SET segments = 1"))
    torn = folder / "2026-01-01T00-00-00.000Z.flac"
    torn.write_bytes(blob[:30])
    sound.mark(torn, sound.Place())
    silent = tmp_path / "silent.wav"
    write(silent, np.zeros(16_000, np.float32))
    again = FileSource(silent, once=True)
    again.label = label
    with listening(engine, "air", again, tokenizer, kept, once=True) as one:
        one.over()
    assert not torn.exists()
    assert not sound.marked(folder)
    assert len(one.stored) == 2
    same_as_indexed(engine, "air", kept, tokenizer_path)


def test_one_listener_a_source(
    engine: Engine, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indexer.live.listener.CLAIM_S", 0.5)
    radio = station("01-monday")
    with on_air(radio) as air, on_air(station("02-tuesday")) as elsewhere:
        source = source_of(air.url)
        with listening(engine, "air", source, tokenizer, tmp_path / "kept") as one:
            until(lambda: duration_s(engine, "air") > 1.0)
            for archive, folder in (("air", tmp_path / "elsewhere"), ("other", tmp_path / "kept")):
                again = listening(engine, archive, source_of(air.url), tokenizer, folder)
                with again as second, pytest.raises(SourceBusy):
                    second.over()
            other = source_of(elsewhere.url)
            other.label = "other"
            with listening(engine, "air", other, tokenizer, tmp_path / "kept") as third:
                until(lambda: {row[0].split("/")[0] for row in rows(engine, "air")} == {source.label, "other"})
                third.finish()
            one.finish()


def test_a_source_that_gives_nothing_once(engine: Engine, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = FileSource(tmp_path / "none.wav", once=True)
    nothing = listening(engine, "air", source, tokenizer, tmp_path / "kept", once=True)
    with nothing as one, pytest.raises(SourceLost, match="No such file"):
        one.over()


def test_the_archive_is_deleted(engine: Engine, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with (
        on_air(station("01-monday")) as air,
        listening(engine, "air", source_of(air.url), tokenizer, tmp_path / "kept") as one,
    ):
        until(lambda: duration_s(engine, "air") > 1.0)
        with engine.begin() as connection:
            store.delete_archive(connection, "air")
        with pytest.raises(store.ArchiveNotFound):
            one.over()


def test_a_recording_that_is_deleted_while_it_grows_comes_again(
    engine: Engine, tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path
) -> None:
    with (
        on_air(station("01-monday", "02-tuesday", end=True)) as air,
        listening(engine, "air", source_of(air.url), tokenizer, tmp_path / "kept") as one,
    ):
        until(lambda: duration_s(engine, "air") > 25.0)
        with engine.begin() as connection:
            archive = store.get_archive(connection, "air")
            (recording,) = list_recordings(connection, archive.id, 2)
            delete_recording(connection, archive.id, recording.id)
        until(lambda: one.stored)
        one.finish()
    same_as_indexed(engine, "air", tmp_path / "kept", tokenizer_path)


def test_a_database_that_goes_and_comes_back(
    server: Engine, engine: Engine, tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path
) -> None:
    """Sound is kept meanwhile, recordings that end too, and all is stored in the end."""
    name = engine.url.database
    assert name is not None

    def allow(connections: bool) -> None:
        with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS {connections}"))
            if not connections:
                connection.execute(
                    text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = :name"), {"name": name}
                )

    kept = tmp_path / "kept"
    with (
        on_air(station("01-monday", "02-tuesday", "03-wednesday", end=True)) as air,
        listening(engine, "air", source_of(air.url), tokenizer, kept, length_s=15.0) as one,
    ):
        until(lambda: duration_s(engine, "air") > 3.0)
        allow(False)
        try:
            until(lambda: len(list(kept.rglob("*.flac"))) >= 3)
        finally:
            allow(True)
        until(lambda: air.sent_s > 50.0 and len(one.stored) == len(list(kept.rglob("*.flac"))))
        one.finish()
    assert not sound.marked(kept / one._listener._source.label)
    same_as_indexed(engine, "air", kept, tokenizer_path)


def test_an_index_run_goes_on_beside_it(
    engine: Engine, tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path
) -> None:
    """And the codebook that it fits to an archive is used from then on."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("03-wednesday", "04-thursday", "05-friday"):
        shutil.copy(STATION / f"{name}.opus", folder)
    with (
        on_air(station("01-monday", "02-tuesday", end=True)) as air,
        listening(engine, "air", source_of(air.url), tokenizer, tmp_path / "kept") as one,
    ):
        until(lambda: duration_s(engine, "air") > 1.0)
        report = pipeline.index_archive(engine, [folder], "air", tokenizer_path, workers=1)
        assert (report.indexed, report.failed) == (3, [])
        until(lambda: one.stored)
        one.finish()
    live = [row for row in rows(engine, "air") if row[0].startswith(one._listener._source.label)]
    pipeline.index_archive(
        engine, [tmp_path / "kept"], "anew", tokenizer_path, workers=1, codebook="tokenizer", codes=False
    )
    assert live == rows(engine, "anew")


def test_a_lock_that_is_held_for_long_keeps_nothing_from_being_heard(
    engine: Engine, tokenizer: Tokenizer, tokenizer_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a switch of a large archive does; and who is told to stop meanwhile does so."""
    monkeypatch.setattr("indexer.live.store.LOCK_WAIT_S", 0.3)
    kept = tmp_path / "kept"
    with (
        on_air(station("01-monday", "02-tuesday", speed=15.0)) as air,
        listening(engine, "air", source_of(air.url), tokenizer, kept) as one,
    ):
        until(lambda: duration_s(engine, "air") > 1.0)
        with engine.begin() as connection:
            store.lock_switch(connection, store.get_archive(connection, "air").id, "switches")
            stored_s = duration_s(engine, "air")
            until(lambda: air.sent_s > 25.0)
            assert duration_s(engine, "air") == stored_s
            with pytest.raises(DatabaseError, match="lock timeout"):
                one.finish()
    label = one._listener._source.label
    assert len(sound.marked(kept / label)) == 1
    write(silent := tmp_path / "silent.wav", np.zeros(16_000, np.float32))
    source = FileSource(silent, once=True)
    source.label = label
    with listening(engine, "air", source, tokenizer, kept, once=True) as two:
        two.over()
    assert max(stored.duration_s for stored in two.stored) > 24.0
    same_as_indexed(engine, "air", kept, tokenizer_path)
