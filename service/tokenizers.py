"""`sayagain tokenizer`: look at a tokenizer file, judge it by the contract, or make one out of an encoder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from model.tokenizer import Tokenizer
from service import registry
from service.console import JsonOption, failing, print_line
from service.errors import EXIT_FAILED
from service.output import printable
from service.settings import Settings

if TYPE_CHECKING:
    from model.contract import Report
    from model.declaration import Finding

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

EXTRA = 'pip install "sayagain[accurate]"'


class Kind(StrEnum):
    """Tokenizers that are put together on the user's machine."""

    ACCURATE = "accurate"
    PAIRALIGN = "pairalign"


class PrecisionOption(StrEnum):
    """How the weights of the linear layers are stored."""

    FP32 = "fp32"
    INT8 = "int8"


class ContextOption(StrEnum):
    """What the ids of a frame depend on."""

    BOUNDED = "bounded"
    SEGMENT = "segment"


@app.command()
def check(
    file: Annotated[Path, typer.Argument(help="an ONNX file")],
    as_json: JsonOption = False,
) -> None:
    """Judge a file by every rule of the contract: exit code 1 if one is broken, warnings aside."""
    from model import contract

    report = contract.check(file)
    if as_json:
        print_line(report.as_json())
    else:
        for finding in report.findings:
            typer.echo(_finding(finding))
        typer.echo(_verdict(report), err=True)
    raise typer.Exit(0 if report.passed else EXIT_FAILED)


@app.command()
def show(
    file: Annotated[Path | None, typer.Argument(help="an ONNX file; without it, the one in use")] = None,
    as_json: JsonOption = False,
) -> None:
    """What a tokenizer says of itself."""
    with failing("accurate"):
        tokenizer = Tokenizer(file or Settings().tokenizer)
        pq = tokenizer.codebook.pq
        facts: dict[str, Any] = {
            "file": str(tokenizer.path),
            "bytes": tokenizer.path.stat().st_size,
            **vars(tokenizer.info),
            "codebook": tokenizer.codebook.size,
            "dimensions": tokenizer.codebook.dim,
            "pq_bytes": None if pq is None else len(pq),
        }
        if as_json:
            print_line(facts)
        else:
            for key, value in facts.items():
                typer.echo(f"{key:<22}{'none' if value is None else value}")


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """The tokenizers at hand: the default and those in the data folder."""
    with failing():
        settings = Settings()
        kept = {path.stem: path for path in registry.files(settings.home_path / registry.FOLDER)}
        for name, path in {"fast": settings.tokenizer, **kept}.items():
            info = Tokenizer(path, threads=1).info
            if as_json:
                print_line({"name": name, "file": str(path), "version": info.version, "sha256": info.sha256})
            else:
                typer.echo(f"{name}  {info.version}  {info.sha256[:12]}  {path}")


@app.command()
def build(
    kind: Annotated[Kind, typer.Argument(help="which one")],
    weights: Annotated[
        Path | None, typer.Option(help="safetensors file of openai/whisper-base; without it, it is downloaded")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the ONNX file to write; without it, under the data folder")] = None,
    precision: Annotated[
        PrecisionOption, typer.Option(help="int8: half the size, faster on CPUs, a little less exact")
    ] = PrecisionOption.FP32,
    tuned: Annotated[Path | None, typer.Option(help="another part of ours than the one that ships")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0, help="pairalign: another setting of its length, 0 for most tokens")
    ] = None,
    beam: Annotated[
        int | None, typer.Option(min=1, help="pairalign: sequences that are followed side by side, 1 for greedy")
    ] = None,
) -> None:
    """Put a tokenizer together: accurate from its publisher's weights and our part, pairalign from ours alone."""
    with failing("accurate"):
        home = Settings().home_path
        target = out or home / registry.FOLDER / f"{kind.value}.onnx"
        if kind is Kind.PAIRALIGN:
            from model.pairalign import graph
            from model.pairalign.part import DEFAULT_PART, read_part

            with registry.replacing(home, target):
                graph.build(read_part(tuned or DEFAULT_PART), target, rate=rate, beam=beam)
        else:
            from model import accurate
            from model.tuned import DEFAULT_TUNED, read_tuned

            part = tuned or DEFAULT_TUNED
            read_tuned(part)  # before anything is downloaded for it
            source = weights or _download()
            with registry.replacing(home, target):
                accurate.build(source, part, target, precision=precision.value)
        info = Tokenizer(target).info
        typer.echo(f"{target}: {info.name} {info.version}, sha256 {info.sha256[:12]}", err=True)
        typer.echo(f"to use it: sayagain index FOLDER --archive NAME --tokenizer {out or kind.value}", err=True)


