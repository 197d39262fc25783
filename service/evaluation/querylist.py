"""The query list: a table of clips and the terms that are said in them.

Columns, divided by tabs: `clip` (a path beside the list), `term`, and, where wanted, `exclude` (recordings that do not
count, divided by `|`) and `oov` (yes or no). A first line with these names may put them into another order.
"""

from __future__ import annotations

from pathlib import Path

from service.evaluation.errors import QueryListError
from service.evaluation.lines import Line, read_lines, shown
from service.evaluation.names import RecordingNames
from service.evaluation.references import References
from service.evaluation.tasks import Place, TaskQuery

COLUMNS = ("clip", "term", "exclude", "oov")
BETWEEN = "|"  # divides excluded recordings
_YES, _NO = ("yes", "true", "1", "oov"), ("no", "false", "0", "iv", "")


def read_queries(path: Path, references: References, names: RecordingNames) -> list[TaskQuery]:
    """Queries of a list, each with the places of its term outside of its excluded recordings.

    Raises QueryListError.
    """
    columns: tuple[str, ...] = COLUMNS
    queries: dict[str, TaskQuery] = {}
    lines: dict[str, int] = {}
    first = True
    for line in read_lines(path, QueryListError):
        cells = [cell.strip() for cell in line.text.split("\t")]
        header = tuple(cell.lower() for cell in cells)
        if first and {"clip", "term"} <= set(header):
            columns = _header(line, header)
            first = False
            continue
        first = False
        query = _query(line, cells, columns, references, names)
        if query.clip in queries:
            raise line.error(QueryListError, f"the clip {shown(query.clip)} stands in line {lines[query.clip]} already")
        queries[query.clip], lines[query.clip] = query, line.number
    if not queries:
        raise QueryListError(f"{path} has no queries")
    if not any(query.relevant for query in queries.values()):
        raise QueryListError(f"{path}: none of its terms is said in the references, outside of excluded recordings")
    return list(queries.values())


def _header(line: Line, columns: tuple[str, ...]) -> tuple[str, ...]:
    unknown = [column for column in columns if column not in COLUMNS]
    if unknown:
        raise line.error(QueryListError, f"there is no column {shown(unknown[0])}, only {', '.join(COLUMNS)}")
    if len(set(columns)) < len(columns):
        raise line.error(QueryListError, "a column stands there twice")
    return columns


def _query(
    line: Line, cells: list[str], columns: tuple[str, ...], references: References, names: RecordingNames
) -> TaskQuery:
    if len(cells) > len(columns):
        raise line.error(QueryListError, f"{len(cells)} columns where there are {len(columns)}: {', '.join(columns)}")
    row = dict(zip(columns, cells, strict=False))
    clip, term, oov = row.get("clip", ""), row.get("term", ""), row.get("oov", "").lower()
    if not clip or not term:
        raise line.error(QueryListError, f"a clip and a term are needed, divided by a tab; found {shown(line.text)}")
    if "\0" in clip:
        raise line.error(QueryListError, f"{shown(clip)} is no path")
    if oov not in _YES + _NO:
        raise line.error(QueryListError, f"oov is yes or no, not {shown(oov)}")
    try:
        exclude = frozenset(names.find(n.strip()) for n in row.get("exclude", "").split(BETWEEN) if n.strip())
    except LookupError as error:
        raise line.error(QueryListError, str(error.args[0])) from error
    relevant = tuple(place for place in references.find(term) if place.name not in exclude)
    return TaskQuery(clip, Place(clip), exclude, relevant, oov in _YES, term)
