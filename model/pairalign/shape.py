"""The shape of the decoder: what it takes, how its parameters are named, and what it works out.

It reads a window of the encoder's unit embeddings and writes tokens, each with the frame at which it begins, from BOS
to EOS (arXiv 2605.06582). One step, for the entry (token, frame) that was written last and the rate that is asked for:

    memory  = norm(embeddings @ condition.weight.T + condition.bias; condition_norm) + waves(frame)      [frames, width]
    x       = token.weight[token] + rate.weight[rate] + waves(frame of the entry)                        [width]
              between two settings of the rate their rows in proportion
    for each block: x += self-attention(norm(x; self_norm)) over this and all earlier entries
                    x += cross-attention(norm(x; cross_norm)) over memory
                    x += contract(gelu(expand(norm(x; wide_norm))))
    y       = norm(x; norm)
    copied  = softmax((y @ copy_query.weight.T) . (memory @ copy_key.weight.T) / sqrt(width)) @ embeddings     [dim]
    logits  = y @ head.weight.T + head.bias                  [size + 1], the last one is EOS
              + copy_scale * copied @ centroids.T            [size], a frame that it looks at speaks for its own token
    pointer = (y @ point_query.weight.T) . (memory @ point_key.weight.T) / sqrt(width)                   [frames]

The pointer is the monotone attention that times the tokens: the next token begins at its best frame among those after
the last token's (the first token always begins at frame 0). BOS is the token `size` at frame 0. Attention has `heads`
heads of width / heads, scores over the root of that, a bias everywhere but in keys. Norms have weight, bias and an
epsilon of 1e-5; gelu is the exact one. A token never follows itself, and EOS is never the first.
`waves(t)` are sines and cosines (Vaswani et al. 2017): sin(t / 100 ** (2 i / width)) for i below width / 2, then cos.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

WAVE_BASE = 100.0  # a window has 75 frames
NORM_EPSILON = 1e-5

Float32 = npt.NDArray[np.float32]
Parameters = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class DecoderShape:
    """Sizes; `size` is K, the tokens without BOS and EOS. `rates` are the settings of the length knob, see `rate`."""

    size: int = 1_024
    dim: int = 256
    width: int = 256
    heads: int = 4
    hidden: int = 1_024
    blocks: int = 4
    rates: int = 4  # prices of a token change that the targets were made with, lowest (most tokens) first
    window_frames: int = 75  # 3 s
    overlap_frames: int = 25  # 1 s, between two windows
    max_tokens: int = 60  # a window: 20 a second

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads")
        if not 0 < 2 * self.overlap_frames <= self.window_frames:
            raise ValueError(f"windows of {self.window_frames} frames cannot overlap by {self.overlap_frames}")

    @property
    def bos(self) -> int:
        """The entry before the first token; among the logits the same number is EOS."""
        return self.size

    def parameters(self) -> Parameters:
        """Names and shapes of all parameters, in the order of the forward pass; a weight is [out, in]."""

        def linear(name: str, rows: int, columns: int, bias: bool = True) -> Parameters:
            yield f"{name}.weight", (rows, columns)
            if bias:
                yield f"{name}.bias", (rows,)

        def norm(name: str) -> Parameters:
            yield f"{name}.weight", (self.width,)
            yield f"{name}.bias", (self.width,)

        yield from linear("condition", self.width, self.dim)
        yield from norm("condition_norm")
        yield "token.weight", (self.size + 1, self.width)
        yield "rate.weight", (self.rates, self.width)
        for i in range(self.blocks):
            for kind in ("self", "cross"):
                yield from norm(f"blocks.{i}.{kind}_norm")
                for part in ("query", "key", "value", "out"):
                    yield from linear(f"blocks.{i}.{kind}.{part}", self.width, self.width, part != "key")
            yield from norm(f"blocks.{i}.wide_norm")
            yield from linear(f"blocks.{i}.expand", self.hidden, self.width)
            yield from linear(f"blocks.{i}.contract", self.width, self.hidden)
        yield from norm("norm")
        yield from linear("head", self.size + 1, self.width)
        for kind in ("copy", "point"):
            yield from linear(f"{kind}_query", self.width, self.width, bias=False)
            yield from linear(f"{kind}_key", self.width, self.width, bias=False)
        yield "copy_scale", (1,)

    def windows(self, frames: int) -> list[tuple[int, int]]:
        """First frame and length of each window over so many frames: one each `window - overlap` frames."""
        hop = self.window_frames - self.overlap_frames
        count = max(1, -(-(frames - self.overlap_frames) // hop))
        return [(i * hop, min(self.window_frames, frames - i * hop)) for i in range(count)]


def waves(frames: int, width: int) -> Float32:
    """Sines and cosines of frame numbers: float32 [frames, width]."""
    angle = np.arange(frames)[:, None] / WAVE_BASE ** (2 * np.arange(width // 2) / width)
    return np.concatenate([np.sin(angle), np.cos(angle)], 1).astype(np.float32)


def shape_to_json(shape: DecoderShape) -> str:
    """The shape as files keep it."""
    return json.dumps(asdict(shape))


def shape_from_json(text: str) -> DecoderShape:
    """What `shape_to_json` wrote. Raises ValueError where that is no shape."""
    try:
        return DecoderShape(**json.loads(text))
    except (TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"no decoder's shape: {text}") from error
