"""Word times in each form a file may have, made by hand."""

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.training.wordtimes import Timed, WordsError, read_times

pytestmark = pytest.mark.training

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0 
xmax = 2.3 
tiers? <exists> 
size = 3 
item []: 
    item [1]:
        class = "IntervalTier" 
        name = "phones" 
        xmin = 0 
        xmax = 2.3 
        intervals: size = 1 
        intervals [1]:
            xmin = 0 
            xmax = 2.3 
            text = "a" 
    item [2]:
        class = "TextTier" 
        name = "words of the hand" 
        xmin = 0 
        xmax = 2.3 
        points: size = 1 
        points [1]:
            number = 0.7 
            mark = "clap" 
    item [3]:
        class = "IntervalTier" 
        name = "words" 
        xmin = 0 
        xmax = 2.3 
        intervals: size = 5 
        intervals [1]:
            xmin = 0 
            xmax = 0.25 
            text = "" 
        intervals [2]:
            xmin = 0.25 
            xmax = 0.75 
            text = "größer" 
        intervals [3]:
            xmin = 0.75 
            xmax = 1e0 
            text = "sp" 
        intervals [4]:
            xmin = 1.0 
            xmax = 1.5 
            text = "say ""again"" 
 12" 
        intervals [5]:
            xmin = 1.5 
            xmax = 2.3 
            text = "<eps>" 
"""  # noqa: W291 - as Praat writes it
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
2.3
<exists>
3
"IntervalTier"
"phones"
0
2.3
1
0
2.3
"a"
"TextTier"
"words of the hand"
0
2.3
1
0.7
"clap"
"IntervalTier"
"words"
0
2.3
5
0
0.25
""
0.25
0.75
"größer"
0.75
1
"SIL"
1
1.5
"say ""again"" 
 12"
1.5
2.3
"sil"
"""  # noqa: W291
IN_GRID = [Timed("clip", 0.25, 0.75, "größer"), Timed("clip", 1.0, 1.5, 'say "again" 12')]


@pytest.mark.parametrize("form", [LONG, SHORT, SHORT.replace("\n", "\r\n"), SHORT.replace("2.3\n", "2.3 ! the end\n")])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_text_grids_of_praat(tmp_path: Path, form: str, encoding: str) -> None:
    path = tmp_path / "clip.TextGrid"
    path.write_bytes(("\ufeff" if encoding == "utf-16-be" else "").encode(encoding) + form.encode(encoding))
    assert read_times(path) == IN_GRID


def tiers(**labels: str) -> str:
    """A TextGrid in short form with one interval in each tier."""
    each = [f'"IntervalTier"\n"{name}"\n0\n1\n1\n0\n1\n"{label}"\n' for name, label in labels.items()]
    return f'File type = "ooTextFile"\nObject class = "TextGrid"\n\n0\n1\n<exists>\n{len(each)}\n' + "".join(each)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["phones", "words"], "words"),
        (["phones", "Word"], "Word"),
        (["MAU", "ORT-MAU"], "ORT-MAU"),
        (["jo - phones", "jo - words", "al - words"], "jo - words"),
        (["passwords", "other"], "passwords"),  # none is a word tier: the first
    ],
)
def test_the_word_tier_is_known_by_its_name(tmp_path: Path, names: list[str], chosen: str) -> None:
    path = tmp_path / "clip.TextGrid"
    path.write_text(tiers(**{name: f"label of {name}" for name in names}), encoding="utf-8")
    assert [time.word for time in read_times(path)] == [f"label of {chosen}"]


def test_a_folder_of_text_grids_names_recordings_by_their_place(tmp_path: Path) -> None:
    for name in ("b.TextGrid", "s1/a.1.textgrid", "s1/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(tiers(words=f"in {name}"), encoding="utf-8")
    assert [(time.path, time.word) for time in read_times(tmp_path)] == [
        ("b", "in b.TextGrid"),
        ("s1/a.1", "in s1/a.1.textgrid"),
    ]
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WordsError, match=r"empty: a folder of word times needs \.TextGrid files, found none"):
        read_times(empty)


def test_ctm_of_nist(tmp_path: Path) -> None:
    path = tmp_path / "times.ctm"
    path.write_text(
        ";; made by hand\nrec1 1 0.50 0.25 hello 0.98\n\nrec1 A 0.75 0.5 <eps>\n  s1/rec2\tB\t1e1 0.5 wêr 1.0 lex\n",
        encoding="utf-8",
    )
    assert read_times(path) == [Timed("rec1", 0.5, 0.75, "hello"), Timed("s1/rec2", 10.0, 10.5, "wêr")]


