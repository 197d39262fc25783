"""The local index: always what the database has, whatever happens to its files, in one process or several."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection, Engine, text

from indexer import intake, store
from indexer.intake import NewRecording, NewSegment
from indexer.recordings import delete_recording, get_recording, list_recordings, recording_ids
from indexer.segments import fingerprints, segments_of
from model.codebook import Codebook
from model.tokenizer import TokenizerInfo
from model.tokens import TokenString
from service.search import localindex, shard
from service.search.localindex import LocalIndex, View
from tests.service.shards import FRAME_S, unit

SIZE = 64
Contents = dict[int, tuple[int, list[tuple[float, bytes]]]]


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        yield connection


def make_archive(connection: Connection, name: str = "radio") -> None:
    info = TokenizerInfo("t", "1", FRAME_S, "bounded", 0, 0, "-", "-", "a" * 64)
    with connection.engine.begin() as transaction:
        made = intake.create_archive(transaction, name, info, 8)
        intake.save_codebook(transaction, made.id, Codebook(unit(np.random.default_rng(0), SIZE, 8)), "archive", {})


@pytest.fixture
def archive(connection: Connection) -> str:
    make_archive(connection)
    return "radio"


def put(connection: Connection, name: str, seed: int = 0, segments: int = 2, frames: int = 40) -> int:
    """Store a recording of random tokens, in the place of one of that name."""
    archive = store.get_archive(connection, "radio")
    rng = np.random.default_rng(seed)
    new = []
    for position in range(segments):
        string = TokenString.from_frames(rng.integers(0, SIZE, frames), FRAME_S, 18.0 * position)
        new.append(NewSegment(18.0 * position, frames, string.to_bytes()))
    (id_,) = intake.reserve_ids(connection, 1)
    assert archive.codebook_id is not None
    sha256 = f"{seed:064x}"[::-1]
    recording = NewRecording(id_, name, b"/x", 5, 6, sha256, 30.0, archive.codebook_id)
    with connection.engine.begin() as transaction:
        intake.put_recording(transaction, archive.id, recording, new)
    return get_recording(connection, archive.id, name).id


def look(index: LocalIndex, connection: Connection) -> View:
    archive = store.get_archive(connection, "radio")
    assert archive.codebook_id is not None
    return index.view(connection, archive, store.load_codebook(connection, archive.codebook_id))


def held(view: View) -> Contents:
    """What a view has alive: segments by recording, each once."""
    out: dict[int, tuple[int, dict[int, tuple[float, bytes]]]] = {}
    for part in view.parts:
        s = part.shard
        for at in np.flatnonzero(part.alive):
            _, segments = out.setdefault(int(s.recording[at]), (int(s.fingerprint[at]), {}))
            assert int(s.position[at]) not in segments, "a segment is there twice"
            ids = s.ids[s.first[at] : s.first[at + 1]].tobytes()
            segments[int(s.position[at])] = (float(s.start_s[at]), ids)
    return {r: (f, [segments[p] for p in sorted(segments)]) for r, (f, segments) in out.items()}


def stored(connection: Connection) -> Contents:
    """The same, from the rows."""
    out: Contents = {}
    archive = store.get_archive(connection, "radio")
    _, known = fingerprints(connection, archive.id, archive.codebook_id)
    for row in segments_of(connection, list(known), archive.codebook_id):
        tokens = TokenString.from_bytes(row.tokens)
        out.setdefault(row.recording_id, (row.fingerprint, []))[1].append((tokens.offset, tokens.frame_ids.tobytes()))
    return out


@pytest.mark.parametrize("on_disk", [True, False])
def test_follows_what_is_added_replaced_and_deleted(
    connection: Connection, archive: str, tmp_path: Path, on_disk: bool
) -> None:
    index = LocalIndex(tmp_path / "index" if on_disk else None)
    assert held(look(index, connection)) == {}
    rng = np.random.default_rng(0)
    names = [f"{n}.wav" for n in range(6)]
    for step in range(40):
        name = str(rng.choice(names))
        if rng.random() < 0.7:
            put(connection, name, seed=step, segments=int(rng.integers(0, 4)))
        elif recording_ids(connection, store.get_archive(connection, "radio").id, [name]):
            delete_recording(connection, store.get_archive(connection, "radio").id, name)
        view = look(index, connection)
        assert held(view) == stored(connection)
        assert look(index, connection) is view  # nothing has changed: nothing is done
    files = list(tmp_path.rglob(f"*{shard.SUFFIX}"))
    assert len(files) == (len(view.parts) if on_disk else 0)
    # Another process finds it all there.
    again = look(LocalIndex(tmp_path / "index"), connection)
    assert held(again) == stored(connection)


def test_the_number_of_shards_grows_with_the_logarithm(connection: Connection, archive: str, tmp_path: Path) -> None:
    index = LocalIndex(tmp_path)
    for number in range(40):
        put(connection, f"{number}.wav", seed=number)
        view = look(index, connection)
    assert len(view.parts) <= 6
    assert held(view) == stored(connection)


def test_a_shard_has_whole_recordings_and_no_more_frames_than_it_may(
    connection: Connection, archive: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shard, "MAX_FRAMES", 200)
    for number in range(12):
        put(connection, f"{number}.wav", seed=number, segments=1 + number % 3)
    view = look(LocalIndex(tmp_path), connection)
    assert all(part.shard.frames <= 200 for part in view.parts)
    where = [set(part.shard.recording.tolist()) for part in view.parts]
    assert sum(map(len, where)) == len(set().union(*where)) == 12
    assert held(view) == stored(connection)


@pytest.mark.parametrize("harm", ["damaged", "gone", "of another codebook", "a leftover", "twice"])
def test_files_that_are_lost_or_wrong_are_made_again(
    connection: Connection, archive: str, tmp_path: Path, harm: str
) -> None:
    put(connection, "a.wav", 1)
    put(connection, "b.wav", 2)
    look(LocalIndex(tmp_path), connection)
    (path,) = tmp_path.rglob(f"*{shard.SUFFIX}")
    if harm == "damaged":
        path.write_bytes(path.read_bytes()[:-1] + b"\x00\x01")
    elif harm == "gone":
        path.unlink()
    elif harm == "of another codebook":
        shard.save(shard.build([], 32, 0), path)
    elif harm == "a leftover":
        (path.parent / f"x{shard.SUFFIX}.tmp").write_bytes(b"half")
    else:
        (path.parent / f"0{shard.SUFFIX}").write_bytes(path.read_bytes())
    assert held(look(LocalIndex(tmp_path), connection)) == stored(connection)
    assert held(look(LocalIndex(tmp_path), connection)) == stored(connection)
    assert len(list(tmp_path.rglob(f"*{shard.SUFFIX}"))) == 1


def test_where_nothing_can_be_written_it_is_kept_in_memory(
    connection: Connection,
    archive: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "file").write_text("in the way")
    put(connection, "a.wav", 1)
    assert held(look(LocalIndex(tmp_path / "file"), connection)) == stored(connection)
    assert "it is kept in memory" in caplog.text

    def full(one: shard.Shard, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shard, "save", full)
    index = LocalIndex(tmp_path / "index")
    assert held(look(index, connection)) == stored(connection)
    assert "this part is kept in memory" in caplog.text
    put(connection, "b.wav", 2)
    assert held(look(index, connection)) == stored(connection)


def test_archives_of_a_name_that_comes_again_and_of_another_codebook_are_apart(
    connection: Connection, archive: str, tmp_path: Path
) -> None:
    index = LocalIndex(tmp_path)
    put(connection, "a.wav", 1)
    look(index, connection)
    with connection.engine.begin() as transaction:
        store.delete_archive(transaction, "radio")
    make_archive(connection)
    assert held(look(index, connection)) == {}
    put(connection, "a.wav", 3)
    assert held(look(index, connection)) == stored(connection)


def test_unused_folders_are_cleared_away(connection: Connection, archive: str, tmp_path: Path) -> None:
    put(connection, "a.wav", 1)
    index = LocalIndex(tmp_path)
    look(index, connection)
    assert index.clear_unused() == 0
    assert index.clear_unused(unused_s=-1.0) == 1
    assert list(tmp_path.iterdir()) == []
    assert held(look(LocalIndex(tmp_path), connection)) == stored(connection)


WATCH = """
import json, sys
from pathlib import Path
import sqlalchemy as sa
from service.search.localindex import LocalIndex
from tests.service.test_localindex import held, look, stored
engine = sa.create_engine(sys.argv[1])
index = LocalIndex(Path(sys.argv[2]))
seen = 0
with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
    for line in sys.stdin:
        view = held(look(index, connection))
        for segments in view.values():
            assert len(segments[1]) == 2, "half a recording"
        seen += 1
    assert held(look(index, connection)) == stored(connection)
