"""Every fault a few times at random moments; `python -m bench.faults` makes them as often as one likes."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.bed import Bed
from tests.faults.errors import CannotInject, Difference
from tests.faults.kinds import FAULTS

TIMES = 2
ONCE = {"hanging files", "hungry files", "job", "leaping clock", "new schema", "two archives"}  # they take long


@pytest.fixture(scope="module")
def bed(tokenizer_path: Path) -> Iterator[Bed]:
    with tempfile.TemporaryDirectory(prefix="sayagain-faults-") as folder:
        bed = Bed(Path(folder), tokenizer_path)
        yield bed
        bed.close()


@pytest.mark.parametrize("name", FAULTS)
def test_nothing_is_lost_and_nothing_doubled(bed: Bed, name: str) -> None:
    seed = random.SystemRandom().randrange(2**32)
    try:
        times = 1 if name in ONCE else TIMES
        assert FAULTS[name](bed, random.Random(seed), times) >= times
    except CannotInject as why:
        pytest.skip(str(why))
    except Difference as difference:
        raise AssertionError(f"{difference} (python -m bench.faults --fault '{name}' --seed {seed})") from difference
