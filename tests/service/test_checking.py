"""Archives are checked against what was stored, and mended from their files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from indexer import database, embedded, pipeline, store
from indexer.integrity import Checked
from indexer.recordings import get_recording
from indexer.segments import checksum, segments_between
from model.tokenizer import Tokenizer
from service import repairing
from service.clips import read_clip
from service.retokenizing import RetokenizeFailed
from service.search.answer import Request
from service.search.engine import SearchEngine
from tests.conftest import ToneFile
from tests.service.conftest import DEMO, run_cli


@pytest.fixture
def folder(tone_file: ToneFile) -> Path:
    for n in range(4):
        path = tone_file(f"{n}.wav", 40.0, seed=n)
    return path.parent


def index(engine: Engine, folder: Path, tokenizer: Path, **kinds: Any) -> None:
    assert not pipeline.index_archive(engine, [folder], "a", tokenizer, **kinds).failed


def damage(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        assert connection.execute(text(statement)).rowcount > 0


def problems(checked: Checked) -> list[tuple[str, str | None]]:
    return [(problem.code, problem.recording) for problem in checked.problems]


DAMAGES = {
    "a flipped byte": (
        """
        UPDATE segment SET tokens = set_byte(tokens, length(tokens) - 1, get_byte(tokens, length(tokens) - 1) # 1)
        WHERE recording_id = (SELECT id FROM recording WHERE name = '1.wav') AND position = 1
        """,
        [("tokens_damaged", "1.wav")],
    ),
    "a token string with its sum, of another place": (
        """
        UPDATE segment SET tokens = other.tokens, checksum = other.checksum FROM segment AS other
        WHERE segment.recording_id = (SELECT id FROM recording WHERE name = '2.wav') AND segment.position = 1
        AND other.recording_id = segment.recording_id AND other.position = 0
        """,
        [("tokens_damaged", "2.wav")],
    ),
    "a lost segment": (
        "DELETE FROM segment WHERE recording_id = (SELECT id FROM recording WHERE name = '3.wav') AND position = 0",
        [("segments_missing", "3.wav"), ("counters_wrong", None)],
    ),
    "wrong counts": ("UPDATE archive SET recordings = 7", [("counters_wrong", None)]),
    "a damaged codebook of the tokenizer": (
        "UPDATE codebook SET centroids = set_byte(centroids, 5, 1)",
        [("codebook_damaged", None)],
    ),
}


def test_a_code_that_no_codebook_makes_is_damage_also_where_its_sum_fits(
    engine: Engine, folder: Path, tokenizer_path: Path
) -> None:
    index(engine, folder, tokenizer_path, codebook="archive")
    assert problems(repairing.look(engine, "a")) == []
    damage(engine, "UPDATE segment SET tokens = set_byte(tokens, length(tokens) - 1, 255) WHERE position = 1")
    with engine.begin() as connection:
        rows = connection.execute(text("SELECT recording_id, tokens FROM segment WHERE position = 1")).all()
        for row in rows:
            connection.execute(
                text("UPDATE segment SET checksum = :sum WHERE recording_id = :id AND position = 1"),
                {"sum": checksum(bytes(row.tokens)), "id": row.recording_id},
            )
    found = repairing.look(engine, "a").problems
    assert [(one.code, one.recording) for one in found] == [("tokens_damaged", f"{n}.wav") for n in range(4)]
    assert all("a code 65" in one.message for one in found)


@pytest.mark.parametrize("what", DAMAGES)
def test_damage_is_found_and_mended(what: str, engine: Engine, folder: Path, tokenizer_path: Path) -> None:
    index(engine, folder, tokenizer_path, codebook="tokenizer")
    well = repairing.look(engine, "a")
    assert (problems(well), well.missing, well.changed, well.recordings) == ([], [], [], 4)
    statement, expected = DAMAGES[what]
    damage(engine, statement)
    found = repairing.look(engine, "a")
    assert problems(found) == expected
    mended = repairing.repair(engine, found, tokenizer_path, workers=1)
    assert (problems(mended), mended.digest) == ([], well.digest)
    assert repairing.look(engine, "a").digest == well.digest


def test_a_lost_codebook_of_its_own_is_fitted_anew(engine: Engine, folder: Path, tokenizer_path: Path) -> None:
    index(engine, folder, tokenizer_path, codebook="archive")
    well = repairing.look(engine, "a")
    damage(engine, "UPDATE codebook SET centroids = set_byte(centroids, 5, 1)")
    found = repairing.look(engine, "a")
    assert problems(found) == [("codebook_damaged", None)]
    (folder / "0.wav").rename(folder / "away")
    with pytest.raises(RetokenizeFailed, match="1 of 4 files are missing"):
        repairing.repair(engine, found, tokenizer_path, workers=1)
    (folder / "away").rename(folder / "0.wav")
    mended = repairing.repair(engine, found, tokenizer_path, workers=1)
    assert (problems(mended), mended.digest) == ([], well.digest)  # the same files, the same fit
    with engine.connect() as connection:
        assert [one.name for one in store.list_archives(connection)] == ["a"]


def test_what_has_no_file_stays_damaged_and_is_not_searched(
    engine: Engine, tokenizer_path: Path, tmp_path: Path
) -> None:
    """A damaged token string is never compared with anything: searches go on without it, and say so in the log."""
    station = tmp_path / "station"
    station.mkdir()
    for name in ("01-monday.opus", "04-thursday.opus", "10-late-night.opus"):
        (station / name).write_bytes((DEMO / "archive" / "skerry-radio" / name).read_bytes())
    index(engine, station, tokenizer_path, codebook="tokenizer")
    damage(
        engine, DAMAGES["a flipped byte"][0].replace("1.wav", "01-monday.opus").replace("position = 1", "position = 0")
    )

    def heard() -> set[str]:
        search = SearchEngine(engine, Tokenizer(tokenizer_path, threads=1), folder=tmp_path / "index")
        hits = search.search(Request([read_clip(DEMO / "query.opus", 60.0)], "a")).hits
        return {hit.recording.name for hit in hits[:3]}

    assert heard() == {"04-thursday.opus", "10-late-night.opus"}
    with engine.connect() as connection:
        monday = get_recording(connection, store.get_archive(connection, "a").id, "01-monday.opus")
    with engine.connect() as connection, pytest.raises(store.SegmentDamaged, match="run `sayagain check`"):
        segments_between(connection, monday.id, 0.0, 5.0, 0.04)
    (station / "01-monday.opus").rename(station / "away")
    found = repairing.look(engine, "a")
    still = repairing.repair(engine, found, tokenizer_path, workers=1)
    assert problems(still) == [("tokens_damaged", "01-monday.opus")]
    assert still.missing == ["01-monday.opus"]
    (station / "away").rename(station / "01-monday.opus")
    assert problems(repairing.repair(engine, still, tokenizer_path, workers=1)) == []
    assert heard() == {"01-monday.opus", "04-thursday.opus", "10-late-night.opus"}


def test_files_that_are_gone_or_others_are_no_damage(engine: Engine, folder: Path, tokenizer_path: Path) -> None:
    index(engine, folder, tokenizer_path, codebook="tokenizer")
    (folder / "0.wav").unlink()
    os.utime(folder / "1.wav", ns=(1, 1))
    (folder / "2.wav").write_bytes(b"other")
    quiet, state = folder / "3.wav", (folder / "3.wav").stat()
    quiet.write_bytes(bytes(reversed(quiet.read_bytes())))  # as long, and as old as it was
    os.utime(quiet, ns=(state.st_atime_ns, state.st_mtime_ns))
    found = repairing.look(engine, "a")
    assert (problems(found), found.missing, found.changed) == ([], ["0.wav"], ["2.wav"])
    found = repairing.look(engine, "a", contents=True)
    assert (problems(found), found.missing, found.changed) == ([], ["0.wav"], ["2.wav", "3.wav"])
    assert repairing.look(engine, "a", files=False).missing == []


def test_the_digest_tells_archives_apart_and_not_where_they_are(
    engine: Engine, folder: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    index(engine, folder, tokenizer_path, codebook="tokenizer")
    pipeline.index_archive(engine, [folder], "b", tokenizer_path, codebook="tokenizer", workers=1)
    digest = repairing.look(engine, "a").digest
    assert repairing.look(engine, "b").digest == digest
    folder.rename(tmp_path / "elsewhere")
    index(engine, tmp_path / "elsewhere", tokenizer_path)
    assert repairing.look(engine, "a").digest == digest
    with engine.begin() as connection:
        connection.execute(text("""UPDATE recording SET metadata = '{"a": 1}' WHERE name = '0.wav'"""))
    assert repairing.look(engine, "a").digest != digest


def test_the_command(tmp_path: Path, tokenizer_path: Path, tone_file: ToneFile) -> None:
    home = tmp_path / "home"
    for n in range(2):
        folder = tone_file(f"{n}.wav", 5.0, seed=n).parent
    for archive in "ab":
        assert run_cli(home, tokenizer_path, "index", folder, "--archive", archive).returncode == 0
    well = run_cli(home, tokenizer_path, "check", "--json")
    assert (well.returncode, [json.loads(line)["archive"] for line in well.stdout.splitlines()]) == (0, ["a", "b"])
    assert "a: well; 2 recordings" in well.stderr
    engine = database.open_engine(home, None)
    try:
        damage(engine, "UPDATE segment SET checksum = checksum # 1 WHERE archive_id = 2 AND position = 0")
    finally:
        engine.dispose()
        embedded.leave(home)
    bad = run_cli(home, tokenizer_path, "check", "b")
    assert (bad.returncode, bad.stdout) == (3, "")
    assert "damaged: 0.wav: tokens_damaged: segment 0: the checksum does not fit" in bad.stderr
    mended = run_cli(home, tokenizer_path, "check", "b", "--repair", "--json")
    assert mended.returncode == 0, mended.stderr
    told = json.loads(mended.stdout)
    assert (told["problems"], told["digest"]) == ([], json.loads(well.stdout.splitlines()[1])["digest"])
    assert run_cli(home, tokenizer_path, "check", "c").returncode == 1