print(json.dumps({"seen": seen, "recordings": len(view)}))
"""


def test_processes_share_a_folder_while_the_archive_changes(
    connection: Connection, archive: str, engine: Engine, tmp_path: Path
) -> None:
    url = engine.url.render_as_string(hide_password=False)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WATCH, url, str(tmp_path)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
        )
        for _ in range(3)
    ]  # fmt: skip
    rng = np.random.default_rng(1)
    for step in range(60):
        put(connection, f"{rng.integers(8)}.wav", seed=step)
        if step % 7 == 6:
            names = [r.name for r in list_recordings(connection, store.get_archive(connection, "radio").id, 9)]
            delete_recording(connection, store.get_archive(connection, "radio").id, str(rng.choice(names)))
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("look\n")
            process.stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert json.loads(out)["seen"] == 60
    assert held(look(LocalIndex(tmp_path), connection)) == stored(connection)


def test_threads_get_one_view_and_never_half_a_recording(
    connection: Connection, archive: str, engine: Engine, tmp_path: Path
) -> None:
    index, stop = LocalIndex(tmp_path), threading.Event()
    wrong: list[str] = []
    looks = [0, 0, 0]

    def watch(number: int) -> None:
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as mine:
            while not stop.is_set():
                radio = store.get_archive(mine, "radio")
                before = set(fingerprints(mine, radio.id, radio.codebook_id)[1])
                for recording, (_, segments) in held(look(index, mine)).items():
                    if len(segments) != 2:
                        wrong.append(f"{recording} has {len(segments)} segments")
                looks[number] += len(before) >= 0

    threads = [threading.Thread(target=watch, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for step in range(80):
        put(connection, f"{step % 9}.wav", seed=step)
        time.sleep(0.005)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert min(looks) > 3
    assert held(look(index, connection)) == stored(connection)


def test_revisions_rise_with_every_change(connection: Connection, archive: str) -> None:
    seen = [store.get_archive(connection, "radio").revision]
    put(connection, "a.wav", 1)
    seen.append(store.get_archive(connection, "radio").revision)
    put(connection, "a.wav", 2)
    seen.append(store.get_archive(connection, "radio").revision)
    delete_recording(connection, store.get_archive(connection, "radio").id, "a.wav")
    seen.append(store.get_archive(connection, "radio").revision)
    assert seen == sorted(set(seen))
    row = connection.execute(text("SELECT count(*) FROM segment")).scalar_one()
    assert row == 0
    assert localindex.MOST_ARCHIVES >= 1


def test_a_recording_that_grows_is_read_anew_alone(connection: Connection, archive: str, tmp_path: Path) -> None:
    for number in range(30):
        put(connection, f"{number}.wav", seed=number, segments=30)
    index = LocalIndex(tmp_path)
    look(index, connection)
    about = store.get_archive(connection, "radio")
    assert about.codebook_id is not None
    (id_,) = intake.reserve_ids(connection, 1)
    rng = np.random.default_rng(1)
    revision = about.revision
    written: set[Path] = set()
    for second in range(1, 25):
        final = second // 6  # segments that stay
        new = []
        for position in range(max(0, (second - 1) // 6), final + 1):
            string = TokenString.from_frames(rng.integers(0, SIZE, 40), FRAME_S, 18.0 * position)
            new.append(NewSegment(18.0 * position, 40, string.to_bytes()))
        recording = NewRecording(
            id_, "live.flac", b"/x", second, 6, f"{second:064x}"[::-1], 2.0 * second, about.codebook_id
        )
        with connection.engine.begin() as transaction:
            kept = max(0, (second - 1) // 6)
            now = intake.put_recording(transaction, about.id, recording, new, kept=kept)
        assert now == revision + 1
        revision = now
        view = look(index, connection)
        assert held(view) == stored(connection)
        assert len(held(view)[id_][1]) == final + 1
        written |= {part.path for part in view.parts if part.path is not None and part.shard.frames > 10 * 40}
    assert len(written) == 1  # the large shard is what it was
    counted = store.get_archive(connection, "radio")
    assert (counted.recordings, counted.segments) == (31, 30 * 30 + 5)
