"""The part of a `pairalign` tokenizer that is committed: the decoder's weights, its codebook, and their encoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.codebook import Codebook, CodebookError
from model.declaration import read_score_map
from model.export import Description
from model.pairalign.shape import DecoderShape, shape_from_json, shape_to_json

CENTROIDS, QUANTISER = "codebook.centroids", "codebook.pq"  # tensors beside the parameters
BEYOND = 1  # steps past the last setting of the length knob
DEFAULT_PART = Path(__file__).parents[1] / "weights" / "pairalign.safetensors"

Float32 = npt.NDArray[np.float32]


class PartError(Exception):
    """The decoder's weights are missing, amiss, or belong to another encoder."""

    code = "pairalign_part_invalid"


@dataclass(frozen=True, eq=False)
class Part:
    """Parameters float32 by the names of `shape.parameters()`, and the rate that is asked for unless one is given.

    `codebook` is the one whose tokens the decoder writes. `encoder_sha256` is the hash of the tokenizer file whose
    embeddings it learned to read.
    """

    shape: DecoderShape
    weights: dict[str, Float32]
    codebook: Codebook
    rate: int
    encoder_sha256: str
    description: Description

    def rate_row(self, rate: float) -> Float32:
        """What the knob of length adds to each entry, float32 [width]: between two settings in proportion, and up to
        one step beyond the last one along the line of the last two. Raises PartError beyond that."""  # fmt: skip
        rows, last = self.weights["rate.weight"], self.shape.rates - 1
        if not 0 <= rate <= last + BEYOND:
            raise PartError(f"there is no rate {rate:g}: 0 to {last + BEYOND:g}")
        before = min(int(rate), max(0, last - 1))
        after = min(before + 1, last)
        return np.asarray(rows[before] + (rate - before) * (rows[after] - rows[before]), np.float32)


def write_part(part: Part, out: Path) -> None:
    """Store it as float16; an unfinished file never has that name."""
    from safetensors.numpy import save_file

    tensors = {name: np.ascontiguousarray(tensor, np.float16) for name, tensor in part.weights.items()}
    tensors[CENTROIDS] = np.ascontiguousarray(part.codebook.centroids, np.float16)
    if part.codebook.pq is not None:
        tensors[QUANTISER] = np.ascontiguousarray(part.codebook.pq, np.float16)
    metadata = {
        **part.description.metadata(),
        "shape": shape_to_json(part.shape),
        "rate": str(part.rate),
        "encoder_sha256": part.encoder_sha256,
    }
    partial = out.with_suffix(".partial")
    save_file(tensors, partial, metadata)
    partial.replace(out)


def read_part(path: Path = DEFAULT_PART) -> Part:
    """As `write_part` left it. Raises PartError where the file is missing or something in it is amiss."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
            tensors: dict[str, Float32] = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as error:
        raise PartError(f"the decoder's part {path} cannot be read: {error}") from error
    needed = ("name", "version", "licence", "trained_on", "shape", "rate", "encoder_sha256")
    if lacking := [key for key in needed if not metadata.get(key)]:
        raise PartError(f"{path} lacks the metadata {', '.join(lacking)}")
    try:
        shape, rate = shape_from_json(metadata["shape"]), int(metadata["rate"])
    except ValueError as error:
        raise PartError(f"{path}: {error}") from error
    if not 0 <= rate < shape.rates:
        raise PartError(f"{path}: its rate is {rate}, and there are {shape.rates}")
    for name, sides in (*shape.parameters(), (CENTROIDS, (shape.size, shape.dim))):
        found = tensors[name].shape if name in tensors else "nothing"
        if found != sides:
            raise PartError(f"{path}: {name} should have shape {sides}, found {found}")
        if not np.isfinite(tensors[name]).all():
            raise PartError(f"{path}: {name} has values that are not finite")
    centroids = tensors.pop(CENTROIDS)
    centroids /= np.maximum(np.linalg.norm(centroids, axis=1, keepdims=True), 1e-6)
    try:
        codebook = Codebook(centroids, tensors.pop(QUANTISER, None))
        score_map = read_score_map(metadata)
    except (CodebookError, ValueError) as error:
        raise PartError(f"{path}: {error}") from error
    return Part(
        shape, tensors, codebook, rate, metadata["encoder_sha256"],
        Description(metadata["name"], metadata["version"], metadata["licence"], metadata["trained_on"], score_map),
    )  # fmt: skip
