"""The number type that a device multiplies fastest in: bfloat16 where that pays, float32 where it does not."""

from __future__ import annotations

import time
from functools import lru_cache

import torch

SIDE, ROUNDS = 1_024, 5


@lru_cache
def fast_type(kind: str) -> torch.dtype:
    """`torch.bfloat16` or `torch.float32` for devices of this kind.

    CPUs are tried, for a moment: some multiply bfloat16 twice as fast as float32, others half as fast, and neither
    their flags nor their makers tell which.
    """
    if kind != "cpu":
        return torch.bfloat16

    def seconds(dtype: torch.dtype) -> float:
        a, b = torch.ones(SIDE, SIDE, dtype=dtype), torch.ones(SIDE, SIDE, dtype=dtype)
        best = float("inf")
        for _ in range(ROUNDS):
            started = time.perf_counter()
            a @ b
            best = min(best, time.perf_counter() - started)
        return best

    return torch.bfloat16 if seconds(torch.bfloat16) < 0.9 * seconds(torch.float32) else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Autocast to the fast type of a device; with float32 it changes nothing."""
    dtype = fast_type(device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
