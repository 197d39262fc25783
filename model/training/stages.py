"""The stages of training one after another, each resumed where it stopped: pack, teacher, distil, codebook, export."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from model.codebook import Codebook, fit_codebook
from model.encoder import FRAME_SECONDS
from model.export import Description, export, read_weights
from model.training import data, teacher
from model.training.distil import WEIGHTS_FILE, DistilSettings, Sampler, distil
from model.training.student import Student

CODEBOOK_FILE, CARD_FILE = "codebook.npz", "card.json"
CODEBOOK_SIZE = 1_024
CODEBOOK_FRAMES = 150_000
NOISE_SHARE = 0.05  # of the frames that the codebook is fitted to


class TrainingError(Exception):
    """A stage lacks what the one before should have left."""

    code = "training_failed"


@dataclass(frozen=True)
class Corpus:
    """Where the sound lies: a folder, and a manifest with its splits, or none for every file in the folder."""

    folder: Path
    manifest: Path | None
    splits: tuple[str, ...] = ("train", "noise")


def prepare(
    corpus: Corpus, teacher_source: str, work: Path, settings: DistilSettings, device: torch.device, workers: int
) -> Sampler:
    """Pack the corpus and store the teacher's features, unless `work` has them already.

    Raises CorpusError where too little of the corpus can be decoded, TeacherError where the teacher is amiss.
    """
    if (work / data.TABLE_FILE).exists():
        pack = data.read_pack(work)
    else:
        found = (
            data.scan_folder(corpus.folder)
            if corpus.manifest is None
            else data.read_manifest(corpus.manifest, corpus.splits)
        )
        pack = data.write_pack(found, corpus.folder, work, workers)
    features = teacher.store_features(lambda: teacher.load_teacher(teacher_source), pack, work, device)
    if not (work / teacher.WHITENING_FILE).exists():
        teacher.save_whitening(teacher.fit_whitening(features, settings.shape.dim), work)
    return Sampler(pack, features, teacher.load_whitening(work), settings)


@torch.inference_mode()
def embed(student: Student, pack: data.Pack, recordings: npt.NDArray[np.int64], device: torch.device) -> Tensor:
    """Embeddings of whole recordings one after another: float32 [frames, dim]."""
    parts = []
    for recording in recordings:
        waveform = torch.from_numpy(pack.waveform(int(recording)).astype(np.float32) / 32767.0)
        parts.append(student(waveform[None].to(device))[0].cpu())
    return torch.cat(parts)


def load_student(work: Path) -> Student:
    """The averaged student that `distil` left in `work`."""
    shape, tensors = read_weights(work / WEIGHTS_FILE)
    student = Student(shape)
    student.load_state_dict({name: torch.from_numpy(tensor) for name, tensor in tensors.items()})
    return student.eval()


def fit_own_codebook(student: Student, pack: data.Pack, device: torch.device, seed: int = 0) -> Codebook:
    """The tokenizer's own codebook: recordings of all languages with their pauses, and noise."""
    rng = np.random.default_rng(seed)

    def some(kind: str, frames: int) -> npt.NDArray[np.int64]:
        order = rng.permutation(pack.recordings(kind))
        enough = int(np.searchsorted(np.cumsum(pack.frames[order]), frames)) + 1
        return order[:enough]

    noise = round(CODEBOOK_FRAMES * NOISE_SHARE)
    parts = [embed(student, pack, some("speech", CODEBOOK_FRAMES - noise), device).numpy()]
    if len(pack.recordings("noise")):
        parts.append(embed(student, pack, some("noise", noise), device).numpy())
    embeddings = np.concatenate(parts)
    return fit_codebook(embeddings, min(CODEBOOK_SIZE, len(embeddings) // 4), seed=seed)


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


def export_work(work: Path, description: Description, out: Path) -> None:
    """The trained tokenizer in `work` as one ONNX file. Raises TrainingError where training has not got there."""
    for name in (WEIGHTS_FILE, CODEBOOK_FILE):
        if not (work / name).exists():
            raise TrainingError(f"{work} has no {name}: train first")
    export(work / WEIGHTS_FILE, load_codebook(work / CODEBOOK_FILE), description, out)


def train(
    corpus: Corpus, teacher_source: str, work: Path, settings: DistilSettings, device: torch.device, workers: int
) -> dict[str, Any]:
    """All stages; what is in `work` already is not done again. Returns the figures that `card.json` keeps."""
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    sampler = prepare(corpus, teacher_source, work, settings, device, workers)
    scores = distil(sampler, work, device, settings)
    student = load_student(work).to(device)
    save_codebook(fit_own_codebook(student, sampler.pack, device), work / CODEBOOK_FILE)
    card: dict[str, Any] = {
        "hours": round(float(sampler.pack.frames.sum()) * FRAME_SECONDS / 3600, 2),
        "recordings": len(sampler.pack.entries),
        "parameters": settings.shape.parameter_count,
        "wall_s": round(time.monotonic() - started, 1),
        "device": device.type,
        "settings": asdict(settings),
        **scores,
    }
    (work / CARD_FILE).write_text(json.dumps(card, indent=1), encoding="utf-8")
    return card
