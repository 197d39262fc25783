"""Where the time of indexing goes: each stage by itself, then the whole command with one worker and with two.

    python -m bench.speed.indexing [--audio FOLDER] [--hours 1] [--minutes 5] [--workers 1 2] [--json]
    python -m bench.speed.indexing --long-hours 24

The recordings are those of FOLDER (the demo's without it), joined to so many minutes (0: as they are) and written anew
in turn as wav, flac, mp3, ogg and m4a, at rates and in channels as people have them, until there are so many hours.
Stages run one after another on one thread over the same sound; the commands that follow share the work among processes,
where stages overlap. With `--long-hours` one recording of that length is indexed, for the memory that this takes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from sqlalchemy import text

from indexer import database, embedded, intake
from indexer.discover import discover, hash_file
from indexer.segment import Segment, Segmenter
from model import audio
from model.audio import SAMPLE_RATE
from model.codebook import codebook_size, fit_codebook
from model.tokenizer import DEFAULT_WEIGHTS, Tokenizer
from tests.indexer.sounds import write

DEMO = Path(__file__).parents[2] / "service" / "demo" / "archive"
KINDS = ((".wav", 44_100, 2), (".flac", 16_000, 1), (".mp3", 44_100, 2), (".ogg", 48_000, 1), (".m4a", 44_100, 2))
PROGRESS_S = 0.2  # between looks at the memory


@dataclass
class Clock:
    """Seconds by stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def of(self, stage: str) -> Iterator[None]:
        """Count what is done inside for a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - began


def mixed(source: Path, hours: float, minutes: float, out: Path) -> float:
    """Write recordings of `source` to `out` in turn in all kinds, until there are so many hours: seconds written."""
    kinds, number, left_s = cycle(KINDS), 0, hours * 3600.0
    parts: list[np.ndarray] = []
    for file in cycle(discover([source]).files):
        parts.append(audio.read(Path(file.path)))
        joined_s = sum(map(len, parts)) / SAMPLE_RATE
        if joined_s >= min(minutes * 60.0, left_s):
            suffix, rate, channels = next(kinds)
            write(out / f"{number:05}{suffix}", np.concatenate(parts), rate=rate, channels=channels)
            number, left_s, parts = number + 1, left_s - joined_s, []
            if left_s <= 0.0:
                break
    return hours * 3600.0 - left_s


def stages(folder: Path, tokenizer_path: Path) -> dict[str, float]:
    """Seconds of each stage over all files, on one thread."""
    clock = Clock()
    tokenizer = Tokenizer(tokenizer_path, threads=1)
    info = tokenizer.info
    tokenizer.embed(np.zeros(SAMPLE_RATE, np.float32))
    heard: list[tuple[Path, list[Segment], list[np.ndarray]]] = []
    for file in discover([folder]).files:
        with clock.of("hash"):
            hash_file(file.path)
        with clock.of("decode"):
            chunks = list(audio.read_chunks(file.path))
        with clock.of("cut"):
            cutter = Segmenter(info.left_context_samples, info.right_context_samples, tokenizer.frame_samples)
            segments = list(cutter.segments(chunks))
        with clock.of("embed"):
            embedded = [tokenizer.embed(one.samples, one.before, one.after) for one in segments]
        heard.append((Path(file.path), segments, embedded))
    everything = np.concatenate([rows for _, _, embedded in heard for rows in embedded])
    with clock.of("fit the codebook"):
        codebook = fit_codebook(everything[:90_000], codebook_size(len(everything)), parts=0)
    tokenizer.collapse(heard[0][2][0], codebook)  # compiled once
    strings = []
    for path, segments, embedded in heard:
        with clock.of("tokens"):
            new = []
            for segment, rows in zip(segments, embedded, strict=True):
                start_s = segment.start_frame * info.frame_seconds
                string = tokenizer.collapse(rows, codebook, start_s)
                new.append(intake.NewSegment(start_s, string.frames, string.to_bytes()))
        strings.append((path, new))
    with tempfile.TemporaryDirectory(prefix="sayagain-bench-") as home, stored(Path(home)) as connection:
        archive = intake.create_archive(connection, "bench", info, codebook.dim)
        codebook_id = intake.save_codebook(connection, archive.id, codebook, "archive", {})
        ids = intake.reserve_ids(connection, len(strings))
        connection.commit()
        for id_, (path, new) in zip(ids, strings, strict=True):
            with clock.of("store"):
                about = intake.NewRecording(id_, path.name, os.fsencode(path), 1, 1, "00" * 32, 1.0, codebook_id)
                intake.put_recording(connection, archive.id, about, new)
                connection.commit()
        assert connection.execute(text("SELECT count(*) FROM segment")).scalar_one() == sum(len(n) for _, n in strings)
    return clock.seconds


@contextmanager
def stored(home: Path) -> Iterator[Any]:
    """A database of its own."""
    engine = database.open_engine(home, None)
    try:
        database.migrate(engine)
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()
        embedded.leave(home)


def command(folder: Path, *words: str) -> dict[str, Any]:
    """`sayagain index` into a data folder of its own: its report, and the most memory that its processes had."""
    with tempfile.TemporaryDirectory(prefix="sayagain-bench-") as home:
        environment = {**os.environ, "SAYAGAIN_HOME": home}
        run = [sys.executable, "-m", "service", "index", str(folder), "--json", *words]
        process = subprocess.Popen(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        most: list[float] = [0.0, 0.0]
        watcher = threading.Thread(target=_watch, args=(psutil.Process(process.pid), most))
        watcher.start()
        out, _ = process.communicate()
        watcher.join()
        if process.returncode:
            raise SystemExit(f"sayagain index ended with {process.returncode}")
        report: dict[str, Any] = json.loads(out)
        return report | {"memory_mb": round(most[0]), "largest_process_mb": round(most[1])}


def _watch(process: psutil.Process, most: list[float]) -> None:
    """The most that the process and its workers (PostgreSQL is none of them) hold of their own, and the largest."""
    try:
        while process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            everybody = [process, *process.children(recursive=True)]
            each = [one.memory_full_info().uss / 1e6 for one in everybody if one.name() != "postgres"]
            most[0], most[1] = max(most[0], sum(each)), max(most[1], *each)
            time.sleep(PROGRESS_S)
    except psutil.NoSuchProcess:
        pass


def long_recording(source: Path, hours: float, path: Path) -> None:
    """One recording of 16-bit samples, end to end what `source` has, again and again."""
    waves = [audio.read(file.path) for file in discover([source]).files]
    whole = (np.concatenate(waves) * 32_767).astype("<i2").tobytes()
    left = int(hours * 3600 * SAMPLE_RATE) * 2
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(SAMPLE_RATE)
        while left > 0:
            out.writeframesraw(whole[:left])
            left -= len(whole)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", type=Path, default=DEMO)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tokenizer", type=Path, default=DEFAULT_WEIGHTS)
    parser.add_argument("--long-hours", type=float)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sayagain-bench-") as work:
        folder = Path(work)
        figures: dict[str, Any] = {"cores": os.cpu_count(), "machine": platform.machine()}
        if given.long_hours:
            long_recording(given.audio, given.long_hours, folder / "long.wav")
            report = command(folder, "--workers", "1")
            figures |= {"hours": given.long_hours, "memory_mb": report["memory_mb"]}
            figures |= {"largest_process_mb": report["largest_process_mb"], "times": report["times_real_time"]}
            print(json.dumps(figures) if given.json else figures)
            return
        seconds = mixed(given.audio, given.hours, given.minutes, folder)
        spent = stages(folder, given.tokenizer)
        runs = {}
        for workers in given.workers:
            for kind in ("archive", "tokenizer"):
                runs[f"{workers} workers, codebook of the {kind}"] = command(
                    folder, "--workers", str(workers), "--codebook", kind, "--tokenizer", str(given.tokenizer)
                )
    if given.json:
        print(json.dumps(figures | {"hours": seconds / 3600, "stages_s": spent, "runs": runs}))
        return
    print(f"{seconds / 3600:.2f} h in {len(KINDS)} formats, {os.cpu_count()} cores, {platform.machine()}\n")
    print("| stage, one thread | times real time | share |\n|---|---|---|")
    for stage, one in spent.items():
        print(f"| {stage} | {seconds / one:,.0f} | {one / sum(spent.values()):.1%} |")
    print(f"| all of it | {seconds / sum(spent.values()):,.0f} | 100% |\n")
    print("| command | times real time | memory, all processes | largest |\n|---|---|---|---|")
    for name, report in runs.items():
        print(
            f"| {name} | {report['times_real_time']:.0f} | {report['memory_mb']} MB "
            f"| {report['largest_process_mb']} MB |"
        )


if __name__ == "__main__":
    main()
