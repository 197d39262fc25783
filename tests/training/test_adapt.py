import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

import service
from model import audio
from model.encoder import FRAME_SAMPLES, ConvolutionShape, EncoderShape
from model.tokenizer import Tokenizer, TokenizerError
from model.training import consistency, embedding, noise, selfsearch, stages
from model.training.adapt import (
    ADAPTED_FILE,
    DONE_FILE,
    PAIRS_FILE,
    REPORT_FILE,
    AdaptReport,
    AdaptSettings,
    WorkDiffers,
    adapt,
    helped,
)
from model.training.consistency import Consistency, TooLittleSpeech
from model.training.data import Entry, Pack
from model.training.imported import NotAdaptable, student_from_onnx
from model.training.sample import TooFewRecordings, choose, draw_sample
from model.training.words import Word
from tests.training.corpus import write_corpus
from tests.training.students import ATTENTIVE, SMALL, random_student, write_tokenizer

pytestmark = pytest.mark.training

CPU = torch.device("cpu")
QUICK = AdaptSettings(minutes=0.1, rounds=2, held_out=0.25)
DEMO = Path(service.__file__).parent / "demo" / "archive"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(random_student(), tmp_path_factory.mktemp("small") / "small.onnx")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(write_corpus(tmp_path_factory.mktemp("corpus"), recordings=10, seconds=8.0).iterdir())


