"""What the student is to learn: unit vectors of every frame of a pack, by the whitened teacher or the tuned one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from tqdm import tqdm

from model.encoder import FRAME_SAMPLES
from model.training.data import Pack
from model.training.features import Whitening
from model.training.lowrank import TunedTeacher
from model.training.precision import autocast

TARGETS_FILE = "targets.f16"
LONGEST_FRAMES = 500  # 20 s: a longer recording is cut, as an archive's segments are
BATCH_FRAMES = 4_000


def whitened(pooled: npt.NDArray[np.float16], whitening: Whitening, path: Path) -> npt.NDArray[np.float16]:
    """Targets float16 [frames, dim] of pooled features, written to `path`."""
    partial = path.with_suffix(".partial")
    out = np.memmap(partial, np.float16, "w+", shape=(len(pooled), whitening.matrix.shape[1]))
    for first in range(0, len(pooled), 100_000):
        x = (pooled[first : first + 100_000].astype(np.float32) - whitening.mean) @ whitening.matrix
        out[first : first + len(x)] = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6)
    return _finish(out, partial, path)


@torch.inference_mode()
def tuned(
    pack: Pack, teacher: TunedTeacher, path: Path, device: torch.device, batch_frames: int = BATCH_FRAMES
) -> npt.NDArray[np.float16]:
    """Targets float16 [frames, dim] of a pack by a tuned teacher, written to `path`."""
    partial = path.with_suffix(".partial")
    out = np.memmap(partial, np.float16, "w+", shape=(int(pack.frames.sum()), teacher.mix.shape[0]))
    stretches = [
        (int(start) + at, min(LONGEST_FRAMES, int(frames) - at))
        for start, frames in zip(pack.start, pack.frames, strict=True)
        for at in range(0, int(frames), LONGEST_FRAMES)
    ]
    stretches.sort(key=lambda stretch: stretch[1])
    first = 0
    with tqdm(total=len(out), desc="targets", unit="frame") as bar:
        while first < len(stretches):
            count = 1
            while first + count < len(stretches) and stretches[first + count][1] * (count + 1) <= batch_frames:
                count += 1
            part = stretches[first : first + count]
            sound = np.zeros((count, part[-1][1] * FRAME_SAMPLES), np.int16)
            for i, (at, frames) in enumerate(part):
                there = pack.samples[at * FRAME_SAMPLES : (at + frames) * FRAME_SAMPLES]
                sound[i, : len(there)] = there
            lengths = torch.tensor([frames for _, frames in part], device=device)
            with autocast(device):
                embedded = teacher.embed(torch.from_numpy(sound).to(device).float() / 32767.0, lengths)
            embedded = F.normalize(embedded.float(), dim=-1).half().cpu()
            for i, (at, frames) in enumerate(part):
                out[at : at + frames] = embedded[i, :frames].numpy()
            bar.update(sum(frames for _, frames in part))
            first += count
    return _finish(out, partial, path)


def _finish(out: npt.NDArray[np.float16], partial: Path, path: Path) -> npt.NDArray[np.float16]:
    if isinstance(out, np.memmap):
        out.flush()
    partial.rename(path)
    return np.memmap(path, np.float16, "c", shape=out.shape)
