"""The formats by name, and what a download of each is: one table, or a zip with a file for each recording."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath

from service.exports.audacity import write_labels
from service.exports.elan import write_eaf
from service.exports.marks import Mark, by_recording
from service.exports.tables import write_csv, write_jsonl
from service.exports.textgrid import write_textgrid


class Format(StrEnum):
    """What hits can be written as."""

    CSV = "csv"
    JSONL = "jsonl"
    AUDACITY = "audacity"
    TEXTGRID = "textgrid"
    EAF = "eaf"


@dataclass(frozen=True)
class _Labels:
    """A format with a file for each recording."""

    suffix: str
    write: Callable[[Sequence[Mark]], str]


_TABLES = {Format.CSV: write_csv, Format.JSONL: write_jsonl}
_LABELS = {
    Format.AUDACITY: _Labels(".txt", write_labels),
    Format.TEXTGRID: _Labels(".TextGrid", write_textgrid),
    Format.EAF: _Labels(".eaf", write_eaf),
}
MEDIA_TYPES = {Format.CSV: "text/csv; charset=utf-8", Format.JSONL: "application/x-ndjson"}
ZIP = "application/zip"


def is_table(wanted: Format) -> bool:
    """Whether all hits go into one text."""
    return wanted in _TABLES


def table(wanted: Format, marks: Sequence[Mark]) -> str:
    """All hits as one text."""
    return _TABLES[wanted](marks)


def files(wanted: Format, marks: Sequence[Mark]) -> Iterator[tuple[PurePosixPath, str]]:
    """A file for each recording: where it goes, below any folder, and its text.

    It is called like the recording with a suffix more, so that no two of one folder are called alike.
    """
    labels = _LABELS[wanted]
    for name, found in by_recording(marks).items():
        yield _below(name + labels.suffix), labels.write(found)


def download(wanted: Format, marks: Sequence[Mark]) -> tuple[bytes, str, str]:
    """The bytes, their media type, and the suffix of a file that holds them."""
    if is_table(wanted):
        return table(wanted, marks).encode("utf-8", "backslashreplace"), MEDIA_TYPES[wanted], f".{wanted}"
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files(wanted, marks):
            archive.writestr(str(path), text.encode("utf-8", "backslashreplace"))
    return held.getvalue(), ZIP, f".{wanted}.zip"


def _below(name: str) -> PurePosixPath:
    """A recording's name as a path that leads nowhere but down."""
    parts = [part for part in name.replace("\\", "/").replace("\0", "").split("/") if part not in ("", ".", "..")]
    return PurePosixPath(*(part.replace(":", "_") for part in parts))
