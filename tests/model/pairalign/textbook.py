"""The decoder as `model.pairalign.shape` describes it, in plain numpy: every prefix is worked out anew."""

import hashlib
import math
from pathlib import Path

import numpy as np

from model.export import Description
from model.pairalign.part import Part
from model.pairalign.shape import DecoderShape, waves
from model.tokenizer import DEFAULT_WEIGHTS

SMALL = DecoderShape(
    size=1_024, width=32, heads=2, hidden=48, blocks=2, rates=2, window_frames=20, overlap_frames=7, max_tokens=9
)


def random_part(shape: DecoderShape = SMALL, seed: int = 0, encoder: Path = DEFAULT_WEIGHTS) -> Part:
    """A decoder that has learned nothing: it ends now and then, and its pointer is bold."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, sides in shape.parameters():
        kind = name.rsplit(".", 1)[1]
        if "norm" in name:
            value = np.full(sides, kind == "weight", np.float32)
        else:
            value = rng.standard_normal(sides) * (1.0 if len(sides) == 1 else sides[-1] ** -0.5)
        weights[name] = np.asarray(value, np.float16).astype(np.float32)
    weights["point_query.weight"] *= 3
    weights["condition.weight"] *= 8
    weights["head.bias"] *= 0.5
    weights["head.bias"][shape.bos] = 2.0
    sha256 = hashlib.sha256(encoder.read_bytes()).hexdigest()
    return Part(shape, weights, 1, sha256, Description("random", "0", "Apache-2.0", "nothing"))


def write(part: Part, embeddings: np.ndarray, rate: int) -> np.ndarray:
    """Framewise ids of one window [frames, dim] of embeddings."""
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
    tokens, starts = [s.bos], [0]
    while len(tokens) <= s.max_tokens:
        x = w["token.weight"][tokens] + w["rate.weight"][rate] + wave[starts]
        for i in range(s.blocks):
            block = f"blocks.{i}"
            y = norm(x, f"{block}.self_norm")
            x = x + attend(y, y, f"{block}.self", True)
            x = x + attend(norm(x, f"{block}.cross_norm"), memory, f"{block}.cross", False)
            x = x + linear(gelu(linear(norm(x, f"{block}.wide_norm"), f"{block}.expand")), f"{block}.contract")
        y = norm(x[-1], "norm")
        logits = linear(y, "head")
        logits[tokens[-1]] = -np.inf
        pointer = linear(memory, "point_key") @ linear(y, "point_query") / math.sqrt(s.width)
        pointer[: starts[-1] + 1] = -np.inf
        best = int(logits.argmax())
        if len(tokens) > 1 and (best == s.bos or starts[-1] + 1 >= frames):
            break
        starts.append(0 if len(tokens) == 1 else int(pointer.argmax()))
        tokens.append(best)
    ids = np.zeros(frames, np.int64)
    for token, start in zip(tokens[1:], starts[1:], strict=True):
        ids[start:] = token
    return ids
