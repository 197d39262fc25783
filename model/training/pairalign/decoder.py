"""The decoder in torch: teacher-forced over whole sequences, and greedy with a key-value cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.pairalign.shape import DecoderShape, waves


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.value, self.out = (nn.Linear(width, width) for _ in range(3))
        self.key = nn.Linear(width, width, bias=False)

    def split(self, x: Tensor) -> Tensor:
        """[batch, rows, width] to [batch, heads, rows, width / heads]."""
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)

    def forward(self, x: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """`key` and `value` are split already; `mask` is true where a row may look."""
        mixed = F.scaled_dot_product_attention(self.split(self.query(x)), key, value, mask)
        return self.out(mixed.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class _Block(nn.Module):
    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.self_norm, self.cross_norm, self.wide_norm = (nn.LayerNorm(shape.width) for _ in range(3))
        self.add_module("self", _Attention(shape.width, shape.heads))
        self.cross = _Attention(shape.width, shape.heads)
        self.expand = nn.Linear(shape.width, shape.hidden)
        self.contract = nn.Linear(shape.hidden, shape.width)

    @property
    def own(self) -> _Attention:
        """Self-attention, whose parameters are named `self`."""
        return self.get_submodule("self")  # type: ignore[return-value]


class _Table(nn.Module):
    """Rows by number; the parameter is `weight`."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, width) * 0.5)

    def forward(self, at: Tensor) -> Tensor:
        return F.embedding(at, self.weight)


@dataclass(frozen=True)
class Memory:
    """What the decoder looks at: `rows` [batch, frames, width], `valid` bool [batch, frames]."""

    rows: Tensor
    valid: Tensor
    keys: list[Tensor]
    values: list[Tensor]


@dataclass(frozen=True)
class Written:
    """Greedy sequences: `tokens` and `starts` int64 [batch, steps], `lengths` int64 [batch], `ended` bool [batch]."""

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    ended: Tensor  # by EOS, not by the limit


class Decoder(nn.Module):
    """`shape.parameters()` by those names; see `model.pairalign.shape` for what is worked out."""

    wave: Tensor

    def __init__(self, shape: DecoderShape) -> None:
        super().__init__()
        self.shape = shape
        self.condition = nn.Linear(shape.dim, shape.width)
        self.condition_norm, self.norm = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.token = _Table(shape.size + 1, shape.width)
        self.rate = _Table(shape.rates, shape.width)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.blocks))
        self.head = nn.Linear(shape.width, shape.size + 1)
        self.point_query = nn.Linear(shape.width, shape.width, bias=False)
        self.point_key = nn.Linear(shape.width, shape.width, bias=False)
        self.register_buffer("wave", torch.from_numpy(waves(shape.window_frames, shape.width)), persistent=False)

    def remember(self, embeddings: Tensor, lengths: Tensor) -> Memory:
        """The memory of windows float32 [batch, frames, dim], of which `lengths` int64 [batch] frames are sound."""
        frames = embeddings.shape[1]
        rows = self.condition_norm(self.condition(embeddings)) + self.wave[:frames]
        valid = torch.arange(frames, device=rows.device)[None] < lengths[:, None]
        keys = [block.cross.split(block.cross.key(rows)) for block in self.blocks]
        values = [block.cross.split(block.cross.value(rows)) for block in self.blocks]
        return Memory(rows, valid, keys, values)

    def enter(self, tokens: Tensor, starts: Tensor, rate: Tensor) -> Tensor:
        """Entries of the prefix: int64 [batch, steps] both, `rate` int64 [batch], to [batch, steps, width]."""
        return self.token(tokens) + self.rate(rate)[:, None] + self.wave[starts]  # type: ignore[no-any-return]

    def forward(self, memory: Memory, tokens: Tensor, starts: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
        """Of every prefix: logits [batch, steps, K + 1] and pointer scores [batch, steps, frames]."""
        x = self.enter(tokens, starts, rate)
        steps = x.shape[1]
        causal = torch.ones(steps, steps, dtype=torch.bool, device=x.device).tril()
        look = memory.valid[:, None, None]
        for block, key, value in zip(self.blocks, memory.keys, memory.values, strict=True):
            own, y = block.own, block.self_norm(x)  # type: ignore[union-attr, operator]
            x = x + own(y, own.split(own.key(y)), own.split(own.value(y)), causal)  # type: ignore[operator, union-attr]
            x = x + block.cross(block.cross_norm(x), key, value, look)  # type: ignore[operator]
            x = x + block.contract(F.gelu(block.expand(block.wide_norm(x))))  # type: ignore[operator]
        return self._read(memory, x)

    def _read(self, memory: Memory, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(x)
        pointer = self.point_query(y) @ self.point_key(memory.rows).transpose(1, 2) / self.shape.width**0.5
        return self.head(y), pointer.masked_fill(~memory.valid[:, None], -torch.inf)

    @torch.no_grad()
    def write(self, memory: Memory, rate: Tensor) -> Written:
        """Greedy decoding, all rows side by side."""
        shape, batch, device = self.shape, len(rate), rate.device
        token = torch.full((batch, 1), shape.bos, device=device)
        start = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        caches: list[tuple[Tensor, Tensor] | None] = [None] * len(self.blocks)
        tokens, starts = [], []
        going = torch.ones(batch, dtype=torch.bool, device=device)
        ended = ~going
        lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        look = memory.valid[:, None, None]
        frame = torch.arange(memory.valid.shape[1], device=device)
        for step in range(shape.max_tokens):
            x = self.enter(token, start, rate)
            for i, block in enumerate(self.blocks):
                own, y = block.own, block.self_norm(x)  # type: ignore[union-attr, operator]
                key, value = own.split(own.key(y)), own.split(own.value(y))  # type: ignore[operator, union-attr]
                if (cache := caches[i]) is not None:
                    key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
                caches[i] = key, value
                x = x + own(y, key, value, None)  # type: ignore[operator]
                x = x + block.cross(block.cross_norm(x), memory.keys[i], memory.values[i], look)  # type: ignore
                x = x + block.contract(F.gelu(block.expand(block.wide_norm(x))))  # type: ignore[operator]
            logits, pointer = self._read(memory, x)
            logits, pointer = logits[:, 0], pointer[:, 0]
            logits.scatter_(1, token, -torch.inf)  # not itself again; at first the token is BOS, whose number is EOS
            best = logits.argmax(1)
            if step:
                pointer = pointer.masked_fill(frame[None] <= start, -torch.inf)
                out_of_frames = ~torch.isfinite(pointer).any(1)
                ended = ended | (going & ((best == shape.bos) | out_of_frames))
                going = going & (best != shape.bos) & ~out_of_frames
                start = torch.where(going[:, None], pointer.argmax(1, keepdim=True), start)
            if not going.any():
                break
            token = torch.where(going, best, token[:, 0])[:, None]
            lengths += going
            tokens.append(token)
            starts.append(start)
        return Written(torch.cat(tokens, 1), torch.cat(starts, 1), lengths, ended)


def start_from(codebook: np.ndarray, shape: DecoderShape) -> Decoder:  # type: ignore[type-arg]
    """A decoder whose tokens look like their centroids at first: a random projection of them."""
    decoder = Decoder(shape)
    with torch.no_grad():
        project = torch.randn(shape.dim, shape.width) / shape.dim**0.5
        decoder.token.weight[: shape.size] = torch.from_numpy(codebook).float() @ project * shape.dim**0.5 * 0.5
        decoder.head.weight[: shape.size] = torch.from_numpy(codebook).float() @ project * 0.5
        nn.init.zeros_(decoder.head.bias)
    return decoder
