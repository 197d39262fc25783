"""Plots of an evaluation as PNG: TWV over thresholds, misses against false alarms, reliability, precision at ranks.

The only module that needs matplotlib (extra `evaluate`), which it imports where it draws.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from service.evaluation.errors import PlotsMissing
from service.evaluation.figures import Level
from service.evaluation.reliability import LEAST_SCORE
from service.evaluation.twv import Curve, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 120
SIZE = 5.0  # inches, the side of one square plot
RANKS = 20
POINTS = 2_000  # of a curve: more than there are pixels
LOWEST_TWV = -0.5  # what is below is far from any threshold that one would choose
COLOURS = {"file": "#0a5c8f", "located": "#c04f15"}
ACTUAL, MAXIMUM = "o", "*"  # markers
GREY = "#666666"


def require() -> None:
    """Raises PlotsMissing where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PlotsMissing(
            "plots need matplotlib: pip install 'sayagain[evaluate]', or leave them out with --no-plots"
        ) from error


def draw(levels: Mapping[str, Level], title: str) -> dict[str, bytes]:
    """PNG files by name. Raises PlotsMissing."""
    require()
    curves = {name: (level, level.curve()) for name, level in levels.items()}
    return {
        "twv.png": _twv(curves, title),
        "misses.png": _misses(curves, title),
        "reliability.png": _reliability(levels, title),
        "precision.png": _precision(levels, title),
    }


def _figure(columns: int) -> tuple[Figure, list[Axes]]:
    """So many square plots beside each other; no pyplot, which holds on to figures and looks for screens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(SIZE * columns, SIZE), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(1, columns, column + 1) for column in range(columns)]
    for each in axes:
        each.grid(True, color="#dddddd", linewidth=0.6)
        each.set_axisbelow(True)
        each.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _png(figure: Figure, title: str) -> bytes:
    figure.suptitle(_plain(title), fontsize=11)
    held = io.BytesIO()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # of names in scripts that the font has not
        figure.savefig(held, format="png")
    return held.getvalue()


def _plain(text: str) -> str:
    """A name as a title: dollar signs would begin a formula."""
    return "".join(c if c.isprintable() else "?" for c in text).replace("$", r"\$")


def _twv(curves: Mapping[str, tuple[Level, Curve]], title: str) -> bytes:
    figure, axes = _figure(len(curves))
    for each, (name, (level, full)) in zip(axes, curves.items(), strict=True):
        line = full.thinned(POINTS)
        each.plot(line.thresholds, line.twv, color=COLOURS[name], drawstyle="steps-post")
        best, actual = full.maximum(), level.actual()
        _mark(each, best, best.threshold, best.twv, MAXIMUM, f"MTWV {best.twv:.3f} at {best.threshold:.3f}")
        # What lies under the plot is marked at its lower edge; its number says how far down it is.
        label = f"ATWV {actual.twv:.3f} at {actual.threshold:.3f}"
        _mark(each, actual, actual.threshold, max(LOWEST_TWV, actual.twv), ACTUAL, label)
        each.axhline(0.0, color=GREY, linewidth=0.8)
        each.set(
            xlim=(-0.02, 1.02), ylim=(LOWEST_TWV * 1.04, 1.0), xlabel="threshold", ylabel="term-weighted value",
            title=f"{_said(name)}, beta {level.beta:g}",
        )  # fmt: skip
        each.legend(loc="upper right", fontsize=9, framealpha=0.95)
    return _png(figure, title)


def _mark(axes: Axes, point: Point, x: float, y: float, marker: str, label: str) -> None:
    axes.plot(
        [x], [y], marker=marker, markersize=13 if marker == MAXIMUM else 8, linestyle="none", label=label,
        markerfacecolor="#f2b705" if marker == MAXIMUM else "white", markeredgecolor="black", clip_on=False, zorder=3,
    )  # fmt: skip


def _misses(curves: Mapping[str, tuple[Level, Curve]], title: str) -> bytes:
    """Misses against false alarms (a DET curve, with a straight axis for the misses)."""
    figure, axes = _figure(len(curves))
    for each, (name, (level, full)) in zip(axes, curves.items(), strict=True):
        line = full.thinned(POINTS)
        shown = line.false_alarm > 0
        lowest = float(line.false_alarm[shown].min()) if shown.any() else 1e-6
        each.plot(line.false_alarm[shown], line.miss[shown], color=COLOURS[name], drawstyle="steps-post")
        for point, marker, what in ((full.maximum(), MAXIMUM, "MTWV"), (level.actual(), ACTUAL, "ATWV")):
            label = f"{what}: {point.miss:.3f} missed, {_alarms(name, point.false_alarm)}"
            _mark(each, point, max(point.false_alarm, lowest), point.miss, marker, label)
        each.set_xscale("log")
        each.set(
            ylim=(0.0, 1.0), ylabel="missed, share of what is to be found", title=_said(name),
            xlabel="false alarms, share of other " + ("recordings" if name == "file" else "seconds"),
        )  # fmt: skip
        # Below: the curve may go from corner to corner.
        each.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), fontsize=9, frameon=False)
    return _png(figure, title)


def _alarms(name: str, rate: float) -> str:
    return f"{rate:.2%} false alarms" if name == "file" else f"{rate * 3_600:.2f} false alarms an hour"


def _reliability(levels: Mapping[str, Level], title: str) -> bytes:
    figure, axes = _figure(len(levels))
    for each, (name, level) in zip(axes, levels.items(), strict=True):
        told = level.reliability()
        each.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle="--", label="as promised")
        for b in told.bins:
            each.bar(b.low, b.right, b.high - b.low, align="edge", color=COLOURS[name], alpha=0.35, edgecolor="white")
            each.annotate(
                f"{b.hits:,}", ((b.low + b.high) / 2, 0), (0, 3), textcoords="offset points", ha="center", fontsize=7
            )
        error = "no scores" if told.error is None else f"expected calibration error {told.error:.3f}"
        each.plot(
            [b.score for b in told.bins], [b.right for b in told.bins], color=COLOURS[name], marker="o", label=error
        )
        each.set(
            xlim=(0, 1),
            ylim=(0, 1),
            xlabel=f"score, from {LEAST_SCORE:g} on (numbers: hits)",
            ylabel="share of right ones",
            title=_said(name),
        )
        each.legend(loc="upper left", fontsize=9, framealpha=0.95)
    return _png(figure, title)


def _precision(levels: Mapping[str, Level], title: str) -> bytes:
    figure, (axes,) = _figure(1)
    ranks = np.arange(1, RANKS + 1)
    for name, level in levels.items():
        values = level.precision(RANKS)
        dashes = "-" if name == "file" else "--"  # the two often lie on each other
        label = f"{_said(name)}: P@1 {values[0]:.3f}, P@10 {values[9]:.3f}"
        axes.plot(ranks, values, color=COLOURS[name], marker="o", markersize=4, linestyle=dashes, label=label)
    axes.set(xlim=(0.5, RANKS + 0.5), ylim=(0, 1), xlabel="k", ylabel="precision among the first k (P@k)")
    axes.set_xticks([1, *range(5, RANKS + 1, 5)])
    axes.legend(loc="upper right", fontsize=9, framealpha=0.95)
    return _png(figure, title)


def _said(name: str) -> str:
    return "by file" if name == "file" else "located in time"
