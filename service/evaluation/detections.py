"""Lists of detections: the XML form of NIST's keyword search evaluations (kwslist), and a table with the same rows.

<kwslist kwlist_filename= language= system_id=>
  <detected_kwlist kwid= search_time= oov_count=>
    <kw file= channel= tbeg= dur= score= decision="YES"|"NO"/>
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import quoteattr

from service.evaluation.judging import Ranked
from service.evaluation.names import RecordingNames
from service.evaluation.tasks import TaskQuery

SYSTEM = "sayagain"
CHANNEL = "1"  # all channels of a recording are searched as one
LEAST_SCORE = 0.001  # hits below are not listed: there are hundreds for each query, and no threshold goes so low
SCORE_DIGITS = 6
TABLE = ("kwid", "clip", "term", "oov", "recording", "start", "end", "score", "decision", "right")

# XML 1.0 has no way to write these.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


@dataclass(frozen=True)
class Answered:
    """A query with its hits, best first, whether each is right (None: does not count), and the seconds it took."""

    query: TaskQuery
    hits: tuple[Ranked, ...]
    right: tuple[bool | None, ...]
    search_s: float


def kwid(number: int) -> str:
    """The id of a query by its place in the list, from 0."""
    return f"QBE-{number + 1:05d}"


def listed(answered: Answered) -> Iterator[tuple[Ranked, float, bool | None]]:
    """Hits that are listed, with the score as it is written, so that decisions are on what a reader sees."""
    for hit, right in zip(answered.hits, answered.right, strict=True):
        if hit.score >= LEAST_SCORE:
            yield hit, round(hit.score, SCORE_DIGITS), right


def kwslist(answers: Sequence[Answered], names: RecordingNames, threshold: float, title: str) -> Iterator[str]:
    """Lines of the XML; file ids have no extension where that means one recording (F4DE, OpenKWS15 appendix A)."""
    ids: dict[str, str] = {}
    yield '<?xml version="1.0" encoding="UTF-8"?>'
    yield f'<kwslist kwlist_filename={_quoted(title)} language="" system_id="{SYSTEM}">'
    for number, answered in enumerate(answers):
        oov = max(1, len(answered.query.term.split())) if answered.query.oov else 0
        yield f'  <detected_kwlist kwid="{kwid(number)}" search_time="{answered.search_s:.3f}" oov_count="{oov}">'
        for hit, score, _ in listed(answered):
            if hit.name not in ids:
                ids[hit.name] = _quoted(names.id_of(hit.name))
            yield (
                f'    <kw file={ids[hit.name]} channel="{CHANNEL}" tbeg="{hit.start_s:.3f}" '
                f'dur="{max(0.0, hit.end_s - hit.start_s):.3f}" score="{score:.{SCORE_DIGITS}f}" '
                f'decision="{_decision(score, threshold)}"/>'
            )
        yield "  </detected_kwlist>"
    yield "</kwslist>"


def table(answers: Sequence[Answered], threshold: float) -> Iterator[str]:
    """The same rows, divided by tabs, with the clip, the term and what is right; `-` where a hit does not count."""
    yield "\t".join(TABLE)
    for number, answered in enumerate(answers):
        query = answered.query
        for hit, score, right in listed(answered):
            yield "\t".join(
                (
                    kwid(number), _cell(query.clip), _cell(query.term), "yes" if query.oov else "no", _cell(hit.name),
                    f"{hit.start_s:.3f}", f"{hit.end_s:.3f}", f"{score:.{SCORE_DIGITS}f}",
                    _decision(score, threshold), "-" if right is None else "yes" if right else "no",
                )
            )  # fmt: skip


def _decision(score: float, threshold: float) -> str:
    return "YES" if score >= threshold else "NO"


def _quoted(text: str) -> str:
    return quoteattr(_NOT_XML.sub(lambda found: ascii(found[0])[1:-1], text))


def _cell(text: str) -> str:
    """One cell: no tabs or line breaks, whatever is in a name."""
    return (
        text.encode("unicode_escape").decode("ascii") if any(c in text for c in "\t\r\n\v\f\x85\u2028\u2029") else text
    )
