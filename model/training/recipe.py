"""From a folder of sound to a tokenizer: pack, teacher, tuning, targets, stages, codebook; each can be resumed."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.codebook import Codebook, fit_codebook
from model.encoder import FRAME_SECONDS, AttentionShape, parameter_count
from model.export import Description, export
from model.graph import Bits
from model.training import data, features, mining, stages, targets, teacher, tuning
from model.training.codecs import add_copies
from model.training.distil import Sampler
from model.training.embedding import embed_recordings
from model.training.features import Whitening
from model.training.imported import student_from_onnx
from model.training.inherit import inherit
from model.training.lesson import Lesson
from model.training.lowrank import TunedTeacher, load_tuned, projection_of
from model.training.pairs import WordSampler
from model.training.phones import Phones, read_phones
from model.training.rooms import load_rooms
from model.training.sound import Sound
from model.training.student import Student
from model.training.tuningsettings import TuningSettings
from model.training.views import Views
from model.training.words import Groups, LabelSampler, Word, read_words
from model.tuned import DEFAULT_TUNED

CPU = torch.device("cpu")
INHERITED_FILE, START_FILE = "inherited.safetensors", "start.safetensors"
MINED_FILE = "mined.json"
CODEBOOK_FILE, CARD_FILE, DONE_FILE = "codebook.npz", "card.json", "done.json"
TUNED_PART_FILE = "accurate.safetensors"
TUNED_PART = Description(
    "accurate", "1", "Apache-2.0; the encoder it is put on: MIT", "OpenAI Whisper base, tuned; see the model card"
)
CODEBOOK_SIZE, PART_CODEBOOK_SIZE = 4_096, 1_024  # of the student's own, and of the tuned part's
CODEBOOK_FRAMES = 150_000
NOISE_SHARE = 0.05  # of the frames that the codebook is fitted to


class TrainingError(Exception):
    """A stage lacks what the one before should have left."""

    code = "training_failed"


@dataclass(frozen=True)
class Corpus:
    """Where the sound lies: a folder, and a manifest with its splits, or none for every file in the folder.

    `words` has word times (see `words.read_words`), `excluded` words that never serve as pairs. `phones` reads what
    was said aloud (see `phones.read_phones`), for a teacher that is tuned.
    """

    folder: Path
    manifest: Path | None
    splits: tuple[str, ...] = ("train", "noise")
    words: Path | None = None
    excluded: frozenset[str] = frozenset()
    phones: bool = False


@dataclass(frozen=True)
class Plan:
    """What is trained: the teacher's tuning, which goes on from a tuned part if there is one, then the stages."""

    stages: tuple[stages.Stage, ...]
    tuning: TuningSettings | None = None
    tuned: Path | None = None


def plan(
    minutes: float, tune_minutes: float, tuned: Path | None, pairs: tuple[float, float] | int,
    rate: float = stages.Stage.learning_rate, scale: int = 1,
) -> Plan:  # fmt: skip
    """The usual plan: tuning if it is asked for, `minutes` of distillation, and the word stages.

    `pairs` has the minutes of Stage I and of Stage II where there are words, or, where there are none, the rounds of
    pairs found by their sound, which share a third of `minutes`. `rate` is distillation's highest learning rate, and
    batches are `scale` times as large as on a CPU. Without a tuned part the one that ships serves.
    """
    if tuned is None and not tune_minutes and DEFAULT_TUNED.exists():
        tuned = DEFAULT_TUNED
    if isinstance(pairs, int):
        each = minutes / 3 / pairs if pairs else 0.0
        following = [replace(stages.STAGE_1, name=f"round-{i + 1}", minutes=each) for i in range(pairs)]
        minutes -= each * pairs
    else:
        both = (replace(stages.STAGE_1, minutes=pairs[0]), replace(stages.STAGE_2, minutes=pairs[1]))
        following = [stage for stage in both if stage.minutes]
    tuning_settings = None
    if tune_minutes:
        often_s = min(TuningSettings.evaluate_s, 10.0 * tune_minutes)
        tuning_settings = TuningSettings(minutes=tune_minutes, evaluate_s=often_s).scaled(scale)
    every = (stages.Stage(name="distil", minutes=minutes, learning_rate=rate), *following)
    return Plan(tuple(stage.scaled(scale) for stage in every), tuning_settings, tuned)


@dataclass(frozen=True)
class Prepared:
    """What all stages share.

    `groups` is None where there are no words, `rooms` where they cannot be simulated.
    """

    pack: data.Pack
    features: npt.NDArray[np.float16]  # pooled, of the published teacher: [frames, 512]
    whitening: Whitening
    groups: Groups | None
    timed: frozenset[str]  # languages with word times
    rooms: Tensor | None = None


