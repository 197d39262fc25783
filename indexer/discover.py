"""From folders and files that were named to the recordings in them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from indexer import sources
from indexer.sources import Place, Url
from model.audio import AudioError

# What counts as audio when a folder is walked; a file that is named directly is always tried.
AUDIO_SUFFIXES = {
    ".3gp", ".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".avi", ".caf", ".flac", ".flv", ".gsm",
    ".m4a", ".m4b", ".m4v", ".mka", ".mkv", ".mov", ".mp2", ".mp3", ".mp4", ".mpeg", ".mpg", ".mpga", ".oga", ".ogg",
    ".ogv", ".opus", ".ra", ".snd", ".sph", ".spx", ".ts", ".tta", ".voc", ".w64", ".wav", ".wave", ".webm", ".weba",
    ".wma", ".wmv", ".wv",
}  # fmt: skip
NAME_BYTES = 2_000  # longest name: the database keeps names in an index
_HASH_BLOCK = 1 << 20


class NoAudioFound(Exception):
    """Nothing to index in what was named."""

    code = "no_audio_found"


@dataclass(frozen=True)
class FoundFile:
    """A file to index. `name` is its path relative to the folder that was named; `path` is absolute.

    Of a file that lies elsewhere `mtime_ns` is no time, but changes with the file just so.
    """

    name: str
    path: Place
    bytes: int
    mtime_ns: int


@dataclass(frozen=True)
class Failure:
    """A file that could not be indexed: its name, a stable code, one line."""

    name: str
    code: str
    message: str


@dataclass(frozen=True)
class Found:
    """Files in the order of their names, and what could not even be looked at."""

    files: list[FoundFile]
    failed: list[Failure]


def discover(paths: Iterable[Path | str], within: Sequence[Path] | None = None) -> Found:
    """The audio files in `paths`, folders walked to the bottom and files taken as they are; URLs are listed.

    Symbolic links are followed, each folder once; with `within` a file that does not really lie in one of those folders
    is a failure, by whatever links it is reached, and a URL is none of them. Raises NoAudioFound where a path does not
    exist, or where there is no audio at all; SourceInvalid, SourceUnavailable for URLs.
    """
    files: dict[str, FoundFile] = {}
    failed: list[Failure] = []
    roots = [root_of(path) if within is None else Path(os.path.abspath(path)) for path in paths]
    for root in roots:
        for found in _listed(root) if isinstance(root, Url) else _members(root, failed, within):
            if isinstance(found, Failure):
                failed.append(found)
            elif found.name not in files:
                files[found.name] = found
            elif not same_file(files[found.name].path, found.path):
                other = printable(files[found.name].path)
                failed.append(Failure(found.name, "name_conflict", f"{other} has the same name"))
    if not files and not failed:
        named = ", ".join(printable(root) for root in roots) or "nothing"
        raise NoAudioFound(f"no audio files in {named}")
    return Found([files[name] for name in sorted(files)], sorted(failed, key=lambda failure: failure.name))


def root_of(path: Path | str) -> Place:
    """What is named: a URL, or an absolute path. Raises SourceInvalid."""
    return sources.check(str(path)) if sources.is_url(str(path)) else Path(os.path.abspath(path))


def _members(root: Path, failed: list[Failure], within: Sequence[Path] | None) -> Iterator[FoundFile | Failure]:
    """What a folder or file of this machine is, each file looked at. Raises NoAudioFound."""
    if not os.path.lexists(root):
        raise NoAudioFound(f"{printable(root)}: no such file or folder")
    parent, members = (root, _walk(root, failed, within)) if root.is_dir() else (root.parent, [root])
    for path in members:
        name = recording_name(path.relative_to(parent))
        yield look(name, path) if within is None or lies_within(path, within) else _outside(name)


def _listed(root: Url) -> Iterator[FoundFile | Failure]:
    """What lies below a URL. Raises NoAudioFound, SourceUnavailable."""
    try:
        for found in sources.walk(root, _is_audio):
            name = recording_name(Path(found.relative))
            yield _too_long(name) or FoundFile(name, found.url, found.bytes, found.stamp)
    except FileNotFoundError:
        raise NoAudioFound(f"{printable(root)}: no such file or folder") from None


def _is_audio(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in AUDIO_SUFFIXES


def _too_long(name: str) -> Failure | None:
    size = len(name.encode())
    message = f"a name of {size:,} bytes, where {NAME_BYTES:,} are allowed"
    return Failure(name, "name_too_long", message) if size > NAME_BYTES else None


def lies_within(path: Path, folders: Sequence[Path]) -> bool:
    """Whether a path, with all links followed, is one of the folders or in one."""
    real = Path(os.path.realpath(path))
    return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)


def recording_name(relative: Path) -> str:
    """A path as text, with forward slashes; bytes that are no UTF-8 become \\xNN."""
    return os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace")


def printable(path: Place | str) -> str:
    """A path on one line, whatever is in it."""
    written = str(path) if isinstance(path, Url) else recording_name(Path(path))
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in written)


def hash_file(path: Place, read: Callable[[], None] | None = None) -> str:
    """SHA-256 of a file's content in hex; `read` is told of each part. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK):
            digest.update(block)
            if read is not None:
                read()
    return digest.hexdigest()


def _walk(root: Path, failed: list[Failure], within: Sequence[Path] | None) -> list[Path]:
    """All audio files under `root`, each folder visited once, hidden ones and those that are not `within` left out."""

    def unreadable(error: OSError) -> None:
        failed.append(unreadable_failure(recording_name(Path(error.filename).relative_to(root)), error))

    seen: set[tuple[int, int]] = set()
    out: list[Path] = []
    for folder, subfolders, names in os.walk(root, onerror=unreadable, followlinks=True):
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in seen:
            subfolders.clear()
            continue
        if within is not None and not lies_within(Path(folder), within):
            failed.append(_outside(recording_name(Path(folder).relative_to(root))))
            subfolders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        out += [Path(folder, name) for name in sorted(names) if not name.startswith(".") and _is_audio(name)]
    return out


def look(name: str, path: Place) -> FoundFile | Failure:
    """A file, wherever it lies, as it is now."""
    if too_long := _too_long(name):
        return too_long
    try:
        if isinstance(path, Url):
            return FoundFile(name, path, *sources.look(path))
        about = path.stat()
    except AudioError as error:
        return Failure(name, error.code, str(error))
    except OSError as error:
        return unreadable_failure(name, error)
    if not stat.S_ISREG(about.st_mode):
        return Failure(name, "audio_unreadable", "cannot read the file: it is not a regular file")
    return FoundFile(name, path, about.st_size, written_ns(about))


def written_ns(about: os.stat_result) -> int:
    """When a file was written to, within 64 bits: some file systems know later years than 2262."""
    return max(-(2**63), min(about.st_mtime_ns, 2**63 - 1))


def _outside(name: str) -> Failure:
    return Failure(name, "outside_roots", "it lies outside the folders that may be indexed")


def same_file(one: Place, other: Place) -> bool:
    """Whether two paths lead to one file that is there."""
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def unreadable_failure(name: str, error: OSError) -> Failure:
    """For a file that the system does not let be read."""
    return Failure(name, "audio_unreadable", f"cannot read: {error.strerror or error}")
