"""The decoder in torch: teacher-forced over whole sequences, and greedy with a key-value cache."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.pairalign.part import Part
from model.pairalign.shape import DecoderShape, waves

COPY_SCALE = 10.0  # at first

Cache = tuple[Tensor, Tensor]  # keys and values of the entries so far, [batch, heads, steps, width / heads]


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

    def forward(
        self, x: Tensor, before: Cache | None, key: Tensor, value: Tensor, look: Tensor, causal: Tensor | None
    ) -> tuple[Tensor, Cache]:
        """Entries [batch, steps, width] after those in the cache `before`: what they become, and the cache with them.

        `key` and `value` are the memory's, `look` says what of it is sound.
        """
        own: _Attention = self.get_submodule("self")  # type: ignore[assignment]
        y = self.self_norm(x)
        keys, values = own.split(own.key(y)), own.split(own.value(y))
        if before is not None:
            keys, values = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        x = x + own(y, keys, values, causal)
        x = x + self.cross(self.cross_norm(x), key, value, look)
        x = x + self.contract(F.gelu(self.expand(self.wide_norm(x))))
        return x, (keys, values)


class _Table(nn.Module):
    """Rows by number; the parameter is `weight`."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, width) * 0.5)

    def forward(self, at: Tensor) -> Tensor:
        return F.embedding(at, self.weight)


@dataclass(frozen=True)
class Memory:
    """What the decoder looks at: `heard` [batch, frames, dim], `valid` bool [batch, frames], and what the blocks, the
    copy and the pointer make of it."""  # fmt: skip

    heard: Tensor
    valid: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    copy_keys: Tensor
    point_keys: Tensor

    def take(self, rows: Tensor) -> Memory:
        """The memory of some rows of the batch, int64 [n], in that order."""
        keys, values = [key[rows] for key in self.keys], [value[rows] for value in self.values]
        return Memory(self.heard[rows], self.valid[rows], keys, values, self.copy_keys[rows], self.point_keys[rows])


@dataclass(frozen=True)
class Written:
    """Greedy sequences: `tokens` and `starts` int64 [batch, steps], `lengths` int64 [batch], `ended` bool [batch]."""

    tokens: Tensor
    starts: Tensor
    lengths: Tensor
    ended: Tensor  # by EOS, not by the limit


class Decoder(nn.Module):
    """`shape.parameters()` by those names; see `model.pairalign.shape` for what is worked out.

    `centroids` float32 [K, dim] are those of the codebook whose tokens it writes.
    """

    wave: Tensor
    centroids: Tensor

    def __init__(self, shape: DecoderShape, centroids: npt.NDArray[np.float32]) -> None:
        super().__init__()
        self.shape = shape
        self.condition = nn.Linear(shape.dim, shape.width)
        self.condition_norm, self.norm = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.token = _Table(shape.size + 1, shape.width)
        self.rate = _Table(shape.rates, shape.width)
        self.blocks = nn.ModuleList(_Block(shape) for _ in range(shape.blocks))
        self.head = nn.Linear(shape.width, shape.size + 1)
        self.copy_query, self.copy_key, self.point_query, self.point_key = (
            nn.Linear(shape.width, shape.width, bias=False) for _ in range(4)
        )
        self.copy_scale = nn.Parameter(torch.tensor([COPY_SCALE]))
        self.register_buffer("centroids", torch.from_numpy(np.array(centroids, np.float32)), persistent=False)
        self.register_buffer("wave", torch.from_numpy(waves(shape.window_frames, shape.width)), persistent=False)

    def remember(self, embeddings: Tensor, lengths: Tensor) -> Memory:
        """The memory of windows float32 [batch, frames, dim], of which `lengths` int64 [batch] frames are sound."""
        frames = embeddings.shape[1]
        rows = self.condition_norm(self.condition(embeddings)) + self.wave[:frames]
        valid = torch.arange(frames, device=rows.device)[None] < lengths[:, None]
        across = [block.get_submodule("cross") for block in self.blocks]
        keys = [a.split(a.key(rows)) for a in across]  # type: ignore[operator]
        values = [a.split(a.value(rows)) for a in across]  # type: ignore[operator]
        return Memory(embeddings, valid, keys, values, self.copy_key(rows), self.point_key(rows))

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
            x, _ = block(x, None, key, value, look, causal)
        return self._read(memory, x)

    def _read(self, memory: Memory, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(x)

        def scores(query: Tensor, keys: Tensor) -> Tensor:
            found: Tensor = query @ keys.transpose(1, 2) / self.shape.width**0.5
            return found.masked_fill(~memory.valid[:, None], -torch.inf)

        copied = scores(self.copy_query(y), memory.copy_keys).softmax(-1) @ memory.heard
        logits = self.head(y) + F.pad(self.copy_scale * (copied @ self.centroids.T), (0, 1))
        return logits, scores(self.point_query(y), memory.point_keys)

    @torch.no_grad()
    def write(self, memory: Memory, rate: Tensor) -> Written:
        """Greedy decoding, all rows side by side."""
        shape, batch, device = self.shape, len(rate), rate.device
        token = torch.full((batch, 1), shape.bos, device=device)
        start = torch.zeros((batch, 1), dtype=torch.int64, device=device)
        caches: list[Cache | None] = [None] * len(self.blocks)
        tokens, starts = [], []
        going = torch.ones(batch, dtype=torch.bool, device=device)
        ended = ~going
        lengths = torch.zeros(batch, dtype=torch.int64, device=device)
        look = memory.valid[:, None, None]
        frame = torch.arange(memory.valid.shape[1], device=device)
        for step in range(shape.max_tokens):
            x = self.enter(token, start, rate)
            for i, block in enumerate(self.blocks):
                x, caches[i] = block(x, caches[i], memory.keys[i], memory.values[i], look, None)
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


def go_on_from(part: Part, centroids: npt.NDArray[np.float32]) -> Decoder:
    """The decoder of a part, over a codebook float32 [K, dim] whose tokens are like those of the part's own."""
    decoder = Decoder(part.shape, centroids)
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            parameter.copy_(torch.from_numpy(part.weights[name]))
    return decoder


def start_from(codebook: npt.NDArray[np.float32], shape: DecoderShape) -> Decoder:
    """A decoder whose tokens look like their centroids at first, a random projection of them, and which copies and
    points near to where the last token began."""  # fmt: skip
    decoder = Decoder(shape, codebook)
    with torch.no_grad():
        project = torch.randn(shape.dim, shape.width) / shape.dim**0.5
        centroids = torch.tensor(codebook)
        decoder.token.weight[: shape.size] = centroids @ project * shape.dim**0.5 * 0.5
        decoder.head.weight[: shape.size] = centroids @ project * 0.5
        nn.init.zeros_(decoder.head.bias)
        for layer in (decoder.copy_query, decoder.copy_key, decoder.point_query, decoder.point_key):
            nn.init.eye_(layer.weight)
    return decoder
