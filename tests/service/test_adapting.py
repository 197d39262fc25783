import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from sqlalchemy import Engine, text
from typer.testing import CliRunner, Result

pytest.importorskip("torch", reason="the train extra is not installed")

from indexer import database, pipeline, spares, store
from model.tokenizer import Tokenizer
from service import adapting, registry, retokenizing
from service.clips import read_clip
from service.retokenizing import RetokenizeFailed
from service.search.answer import Request
from service.search.engine import SearchEngine
from tests.conftest import _fresh, database_url
from tests.service.conftest import DEMO
from tests.training.students import random_student, write_tokenizer

pytestmark = pytest.mark.training

SHOWS = ("field-notes", "radio-ecluse")


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two of the same shape that are not the same."""
    folder = tmp_path_factory.mktemp("tokenizers")
    return tuple(write_tokenizer(random_student(seed=i), folder / f"{i}.onnx", f"small-{i}") for i in range(2))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Demo recordings in folders, one beside them, one of a name that is no text, and one elsewhere."""
    top = tmp_path_factory.mktemp("pristine") / "top"
    for show in SHOWS:
        shutil.copytree(DEMO / "archive" / show, top / "sound" / show)
    others = sorted((DEMO / "archive" / "kurzwelle").iterdir())
    shutil.copy(others[0], top / "sound" / "beside.opus")
    shutil.copy(others[1], os.fsdecode(os.fsencode(top / "sound" / SHOWS[0]) + b"/\xff.opus"))
    (top / "alone" / "deep").mkdir(parents=True)
    shutil.copy(others[2], top / "alone" / "deep" / "abend.opus")
    return top


