import unicodedata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.evaluation import lines
from service.evaluation.errors import ReferencesError
from service.evaluation.names import RecordingNames
from service.evaluation.references import References, comparable, read_references
from service.evaluation.tasks import Place

NAMES = RecordingNames(["radio/one.opus", "two.wav", "x/same.wav", "y/same.flac", "café.wav", "both", "both.wav"])


def read(folder: Path, text: str | bytes, suffix: str = ".ctm") -> References:
    path = folder / f"ref{suffix}"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_references(path, NAMES)


def test_ctm_is_read(tmp_path: Path) -> None:
    words = read(
        tmp_path,
        "\ufeff;; a comment\n\ntwo 1 0.50 .25 Hello 0.93\r\n  two 1 1e0 0.5 world NA\n"
        "radio/one A 2 0 hello -0.5 lex x\n",
    )
    assert words.find("HELLO") == (Place("radio/one.opus", 2.0, 2.0), Place("two.wav", 0.5, 0.75))
    assert words.find("hello world") == (Place("two.wav", 0.5, 1.5),)
    assert words.find("world hello") == words.find("nothing") == words.find("  ") == ()
    assert words.recordings == {"two.wav", "radio/one.opus"}


def test_rttm_is_read(tmp_path: Path) -> None:
    words = read(
        tmp_path,
        ";; type file chnl tbeg tdur ortho stype name conf\n"
        "SPKR-INFO two 1 <NA> <NA> <NA> unknown spk1 <NA>\n"
        "SPEAKER two 1 0.0 3.0 <NA> <NA> spk1 <NA>\n"
        "LEXEME two 1 0.4 0.3 Good lex spk1 0.9\n"
        "NON-LEX two 1 0.7 0.1 <NA> breath spk1 <NA>\n"
        "LEXEME two 1 0.8 0.4 morning lex spk1 <NA> <NA>\n"
        "LEXEME two 1 1.3 0.1 <NA> un-lex spk1 <NA>\n",
        ".RTTM",
    )
    assert words.find("good morning") == (Place("two.wav", 0.4, 1.2),)


@pytest.mark.parametrize(
    ("gap", "found"), [("0.79", 1), ("0.8", 0), ("0.81", 0), ("0.25", 1)], ids=["just", "half", "far", "overlap"]
)
def test_words_of_a_term_are_less_than_half_a_second_apart(tmp_path: Path, gap: str, found: int) -> None:
    # .2 + .1 is a little more than .3 in floating point: half a second is half a second all the same.
    assert len(read(tmp_path, f"two 1 0.2 0.1 ice\ntwo 1 {gap} 0.3 cream\n").find("ice cream")) == found


def test_words_of_a_term_are_neighbours_on_one_channel(tmp_path: Path) -> None:
    words = read(
        tmp_path,
        "two A 0.0 0.2 ice\ntwo B 0.2 0.2 cream\n"  # another channel
        "two A 5.5 0.2 cream\ntwo A 5.0 0.2 ice\n"  # not in order
        "two A 8.0 0.2 ice\ntwo A 8.2 0.1 uh\ntwo A 8.3 0.2 cream\n",  # something between
    )
    assert words.find("ice cream") == (Place("two.wav", 5.0, 5.7),)
    assert len(read(tmp_path, "two 1 0 .1 no\ntwo 1 .1 .1 no\ntwo 1 .2 .1 no\n").find("no no")) == 2


