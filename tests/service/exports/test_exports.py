"""Every format is opened again, by a library of that format where there is one, and has the same hits in it."""

import csv
import io
import json
import zipfile
from itertools import pairwise
from pathlib import Path

import pympi
import pytest
from fastapi.testclient import TestClient
from hypothesis import given, settings
from hypothesis import strategies as st
from praatio import textgrid

from service.exports.audacity import write_labels
from service.exports.elan import write_eaf
from service.exports.formats import Format, download, files
from service.exports.marks import Mark, tiers
from service.exports.tables import write_csv, write_jsonl
from service.exports.textgrid import write_textgrid
from tests.service.test_api import ask

# Any text; spaces are checked apart, because formats of one line fold them.
words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Z"]), min_size=1, max_size=12)


@st.composite
def marked(draw: st.DrawFn) -> list[Mark]:
    """Hits of one recording, in the order of time; some overlap, the last may reach over the end."""
    duration_s = draw(st.integers(500, 60_000)) / 1_000
    label = draw(words)
    out = []
    for rank in range(draw(st.integers(1, 8))):
        start = draw(st.integers(0, round(duration_s * 1_000) - 20))
        length = draw(st.integers(10, 2_000))
        out.append(Mark("a/b.wav", duration_s, start / 1_000, (start + length) / 1_000, rank / 10, label, rank + 1))
    return sorted(out, key=lambda mark: (mark.start_s, mark.end_s))


def shown(marks: list[Mark]) -> list[tuple[float, float, str]]:
    """What an editor ought to show, in the order of time."""
    return sorted((m.start_s, min(m.end_s, m.duration_s), m.text) for m in marks)


@settings(deadline=None, max_examples=60)
@given(marked())
def test_praat_has_the_hits(tmp_path_factory: pytest.TempPathFactory, marks: list[Mark]) -> None:
    path = tmp_path_factory.mktemp("praat") / "a.TextGrid"
    path.write_text(write_textgrid(marks), encoding="utf-8")
    grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True, reportingMode="error")
    assert grid.maxTimestamp == marks[0].duration_s
    found = []
    for tier in grid.tiers:
        at = 0.0
        for entry in tier.entries:
            assert entry.start == at  # no gap
            at = entry.end
            if entry.label:
                found.append((entry.start, entry.end, entry.label))
        assert at == marks[0].duration_s
        assert tier.name.startswith(marks[0].label)
    assert sorted(found) == shown(marks)


@settings(deadline=None, max_examples=60)
@given(marked())
def test_elan_has_the_hits(tmp_path_factory: pytest.TempPathFactory, marks: list[Mark]) -> None:
    path = tmp_path_factory.mktemp("elan") / "a.eaf"
    path.write_text(write_eaf(marks), encoding="utf-8")
    document = pympi.Elan.Eaf(str(path))
    assert [medium["MEDIA_URL"] for medium in document.get_linked_files()] == ["./b.wav"]
    found = []
    for name in document.get_tier_names():
        assert name.startswith(marks[0].label)
        inside = sorted(document.get_annotation_data_for_tier(name))
        found += [(start / 1e3, end / 1e3, text) for start, end, text in inside]
        assert all(one[1] <= other[0] for one, other in pairwise(inside))
    assert sorted(found) == shown(marks)


@settings(deadline=None, max_examples=60)
@given(marked())
def test_tables_and_labels_have_the_hits(marks: list[Mark]) -> None:
    rows = list(csv.DictReader(io.StringIO(write_csv(marks), newline="")))
    lines = [json.loads(line) for line in write_jsonl(marks).split("\n")[:-1]]
    for mark, row, line in zip(marks, rows, lines, strict=True):
        expected = [mark.label, mark.rank, mark.recording, mark.start_s, mark.end_s, mark.score]
        assert list(line.values()) == expected
        assert list(row.values()) == [str(value) for value in expected]
    for mark, line in zip(marks, write_labels(marks).split("\n")[:-1], strict=True):
        start, end, text = line.split("\t")
        assert (float(start), float(end), text) == (mark.start_s, mark.end_s, mark.text)


