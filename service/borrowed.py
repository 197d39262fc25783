"""Sound of recordings that lie elsewhere: fetched when it is first asked for, kept a while among temporary files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from indexer import sources
from indexer.sources import Url
from model.audio import AudioMissing

KEPT_BYTES = 2_000_000_000  # in all; what was asked for longest ago goes first


def borrow(url: Url, size: int, stamp: int) -> Path:
    """A file of this machine with what the URL had when it was indexed. Raises AudioMissing where it has it no more."""
    folder = _folder()
    told = hashlib.sha256(f"{url} {size} {stamp}".encode()).hexdigest()[:32]
    path = folder / (told + Path(url.name).suffix)
    with contextlib.suppress(OSError):
        os.utime(path)
        return path
    if sources.look(url) != (size, stamp):
        raise AudioMissing("it has changed since it was indexed")
    try:
        handle, temporary = tempfile.mkstemp(dir=folder)
        os.close(handle)
        sources.download(url, Path(temporary), size)
        os.replace(temporary, path)
    except OSError as error:
        raise AudioMissing(f"it cannot be fetched: {error.strerror or error}") from error
    _clear(folder, path)
    return path


def _folder() -> Path:
    """Private to this user. Raises AudioMissing where something else is in its place."""
    folder = Path(tempfile.gettempdir()) / f"sayagain-sound-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise AudioMissing(f"{folder} is in the way: it is not a private folder")
    return folder


def _clear(folder: Path, but: Path) -> None:
    held = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):
            about = path.stat()
            held.append((about.st_mtime, about.st_size, path))
    total = sum(size for _, size, _ in held)
    for _, size, path in sorted(held):
        if total <= KEPT_BYTES:
            return
        if path != but:
            with contextlib.suppress(OSError):
                path.unlink()
            total -= size
