"""Word times from files: tab-separated text, CTM of NIST, and TextGrid of Praat, all as the same four values."""

from __future__ import annotations

import codecs
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SILENCE = frozenset({"", "sil", "sp", "<eps>"})  # what forced aligners write where nothing is said
WORD_TIERS = frozenset({"words", "word", "ort"})


class WordsError(ValueError):
    """A file of word times that cannot be read."""

    code = "words_invalid"


@dataclass(frozen=True)
class Timed:
    """One word; `path` names the recording, as a CTM and a TextGrid do without its suffix."""

    path: str
    start_s: float
    end_s: float
    word: str


def read_times(path: Path) -> list[Timed]:
    """Words of a `.tsv` (path, start and end in seconds, word; a header or none), a `.ctm`, or a `.TextGrid`.

    A folder is searched for TextGrids, whose recordings are named by their place in it. Empty intervals and silences
    of a CTM or TextGrid are left out. Raises WordsError with the file and the line where something else was found.
    """
    if path.is_dir():
        grids = sorted(p for p in path.rglob("*") if p.suffix.lower() == ".textgrid" and p.is_file())
        if not grids:
            raise WordsError(f"{path}: a folder of word times needs .TextGrid files, found none")
        return [
            word for grid in grids for word in _read_text_grid(grid, grid.relative_to(path).with_suffix("").as_posix())
        ]
    suffix = path.suffix.lower()
    if suffix == ".tsv":
        return list(_read_table(path))
    if suffix == ".ctm":
        return list(_read_ctm(path))
    if suffix == ".textgrid":
        return list(_read_text_grid(path, path.stem))
    raise WordsError(f"{path}: word times are read from .tsv, .ctm and .TextGrid, found {suffix or 'no suffix'}")


def _text(path: Path) -> str:
    """A file's text: UTF-8, or UTF-16 if it starts with its mark, as Praat saves what is not ASCII."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise WordsError(f"{path}: cannot be read: {error.strerror}") from error
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise WordsError(f"{path}, line {line}: {'UTF-16' if wide else 'UTF-8'} is needed: {error.reason}") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _shown(line: str) -> str:
    return repr(line if len(line) <= 80 else line[:77] + "...")


def _time(value: str) -> float:
    """A finite number of seconds; ValueError where it is not."""
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(value)
    return number


def _read_table(path: Path) -> Iterator[Timed]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        row = line.split("\t")
        if not line.strip() or (number == 1 and row[0] == "path"):
            continue
        try:
            yield Timed(row[0], _time(row[1]), _time(row[2]), row[3])
        except (IndexError, ValueError) as error:
            needed = "path, start, end, word"
            raise WordsError(f"{path}, line {number}: {needed} are needed, found {_shown(line)}") from error


def _read_ctm(path: Path) -> Iterator[Timed]:
    for number, line in enumerate(_text(path).split("\n"), 1):
        row = line.split()
        if not row or row[0].startswith(";;"):
            continue
        try:
            start_s, duration_s, word = _time(row[2]), _time(row[3]), row[4]
        except (IndexError, ValueError) as error:
            needed = "recording, channel, start, duration, word"
            raise WordsError(f"{path}, line {number}: {needed} are needed, found {_shown(line)}") from error
        if duration_s < 0:
            raise WordsError(f"{path}, line {number}: a duration of at least 0 is needed, found {row[3]}")
        if word.lower() not in SILENCE:
            yield Timed(row[0], start_s, start_s + duration_s, word)


# What Praat reads is free-standing: strings in quotes (a quote inside is doubled), numbers, flags. All else - the
# "xmin =" and "intervals [1]:" of the long form - is decoration, so one reader serves both forms.
_PIECE = re.compile(r'"(?P<string>[^"]*(?:""[^"]*)*)"(?=\s|$)|!(?=\s|$)[^\n]*|(?P<other>\S+)')
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


class _Pieces:
    """The free-standing pieces of a Praat text file, one after another."""

    def __init__(self, path: Path) -> None:
        self.path, self.text = path, _text(path)
        self.found = self._pieces()
        self.at = 0

    def _pieces(self) -> Iterator[tuple[str, str]]:
        for match in _PIECE.finditer(self.text):
            self.at = match.start()
            string, other = match["string"], match["other"]
            if string is not None:
                yield "string", string.replace('""', '"')
            elif other is None:
                continue
            elif other.startswith('"'):
                raise self.error("a string ends with a quote, found one that does not")
            elif _NUMBER.fullmatch(other):
                yield "number", other
            elif other in ("<exists>", "<absent>"):
                yield "flag", other

    def error(self, message: str) -> WordsError:
        line = self.text.count("\n", 0, self.at) + 1
        return WordsError(f"{self.path}, line {line}: {message}")

    def take(self, kind: str, what: str) -> str:
        found, value = next(self.found, ("the end", ""))
        if found == "the end":
            self.at = len(self.text)
        if found != kind:
            raise self.error(f"{what} is needed, found {found} {_shown(value) if value else ''}".rstrip())
        return value

    def number(self, what: str) -> float:
        value = float(self.take("number", what))
        if not math.isfinite(value):
            raise self.error(f"{what} is needed, found a number that is too large")
        return value

    def count(self, what: str) -> int:
        value = self.number(what)
        if value < 0 or value != int(value):
            raise self.error(f"{what} is needed, found {value}")
        return int(value)


def _read_text_grid(path: Path, recording: str) -> Iterator[Timed]:
    """Praat's long or short text form: the first interval tier with a word tier's name, else the first there is."""
    pieces = _Pieces(path)
    for kind in ("ooTextFile", "TextGrid"):
        if (found := pieces.take("string", f'a text file with "{kind}"')) != kind:
            raise pieces.error(f'a TextGrid in long or short text form has "{kind}" here, found {_shown(found)}')
    pieces.number("the start of the TextGrid")
    pieces.number("the end of the TextGrid")
    tiers: list[tuple[str, list[Timed]]] = []
    if pieces.take("flag", "<exists>") == "<exists>":
        tiers = [tier for _ in range(pieces.count("the number of tiers")) if (tier := _read_tier(pieces, recording))]
    if not tiers:
        raise pieces.error("a tier of intervals is needed, found none")
    named = [words for name, words in tiers if WORD_TIERS & set(re.split(r"[\W_]+", name.lower()))]
    yield from named[0] if named else tiers[0][1]


def _read_tier(pieces: _Pieces, recording: str) -> tuple[str, list[Timed]] | None:
    """Name and words of an interval tier, None for a tier of points."""
    kind = pieces.take("string", "the class of a tier")
    if kind not in ("IntervalTier", "TextTier"):
        raise pieces.error(f"IntervalTier or TextTier is needed, found {_shown(kind)}")
    name = pieces.take("string", "the name of a tier")
    pieces.number("the start of a tier")
    pieces.number("the end of a tier")
    words: list[Timed] = []
    for _ in range(pieces.count("the number of intervals or points")):
        if kind == "TextTier":
            pieces.number("the time of a point")
            pieces.take("string", "the mark of a point")
            continue
        start_s, end_s = pieces.number("the start of an interval"), pieces.number("the end of an interval")
        if end_s < start_s:
            raise pieces.error(f"an interval that ends after its start is needed, found {start_s} to {end_s}")
        label = " ".join(pieces.take("string", "the text of an interval").split())
        if label.lower() not in SILENCE:
            words.append(Timed(recording, start_s, end_s, label))
    return (name, words) if kind == "IntervalTier" else None
