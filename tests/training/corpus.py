"""A corpus of made sound for the training tests, and a teacher of random weights that hears it."""

from pathlib import Path

import av
import numpy as np
import torch

from model.encoder import ConvolutionShape
from model.training import data, features, targets
from model.training.distil import DistilSettings, Sampler
from model.training.sound import Sound
from model.training.teacher import Teacher

SMALL = ConvolutionShape(width=16, hidden=32, blocks=2, kernel=5, dim=16)
DISTIL = DistilSettings(batch=4, contrast_frames=64)


def write_corpus(folder: Path, recordings: int = 8, seconds: float = 5.0) -> Path:
    """Glides and noise as wav files."""
    folder.mkdir(exist_ok=True)
    for number in range(recordings):
        rng = np.random.default_rng(number)
        time = np.arange(int(seconds * 16_000)) / 16_000
        pitch = 150 + 100 * np.sin(2 * np.pi * (0.3 + 0.2 * number) * time)
        wave = 0.2 * np.sin(2 * np.pi * np.cumsum(pitch) / 16_000) * (np.sin(2 * np.pi * 1.7 * time) > -0.5)
        wave = wave + 0.02 * rng.standard_normal(len(time))
        with av.open(str(folder / f"{number}.wav"), "w") as out:
            stream = out.add_stream("pcm_s16le", rate=16_000, layout="mono")
            frame = av.AudioFrame.from_ndarray((wave * 30_000).astype(np.int16)[None], "s16", "mono")
            frame.sample_rate = 16_000
            out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return folder


def random_teacher() -> Teacher:
    """The teacher before it has learned anything."""
    torch.manual_seed(3)
    model = Teacher()
    torch.nn.init.normal_(model.positional_embedding, std=0.02)
    return model.eval().requires_grad_(False)


def prepare(corpus: Path, work: Path) -> Path:
    """A packed corpus with the features of a random teacher and targets: what a run has when it starts to distil."""
    pack = data.write_pack(data.scan_folder(corpus), corpus, work, workers=1)
    stored = features.store_features(random_teacher, pack, work, torch.device("cpu"))
    whitening = features.fit_whitening(stored, SMALL.dim)
    features.save_whitening(whitening, work)
    targets.whitened(stored, whitening, work / targets.TARGETS_FILE)
    return work


def targets_of(work: Path) -> np.ndarray:
    """float16 [frames of the pack, dim]."""
    return np.memmap(work / targets.TARGETS_FILE, np.float16, "c").reshape(-1, SMALL.dim)


def sampler_of(work: Path, settings: DistilSettings = DISTIL) -> Sampler:
    """The batches of a prepared folder."""
    return Sampler(Sound(data.read_pack(work), targets_of(work), torch.device("cpu")), settings)