@pytest.fixture(scope="module")
def finished(files: list[Path], small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[AdaptReport, Path]:
    work = tmp_path_factory.mktemp("work") / "adapted"
    return adapt(files, small, work, QUICK, CPU, 1), work


def in_memory(waves: list[np.ndarray]) -> Pack:
    """A pack of float waves, each cut to whole frames."""
    cut = [np.round(w[: len(w) - len(w) % FRAME_SAMPLES] * 32_767).astype(np.int16) for w in waves]
    frames = np.array([len(w) // FRAME_SAMPLES for w in cut], np.int64)
    start = np.concatenate([[0], np.cumsum(frames)[:-1]]).astype(np.int64)
    return Pack(np.concatenate(cut), start, frames, [Entry(str(i), "", "", "speech") for i in range(len(cut))])


# The way back from a tokenizer file.


@pytest.mark.parametrize("shape", [SMALL, ConvolutionShape(width=24, hidden=8, blocks=3, kernel=7, dim=16), ATTENTIVE])
def test_import_gives_back_the_tensors_that_were_exported(shape: EncoderShape, tmp_path: Path) -> None:
    student = random_student(shape)
    back = student_from_onnx(write_tokenizer(student, tmp_path / "t.onnx"))
    assert back.shape == shape
    expected, found = student.state_dict(), back.state_dict()
    assert list(expected) == list(found)
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_the_tokenizer_that_ships_imports_and_agrees_with_onnx_runtime(tokenizer_path: Path, tmp_path: Path) -> None:
    samples = audio.read(DEMO / "skerry-radio" / "01-monday.opus")
    student, ships = student_from_onnx(tokenizer_path), Tokenizer(tokenizer_path, threads=1)
    with torch.inference_mode():
        ours = student(torch.from_numpy(samples[None]))[0].numpy()
    # What ships multiplies in 8 bits, and is near; in float32 the same weights agree.
    assert 0.998 < (ours * ships.embed(samples)).sum(1).mean() < 1.0
    whole = Tokenizer(write_tokenizer(student, tmp_path / "whole.onnx"), threads=1)
    assert np.abs(ours - whole.embed(samples)).max() < 1e-4


def test_what_our_export_did_not_write_is_refused(small: Path, tmp_path: Path) -> None:
    def changed(name: str, to: object) -> Path:
        model = onnx.load(small)
        tensor = next(t for t in model.graph.initializer if t.name == name)
        if isinstance(to, str):
            tensor.name = to
            for node in model.graph.node:
                node.input[:] = [to if i == name else i for i in node.input]
        else:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(to), name))
        onnx.save(model, tmp_path / "changed.onnx")
        return tmp_path / "changed.onnx"

    for name, to, says in [
        ("head.bias", "bias", r"head\.bias should be float32 \[32\], found nothing"),
        ("blocks.0.expand.weight", "w", r"expand.weight should be float32 \[24, 16\], found nothing"),
        ("fourier_basis", 0.5, "its weights do not give its embeddings"),
        ("mel_scale", 2.0, "its weights do not give its embeddings"),
    ]:
        with pytest.raises(NotAdaptable, match=says) as caught:
            student_from_onnx(changed(name, to))
        assert caught.value.code == "tokenizer_not_adaptable"
    (tmp_path / "text.onnx").write_text("no tokenizer")
    with pytest.raises(TokenizerError):
        student_from_onnx(tmp_path / "text.onnx")


# Embedding, noise, the sample.


def test_embedding_in_blocks_is_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    student = random_student()
    samples = (np.random.default_rng(0).standard_normal(205 * FRAME_SAMPLES) * 3_000).astype(np.int16)
    whole = embedding.embed_samples(student, samples, CPU)
    monkeypatch.setattr(embedding, "BLOCK_FRAMES", 30)
    assert whole.shape == (205, SMALL.dim)
    assert np.abs(embedding.embed_samples(student, samples, CPU) - whole).max() < 1e-5
    assert embedding.embed_samples(student, samples[:100], CPU).shape == (0, SMALL.dim)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_coloured_noise_falls_as_it_should(exponent: float) -> None:
    x = noise.coloured(160_000, exponent, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(x)) ** 2
    hz = np.fft.rfftfreq(160_000, 1 / 16_000)
    octaves = [power[(hz >= low) & (hz < 2 * low)].mean() for low in (200, 400, 800, 1_600, 3_200)]
    assert np.polyfit(range(5), np.log2(octaves), 1)[0] == pytest.approx(-exponent, abs=0.1)
    assert np.sqrt((x**2).mean()) == pytest.approx(noise.LEVEL, rel=1e-3)


def test_nothing_is_learned_from_what_measures(files: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_text("no sound")
    sample = draw_sample([*files, broken], tmp_path / "work", hours=1.0, held_out=0.25, workers=1, seed=3)
    heard = {Path(sample.whole.entries[i].path) for i in [*sample.train, *sample.held_out]}
    assert heard == set(files)
    assert (len(sample.train), len(sample.held_out)) == (8, 2)
    learned = {int(f) for a, n in zip(sample.pieces.start, sample.pieces.frames, strict=True) for f in range(a, a + n)}
    measured = {int(sample.whole.start[r]) + f for r in sample.held_out for f in range(int(sample.whole.frames[r]))}
    assert learned == set(range(sample.learned_frames))
    assert not learned & measured
    assert len(learned | measured) == int(sample.whole.frames.sum())
    assert len(sample.pieces.recordings("noise")) == len(noise.EXPONENTS)
    again = draw_sample([], tmp_path / "work", hours=1.0, held_out=0.25, workers=1, seed=3)
    assert [e.path for e in again.whole.entries] == [e.path for e in sample.whole.entries]


def test_as_many_files_are_chosen_as_fit(files: list[Path]) -> None:
    assert sorted(choose(files, 1.0, 0)) == files
    five = choose(files, 5.5 * 8.0 / 3600, 0)
    assert len(five) == len(set(five)) == 5
    assert choose(files, 5.5 * 8.0 / 3600, 0) == five != choose(files, 5.5 * 8.0 / 3600, 1)
    assert len(choose(files, 0.0001, 0)) == 4  # none fits: the shortest few all the same


# Pairs.


def test_words_move_to_another_division_of_the_samples() -> None:
    pack = in_memory([np.zeros(FRAME_SAMPLES * n) for n in (30, 100, 45)])
    cut = selfsearch.pieces(pack, 40)
    assert cut.frames.tolist() == [30, 40, 40, 20, 40, 5]
    assert cut.start.tolist() == [0, 30, 70, 110, 130, 170]
    assert [entry.path for entry in cut.entries] == ["0", "1", "1", "1", "2", "2"]
    words = [
        Word(0, 5, 16, "~/0", "0"), Word(1, 50, 16, "~/0", "1"),
        Word(0, 5, 16, "~/1", "0"), Word(1, 30, 16, "~/1", "1"),  # over the cut at frame 40
        Word(1, 80, 16, "~/2", "1"), Word(2, 24, 16, "~/2", "2"),
    ]  # fmt: skip
    moved = selfsearch.shifted(words, pack, cut)
    assert [(w.recording, w.first, w.label) for w in moved] == [
        (0, 5, "~/0"), (2, 10, "~/0"), (3, 0, "~/2"), (4, 24, "~/2"),
    ]  # fmt: skip
    for before, after in zip([words[i] for i in (0, 1, 4, 5)], moved, strict=True):
        assert pack.start[before.recording] + before.first == cut.start[after.recording] + after.first


def test_the_search_finds_what_is_said_in_two_recordings(tokenizer_path: Path) -> None:
    a, b, c, said = (audio.read(path)[: 16_000 * 8] for path in sorted((DEMO / "kurzwelle").glob("*.opus"))[:4])
    said = said[16_000 : 16_000 * 3]
    pack = in_memory([np.concatenate([a[:64_000], said, a[64_000:]]), np.concatenate([b[:32_000], 0.9 * said, b]), c])
    student = student_from_onnx(tokenizer_path)
    found = selfsearch.find_pairs(student, pack, np.arange(3), CPU, budget_s=1e6, most=100, seed=0)
    inside = [
        (x.first - 100, y.first - 50) if x.recording == 0 else (y.first - 100, x.first - 50)
        for x, y in zip(found[::2], found[1::2], strict=True)
        if {x.recording, y.recording} == {0, 1}
    ]
    assert sum(abs(at - there) <= 1 and -8 <= at <= 42 for at, there in inside) >= 2, inside
    assert all(x.recording != y.recording for x, y in zip(found[::2], found[1::2], strict=True))


# The measure.


def test_edit_similarity_agrees_with_the_textbook() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        one, other = (rng.integers(0, 3, rng.integers(1, 12)).astype(np.uint16) for _ in range(2))
        a, b = ([int(v) for i, v in enumerate(x) if i == 0 or v != x[i - 1]] for x in (one, other))
        table = [[max(i, j) if 0 in (i, j) else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
        for i in range(1, len(a) + 1):
            for j in range(1, len(b) + 1):
                table[i][j] = min(
                    table[i - 1][j] + 1, table[i][j - 1] + 1, table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
                )
        assert consistency.edit_similarity(one, other) == pytest.approx(1 - table[-1][-1] / max(len(a), len(b)))


def test_the_measure_knows_noise_and_repeats_itself(tokenizer_path: Path) -> None:
    student = student_from_onnx(tokenizer_path)
    pack = in_memory([audio.read(path)[: 16_000 * 10] for path in sorted((DEMO / "field-notes").glob("*.opus"))[:3]])
    worse = consistency.hold_out(pack, np.arange(3), [], seed=1)
    clean = replace(
        worse,
        clips=np.stack(
            [
                pack.waveform(int(r))[f * FRAME_SAMPLES : (f + consistency.CLIP_FRAMES) * FRAME_SAMPLES] / 32_767
                for r, f in zip(worse.of, worse.first, strict=True)
            ]
        ).astype(np.float32),
    )
    figure = consistency.measure(student, worse, CPU)
    assert figure == consistency.measure(student, consistency.hold_out(pack, np.arange(3), [], seed=1), CPU)
    assert figure.words is None
    assert 0.0 < figure.tokens < consistency.measure(student, clean, CPU).tokens < 1.0
    assert worse.clips.shape == (len(worse.of), consistency.CLIP_FRAMES * FRAME_SAMPLES)
    assert np.sqrt((worse.clips**2).mean(1)).max() <= consistency.SPEECH_RMS * 1.01


def test_words_are_measured_where_there_are_enough_pairs(tokenizer_path: Path) -> None:
    student = student_from_onnx(tokenizer_path)
    said = audio.read(DEMO / "field-notes" / "01-cliff.opus")[: 16_000 * 15]
    pack = in_memory([said, 0.5 * said])
    places = [5 + 16 * i for i in range(consistency.LEAST_PAIRS)]
    words = [Word(r, at, 16, f"~/{at}", str(r)) for at in places for r in (0, 1)]
    right = consistency.measure(student, consistency.hold_out(pack, np.arange(2), words, seed=0), CPU).words
    moved = [replace(w, first=places[(i // 2 + 7 * (i % 2)) % len(places)]) for i, w in enumerate(words)]
    wrong = consistency.measure(student, consistency.hold_out(pack, np.arange(2), moved, seed=0), CPU).words
    assert right is not None
    assert wrong is not None
    assert wrong < 0.3 < 0.7 < right <= 1.0
    fewer = consistency.hold_out(pack, np.arange(2), words[:-2], seed=0)
    assert consistency.measure(student, fewer, CPU).words is None


def test_silence_cannot_be_measured_with() -> None:
    with pytest.raises(TooLittleSpeech, match="have 0 stretches of speech"):
        consistency.hold_out(in_memory([np.zeros(16_000 * 5)]), np.arange(1), [], seed=0)


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ((0.500, 0.40), (0.506, 0.40), True),
        ((0.500, 0.40), (0.504, 0.60), False),
        ((0.500, 0.40), (0.600, 0.395), True),
        ((0.500, 0.40), (0.600, 0.38), False),
        ((0.500, None), (0.506, None), True),
        ((0.500, None), (0.490, None), False),
    ],
)
def test_it_helped_if_tokens_gained_and_words_kept(
    before: tuple[float, float | None], after: tuple[float, float | None], verdict: bool
) -> None:
    assert helped(Consistency(*before), Consistency(*after)) is verdict


# All together.


def test_adapting_leaves_a_tokenizer_and_both_figures(finished: tuple[AdaptReport, Path], small: Path) -> None:
    report, work = finished
    for figures in (report.before, report.after):
        assert 0.0 < figures.tokens < 1.0
    assert report.helped == helped(report.before, report.after)
    assert (report.recordings, report.held_out, len(report.pairs_per_round)) == (10, 2, 2)
    assert report.hours == pytest.approx(80 / 3600, abs=1e-3)
    assert json.loads(json.dumps(report.as_json()))["before"]["tokens"] == round(report.before.tokens, 4)
    adapted = Tokenizer(work / ADAPTED_FILE, threads=1)
    start, last = (student_from_onnx(path) for path in (small, work / ADAPTED_FILE))
    trained = stages.load_student(work / "round-2" / stages.WEIGHTS_FILE).state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in last.state_dict().items())
    assert not torch.equal(start.head.weight, last.head.weight)
    assert (adapted.info.name, adapted.info.licence) == ("small-adapted", "Apache-2.0")
    assert adapted.info.version.startswith("1+")
    assert adapted.info.trained_on == "noise and the archive's own audio"


def test_a_finished_run_is_not_run_again(finished: tuple[AdaptReport, Path], files: list[Path], small: Path) -> None:
    report, work = finished
    state = {path: path.stat().st_mtime_ns for path in work.rglob("*")}
    assert adapt(files, small, work, QUICK, CPU, 1) == report
    assert {path: path.stat().st_mtime_ns for path in work.rglob("*")} == state


def test_a_run_that_was_stopped_goes_on(
    finished: tuple[AdaptReport, Path], files: list[Path], small: Path, tmp_path: Path
) -> None:
    report, work = finished
    stopped = tmp_path / "stopped"
    shutil.copytree(work, stopped)
    for left in (REPORT_FILE, ADAPTED_FILE, f"round-2/{DONE_FILE}", f"round-2/{PAIRS_FILE}"):
        (stopped / left).unlink()
    for left in (stages.CHECKPOINT_FILE, stages.WEIGHTS_FILE):
        (stopped / "round-2" / left).unlink()
    kept = {path: path.stat().st_mtime_ns for path in stopped.rglob("*") if path.is_file()}
    again = adapt(files, small, stopped, QUICK, CPU, 1)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (stopped / "round-2" / DONE_FILE).exists()
    assert (again.before, again.pairs_per_round[0]) == (report.before, report.pairs_per_round[0])
    student_from_onnx(stopped / ADAPTED_FILE)


def test_a_work_folder_serves_one_purpose(
    finished: tuple[AdaptReport, Path], files: list[Path], small: Path, tmp_path: Path
) -> None:
    _, work = finished
    with pytest.raises(WorkDiffers, match=r"was begun with minutes 0\.1 \(now 3\.0\): remove"):
        adapt(files, small, work, replace(QUICK, minutes=3.0), CPU, 1)
    other = write_tokenizer(random_student(seed=4), tmp_path / "other.onnx")
    with pytest.raises(WorkDiffers, match="was begun with tokenizer"):
        adapt(files, other, work, QUICK, CPU, 1)


def test_too_few_recordings_are_refused(files: list[Path], small: Path, tmp_path: Path) -> None:
    with pytest.raises(TooFewRecordings, match="3 recordings could be decoded: adapting needs 4"):
        adapt(files[:3], small, tmp_path / "work", QUICK, CPU, 1)


def test_a_second_adaptation_does_not_pile_up_names(files: list[Path], small: Path, tmp_path: Path) -> None:
    quick = AdaptSettings(minutes=0.0, rounds=1, held_out=0.25)
    adapt(files, small, tmp_path / "one", quick, CPU, 1)
    adapt(files, tmp_path / "one" / ADAPTED_FILE, tmp_path / "two", quick, CPU, 1)
    one, two = (Tokenizer(tmp_path / name / ADAPTED_FILE, threads=1).info for name in ("one", "two"))
    assert (two.name, two.trained_on, two.version.count("+")) == (one.name, one.trained_on, 1)
