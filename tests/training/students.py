"""Students that the tests make: small, of random weights, and exported like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from model.codebook import fit_codebook
from model.encoder import FRAME_SAMPLES, AttentionShape, ConvolutionShape, EncoderShape
from model.export import Description, export
from model.training.stages import save_student
from model.training.student import Student

SMALL = ConvolutionShape(width=16, hidden=24, blocks=2, kernel=5, dim=32)
ATTENTIVE = AttentionShape(width=16, heads=2, hidden=24, blocks=2, reach=3, dim=32)


def random_student(shape: EncoderShape = SMALL, seed: int = 0) -> Student:
    torch.manual_seed(seed)
    student = Student(shape).eval()
    with torch.no_grad():
        for parameter in student.parameters():  # no tensor at its first value, where a swap would not show
            parameter.add_(0.05 * torch.randn_like(parameter))
    return student


def write_tokenizer(student: Student, path: Path, name: str = "small", version: str = "1") -> Path:
    """The student as a tokenizer file, with a codebook of 64 fitted to noise."""
    samples = (0.1 * np.random.default_rng(1).standard_normal(400 * FRAME_SAMPLES)).astype(np.float32)
    with torch.inference_mode():
        embeddings = student(torch.from_numpy(samples[None]))[0].numpy()
    checkpoint = path.with_suffix(".safetensors")
    save_student(student, checkpoint)
    export(
        checkpoint, fit_codebook(embeddings, 64, iterations=2), Description(name, version, "Apache-2.0", "noise"), path
    )
    checkpoint.unlink()
    return path