def packed(corpus: Corpus, work: Path, workers: int) -> data.Pack:
    """The corpus decoded into `work`, unless it is there. Raises CorpusError where too little can be decoded."""
    if (work / data.TABLE_FILE).exists():
        return data.read_pack(work)
    manifest = corpus.manifest
    found = data.scan_folder(corpus.folder) if manifest is None else data.read_manifest(manifest, corpus.splits)
    return data.write_pack(found, corpus.folder, work, workers)


def prepare(corpus: Corpus, teacher_source: str, work: Path, dim: int, device: torch.device, workers: int) -> Prepared:
    """Pack the corpus, store the teacher's features and find the words, unless `work` has them already.

    Raises CorpusError where too little of the corpus can be decoded, TeacherError where the teacher is amiss.
    """
    pack = add_copies(packed(corpus, work, workers), work, workers)
    stored = features.store_features(lambda: teacher.load_teacher(teacher_source), pack, work, device)
    if not (work / features.WHITENING_FILE).exists():
        whitening = features.fit_whitening(stored, dim)
        if DEFAULT_TUNED.exists() and (shipped := projection_of(DEFAULT_TUNED)).matrix.shape == whitening.matrix.shape:
            whitening = features.turned(whitening, shipped, stored)
        features.save_whitening(whitening, work)
    whitening = features.load_whitening(work)
    rooms = load_rooms(work)
    if corpus.words is None:
        return Prepared(pack, stored, whitening, None, frozenset(), rooms=rooms)
    timed_words = read_words(corpus.words, pack, corpus.excluded)
    timed = frozenset(_languages_of_many(timed_words))
    mined = _mined(corpus, pack, stored, whitening, timed_words, work / MINED_FILE)
    groups = Groups(list(dict.fromkeys(timed_words + mined)))
    return Prepared(pack, stored, whitening, groups, timed, rooms)


def _phones(corpus: Corpus, pack: data.Pack, groups: Groups, workers: int) -> Phones:
    """Phones of what was said, but for excluded words and those that measure."""
    measure = {word.label.split("/", 1)[1] for word in groups.held_out}
    return read_phones(pack, corpus.words, corpus.manifest, corpus.excluded | measure, workers)


def _languages_of_many(words: list[Word], speakers: int = 3) -> set[str]:
    """Languages whose words several speakers say: one speaker alone gives no pairs."""
    of: dict[str, set[str]] = {}
    for word in words:
        of.setdefault(word.label.split("/")[0], set()).add(word.speaker)
    return {language for language, heard in of.items() if len(heard) >= speakers}


def untimed_texts(corpus: Corpus, pack: data.Pack, timed: list[Word]) -> dict[int, str]:
    """Transcripts in the manifest, if there is one, of languages without word times, by number of recording."""
    if corpus.manifest is None:
        return {}
    languages = _languages_of_many(timed)
    texts = mining.read_texts(corpus.manifest, pack)
    return {recording: text for recording, text in texts.items() if pack.entries[recording].language not in languages}


def _mined(
    corpus: Corpus, pack: data.Pack, stored: npt.NDArray[np.float16], whitening: Whitening, timed: list[Word],
    path: Path,
) -> list[Word]:  # fmt: skip
    """Words of the other languages, found where transcripts say that two recordings share one, and kept in `path`."""
    if path.exists():
        return [Word(**word) for word in json.loads(path.read_text(encoding="utf-8"))]

    @lru_cache(512)
    def embed(recording: int) -> npt.NDArray[np.float32]:
        start, frames = int(pack.start[recording]), int(pack.frames[recording])
        x = (stored[start : start + frames].astype(np.float32) - whitening.mean) @ whitening.matrix
        return np.asarray(x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6), np.float32)

    found = mining.from_texts(pack, untimed_texts(corpus, pack, timed), embed, excluded=corpus.excluded)
    data.write_atomically(path, json.dumps([asdict(word) for word in found]))
    return found


