"""`sayagain tokenizer`: look at a tokenizer file, judge it by the contract, or put the `accurate` one together."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from model.tokenizer import Tokenizer
from service import registry
from service.console import JsonOption, failing, print_line
from service.errors import EXIT_FAILED
from service.settings import Settings

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)

EXTRA = 'pip install "sayagain[accurate]"'


class Kind(StrEnum):
    """Tokenizers that are put together on the user's machine."""

    ACCURATE = "accurate"


class PrecisionOption(StrEnum):
    """How the weights of the linear layers are stored."""

    FP32 = "fp32"
    INT8 = "int8"


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
            typer.echo(f"{finding.level:<9}{finding.rule:<15}{finding.message}")
        typer.echo(f"{file} {'honours' if report.passed else 'breaks'} the tokenizer contract", err=True)
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
    tuned: Annotated[Path | None, typer.Option(help="another tuned part than the one that ships")] = None,
) -> None:
    """Put a tokenizer together from its publisher's weights and our tuned part."""
    with failing("accurate"):
        from model import accurate
        from model.tuned import DEFAULT_TUNED, read_tuned

        part = tuned or DEFAULT_TUNED
        read_tuned(part)  # before anything is downloaded for it
        target = out or Settings().home_path / registry.FOLDER / f"{kind.value}.onnx"
        accurate.build(weights or _download(), part, target, precision=precision.value)
        info = Tokenizer(target).info
        typer.echo(f"{target}: {info.name} {info.version}, sha256 {info.sha256[:12]}", err=True)
        typer.echo(f"to use it: sayagain index FOLDER --archive NAME --tokenizer {out or kind.value}", err=True)


def _download() -> Path:
    """The publisher's weights, or what to do without them."""
    from model.whisper import EncoderError, download

    try:
        return download()
    except EncoderError as error:
        remedy = EXTRA if isinstance(error.__cause__, ImportError) else "give its safetensors file with --weights PATH"
        raise EncoderError(f"{str(error).rstrip('.')}; {remedy}") from error
