"""The published encoder of OpenAI Whisper base: its sizes, its names, its fingerprint, and where to get it.

Radford et al. 2022, "Robust Speech Recognition via Large-Scale Weak Supervision". The weights are MIT licensed
and come from their publisher or from a given file; nothing of them is part of this project.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from model.audio import SAMPLE_RATE
from model.encoder import FRAME_SAMPLES

PUBLISHED_AS = "openai/whisper-base"
SHA256 = "24e01a450caf34d3d35e074c387404fab3e9d717b2fb848d6a2d7ae032694aa1"  # of the float16 tensors, see `fingerprint`
MELS, WIDTH, HEADS, BLOCKS = 80, 512, 8, 6
FFT, HOP = 400, 160
WINDOW_S = 30  # its positions are absolute, and it was trained on full windows only
TAIL_SAMPLES = 640  # of silence behind a stretch that is heard alone: its last rows look that far ahead
WINDOW_FRAMES = WINDOW_S * SAMPLE_RATE // FRAME_SAMPLES  # 750 pooled frames

Float32 = npt.NDArray[np.float32]
T = TypeVar("T")


class EncoderError(Exception):
    """The encoder's weights cannot be had or are not what they should be."""

    code = "encoder_unavailable"


_PUBLISHER_NAMES = {
    "self_attn.q_proj": "attn.query", "self_attn.k_proj": "attn.key", "self_attn.v_proj": "attn.value",
    "self_attn.out_proj": "attn.out", "self_attn_layer_norm": "attn_ln", "fc1": "mlp.0", "fc2": "mlp.2",
    "final_layer_norm": "mlp_ln",
}  # fmt: skip


def own_name(name: str) -> str | None:
    """The name of an encoder's tensor here, from openai-whisper's or the hub's; None for one of the decoder."""
    if ".decoder." in name or name.startswith("decoder.") or name == "proj_out.weight":
        return None
    name = name.removeprefix("model.").removeprefix("encoder.")
    name = name.replace("embed_positions.weight", "positional_embedding")
    if name.startswith("layers."):
        _, number, rest = name.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        return f"blocks.{number}.{_PUBLISHER_NAMES.get(part, part)}.{kind}"
    return name.replace("layer_norm", "ln_post") if name.startswith("layer_norm.") else name


def own_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """The encoder's tensors under their names here, see `own_name`."""
    return {own: tensor for name, tensor in tensors.items() if (own := own_name(name)) is not None}


def parameters() -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all parameters, in the order of the forward pass; a weight is [out, in]."""
    yield "conv1.weight", (WIDTH, MELS, 3)
    yield "conv1.bias", (WIDTH,)
    yield "conv2.weight", (WIDTH, WIDTH, 3)
    yield "conv2.bias", (WIDTH,)
    yield "positional_embedding", (2 * WINDOW_FRAMES, WIDTH)
    norms = ("weight", (WIDTH,)), ("bias", (WIDTH,))
    for i in range(BLOCKS):
        yield from ((f"blocks.{i}.attn_ln.{kind}", shape) for kind, shape in norms)
        for part in ("query", "key", "value", "out"):
            yield f"blocks.{i}.attn.{part}.weight", (WIDTH, WIDTH)
            if part != "key":
                yield f"blocks.{i}.attn.{part}.bias", (WIDTH,)
        yield from ((f"blocks.{i}.mlp_ln.{kind}", shape) for kind, shape in norms)
        yield f"blocks.{i}.mlp.0.weight", (4 * WIDTH, WIDTH)
        yield f"blocks.{i}.mlp.0.bias", (4 * WIDTH,)
        yield f"blocks.{i}.mlp.2.weight", (WIDTH, 4 * WIDTH)
        yield f"blocks.{i}.mlp.2.bias", (WIDTH,)
    yield from ((f"ln_post.{kind}", shape) for kind, shape in norms)


def fingerprint(tensors: Mapping[str, npt.NDArray[np.floating]]) -> str:
    """SHA-256 over names and float16 values: the same for every file that holds the same encoder."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tensors[name], np.float16).tobytes())
    return digest.hexdigest()


def read_encoder(path: Path, expected: str | None = SHA256) -> dict[str, Float32]:
    """The encoder's tensors, float32, under their names here, from a safetensors file (a decoder in it is passed over).

    Raises EncoderError where the file is no safetensors file, has other tensors, or has another fingerprint than
    `expected`; None takes any values.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            names = own_names({name: name for name in file.keys()})  # noqa: SIM118
            raw = {own: file.get_tensor(name) for own, name in names.items()}
    except (OSError, SafetensorError, TypeError) as error:  # TypeError: a number type that numpy lacks
        raise EncoderError(f"{path} cannot be read as safetensors: {error}") from error
    if expected is not None and (found := fingerprint(raw)) != expected:
        raise EncoderError(f"not the published encoder: fingerprint {found[:12]}, not {expected[:12]}")
    shapes = dict(parameters())
    for name in sorted({*shapes, *raw}):
        found_shape = raw[name].shape if name in raw else "nothing"
        if found_shape != shapes.get(name):
            raise EncoderError(f"{path}: {name} should have shape {shapes.get(name)}, found {found_shape}")
    return {name: raw[name].astype(np.float32) for name in shapes}


def download() -> Path:
    """The publisher's file, from the local cache or the network.

    Raises EncoderError without the package huggingface_hub, or where the file cannot be fetched.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise EncoderError(f"{PUBLISHED_AS} is fetched with huggingface_hub, which is not installed") from error
    try:
        return Path(hf_hub_download(PUBLISHED_AS, "model.safetensors"))
    except Exception as error:  # of the hub's own kinds, its HTTP client's, and the system's
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EncoderError(f"{PUBLISHED_AS} cannot be fetched: {line}") from error
