"""`sayagain train` and `sayagain export`: from a folder of sound to a tokenizer file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from model.tokenizer import Tokenizer
from service.console import JsonOption, failing, print_line, stderr


def train(
    folder: Annotated[Path, typer.Argument(help="recordings to learn from", exists=True, file_okay=False)],
    work: Annotated[Path, typer.Option(help="where checkpoints, features and the log are kept")],
    teacher: Annotated[str, typer.Option(help="the teacher's name, or its safetensors file")] = "openai/whisper-base",
    manifest: Annotated[Path | None, typer.Option(help="TSV of recordings with splits; without it, every file")] = None,
    words: Annotated[
        Path | None, typer.Option(help="word times: TSV (path, start, end, word), CTM, or Praat TextGrids")
    ] = None,
    exclude: Annotated[Path | None, typer.Option(help="words that never serve as pairs, one a line")] = None,
    tuned: Annotated[
        Path | None,
        typer.Option(help="tuned part of the teacher, or what tuning goes on from; else the shipped one"),
    ] = None,
    tune_minutes: Annotated[
        float, typer.Option(min=0.0, help="tune the teacher first, for so long (needs --words)")
    ] = 0.0,
    phones: Annotated[
        bool, typer.Option("--phones", help="tune it on the phones of what is said too (needs espeak-ng)")
    ] = False,
    minutes: Annotated[float, typer.Option(min=0.0, help="of distillation; it resumes until that is spent")] = 120.0,
    stage_1_minutes: Annotated[float, typer.Option(min=0.0, help="of word pairs after it (needs --words)")] = 0.0,
    stage_2_minutes: Annotated[float, typer.Option(min=0.0, help="of token prediction after that")] = 0.0,
    rounds: Annotated[int, typer.Option(min=0, help="without words: rounds of pairs found by the sound alone")] = 2,
    start: Annotated[
        Path | None, typer.Option(help="a student to begin with: safetensors, or a tokenizer's ONNX file")
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0.0, help="highest learning rate of distillation; less for a student that has learned")
    ] = 5e-4,
    scale: Annotated[int, typer.Option(min=1, help="times as many rows a step as on a CPU")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="processes that decode")] = 2,
    as_json: JsonOption = False,
) -> None:
    """Train a tokenizer: distillation, then word pairs; a run that was stopped goes on where it stopped."""
    with failing("train"):
        import torch

        from model.training import recipe

        if words is None and (tune_minutes or stage_1_minutes or stage_2_minutes):
            raise typer.BadParameter("tuning and the word stages learn from words", param_hint="--words")
        if phones and not tune_minutes:
            raise typer.BadParameter("phones serve the teacher's tuning", param_hint="--tune-minutes")
        excluded = frozenset() if exclude is None else frozenset(exclude.read_text(encoding="utf-8").split())
        corpus = recipe.Corpus(folder, manifest, words=words, excluded=excluded, phones=phones)
        pairs = rounds if words is None else (stage_1_minutes, stage_2_minutes)
        plan = recipe.plan(minutes, tune_minutes, tuned, pairs, rate, scale)
        card = recipe.train(corpus, teacher, work, plan, torch.device(device), workers, start)
        if as_json:
            print_line(card)
        else:
            stderr.print(f"held-out cosine {card['held_out_cosine']:.4f}; next: sayagain export {work} --out FILE.onnx")


def train_pairalign(
    folder: Annotated[Path, typer.Argument(help="recordings to learn from", exists=True, file_okay=False)],
    work: Annotated[Path, typer.Option(help="where checkpoints, embeddings, the log and the part are kept")],
    manifest: Annotated[Path | None, typer.Option(help="TSV of recordings with splits; without it, every file")] = None,
    words: Annotated[
        Path | None, typer.Option(help="word times: TSV (path, start, end, word), CTM, or Praat TextGrids")
    ] = None,
    exclude: Annotated[Path | None, typer.Option(help="words that never serve as pairs, one a line")] = None,
    minutes: Annotated[
        tuple[float, float, float], typer.Option(help="of the three stages; a run resumes until they are spent")
    ] = (6.0, 34.0, 12.0),
    hours: Annotated[float, typer.Option(min=0.01, help="of sound to learn from, at most")] = 9.0,
    tokens: Annotated[int, typer.Option(min=2, max=65_535, help="different tokens that may be written")] = 4_096,
    start: Annotated[
        Path | None, typer.Option(help="a part to go on from, of an earlier version of the encoder", exists=True)
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda")] = "cpu",
    workers: Annotated[int, typer.Option(min=1, help="processes that decode, threads that embed")] = 2,
) -> None:
    """Train the decoder of the pairalign tokenizer over the default one; a stopped run goes on where it stopped."""
    with failing("train"):
        import torch

        from model.training.pairalign import recipe
        from model.training.recipe import Corpus

        excluded = frozenset() if exclude is None else frozenset(exclude.read_text(encoding="utf-8").split())
        corpus = Corpus(folder, manifest, words=words, excluded=excluded)
        part = recipe.train(
            corpus, work, minutes, torch.device(device), hours=hours, size=tokens, workers=workers, start=start
        )
        stderr.print(f"{part}; next: sayagain tokenizer build pairalign --tuned {part} --out FILE.onnx", markup=False)


def export(
    work: Annotated[Path, typer.Argument(help="the work folder of `sayagain train`")],
    out: Annotated[Path, typer.Option(help="the ONNX file to write")],
    name: Annotated[str, typer.Option(help="the tokenizer's name")] = "fast",
    version: Annotated[str, typer.Option(help="the tokenizer's version")] = "1",
    licence: Annotated[str, typer.Option(help="licence of the weights")] = "Apache-2.0",
    trained_on: Annotated[str, typer.Option(help="corpora and teacher, in a line")] = "see the model card",
    eight_bits: Annotated[
        bool, typer.Option("--8-bits", help="store and multiply in 8 bits: a quarter of the size, nearly twice as fast")
    ] = False,
) -> None:
    """Write a trained tokenizer as one ONNX file and read it back."""
    with failing("train"):
        from model.export import Description
        from model.training import recipe

        recipe.export_work(work, Description(name, version, licence, trained_on), out, 8 if eight_bits else 32)
        info = Tokenizer(out).info
        stderr.print(f"{out}: {info.name} {info.version}, sha256 {info.sha256[:12]}", markup=False)