@app.command()
def wrap(
    encoder: Annotated[Path, typer.Argument(help="ONNX file: float waveform [batch, samples] to features")],
    out: Annotated[Path, typer.Option(help="the tokenizer's ONNX file to write")],
    name: Annotated[str, typer.Option(help="what the tokenizer is called")],
    frame_seconds: Annotated[float, typer.Option(help="seconds from one row of the features to the next")],
    context: Annotated[
        ContextOption, typer.Option(help="segment: a frame may depend on all of its segment; bounded: on so much")
    ] = ContextOption.SEGMENT,
    left_context: Annotated[int, typer.Option(min=0, help="samples before a frame that matter, if bounded")] = 0,
    right_context: Annotated[int, typer.Option(min=0, help="samples after it that matter, if bounded")] = 0,
    audio: Annotated[
        list[Path] | None, typer.Option(help="folder or file of audio to fit the codebook to; may be repeated")
    ] = None,
    centroids: Annotated[Path | None, typer.Option(help=".npy [K, dim] of k-means centres to take instead")] = None,
    output: Annotated[str | None, typer.Option(help="name of the features; without it, the first output")] = None,
    size: Annotated[int, typer.Option(min=2, help="centroids to fit")] = 1_024,
    centre: Annotated[bool, typer.Option(help="subtract the mean of the audio's features")] = True,
    version: Annotated[str, typer.Option(help="stored in the file")] = "1",
    licence: Annotated[str, typer.Option(help="of the weights; stored in the file")] = "not stated",
    trained_on: Annotated[str, typer.Option(help="stored in the file")] = "not stated",
) -> None:
    """Make a tokenizer of an encoder of your own, then judge it: what breaks the contract is listed, exit code 1."""
    from indexer.discover import discover
    from model import contract
    from model.export import Description
    from model.wrap import wrap as wrap_encoder

    with failing():
        found = discover(audio) if audio else None
        wrapped = wrap_encoder(
            encoder, out, frame_seconds=frame_seconds, context=context.value,
            description=Description(name, version, licence, trained_on), left_context_samples=left_context,
            right_context_samples=right_context, audio=[Path(file.path) for file in found.files] if found else None,
            centroids=centroids, output=output, size=size, centre=centre,
        )  # fmt: skip
        failed = {failure.name: failure.message for failure in found.failed} if found else {}
        for file, message in (failed | {str(path): message for path, message in wrapped.failed.items()}).items():
            typer.echo(f"skipped {printable(file)}: {message}", err=True)
        typer.echo(
            f"{out}: codebook of {wrapped.size} x {wrapped.dim}, {wrapped.heard_s:.0f} s of audio heard", err=True
        )
        report = contract.check(out)
        for finding in report.findings:
            if finding.level != "ok":
                typer.echo(_finding(finding))
        typer.echo(_verdict(report), err=True)
        if report.passed:
            typer.echo(f"to use it: sayagain index FOLDER --archive NAME --tokenizer {out}", err=True)
    raise typer.Exit(0 if report.passed else EXIT_FAILED)


def _finding(finding: Finding) -> str:
    return f"{finding.level:<9}{finding.rule:<15}{finding.message}"


def _verdict(report: Report) -> str:
    return f"{report.path} {'honours' if report.passed else 'breaks'} the tokenizer contract"


def _download() -> Path:
    """The publisher's weights, or what to do without them."""
    from model.whisper import EncoderError, download

    try:
        return download()
    except EncoderError as error:
        remedy = EXTRA if isinstance(error.__cause__, ImportError) else "give its safetensors file with --weights PATH"
        raise EncoderError(f"{str(error).rstrip('.')}; {remedy}") from error
