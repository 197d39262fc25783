"""From a corpus to PairAlign's part: pack, hearings, targets, stages; each can be resumed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from model.export import Description
from model.pairalign.part import Part, write_part
from model.pairalign.shape import DecoderShape
from model.tokenizer import DEFAULT_WEIGHTS, Tokenizer
from model.training.pairalign import stages
from model.training.pairalign.batches import Examples
from model.training.pairalign.decoder import Decoder, start_from
from model.training.pairalign.hearings import hear
from model.training.pairalign.targets import store_ids
from model.training.recipe import Corpus, packed
from model.training.rooms import load_rooms
from model.training.words import Groups, read_words

IDS_FILE, PART_FILE = "ids.npy", "pairalign.safetensors"
RATE = 2  # of the length knob, unless another is asked for when the file is put together
DESCRIPTION = Description("pairalign", "1", "Apache-2.0", "see the model card")


def prepare(corpus: Corpus, encoder: Tokenizer, work: Path, hours: float, workers: int, seed: int = 0) -> Examples:
    """What the stages draw from, in `work` unless it is there. Raises CorpusError, WordsError."""
    pack = packed(corpus, work, workers)
    groups = None if corpus.words is None else Groups(read_words(corpus.words, pack, corpus.excluded))
    hearings = hear(encoder, pack, groups, work, hours, load_rooms(work), seed)
    ids = store_ids(hearings.views[0], pack, hearings.chosen, encoder.codebook, work / IDS_FILE)
    return Examples(hearings, ids, DecoderShape(encoder.codebook.size, encoder.codebook.dim))


def train(
    corpus: Corpus, work: Path, minutes: tuple[float, float, float], device: torch.device, *,
    encoder: Path = DEFAULT_WEIGHTS, hours: float = 9.0, workers: int = 2, seed: int = 0,
    description: Description = DESCRIPTION,
) -> Path:  # fmt: skip
    """The decoder over the frozen tokenizer `encoder`, after so many minutes of each stage: its part, in `work`.

    The part is written at each checkpoint too, for a look at how it does.
    """
    torch.manual_seed(seed)
    tokenizer = Tokenizer(encoder, threads=workers)
    examples = prepare(corpus, tokenizer, work, hours, workers, seed)
    decoder = start_from(np.asarray(tokenizer.codebook.centroids), examples.shape)
    plan = [
        make(budget)
        for make, budget in zip((stages.stage_1, stages.stage_2, stages.stage_3), minutes, strict=True)
        if budget
    ]
    out = work / PART_FILE
    ready = keeper(out, tokenizer.info.sha256, description)
    ready(stages.run(decoder, examples, plan, work, device, ready))
    return out


def keeper(out: Path, encoder_sha256: str, description: Description) -> Callable[[Decoder], None]:
    """What writes a decoder to `out` as the part of a tokenizer."""

    def keep(decoder: Decoder) -> None:
        weights = {name: p.detach().float().cpu().numpy() for name, p in decoder.named_parameters()}
        write_part(Part(decoder.shape, weights, RATE, encoder_sha256, description), out)

    return keep
