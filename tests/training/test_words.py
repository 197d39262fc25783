"""Who teaches and who only measures, which labels a batch gets, and whose words a file of times names."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rapidfuzz import fuzz

from model.training.data import Entry, Pack
from model.training.words import Groups, LabelSampler, Word, WordsError, read_words, sound_alikes

pytestmark = pytest.mark.training

FRAMES = 100


def some_words(labels: int = 60, speakers: int = 20) -> list[Word]:
    """Three speakers a label; speaker "loud" says a third of all; and a label that one speaker alone says."""
    rng = np.random.default_rng(0)
    words = [
        Word(0, label, 10, f"en/word{label}", f"s{speaker}")
        for label in range(labels)
        for speaker in [*rng.choice(speakers, 2, replace=False), "loud"]
    ]
    return [*words, Word(1, 0, 10, "en/lonely", "s1"), Word(1, 50, 10, "en/lonely", "s1")]


def test_held_out_labels_and_speakers_never_teach() -> None:
    words = some_words()
    groups = Groups(words, held_labels=0.1, held_speakers=0.2)
    held = {word.label for word in groups.held_out}
    assert len(held) == 6
    assert not held & set(groups.labels)
    assert {word for word in words if word.label in held} == set(groups.held_out)
    assert groups.held_speakers
    taught = [word for group in groups.of.values() for word in group]
    assert not {word.speaker for word in taught} & groups.held_speakers
    # A voice that a large part of the words is said by is kept to learn from.
    assert "sloud" in {word.speaker for word in taught}
    assert "en/lonely" not in {*groups.labels, *held}
    assert all(len({word.speaker for word in group}) > 1 for group in groups.of.values())
    assert groups.labels == sorted(groups.of)


def test_groups_do_not_depend_on_the_order_of_the_words_but_on_the_seed() -> None:
    words = some_words()
    one, two = Groups(words, seed=1), Groups(words[::-1], seed=1)
    assert one.labels == two.labels
    assert one.held_speakers == two.held_speakers
    assert one.labels != Groups(words, seed=2).labels


def test_a_pair_is_one_label_by_two_speakers() -> None:
    groups = Groups(some_words())
    rng = np.random.default_rng(1)
    for label in groups.labels:
        a, b = groups.pair(label, rng)
        assert a.label == b.label == label
        assert a.speaker != b.speaker


def test_no_words_make_empty_groups() -> None:
    groups = Groups([])
    assert groups.labels == []
    assert groups.held_out == []
    assert LabelSampler(groups, frozenset(), 0.4, 0.3).draw(5, np.random.default_rng(0)) == []


def test_sound_alikes_are_the_nearest_spellings_of_the_same_language() -> None:
    labels = ["en/water", "en/waiter", "en/later", "en/mother", "de/wasser", "de/wassern", "nl/water"]
    near = sound_alikes(labels, 2)
    assert near["en/water"] == ["en/waiter", "en/later"]
    assert near["de/wasser"] == ["de/wassern"]
    assert near["nl/water"] == []
    for label in labels:
        others = [x for x in labels if x != label and x[:2] == label[:2]]
        ratios = sorted((fuzz.ratio(label, x) for x in others), reverse=True)
        assert [fuzz.ratio(label, x) for x in near[label]] == pytest.approx(ratios[:2])


def test_a_drawn_batch_has_no_label_twice() -> None:
    labels = {f"{language}/{name}{i}": [] for language in ("en", "fr") for name in ("alpha", "beta") for i in range(10)}
    groups = Groups([])
    groups.of, groups.labels = labels, sorted(labels)
    rng = np.random.default_rng(0)
    for hard in (0.0, 0.5, 1.0):
        sampler = LabelSampler(groups, frozenset({"en"}), hard, 0.3)
        drawn = [sampler.draw(12, rng) for _ in range(100)]
        assert all(len(set(batch)) == 12 for batch in drawn)
        if hard == 0.0:
            share = np.mean([label.startswith("fr") for batch in drawn for label in batch])
            assert 0.2 < share < 0.4
        # Labels that sound like the first are drawn with it, the more the harder a batch is to be.
        near = np.mean([sum(x in sampler.near[batch[0]] for x in batch[1:]) for batch in drawn])
        if hard == 0.0:
            easy = near
    assert near > 1.2 * easy


@pytest.mark.parametrize(("hard", "other"), [(0.0, 0.0), (1.0, 0.0), (0.4, 0.35), (1.0, 1.0)])
def test_where_labels_are_few_all_of_them_are_drawn(hard: float, other: float) -> None:
    groups = Groups([])
    groups.labels = ["en/cellar", "en/seller", "fr/maison"]
    sampler = LabelSampler(groups, frozenset({"en"}), hard, other)
    for seed in range(20):
        assert sorted(sampler.draw(24, np.random.default_rng(seed))) == groups.labels
        # Nor does it end where one pool is drawn empty and never another asked for.
        assert len(set(sampler.draw(3, np.random.default_rng(seed)))) == 3
        assert len(sampler.draw(2, np.random.default_rng(seed))) == 2


def pack_of(*paths: str) -> Pack:
    entries = [Entry(path, "en", f"s{i}", "speech") for i, path in enumerate(paths)]
    frames = np.full(len(paths), FRAMES, np.int64)
    return Pack(np.zeros(0, np.int16), np.arange(len(paths)) * FRAMES, frames, entries)


def tsv(folder: Path, *lines: str) -> Path:
    path = folder / "words.tsv"
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_words_lie_on_the_frames_of_their_times(tmp_path: Path) -> None:
    path = tsv(
        tmp_path, "path\tstart\tend\tword", "b.wav\t0.39\t0.81\twater", "b.wav\t3.50\t4.50\tmother",
        "a.wav\t-0.02\t0.20\tearly", "gone.wav\t0.10\t0.50\twater", "a.wav\t0.10\t0.50\tthe",
        "a.wav\t0.10\t0.20\tshort", "a.wav\t0.10\t2.50\tlengthy", "a.wav\t1.00\t0.40\tbackwards",
        "a.wav\t1.00\t1.40\tsecret", "a.wav\t9.00\t9.40\tbeyond",
    )  # fmt: skip
    assert read_words(path, pack_of("a.wav", "b.wav"), excluded=["secret"]) == [
        Word(1, 10, 10, "en/water", "s1"),
        Word(1, 88, 12, "en/mother", "s1"),  # cut at the end of the recording
        Word(0, 0, 5, "en/early", "s0"),
    ]
    assert "en/the" in {word.label for word in read_words(path, pack_of("a.wav", "b.wav"), min_letters=3)}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a.wav\t0.1\t0.5", "path, start, end, word are needed, found 'a.wav\\t0.1\\t0.5'"),
        ("a.wav\tnow\t0.5\tword", "path, start, end, word are needed"),
        ("a.wav\tnan\t0.5\tword", "path, start, end, word are needed"),
        ("a.wav\t0.1\tinf\tword", "path, start, end, word are needed"),
        ("just text", "path, start, end, word are needed, found 'just text'"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = tsv(tmp_path, "path\tstart\tend\tword", "a.wav\t0.1\t0.5\tword", "", line)
    with pytest.raises(WordsError, match=re.escape(f"{path}, line 4: {says}")) as error:
        read_words(path, pack_of("a.wav"))
    assert error.value.code == "words_invalid"


def recordings_of(path: Path, pack: Pack) -> list[int]:
    return [word.recording for word in read_words(path, pack)]


def ctm(folder: Path, *names: str) -> Path:
    path = folder / "times.ctm"
    path.write_text("".join(f"{name} 1 0.4 0.6 something\n" for name in names), encoding="utf-8")
    return path


def test_recordings_are_found_by_path_then_without_suffix_then_by_stem(tmp_path: Path) -> None:
    pack = pack_of("x/one.wav", "y/one.ogg", "y/two.wav", "three.wav", "four.1.wav")
    assert recordings_of(ctm(tmp_path, "y/one", "three", "two", "four.1"), pack) == [1, 3, 2, 4]
    assert recordings_of(tsv(tmp_path, "x/one.wav\t1\t2\tsomething", "y/two\t1\t2\tsomething"), pack) == [0, 2]
    # Two recordings have the stem "one": it names neither.
    assert recordings_of(ctm(tmp_path, "one", "three"), pack) == [3]
    # Two of one name that differ in suffix alone: without it they are not told apart.
    assert Counter(recordings_of(ctm(tmp_path, "a", "b"), pack_of("a.wav", "a.ogg", "b.wav"))) == {2: 1}


def test_a_recording_left_out_is_not_taken_for_its_namesake(tmp_path: Path) -> None:
    pack = pack_of("train/s1/001.wav", "train/s1/002.wav")
    assert recordings_of(ctm(tmp_path, "train/s1/002", "dev/s7/001"), pack) == [1]
    assert recordings_of(tsv(tmp_path, "train/s1/002.wav\t1\t2\tsomething", "001.flac\t1\t2\tsomething"), pack) == [1]
    # But where no folder fits, the times lie in other folders than the sound.
    assert recordings_of(ctm(tmp_path, "aligned/002", "aligned/001"), pack) == [1, 0]
    assert recordings_of(ctm(tmp_path, "p/002", "q/002", "q/001"), pack) == [0]


def test_times_of_no_recording_at_all_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(WordsError, match=r"times\.ctm: none of its recordings is in the corpus, the first is other/x"):
        read_words(ctm(tmp_path, "other/x"), pack_of("a.wav"))
    (tmp_path / "empty.ctm").write_text("")
    assert read_words(tmp_path / "empty.ctm", pack_of("a.wav")) == []
