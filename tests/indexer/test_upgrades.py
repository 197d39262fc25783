"""Databases of every earlier schema, as their release left them, are brought up to date and lose nothing."""

from __future__ import annotations

import gzip
import importlib
import subprocess
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

from indexer import database, pipeline, store
from indexer.recordings import list_recordings
from indexer.schema import Base
from indexer.segments import checksum
from indexer.server import Server
from model.tokenizer import DEFAULT_WEIGHTS, EARLIER_WEIGHTS, Tokenizer
from service.clips import read_clip
from service.search.answer import Request
from service.search.engine import SearchEngine
from tests.service.conftest import DEMO

DUMPS = {path.name.split(".")[0]: path for path in sorted((Path(__file__).parent / "dumps").glob("*.sql.gz"))}
STATION = DEMO / "archive" / "skerry-radio"


def load(dump: Path, engine: Engine) -> None:
    """As psql restores it; today's tables come with the migrations."""
    url = engine.url
    psql = Server(Path(str(url.query["host"]))).programs / "psql"
    done = subprocess.run(
        [
            psql, "-q", "-o", "/dev/null", "-v", "ON_ERROR_STOP=1", "-h", str(url.query["host"]),
            "-U", str(url.username), "-d", str(url.database),
        ],
        input=gzip.decompress(dump.read_bytes()), capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()


def test_each_earlier_schema_has_a_dump() -> None:
    """Before a migration is added, tests/indexer/dumps/make.py writes one of the schema as it stands."""
    revisions = [script.revision for script in ScriptDirectory.from_config(database._config()).walk_revisions()]
    assert sorted(DUMPS) == sorted(revisions)[:-1]


@pytest.mark.parametrize("revision", sorted(DUMPS))
def test_an_earlier_database_is_brought_up_to_date(revision: str, empty_engine: Engine, tmp_path: Path) -> None:
    engine = empty_engine
    load(DUMPS[revision], engine)
    with engine.connect() as connection:
        segments = connection.execute(text("SELECT recording_id, position, tokens FROM segment ORDER BY 1, 2")).all()
        keys = connection.execute(text("SELECT sha256 FROM api_key")).all() if revision >= "0003" else []
        watched = connection.execute(text("SELECT score FROM watch_hit")).all() if revision >= "0004" else []
    with pytest.raises(database.SchemaOutdated):
        database.check(engine)
    database.migrate(engine)
    database.check(engine)
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
        archive = store.get_archive(connection, "radio")
        recordings = {one.name: one for one in list_recordings(connection, archive.id, 10)}
        rows = connection.execute(
            text("SELECT recording_id, position, tokens, checksum FROM segment ORDER BY 1, 2")
        ).all()
        assert [tuple(row[:3]) for row in rows] == [tuple(row) for row in segments]
        assert all(row.checksum == checksum(row.tokens) for row in rows)
        assert archive.beside_id is None
        assert (archive.recordings, archive.segments) == (len(recordings), len(rows))
        if revision >= "0003":
            assert connection.execute(text("SELECT sha256 FROM api_key")).all() == keys != []
        if revision >= "0004":
            assert (recordings["sent.opus"].metadata, recordings["sent.opus"].external_id) == ({"shelf": 7}, "own")
            assert connection.execute(text("SELECT score FROM watch_hit")).all() == watched
            assert connection.execute(text("SELECT state FROM job")).scalars().all() == ["done"]
    # It is searched at once, and knows its recordings again.
    shipped = [Tokenizer(path, threads=1) for path in (DEFAULT_WEIGHTS, EARLIER_WEIGHTS)]
    tokenizer = next(one for one in shipped if one.info.sha256 == archive.tokenizer_sha256)
    search = SearchEngine(engine, tokenizer, folder=tmp_path / "index")
    hits = search.search(Request([read_clip(DEMO / "query.opus", 60.0)], "radio")).hits
    assert {hit.recording.name for hit in hits[:2]} == {"01-monday.opus", "04-thursday.opus"}
    paths = [STATION / "01-monday.opus", STATION / "04-thursday.opus"]
    found = pipeline.index_archive(engine, paths, "radio", tokenizer.path)
    assert (found.moved, found.indexed, found.failed) == (2, 0, [])


def test_migrations_are_known_by_their_number() -> None:
    """Dumps are found by it."""
    for script in ScriptDirectory.from_config(database._config()).walk_revisions():
        assert importlib.import_module(f"migrations.versions.{Path(script.path).stem}").revision == script.revision
        assert Path(script.path).stem.startswith(f"v{script.revision}_")
