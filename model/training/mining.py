"""Pairs of the same words found without word times: by what two transcripts share, or by the sound alone."""

from __future__ import annotations

import csv
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt

from model.encoder import FRAME_SAMPLES
from model.training.data import Pack
from model.training.words import Word

Float32 = npt.NDArray[np.float32]

LETTER_FRAMES = 1.8  # 72 ms: the usual length of a letter in read speech
PAIRS_PER_WORD = 6


def read_texts(manifest: Path, pack: Pack) -> dict[int, str]:
    """Transcripts, where the manifest has any, by number of recording."""
    number = {entry.path: i for i, entry in enumerate(pack.entries)}
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        return {number[row["path"]]: row["text"] for row in rows if row["path"] in number and row["text"]}


def best_diagonal(similarity: Float32, frames: int) -> tuple[float, int, int]:
    """Highest mean of `frames` similarities along a diagonal of [n, m], and where it starts: (mean, row, column)."""
    n, m = similarity.shape
    frames = min(frames, n, m)
    # Sheared so that diagonals are columns.
    sheared = np.zeros((n, n + m - 1), np.float32)
    for i in range(n):
        sheared[i, n - 1 - i : n - 1 - i + m] = similarity[i]
    total = np.concatenate([np.zeros((1, n + m - 1)), sheared.cumsum(0, dtype=np.float64)])
    means = (total[frames:] - total[:-frames]) / frames
    column = np.arange(len(means))[:, None] + np.arange(n + m - 1) - (n - 1)
    means[(column < 0) | (column > m - frames)] = -np.inf  # a part of them lies outside
    at = np.unravel_index(int(means.argmax()), means.shape)
    return float(means[at]), int(at[0]), int(column[at])


def from_texts(
    pack: Pack,
    texts: dict[int, str],
    embed: Callable[[int], Float32],
    *,
    excluded: frozenset[str] = frozenset(),
    min_letters: int = 5,
    min_similarity: float = 0.4,
    position: float = 0.2,
    seed: int = 0,
) -> list[Word]:
    """Occurrences of words that two transcripts of one language share, found where the two recordings sound alike.

    `embed` gives unit embeddings float32 [frames, dim] of a recording. A find is kept where the mean cosine along its
    diagonal is at least `min_similarity` and where it lies, in both recordings, within `position` of the recording's
    length of where the transcript has the word. Each pair gets a label of its own language and word.
    """
    rng = np.random.default_rng(seed)
    where: dict[tuple[str, str], list[int]] = {}
    for recording, text in texts.items():
        for word in sorted(set(text.split())):
            if len(word) >= min_letters and word not in excluded:
                where.setdefault((pack.entries[recording].language, word), []).append(recording)
    found: list[Word] = []
    for (language, word), recordings in sorted(where.items()):
        pairs = [
            (a, b)
            for i, a in enumerate(recordings)
            for b in recordings[:i]
            if pack.entries[a].speaker != pack.entries[b].speaker
        ]
        for at in rng.permutation(len(pairs))[:PAIRS_PER_WORD]:
            a, b = pairs[int(at)]
            x, y = embed(a), embed(b)
            frames = round(len(word) * LETTER_FRAMES)
            if min(len(x), len(y)) <= frames:
                continue
            similarity, i, j = best_diagonal(np.ascontiguousarray(x @ y.T), frames)
            near = all(
                abs((first + frames / 2) / len(e) - _place(texts[r], word)) <= position
                for r, first, e in ((a, i, x), (b, j, y))
            )
            if similarity >= min_similarity and near:
                for r, first in ((a, i), (b, j)):
                    found.append(Word(r, first, frames, f"{language}/{word}", pack.entries[r].speaker))
    return found


def _place(text: str, word: str) -> float:
    """Middle of a word in a transcript, as a share of its length."""
    words = text.split()
    before = sum(len(w) + 1 for w in words[: words.index(word)])
    return (before + len(word) / 2) / max(1, len(text))


QUERY_FRAMES = 16  # 0.64 s: long enough to be a word, short enough to be said again
LEVEL = 0.5  # of a recording's mean frame energy: quieter stretches are pauses


