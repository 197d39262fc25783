"""The decoder as `model.pairalign.shape` describes it, in plain numpy: every prefix is worked out anew."""

import hashlib
import math
from pathlib import Path

import numpy as np

from model.codebook import Codebook
from model.export import Description
from model.pairalign.part import Part
from model.pairalign.shape import DecoderShape, waves
from model.tokenizer import DEFAULT_WEIGHTS

SMALL = DecoderShape(
    size=500, width=32, heads=2, hidden=48, blocks=2, rates=2, window_frames=20, overlap_frames=7, max_tokens=9
)


def random_part(shape: DecoderShape = SMALL, seed: int = 0, encoder: Path = DEFAULT_WEIGHTS) -> Part:
    """A decoder that has learned nothing: it ends now and then, and its pointer is bold."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, sides in shape.parameters():
        kind = name.rsplit(".", 1)[-1]
        if "norm" in name:
            value = np.full(sides, kind == "weight", np.float32)
        else:
            value = rng.standard_normal(sides) * (1.0 if len(sides) == 1 else sides[-1] ** -0.5)
        weights[name] = np.asarray(value, np.float16).astype(np.float32)
    weights["point_query.weight"] *= 3
    weights["condition.weight"] *= 8
    weights["copy_scale"][:] = 3.0
    weights["copy_query.weight"] *= 3
    weights["head.bias"] *= 0.5
    weights["head.bias"][shape.bos] = 2.0
    sha256 = hashlib.sha256(encoder.read_bytes()).hexdigest()
    centroids = rng.standard_normal((shape.size, shape.dim)).astype(np.float16).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    quantiser = rng.standard_normal((4, 256, shape.dim // 4)).astype(np.float16).astype(np.float32)
    description = Description("random", "0", "Apache-2.0", "nothing")
    return Part(shape, weights, Codebook(centroids, quantiser), 1, sha256, description)


def write(part: Part, embeddings: np.ndarray, rate: int, beam: int = 1) -> np.ndarray:
    """Framewise ids of one window [frames, dim] of embeddings, by as many sequences as `beam` says."""
    s = part.shape
    # Score, how many choices it comes of, tokens, their first frames, over or not.
    beams = [(0.0, 0, [s.bos], [0], False)]
    for step in range(s.max_tokens):
        ways = []
        for score, count, tokens, starts, over in beams:
            over = over or (step > 0 and starts[-1] + 1 >= len(embeddings))
            if over:
                ways.append((score, count, tokens, starts, True))
                continue
            log_probability, place = next_token(part, embeddings, rate, tokens, starts)
            for token in np.argsort(-log_probability, kind="stable")[:beam]:
                ended = bool(token == s.bos)
                more = ([], []) if ended else ([int(token)], [place if step else 0])
                ways.append((score + log_probability[token], count + 1, tokens + more[0], starts + more[1], ended))
        beams = sorted(ways, key=lambda way: -way[0])[:beam]
    best = max(beams, key=lambda way: way[0] / way[1])
    ids = np.zeros(len(embeddings), np.int64)
    for token, start in zip(best[2][1:], best[3][1:], strict=True):
        ids[start:] = token
    return ids


def next_token(
    part: Part, embeddings: np.ndarray, rate: int, tokens: list[int], starts: list[int]
) -> tuple[np.ndarray, int]:
    """Log probabilities of what follows a prefix, and the frame at which a token would begin."""
    s, w = part.shape, part.weights

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        unit = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return unit * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attend(x: np.ndarray, to: np.ndarray, name: str, causal: bool) -> np.ndarray:
        query, key, value = linear(x, f"{name}.query"), linear(to, f"{name}.key"), linear(to, f"{name}.value")
        width = s.width // s.heads
        out = np.zeros_like(query)
        for head in range(s.heads):
            part_of = slice(head * width, (head + 1) * width)
            for i in range(len(x)):
                seen = i + 1 if causal else len(to)
                score = key[:seen, part_of] @ query[i, part_of] / math.sqrt(width)
                share = np.exp(score - score.max())
                out[i, part_of] = share / share.sum() @ value[:seen, part_of]
        return linear(out, f"{name}.out")

    def gelu(x: np.ndarray) -> np.ndarray:
        return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))

    frames = len(embeddings)
    wave = waves(s.window_frames, s.width)
    memory = norm(linear(embeddings, "condition"), "condition_norm") + wave[:frames]
    x = w["token.weight"][tokens] + w["rate.weight"][rate] + wave[starts]
    for i in range(s.blocks):
        block = f"blocks.{i}"
        y = norm(x, f"{block}.self_norm")
        x = x + attend(y, y, f"{block}.self", True)
        x = x + attend(norm(x, f"{block}.cross_norm"), memory, f"{block}.cross", False)
        x = x + linear(gelu(linear(norm(x, f"{block}.wide_norm"), f"{block}.expand")), f"{block}.contract")
    y = norm(x[-1], "norm")
    logits = linear(y, "head")
    sight = linear(memory, "copy_key") @ linear(y, "copy_query") / math.sqrt(s.width)
    share = np.exp(sight - sight.max())
    logits[:-1] += w["copy_scale"] * (part.codebook.centroids @ (share / share.sum() @ embeddings))
    logits[tokens[-1]] = -np.inf
    pointer = linear(memory, "point_key") @ linear(y, "point_query") / math.sqrt(s.width)
    pointer[: starts[-1] + 1] = -np.inf
    above = logits.max()
    return logits - above - math.log(np.exp(logits - above).sum()), int(pointer.argmax())
