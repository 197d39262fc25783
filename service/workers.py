"""The processes that answer together: which of them live, and what the dead have counted.

prometheus_client keeps a process's counters in files of a folder that all share. Those of a dead process still count,
since a counter never falls; they are added up in one set of files, so that there are not ever more of them.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

THE_DEAD = "dead"  # in the place of a pid


class Workers:
    """Processes that share a folder. Each holds a lock there that the kernel drops when it dies, in whatever way."""

    def __init__(self, folder: Path) -> None:
        """Join: this process is one of them from now on."""
        self._folder = folder
        self._seat = os.open(folder / f"{os.getpid()}.worker", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._seat, fcntl.LOCK_SH)

    @contextmanager
    def living(self) -> Iterator[list[int]]:
        """The pids of those that live; until this is left nobody changes what the dead have counted."""
        handle = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            pids = {path: int(path.stem) for path in self._folder.glob("*.worker")}
            for path in [path for path in pids if not self._lives(path)]:
                self._bury(path, pids.pop(path))
            yield sorted(pids.values())
        finally:
            os.close(handle)

    def _lives(self, path: Path) -> bool:
        if int(path.stem) == os.getpid():
            return True
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def _bury(self, seat: Path, pid: int) -> None:
        """Add what a dead process has counted to what all the dead have counted."""
        for path in self._folder.glob(f"*_{pid}.db"):
            total = MmapedDict(str(path.with_name(path.name.replace(f"_{pid}.db", f"_{THE_DEAD}.db"))))
            try:
                for key, value, _, _ in MmapedDict.read_all_values_from_file(str(path)):
                    total.write_value(key, total.read_value(key)[0] + value, 0.0)
            finally:
                total.close()
            path.unlink()
        seat.unlink()
