"""Searches while recordings come, go and are replaced: no hit is ever of half a recording, or of one that is gone."""

from __future__ import annotations

import random
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from indexer import store
from indexer.recordings import delete_recording, list_recordings, recording_ids
from service.clips import Clip, read_clip
from service.deps import Backend
from service.search.answer import Answer, Request
from service.settings import Settings
from tests.service.conftest import DEMO, run_cli

FILES = 24
WHOLE_S = 19.0  # a recording this short is one segment
Place = tuple[float, float, float]


def places_of(answer: Answer) -> dict[str, set[Place]]:
    out: dict[str, set[Place]] = {}
    for hit in answer.hits:
        if hit.recording.duration_s < WHOLE_S:
            place = (round(hit.start_s, 2), round(hit.end_s, 2), round(hit.dtw_similarity, 4))
            out.setdefault(hit.recording.name, set()).add(place)
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    chosen = sorted((DEMO / "archive").rglob("*.opus"))[:FILES]
    (tmp_path / "audio").mkdir()
    for path in chosen:
        shutil.copy(path, tmp_path / "audio" / path.name.replace("0", path.parent.name[0], 1))
    return tmp_path / "audio"


def test_searches_while_the_archive_changes(
    settings: Settings, demo_home: Path, tokenizer_path: Path, folder: Path, query_path: Path
) -> None:
    clip: Clip = read_clip(query_path, 30.0)

    def index(archive: str) -> subprocess.CompletedProcess[str]:
        return run_cli(
            demo_home,
            tokenizer_path,
            "index",
            folder,
            "--archive",
            archive,
            "--codebook",
            "tokenizer",
            "--workers",
            "1",
        )

    def ask(backend: Backend, archive: str) -> Answer:
        return backend.search.search(Request([clip], archive, 1_000, exact=True))

    assert index("calm").returncode == 0
    backend, other = Backend.open(settings), Backend.open(settings)  # two processes of a service would be two of these
    expected = places_of(ask(backend, "calm"))
    assert len(expected) > FILES / 3
    assert index("busy").returncode == 0
    stop = threading.Event()
    wrong: list[str] = []
    asked = {"searches": 0, "deleted": 0}

    def watch(one: Backend) -> None:
        while not stop.is_set():
            try:
                found = places_of(ask(one, "busy"))
            except Exception as error:
                if getattr(error, "code", "") != "archive_not_ready":  # all may be deleted at a moment
                    wrong.append(repr(error))
                continue
            asked["searches"] += 1
            for name, places in found.items():
                if not places <= expected[name]:
                    wrong.append(f"{name}: {sorted(places - expected[name])} are not among {sorted(expected[name])}")

    def gone_means_gone() -> None:
        rng = random.Random(0)
        while not stop.is_set():
            with other.connect() as connection:
                archive = store.get_archive(connection, "busy")
                names = [r.name for r in list_recordings(connection, archive.id, 100)]
            if len(names) < 4:
                continue
            victim = rng.choice(names)
            with other.database.begin() as connection:
                delete_recording(connection, archive.id, victim)
            asked["deleted"] += 1
            if victim in places_of(ask(other, "busy")):
                with other.connect() as connection:  # unless the indexer has brought it back meanwhile
                    if not recording_ids(connection, archive.id, [victim]):
                        wrong.append(f"{victim} was found after it had been deleted")

    work: list[tuple[Callable[..., None], tuple[Backend, ...]]] = [
        (watch, (backend,)), (watch, (other,)), (gone_means_gone, ()),
    ]  # fmt: skip
    threads = [threading.Thread(target=target, args=arguments) for target, arguments in work]
    for thread in threads:
        thread.start()
    try:
        codes = [index("busy").returncode for _ in range(3)]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert wrong == []
    assert codes == [0, 0, 0]
    assert asked["searches"] > 10
    assert asked["deleted"] > 3
    assert index("busy").returncode == 0
    assert places_of(ask(backend, "busy")) == places_of(ask(other, "busy")) == expected
    with backend.database.begin() as connection:
        for name in ("calm", "busy"):
            store.delete_archive(connection, name)
    backend.close()
    other.close()
