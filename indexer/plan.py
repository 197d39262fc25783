"""What a run has to do: what was found, compared with what the archive has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from indexer.discover import Failure, FoundFile, hash_file, printable, same_file, unreadable_failure
from indexer.sources import Place


@dataclass(frozen=True)
class Known:
    """A recording as the archive has it; `sha256` in hex, `current` where its codebook is the one in force."""

    id: int
    name: str
    path: Place
    bytes: int
    mtime_ns: int
    sha256: str
    current: bool


@dataclass
class Plan:
    """What a run has to do."""

    index: list[FoundFile] = field(default_factory=list)  # new or changed
    unchanged: int = 0
    touched: list[tuple[Known, FoundFile]] = field(default_factory=list)  # same content, other time stamp
    moved: list[tuple[Known, FoundFile]] = field(default_factory=list)  # same content, the old path or name is gone
    removed: list[Known] = field(default_factory=list)  # the file is gone
    failed: list[Failure] = field(default_factory=list)


def plan(
    files: Sequence[FoundFile],
    known: Mapping[str, Known],
    *,
    replace: bool = False,
    again: frozenset[str] = frozenset(),
    prune: Sequence[Place] = (),
) -> Plan:
    """Compare what was found with what the archive has, by name, path, size and time first, then by content.

    A file of a new name is one that has been renamed where its content is that of a recording whose file is gone. With
    `replace` a file may take the place of one of its name that is still where it was; those `again` are indexed
    whatever they are; recordings whose file was in one of the folders of `prune` and is gone are to be removed.
    """
    result = Plan()
    for file in files:
        old = known.get(file.name)
        if old is None:
            result.index.append(file)
            continue
        here = old.path == file.path or same_file(old.path, file.path)
        if not here and not replace and not is_gone(old.path):
            message = f"the archive has a recording of this name from {printable(old.path)}: give it another archive"
            result.failed.append(Failure(file.name, "name_conflict", message))
            continue
        if not old.current or old.bytes != file.bytes or file.name in again:
            result.index.append(file)
        elif here and old.mtime_ns == file.mtime_ns and old.path == file.path:
            result.unchanged += 1
        else:
            _compare_content(file, old, here, result)
    _find_renamed(files, known, result)
    if prune:
        taken = {file.name for file in files} | {old.name for old, _ in result.moved}
        for old in known.values():
            if old.name not in taken and any(old.path.is_relative_to(root) for root in prune) and is_gone(old.path):
                result.removed.append(old)
    return result


def is_gone(path: Place) -> bool:
    """Whether there certainly is no such file; one that cannot be looked at may be there."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return True
    except OSError:
        return False
    return False


def _compare_content(file: FoundFile, old: Known, here: bool, result: Plan) -> None:
    try:
        same = hash_file(file.path) == old.sha256
    except OSError as error:
        result.failed.append(unreadable_failure(file.name, error))
        return
    if not same:
        result.index.append(file)
    elif here:
        result.unchanged += 1
        result.touched.append((old, file))
    else:
        result.moved.append((old, file))


def _find_renamed(files: Sequence[FoundFile], known: Mapping[str, Known], result: Plan) -> None:
    """Of files with a new name, those whose content a recording has that went missing; each recording for one."""
    fresh = [file for file in result.index if file.name not in known]
    sizes = {file.bytes for file in fresh}
    named = {file.name for file in files}
    gone: dict[int, list[Known]] = {}
    for old in known.values():
        if old.bytes in sizes and old.name not in named and old.current and is_gone(old.path):
            gone.setdefault(old.bytes, []).append(old)
    for file in fresh:
        candidates = gone.get(file.bytes, [])
        if not candidates:
            continue
        try:
            content = hash_file(file.path)
        except OSError:
            continue  # whoever is to index it will say so
        for old in candidates:
            if old.sha256 == content:
                candidates.remove(old)
                result.index.remove(file)
                result.moved.append((old, file))
                break
