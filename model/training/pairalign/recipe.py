"""From a corpus to PairAlign's part: pack, hearings, targets, stages; each can be resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from model.pairalign.shape import DecoderShape
from model.tokenizer import DEFAULT_WEIGHTS, Tokenizer
from model.training import data
from model.training.pairalign import stages
from model.training.pairalign.batches import Examples
from model.training.pairalign.decoder import Decoder, start_from
from model.training.pairalign.hearings import hear
from model.training.pairalign.targets import store_ids
from model.training.recipe import Corpus
from model.training.rooms import load_rooms
from model.training.words import Groups, read_words

IDS_FILE = "ids.npy"


def prepare(corpus: Corpus, encoder: Tokenizer, work: Path, hours: float, workers: int, seed: int = 0) -> Examples:
    """What the stages draw from, in `work` unless it is there. Raises CorpusError, WordsError."""
    if (work / data.TABLE_FILE).exists():
        pack = data.read_pack(work)
    else:
        found = (
            data.scan_folder(corpus.folder)
            if corpus.manifest is None
            else data.read_manifest(corpus.manifest, corpus.splits)
        )
        pack = data.write_pack(found, corpus.folder, work, workers)
    groups = None if corpus.words is None else Groups(read_words(corpus.words, pack, corpus.excluded))
    hearings = hear(encoder, pack, groups, work, hours, load_rooms(work), seed)
    ids = store_ids(hearings.views[0], pack, hearings.chosen, encoder.codebook, work / IDS_FILE)
    return Examples(hearings, ids, DecoderShape(encoder.codebook.size, encoder.codebook.dim))


def train(
    corpus: Corpus, work: Path, minutes: tuple[float, float, float], device: torch.device, *,
    encoder: Path = DEFAULT_WEIGHTS, hours: float = 9.0, workers: int = 2, seed: int = 0,
) -> Decoder:  # fmt: skip
    """The decoder over the frozen tokenizer `encoder`, after so many minutes of each stage."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer(encoder, threads=workers)
    examples = prepare(corpus, tokenizer, work, hours, workers, seed)
    decoder = start_from(np.asarray(tokenizer.codebook.centroids), examples.shape)
    plan = [
        make(budget)
        for make, budget in zip((stages.stage_1, stages.stage_2, stages.stage_3), minutes, strict=True)
        if budget
    ]
    return stages.run(decoder, examples, plan, work, device, lambda _: None)
