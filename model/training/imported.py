"""The way back from a tokenizer file to the student it was exported from: no checkpoint need be kept beside it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import torch
from onnx import numpy_helper

from model.encoder import FRAME_SAMPLES, EncoderShape, shape_from_json
from model.graph import multiplies_in_8_bits, unpacked
from model.tokenizer import Tokenizer, TokenizerError
from model.training.student import Student

TOLERANCE = 1e-5  # of cosine, between the file's embeddings and the student's
TOLERANCE_8_BITS = 0.05  # where the file multiplies in 8 bits
PROBE_FRAMES = 25

Float32 = npt.NDArray[np.float32]


class NotAdaptable(TokenizerError):
    """A tokenizer that our export did not write: its encoder is not the student's."""

    code = "tokenizer_not_adaptable"


def student_from_onnx(path: Path) -> Student:
    """The student whose weights the ONNX file holds, ready to embed.

    The shape is read from the metadata, the tensors from the initialisers that `model.export` names; what comes out is
    tried on made sound against the file itself (one that multiplies in 8 bits rounds, and is only near). Raises
    TokenizerError where the file is no tokenizer, NotAdaptable where it is not one of ours.
    """
    tokenizer = Tokenizer(path, threads=1)
    model = onnx.load(path)
    arrays = {tensor.name: np.asarray(numpy_helper.to_array(tensor)) for tensor in model.graph.initializer}
    shape = _shape(model, path)
    student = Student(shape)
    student.load_state_dict({name: torch.from_numpy(a) for name, a in _parameters(arrays, shape, path).items()})
    student.eval()
    # Names and sizes can be right by chance: the numbers that come out cannot.
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.standard_normal(PROBE_FRAMES * FRAME_SAMPLES)).astype(np.float32)
    with torch.inference_mode():
        ours = student(torch.from_numpy(samples[None]))[0].numpy()
    theirs = tokenizer.embed(samples)
    off = float(1.0 - (ours * theirs).sum(1).mean()) if ours.shape == theirs.shape else float("inf")
    if not off <= (TOLERANCE_8_BITS if multiplies_in_8_bits(model) else TOLERANCE):
        raise _not_ours(path, f"its weights do not give its embeddings (off by {off:.2g})")
    return student


def _shape(model: onnx.ModelProto, path: Path) -> EncoderShape:
    declared = {entry.key: entry.value for entry in model.metadata_props}.get("encoder")
    if declared is None:
        raise _not_ours(path, "it does not say what encoder it has")
    try:
        return shape_from_json(declared)
    except ValueError as error:
        raise _not_ours(path, str(error)) from error


def _parameters(arrays: dict[str, npt.NDArray[np.generic]], shape: EncoderShape, path: Path) -> dict[str, Float32]:
    """The student's tensors: convolutions lose the axis that the graph gave them."""
    out: dict[str, Float32] = {}
    for name, sides in shape.parameters():
        array = unpacked(arrays, name)
        if array is not None and len(sides) == 3 and array.ndim == 4 and array.shape[2] == 1:
            array = array[:, :, 0]
        if array is None or array.dtype != np.float32 or array.shape != sides:
            found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise _not_ours(path, f"{name} should be float32 {list(sides)}, found {found}")
        out[name] = np.array(array, np.float32)  # a copy that may be written to
    return out


def _not_ours(path: Path, reason: str) -> NotAdaptable:
    return NotAdaptable(f"{path} was not written by `sayagain export`, and only such tokenizers can adapt: {reason}")
