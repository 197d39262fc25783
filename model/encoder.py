"""The shapes of the student encoders: what each sees, how far, and how its parameters are named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import ClassVar

from model.audio import SAMPLE_RATE
from model.frontend import HOP, NARROW, PAD, WIDE, FrontEnd

FRAME_SAMPLES = 4 * HOP  # 640: n samples give n // 640 frames, whatever the encoder
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE
STEM_KERNEL, STEM_STRIDE, STEM_PAD = 4, 2, 1  # of the convolutional encoder's stem: 10 ms to 40 ms in two steps
CONV_KERNEL, CONV_PAD, POOL = 3, 1, 2  # of the attention encoder's: stride 1, stride 2, and the mean of two
HIDDEN_FROM = -1e4  # added to the score of what a frame must not look at: its share is then exactly 0

Parameters = Iterator[tuple[str, tuple[int, ...]]]


def _whole_frames(samples: int) -> int:
    return -(-samples // FRAME_SAMPLES) * FRAME_SAMPLES


@dataclass(frozen=True)
class ConvolutionShape:
    """A stack of ConvNeXt blocks (Liu et al. 2022, in one dimension) over log-mel frames.

    Every convolution is centred and finite, so a frame depends on a bounded stretch of sound only.
    """

    KIND: ClassVar[str] = "convolution"
    FRONT_END: ClassVar[FrontEnd] = NARROW

    width: int = 256
    hidden: int = 768
    blocks: int = 8
    kernel: int = 11
    dim: int = 256

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise ValueError(f"the kernel must be odd, not {self.kernel}")

    @property
    def context_samples(self) -> int:
        """Samples before a frame's first, and after its last, that it depends on, rounded up to whole frames."""
        first_mel = -STEM_PAD * STEM_STRIDE - STEM_PAD  # of frame 0, through both stems
        return _whole_frames(FRAME_SAMPLES * self.blocks * (self.kernel // 2) - HOP * first_mel + PAD)

    def parameters(self) -> Parameters:
        """Names and shapes of all parameters, in the order of the forward pass."""
        yield from _stem(self.width, self.FRONT_END.mels, STEM_KERNEL)
        for i in range(self.blocks):
            yield f"blocks.{i}.depthwise.weight", (self.width, 1, self.kernel)
            yield f"blocks.{i}.depthwise.bias", (self.width,)
            yield f"blocks.{i}.norm.weight", (self.width,)
            yield f"blocks.{i}.norm.bias", (self.width,)
            yield f"blocks.{i}.expand.weight", (self.hidden, self.width)
            yield f"blocks.{i}.expand.bias", (self.hidden,)
            yield f"blocks.{i}.contract.weight", (self.width, self.hidden)
            yield f"blocks.{i}.contract.bias", (self.width,)
            yield f"blocks.{i}.scale", (self.width,)
        yield from _head(self.width, self.dim)


@dataclass(frozen=True)
class AttentionShape:
    """Transformer blocks whose frames look at no more than `reach` frames to each side, over convolved log-mels.

    The blocks are those of Whisper's encoder (Radford et al. 2022) without positions: what a head prefers at each
    distance is a parameter of its own (Shaw et al. 2018). So a frame depends on a bounded stretch of sound only.
    """

    KIND: ClassVar[str] = "attention"
    FRONT_END: ClassVar[FrontEnd] = WIDE

    width: int = 512
    heads: int = 8
    hidden: int = 1_024
    blocks: int = 4
    reach: int = 16
    dim: int = 256

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be shared by {self.heads} heads")

    @property
    def context_samples(self) -> int:
        """Samples before a frame's first, and after its last, that it depends on, rounded up to whole frames."""
        first_mel = -2 * CONV_PAD - CONV_PAD  # of frame 0, through both convolutions; none after its last
        return _whole_frames(FRAME_SAMPLES * self.blocks * self.reach - HOP * first_mel + PAD)

    def parameters(self) -> Parameters:
        """Names and shapes of all parameters, in the order of the forward pass."""
        yield from _stem(self.width, self.FRONT_END.mels, CONV_KERNEL)
        yield "offset", (self.width,)
        for i in range(self.blocks):
            yield f"blocks.{i}.attention_norm.weight", (self.width,)
            yield f"blocks.{i}.attention_norm.bias", (self.width,)
            for part in ("query", "key", "value", "out"):
                yield f"blocks.{i}.{part}.weight", (self.width, self.width)
                if part != "key":
                    yield f"blocks.{i}.{part}.bias", (self.width,)
            yield f"blocks.{i}.distance", (self.heads, 2 * self.reach + 1)
            yield f"blocks.{i}.norm.weight", (self.width,)
            yield f"blocks.{i}.norm.bias", (self.width,)
            yield f"blocks.{i}.expand.weight", (self.hidden, self.width)
            yield f"blocks.{i}.expand.bias", (self.hidden,)
            yield f"blocks.{i}.contract.weight", (self.width, self.hidden)
            yield f"blocks.{i}.contract.bias", (self.width,)
        yield from _head(self.width, self.dim)


EncoderShape = ConvolutionShape | AttentionShape


def _stem(width: int, mels: int, kernel: int) -> Parameters:
    for number, inputs in enumerate((mels, width)):
        yield f"stem.{number}.weight", (width, inputs, kernel)
        yield f"stem.{number}.bias", (width,)


def _head(width: int, dim: int) -> Parameters:
    yield "norm.weight", (width,)
    yield "norm.bias", (width,)
    yield "head.weight", (dim, width)
    yield "head.bias", (dim,)


def parameter_count(shape: EncoderShape) -> int:
    """How many numbers are trained."""
    return sum(math.prod(sides) for _, sides in shape.parameters())


def shape_to_json(shape: EncoderShape) -> str:
    """The shape as files keep it."""
    return json.dumps({"kind": shape.KIND, **asdict(shape)})


def shape_from_json(text: str) -> EncoderShape:
    """What `shape_to_json` wrote. Raises ValueError where that is no shape."""
    try:
        fields = json.loads(text)
        kind = fields.pop("kind")
        shape: type[EncoderShape] = {s.KIND: s for s in (ConvolutionShape, AttentionShape)}[kind]
        return shape(**fields)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"no encoder's shape: {text}") from error