@pytest.mark.parametrize("head", ["path\tstart\tend\tword\n", "", "\ufeffpath\tstart\tend\tword\r\n"])
def test_tables(tmp_path: Path, head: str) -> None:
    path = tmp_path / "words.tsv"
    path.write_text(head + "a b.wav\t0.10\t0.50\tit's \"so\r\n\nc.wav\t1\t2\tsp\tmore\n", encoding="utf-8", newline="")
    assert read_times(path) == [Timed("a b.wav", 0.1, 0.5, "it's \"so"), Timed("c.wav", 1.0, 2.0, "sp")]


GRID = SHORT.splitlines()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.ctm", "rec 1 0.5 0.2 x\nrec 1 0.5 0.2", "line 2: recording, channel, start, duration, word are needed"),
        ("a.ctm", "rec 1 0.5 -0.2 x", "line 1: a duration of at least 0 is needed, found -0.2"),
        ("a.ctm", "rec 1 nan 0.2 x", "line 1: recording, channel"),
        ("a.tsv", "a.wav\t1\t2\tx\n" + "y" * 500, "line 2: path, start, end, word are needed, found '" + "y" * 77),
        ("a.tsv", b"a.wav\t1\t2\tx\nb.wav\t1\t2\t\xff\xfe", "line 2: UTF-8 is needed"),
        ("a.TextGrid", b"\xff\xfea\x00\n\x00\x00", "UTF-16 is needed"),
        ("a.TextGrid", "", 'line 1: a text file with "ooTextFile" is needed, found the end'),
        ("a.TextGrid", b"ooBinaryFile\x08TextGrid\x00\x01", 'a text file with "ooTextFile" is needed, found the end'),
        ("a.TextGrid", '"Praat chronological TextGrid text file"\n0 1\n', 'has "ooTextFile" here, found'),
        ("a.TextGrid", '"ooTextFile"\n"Pitch"\n0 1\n', "line 2: a TextGrid in long or short text form has"),
        ("a.TextGrid", "\n".join(GRID[:-1]), "the text of an interval is needed, found the end"),
        ("a.TextGrid", "\n".join([*GRID[:12], "x" * 20, *GRID[13:]]), "line 15: the end of an interval is needed"),
        ("a.TextGrid", "\n".join([*GRID[:11], "1e400", *GRID[12:]]), "line 12: the number of intervals or points"),
        (
            "a.TextGrid",
            "\n".join([*GRID[:11], "1.5", *GRID[12:]]),
            "number of intervals or points is needed, found 1.5",
        ),
        ("a.TextGrid", "\n".join([*GRID[:11], "1" + "0" * 30, *GRID[12:]]), "an interval is needed, found string"),
        ("a.TextGrid", "\n".join([*GRID[:11], "-1", *GRID[12:]]), "number of intervals or points is needed, found -1"),
        ("a.TextGrid", SHORT.replace('"größer"', '"größer'), "a string ends with a quote, found one that does not"),
        ("a.TextGrid", SHORT.replace("0.25\n0.75", "0.25\n0.15"), "an interval that ends after its start is needed"),
        ("a.TextGrid", SHORT.replace("TextTier", "AmplitudeTier"), "line 16: IntervalTier or TextTier is needed"),
        ("a.TextGrid", "\n".join([*GRID[:5], "<absent>"]), "line 6: a tier of intervals is needed, found none"),
        ("a.csv", "a,b", r"word times are read from .tsv, .ctm and .TextGrid, found .csv"),
        ("words", "a", "found no suffix"),
    ],
)
def test_what_is_amiss_is_said_with_its_line(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(WordsError, match=re.escape(says)) as error:
        read_times(path)
    assert str(path) in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 250


def test_a_missing_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(WordsError, match=r"none\.tsv: cannot be read: No such file"):
        read_times(tmp_path / "none.tsv")


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["a.tsv", "a.ctm", "a.TextGrid"]),
    st.one_of(
        st.binary(max_size=60),
        st.tuples(st.integers(0, len(SHORT)), st.integers(0, 12), st.text('"\n\t 0.1x!<>', max_size=6)).map(
            lambda change: (SHORT[: change[0]] + change[2] + SHORT[change[0] + change[1] :]).encode()
        ),
    ),
)
def test_nothing_but_words_or_its_own_error_comes_of_hostile_files(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    with contextlib.suppress(WordsError):
        assert all(isinstance(time.start_s, float) and (time.word or name == "a.tsv") for time in read_times(path))
