"""The three stages of PairAlign's decoder, each readable from top to bottom; a run that was stopped goes on."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from rapidfuzz.distance import Levenshtein
from torch import Tensor
from tqdm import tqdm

from model.pairalign.shape import DecoderShape
from model.training.data import write_atomically
from model.training.pairalign.batches import Batch, Example, Examples, Mixture, collate, padded
from model.training.pairalign.corruption import Corruption, corrupt
from model.training.pairalign.decoder import Decoder
from model.training.pairalign.losses import (
    length_loss,
    likelihood_contrast,
    log_likelihood,
    pointer_loss,
    token_loss,
)
from model.training.pairalign.targets import Sequence

LOG_FILE, STATE_FILE = "pairalign.jsonl", "pairalign.pt"

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stage:
    """What decides what a stage gives. Weights are of the losses' sum; that of the tokens is 1."""

    name: str
    minutes: float
    mixture: Mixture
    steps: int | None = None  # at most, whatever the minutes
    batch: int = 48
    pieces: int = 3  # of a batch, by length, so that little of it is padding
    learning_rate: float = 1e-3
    final_rate: float = 2e-5
    warmup_steps: int = 100
    smoothing: float = 0.05
    pointer: float = 0.3
    length: float = 0.0
    contrast: float = 0.0
    contrasted: int = 3  # rows of a piece whose sequences are told apart
    temperature: float = 0.1
    corruption: Corruption | None = None
    own_targets: bool = False  # those of the moving average's decoding of the other hearing
    longest_ratio: float = 1.5  # of such a sequence's length to the encoder's tokens, either way; else those serve
    average: float = 0.995
    checkpoint_s: float = 120.0
    seed: int = 0


def stage_1(minutes: float) -> Stage:
    """The encoder's own collapsed tokens are to be written."""
    return Stage("pairalign-1", minutes, Mixture(clean=1.0, changed=0.0, alone=0.0))


def stage_2(minutes: float) -> Stage:
    """The other hearing's tokens are to be written; encoder and codebook stay as they are (all stages)."""
    return Stage(
        "pairalign-2", minutes, Mixture(clean=0.15, changed=0.3, alone=0.25), learning_rate=7e-4, length=0.1,
        corruption=Corruption(0.04, 0.03, 0.03),
    )  # fmt: skip


def stage_3(minutes: float) -> Stage:
    """What the decoder's moving average writes for the other hearing is to be written, whatever the prefix says."""
    return Stage(
        "pairalign-3", minutes, Mixture(clean=0.1, changed=0.35, alone=0.25), learning_rate=4e-4, length=0.2,
        contrast=0.2, corruption=Corruption(), own_targets=True,
    )  # fmt: skip


@dataclass
class Progress:
    """Where a run stands."""

    stage: int = 0
    step: int = 0
    spent_s: float = 0.0
    means: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def written(decoder: Decoder, rows: list[Float32], rates: list[int], device: torch.device) -> list[Sequence]:
    """What the decoder writes, greedily, for stretches float32 [n, dim] of a window at most."""
    heard, frames = padded(rows, max(len(row) for row in rows))
    out = decoder.write(decoder.remember(heard.to(device), frames.to(device)), torch.tensor(rates, device=device))
    tokens, starts, lengths = out.tokens.cpu().numpy(), out.starts.cpu().numpy(), out.lengths.cpu().numpy()
    return [Sequence(tokens[i, :n], starts[i, :n]) for i, n in enumerate(lengths)]