def test_case_and_unicode_form_do_not_matter(tmp_path: Path) -> None:
    words = read(tmp_path, "cafe\u0301 1 0 1 STRASSE\ncafé 1 1 1 e\u0301te\u0301\n")
    assert words.find("straße") == (Place("café.wav", 0.0, 1.0),)
    assert words.find("ÉTÉ") == (Place("café.wav", 1.0, 2.0),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("two 1 0.5 0.5\n", "line 1: 4 fields where CTM has 5 or more"),
        ("\n;;\ntwo 1 nan 0.5 a\n", "line 3: 'nan' is no number of seconds"),
        ("two 1 inf 0.5 a\n", "'inf' is no number"),
        ("two 1 -1 0.5 a\n", "'-1' is no number"),
        ("two 1 1 -0.5 a\n", "'-0.5' is no number"),
        ("two 1 1_0 1 a\n", "'1_0' is no number"),
        ("two 1 \uff11 1 a\n", "is no number"),
        (f"two 1 {'9' * 400} 1 a\n", "…' is no number"),
        ("two 1 * * <ALT_BEGIN>\n", "'[*]' is no number"),
        ("two 1 0.5 0.5 new york\n", "'york' where a confidence should be"),
        ("three 1 0.5 0.5 a\n", "line 1: the archive has no recording 'three'"),
        ("same 1 0.5 0.5 a\n", "'same' may be 'x/same.wav' or 'y/same.flac'"),
        (b"two 1 0.5 0.5 \xff\n", "line 1: not UTF-8"),
        ("two 1 0 1 a\n".encode("utf-16"), "line 1: not UTF-8"),
        (b"two 1 0 1 a\x00b\n" + b"x" * (2 << 20), "line 2: longer than 1,048,576 bytes"),
        ("", "has no words"),
        (";; nothing\n", "has no words"),
    ],
)  # fmt: skip
def test_what_is_no_ctm_is_refused_in_one_line(tmp_path: Path, text: str | bytes, says: str) -> None:
    with pytest.raises(ReferencesError, match=says) as caught:
        read(tmp_path, text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("two 1 0 1 a\n", "'two' is no type of RTTM"),
        ("LEXEME two 1 0.5 0.5\n", "5 fields where LEXEME has 6 or more"),
        ("LEXEME two 1 <NA> <NA> a lex x <NA>\n", "'<NA>' is no number"),
        ("SPEAKER two 1 0 1 <NA> <NA> x <NA>\n", "has no words, no LEXEME line"),
    ],
)
def test_what_is_no_rttm_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ReferencesError, match=says):
        read(tmp_path, text, ".rttm")


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ReferencesError, match="references are a "):
        read_references(tmp_path / "ref.txt", NAMES)
    with pytest.raises(ReferencesError, match="cannot be read: No such file"):
        read_references(tmp_path / "none.ctm", NAMES)
    (tmp_path / "folder.ctm").mkdir()
    with pytest.raises(ReferencesError, match="cannot be read: Is a directory"):
        read_references(tmp_path / "folder.ctm", NAMES)


def test_names_are_found_full_without_extension_and_bare() -> None:
    assert NAMES.find("radio/one.opus") == NAMES.find("radio/one") == NAMES.find("one") == "radio/one.opus"
    assert NAMES.find("x/same") == "x/same.wav"
    assert NAMES.find("both") == "both"  # a full name goes first
    assert NAMES.id_of("radio/one.opus") == "radio/one"
    assert NAMES.id_of("both.wav") == "both.wav"  # without its extension it would be another
    assert RecordingNames(["a.wav", "a.mp3"]).id_of("a.wav") == "a.wav"
    with pytest.raises(LookupError, match=r"'a' may be 'a\.1' or 'a\.2' or 'a\.3' and 2 more"):
        RecordingNames([f"a.{n}" for n in range(1, 6)]).find("a")


tokens = st.text(st.characters(exclude_categories=["Z", "C"]), min_size=1, max_size=6).filter(
    lambda token: token.split() == [token]
)
times = st.integers(0, 100_000).map(lambda hundredths: hundredths / 100)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["two.wav", "radio/one.opus"]), st.sampled_from("AB"), times, times, tokens),
        min_size=1,
        max_size=20,
    ),
    st.sampled_from(["NFC", "NFD"]),
)
def test_what_is_written_is_read(tmp_path: Path, said: list[tuple[str, str, float, float, str]], form: str) -> None:
    text = "".join(
        f"{NAMES.id_of(name)} {channel} {start:.2f} {length:.2f} {unicodedata.normalize(form, token)} NA\n"
        for name, channel, start, length, token in said
    )
    words = read(tmp_path, text)
    for token in {token for *_, token in said}:
        assert set(words.find(token)) == {
            Place(name, start, round(start + length, 6))
            for name, _, start, length, other in said
            if comparable(other) == comparable(token)
        }


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200), st.sampled_from([".ctm", ".rttm"]))
def test_any_bytes_are_words_or_one_clear_error(tmp_path: Path, data: bytes, suffix: str) -> None:
    try:
        read(tmp_path, data, suffix)
    except ReferencesError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


def test_a_line_without_end_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LINE_BYTES", 20)
    with pytest.raises(ReferencesError, match="line 2: longer than 20 bytes"):
        read(tmp_path, "two 1 0 1 a\n" + "two " * 10)
