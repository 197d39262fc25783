"""Embeddings of whole recordings by a student: in blocks, with what one pass would give."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch

from model.encoder import FRAME_SAMPLES
from model.training.data import Pack
from model.training.student import Student

BLOCK_FRAMES = 1_500  # 60 s

Float32 = npt.NDArray[np.float32]


@torch.inference_mode()
def embed_samples(student: Student, samples: npt.NDArray[np.int16], device: torch.device) -> Float32:
    """Unit embeddings float32 [frames, dim] of int16 [frames * 640]; memory does not grow with the length."""
    frames = len(samples) // FRAME_SAMPLES
    context = student.shape.context_samples
    parts = [np.zeros((0, student.shape.dim), np.float32)]
    for first in range(0, frames, BLOCK_FRAMES):
        stop = min(first + BLOCK_FRAMES, frames)
        low = max(0, first * FRAME_SAMPLES - context)
        waveform = torch.from_numpy(samples[low : stop * FRAME_SAMPLES + context].astype(np.float32) / 32767.0)
        skip = first - low // FRAME_SAMPLES
        parts.append(student(waveform[None].to(device))[0, skip : skip + stop - first].cpu().numpy())
    return np.concatenate(parts)


def embed_recordings(student: Student, pack: Pack, recordings: Iterable[int], device: torch.device) -> list[Float32]:
    """Unit embeddings float32 [frames, dim] of each of the `recordings`."""
    return [embed_samples(student, pack.waveform(int(recording)), device) for recording in recordings]


@torch.inference_mode()
def embed_clips(student: Student, clips: Float32, device: torch.device, batch: int = 64) -> Float32:
    """Unit embeddings float32 [clips, frames, dim] of clips of one length, each alone: float32 [clips, samples]."""
    parts = [
        student(torch.from_numpy(clips[i : i + batch]).to(device)).cpu().numpy() for i in range(0, len(clips), batch)
    ]
    return np.concatenate(parts)
