"""Phones: what is read aloud, where, and what is never read."""
# ruff: noqa: RUF001  (letters of the phonetic alphabet look like others)

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from model.training import phones
from model.training.data import Entry, Pack
from model.training.phones import PAUSE, Phones, PhonesError, Said, padded_labels, parse, read_phones, spelled

pytestmark = pytest.mark.training
needs_espeak = pytest.mark.skipif(shutil.which(phones.PROGRAM) is None, reason="eSpeak NG is not installed")


def test_what_espeak_prints_becomes_words_of_base_letters() -> None:
    assert parse("ðə twˈɛntiəθ tʃˈaɪld\n") == (
        ("ð", "ə"),
        ("t", "w", "ɛ", "n", "t", "i", "ə", "θ"),
        ("t", "ʃ", "a", "ɪ", "l", "d"),
    )
    assert parse("ʃˈøːnɜ tˈɑːk nˈei5 sãtʰ") == (
        ("ʃ", "ø", "n", "ɜ"),
        ("t", "ɑ", "k"),
        ("n", "e", "i"),
        ("s", "a", "t"),
    )
    assert parse("(en)tʃˈaɪniːz(cmn)") == ()
    assert parse("") == ()


def test_marks_are_not_read() -> None:
    assert spelled('He said: "don\'t — ever!"  (1)') == "He said don't ever"
    assert spelled("ഒരു മരം, കേറ്റം?") == "ഒരു മരം കേറ്റം"


def test_labels_have_pauses_around_words_and_no_equal_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phones, "RARE", 2)
    said = [Said(0, 0, 20, (("b", "a", "a"), ("b", "q"), ("q2",))), Said(1, 5, 20, (("a", "b"),))]
    found = Phones(said, {"en/ab": ("a", "b")})
    assert found.alphabet == ["a", "b"]  # the others are said once
    assert found.size == 3
    assert found.labels_of == [[PAUSE, 2, 1, PAUSE, 2, PAUSE], [PAUSE, 1, 2, PAUSE]]
    assert found.of_word == {"en/ab": [PAUSE, 1, 2, PAUSE]}
    labels, lengths = padded_labels(found.labels_of, torch.device("cpu"))
    assert labels.tolist() == [[0, 2, 1, 0, 2, 0], [0, 1, 2, 0, 0, 0]]
    assert lengths.tolist() == [6, 4]


SPOKEN = [
    (0.4, 0.8, "green"), (0.8, 1.2, "light"), (1.2, 1.6, "secret"), (1.6, 2.0, "green"), (3.0, 3.4, "light"),
]  # fmt: skip
TEXTS = [
    ("a.wav", "en", "green light secret green light"),
    ("b.wav", "de", "Guten Tag!"),
    ("c.wav", "de", "das Secret"),
]


def corpus(folder: Path) -> tuple[Pack, Path, Path]:
    """Three recordings of 6 s: one with word times, one with a transcript, one whose transcript has a word held out."""
    frames = np.full(3, 150, np.int64)
    entries = [Entry(f"{n}.wav", language, n, "speech") for n, language in (("a", "en"), ("b", "de"), ("c", "de"))]
    pack = Pack(np.zeros(450 * 640, np.int16), np.array([0, 150, 300]), frames, entries)
    words = folder / "words.tsv"
    words.write_text(
        "path\tstart\tend\tword\n" + "".join(f"a.wav\t{start}\t{end}\t{word}\n" for start, end, word in SPOKEN)
    )
    manifest = folder / "manifest.tsv"
    manifest.write_text(
        "path\tcorpus\tlanguage\tspeaker\tsplit\ttext\tseconds\n"
        + "".join(f"{path}\tx\t{language}\ts\ttrain\t{text}\t6\n" for path, language, text in TEXTS)
    )
    return pack, words, manifest


@needs_espeak
def test_runs_of_timed_words_and_whole_transcripts_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phones, "RARE", 1)
    pack, words, manifest = corpus(tmp_path)
    found = read_phones(pack, words, manifest, {"secret"})
    spans = [(s.recording, s.first, s.frames, len(s.words)) for s in found.said]
    # The excluded word ends a run, and so does a pause; the recording that says it without times is left out.
    assert spans == [(0, 10, 20, 2), (0, 40, 10, 1), (0, 75, 10, 1), (1, 0, 150, 2)]
    assert found.said[0].words == (("ɡ", "ɹ", "i", "n"), ("l", "a", "ɪ", "t"))
    assert found.said[3].words[1][0] == "t"
    assert set(found.of_word) == {"en/green", "en/light"}


def test_without_espeak_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phones, "PROGRAM", "no-such-program")
    pack, words, manifest = corpus(tmp_path)
    with pytest.raises(PhonesError, match="no-such-program turns transcripts into phones, and is not installed"):
        read_phones(pack, words, manifest, set())


@needs_espeak
def test_every_voice_is_one_that_espeak_has() -> None:
    listed = subprocess.run([phones.PROGRAM, "--voices"], capture_output=True, text=True, check=True).stdout
    there = {line.split()[1] for line in listed.splitlines()[1:]}
    assert set(phones.VOICES.values()) - there <= {"yue"}  # listed with a name in brackets in some releases
