"""Where words are said, from CTM and RTTM files, and where terms of one or several words are.

CTM: `file channel start duration token [confidence ...]`. RTTM: `LEXEME file channel start duration word ...`; its
lines of other types are passed over. Times in seconds; both as in the evaluation plans of NIST (OpenKWS15, appendices
C and D).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from service.evaluation.errors import ReferencesError
from service.evaluation.lines import Line, read_lines, seconds, shown
from service.evaluation.names import RecordingNames
from service.evaluation.tasks import Place

GAP_S = 0.5  # words of a term follow each other by less than this (NIST)
CTM_FIELDS, RTTM_FIELDS = 5, 6  # at least
_TYPE = re.compile(r"[A-Z][A-Z/_-]*", re.ASCII)  # of an RTTM line


@dataclass(frozen=True)
class Word:
    """A word of a recording's channel, as it is compared, with its times in seconds."""

    token: str
    start_s: float
    end_s: float


@dataclass
class References:
    """Words of each recording and channel in the order of their starts."""

    words: dict[tuple[str, str], list[Word]]
    _at: dict[str, list[tuple[tuple[str, str], int]]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._at = {}
        for key, said in self.words.items():
            said.sort(key=lambda word: (word.start_s, word.end_s))
            for number, word in enumerate(said):
                self._at.setdefault(word.token, []).append((key, number))

    @property
    def recordings(self) -> set[str]:
        """Names of recordings that have words."""
        return {name for name, _ in self.words}

    def find(self, term: str) -> tuple[Place, ...]:
        """All places of a term: its words one after another on one channel, less than half a second apart."""
        tokens = [comparable(token) for token in term.split()]
        places = set()
        for key, first in self._at.get(tokens[0], []) if tokens else []:
            said = self.words[key][first : first + len(tokens)]
            if [word.token for word in said] == tokens and all(
                # To the microsecond: half a second must be one whatever the floating point makes of it.
                round(after.start_s - before.end_s, 6) < GAP_S
                for before, after in pairwise(said)
            ):
                places.add((key[0], said[0].start_s, max(word.end_s for word in said)))
        return tuple(Place(*place) for place in sorted(places))


def comparable(token: str) -> str:
    """A word as it is compared: without case, in Unicode's composed form (NFC)."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", token).casefold())


def read_references(path: Path, names: RecordingNames) -> References:
    """Words of a `.ctm` or `.rttm` file. Raises ReferencesError, for ids of other recordings too."""
    readers: dict[str, Callable[[Line, list[str]], list[str] | None]] = {".ctm": _ctm, ".rttm": _rttm}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ReferencesError(f"{path}: references are a .ctm or .rttm file")
    words: dict[tuple[str, str], list[Word]] = {}
    found: dict[str, str] = {}  # file id -> name
    for line in read_lines(path, ReferencesError):
        fields = reader(line, line.text.split())
        if fields is None:
            continue
        file, channel, start, duration, token = fields
        try:
            start_s = seconds(start)
            end_s = round(start_s + seconds(duration), 6)
            if file not in found:
                found[file] = names.find(file)
        except (ValueError, LookupError) as error:
            raise line.error(ReferencesError, str(error.args[0])) from error
        words.setdefault((found[file], channel), []).append(Word(comparable(token), start_s, end_s))
    if not words:
        raise ReferencesError(f"{path} has no words" + (", no LEXEME line" if reader is _rttm else ""))
    return References(words)


def _ctm(line: Line, fields: list[str]) -> list[str]:
    """File, channel, start, duration and token."""
    if len(fields) < CTM_FIELDS:
        raise line.error(ReferencesError, f"{len(fields)} fields where CTM has {CTM_FIELDS} or more")
    if len(fields) > CTM_FIELDS and fields[CTM_FIELDS].upper() not in ("NA", "<NA>"):
        try:  # a token of two words would stand here with its second
            seconds(fields[CTM_FIELDS].removeprefix("-"))
        except ValueError:
            raise line.error(
                ReferencesError, f"{shown(fields[CTM_FIELDS])} where a confidence should be, a number or NA"
            ) from None
    return fields[:CTM_FIELDS]


def _rttm(line: Line, fields: list[str]) -> list[str] | None:
    """File, channel, start, duration and word, None for lines that have no word."""
    if _TYPE.fullmatch(fields[0]) is None:
        raise line.error(ReferencesError, f"{shown(fields[0])} is no type of RTTM, such as LEXEME")
    if fields[0] != "LEXEME":
        return None
    if len(fields) < RTTM_FIELDS:
        raise line.error(ReferencesError, f"{len(fields)} fields where LEXEME has {RTTM_FIELDS} or more")
    return None if fields[5] == "<NA>" else fields[1:6]
