"""What each stage of the search earns: mean average precision by file, if the hits were in the order of that stage.

    python -m bench.accuracy.cascade --speech SPEECH --tasks TASKS [--task english malayalam]

Also: several examples of a term against one, two ways to join them, and hits marked right and wrong.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numba
import numpy as np
import numpy.typing as npt

from bench.accuracy.development import Archive, Bool, by_windows, indexed, opened, parser
from service.clips import read_clip
from service.deps import Backend
from service.evaluation.tasks import Place, TaskQuery
from service.search import alignment, cascade, stretches
from service.search.answer import Clock
from service.search.calibration import Evidence
from service.search.feedback import marked, second_look
from service.search.fusion import averaged
from service.search.query import Query, hear
from service.search.rescoring import Float32
from service.search.stretches import Stretches, times_of

DEPTH = 2_000
EXAMPLES = 3
LEAST_EXAMPLE_S = 0.25
MARKED = 5  # first hits that somebody listens to and marks


@numba.njit(nogil=True, cache=True)
def _weighted(
    table: Float32, ids: npt.NDArray[np.uint16], low: npt.NDArray[np.int64], high: npt.NDArray[np.int64], gap: float
) -> Float32:
    """Best local alignment of tokens where a substitution costs by the codebook's cosine: `table` [tokens, K]."""
    tokens = len(table)
    out = np.empty(len(low), np.float32)
    old, new = np.empty(tokens + 1, np.float32), np.empty(tokens + 1, np.float32)
    for window in range(len(low)):
        for i in range(tokens + 1):
            old[i] = -gap * i
        best = np.float32(-1e9)
        for at in range(low[window], high[window]):
            if at > low[window] and ids[at] == ids[at - 1]:
                continue
            new[0] = 0.0
            for i in range(tokens):
                new[i + 1] = max(old[i] + table[i, ids[at]], max(new[i] - gap, old[i + 1] - gap))
            best = max(best, new[tokens])
            old, new = new, old
        out[window] = best / tokens
    return out


def stages_of(
    archive: Archive, task: TaskQuery, query: Query
) -> Iterator[tuple[str, Stretches, npt.NDArray[np.floating]]]:
    """Each stage's name, places and scores."""
    setting, view = archive.setting, archive.setting.view
    alive = archive.alive(task)
    windows = cascade.windows_of(query, view, alive, setting.codebook.size, DEPTH, False)
    yield "votes", *by_windows(view, windows, lambda _, some: some.votes.astype(np.float32))
    ids = query.tokens.ids
    yield (
        "edit distance (rapidfuzz)",
        *by_windows(
            view, windows, lambda codes, some: alignment.align(ids, alignment.texts(codes, some.low, some.high))
        ),
    )
    bounds = query.tokens.boundaries
    near = (setting.codebook.centroids[ids] @ setting.codebook.centroids.T).astype(np.float32)
    for gap in (0.0, 0.2):
        name = f"weighted edit distance, token to token, gap {gap:g}"
        yield (
            name,
            *by_windows(view, windows, lambda codes, some, g=gap: _weighted(near, codes, some.low, some.high, g)),
        )  # type: ignore[misc]
    heard = (np.add.reduceat(query.tables.token, bounds[:-1], axis=0) / np.diff(bounds)[:, None]).astype(np.float32)
    yield (
        "weighted edit distance, embeddings to token, gap 0.2",
        *by_windows(view, windows, lambda codes, some: _weighted(heard, codes, some.low, some.high, 0.2)),
    )
    bare = replace(query.tables, crowding=np.zeros_like(query.tables.crowding))
    for name, tables in (("DTW on cosines", bare), ("DTW on cosines less crowding", query.tables)):
        places = stretches.distinct(stretches.rescore(tables, view, windows))
        yield name, places, places.similarity
    clock = Clock()
    places, evidence = cascade.find(query, setting, alive, cascade.SearchSettings(), False, clock)
    yield "second look, calibrated", places, evidence.scores
    places, evidence = cascade.find(query, setting, alive, cascade.SearchSettings(), True, clock)
    yield "the same, exact", places, evidence.scores


