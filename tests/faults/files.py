"""Files that change, that hang, that take all memory, or that kill whoever reads them."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from tests.faults.bed import Bed, own_audio
from tests.faults.contents import compare, contents
from tests.faults.errors import Attempts, CannotInject, Difference
from tests.faults.runs import Order, Run
from tests.indexer import sounds

CHANGED = {"file_changed", "audio_unreadable", "audio_undecodable", "audio_empty", "audio_too_short"}
TRIES = 4  # of one file in one run: two deaths when it is looked at, two when it is indexed
FEW = 3  # files, where workers die at each
POISON = "poison.wav"
POISON_BYTES = 400_000_000  # nearly all of them a hole: it takes a moment to read, so that its reader is found
# Takes write leases, as soon as nobody has the files open, and is deaf to who asks for them back.
LEASES = """
import errno, fcntl, os, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
files = [os.open(path, os.O_RDWR) for path in sys.argv[1:]]
for file in files:
    while True:
        try:
            fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            break
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EBUSY):
                sys.exit(1)
            time.sleep(0.001)
print("held", flush=True)
sys.stdin.read()
"""


def changing_files(bed: Bed, rng: random.Random, times: int) -> int:
    """Files are written to, cut short, replaced and removed while they are read; then they are what they were."""
    with own_audio(bed) as audio:
        order = bed.order("changing", audio=audio)
        _ = bed.usual_s
        hit, attempts = 0, Attempts()
        while attempts.more(hit < times):
            with Run(order) as run:
                while hit < times and run.going(rng.uniform(0.0, 0.4 * bed.usual_s)):
                    _change(rng, rng.choice(sorted(audio.iterdir())), rng.choice(sorted(bed.audio.iterdir())))
                    hit += 1
                outcome = run.outcome()
            if outcome.report is None or set(outcome.failed.values()) - CHANGED:
                raise Difference(f"with files that change a run ends with {outcome}")
            if rng.random() < 0.5 or hit >= times:
                for path in bed.audio.iterdir():
                    if not (audio / path.name).exists() or (audio / path.name).read_bytes() != path.read_bytes():
                        shutil.copyfile(path, audio / path.name)
        bed.settle(order)
    return hit


def _change(rng: random.Random, path: Path, other: Path) -> None:
    match rng.randrange(6):
        case 0:  # in place, some bytes in the middle
            with path.open("r+b") as file:
                file.seek(rng.randrange(max(1, path.stat().st_size)))
                file.write(rng.randbytes(100))
        case 1:
            os.truncate(path, rng.randrange(path.stat().st_size + 1))
        case 2:  # by another sound, at once
            fresh = path.with_name(".fresh")
            shutil.copyfile(other, fresh)
            fresh.replace(path)
        case 3:  # as a recorder does it
            with path.open("ab") as file:
                file.write(rng.randbytes(2_000))
        case 4:  # by a pipe into which nobody writes
            path.unlink()
            os.mkfifo(path)
            time.sleep(rng.uniform(0.0, 0.3))
            path.unlink()
            shutil.copyfile(other, path)
        case _:
            path.unlink()
            time.sleep(0.01)
            shutil.copyfile(other, path)


def hanging_files(bed: Bed, rng: random.Random, times: int) -> int:
    """Files that do not answer when they are opened, as on a mount whose server is gone.

    Somebody else holds a lease on them and does not give it back: the kernel lets who opens one wait for 45 s.
    """
    hit, attempts = 0, Attempts()
    while attempts.more(hit < times):
        with own_audio(bed) as audio:
            order = bed.order("hanging", audio=audio, limits={"stall_s": 1.5, "start_s": 60.0})
            _ = bed.usual_s
            chosen = rng.sample(sorted(audio.iterdir()), min(2, times - hit))
            with Run(order) as run:
                run.until(lambda run=run: bool(run.stages))  # type: ignore[misc]
                run.going(rng.uniform(0.0, 0.3 * bed.usual_s))
                with _leased(chosen):
                    outcome = run.outcome()
            if outcome.report is None or set(outcome.failed.values()) - {"decoder_stalled"}:
                raise Difference(f"with files that hang a run ends with {outcome}")
            hit += len(outcome.failed)
            bed.settle(Order(**{**vars(order), "limits": {}}))
    return hit


@contextlib.contextmanager
def _leased(paths: list[Path]) -> Iterator[None]:
    process = subprocess.Popen(
        [sys.executable, "-c", LEASES, *map(str, paths)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "held\n":
            raise CannotInject("the file system has no leases")
        yield
    finally:
        process.kill()
        process.communicate()


def hungry_files(bed: Bed, rng: random.Random, times: int) -> int:
    """Decoders that want more memory than there is: the limit is anything, down to next to nothing."""
    with own_audio(bed, FEW) as audio:
        return _hungry_files(bed, rng, times, audio)


def _hungry_files(bed: Bed, rng: random.Random, times: int, audio: Path) -> int:
    hit, attempts = 0, Attempts()
    while attempts.more(hit < times):
        order = bed.order("hungry", audio=audio, limits={"memory_mb": 10.0 ** rng.uniform(-0.5, 1.5)})
        with Run(order) as run:
            outcome = run.outcome()
        if outcome.report is None and outcome.code != "workers_failed":
            raise Difference(f"without memory a run ends with {outcome.code}: {outcome.message}")
        if set(outcome.failed.values()) - {"memory_exceeded", "worker_died", "audio_undecodable"}:
            raise Difference(f"without memory files fail with {(outcome.report or {}).get('failed')}")
        if outcome.report is None or outcome.failed:
            hit += 1
            bed.settle(Order(**{**vars(order), "limits": {}}))
    return hit


def poisoned_file(bed: Bed, rng: random.Random, times: int) -> int:
    """Whoever opens a certain file dies: it is tried a few times, and listed; all others are there."""
    hit, attempts = 0, Attempts()
    while attempts.more(hit < times):
        with own_audio(bed) as audio:
            sounds.write(audio / POISON, sounds.babble(10.0))
            os.truncate(audio / POISON, POISON_BYTES)
            order = bed.order("poison", audio=audio, workers=rng.choice((1, 2)))
            deaths = 0
            over = threading.Event()
            with Run(order) as run:

                def murder(run: Run = run, over: threading.Event = over) -> None:
                    nonlocal deaths
                    while not over.is_set():
                        for worker in run.workers():
                            deaths += _killed_at(worker, audio / POISON, rng.uniform(0.0, 0.005))
                        time.sleep(0.001)

                thread = threading.Thread(target=murder)
                thread.start()
                try:
                    outcome = run.outcome()
                finally:
                    over.set()
                    thread.join()
            if outcome.failed not in ({POISON: "worker_died"}, {}) or deaths > TRIES:
                raise Difference(f"a file at which {deaths} workers die, and the run ends with {outcome}")
            if not outcome.failed:
                raise Difference(f"nobody was found to read the poisoned file, or not often enough: {deaths} deaths")
            with bed.engine.connect() as connection:
                found = contents(connection, order.archive)
            if found.recordings != bed.expected().recordings:
                compare(found, bed.expected())
            hit += deaths
            (audio / POISON).unlink()
            bed.settle(order)
    return hit


def _killed_at(worker: psutil.Process, path: Path, after_s: float) -> bool:
    """Kill a worker while it has a file open, and not when it is at the next one already."""
    if not _has_open(worker.pid, path):
        return False
    time.sleep(after_s)
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.suspend()
        if _has_open(worker.pid, path):
            worker.kill()
            worker.wait(20)
            return True
        worker.resume()
    return False


def _has_open(pid: int, path: Path) -> bool:
    try:
        return any(os.path.realpath(f"/proc/{pid}/fd/{name}") == str(path) for name in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return False