def losses(decoder: Decoder, batch: Batch, stage: Stage, generator: torch.Generator) -> dict[str, Tensor]:
    """What one batch should teach, each with its weight."""
    memory = decoder.remember(batch.heard, batch.frames)
    entered, at = batch.entered, batch.entered_at
    if stage.corruption is not None:
        entered, at = corrupt(entered, at, decoder.shape.size, batch.frames, stage.corruption, generator)
    logits, pointer = decoder(memory, entered, at, batch.rate)
    out = {
        "tokens": token_loss(logits, entered, batch.wanted, stage.smoothing),
        "pointer": stage.pointer * pointer_loss(pointer, at, batch.pointed),
    }
    if stage.length:
        out["length"] = stage.length * length_loss(logits, batch.wanted)
    if stage.contrast:
        n = min(stage.contrasted, len(batch.rate))
        i, j = (x.flatten() for x in torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij"))
        # A negative's frames may lie beyond a short condition: they are brought inside, as positions only.
        starts = torch.minimum(batch.entered_at[j], (batch.frames[i] - 1)[:, None])
        told, _ = decoder(memory.take(i), batch.entered[j], starts, batch.rate[j])
        scores = log_likelihood(told, batch.wanted[j]).view(n, n)
        out["contrast"] = stage.contrast * likelihood_contrast(scores, stage.temperature)
    return out


def pieces(
    drawn: list[Example], sequences: list[Sequence], count: int, shape: DecoderShape
) -> Iterator[tuple[float, Batch]]:
    """A batch in pieces of like length, each with its share of the tokens: the pieces' gradients, weighed so, add up
    to that of the mean over all tokens."""  # fmt: skip
    order = sorted(range(len(drawn)), key=lambda i: (len(sequences[i].tokens), len(drawn[i].heard)))
    total = sum(len(s.tokens) + 1 for s in sequences)
    for chosen in np.array_split(np.array(order), min(count, len(order))):
        some, theirs = [drawn[i] for i in chosen], [sequences[i] for i in chosen]
        batch = collate([e.heard for e in some], theirs, [e.rate for e in some], shape)
        yield sum(len(s.tokens) + 1 for s in theirs) / total, batch


def with_own_targets(examples: list[Example], teacher: Decoder, stage: Stage, device: torch.device) -> list[Sequence]:
    """The teacher's writing of each example's other hearing, at the times of what is heard.

    Where it is of quite another length than the encoder's tokens (a collapse, or no end) those serve.
    """
    own = written(teacher, [e.other for e in examples], [e.rate for e in examples], device)
    out = []
    for example, sequence in zip(examples, own, strict=True):
        moved = example.at_my_times(sequence)
        ratio = len(moved.tokens) / len(example.sequence.tokens)
        out.append(moved if 1 / stage.longest_ratio <= ratio <= stage.longest_ratio else example.sequence)
    return out


@torch.no_grad()
def judge(decoder: Decoder, held: list[Example], device: torch.device) -> dict[str, float]:
    """Of held-out examples: the normalised edit distance between what is written for both hearings, between what is
    written and the encoder's tokens, and the ratio of lengths to those."""  # fmt: skip
    mine = written(decoder, [e.heard for e in held], [e.rate for e in held], device)
    its = written(decoder, [e.other for e in held], [e.rate for e in held], device)
    views, targets, ratio = [], [], []
    for example, a, b in zip(held, mine, its, strict=True):
        views.append(Levenshtein.normalized_distance(a.tokens.tolist(), b.tokens.tolist()))
        targets.append(Levenshtein.normalized_distance(a.tokens.tolist(), example.sequence.tokens.tolist()))
        ratio.append(len(a.tokens) / len(example.sequence.tokens))
    return {
        "views": round(float(np.mean(views)), 4),
        "targets": round(float(np.mean(targets)), 4),
        "length": round(float(np.mean(ratio)), 3),
    }


def held_out_sets(examples: Examples, count: int, seed: int = 99) -> dict[str, list[Example]]:
    """Examples of one kind each that every evaluation uses; they are drawn from the corpus that teaches, so they say
    how a run goes and not how good it is."""  # fmt: skip
    rng = np.random.default_rng(seed)
    kinds = {"changed": Mixture(0.0, 1.0, 0.0), "alone": Mixture(0.0, 0.0, 1.0)}
    if examples.labels:
        kinds["word"] = Mixture(0.0, 0.0, 0.0)
    return {name: examples.draw(count, mixture, rng) for name, mixture in kinds.items()}


def run(
    decoder: Decoder, examples: Examples, stages: list[Stage], work: Path, device: torch.device,
    ready: Callable[[Decoder], None],
) -> Decoder:  # fmt: skip
    """Train through the stages; state goes to `work` every `checkpoint_s`. Returns the moving average.

    `ready` is given the moving average at each checkpoint.
    """
    decoder.to(device)
    average = copy.deepcopy(decoder).requires_grad_(False)
    optimizer = torch.optim.AdamW(decoder.parameters(), stages[0].learning_rate, (0.9, 0.98), weight_decay=0.01)
    at = Progress()
    state_file = work / STATE_FILE
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        decoder.load_state_dict(state["decoder"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        at = Progress(**state["progress"])
    held = held_out_sets(examples, 64)
    while at.stage < len(stages):
        stage = stages[at.stage]
        rng = np.random.default_rng((stage.seed, at.stage, at.step))
        generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        limit_s, saved_s = stage.minutes * 60, at.spent_s
        bar = tqdm(total=round(limit_s), initial=round(at.spent_s), desc=stage.name, unit="s")
        while not _over(stage, at):
            began = time.monotonic()
            for group in optimizer.param_groups:
                group["lr"] = _rate(stage, at)
            drawn = examples.draw(stage.batch, stage.mixture, rng)
            sequences = [e.sequence for e in drawn]
            if stage.own_targets:
                sequences = with_own_targets(drawn, average, stage, device)
            optimizer.zero_grad(set_to_none=True)
            parts: dict[str, float] = {}
            for share, batch in pieces(drawn, sequences, stage.pieces, decoder.shape):
                of_piece = losses(decoder, _to(batch, device), stage, generator)
                (share * torch.stack(list(of_piece.values())).sum()).backward()  # type: ignore[no-untyped-call]
                for name, loss in of_piece.items():
                    parts[name] = parts.get(name, 0.0) + share * float(loss.detach())
            torch.nn.utils.clip_grad_norm_(decoder.parameters(), 1.0)
            optimizer.step()
            with torch.no_grad():
                decay = min(stage.average, (1.0 + at.step) / (10.0 + at.step)) if at.stage == 0 else stage.average
                torch._foreach_lerp_(list(average.parameters()), list(decoder.parameters()), 1.0 - decay)
            for name, value in parts.items():
                at.means[name] = 0.98 * at.means.get(name, value) + 0.02 * value
            at.step += 1
            at.spent_s += time.monotonic() - began
            bar.update(round(at.spent_s) - bar.n)
            if at.spent_s - saved_s >= stage.checkpoint_s or _over(stage, at):
                saved_s = at.spent_s
                _save(work, decoder, average, optimizer, at)
                _log(work, stage, at, average, held, device)
                ready(average)
        bar.close()
        at = Progress(stage=at.stage + 1)
        _save(work, decoder, average, optimizer, at)
    return average


def _over(stage: Stage, at: Progress) -> bool:
    return at.spent_s >= stage.minutes * 60 or (stage.steps is not None and at.step >= stage.steps)


def _rate(stage: Stage, at: Progress) -> float:
    share = min(1.0, max(at.spent_s / (stage.minutes * 60), at.step / stage.steps if stage.steps else 0.0))
    cosine = stage.final_rate + (stage.learning_rate - stage.final_rate) * 0.5 * (1 + float(np.cos(np.pi * share)))
    return cosine * min(1.0, (at.step + 1) / stage.warmup_steps)


def _to(batch: Batch, device: torch.device) -> Batch:
    return Batch(**{name: value.to(device) for name, value in vars(batch).items()})


def _save(work: Path, decoder: Decoder, average: Decoder, optimizer: torch.optim.Optimizer, at: Progress) -> None:
    state = {
        "decoder": decoder.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict(),
        "progress": asdict(at),
    }  # fmt: skip
    partial = work / (STATE_FILE + ".partial")
    torch.save(state, partial)
    partial.replace(work / STATE_FILE)


def _log(
    work: Path, stage: Stage, at: Progress, average: Decoder, held: dict[str, list[Example]], device: torch.device
) -> None:
    line: dict[str, object] = {"stage": stage.name, "step": at.step, "spent_s": round(at.spent_s)}
    line |= {name: round(value, 4) for name, value in at.means.items()}
    line |= {name: judge(average, examples, device) for name, examples in held.items()}
    path = work / LOG_FILE
    before = path.read_text(encoding="utf-8") if path.exists() else ""
    write_atomically(path, before + json.dumps(line) + "\n")
