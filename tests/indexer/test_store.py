from collections.abc import Iterator

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, text

from indexer import intake, store
from indexer.intake import NewRecording, NewSegment
from indexer.recordings import Filter, delete_recording, get_recording, list_recordings, recordings_by_id
from indexer.segments import fingerprints, segments_of
from indexer.store import ArchiveNotFound, BadArchiveName, RecordingNotFound, TokenizerMismatch
from model.codebook import Codebook
from model.tokenizer import TokenizerInfo
from model.tokens import TokenString


def info(sha256: str = "a" * 64, name: str = "one") -> TokenizerInfo:
    return TokenizerInfo(name, "1", 0.04, "bounded", 0, 0, "none", "nothing", sha256)


def unit(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


@pytest.fixture
def archive(connection: Connection) -> store.ArchiveInfo:
    made = intake.create_archive(connection, "radio", info(), 8)
    intake.save_codebook(connection, made.id, Codebook(unit((16, 8)), unit((2, 4, 4), 1)), "archive", {"seed": 1})
    return store.get_archive(connection, "radio")


def put(connection: Connection, archive: store.ArchiveInfo, name: str, segments: int = 2, seconds: float = 30.0) -> int:
    rng = np.random.default_rng(len(name))
    new = []
    for position in range(segments):
        string = TokenString.from_frames(rng.integers(0, 16, 50), 0.04, 18.0 * position)
        new.append(NewSegment(18.0 * position, 50, string.to_bytes()))
    (id_,) = intake.reserve_ids(connection, 1)
    assert archive.codebook_id is not None
    recording = NewRecording(id_, name, b"/x/" + name.encode(), 5, 6, "0f" * 32, seconds, archive.codebook_id)
    intake.put_recording(connection, archive.id, recording, new)
    return id_


def test_an_archive_keeps_its_tokenizer(connection: Connection) -> None:
    made = intake.create_archive(connection, "radio", info(), 8)
    assert intake.create_archive(connection, "radio", info(), 8) == made
    assert (made.recordings, made.segments, made.hours, made.codebook_id) == (0, 0, 0.0, None)
    with pytest.raises(TokenizerMismatch, match=r"one .aaaaaaaaaaaa., not with two .bbbbbbbbbbbb.") as caught:
        intake.create_archive(connection, "radio", info("b" * 64, "two"), 8)
    assert caught.value.code == "tokenizer_mismatch"


@pytest.mark.parametrize("name", ["", "  ", "x" * 201])
def test_names_that_no_archive_can_have(connection: Connection, name: str) -> None:
    with pytest.raises(BadArchiveName):
        intake.create_archive(connection, name, info(), 8)


@pytest.mark.parametrize("name", ["nowhere", "x" * 100_000, "nul\0", "\udcff", "'; DROP TABLE archive; --"])
def test_archives_that_are_not_there(connection: Connection, name: str) -> None:
    with pytest.raises(ArchiveNotFound):
        store.get_archive(connection, name)
    with pytest.raises(ArchiveNotFound):
        store.delete_archive(connection, name)


def test_codebooks_come_back_as_they_were(connection: Connection, archive: store.ArchiveInfo) -> None:
    several = Codebook(unit((24, 8), 2), further=unit((3, 24, 8), 3))
    for codebook in (several, Codebook(unit((20, 8), 5)), Codebook(unit((16, 8)), unit((2, 4, 4), 1))):
        loaded = store.load_codebook(connection, intake.save_codebook(connection, archive.id, codebook, "archive", {}))
        np.testing.assert_array_equal(loaded.centroids, codebook.centroids)
        assert loaded.sha256 == codebook.sha256
        assert (loaded.pq is None, loaded.further is None) == (codebook.pq is None, codebook.further is None)
    assert archive.codebook_id == store.get_archive(connection, "radio").codebook_id  # the same one again, the same row
    connection.execute(text("UPDATE codebook SET centroids = set_byte(centroids, 3, 1) WHERE size = 20"))
    damaged = connection.execute(text("SELECT id FROM codebook WHERE size = 20")).scalar_one()
    with pytest.raises(store.StoreError, match="damaged"):
        store.load_codebook(connection, damaged)


def test_a_recording_is_replaced_as_a_whole_and_keeps_its_id(
    connection: Connection, archive: store.ArchiveInfo
) -> None:
    first = put(connection, archive, "a.wav", segments=3)
    put(connection, archive, "bb.wav", segments=1)
    put(connection, archive, "a.wav", segments=2, seconds=12.0)
    now = store.get_archive(connection, "radio")
    assert (now.recordings, now.segments, now.hours) == (2, 3, pytest.approx(42 / 3600))
    (found,) = list_recordings(connection, archive.id, 10, 0, Filter("A.W"))
    assert (found.id, found.name, found.duration_s, found.path) == (first, "a.wav", 12.0, "/x/a.wav")
    assert found.sha256 == "0f" * 32
    assert [row.position for row in segments_of(connection, [first], archive.codebook_id)] == [0, 1]


def test_reads(connection: Connection, archive: store.ArchiveInfo) -> None:
    ids = [put(connection, archive, f"{'x' * n}.wav") for n in range(1, 8)]
    connection.commit()
    rows = segments_of(connection, [ids[3], ids[0], 99_999], archive.codebook_id)
    assert [(row.recording_id, row.position) for row in rows] == [(ids[n], p) for n in (0, 3) for p in (0, 1)]
    assert TokenString.from_bytes(rows[1].tokens).offset == 18.0
    assert segments_of(connection, [], archive.codebook_id) == []
    revision, known = fingerprints(connection, archive.id, archive.codebook_id)
    assert revision == store.get_archive(connection, "radio").revision > 0
    assert set(known) == set(ids)
    recording = get_recording(connection, archive.id, ids[0])
    assert {row.fingerprint for row in rows} == {known[ids[0]]} == {recording.fingerprint}
    assert recording.fingerprint == 0x0F0F0F0F0F0F0F0F
    assert fingerprints(connection, 99_999, archive.codebook_id) == (0, {})
    assert [r.name for r in list_recordings(connection, archive.id, 2, 1)] == ["xx.wav", "xxx.wav"]
    assert list_recordings(connection, archive.id, 5, 0, Filter("%")) == []
    named = recordings_by_id(connection, [ids[1], ids[1], 99_999])
    assert [recording.name for recording in named.values()] == ["xx.wav"]
    assert recordings_by_id(connection, []) == {}


def test_deleting_takes_all_of_it(connection: Connection, archive: store.ArchiveInfo) -> None:
    one, two = put(connection, archive, "a.wav"), put(connection, archive, "bb.wav")
    delete_recording(connection, archive.id, "a.wav")
    now = store.get_archive(connection, "radio")
    assert (now.recordings, now.segments) == (1, 2)
    assert segments_of(connection, [one], archive.codebook_id) == []
    for gone in ("a.wav", one):
        with pytest.raises(RecordingNotFound):
            delete_recording(connection, archive.id, gone)
    delete_recording(connection, archive.id, two)
    put(connection, archive, "ccc.wav")
    connection.commit()
    store.delete_archive(connection, "radio")
    connection.commit()
    counts = [
        connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
        for table in ("archive", "codebook", "recording", "segment")
    ]
    assert counts == [0, 0, 0, 0]


def test_an_archive_that_is_being_indexed_is_not_deleted(
    engine: Engine, connection: Connection, archive: store.ArchiveInfo
) -> None:
    connection.commit()
    store.lock_archive(connection, archive, for_transaction=False)
    with engine.connect() as other, pytest.raises(store.ArchiveBusy) as caught:
        store.delete_archive(other, "radio")
    assert caught.value.code == "archive_busy"
    connection.invalidate()


def test_archives_are_listed_with_their_share_of_the_disk(connection: Connection, archive: store.ArchiveInfo) -> None:
    for n in range(1, 20):
        put(connection, archive, "x" * n)
    intake.create_archive(connection, "empty", info(), 8)
    empty, radio = store.list_archives(connection)
    assert (empty.name, empty.bytes, empty.codebook_kind) == ("empty", 0, None)
    assert (radio.name, radio.codebook_kind, radio.codebook_size) == ("radio", "archive", 16)
    total = connection.execute(
        text("SELECT pg_total_relation_size('segment') + pg_total_relation_size('recording')")
    ).scalar_one()
    assert radio.bytes == pytest.approx(total + 16 * 8 * 4 + 2 * 4 * 4 * 4, rel=0.01)


def test_rows_become_visible_together(engine: Engine, connection: Connection, archive: store.ArchiveInfo) -> None:
    connection.commit()
    put(connection, archive, "a.wav")
    with engine.connect() as other:
        assert store.get_archive(other, "radio").recordings == 0
        assert list_recordings(other, archive.id, 10) == []
    connection.rollback()
    assert store.get_archive(connection, "radio").recordings == 0
