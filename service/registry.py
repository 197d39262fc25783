"""The tokenizers at hand: the one in the settings and those kept in the data folder, found by name or by hash."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from model.tokenizer import EARLIER_WEIGHTS, Device, Tokenizer, TokenizerError

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from service.settings import Settings

FOLDER = "tokenizers"


class Registry:
    """Tokenizers by name or hash; each file is opened once. Threads may share one."""

    def __init__(self, home: Path, default: Path, *, threads: int = 0, device: Device = "cpu") -> None:
        self.folder = home / FOLDER
        self._threads, self._device = threads, device
        self._lock = threading.Lock()
        self._open: dict[str, Tokenizer] = {}
        self._hash_of: dict[tuple[Path, int, int], str] = {}
        self.default = self._load(default)

    def _load(self, path: Path) -> Tokenizer:
        tokenizer = Tokenizer(path, threads=self._threads, device=self._device)
        self._open[tokenizer.info.sha256] = tokenizer
        return tokenizer

    def find(self, sha256: str) -> Tokenizer | None:
        """The tokenizer with that hash: the default, a file of the data folder, or the version before; else None."""
        with self._lock:
            if sha256 not in self._open:
                for path in self._files():
                    if self._hash(path) == sha256:
                        self._load(path)
                        break
            return self._open.get(sha256)

    def has(self, sha256: str) -> bool:
        """Whether `find` would find it; nothing is opened, and nobody who opens one is waited for."""
        for path in self._files() if sha256 not in self._open else ():
            with suppress(OSError):  # it may go at any moment
                if self._hash(path) == sha256:
                    return True
        return sha256 in self._open

    def _files(self) -> list[Path]:
        return [*files(self.folder), *([EARLIER_WEIGHTS] if EARLIER_WEIGHTS.exists() else [])]

    def named(self, name: str) -> Tokenizer:
        """The tokenizer of that name or path, see `resolve`. Raises TokenizerError."""
        path = resolve(self.folder.parent, name, self.default.path)
        with self._lock:
            return self._open.get(self._hash(path)) or self._load(path)

    def _hash(self, path: Path) -> str:
        state = path.stat()
        key = (path, state.st_size, state.st_mtime_ns)
        if key not in self._hash_of:
            self._hash_of[key] = _sha256(path)
        return self._hash_of[key]


def files(folder: Path) -> list[Path]:
    """Tokenizer files kept there, by name."""
    return sorted(folder.glob("*.onnx")) if folder.is_dir() else []


def resolve(home: Path, wanted: str, default: Path) -> Path:
    """The file of a tokenizer that is named: "fast", "pairalign", the name of a file in the data folder, or a path.

    Raises TokenizerError that says what there is.
    """
    if wanted == "fast":
        return default
    kept = {path.stem: path for path in files(home / FOLDER)}
    if wanted in kept:
        return kept[wanted]
    if Path(wanted).is_file():
        return Path(wanted)
    if wanted == "pairalign":
        return pairalign(home)
    raise TokenizerError(f"no tokenizer {wanted!r}: neither a file nor one of {', '.join(['fast', *kept])}")


def pairalign(home: Path) -> Path:
    """The `pairalign` tokenizer in the data folder, put together from what the project has. Raises PartError."""
    from model.pairalign.graph import build
    from model.pairalign.part import read_part

    out = home / FOLDER / "pairalign.onnx"
    build(read_part(), out)
    return out


@contextmanager
def replacing(home: Path, path: Path) -> Iterator[None]:
    """While a tokenizer's file in the data folder may be written anew: what was there stays, under a name with its hash
    beside it, since archives were made with it. Other files are nobody's business here."""  # fmt: skip
    aside: Path | None = None
    if path.parent == home / FOLDER and path.exists():
        before = _sha256(path)
        aside = path.with_name(f"{path.stem}-{before[:12]}.onnx")
        if aside.exists():
            aside = None
        else:
            _copy(path, aside)
    try:
        yield
    finally:
        if aside is not None and path.exists() and _sha256(path) == before:
            aside.unlink()


def _copy(path: Path, to: Path) -> None:
    """An unfinished copy never has that name, and does not stay."""
    partial = to.with_suffix(f".{os.getpid()}.partial")
    try:
        shutil.copyfile(path, partial)
        partial.replace(to)
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_of(home: Path, default: Path, sha256: str | None) -> Path:
    """The file of the tokenizer with that hash where it is at hand, else the default."""
    own = None if sha256 is None else Registry(home, default, threads=1).find(sha256)
    return default if own is None else own.path


def file_for(engine: Engine, archive: str, wanted: str | None, settings: Settings) -> Path:
    """The file that is asked for, kept where searches find it; else the archive's own; else the one in the settings.

    Raises TokenizerError, DatabaseError.
    """
    from indexer import database, store

    home, default = settings.home_path, settings.tokenizer
    if wanted is not None:
        return keep(home, resolve(home, wanted, default), default)
    with database.connect(engine) as connection:
        try:
            made_with = store.get_archive(connection, archive).tokenizer_sha256
        except store.ArchiveNotFound:
            made_with = None
    return file_of(home, default, made_with)


def keep(home: Path, path: Path, default: Path) -> Path:
    """A copy of the file in the data folder, so that searches find it; what is there already is not copied.

    The copy is named after the tokenizer and its hash; an unfinished one never has that name.
    """
    folder = home / FOLDER
    if path == default or path.parent == folder:
        return path
    info = Tokenizer(path, threads=1).info
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in info.name)
    to = folder / f"{name}-{info.sha256[:12]}.onnx"
    if not to.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _copy(path, to)
    return to
