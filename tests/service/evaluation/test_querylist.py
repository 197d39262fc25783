from pathlib import Path

import pytest

from service.evaluation.errors import QueryListError
from service.evaluation.names import RecordingNames
from service.evaluation.querylist import read_queries
from service.evaluation.references import References, Word
from service.evaluation.tasks import Place, TaskQuery

NAMES = RecordingNames(["one.opus", "two.wav", "x/same.wav", "y/same.flac"])
SAID = References(
    {
        ("one.opus", "1"): [Word("ice", 0.0, 0.5), Word("cream", 0.6, 1.0)],
        ("two.wav", "1"): [Word("ice", 3.0, 3.5)],
    }
)


def read(folder: Path, text: str | bytes) -> list[TaskQuery]:
    path = folder / "queries.tsv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_queries(path, SAID, NAMES)


def test_columns_have_an_order_or_a_header(tmp_path: Path) -> None:
    plain = read(tmp_path, "a b.flac\tIce\tone | x/same\tyes\nclips/b.flac\tice cream\n\n")
    assert plain == [
        TaskQuery(
            "a b.flac", Place("a b.flac"), frozenset({"one.opus", "x/same.wav"}), (Place("two.wav", 3.0, 3.5),), True,
            "Ice",
        ),
        TaskQuery(
            "clips/b.flac", Place("clips/b.flac"), frozenset(), (Place("one.opus", 0.0, 1.0),), False, "ice cream"
        ),
    ]  # fmt: skip
    named = read(
        tmp_path, "\ufeffTerm\tOOV\tclip\texclude\r\nIce\tyes\ta b.flac\tone|x/same\r\nice cream\t\tclips/b.flac\r\n"
    )
    assert named == plain


def test_a_term_that_is_never_said_is_a_query_all_the_same(tmp_path: Path) -> None:
    assert [q.relevant for q in read(tmp_path, "a\tice cream\nb\tsnow\n")][1] == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a.flac\n", "line 1: a clip and a term are needed, divided by a tab; found 'a.flac'"),
        ("a.flac ice\n", "divided by a tab"),
        ("\tice\n", "a clip and a term are needed"),
        ("a\tice\tone\tyes\tmore\n", "line 1: 5 columns where there are 4"),
        ("a\tice\t\tmaybe\n", "oov is yes or no, not 'maybe'"),
        ("a\tice\tthree\n", "line 1: the archive has no recording 'three'"),
        ("a\tice\tsame\n", "'same' may be 'x/same.wav' or 'y/same.flac'"),
        ("a\tice\nb\tcream\na\tcream\n", "line 3: the clip 'a' stands in line 1 already"),
        ("clip\tterm\tspeaker\na\tice\tx\n", "there is no column 'speaker'"),
        ("clip\tterm\tterm\na\tice\tx\n", "a column stands there twice"),
        ("clip\tterm\n", "has no queries"),
        ("", "has no queries"),
        ("a\tsnow\n", "none of its terms is said"),
        ("a\tcream\tone\n", "none of its terms is said"),
        ("a\0b\tice\n", "is no path"),
        (b"\xe9t\xe9.flac\tice\n", "line 1: not UTF-8"),
    ],
)
def test_what_is_no_query_list_is_refused(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(QueryListError, match=says) as caught:
        read(tmp_path, text)
    assert caught.value.code == "queries_invalid"
    assert "\n" not in str(caught.value)
