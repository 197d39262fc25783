"""What each part of the training gives: short runs with one budget a block, measured alike, as one table in Markdown.

    python -m bench.accuracy.ablation --speech SPEECH --tasks TASKS --teacher WEIGHTS --work WORK
        [--manifest FILE.tsv] [--tuned TUNED.safetensors] [--minutes 3] [--seeds 3] [--row NAME …] [--task english …]

A row that names a stage goes on from the row without it. What WORK has already is not made again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bench.accuracy import embedders, probes, tables, teachers
from bench.accuracy.embedders import Embed, Embedder
from bench.accuracy.matchers import MATCHERS
from model.encoder import FRAME_SECONDS, AttentionShape, ConvolutionShape
from model.tokenizer import DEFAULT_WEIGHTS
from model.training import recipe
from model.training.features import load_whitening
from model.training.stages import STAGE_1, STAGE_2, WEIGHTS_FILE, Stage

CODEBOOK_SIZE = 2_048  # of every row and task, so that rows differ in their embeddings alone
NOTHING = Stage(learning_rate=1e-3, distil=0.0, words=1.0, rows=8, paths="mel", shape=ConvolutionShape())
BALANCED = replace(NOTHING, codes=0.3)
# Stage II goes on from Stage I, along paths that its embeddings give: CTC from the first step ends in a single token.
AFTER = replace(BALANCED, learning_rate=3e-4, paths="embedding", ctc=True)
DISTIL = Stage(learning_rate=5e-4, rows=32)


@dataclass(frozen=True)
class Block:
    """One run: its row's name, what it starts from (a row, "teacher", or nothing), its targets, its stage.

    "teacher" are the teacher's own lower blocks.
    """

    row: str
    after: str | None
    tuned: bool
    stage: Stage


def _of_size(blocks: int, hidden: int) -> Block:
    shape = AttentionShape(blocks=blocks, hidden=hidden)
    return Block(f"{TUNED}, {blocks} of {hidden}", "teacher", True, replace(DISTIL, shape=shape))


PUBLISHED, TUNED = "published teacher distilled", "tuned teacher distilled"
BLOCKS = (
    Block("from nothing: BEST-STD", None, False, replace(NOTHING, codes=0.25, codebook="moving")),
    Block("from nothing: balanced codebook", None, False, BALANCED),
    Block("from nothing: balanced, then CTC (wav2tok)", "from nothing: balanced codebook", False, AFTER),
    Block(
        "from nothing: balanced, then CTC, framewise (wav2tok 2.0)", "from nothing: balanced codebook", False,
        replace(AFTER, framewise=True),
    ),
    Block(PUBLISHED, "teacher", False, DISTIL),
    Block(f"{PUBLISHED}, Stage I", PUBLISHED, False, STAGE_1),
    Block(f"{PUBLISHED}, Stage I, Stage II", f"{PUBLISHED}, Stage I", False, STAGE_2),
    Block(TUNED, "teacher", True, DISTIL),
    Block(f"{TUNED}, and on", TUNED, True, replace(DISTIL, learning_rate=STAGE_1.learning_rate)),
    Block(f"{TUNED}, Stage I", TUNED, True, STAGE_1),
    Block(f"{TUNED}, Stage I, Stage II", f"{TUNED}, Stage I", True, STAGE_2),
    Block(f"{TUNED}, from nothing", None, True, DISTIL),
    *(_of_size(blocks, hidden) for blocks, hidden in ((1, 512), (2, 512), (4, 512), (6, 512), (2, 1024))),
)  # fmt: skip
HOW = {"english": (MATCHERS, True), "malayalam": (("edit", "centroids"), False)}  # matchers, and whether in noise too
SEEDED = (f"{TUNED}, Stage I", f"{TUNED}, Stage I, Stage II")


def folder_of(work: Path, row: str, seed: int) -> Path:
    """Where a run lies."""
    return work / "ablation" / f"{row.replace(':', '').replace(',', '').replace(' ', '-')}-{seed}"


def targets_of(work: Path, tuned: bool) -> Path:
    """Where what is distilled from one of the teachers lies."""
    return work / "ablation" / ("tuned" if tuned else "published")


def trained(arguments: argparse.Namespace, seeds: int) -> Iterator[tuple[str, int, Path]]:
    """Every run that is asked for, in order: row, seed, weights."""
    excluded = frozenset((arguments.speech / "oov.txt").read_text(encoding="utf-8").split())
    corpus = recipe.Corpus(
        arguments.speech,
        arguments.manifest or arguments.speech / "manifest.tsv",
        words=arguments.speech / "words.tsv",
        excluded=excluded,
    )
    device = torch.device(arguments.device)
    prepared = recipe.prepare(corpus, arguments.teacher, arguments.work, 256, device, 2)
    target: dict[bool, npt.NDArray[np.float16]] = {}
    blocks = [block for block in BLOCKS if arguments.row is None or block.row in arguments.row]
    for tuned in {block.tuned for block in blocks}:
        path = targets_of(arguments.work, tuned)
        path.mkdir(parents=True, exist_ok=True)
        target[tuned] = recipe.make_targets(
            prepared, arguments.teacher, arguments.tuned if tuned else None, path, device
        )
    for seed in range(seeds):
        for block in blocks:
            if seed and block.row not in SEEDED:
                continue
            start = None
            if block.after == "teacher":
                shape = block.stage.shape
                assert isinstance(shape, AttentionShape)
                path = targets_of(arguments.work, block.tuned) / f"{shape.blocks}-{shape.hidden}.safetensors"
                start = recipe.inherited(
                    replace(block.stage, seed=0), shape, prepared, target[block.tuned], arguments.teacher, path
                )
            elif block.after is not None:
                # Another seed of the last rows goes on from the first seed of the row before.
                before = seed if block.after in SEEDED else 0
                start = folder_of(arguments.work, block.after, before) / WEIGHTS_FILE
            stage = replace(block.stage, name="block", minutes=arguments.minutes, seed=seed)
            folder = folder_of(arguments.work, block.row, seed)
            recipe.run_stage(stage, prepared, target[block.tuned], folder, device, start)
            yield block.row, seed, folder / WEIGHTS_FILE


def subjects(arguments: argparse.Namespace) -> Iterator[tuple[str, int, Embed]]:
    """Every row's embedder, trained as it is asked for."""

    def wanted(row: str) -> bool:
        return arguments.row is None or row in arguments.row

    if wanted("MFCC"):
        yield "MFCC", 0, embedders.of_mfcc()
    for row, seed, weights in trained(arguments, arguments.seeds):
        yield row, seed, embedders.of_student(weights)
    if wanted("fast, as shipped"):
        yield "fast, as shipped", 0, embedders.of_tokenizer(DEFAULT_WEIGHTS)
    whitening = load_whitening(arguments.work)
    for name, tuned in (("the teacher itself", None), ("the tuned teacher itself", arguments.tuned)):
        if wanted(name):
            with tempfile.TemporaryDirectory() as folder:
                yield name, 0, teachers.embedder(arguments.teacher, whitening, tuned, Path(folder))


