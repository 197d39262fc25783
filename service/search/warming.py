"""A search that nobody asked for: what is compiled, or loaded, at the first search is there before it comes.

After an installation numba compiles for seconds; it keeps the result where it may write beside the code, or in
NUMBA_CACHE_DIR.
"""

from __future__ import annotations

import logging
import tempfile
import threading
from pathlib import Path

import numpy as np

from model.audio import SAMPLE_RATE
from model.codebook import Codebook
from model.tokenizer import Tokenizer
from service.clips import Clip
from service.search import alignment, calibration, cascade, shard
from service.search.answer import Clock
from service.search.cascade import SearchSettings
from service.search.feedback import Setting
from service.search.fusion import averaged
from service.search.localindex import Part, View
from service.search.query import hear
from service.search.rescoring import Float32
from service.search.shard import StoredSegment

log = logging.getLogger(__name__)

SEGMENTS = 3
SEGMENT_S = 4.0
PULSES = 4.0  # a second: noise that comes and goes is taken for speech


_begun = threading.Lock()  # taken once in a process, whose compiled functions all of its services share


def warm_once(tokenizer: Tokenizer) -> None:
    """`warm`, the first time in a process; what goes wrong is logged, and is no matter to searches."""
    if _begun.acquire(blocking=False):
        try:
            warm(tokenizer)
        except Exception:
            log.exception("the search could not be warmed")


def warm(tokenizer: Tokenizer) -> int:
    """Search noise for noise, in an archive of a moment; how many places were found."""
    rng = np.random.default_rng(0)
    time_s = np.arange(int(SEGMENT_S * SAMPLE_RATE)) / SAMPLE_RATE
    loudness = 0.2 * np.maximum(0.0, np.sin(2 * np.pi * PULSES * time_s))
    sounds = [(loudness * rng.standard_normal(len(time_s))).astype(np.float32) for _ in range(SEGMENTS)]
    nothing = np.zeros(0, np.float32)
    clip = Clip(nothing, sounds[0][: int(SAMPLE_RATE * 1.5)], nothing, 0.0, 1.5)
    embeddings = [tokenizer.embed(sound, nothing, nothing) for sound in sounds]
    centroids = tokenizer.codebook.centroids
    # Codes that are tokens have a kind of numbers of their own; those of a product quantiser have that of none at all.
    books = (Codebook(centroids), Codebook(centroids, further=centroids[None]))
    return sum(_search(clip, embeddings, tokenizer, codebook) for codebook in books)


def _search(clip: Clip, embeddings: list[Float32], tokenizer: Tokenizer, codebook: Codebook) -> int:
    segments = [
        StoredSegment(number, number, 0, tokenizer.collapse(rows, codebook, 0.0))
        for number, rows in enumerate(embeddings)
    ]
    query = averaged([hear(clip, tokenizer, codebook)] * 2)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"warm{shard.SUFFIX}")
        shard.save(shard.build(segments, codebook.size, codebook.parts), path)
        view = View(0, (Part(part := shard.load(path), np.ones(part.segments, np.bool_)),))  # mapped, as real ones are
        setting = Setting(view, codebook, calibration.sample_of(view))
        alive = [part.alive for part in view.parts]
        places, _ = cascade.find(query, setting, alive, SearchSettings(rescore_depth=1), False, Clock())
        alignment.edit_similarity(query.tokens.ids, query.tokens.ids)
        return len(places)
