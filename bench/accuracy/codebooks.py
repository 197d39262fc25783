"""How the codebook decides: its size, where it was fitted, and what becomes of it when the archive grows.

    python -m bench.accuracy.codebooks --speech SPEECH --tasks TASKS [--tokenizer FILE.onnx] [--task english …]

Prints tables in Markdown. Size: MAP by edit distance and by DTW on centroids for K from 256 to 8,192, fitted to the
archive and to other speech (SPEECH/train). Growth: the same with the archive cut to a part of its recordings (queries
whose answers are cut away do not count). Drift: a codebook fitted to a tenth of the archive serves the whole of it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np

from bench.accuracy import embedders
from bench.accuracy.archive import Recordings, read_queries, read_recordings
from bench.accuracy.embedders import Float32
from bench.accuracy.matchers import ask, matcher
from bench.accuracy.probes import mean_average_precision
from bench.accuracy.tokens import TokenFigures, token_figures, tokenize
from model import audio
from model.codebook import Codebook, CodebookError, codebook_size, fit_codebook
from model.tokenizer import DEFAULT_WEIGHTS
from service.evaluation.tasks import TaskQuery, read_task

SIZES = (256, 512, 1_024, 2_048, 4_096, 8_192)
OTHER_S = 3 * 3_600.0  # of other speech that a codebook is fitted to
MATCHERS = ("edit", "centroids")
LEAST_QUERIES = 10


def other_speech(folder: Path, embed: embedders.Embed, seconds: float = OTHER_S) -> Float32:
    """Embeddings of some training recordings of all corpora."""
    paths = sorted(path for path in (folder / "train").rglob("*") if path.is_file())
    sounds, total = [], 0
    for number in np.random.default_rng(0).permutation(len(paths)):
        sounds.append(audio.read(paths[number]))
        total += len(sounds[-1])
        if total >= seconds * audio.SAMPLE_RATE:
            break
    return np.concatenate(embed(sounds))


def part_of(recordings: Recordings, share: float, seed: int = 0) -> Recordings:
    """A random part of the recordings, in their order."""
    count = max(1, round(share * len(recordings.names)))
    kept = np.sort(np.random.default_rng(seed).permutation(len(recordings.names))[:count])
    parts = [recordings.embeddings[recordings.offsets[i] : recordings.offsets[i + 1]] for i in kept]
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
    return replace(
        recordings,
        names=tuple(recordings.names[i] for i in kept),
        sounds=[recordings.sounds[i] for i in kept],
        embeddings=np.concatenate(parts),
        offsets=offsets,
    )


def scores(
    recordings: Recordings, codebook: Codebook, queries: list[TaskQuery], heard: list[Float32]
) -> tuple[dict[str, float], TokenFigures]:
    """MAP of each matcher over the queries that have an answer here, and the tokens' figures."""
    names = set(recordings.names)
    asked = [i for i, query in enumerate(queries) if any(place.name in names for place in query.relevant)]
    if len(asked) < LEAST_QUERIES:
        raise CodebookError(f"only {len(asked)} queries have an answer in {len(names)} recordings")
    tokens = tokenize(recordings, None, given=codebook)
    left = [
        replace(queries[i], relevant=tuple(place for place in queries[i].relevant if place.name in names))
        for i in asked
    ]
    out = {}
    for name in MATCHERS:
        answers = ask(matcher(name, recordings, tokens), [heard[i] for i in asked], recordings)
        out[name] = mean_average_precision(left, answers, recordings)
    return out, token_figures([], recordings, tokens)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, default=DEFAULT_WEIGHTS)
    parser.add_argument("--task", action="append")
    arguments = parser.parse_args()
    embedder = embedders.of_tokenizer(arguments.tokenizer)
    elsewhere = other_speech(arguments.speech, embedder)
    head = "| task | hours | K | fitted to | edit distance | centroids, DTW | tokens/s | entropy |\n" + "|---" * 8 + "|"
    for task in arguments.task or ("english", "malayalam"):
        queries = read_task(arguments.tasks / f"{task}.json")
        folder = arguments.speech / "dev" / task
        whole = read_recordings(folder, embedder, embedder.frame_seconds)
        heard = read_queries(queries, "isolated", embedder, arguments.tasks, whole, None)

        def line(
            recordings: Recordings, codebook: Codebook, source: str, task: str = task,
            queries: list[TaskQuery] = queries, heard: list[Float32] = heard,
        ) -> None:  # fmt: skip
            hours = len(recordings.embeddings) * recordings.frame_seconds / 3_600
            found, figures = scores(recordings, codebook, queries, heard)
            cells = (
                task, f"{hours:.2f}", f"{codebook.size:,}", source, f"{found['edit']:.3f}", f"{found['centroids']:.3f}",
                f"{figures.tokens_per_s:.1f}", f"{figures.entropy:.3f}",
            )  # fmt: skip
            print("| " + " | ".join(cells) + " |", flush=True)

        print(f"\n{head}")
        for size in SIZES:
            line(whole, fit_codebook(whole.embeddings, size, parts=0), "the archive")
            line(whole, fit_codebook(elsewhere, size, parts=0), "other speech")
        for share in (0.1, 0.3):
            part = part_of(whole, share)
            for size in SIZES:
                if size * 4 <= len(part.embeddings):
                    line(part, fit_codebook(part.embeddings, size, parts=0), "the archive")
        tenth = part_of(whole, 0.1)
        size = codebook_size(len(tenth.embeddings))
        line(whole, fit_codebook(tenth.embeddings, size, parts=0), "a tenth of it")
        size = codebook_size(len(whole.embeddings))
        if size * 2 <= len(tenth.embeddings):
            line(whole, fit_codebook(tenth.embeddings, size, parts=0), "a tenth of it")


if __name__ == "__main__":
    main()
