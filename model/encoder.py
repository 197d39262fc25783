"""The convolutional encoder's shape: what it sees, how far, and how its parameters are named."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from model.audio import SAMPLE_RATE
from model.frontend import HOP, MELS, PAD

STEM_KERNEL, STEM_STRIDE, STEM_PAD = 4, 2, 1  # two of them: 10 ms to 40 ms a frame
FRAME_SAMPLES = HOP * STEM_STRIDE * STEM_STRIDE  # 640: n samples give n // 640 frames
FRAME_SECONDS = FRAME_SAMPLES / SAMPLE_RATE


@dataclass(frozen=True)
class EncoderShape:
    """A stack of ConvNeXt blocks (Liu et al. 2022, in one dimension) over log-mel frames.

    Every convolution is centred and finite, so a frame depends on a bounded stretch of sound only.
    """

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
        radius = self.blocks * (self.kernel // 2)
        first_mel = -STEM_PAD * STEM_STRIDE - STEM_PAD  # of frame 0, through both stems
        exact = FRAME_SAMPLES * radius - HOP * first_mel + PAD
        return -(-exact // FRAME_SAMPLES) * FRAME_SAMPLES

    def parameters(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of all parameters, in the order of the forward pass."""
        yield "stem.0.weight", (self.width, MELS, STEM_KERNEL)
        yield "stem.0.bias", (self.width,)
        yield "stem.1.weight", (self.width, self.width, STEM_KERNEL)
        yield "stem.1.bias", (self.width,)
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
        yield "norm.weight", (self.width,)
        yield "norm.bias", (self.width,)
        yield "head.weight", (self.dim, self.width)
        yield "head.bias", (self.dim,)

    @property
    def parameter_count(self) -> int:
        """How many numbers are trained."""
        total = 0
        for _, shape in self.parameters():
            size = 1
            for side in shape:
                size *= side
            total += size
        return total