def by_sound(
    pack: Pack,
    recordings: npt.NDArray[np.int64],
    embeddings: list[Float32],
    *,
    queries: int = 2_000,
    min_similarity: float = 0.55,
    most: int = 1_000,
    seed: int = 0,
) -> list[Word]:
    """Pairs of stretches of different recordings that are each other's nearest, found without any label.

    `embeddings` has unit float32 [frames, dim] of each of `recordings`. Stretches of running speech are drawn and
    searched in all other recordings (mean cosine along a diagonal); a find counts if the same search from it leads back
    and its similarity is at least `min_similarity`. Of those the best `most` are kept. Each pair has a label of its
    own, and the recording stands for the speaker.
    """
    rng = np.random.default_rng(seed)
    start = np.concatenate([[0], np.cumsum([len(e) for e in embeddings])]).astype(np.int64)
    every = np.concatenate(embeddings)
    owner = np.repeat(np.arange(len(embeddings)), np.diff(start))
    # A stretch must not run over the end of its recording.
    whole = np.zeros(len(every), bool)
    for a, b in pairwise(start):
        whole[a : max(a, b - QUERY_FRAMES + 1)] = True
    loud = _loud(pack, recordings, start)
    candidates = np.flatnonzero(whole & loud)
    if len(candidates) == 0:
        return []
    drawn = rng.choice(candidates, min(queries, len(candidates)), replace=False)
    there, similarity = _nearest_stretch(every, owner, whole & loud, drawn)
    kept = np.flatnonzero(similarity >= min_similarity)
    back, _ = _nearest_stretch(every, owner, whole & loud, there[kept])
    mutual = kept[np.abs(back - drawn[kept]) <= QUERY_FRAMES // 4]
    found: list[Word] = []
    taken = np.zeros(len(every), bool)
    for i in mutual[np.argsort(-similarity[mutual], kind="stable")]:
        pair = (int(drawn[i]), int(there[i]))
        # One pair found again from its other end, or a few frames on, would be its own negative.
        if len(found) == 2 * most or any(taken[at : at + QUERY_FRAMES].any() for at in pair):
            continue
        for at in pair:
            taken[at : at + QUERY_FRAMES] = True
            r = int(owner[at])
            label = f"~/{len(found) // 2}"
            found.append(Word(int(recordings[r]), at - int(start[r]), QUERY_FRAMES, label, str(recordings[r])))
    return found


def _loud(pack: Pack, recordings: npt.NDArray[np.int64], start: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which stretches of QUERY_FRAMES hold enough energy to be speech, by their first frame: bool [frames]."""
    out = np.zeros(int(start[-1]), bool)
    for r, recording in enumerate(recordings):
        frames = int(start[r + 1] - start[r])
        wave = pack.waveform(int(recording))[: frames * FRAME_SAMPLES].astype(np.float32)
        energy = np.concatenate([[0.0], np.cumsum((wave.reshape(frames, -1) ** 2).mean(1))])
        count = max(0, frames - QUERY_FRAMES + 1)
        mean = (energy[QUERY_FRAMES:] - energy[:-QUERY_FRAMES]) / QUERY_FRAMES if count else np.zeros(0)
        out[start[r] : start[r] + count] = mean > LEVEL * energy[-1] / max(1, frames)
    return out


def _nearest_stretch(
    every: Float32, owner: npt.NDArray[np.int64], allowed: npt.NDArray[np.bool_], at: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], Float32]:
    """For the stretch from each frame `at` on, the best one of another recording: its first frame and mean cosine."""
    best = np.zeros(len(at), np.int64)
    score = np.zeros(len(at), np.float32)
    last = len(every) - QUERY_FRAMES + 1
    for i, first in enumerate(at):
        similarity = every @ every[first : first + QUERY_FRAMES].T
        total = np.zeros(last, np.float32)
        for k in range(QUERY_FRAMES):
            total += similarity[k : k + last, k]
        total[~allowed[:last] | (owner[:last] == owner[first])] = -np.inf
        best[i] = int(total.argmax())
        score[i] = total[best[i]] / QUERY_FRAMES
    return best, score
