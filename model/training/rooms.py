"""Impulse responses of rooms that do not exist: boxes of many sizes by the image method, through pyroomacoustics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from model.audio import SAMPLE_RATE

ROOMS_FILE = "rooms.npy"
ROOMS = 240
RESPONSE_S = 0.6
SIDES_M = ((2.5, 9.0), (2.5, 7.0), (2.2, 4.0))
DECAY_S = (0.15, 0.8)
MOST_REFLECTIONS = 12  # in a row; what comes later is the faint end of the tail
WALL_M = 0.4  # nothing stands nearer to a wall

Float32 = npt.NDArray[np.float32]


def simulate(count: int = ROOMS, seed: int = 0) -> Float32:
    """Responses float32 [count, samples] of unit energy, the direct sound first. Needs pyroomacoustics."""
    import pyroomacoustics

    rng = np.random.default_rng(seed)
    out = np.zeros((count, round(RESPONSE_S * SAMPLE_RATE)), np.float32)
    done = 0
    with tqdm(total=count, desc="rooms", unit="room") as bar:
        while done < count:
            sides = np.array([rng.uniform(low, high) for low, high in SIDES_M])
            try:
                absorption, order = pyroomacoustics.inverse_sabine(rng.uniform(*DECAY_S), sides)
            except ValueError:  # no wall absorbs enough for so short a decay in so large a room
                continue
            room = pyroomacoustics.ShoeBox(
                sides, fs=SAMPLE_RATE, materials=pyroomacoustics.Material(absorption),
                max_order=min(order, MOST_REFLECTIONS),
            )  # fmt: skip
            source, microphone = rng.uniform(WALL_M, sides - WALL_M, (2, 3))
            room.add_source(source)
            room.add_microphone(microphone)
            room.compute_rir()
            response = np.asarray(room.rir[0][0], np.float32)
            direct = int(np.argmax(np.abs(response) > 0.5 * np.abs(response).max()))
            response = response[direct : direct + out.shape[1]]
            out[done, : len(response)] = response / np.linalg.norm(response)
            done += 1
            bar.update(1)
    return out


def load_rooms(work: Path) -> Tensor | None:
    """The rooms in `work`, float32 [rooms, samples], made unless they are there; None without pyroomacoustics."""
    path = work / ROOMS_FILE
    if not path.exists():
        try:
            rooms = simulate()
        except ImportError:
            return None
        partial = path.with_suffix(".partial.npy")
        np.save(partial, rooms)
        partial.replace(path)
    return torch.from_numpy(np.load(path))
