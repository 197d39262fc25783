"""From the file ids of CTM, RTTM and detection lists, which have no extension, to an archive's recordings and back."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from os.path import splitext

from service.evaluation.lines import shown

LISTED = 3  # of the recordings that an id may mean, in messages


class RecordingNames:
    """An archive's recordings by full name, by name without extension, and by that without folders."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = set(names)
        self._kinds: list[dict[str, list[str]]] = [{}, {}, {}]
        for name in sorted(self._names):
            for known, key in zip(self._kinds, (name, stem(name), base(stem(name))), strict=True):
                known.setdefault(_same(key), []).append(name)

    def __len__(self) -> int:
        return len(self._names)

    def find(self, wanted: str) -> str:
        """The recording that is meant: a full name goes before one without extension, and that before a bare one.

        Raises LookupError where it is none, or may be several.
        """
        for known in self._kinds:
            found = known.get(_same(wanted), [])
            if len(found) == 1:
                return found[0]
            if found:
                more = f" and {len(found) - LISTED} more" if len(found) > LISTED else ""
                raise LookupError(f"{shown(wanted)} may be " + " or ".join(map(repr, found[:LISTED])) + more)
        raise LookupError(f"the archive has no recording {shown(wanted)}")

    def id_of(self, name: str) -> str:
        """The name without its extension where that means this recording, else the full name."""
        try:
            return stem(name) if self.find(stem(name)) == name else name
        except LookupError:
            return name


def stem(name: str) -> str:
    """The name without its extension."""
    return splitext(name)[0]


def base(name: str) -> str:
    """The name without its folders."""
    return name.rsplit("/", 1)[-1]


def _same(name: str) -> str:
    return unicodedata.normalize("NFC", name)
