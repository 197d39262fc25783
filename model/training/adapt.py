"""Adaptation to an archive without any label: the student is its own teacher, and finds its own pairs, in rounds.

Self-distillation keeps what it knows while sound is changed around it; stretches of different recordings that are each
other's nearest teach it what is the same in them. All in a work folder, where a run that was stopped goes on.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from model.encoder import FRAME_SECONDS
from model.export import Description, export
from model.graph import multiplies_in_8_bits
from model.tokenizer import Tokenizer
from model.training import recipe, stages
from model.training.codecs import add_copies
from model.training.consistency import Consistency, HeldOut, hold_out, measure
from model.training.data import write_atomically
from model.training.distil import DistilSettings, Sampler
from model.training.embedding import embed_samples
from model.training.imported import student_from_onnx
from model.training.pairs import PairSettings, WordSampler
from model.training.sample import PIECE_FRAMES, Sample, draw_sample
from model.training.selfsearch import find_pairs, pieces, shifted
from model.training.sound import Sound
from model.training.student import Student
from model.training.targets import TARGETS_FILE
from model.training.words import Groups, Word

STATE_FILE, START_FILE, BEFORE_FILE, REPORT_FILE = "adapt.json", "start.safetensors", "before.json", "report.json"
ADAPTED_FILE, PAIRS_FILE, DONE_FILE = "adapted.onnx", "pairs.json", "done.json"
SEARCH_SHARE = 0.25  # of a round's time
LEAST_LABELS = 8  # pairs that make a contrast
MEASURE_SEARCH_S, MEASURE_PAIRS = 30.0, 200
OWN_SIZE = 1_024  # of the file's codebook, which hardly matters: the archive's own is fitted anew
HELPS_TOKENS, HURTS_WORDS = 0.005, 0.01  # at least so much better, at most so much worse


class WorkDiffers(Exception):
    """What the work folder holds was begun with another tokenizer or other settings."""

    code = "adapt_work_differs"


@dataclass(frozen=True)
class AdaptSettings:
    """`minutes` are shared by the rounds, search and training; preparing and measuring come on top."""

    minutes: float = 20.0
    rounds: int = 2
    held_out: float = 0.15  # share of the recordings that only measure
    sample_hours: float = 4.0  # of the archive, heard at most
    most_pairs: int = 1_000  # a round
    learning_rate: float = 1e-4
    seed: int = 0


@dataclass(frozen=True)
class AdaptReport:
    """What came of it. `recordings` and `hours` are those heard, of which `held_out` recordings only measured."""

    before: Consistency
    after: Consistency
    helped: bool
    pairs_per_round: tuple[int, ...]
    recordings: int
    held_out: int
    hours: float
    minutes: float

    def as_json(self) -> dict[str, Any]:
        """All figures, rounded."""
        return asdict(self) | {"before": self.before.as_json(), "after": self.after.as_json()}


def adapt(
    files: list[Path], weights: Path, work: Path, settings: AdaptSettings, device: torch.device, workers: int
) -> AdaptReport:
    """Adapt the tokenizer in `weights` to the sound in `files`; leaves `adapted.onnx` in `work`.

    What `work` has already is not done again. Raises WorkDiffers, TooFewRecordings, NotAdaptable, TokenizerError,
    TooLittleSpeech, and CorpusError where hardly a file can be decoded.
    """
    work.mkdir(parents=True, exist_ok=True)
    _claim(work, weights, settings)
    if (work / REPORT_FILE).exists() and (work / ADAPTED_FILE).exists():
        return load_report(work)
    if not (work / START_FILE).exists():
        stages.save_student(student_from_onnx(weights), work / START_FILE)
    sample = draw_sample(files, work, settings.sample_hours, settings.held_out, workers, settings.seed)
    start = stages.load_student(work / START_FILE).to(device)
    held_out, before = _measured_before(start, sample, work, settings, device)
    targets = _targets(start, sample, work, device)
    following, pairs = work / START_FILE, []
    for number in range(1, settings.rounds + 1):
        following, count = _round(number, sample, targets, following, work, settings, device, workers)
        pairs.append(count)
    student = stages.load_student(following).to(device)
    after = measure(student, held_out, device)
    _export(student, following, sample, weights, work, device)
    hours = sample.speech_frames * FRAME_SECONDS / 3600
    report = AdaptReport(
        before, after, helped(before, after), tuple(pairs), len(sample.train) + len(sample.held_out),
        len(sample.held_out), round(hours, 3), settings.minutes,
    )  # fmt: skip
    write_atomically(work / REPORT_FILE, json.dumps(asdict(report)))
    return report


def helped(before: Consistency, after: Consistency) -> bool:
    """Whether tokens have become clearly more consistent, and words, where they are known, not less so."""
    words_kept = before.words is None or after.words is None or after.words >= before.words - HURTS_WORDS
    return after.tokens - before.tokens >= HELPS_TOKENS and words_kept


def load_report(work: Path) -> AdaptReport:
    """The report of a finished run."""
    saved = _read_json(work / REPORT_FILE)
    return AdaptReport(
        **saved
        | {
            "before": Consistency(**saved["before"]),
            "after": Consistency(**saved["after"]),
            "pairs_per_round": tuple(saved["pairs_per_round"]),
        }
    )


def _claim(work: Path, weights: Path, settings: AdaptSettings) -> None:
    """Note what the work folder is for. Raises WorkDiffers."""
    mine = {"tokenizer": Tokenizer(weights, threads=1).info.sha256, **asdict(settings)}
    if not (work / STATE_FILE).exists():
        write_atomically(work / STATE_FILE, json.dumps(mine))
        return
    found = _read_json(work / STATE_FILE)
    differing = [f"{key} {found.get(key)} (now {mine[key]})" for key in mine if found.get(key) != mine[key]]
    if differing:
        raise WorkDiffers(
            f"{work} was begun with {', '.join(differing)}: remove that folder to start anew, or give another"
        )


def _measured_before(
    start: Student, sample: Sample, work: Path, settings: AdaptSettings, device: torch.device
) -> tuple[HeldOut, Consistency]:
    """What is measured with, pairs included that the student finds as it is, and its figures."""
    path = work / BEFORE_FILE
    if path.exists():
        saved = _read_json(path)
        words = [Word(**word) for word in saved["words"]]
        return hold_out(sample.whole, sample.held_out, words, settings.seed), Consistency(**saved["before"])
    words = find_pairs(
        start, sample.whole, sample.held_out, device, budget_s=MEASURE_SEARCH_S, most=MEASURE_PAIRS, seed=settings.seed
    )
    held_out = hold_out(sample.whole, sample.held_out, words, settings.seed)
    before = measure(start, held_out, device)
    write_atomically(path, json.dumps({"before": asdict(before), "words": [asdict(word) for word in words]}))
    return held_out, before


def _targets(start: Student, sample: Sample, work: Path, device: torch.device) -> npt.NDArray[np.float16]:
    """What the student says of clean sound before it learns: float16 [frames, dim] of what is learned from."""
    path = work / TARGETS_FILE
    whole, frames = sample.whole, sample.learned_frames
    shape = (frames, start.shape.dim)
    if not path.exists():
        partial = path.with_suffix(".partial")
        out = np.memmap(partial, np.float16, "w+", shape=shape)
        for recording, (first, size) in enumerate(zip(whole.start, whole.frames, strict=True)):
            if first < frames:
                out[first : first + size] = embed_samples(start, whole.waveform(recording), device)
        out.flush()
        partial.replace(path)
    return np.memmap(path, np.float16, "c", shape=shape)


def _round(
    number: int, sample: Sample, targets: npt.NDArray[np.float16], start: Path, work: Path, settings: AdaptSettings,
    device: torch.device, workers: int,
) -> tuple[Path, int]:  # fmt: skip
    """One round from the weights in `start`: its own weights, and how many pairs it had."""
    here = work / f"round-{number}"
    here.mkdir(exist_ok=True)
    weights = here / stages.WEIGHTS_FILE
    if (here / DONE_FILE).exists():
        return weights, int(_read_json(here / DONE_FILE)["pairs"])
    each_s = settings.minutes * 60.0 / settings.rounds
    student = stages.load_student(start).to(device)
    if not (here / PAIRS_FILE).exists():
        began = time.monotonic()
        found = find_pairs(
            student, sample.whole, sample.train, device,
            budget_s=SEARCH_SHARE * each_s, most=settings.most_pairs, seed=settings.seed + number,
        )  # fmt: skip
        spent = {"search_s": time.monotonic() - began, "words": [asdict(word) for word in found]}
        write_atomically(here / PAIRS_FILE, json.dumps(spent))
    saved = _read_json(here / PAIRS_FILE)
    words = shifted([Word(**word) for word in saved["words"]], sample.whole, sample.pieces)
    groups = Groups(words, held_labels=0.0, held_speakers=0.0)
    contrasting = len(groups.labels) >= LEAST_LABELS
    stage = stages.Stage(
        name=here.name, minutes=max(each_s - saved["search_s"], 0.5 * each_s) / 60.0,
        learning_rate=settings.learning_rate, final_rate=settings.learning_rate / 50, warmup_steps=50, rows=16,
        distil=stages.STAGE_1.distil, words=stages.STAGE_1.words if contrasting else 0.0,
        checkpoint_s=60.0, seed=settings.seed + number,
        shape=student.shape, distillation=DistilSettings(seed=settings.seed),
        # The labels of found pairs are numbers: none sounds like another.
        pairs=PairSettings(hard=0.0, other_languages=0.0),
    )  # fmt: skip
    sound = Sound(add_copies(sample.pieces, work, workers), targets, device)
    sampler = Sampler(sound, stage.distillation)
    pairs = WordSampler(sound, groups, frozenset(), stage.pairs) if contrasting else None
    scores = stages.run(stage, sampler, pairs, here, device, start)
    write_atomically(here / DONE_FILE, json.dumps({**scores, "pairs": len(groups.labels)}))
    return weights, len(groups.labels)


def _export(student: Student, checkpoint: Path, sample: Sample, old: Path, work: Path, device: torch.device) -> None:
    """The adapted tokenizer with a codebook of its own; its name and version tell what it came from."""
    info = Tokenizer(old, threads=1).info
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    own = "the archive's own audio"
    description = Description(
        name=info.name if info.name.endswith("-adapted") else f"{info.name}-adapted",
        version=f"{info.version.split('+')[0]}+{digest[:8]}",
        licence=info.licence,
        trained_on=info.trained_on if info.trained_on.endswith(own) else f"{info.trained_on} and {own}",
        score_map=info.score_map,
    )
    codebook = recipe.fit_own_codebook(student, pieces(sample.whole, PIECE_FRAMES), device, size=OWN_SIZE)
    compact = multiplies_in_8_bits(onnx.load(old))
    sounds = sample.whole.sounds() if compact else None
    export(checkpoint, codebook, description, work / ADAPTED_FILE, 8 if compact else 32, sounds)


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
