"""Fit a logistic map of `service.search.calibration` to development tasks and print it with its error.

    python -m bench.accuracy.calibrate --speech SPEECH --tasks TASKS [--task english malayalam]
        [--tokenizer FILE.onnx] [--write] [--part PART.safetensors] [--deep FILE.onnx]

Each task weighs the same. A located hit is right by its midpoint; without times, a recording's best hit counts. With
--deep it is the map of deep rescoring by that tokenizer, fitted to the first 50 hits of each query. With --write it
goes into the tokenizer's own file, with --part into the part of which `pairalign` is put together.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.linear_model import LogisticRegression

from bench.accuracy.development import indexed, parser
from model.export import stamp
from model.pairalign.part import read_part, write_part
from model.tokenizer import DEFAULT_WEIGHTS
from service.clips import read_clip
from service.deps import Backend
from service.evaluation.judging import Ranked, judge
from service.evaluation.reliability import reliability
from service.evaluation.tasks import read_task
from service.search.answer import Request
from service.search.calibration import LogisticMap

DEEP_HITS = 50


def pairs(backend: Backend, task: Path, archive: str, deep: bool) -> tuple[np.ndarray, np.ndarray]:
    """[distance, similarity, perhaps that of deep rescoring] of all hits that count, and whether they are right."""
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
    return np.array(features), np.array(right)


def main() -> None:
    """Index, ask, fit, print."""
    known = parser(str(__doc__))
    known.add_argument("--deep", help="the ONNX file of deep rescoring")
    known.add_argument("--tokenizer", help="an ONNX file other than the default")
    known.add_argument("--write", action="store_true", help="write the map into the tokenizer's file")
    known.add_argument("--part", type=Path, help="write the map into this part of a pairalign tokenizer")
    arguments = known.parse_args()
    if (arguments.write or arguments.part) and arguments.deep:
        known.error("the map of deep rescoring is no tokenizer's own")
    features, right, weights = [], [], []
    for task in arguments.task:
        settings = {"deep_hits": DEEP_HITS, "deep_budget_s": 3_600.0}
        if arguments.deep:
            settings["deep_tokenizer"] = arguments.deep
        with indexed(task, arguments, arguments.tokenizer, **settings) as backend:
            x, y = pairs(backend, arguments.tasks / f"{task}.json", task, bool(arguments.deep))
        features.append(x)
        right.append(y)
        weights.append(np.full(len(y), 1e5 / len(y)))
    x, y, w = np.concatenate(features), np.concatenate(right), np.concatenate(weights)
    model = LogisticRegression(C=1e6).fit(x, y, w)
    scores = model.predict_proba(x)[:, 1]
    distance, similarity, *deep = (round(float(c), 3) for c in model.coef_[0])
    fitted = LogisticMap(distance, similarity, round(float(model.intercept_[0]), 3), *deep)
    if arguments.write:
        stamp(Path(arguments.tokenizer or DEFAULT_WEIGHTS), (fitted.distance, fitted.similarity, fitted.bias))
    if arguments.part:
        part = read_part(arguments.part)
        numbers = (fitted.distance, fitted.similarity, fitted.bias)
        write_part(replace(part, description=replace(part.description, score_map=numbers)), arguments.part)
    for task, at in zip(
        arguments.task, np.split(np.arange(len(y)), np.cumsum([len(r) for r in right])[:-1]), strict=True
    ):
        print(f"{task}: expected calibration error {reliability(scores[at], y[at], w[at]).error:.3f}")
    print(f"{fitted}; expected calibration error {reliability(scores, y, w).error:.3f}")
    for b in reliability(scores, y, w, least=0.0).bins:
        print(f"score {b.low:.1f} to {b.high:.1f}: right {b.right:.3f} of {b.hits} hits")


if __name__ == "__main__":
    main()
