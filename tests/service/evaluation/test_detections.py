import csv
import xml.etree.ElementTree as ElementTree

from hypothesis import given
from hypothesis import strategies as st

from service.evaluation.detections import Answered, kwslist, table
from service.evaluation.judging import Ranked
from service.evaluation.names import RecordingNames
from service.evaluation.tasks import Place, TaskQuery

NAMES = RecordingNames(["news/one.opus", "two.wav", "two.flac"])
ANSWERS = [
    Answered(
        TaskQuery("a.flac", Place("a.flac"), frozenset(), (), True, "ice cream"),
        (
            Ranked("news/one.opus", 1.0, 1.4567, 0.93),
            Ranked("two.wav", 0.25, 0.75, 0.4999996),
            Ranked("two.flac", 0.0, 1.0, 0.2),
            Ranked("two.flac", 5.0, 6.0, 0.0009),
        ),
        (True, None, False, False),
        1.23456,
    ),
    Answered(TaskQuery("b.flac", Place("b.flac"), frozenset(), (), False, "snow"), (), (), 0.0),
]


def test_the_xml_is_nists() -> None:
    lines = list(kwslist(ANSWERS, NAMES, 0.5, "list.tsv"))
    assert lines == [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<kwslist kwlist_filename="list.tsv" language="" system_id="sayagain">',
        '  <detected_kwlist kwid="QBE-00001" search_time="1.235" oov_count="2">',
        '    <kw file="news/one" channel="1" tbeg="1.000" dur="0.457" score="0.930000" decision="YES"/>',
        # The decision is on the score as it stands there; two files are two.something, and keep their extensions.
        '    <kw file="two.wav" channel="1" tbeg="0.250" dur="0.500" score="0.500000" decision="YES"/>',
        '    <kw file="two.flac" channel="1" tbeg="0.000" dur="1.000" score="0.200000" decision="NO"/>',
        "  </detected_kwlist>",
        '  <detected_kwlist kwid="QBE-00002" search_time="0.000" oov_count="0">',
        "  </detected_kwlist>",
        "</kwslist>",
    ]


def test_the_table_has_the_same_rows() -> None:
    rows = list(csv.DictReader(table(ANSWERS, 0.5), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert [(r["kwid"], r["recording"], r["decision"], r["right"]) for r in rows] == [
        ("QBE-00001", "news/one.opus", "YES", "yes"),
        ("QBE-00001", "two.wav", "YES", "-"),
        ("QBE-00001", "two.flac", "NO", "no"),
    ]
    assert (rows[0]["clip"], rows[0]["term"], rows[0]["oov"]) == ("a.flac", "ice cream", "yes")
    assert (rows[0]["start"], rows[0]["end"], rows[0]["score"]) == ("1.000", "1.457", "0.930000")


@given(st.text(max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_any_name_can_be_written(name: str, term: str, title: str) -> None:
    answered = Answered(
        TaskQuery(name, Place(name), frozenset(), (), True, term), (Ranked(name, 0.0, 1.0, 0.9),), (True,), 0.1
    )
    xml = "\n".join(kwslist([answered], RecordingNames([name]), 0.5, title))
    root = ElementTree.fromstring(xml.encode("utf-8", "backslashreplace"))
    assert [kw.get("decision") for kw in root.iter("kw")] == ["YES"]
    rows = "\n".join(table([answered], 0.5)).split("\n")
    assert len(rows) == 2
    assert all(len(row.split("\t")) == 10 for row in rows)
