"""docs/scale.md has what `python -m bench.scale.cost` prints, and the model goes through what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.scale import cost

DOCS = Path(__file__).parents[2] / "docs"


def test_the_document_has_what_the_command_prints() -> None:
    printed = cost.table(cost.HOURS, cost.CORES, cost.RECORDING_MINUTES)
    assert printed in (DOCS / "scale.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(("hours", "milliseconds"), [(1_000, 30.8), (5_000, 114.0)])
def test_searches_take_what_was_measured(hours: float, milliseconds: float) -> None:
    assert cost.cost_of(hours).search_ms == pytest.approx(milliseconds + cost.MEASURED.tokenizer_ms)
    assert f"{milliseconds:g}" in (DOCS / "search.md").read_text(encoding="utf-8")


def test_more_cores_help_until_the_coordinator_is_busy() -> None:
    one = cost.cost_of(100_000)
    times = [cost.hours_to_index(one, cores) for cores in (2, 4, 1_000, 2_000)]
    assert times[0] == pytest.approx(2 * times[1])
    assert times[2] == times[3] == pytest.approx(100_000 * cost.MEASURED.coordinator_s / 3_600)
