"""The stages between a query and its places: candidates, alignment, rescoring, a second look; no database is asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from service.search import alignment, candidates, rescoring, stretches
from service.search.answer import Clock
from service.search.calibration import Evidence, background_of
from service.search.candidates import Windows
from service.search.feedback import Setting, second_look
from service.search.localindex import View
from service.search.query import Query
from service.search.stretches import Stretches

Bool = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class SearchSettings:
    """What the cascade hands from stage to stage."""

    candidate_depth: int = 2_000
    rescore_depth: int = 2_000
    longest_reference_s: float = 30.0
    deep_hits: int = 50
    deep_budget_s: float = 2.0


def find(
    query: Query,
    setting: Setting,
    alive: Sequence[Bool],
    settings: SearchSettings,
    exact: bool,
    clock: Clock,
    only: Sequence[Bool] | None = None,
) -> tuple[Stretches, Evidence]:
    """Places that may be right, the likest first, and what speaks for each.

    `alive` bool [segments] of each part of the view says where to look; with `exact` every segment is rescored. With
    `only`, a part of what is alive, places are of that, and the rest is looked at too for what it says of them: so a
    place has the same score whatever else is asked for.
    """
    view = setting.view
    wanted = [alive] if only is None or exact else [alive, only]
    several = [
        windows_of(query, view, those, setting.codebook.size, settings.candidate_depth, exact) for those in wanted
    ]
    clock.lap("candidates")
    if not exact:
        several = [_narrowed(query, view, windows, settings.rescore_depth) for windows in several]
    windows = Windows.joined(several)
    clock.lap("alignment")
    per_window = rescoring.HITS_PER_SEGMENT if exact else 1
    places = stretches.distinct(stretches.rescore(query.tables, view, windows, per_window))
    background = background_of(query.tables, setting.sample)
    first = Evidence(background.distance(places.similarity), places.similarity, score_map=setting.score_map)
    evidence = second_look(query.tables, places, first, setting)
    if only is not None:
        kept = np.flatnonzero(_of(places, only))
        places, evidence = places.take(kept), evidence.take(kept)
    clock.lap("rescoring")
    return places, evidence


def windows_of(query: Query, view: View, alive: Sequence[Bool], size: int, depth: int, exact: bool) -> Windows:
    """Where to look for a query; `size` is K."""
    if exact:
        return candidates.everything(view, alive)
    count = candidates.neighbours(view, len(query.tokens), size)
    votes = candidates.make_votes(query.tokens, query.tables, count)
    return candidates.find(votes, view, alive, candidates.depth_for(votes.frames, depth))


def _of(places: Stretches, masks: Sequence[Bool]) -> Bool:
    """Which places lie in segments of these masks, bool [places]."""
    out = np.zeros(len(places), np.bool_)
    for number in np.unique(places.part):
        those = np.flatnonzero(places.part == number)
        out[those] = masks[number][places.segment[those]]
    return out


def _narrowed(query: Query, view: View, windows: Windows, depth: int) -> Windows:
    """The `depth` windows whose tokens have the nearest infix."""
    if len(windows) <= depth:
        return windows
    similarity = np.zeros(len(windows), np.float32)
    for those, shard in view.shards_of(windows.part):
        texts = alignment.texts(shard.ids, windows.low[those], windows.high[those])
        similarity[those] = alignment.align(query.tokens.ids, texts)
    return windows.take(np.sort(np.lexsort((-windows.votes, -similarity))[:depth]))