def test_odd_labels_stay_in_their_places(tmp_path: Path) -> None:
    odd = 'say "ah",\t<b>&\n\x00 now'
    marks = [Mark("a.wav", 3.0, 1.0, 2.0, 0.5, odd, 1)]
    (tmp_path / "a.TextGrid").write_text(write_textgrid(marks), encoding="utf-8")
    grid = textgrid.openTextgrid(str(tmp_path / "a.TextGrid"), includeEmptyIntervals=False)
    assert grid.tiers[0].entries[0].label == " ".join(odd.split()) + " 0.500"
    (tmp_path / "a.eaf").write_text(write_eaf(marks), encoding="utf-8")
    (annotation,) = pympi.Elan.Eaf(str(tmp_path / "a.eaf")).get_annotation_data_for_tier(
        pympi.Elan.Eaf(str(tmp_path / "a.eaf")).get_tier_names().__iter__().__next__()
    )
    assert annotation[2] == odd.replace("\x00", "\ufffd") + " 0.500"
    assert write_labels(marks).count("\n") == 1
    assert write_labels(marks).count("\t") == 2


def test_overlapping_hits_are_in_tiers_of_their_own() -> None:
    marks = [Mark("a", 9.0, start, start + 1.0, 0.5, "x", 1) for start in (0.0, 0.6, 1.0, 1.7, 1.8)]
    assert {name: [m.start_s for m in tier] for name, tier in tiers(marks).items()} == {
        "x": [0.0, 1.0], "x (2)": [0.6, 1.7], "x (3)": [1.8],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["../../etc/passwd", "/abs/a.wav", "a/./b/../c.wav", "..", "C:\\x\\..\\y.wav", "\0"])
@pytest.mark.parametrize("kind", [Format.AUDACITY, Format.TEXTGRID, Format.EAF])
def test_no_name_leads_out_of_the_folder(name: str, kind: Format) -> None:
    ((path, _),) = files(kind, [Mark(name, 3.0, 1.0, 2.0, 0.5, "x", 1)])
    assert not path.is_absolute()
    assert not {"..", ""} & set(path.parts)
    assert ":" not in str(path)


def test_an_empty_answer_is_an_empty_file() -> None:
    assert write_csv([]).splitlines() == ["label,rank,recording,start,end,score"]
    assert download(Format.JSONL, [])[0] == b""
    assert zipfile.ZipFile(io.BytesIO(download(Format.EAF, [])[0])).namelist() == []


@pytest.mark.parametrize("kind", list(Format))
def test_hits_of_an_answer_are_exported(client: TestClient, query_path: Path, tmp_path: Path, kind: Format) -> None:
    hits = ask(client, query_path.read_bytes(), limit=8).json()["hits"]
    answer = client.post(f"/v1/exports/{kind}", json={"label": "visibility", "hits": hits})
    assert answer.status_code == 200
    assert "attachment" in answer.headers["content-disposition"]
    expected = {(hit["recording"]["name"], round(hit["start"], 2)) for hit in hits}
    if kind is Format.CSV:
        found = {(r["recording"], round(float(r["start"]), 2)) for r in csv.DictReader(io.StringIO(answer.text))}
    elif kind is Format.JSONL:
        found = {(r["recording"], round(r["start"], 2)) for r in map(json.loads, answer.text.splitlines())}
    else:
        with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
            archive.extractall(tmp_path)
        found = set()
        for path in tmp_path.rglob("*.*"):
            if path.is_file():
                name = str(path.relative_to(tmp_path).with_suffix(""))
                found |= {(name, round(start, 2)) for start in starts(kind, path)}
    assert found == expected


def starts(kind: Format, path: Path) -> list[float]:
    """Seconds at which the hits of a label file begin."""
    if kind is Format.AUDACITY:
        return [float(line.split("\t")[0]) for line in path.read_text().splitlines()]
    if kind is Format.TEXTGRID:
        grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=False)
        return [entry.start for tier in grid.tiers for entry in tier.entries]
    document = pympi.Elan.Eaf(str(path))
    return [a[0] / 1e3 for name in document.get_tier_names() for a in document.get_annotation_data_for_tier(name)]


@pytest.mark.parametrize(
    ("kind", "body", "status", "code"),
    [
        ("xls", {"hits": []}, 422, "invalid_request"),
        ("csv", {}, 422, "invalid_request"),
        ("csv", {"label": "", "hits": []}, 422, "invalid_request"),
        ("csv", {"hits": [{"recording": {"id": 1}, "start": 0, "end": 1}]}, 422, "invalid_request"),
        ("csv", {"hits": [{"recording": {"id": 2**63}, "start": 0, "end": 1, "score": 1}]}, 422, "invalid_request"),
        ("csv", {"hits": [{"recording": {"id": 10**9}, "start": 0, "end": 1, "score": 1}]}, 404, "recording_not_found"),
    ],
)
def test_what_cannot_be_exported(client: TestClient, kind: str, body: dict, status: int, code: str) -> None:
    answer = client.post(f"/v1/exports/{kind}", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
