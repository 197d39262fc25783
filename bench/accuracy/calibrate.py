"""Fit a logistic map of `service.search.calibration` to development tasks and print it with its error.

    python -m bench.accuracy.calibrate --speech SPEECH --tasks TASKS [--task english malayalam] [--deep FILE.onnx]

Each task weighs the same. A located hit is right by its midpoint; without times, a recording's best hit counts. With
--deep it is the map of deep rescoring by that tokenizer, fitted to the first 50 hits of each query.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from bench.accuracy.__main__ import sayagain
from service.clips import read_clip
from service.deps import Backend
from service.evaluation.judging import Ranked, judge
from service.evaluation.reliability import reliability
from service.evaluation.tasks import read_task
from service.search.answer import Request
from service.search.calibration import LogisticMap
from service.settings import Settings

DEEP_HITS = 50


def pairs(settings: Settings, task: Path, archive: str, deep: bool) -> tuple[np.ndarray, np.ndarray]:
    """[distance, similarity, perhaps that of deep rescoring] of all hits that count, and whether they are right."""
    backend = Backend.open(settings)
    features, right = [], []
    for query in read_task(task):
        clip = read_clip(task.parent / query.clip, backend.settings.max_query_s)
        answer = backend.search.search(Request([clip], archive, 1_000, exclude=frozenset(query.exclude), deep=deep))
        # In place of a score each hit has its own number, so that what it rests on is found again.
        hits = [Ranked(h.recording.name, h.start_s, h.end_s, -float(n)) for n, h in enumerate(answer.hits)]
        timed = all(place.start_s is not None for place in query.relevant)
        for number, correct in judge(query, hits, timed).hits:
            hit = answer.hits[round(-number)]
            if not deep:
                features.append((hit.distance, hit.similarity))
            elif hit.deep_similarity is not None:
                features.append((hit.distance, hit.similarity, hit.deep_similarity))
            else:
                continue
            right.append(correct)
    backend.close()
    return np.array(features), np.array(right)


def main() -> None:
    """Index, ask, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--task", nargs="+", default=["english", "malayalam"])
    parser.add_argument("--deep", help="the ONNX file of deep rescoring")
    arguments = parser.parse_args()
    features, right, weights = [], [], []
    for task in arguments.task:
        with tempfile.TemporaryDirectory() as home:
            sayagain(home, "index", str(arguments.speech / "dev" / task), "--archive", task)
            settings = Settings(home=Path(home), deep_hits=DEEP_HITS, deep_budget_s=3_600.0)
            if arguments.deep:
                settings = settings.model_copy(update={"deep_tokenizer": arguments.deep})
            x, y = pairs(settings, arguments.tasks / f"{task}.json", task, bool(arguments.deep))
        features.append(x)
        right.append(y)
        weights.append(np.full(len(y), 1e5 / len(y)))
    x, y, w = np.concatenate(features), np.concatenate(right), np.concatenate(weights)
    model = LogisticRegression(C=1e6).fit(x, y, w)
    scores = model.predict_proba(x)[:, 1]
    distance, similarity, *deep = (round(float(c), 3) for c in model.coef_[0])
    fitted = LogisticMap(distance, similarity, round(float(model.intercept_[0]), 3), *deep)
    for task, at in zip(
        arguments.task, np.split(np.arange(len(y)), np.cumsum([len(r) for r in right])[:-1]), strict=True
    ):
        print(f"{task}: expected calibration error {reliability(scores[at], y[at], w[at]).error:.3f}")
    print(f"{fitted}; expected calibration error {reliability(scores, y, w).error:.3f}")
    for b in reliability(scores, y, w, least=0.0).bins:
        print(f"score {b.low:.1f} to {b.high:.1f}: right {b.right:.3f} of {b.hits} hits")


if __name__ == "__main__":
    main()
