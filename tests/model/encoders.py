"""An encoder such as others train, made with onnx.helper: frames of 20 ms, a row less than frames, other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

HOP, WINDOW, BANDS, DIM = 320, 400, 24, 20  # as HuBERT's front end: rows = (samples - 400) // 320 + 1
RIGHT_CONTEXT = WINDOW - HOP
HEAVY = 50_000  # weights of the output that nobody wants


def filters() -> np.ndarray:
    """Cosines and sines under a window, their frequencies spaced as mels are: float32 [2 * BANDS, 1, WINDOW]."""
    hz = 700.0 * (10.0 ** (np.linspace(150.0, 2_800.0, BANDS) / 2_595.0) - 1.0)
    phase = 2.0 * np.pi * hz[:, None] * np.arange(WINDOW) / 16_000.0
    waves = np.concatenate([np.cos(phase), np.sin(phase)]) * np.hanning(WINDOW) / 20.0
    return waves[:, None].astype(np.float32)


def encoder(
    input_shape: tuple[Any, ...] = ("batch", "samples"),
    more_inputs: tuple[str, ...] = (),
    opset: int = 17,
    rows: str = "rows",
    dtype: int = TensorProto.FLOAT,
    pads: tuple[int, int] = (0, 0),
) -> onnx.ModelProto:
    """Log energies in bands and a projection. Its inner names are those of the contract, and of GraphBuilder.

    A part of it lies in a branch that takes a tensor from outside. `features` come first, `deep` has more weights.
    """
    rng = np.random.default_rng(1)
    arrays = {
        "codebook": filters(),
        "pq": np.concatenate([np.eye(BANDS), np.eye(BANDS)], axis=1)[..., None].astype(np.float32),
        "floor": np.float32(1e-4),
        "mean": np.linalg.qr(rng.standard_normal((BANDS, DIM)))[0].astype(np.float32),
        "offset": np.full(DIM, 3.0, np.float32),  # the same in all features: what centring is for
        "heavy": rng.standard_normal((DIM, HEAVY // DIM)).astype(np.float32),
        "one": np.array([1], np.int64),
        "true": np.array(True),
    }
    branch = [
        helper.make_graph([helper.make_node(kind, ["mapped", "offset"], [f"branch_{kind}"])], kind, [],
                          [helper.make_tensor_value_info(f"branch_{kind}", TensorProto.FLOAT, None)])
        for kind in ("Add", "Sub")
    ]  # fmt: skip
    nodes = [
        helper.make_node("Unsqueeze", ["input_values", "one"], ["ids"]),
        helper.make_node("Conv", ["ids", "codebook"], ["embeddings"], strides=[HOP], pads=pads),
        helper.make_node("Mul", ["embeddings", "embeddings"], ["waveform"]),
        helper.make_node("Conv", ["waveform", "pq"], ["sub_3"]),
        helper.make_node("Add", ["sub_3", "floor"], ["max_1"]),
        helper.make_node("Log", ["max_1"], ["log"]),
        helper.make_node("Transpose", ["log"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["turned", "mean"], ["mapped"]),
        helper.make_node("If", ["true"], ["features"], then_branch=branch[0], else_branch=branch[1]),
        helper.make_node("MatMul", ["features", "heavy"], ["deep"]),
        *(helper.make_node("Identity", [name], [f"{name}_unused"]) for name in more_inputs),
    ]
    graph = helper.make_graph(
        nodes,
        "encoder",
        [
            helper.make_tensor_value_info("input_values", dtype, input_shape),
            *(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in more_inputs),
        ],
        [
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", rows, DIM]),
            helper.make_tensor_value_info("deep", TensorProto.FLOAT, ["batch", rows, HEAVY // DIM]),
            helper.make_tensor_value_info("mapped", TensorProto.FLOAT, ["batch", rows, DIM]),
            helper.make_tensor_value_info("log", TensorProto.FLOAT, ["batch", BANDS, rows]),
        ],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    """The model in a file."""
    onnx.save(model, str(path))
    return path


def features(path: Path, samples: np.ndarray, output: str = "features") -> np.ndarray:
    """What the encoder itself gives a clip: float32 [rows, dim]."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return np.asarray(session.run([output], {"input_values": samples[None]})[0][0])
