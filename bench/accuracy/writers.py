"""Ways to write tokens for the same embeddings, each in the form of a codebook: graphs, prices, byte-pair merges."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.codebook import Codebook, Float32
from model.tokenizer import Tokenizer

UInt16 = npt.NDArray[np.uint16]
Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Generated(Codebook):
    """The codebook of a tokenizer whose own graph writes the tokens."""

    tokenizer: Tokenizer | None = None

    def tokenize(self, embeddings: Float32) -> UInt16:
        """The graph's tokens: float32 [frames, dim] to uint16 [frames]."""
        assert self.tokenizer is not None
        string = self.tokenizer.collapse(embeddings)
        return np.repeat(string.ids, string.durations)


@dataclass(frozen=True, eq=False)
class Merged(Codebook):
    """A codebook whose tokens are joined by byte-pair merges: token K + i stands for the pair `merges[i]`."""

    merges: tuple[Pair, ...] = ()

    def tokenize(self, embeddings: Float32) -> UInt16:
        """Merged tokens: float32 [frames, dim] to uint16 [frames]."""
        ids = super().tokenize(embeddings)
        starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]])) if len(ids) else np.zeros(0, np.int64)
        symbols, spans = apart(*merge(ids[starts].tolist(), self.merges, self.size), self.merges, self.size)
        ends = np.concatenate([starts[1:], [len(ids)]]) if len(ids) else starts
        firsts = np.cumsum([0, *spans[:-1]]).astype(np.int64)
        lengths = np.add.reduceat(ends - starts, firsts) if len(ids) else np.zeros(0, np.int64)
        return np.repeat(np.array(symbols, np.uint16), lengths)


def of_file(path: Path) -> tuple[Tokenizer, Codebook]:
    """A tokenizer and what writes its tokens, without a product quantiser."""
    tokenizer = Tokenizer(path, threads=1)
    book = replace(tokenizer.codebook, pq=None)
    if tokenizer.info.tokens == "generated":
        return tokenizer, Generated(book.centroids, None, book.switch_penalty, tokenizer)
    return tokenizer, book


def merge(symbols: Sequence[int], merges: Sequence[Pair], size: int) -> tuple[list[int], list[int]]:
    """Apply merges in their order: the symbols that are left, and how many of the old ones each stands for."""
    out, spans = list(symbols), [1] * len(symbols)
    rank = {pair: number for number, pair in enumerate(merges)}
    while len(out) > 1:
        found = min((rank.get(pair, len(merges)) for pair in pairwise(out)), default=len(merges))
        if found == len(merges):
            break
        pair, i = merges[found], 0
        while i < len(out) - 1:
            if (out[i], out[i + 1]) == pair:
                out[i : i + 2], spans[i : i + 2] = [size + found], [spans[i] + spans[i + 1]]
            i += 1
    return out, spans


def apart(
    symbols: Sequence[int], spans: Sequence[int], merges: Sequence[Pair], size: int
) -> tuple[list[int], list[int]]:
    """The second of two equal symbols in a row becomes its two parts, since strings are kept without repeats.

    Where no token follows itself that leaves no repeats: a symbol of several tokens never begins with its last one.
    """
    widths = [1] * size
    for left, right in merges:
        widths.append(widths[left] + widths[right])
    out: list[int] = []
    lengths: list[int] = []
    for symbol, span in zip(symbols, spans, strict=True):
        if out and out[-1] == symbol and symbol >= size:
            parts = merges[symbol - size]
            out += parts
            lengths += [widths[part] for part in parts]
        else:
            out.append(symbol)
            lengths.append(span)
    return out, lengths


def learn_merges(strings: Sequence[Sequence[int]], count: int, size: int) -> tuple[Pair, ...]:
    """The most frequent pair of neighbours becomes a symbol, `count` times (byte-pair encoding, Sennrich et al. 2016).

    Of pairs that are as frequent the one that is least comes first. Stops where no pair is there twice.
    """
    lines = [list(string) for string in strings]
    lines_of: dict[Pair, set[int]] = {}
    counts: Counter[Pair] = Counter()
    for number, line in enumerate(lines):
        for pair in pairwise(line):
            counts[pair] += 1
            lines_of.setdefault(pair, set()).add(number)
    merges: list[Pair] = []
    while len(merges) < count and counts:
        most = max(counts.values())
        if most < 2:
            break
        best = min(pair for pair, n in counts.items() if n == most)
        symbol = size + len(merges)
        merges.append(best)
        for number in lines_of.pop(best):
            line = lines[number]
            counts.subtract(pairwise(line))
            lines[number] = line = merge_one(line, best, symbol)
            for pair in pairwise(line):
                counts[pair] += 1
                lines_of.setdefault(pair, set()).add(number)
        counts = +counts
    return tuple(merges)


def merge_one(line: Sequence[int], pair: Pair, symbol: int) -> list[int]:
    """A line in which a pair of neighbours, from the left, is one symbol."""
    out: list[int] = []
    for value in line:
        if out and (out[-1], value) == pair:
            out[-1] = symbol
        else:
            out.append(value)
    return out
