"""A folder with all of an evaluation: figures.json, plots, and lists of detections. Each file appears whole or not."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from service.evaluation import detections, plots
from service.evaluation.detections import Answered
from service.evaluation.errors import ReportError
from service.evaluation.figures import Level
from service.evaluation.names import RecordingNames

CURVE_POINTS = 200  # at most about so many in JSON
RANKS = 20
DIGITS = 6


class Report:
    """The folder; made, and tried, before the long work begins."""

    def __init__(self, folder: Path, with_plots: bool = True) -> None:
        """Raises ReportError where nothing can be written there, and PlotsMissing where plots are wanted in vain."""
        if with_plots:
            plots.require()
        self.folder, self._with_plots = folder, with_plots
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        trial = self._partial("trial")
        self._write(trial, [b""])
        trial.unlink()

    def write(
        self,
        summary: Mapping[str, Any],
        levels: Mapping[str, Level],
        answers: Sequence[Answered],
        names: RecordingNames,
        title: str,
    ) -> None:
        """All files. Raises ReportError."""
        threshold = levels.get("located", levels["file"]).threshold
        parts: dict[str, Iterable[bytes]] = {
            "figures.json": [json.dumps(summary, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace")],
            "kwslist.xml": _encoded(detections.kwslist(answers, names, threshold, title)),
            "detections.tsv": _encoded(detections.table(answers, threshold)),
        }
        if self._with_plots:
            parts |= {name: [png] for name, png in plots.draw(levels, title).items()}
        for name, blocks in parts.items():
            partial = self._partial(name)
            self._write(partial, blocks)
            partial.replace(self.folder / name)

    def _partial(self, name: str) -> Path:
        return self.folder / f".{name}.{os.getpid()}.partial"

    def _write(self, path: Path, blocks: Iterable[bytes]) -> None:
        try:
            with path.open("wb") as file:
                file.writelines(blocks)
        except BaseException as error:
            path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _unwritable(self.folder, error) from error
            raise


def curves_json(levels: Mapping[str, Level]) -> dict[str, Any]:
    """For each level the TWV curve in columns, P@1 to P@20, and the bins of the reliability diagram."""
    out: dict[str, Any] = {}
    for name, level in levels.items():
        line, told = level.curve().thinned(CURVE_POINTS), level.reliability()
        out[name] = {
            "twv": {
                "threshold": _rounded(line.thresholds),
                "twv": _rounded(line.twv),
                "miss": _rounded(line.miss),
                "false_alarm": _rounded(line.false_alarm, 9),
            },
            "precision_at": [round(value, 4) for value in level.precision(RANKS)],
            "reliability": [
                {
                    "low": b.low,
                    "high": b.high,
                    "hits": b.hits,
                    "score": round(b.score, 4),
                    "right": round(b.right, 4),
                }
                for b in told.bins
            ],
        }
    return out


def _rounded(values: npt.NDArray[np.float64], digits: int = DIGITS) -> list[float]:
    return [round(float(value), digits) for value in values]


def _encoded(lines: Iterator[str]) -> Iterator[bytes]:
    return (line.encode("utf-8", "backslashreplace") + b"\n" for line in lines)


def _unwritable(folder: Path, error: OSError) -> ReportError:
    return ReportError(f"the report cannot be written to {folder}: {error.strerror or error}")
