"""Recordings in a store that speaks S3, a process of its own: indexed, kept in step, played; here and on a cluster."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy import Engine, text

from indexer import pipeline, sources
from indexer.discover import NoAudioFound, discover
from model import audio
from service import retokenizing
from service.app import create_app
from service.settings import Settings
from tests.cluster.conftest import START_S, TAPES, Cluster, rows


class Store:
    """Buckets, and what is in them."""

    def __init__(self, address: str) -> None:
        import s3fs

        self.system = s3fs.S3FileSystem(endpoint_url=address, use_listings_cache=False)

    def put(self, source: Path, key: str) -> None:
        self.system.put_file(str(source), key)

    def drop(self, key: str) -> None:
        self.system.rm_file(key)


@pytest.fixture(scope="module")
def store() -> Iterator[Store]:
    """A bucket `radio` with the demo's tapes of one station below `tapes`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    given = {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": address, "AWS_EC2_METADATA_DISABLED": "true",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in given}
    os.environ.update(given)
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1.0).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                assert process.poll() is None
                time.sleep(0.1)
        store = Store(address)
        store.system.mkdir("radio")
        for tape in sorted(TAPES.glob("*.opus")):
            store.put(tape, f"radio/tapes/{tape.name}")
        store.put(TAPES / "01-monday.opus", "radio/tapes/.hidden/01.opus")
        store.put(Path(__file__), "radio/tapes/notes.txt")
        yield store
    finally:
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def without_paths(engine: Engine) -> list[tuple[Any, ...]]:
    return rows(engine, paths=False)


def test_what_is_stored_is_what_a_folder_gives(
    engine: Engine, tokenizer_path: Path, store: Store, cluster: Cluster
) -> None:
    here = pipeline.index_archive(engine, [TAPES], "here", tokenizer_path)
    expected = without_paths(engine)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM archive"))
        connection.execute(text("ALTER SEQUENCE recording_id_seq RESTART"))
    there = pipeline.index_archive(engine, ["s3://radio/tapes/"], "here", tokenizer_path, scheduler=cluster.address)
    assert (there.indexed, there.failed, here.indexed) == (13, [], 13)
    assert without_paths(engine) == expected
    with engine.connect() as connection:
        paths = connection.execute(text("SELECT path FROM recording ORDER BY name")).scalars().all()
    assert bytes(paths[0]) == b"s3://radio/tapes/01-monday.opus"


def test_it_is_kept_in_step(engine: Engine, tokenizer_path: Path, store: Store) -> None:
    def index(*, prune: bool = False) -> tuple[int, int, int]:
        report = pipeline.index_archive(engine, ["s3://radio/some"], "some", tokenizer_path, prune=prune)
        assert report.failed == []
        return report.indexed, report.unchanged, report.moved

    first, second = sorted(TAPES.glob("*.opus"))[:2]
    store.put(first, "radio/some/a.opus")
    store.put(second, "radio/some/b.opus")
    assert index() == (2, 0, 0)
    assert index() == (0, 2, 0)
    store.put(second, "radio/some/a.opus")  # other content under the same name
    assert index() == (1, 1, 0)
    store.drop("radio/some/a.opus")
    store.drop("radio/some/b.opus")
    store.put(first, "radio/some/c.opus")
    index(prune=True)
    store.drop("radio/some/c.opus")
    store.put(first, "radio/some/d.opus")  # renamed: its tokens stay
    assert index() == (0, 0, 1)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT name FROM recording")).scalars().all() == ["d.opus"]
    assert retokenizing.refit(engine, "some", tokenizer_path).failed == []


def test_its_sound_is_played(engine: Engine, tokenizer_path: Path, store: Store, tmp_path: Path) -> None:
    store.put(TAPES / "02-tuesday.opus", "radio/two/tape.opus")
    store.put(TAPES / "03-wednesday.opus", "radio/two/torn.opus")
    pipeline.index_archive(engine, ["s3://radio/two"], "two", tokenizer_path, codebook="tokenizer")
    settings = Settings(
        home=tmp_path, database_url=SecretStr(engine.url.render_as_string(hide_password=False)),
        tokenizer=tokenizer_path, threads=1, run_jobs=False, _env_file=None,
    )  # fmt: skip
    with TestClient(create_app(settings)) as client:
        recording, torn = client.get("/v1/recordings", params={"archive": "two"}).json()["recordings"]
        assert (recording["name"], torn["name"]) == ("tape.opus", "torn.opus")
        path = f"/v1/recordings/{recording['id']}"
        whole = client.get(f"{path}/audio")
        assert whole.content == store.system.cat_file("radio/two/tape.opus")
        assert client.get(f"{path}/peaks", params={"start": 1, "end": 2, "points": 10}).status_code == 200
        store.put(TAPES / "04-thursday.opus", "radio/two/torn.opus")
        gone = client.get(f"/v1/recordings/{torn['id']}/audio")
        assert (gone.status_code, gone.json()["error"]["code"]) == (410, "audio_gone")


def test_files_that_are_served_over_http(tmp_path: Path) -> None:
    """No ranges, no sizes in the listing: such a server is enough."""
    pytest.importorskip("aiohttp")
    for tape in sorted(TAPES.glob("*.opus"))[:2]:
        (tmp_path / f"a {tape.name}").write_bytes(tape.read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "--directory", str(tmp_path)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                found = discover([f"http://127.0.0.1:{port}/"]).files
                break
            except (sources.SourceUnavailable, NoAudioFound):
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert [file.name for file in found] == sorted(path.name for path in tmp_path.iterdir())
        assert isinstance(found[0].path, sources.Url)
        with sources.fetched(found[0].path) as (path, size, stamp):
            assert path.read_bytes() == (tmp_path / found[0].name).read_bytes()
            assert (size, stamp) == (found[0].bytes, found[0].mtime_ns)
    finally:
        server.kill()
        server.wait()


def test_what_is_no_source(store: Store) -> None:
    for address, code in (
        ("s3://key:secret@radio/tapes", "source_invalid"),
        ("https://example.org/tapes?signature=secret", "source_invalid"),
        ("zip://tapes::s3://radio/tapes.zip", "source_invalid"),
        ("gopher://radio/tapes", "source_unavailable"),
        ("s3://radio/nothing", "no_audio_found"),
        ("s3://nobody", "no_audio_found"),
        ("http://127.0.0.1:1/", "no_audio_found"),
    ):
        with pytest.raises(Exception, match=r".") as raised:
            discover([address])
        assert getattr(raised.value, "code", None) == code, address
        assert "secret" not in str(raised.value)
    with pytest.raises(audio.AudioMissing):
        sources.look(sources.check("s3://radio/tapes/none.opus"))
