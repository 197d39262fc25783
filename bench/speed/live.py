"""Seconds from a word's end, sent by a station in real time, to the first search that finds it; and what updates cost.

    python -m bench.speed.live [--minutes 5] [--every 1.0] [--recordings 50]

A process listens, this one searches ten times a second. The words are those of the demo's list that are said in the
English station; each is searched by its own sound in another recording. Then a listener adds to an archive of so many
recordings: what a search has to read anew after each time that the growing one was stored.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import service
from bench.speed.radio import FORMATS, Station, encoded, on_air
from indexer import database, store
from model import audio
from model.audio import SAMPLE_RATE, Samples
from service.clips import read_clip
from service.deps import Backend
from service.errors import ArchiveNotReady
from service.search import localindex
from service.search.answer import Request
from service.search.localindex import LocalIndex
from service.settings import Settings

DEMO = Path(service.__file__).parent / "demo"
LONGEST_S = 30.0  # until a word counts as not found


@dataclass(frozen=True)
class Word:
    """A term with the second at which it has been said, and a clip of it from another recording."""

    term: str
    start_s: float
    end_s: float
    example: tuple[Path, float, float]


def programme(seconds: float) -> tuple[Samples, list[Word]]:
    """Recordings of the demo, one after another, and the words in them."""
    with (DEMO / "truth.tsv").open(encoding="utf-8") as file:
        truth = list(csv.DictReader(file, delimiter="\t"))
    parts: list[Samples] = []
    words: list[Word] = []
    at_s = 0.0
    for path in sorted((DEMO / "archive" / "skerry-radio").iterdir()):
        samples = audio.read(path)
        if at_s + len(samples) / SAMPLE_RATE > seconds:
            break
        name = f"skerry-radio/{path.name}"
        for said in (row for row in truth if row["recording"] == name):
            other = next((r for r in truth if r["term"] == said["term"] and r["recording"].startswith("field")), None)
            if other is not None:
                example = (DEMO / "archive" / other["recording"], float(other["start"]), float(other["end"]))
                words.append(Word(said["term"], at_s + float(said["start"]), at_s + float(said["end"]), example))
        parts.append(samples)
        at_s += len(samples) / SAMPLE_RATE
    return np.concatenate(parts), words


def latencies(home: Path, seconds: float, every_s: float) -> list[float | None]:
    """Seconds of each word until it was found; None for one that was not within `LONGEST_S`."""
    samples, words = programme(seconds)
    clips = [read_clip(path, 60.0, start_s, end_s) for path, start_s, end_s in (word.example for word in words)]
    environment = {**os.environ, "SAYAGAIN_HOME": str(home)}
    environment.pop("SAYAGAIN_DATABASE_URL", None)
    backend = Backend.open(Settings(home=home, database_url=None))
    found: list[float | None] = [None] * len(words)
    with on_air(Station(encoded(samples, "mp3"), FORMATS["mp3"][3])) as air:
        listen = [sys.executable, "-m", "service", "listen", air.url, "--archive", "air", "--every", str(every_s)]
        listener = subprocess.Popen(listen, env=environment)
        waiting = list(range(len(words)))
        while waiting:
            time.sleep(0.1)
            due = [number for number in waiting if air.sent_s >= words[number].end_s]
            for number in due:
                word = words[number]
                try:
                    hits = backend.search.search(Request([clips[number]], "air", 50)).hits
                except (store.ArchiveNotFound, ArchiveNotReady):
                    hits = []
                waited_s = time.monotonic() - air.said_at(word.end_s)
                if any(hit.start_s < word.end_s - 0.1 and hit.end_s > word.start_s + 0.1 for hit in hits):
                    found[number] = waited_s
                if found[number] is not None or waited_s > LONGEST_S:
                    waiting.remove(number)
        listener.send_signal(signal.SIGTERM)
        listener.wait()
    backend.close()
    return found


def update_ms(home: Path, recordings: int) -> list[float]:
    """What the local index takes to come up to date after each time that one of so many recordings has grown."""
    engine = database.open_engine(home, None)
    environment = {**os.environ, "SAYAGAIN_HOME": str(home)}
    environment.pop("SAYAGAIN_DATABASE_URL", None)
    folder = home / "many"
    folder.mkdir()
    sources = sorted((DEMO / "archive").rglob("*.opus"))
    for number in range(recordings - 1):
        (folder / f"{number}.opus").symlink_to(sources[number % len(sources)])
    index = [sys.executable, "-m", "service", "index", str(folder), "--archive", "many"]
    subprocess.run(index, env=environment, check=True, capture_output=True)
    samples, _ = programme(120.0)
    local = LocalIndex(home / "bench-index")
    taken: list[float] = []
    with on_air(Station(encoded(samples, "mp3"), FORMATS["mp3"][3], speed=4.0)) as air:
        listener = subprocess.Popen(
            [sys.executable, "-m", "service", "listen", air.url, "--archive", "many", "--every", "0.5"], env=environment
        )
        revision = -1
        while air.sent_s < len(samples) / SAMPLE_RATE - 1.0:
            time.sleep(0.05)
            with database.connect(engine) as connection:
                archive = store.get_archive(connection, "many")
                if archive.revision != revision:
                    began = time.perf_counter()
                    localindex.prepare(local, connection, "many")
                    taken.append(1e3 * (time.perf_counter() - began))
                    revision = archive.revision
        listener.send_signal(signal.SIGTERM)
        listener.wait()
    engine.dispose()
    return taken[1:]  # the first reads all


def main() -> None:
    """Listen, search, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--every", type=float, default=1.0)
    parser.add_argument("--recordings", type=int, default=50)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        waited = latencies(Path(home), 60.0 * arguments.minutes, arguments.every)
        taken = update_ms(Path(home), arguments.recordings)
    there = [seconds for seconds in waited if seconds is not None]
    print(json.dumps({
        "words": len(waited), "not_found": len(waited) - len(there),
        "p50_s": round(float(np.percentile(there, 50)), 2), "p95_s": round(float(np.percentile(there, 95)), 2),
        "most_s": round(max(there), 2), "recordings": arguments.recordings, "updates": len(taken),
        "update_p50_ms": round(float(np.percentile(taken, 50)), 1),
        "update_p95_ms": round(float(np.percentile(taken, 95)), 1),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