def tune_teacher(
    corpus: Corpus, prepared: Prepared, teacher_source: str, settings: TuningSettings, work: Path,
    device: torch.device, workers: int, start: Path | None = None,
) -> Path:  # fmt: skip
    """The tuned part of the teacher, learned unless it is in `work` already; it begins with that in `start`."""
    out = work / tuning.TUNED_FILE
    if (work / tuning.DONE_FILE).exists():
        return out
    if prepared.groups is None or not prepared.groups.labels:
        raise TrainingError("tuning the teacher needs words that several speakers say")
    groups = prepared.groups
    cuts = tuning.random_cuts(prepared.pack, settings.cuts, settings.seed)
    views = Views(prepared.pack, settings.augmentation, device, prepared.rooms)
    published = teacher.load_teacher(teacher_source)
    tuned = (
        TunedTeacher(published, prepared.whitening, settings.rank) if start is None else load_tuned(published, start)
    )
    sampler = LabelSampler(groups, prepared.timed, settings.hard, settings.other_languages)
    phones = _phones(corpus, prepared.pack, groups, workers) if corpus.phones else None
    lesson = Lesson(
        tuned.to(device), views, groups, sampler, cuts, prepared.whitening, prepared.features, phones, settings
    )
    tuning.tune(lesson, work)
    return out


def make_targets(
    prepared: Prepared, teacher_source: str, tuned: Path | None, work: Path, device: torch.device
) -> npt.NDArray[np.float16]:
    """The targets in `work`, made unless they are there."""
    path = work / targets.TARGETS_FILE
    if path.exists():
        return np.memmap(path, np.float16, "c").reshape(len(prepared.features), -1)
    if tuned is None:
        return targets.whitened(prepared.features, prepared.whitening, path)
    tuned_teacher = load_tuned(teacher.load_teacher(teacher_source), tuned).to(device)
    return targets.tuned(prepared.pack, tuned_teacher, path, device)


