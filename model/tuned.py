"""The tuned part of the `accurate` tokenizer: what training adds to the published encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.declaration import read_score_map
from model.export import Description
from model.whisper import BLOCKS, WIDTH

DEFAULT_TUNED = Path(__file__).parent / "weights" / "accurate.safetensors"
LAYERS = {
    "attn.query": (WIDTH, WIDTH), "attn.key": (WIDTH, WIDTH), "attn.value": (WIDTH, WIDTH),
    "attn.out": (WIDTH, WIDTH), "mlp.0": (4 * WIDTH, WIDTH), "mlp.2": (WIDTH, 4 * WIDTH),
}  # fmt: skip
DIM, CODEBOOK_SIZE = 256, 1_024

Float32 = npt.NDArray[np.float32]


class TunedError(Exception):
    """The tuned part is missing or does not fit the encoder."""

    code = "tuned_part_invalid"


@dataclass(frozen=True, eq=False)
class Tuned:
    """What training adds to the published encoder.

    `updates` float32 [out, in] by layer (`4.attn.query`); `ln_post` weight and bias float32 [512]; `mean` float32
    [512] and `projection` float32 [256, 512]; `codebook` float32 [1024, 256], unit rows.
    """

    updates: dict[str, Float32]
    ln_post: tuple[Float32, Float32]
    mean: Float32
    projection: Float32
    codebook: Float32
    description: Description


def read_tuned(path: Path) -> Tuned:
    """The tuned part from a safetensors file. Raises TunedError where it is missing or a tensor is amiss."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Float32] = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        raise TunedError(f"the tuned part {path} cannot be read: {error}") from error

    def take(name: str, *sides: int | None) -> Float32:
        """A tensor of these sides; None is the rank, which is the file's to choose."""
        found = tensors.get(name)
        shape = () if found is None else found.shape
        if (
            found is None
            or len(shape) != len(sides)
            or any(s not in (None, n) for s, n in zip(sides, shape, strict=True))
        ):
            wanted = ", ".join("rank" if s is None else str(s) for s in sides)
            raise TunedError(f"{path}: {name} should have shape ({wanted}), found {shape or 'nothing'}")
        if not np.isfinite(found).all():
            raise TunedError(f"{path}: {name} has values that are not finite")
        return found

    updates: dict[str, Float32] = {}
    for block in range(BLOCKS):
        for layer, (rows, columns) in LAYERS.items():
            a = take(f"lora.{block}.{layer}.a", None, columns)
            updates[f"{block}.{layer}"] = take(f"lora.{block}.{layer}.b", rows, len(a)) @ a
    lacking = [key for key in ("name", "version", "licence", "trained_on") if not metadata.get(key)]
    if lacking:
        raise TunedError(f"{path} lacks the metadata {', '.join(lacking)}")
    try:
        score_map = read_score_map(metadata)
    except ValueError as error:
        raise TunedError(f"{path} {error}") from error
    codebook = take("codebook", CODEBOOK_SIZE, DIM)
    length = np.linalg.norm(codebook, axis=1, keepdims=True)  # float16 left it a little off
    if not length.all():
        raise TunedError(f"{path}: codebook has rows of zeros")
    return Tuned(
        updates,
        (take("ln_post.weight", WIDTH), take("ln_post.bias", WIDTH)),
        take("projection.mean", WIDTH),
        take("projection.weight", DIM, WIDTH),
        codebook / length,
        Description(metadata["name"], metadata["version"], metadata["licence"], metadata["trained_on"], score_map),
    )