def main() -> None:
    """Parse, run, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speech", type=Path, required=True)
    parser.add_argument("--tasks", type=Path, required=True)
    parser.add_argument("--teacher", required=True, help="the teacher's weights")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--manifest", type=Path, help="another than SPEECH/manifest.tsv: a part of it")
    parser.add_argument("--tuned", type=Path, help="the tuned part of the teacher")
    parser.add_argument("--minutes", type=float, default=3.0, help="of each block")
    parser.add_argument("--seeds", type=int, default=1, help="of the last rows")
    parser.add_argument("--row", action="append", help="only these rows")
    parser.add_argument("--task", nargs="+", default=list(HOW), choices=list(HOW))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    out = arguments.work / "ablation" / "rows.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    known = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    done = {(line["row"], line["seed"]) for line in known}
    for row, seed, embed in subjects(arguments):
        if (row, seed) in done:
            continue
        frame_s = embed.frame_seconds if isinstance(embed, Embedder) else FRAME_SECONDS
        for task in arguments.task:
            matchers, noise = HOW[task]
            rows = probes.measure(
                embed, frame_s, arguments.tasks / f"{task}.json", arguments.speech / "dev" / task,
                noise=arguments.speech / "noise" if noise else None, matchers=matchers, size=CODEBOOK_SIZE,
            )  # fmt: skip
            with out.open("a", encoding="utf-8") as file:
                for measured in rows:
                    file.write(json.dumps({"row": row, "seed": seed, **asdict(measured)}) + "\n")
    print(tables.markdown([json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]))


if __name__ == "__main__":
    main()