def write_tuned_part(tuned: Path, target: npt.NDArray[np.float16], description: Description, out: Path) -> None:
    """The tuned part with a codebook of its own: what `sayagain tokenizer build accurate` needs beside the weights."""
    rng = np.random.default_rng(0)
    sample = np.sort(rng.choice(len(target), min(CODEBOOK_FRAMES, len(target)), replace=False))
    embeddings = target[sample].astype(np.float32)
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-6)
    codebook = fit_codebook(embeddings, min(PART_CODEBOOK_SIZE, len(embeddings) // 4), parts=0)
    tensors = load_file(tuned)
    tensors["codebook"] = torch.from_numpy(codebook.centroids)
    partial = out.with_suffix(".partial")
    save_file(tensors, partial, description.metadata())
    partial.replace(out)


def fit_own_codebook(
    student: Student, pack: data.Pack, device: torch.device, seed: int = 0, size: int = CODEBOOK_SIZE
) -> Codebook:
    """The tokenizer's own codebook: recordings of all languages with their pauses, and noise."""
    rng = np.random.default_rng(seed)

    def some(kind: str, frames: int) -> npt.NDArray[np.int64]:
        order = rng.permutation(pack.recordings(kind))
        enough = int(np.searchsorted(np.cumsum(pack.frames[order]), frames)) + 1
        return order[:enough]

    noise = round(CODEBOOK_FRAMES * NOISE_SHARE)
    parts = embed_recordings(student, pack, some("speech", CODEBOOK_FRAMES - noise).tolist(), device)
    if len(pack.recordings("noise")):
        parts += embed_recordings(student, pack, some("noise", noise).tolist(), device)
    embeddings = np.concatenate(parts)
    return fit_codebook(embeddings, min(size, len(embeddings) // 4), seed=seed)


def save_codebook(codebook: Codebook, path: Path) -> None:
    """As arrays `centroids` and, if there is one, `pq`."""
    if codebook.pq is None:
        np.savez(path, centroids=codebook.centroids)
    else:
        np.savez(path, centroids=codebook.centroids, pq=codebook.pq)


def load_codebook(path: Path) -> Codebook:
    """As `save_codebook` left it."""
    arrays = np.load(path)
    return Codebook(arrays["centroids"], arrays.get("pq"))


def export_work(work: Path, description: Description, out: Path, bits: Bits = 32) -> None:
    """The trained tokenizer in `work` as one ONNX file, which stores and multiplies in so many bits.

    Raises TrainingError where training has not got there.
    """
    for name in (stages.WEIGHTS_FILE, CODEBOOK_FILE):
        if not (work / name).exists():
            raise TrainingError(f"{work} has no {name}: train first")
    sounds = data.read_pack(work).sounds() if bits == 8 else None
    export(work / stages.WEIGHTS_FILE, load_codebook(work / CODEBOOK_FILE), description, out, bits, sounds)


def train(
    corpus: Corpus, teacher_source: str, work: Path, plan: Plan, device: torch.device, workers: int,
    start: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """The whole plan; what is in `work` already is not done again. Returns the figures that `card.json` keeps.

    `start` has a student's weights to begin with; without, one of attention begins with the teacher's own blocks.
    """
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    first = plan.stages[0]
    prepared = prepare(corpus, teacher_source, work, first.shape.dim, device, workers)
    tuned = plan.tuned
    if plan.tuning is not None:
        tuned = tune_teacher(corpus, prepared, teacher_source, plan.tuning, work, device, workers, plan.tuned)
    target = make_targets(prepared, teacher_source, tuned, work, device)
    if plan.tuning is not None and tuned is not None and not (work / TUNED_PART_FILE).exists():
        write_tuned_part(tuned, target, TUNED_PART, work / TUNED_PART_FILE)
    scores: dict[str, float] = {}
    weights = start
    if weights is None and isinstance(first.shape, AttentionShape):
        weights = inherited(first, first.shape, prepared, target, teacher_source, work / INHERITED_FILE)
    elif weights is not None and weights.suffix == ".onnx":
        stages.save_student(student_from_onnx(weights), work / START_FILE)
        weights = work / START_FILE
    for stage in plan.stages:
        done = work / stage.name / DONE_FILE
        if stage.words and corpus.words is None and not done.exists():
            assert weights is not None
            prepared = replace(prepared, groups=found_by_sound(stages.load_student(weights), prepared.pack, device))
        scores = run_stage(stage, prepared, target, work / stage.name, device, weights)
        weights = work / stage.name / stages.WEIGHTS_FILE
    assert weights is not None
    (work / stages.WEIGHTS_FILE).write_bytes(weights.read_bytes())
    student = stages.load_student(work / stages.WEIGHTS_FILE).to(device)
    save_codebook(fit_own_codebook(student, prepared.pack, device), work / CODEBOOK_FILE)
    card: dict[str, Any] = {
        "hours": round(float(prepared.pack.frames.sum()) * FRAME_SECONDS / 3600, 2),
        "recordings": len(prepared.pack.entries),
        "parameters": parameter_count(first.shape),
        "wall_s": round(time.monotonic() - started, 1),
        "device": device.type,
        "tuning": None if plan.tuning is None else asdict(plan.tuning),
        "stages": [asdict(stage) for stage in plan.stages],
        **scores,
    }
    (work / CARD_FILE).write_text(json.dumps(card, indent=1), encoding="utf-8")
    return card


def inherited(
    stage: stages.Stage, shape: AttentionShape, prepared: Prepared, target: npt.NDArray[np.float16],
    teacher_source: str, path: Path,
) -> Path:  # fmt: skip
    """The weights in `path` that a stage begins with: the teacher's own lower blocks, taken unless that was done."""
    if not path.exists():
        sampler = Sampler(Sound(prepared.pack, target, CPU), stage.distillation)
        stages.save_student(inherit(shape, teacher.load_teacher(teacher_source), sampler, stage.seed), path)
    return path


def found_by_sound(
    student: Student, pack: data.Pack, device: torch.device, hours: float = 2.0, seed: int = 0
) -> Groups:
    """Pairs that the student finds in some hours of the pack's own speech, all of them to learn from."""
    order = np.random.default_rng(seed).permutation(pack.recordings("speech"))
    enough = int(np.searchsorted(np.cumsum(pack.frames[order]) * FRAME_SECONDS, hours * 3600)) + 1
    recordings = order[:enough]
    embeddings = embed_recordings(student.to(device), pack, recordings.tolist(), device)
    return Groups(mining.by_sound(pack, recordings, embeddings, seed=seed), held_labels=0.0, held_speakers=0.0)


def run_stage(
    stage: stages.Stage, prepared: Prepared, target: npt.NDArray[np.float16], work: Path, device: torch.device,
    start: Path | None,
) -> dict[str, float]:  # fmt: skip
    """One stage on what was prepared, unless `work` says that it is done.

    Raises TrainingError where it needs words and there are none.
    """
    if (work / DONE_FILE).exists():
        done: dict[str, float] = json.loads((work / DONE_FILE).read_text(encoding="utf-8"))
        if done["minutes"] >= stage.minutes:  # otherwise the budget has been raised, and it goes on
            return done
    sound = Sound(prepared.pack, target, device)
    sampler = Sampler(sound, stage.distillation)
    words = None
    if stage.words:
        if prepared.groups is None or not prepared.groups.labels:
            raise TrainingError(f"the stage {stage.name} needs words that several speakers say")
        words = WordSampler(sound, prepared.groups, prepared.timed, stage.pairs)
    scores = stages.run(stage, sampler, words, work, device, start, prepared.rooms) | {"minutes": stage.minutes}
    data.write_atomically(work / DONE_FILE, json.dumps(scores))
    return scores
