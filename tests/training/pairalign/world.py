"""A small world in which sounds are centroids in noise, heard by a small decoder."""

import numpy as np

from model.codebook import Codebook
from model.pairalign.shape import DecoderShape
from model.training.data import Entry, Pack
from model.training.pairalign.batches import Examples, Mixture
from model.training.pairalign.hearings import Hearings
from model.training.pairalign.stages import Stage
from model.training.pairalign.targets import PRICES
from model.training.words import Word

SHAPE = DecoderShape(size=12, dim=16, width=32, heads=2, hidden=64, blocks=2, window_frames=24, overlap_frames=8,
                     max_tokens=16)  # fmt: skip
STAGE = Stage("one", 0.1, Mixture(0.3, 0.4, 0.15), batch=16, warmup_steps=10, checkpoint_s=0.4, average=0.9)
RECORDINGS, FRAMES, WORD_FRAMES = 12, 120, 9
CENTROIDS = np.linalg.qr(np.random.default_rng(0).standard_normal((16, 16)))[0][: SHAPE.size].astype(np.float32)


def world(seed: int = 0) -> Examples:
    """Each recording says the same word of three tokens at its frame 30, in its own noise."""
    rng = np.random.default_rng(seed)

    def noisy(ids: np.ndarray, level: float) -> np.ndarray:
        x = CENTROIDS[ids] + level * rng.standard_normal((len(ids), 16))
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)

    truth = []
    for _ in range(RECORDINGS):
        ids = np.repeat(rng.integers(0, SHAPE.size, 40), 3)
        ids[30:39] = np.repeat([1, 5, 2], 3)
        truth.append(ids)
    whole = np.concatenate(truth)
    start = np.arange(RECORDINGS) * FRAMES
    entries = [Entry(f"{i}", "xx", f"speaker {i}", "speech") for i in range(RECORDINGS)]
    pack = Pack(np.zeros(len(whole) * 640, np.int16), start, np.full(RECORDINGS, FRAMES), entries)
    cuts = [Word(i, 30, WORD_FRAMES, "xx/word", f"speaker {i}") for i in range(RECORDINGS)]
    alone = np.concatenate([noisy(ids[30:39], 0.15) for ids in truth])
    hearings = Hearings(
        pack, np.arange(RECORDINGS), [noisy(whole, 0.03), noisy(whole, 0.15)], cuts, alone,
        np.arange(RECORDINGS) * WORD_FRAMES,
    )  # fmt: skip
    clean = hearings.views[0].astype(np.float32)
    ids = np.stack([Codebook(CENTROIDS, None, price).tokenize(clean) for price in PRICES])
    return Examples(hearings, ids, SHAPE)