def examples_of(archive: Archive, task: TaskQuery, query: Query, backend: Backend) -> dict[str, float] | None:
    """Average precision with one example and with three, and after marks; None where too few places are known.

    Further examples are places that the task names; their recordings are left out for all.
    """
    others = [p for p in task.relevant if _long_enough(p) and p.name not in task.exclude]
    others = list({p.name: p for p in others}.values())
    if len(others) < EXAMPLES + 1:
        return None
    chosen = others[: EXAMPLES - 1]
    left_out = frozenset(p.name for p in chosen)
    rest = replace(
        task, exclude=task.exclude | left_out, relevant=tuple(p for p in task.relevant if p.name not in left_out)
    )
    setting, alive = archive.setting, archive.alive(rest)
    heard = [query]
    for place in chosen:
        clip = read_clip(archive.folder / place.name, 30.0, place.start_s, place.end_s)
        heard.append(hear(clip, backend.search.tokenizer, setting.codebook))
    out = {}
    clock, settings = Clock(), cascade.SearchSettings()
    places, evidence = cascade.find(query, setting, alive, settings, False, clock)
    out["one example"] = archive.precision(rest, places, evidence.scores)
    many, together = _evidence_of_all(heard, archive, alive)
    out[f"{EXAMPLES} examples, joined by their evidence"] = archive.precision(rest, many, together)
    mean_places, mean_evidence = cascade.find(averaged(heard), setting, alive, settings, False, clock)
    mean = archive.precision(rest, mean_places, mean_evidence.scores)
    out[f"{EXAMPLES} examples, mean of their embeddings along DTW (ships)"] = mean
    apart = [cascade.find(one, setting, alive, settings, False, clock) for one in heard]
    all_places = Stretches.joined([p for p, _ in apart])
    out[f"{EXAMPLES} examples, best score of each place"] = archive.precision(
        rest, all_places, np.concatenate([e.scores for _, e in apart])
    )
    out |= _after_marks(archive, rest, places, evidence)
    return out


def _long_enough(place: Place) -> bool:
    return place.start_s is not None and place.end_s is not None and place.end_s - place.start_s > LEAST_EXAMPLE_S


def _after_marks(archive: Archive, task: TaskQuery, places: Stretches, evidence: Evidence) -> dict[str, float]:
    """Average precision among the hits that nobody has marked, before and after the first few are."""
    setting = archive.setting
    order = np.argsort(-evidence.scores, kind="stable")
    times = times_of(places, setting.view)
    first, rest = order[:MARKED], order[MARKED:]
    names = [archive.names[int(times.recording[at])] for at in first]
    relevant = {place.name for place in task.relevant}
    right = [places.tokens(setting.view, int(at)) for at, name in zip(first, names, strict=True) if name in relevant]
    wrong = [
        places.tokens(setting.view, int(at)) for at, name in zip(first, names, strict=True) if name not in relevant
    ]
    left = replace(
        task, exclude=task.exclude | set(names), relevant=tuple(p for p in task.relevant if p.name not in names)
    )
    if not left.relevant:
        return {}
    judged = marked(places, evidence, setting, right, wrong)
    unmarked = places.take(rest)
    return {
        f"unmarked hits, before the first {MARKED} are marked": archive.precision(
            left, unmarked, evidence.scores[rest]
        ),
        f"unmarked hits, after the first {MARKED} are marked": archive.precision(left, unmarked, judged.scores[rest]),
    }


def _evidence_of_all(
    heard: Sequence[Query], archive: Archive, alive: Sequence[Bool]
) -> tuple[Stretches, npt.NDArray[np.float64]]:
    """Places that any of the examples finds, and what they say of each together: the mean of their evidence."""
    setting, settings = archive.setting, cascade.SearchSettings()
    places = stretches.distinct(
        Stretches.joined([cascade.find(one, setting, alive, settings, False, Clock())[0] for one in heard])
    )
    examples = [setting.example(one.tables) for one in heard]
    similarity = [stretches.similarity_at(e.tables, setting.view, places, e.slack) for e in examples]
    distance = [e.background.distance(s) for e, s in zip(examples, similarity, strict=True)]
    evidence = Evidence(
        np.mean(distance, axis=0, dtype=np.float32),
        np.mean(similarity, axis=0, dtype=np.float32),
        score_map=setting.score_map,
    )
    order = np.argsort(-evidence.scores, kind="stable")
    places = places.take(order)
    return places, second_look(heard[0].tables, places, evidence.take(order), setting).scores


def main() -> None:
    """Index, search, print."""
    arguments = parser(str(__doc__)).parse_args()
    for task in arguments.task:
        with indexed(task, arguments) as backend:
            archive = opened(backend, task, arguments)
            table: dict[str, list[float]] = {}
            ms: dict[str, float] = {}
            joined: dict[str, list[float]] = {}
            for one, query in zip(archive.tasks, archive.queries, strict=True):
                began = time.perf_counter()
                for name, places, scores in stages_of(archive, one, query):
                    ms[name] = ms.get(name, 0.0) + (time.perf_counter() - began) * 1e3
                    table.setdefault(name, []).append(archive.precision(one, places, scores))
                    began = time.perf_counter()
                for name, value in (examples_of(archive, one, query, backend) or {}).items():
                    joined.setdefault(name, []).append(value)
        print(f"\n{task}, {len(archive.tasks)} queries\n\n| order of hits by | MAP | ms a query |\n|---|---|---|")
        for name, values in table.items():
            print(f"| {name} | {np.mean(values):.4f} | {ms[name] / len(values):.1f} |")
        if joined:
            print("\n| examples | MAP | queries |\n|---|---|---|")
            for name, values in joined.items():
                print(f"| {name} | {np.mean(values):.4f} | {len(values)} |")


if __name__ == "__main__":
    main()
