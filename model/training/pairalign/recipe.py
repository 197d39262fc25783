"""From a corpus to PairAlign's part: pack, hearings, targets, stages; each can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from model.codebook import Codebook, fit_codebook
from model.export import Description
from model.pairalign.part import Part, PartError, read_part, write_part
from model.pairalign.shape import DecoderShape
from model.tokenizer import DEFAULT_WEIGHTS, Tokenizer
from model.training.pairalign import stages
from model.training.pairalign.batches import Examples
from model.training.pairalign.decoder import Decoder, go_on_from, start_from
from model.training.pairalign.hearings import Hearings, hear
from model.training.pairalign.targets import store_ids
from model.training.recipe import Corpus, packed, untimed_texts
from model.training.rooms import load_rooms
from model.training.words import Groups, read_words

IDS_FILE, CODEBOOK_FILE, PART_FILE = "ids.npy", "codebook.npz", "pairalign.safetensors"
RATE = 3  # of the length knob, unless another is asked for when the file is put together
SIZE = 4_096  # of the codebook whose tokens are written
FIT_FRAMES = 131_072  # at most, of the sample that it is fitted to
Float32 = npt.NDArray[np.float32]

DESCRIPTION = Description("pairalign", "1", "Apache-2.0", "see the model card")


def prepare(
    corpus: Corpus,
    encoder: Tokenizer,
    work: Path,
    hours: float,
    workers: int,
    seed: int = 0,
    size: int = SIZE,
    start: Part | None = None,
) -> tuple[Examples, Codebook]:
    """What the stages draw from, and the codebook of K = `size` whose tokens are to be written, in `work` unless they
    are there; it begins with that of `start`. Raises CorpusError, WordsError, CodebookError where there is less sound
    than centroids."""  # fmt: skip
    pack = packed(corpus, work, workers)
    timed = [] if corpus.words is None else read_words(corpus.words, pack, corpus.excluded)
    groups, texts = Groups(timed) if timed else None, untimed_texts(corpus, pack, timed)
    hearings = hear(encoder, pack, groups, work, hours, load_rooms(work), seed, texts, corpus.excluded)
    book = _codebook(hearings, size, work / CODEBOOK_FILE, seed, None if start is None else start.codebook.centroids)
    ids = store_ids(hearings.views[0], pack, hearings.chosen, book, work / IDS_FILE)
    return Examples(hearings, ids, DecoderShape(book.size, book.dim)), book


def _codebook(hearings: Hearings, size: int, path: Path, seed: int, start: Float32 | None) -> Codebook:
    if not path.exists():
        embeddings = hearings.views[0][sample(hearings, FIT_FRAMES, seed)].astype(np.float32)
        embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
        fitted = fit_codebook(embeddings, size, seed=seed, start=start)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, centroids=fitted.centroids, pq=np.asarray(fitted.pq))
        partial.replace(path)
    with np.load(path) as kept:
        return Codebook(kept["centroids"], kept["pq"])


def sample(hearings: Hearings, count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Frames of the pack by chance, `count` at most, of which no language has more than all others together."""
    rng, pack = np.random.default_rng(seed), hearings.pack
    of: dict[str, list[npt.NDArray[np.int64]]] = {}
    for recording in hearings.chosen.tolist():
        frames = pack.start[recording] + np.arange(pack.frames[recording])
        of.setdefault(pack.entries[recording].language, []).append(frames)
    by_language = [rng.permutation(np.concatenate(spans)) for _, spans in sorted(of.items())]
    most = max(range(len(by_language)), key=lambda number: len(by_language[number]))
    others = [frames for number, frames in enumerate(by_language) if number != most]
    if not others:
        return np.sort(by_language[most][:count])
    rest = rng.permutation(np.concatenate(others))[: count // 2]
    return np.sort(np.concatenate([by_language[most][: len(rest)], rest]))


def train(
    corpus: Corpus, work: Path, minutes: tuple[float, float, float], device: torch.device, *,
    encoder: Path = DEFAULT_WEIGHTS, hours: float = 9.0, size: int = SIZE, workers: int = 2, seed: int = 0,
    start: Path | None = None, description: Description = DESCRIPTION,
) -> Path:  # fmt: skip
    """The decoder over the frozen tokenizer `encoder`, after so many minutes of each stage: its part, in `work`.

    It goes on from the part in `start`, of an encoder whose embeddings are like those of this one, if that is given;
    its codebook is fitted anew and keeps its numbers. The part is written at each checkpoint too, for a look at how it
    does. Raises PartError where `start` cannot be gone on from.
    """
    torch.manual_seed(seed)
    tokenizer = Tokenizer(encoder, threads=workers)
    first = None if start is None else read_part(start)
    if first is not None and (first.shape.size, first.shape.dim) != (size, tokenizer.codebook.dim):
        raise PartError(f"{start} writes {first.shape.size} tokens over {first.shape.dim} dimensions")
    examples, book = prepare(corpus, tokenizer, work, hours, workers, seed, size, first)
    centroids = np.asarray(book.centroids)
    decoder = start_from(centroids, examples.shape) if first is None else go_on_from(first, centroids)
    plan = [
        make(budget)
        for make, budget in zip((stages.stage_1, stages.stage_2, stages.stage_3), minutes, strict=True)
        if budget
    ]
    out = work / PART_FILE
    ready = keeper(out, book, tokenizer.info.sha256, description)
    ready(stages.run(decoder, examples, plan, work, device, ready) if plan else decoder)
    return out


def keeper(out: Path, book: Codebook, encoder_sha256: str, description: Description) -> Callable[[Decoder], None]:
    """What writes a decoder to `out` as the part of a tokenizer."""

    def keep(decoder: Decoder) -> None:
        weights = {name: p.detach().float().cpu().numpy() for name, p in decoder.named_parameters()}
        write_part(Part(decoder.shape, weights, book, RATE, encoder_sha256, description), out)

    return keep
