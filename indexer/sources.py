"""Recordings that lie elsewhere: URLs that fsspec reads (s3://, https://, sftp:// and others), listed and fetched.

A URL is kept as it was given, and never with a password: keys come from where fsspec and its backends look for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from model import audio

HEADER_BLOCK = 1 << 16  # bytes read at a time where only the beginning of a file is wanted
# What a server says of a file that changes when the file does; the first that is there counts.
CHANGES = (
    "ETag", "etag", "md5Hash", "Content-MD5", "checksum", "LastModified", "Last-Modified", "last_modified", "updated",
    "mtime", "modified", "created",
)  # fmt: skip
_URL = re.compile(r"[a-z][a-z0-9+.\-]*://", re.IGNORECASE)


class SourceUnavailable(Exception):
    """A URL that cannot be listed: unknown, refused, or nobody answers."""

    code = "source_unavailable"


class SourceInvalid(Exception):
    """A URL that is not taken as a source."""

    code = "source_invalid"


@dataclass(frozen=True)
class Url:
    """Where a recording lies that is no file of this machine."""

    address: str

    def __str__(self) -> str:
        return self.address

    def __fspath__(self) -> str:
        """For the database; no file of this machine has such a path."""
        return self.address

    @property
    def name(self) -> str:
        """Its last part, in the clear."""
        return unquote(self.address.rpartition("/")[2])

    # As a path does it, for those who have either:

    def open(self, mode: str = "rb") -> Any:
        """A binary file of what is there. Raises OSError."""
        try:
            system, path = _system(self)
            return system.open(path, mode)
        except OSError:
            raise
        except Exception as error:
            raise OSError(_line(error)) from error

    def lstat(self) -> None:
        """Raises FileNotFoundError where nothing is there, OSError where that cannot be told."""
        try:
            system, path = _system(self)
            system.invalidate_cache()
            system.info(path)
        except OSError:
            raise
        except Exception as error:
            raise OSError(_line(error)) from error

    def is_relative_to(self, other: object) -> bool:
        """Whether it lies below another URL."""
        return isinstance(other, Url) and f"{self.address}/".startswith(f"{other.address}/")


Place = Path | Url


@dataclass(frozen=True)
class Listed:
    """A file of a URL: its path below that, and what it is like."""

    relative: str
    url: Url
    bytes: int
    stamp: int


def is_url(address: str) -> bool:
    """Whether that is a URL rather than a path."""
    return _URL.match(address) is not None


def place(address: str) -> Place:
    """A path or a URL, as the database has it."""
    return Url(address) if is_url(address) else Path(address)


def check(address: str) -> Url:
    """The URL of a source. Raises SourceInvalid."""
    try:
        parts = urlsplit(address)
        secret = parts.password is not None or "?" in address
    except ValueError as error:
        raise SourceInvalid(f"not a URL: {error}") from error
    if secret:
        raise SourceInvalid(
            "passwords and signatures have no place in a URL that is stored: "
            "keys belong in the environment or in fsspec's configuration"
        )
    if "::" in address:
        raise SourceInvalid(f"{address}: URLs within URLs are not served")
    return Url(address.rstrip("/"))


def walk(url: Url, wanted: Callable[[str], bool]) -> list[Listed]:
    """The files below a URL whose paths are `wanted`, hidden ones left out; or the file that it is.

    Raises SourceUnavailable; FileNotFoundError where there is nothing.
    """
    system, root = _system(url)
    try:
        about = system.info(root)
        if about.get("type") == "file" and wanted(url.name):
            return [Listed(url.name, url, _size(about), _stamp(about))]
        found = system.find(root, detail=True)
        out = []
        for path, known in sorted(found.items()):
            below = _below(str(path), str(root))
            relative = unquote(below) if url.address.startswith("http") else below
            hidden = any(part.startswith(".") for part in relative.split("/"))
            if relative and not hidden and wanted(relative):
                told = known if _size(known) and _stamp(known) else system.info(path)
                out.append(Listed(relative, Url(f"{url.address}/{below}"), _size(told), _stamp(told)))
        return out
    except FileNotFoundError:
        raise
    except Exception as error:
        raise SourceUnavailable(f"{url}: {_line(error)}") from error


def look(url: Url) -> tuple[int, int]:
    """Bytes of a file as it is now, and a stamp that changes with its content. Raises AudioMissing."""
    try:
        system, path = _system(url)
        system.invalidate_cache()
        about = system.info(path)
    except Exception as error:
        raise audio.AudioMissing(f"cannot read the file: {_line(error)}") from error
    return _size(about), _stamp(about)


def claimed_s(url: Url) -> float | None:
    """Seconds as the container's header claims them, or None where it says nothing or cannot be read by parts."""
    with contextlib.suppress(Exception):
        system, path = _system(url)
        with system.open(path, "rb", block_size=HEADER_BLOCK) as file:
            return audio.duration_s(file)
    return None


@contextlib.contextmanager
def fetched(url: Url, fed: Callable[[], None] = lambda: None) -> Iterator[tuple[Path, int, int]]:
    """A file of this machine with the content of a URL, as long as it is needed; its bytes and stamp at the URL.

    `fed` is told that something has come. Raises AudioMissing.
    """
    size, stamp = look(url)
    with tempfile.TemporaryDirectory(prefix="sayagain-") as folder:
        path = Path(folder) / ("sound" + Path(url.name).suffix)
        download(url, path, size, fed)
        yield path, size, stamp


def download(url: Url, path: Path, size: int, fed: Callable[[], None] = lambda: None) -> None:
    """Write the content of a URL, which has so many bytes, to a file. Raises AudioMissing."""
    if size > (free := shutil.disk_usage(path.parent).free):
        raise audio.AudioMissing(f"cannot read the file: it has {size:,} bytes, and {free:,} are free for it")
    try:
        system, there = _system(url)
        system.get_file(there, str(path), callback=_fed(fed))
    except Exception as error:
        raise audio.AudioMissing(f"cannot read the file: {_line(error)}") from error


def _system(url: Url) -> tuple[Any, str]:
    """What reads a URL, and its path for that. Raises SourceUnavailable."""
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise SourceUnavailable(f"{url}: fsspec is needed: pip install 'sayagain[cluster]'") from error
    try:
        system, path = url_to_fs(url.address)
    except (ImportError, ValueError) as error:
        raise SourceUnavailable(f"{url}: {_line(error)}") from error
    return system, path


def _fed(fed: Callable[[], None]) -> Any:
    from fsspec.callbacks import Callback

    class Feeding(Callback):  # type: ignore[misc]
        def call(self, *_: object, **__: object) -> None:
            fed()

    return Feeding()


def _below(path: str, root: str) -> str:
    """A path without the root that it begins with, whose protocol one of them may lack."""
    bare = root.rstrip("/")
    return path[len(bare) :].lstrip("/") if path.startswith(bare) else path.rpartition(bare.lstrip("/"))[2].lstrip("/")


def _size(about: Mapping[str, Any]) -> int:
    return int(about.get("size") or about.get("Size") or 0)


def _stamp(about: Mapping[str, Any]) -> int:
    """63 bits of what the server says that changes with a file; 0 where it says nothing."""
    for name in CHANGES:
        if about.get(name):
            return int.from_bytes(hashlib.sha256(str(about[name]).encode()).digest()[:8]) >> 1
    return 0


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