@pytest.fixture(scope="module")
def template(
    server: Engine, pristine: Path, tokenizers: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A database with the archive `shows`, made once since copies are quick; where its files lie."""
    top = tmp_path_factory.mktemp("top")
    shutil.copytree(pristine, top, dirs_exist_ok=True)
    with server.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("CREATE DATABASE template_shows TEMPLATE template_test"))
    engine = database.open_engine(top, database_url(server, "template_shows"))
    paths = [top / "sound", top / "alone" / "deep" / "abend.opus"]
    done = pipeline.index_archive(engine, paths, "shows", tokenizers[0], workers=1, codebook="tokenizer", codes=False)
    assert not done.failed
    engine.dispose()
    return top


@pytest.fixture
def sound(pristine: Path, template: Path) -> Path:
    """The folder that has been indexed, as it was then."""
    shutil.rmtree(template)
    shutil.copytree(pristine, template)
    return template / "sound"


@pytest.fixture
def engine(server: Engine, tmp_path: Path, template: Path) -> Iterator[Engine]:
    """A database of its own for each test, with the archive in it."""
    yield from _fresh(server, tmp_path, "template_shows")


@pytest.fixture
def archive(engine: Engine, sound: Path) -> str:
    """A folder, and a file from elsewhere by itself."""
    return "shows"


def state(engine: Engine, name: str = "shows") -> dict[str, Any]:
    """All that tells an archive from another."""
    with database.connect(engine) as connection:
        info = store.get_archive(connection, name)
        recordings = list(retokenizing.recordings_of(connection, info))
        tokens = connection.execute(
            text("SELECT tokens FROM segment WHERE archive_id = :id ORDER BY recording_id, position"), {"id": info.id}
        )
        return {
            "tokenizer": info.tokenizer_sha256,
            "codebook": (info.codebook_kind, info.codebook_id),
            "ids": {r.name: r.id for r in recordings},
            "recordings": {r.name: (r.path, r.duration_s, r.sha256) for r in recordings},
            "counted": (info.recordings, info.segments),
            "tokens": [bytes(row[0]) for row in tokens],
        }


def names(engine: Engine) -> list[str]:
    with database.connect(engine) as connection:
        return [info.name for info in store.list_archives(connection)]


# The archive made anew.


def test_files_keep_the_names_that_they_have(engine: Engine, archive: str, sound: Path) -> None:
    with database.connect(engine) as connection:
        recordings = list(retokenizing.recordings_of(connection, store.get_archive(connection, archive)))
    found = retokenizing.files_of(recordings)
    assert {file.name: str(file.path) for file in found.files} == {one.name: one.path for one in recordings}
    assert f"{SHOWS[0]}/\\xff.opus" in {file.name for file in found.files}
    assert {file.mtime_ns for file in found.files} == {one.mtime_ns for one in recordings}


def test_the_archive_is_made_anew_with_the_same_names(
    engine: Engine, archive: str, sound: Path, tokenizers: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retokenizing, "PAGE", 5)
    before = state(engine)
    shutil.copy(sound / "beside.opus", sound / SHOWS[1] / "new.opus")  # the folder holds more than the archive by now
    retokenizing.retokenize(engine, archive, tokenizers[1], workers=1)
    after = state(engine)
    assert names(engine) == [archive, "shows~before"]
    assert after["recordings"] == before["recordings"]
    assert after["counted"] == before["counted"]
    assert after["ids"] == before["ids"]
    assert after["codebook"][0] == before["codebook"][0] == "tokenizer"
    assert after["tokenizer"] == Tokenizer(tokenizers[1]).info.sha256 != before["tokenizer"]
    assert after["tokens"] != before["tokens"]
    assert all(count == 2 for count in archives_in(engine).values()), archives_in(engine)
    # And back, and forth: what it was is kept in turn.
    paths = {before["tokenizer"]: tokenizers[0], after["tokenizer"]: tokenizers[1]}
    for expected in (before, after):
        done = retokenizing.back(engine, archive, paths.__getitem__, workers=1)
        assert (done.indexed, done.unchanged) == (0, len(before["recordings"]))
        assert without_codebook(state(engine)) == without_codebook(expected)
        assert all(count == 2 for count in archives_in(engine).values()), archives_in(engine)


def without_codebook(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"codebook": state["codebook"][0]}


def without_ids(state: dict[str, Any]) -> dict[str, Any]:
    return state | {"ids": sorted(state["ids"])}


def put_beside(engine: Engine, spare: str, archive: str) -> None:
    with engine.begin() as connection:
        spares.put_beside(connection, store.get_archive(connection, spare), store.get_archive(connection, archive))


def archives_in(engine: Engine) -> dict[str, int]:
    """How many archives the rows of each table belong to."""
    with database.connect(engine) as connection:
        return {
            table: connection.execute(text(f"SELECT count(DISTINCT archive_id) FROM {table}")).scalar_one()
            for table in ("codebook", "recording", "segment")
        }


def test_others_see_the_old_archive_until_the_new_one_is_there(
    engine: Engine, archive: str, sound: Path, tokenizers: tuple[Path, Path]
) -> None:
    spare = spares.name_of(archive, spares.MADE)
    paths = [sound, sound.parent / "alone" / "deep" / "abend.opus"]
    pipeline.index_archive(engine, paths, spare, tokenizers[1], workers=1, codebook="tokenizer", codes=False)
    put_beside(engine, spare, archive)
    before, new = state(engine), state(engine, spare)
    with database.connect(engine) as connection:
        transaction = connection.begin()
        retokenizing.replace_archive(connection, archive, spare)
        assert state(engine) == before
        transaction.rollback()
        assert (names(engine), state(engine)) == ([archive, spare], before)
        with connection.begin():
            retokenizing.replace_archive(connection, archive, spare)
            assert state(engine) == before
    kept = spares.name_of(archive, spares.KEPT)
    assert (names(engine), state(engine)) == ([archive, kept], new | {"ids": before["ids"]})
    assert without_ids(state(engine, kept)) == without_ids(before)


def test_whatever_fails_the_old_archive_stays(
    engine: Engine, archive: str, sound: Path, tokenizers: tuple[Path, Path]
) -> None:
    before = state(engine)
    victim = sound / SHOWS[0] / "02-marsh.opus"
    content, times = victim.read_bytes(), victim.stat()
    victim.rename(sound / "away")
    with pytest.raises(RetokenizeFailed, match=r"1 of 13 files are missing, the first is 'field-notes/02-marsh.opus'"):
        retokenizing.retokenize(engine, archive, tokenizers[1], workers=1)
    victim.write_text("no sound")
    with pytest.raises(RetokenizeFailed, match=r"1 of 13 recordings could not be indexed again"):
        retokenizing.retokenize(engine, archive, tokenizers[1], workers=1)
    assert (names(engine), state(engine)) == ([archive, "shows~adapting"], before)
    # What is left of that is of no use to another tokenizer, and of use to the same one.
    victim.write_bytes(content)
    os.utime(victim, ns=(times.st_atime_ns, times.st_mtime_ns))
    done = retokenizing.retokenize(engine, archive, tokenizers[1], workers=1)
    assert (done.indexed, done.unchanged) == (1, 12)
    assert state(engine)["ids"] == before["ids"]
    assert state(engine)["recordings"] == before["recordings"]


def test_what_another_tokenizer_left_is_no_obstacle(
    engine: Engine, archive: str, sound: Path, tokenizers: tuple[Path, Path]
) -> None:
    before = state(engine)
    spare = spares.name_of(archive, spares.MADE)
    pipeline.index_archive(engine, [sound / "beside.opus"], spare, tokenizers[0], workers=1)
    # Unless it is an archive of its own, which nobody takes away.
    with pytest.raises(store.ArchiveNameTaken, match="'shows~adapting': delete it first"):
        retokenizing.retokenize(engine, archive, tokenizers[1], workers=1)
    put_beside(engine, spare, archive)
    retokenizing.retokenize(engine, archive, tokenizers[1], workers=1)
    assert (names(engine), state(engine)["recordings"]) == ([archive, "shows~before"], before["recordings"])


# The command.


def test_an_archive_has_a_folder_of_its_own() -> None:
    for plain in ("default", "My shows 2", "überall"):
        assert adapting.folder_name(plain) == plain
    odd = ["a/b", "a_b/", "..", ".", "a\\b", " a", "a\0b", "x" * 61, "x" * 62, "\U00020000" * 100, "'", '"']
    folders = [adapting.folder_name(name) for name in odd]
    assert len(set(folders)) == len(odd)
    assert all(len(os.fsencode(name)) <= 255 and not {"/", "\0"} & set(name) for name in folders)
    assert not {".", ".."} & set(folders)


def test_adapt_reports_and_applies_only_when_told(
    engine: Engine, archive: str, tokenizers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    monkeypatch.setenv("SAYAGAIN_HOME", str(home))
    monkeypatch.setenv("SAYAGAIN_TOKENIZER", str(tokenizers[0]))
    monkeypatch.setenv("SAYAGAIN_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    before = state(engine)

    def run(*words: str) -> Result:
        app = typer.Typer(pretty_exceptions_enable=False)
        app.command()(adapting.adapt)
        budget = ["--minutes", "0.05", "--rounds", "1", "--workers", "1"]
        return CliRunner().invoke(app, [archive, *budget, *words], env={"COLUMNS": "200"})

    first = run("--json")
    assert first.exit_code == 0, first.stderr
    report = json.loads(first.stdout)
    assert (report["archive"], report["recordings"], report["applied"], report["missing"]) == (archive, 13, False, [])
    assert 0.0 < report["before"]["tokens"] < 1.0
    assert state(engine) == before
    work = home / "adapt" / archive
    adapted = Tokenizer(work / "adapted.onnx").info
    assert (adapted.name, adapted.sha256) == ("small-0-adapted", report["tokenizer"]["sha256"])

    # Seconds of training may help or not: that it was one or the other is written into the finished report.
    def force(helped: bool) -> None:
        saved = json.loads((work / "report.json").read_text())
        (work / "report.json").write_text(json.dumps({**saved, "helped": helped}))

    force(False)
    refused = run("--apply", "--json")
    assert (refused.exit_code, json.loads(refused.stdout)["applied"]) == (0, False)
    assert "it did not help: the archive stays as it was" in refused.stderr
    assert state(engine) == before
    assert not (home / registry.FOLDER).exists()

    force(True)
    told = run()
    assert "sayagain adapt shows --apply --minutes 0.05 --rounds 1" in told.stderr
    assert "tokens in noise and in a room" in told.stderr
    assert told.stdout == ""
    assert state(engine) == before

    applied = run("--apply", "--json")
    assert applied.exit_code == 0, applied.stderr
    assert json.loads(applied.stdout)["applied"] is True
    after = state(engine)
    assert (names(engine), after["recordings"]) == ([archive, "shows~before"], before["recordings"])
    assert after["tokenizer"] == adapted.sha256
    kept = home / registry.FOLDER / f"small-0-adapted-{adapted.sha256[:12]}.onnx"
    assert Tokenizer(kept).info.sha256 == adapted.sha256
    assert list(kept.parent.iterdir()) == [kept]

    found = registry.Registry(home, tokenizers[0])
    search = SearchEngine(engine, found.default, others=found.find)
    clip = read_clip(DEMO / "archive" / SHOWS[0] / "03-island.opus", 60.0, 2.0, 3.5)
    best = search.search(Request([clip], archive)).hits[0]
    assert best.recording.name == "field-notes/03-island.opus"

    again = run("--apply", "--json")
    assert (again.exit_code, json.loads(again.stdout)["applied"]) == (0, True)
    assert "has the adapted tokenizer already" in again.stderr
    assert state(engine) == after


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("nowhere",), "archive_not_found"),
        (("shows", "--device", "tpu"), "device_missing: the device 'tpu' is not known: cpu or cuda"),
        (("shows",), "tokenizer_mismatch: the tokenizer that the archive 'shows' was made with (small-0"),
    ],
)
def test_what_cannot_be_is_one_line(
    engine: Engine, archive: str, tokenizers: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...], says: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("SAYAGAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAYAGAIN_TOKENIZER", str(tokenizers[1]))
    monkeypatch.setenv("SAYAGAIN_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(adapting.adapt)
    done = CliRunner().invoke(app, [*words])
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith(f"sayagain: {says}")
    assert len(done.stderr.splitlines()) == 1


def test_files_that_are_gone_are_named(
    engine: Engine, archive: str, sound: Path, tokenizers: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("SAYAGAIN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SAYAGAIN_TOKENIZER", str(tokenizers[0]))
    monkeypatch.setenv("SAYAGAIN_DATABASE_URL", engine.url.render_as_string(hide_password=False))
    (sound / "beside.opus").unlink()
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(adapting.adapt)
    words = [archive, "--minutes", "0", "--rounds", "1", "--workers", "1", "--work", str(tmp_path / "work"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 3, done.stderr
    assert "missing: beside.opus" in done.stderr
    report = json.loads(done.stdout)
    assert (report["missing"], report["recordings"]) == (["beside.opus"], 12)
    assert report["before"] == report["after"]
    assert report["helped"] is False
