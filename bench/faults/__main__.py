"""Faults at random moments, many times: how often each was made, and whether an archive was what it ought to be.

    python -m bench.faults [--rounds N | --minutes M] [--fault NAME ...] [--seed S] [--at-once 4]

Needs the extra `dev`. Each fault is made so many times (or all in turn for so long), a few in one archive; after that a
rerun must finish, and each row must be what an undisturbed run makes. Prints a table in Markdown. Exit code 1 at the
first difference, with the seed that makes the same choices again (moments are the machine's own).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from model.tokenizer import DEFAULT_WEIGHTS
from tests.faults.bed import Bed
from tests.faults.errors import CannotInject, Difference
from tests.faults.kinds import FAULTS


def main() -> None:
    """Make faults, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--rounds", type=int, default=100)
    length.add_argument("--minutes", type=float)
    parser.add_argument("--fault", action="append", choices=list(FAULTS))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--at-once", type=int, default=4, help="faults in one archive")
    given = parser.parse_args()
    names = given.fault or list(FAULTS)
    made, whys = dict.fromkeys(names, 0), {}
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sayagain-faults-", ignore_cleanup_errors=True) as folder:
        bed = Bed(Path(folder), DEFAULT_WEIGHTS)
        try:
            bed.expected()
            while names:
                for name in list(names):
                    seed = random.SystemRandom().randrange(2**32) if given.seed is None else given.seed
                    times = given.at_once if given.minutes else min(given.at_once, given.rounds - made[name])
                    print(f"{time.monotonic() - began:6.0f} s: {name}, seed {seed}", file=sys.stderr)
                    try:
                        made[name] += FAULTS[name](bed, random.Random(seed), times)
                    except CannotInject as why:
                        whys[name] = str(why)
                        names.remove(name)
                    except Difference as difference:
                        print(f"{name} (--fault '{name}' --seed {seed}): {difference}", file=sys.stderr)
                        _table(made, whys, name)
                        raise SystemExit(1) from None
                    if given.minutes is None and made[name] >= given.rounds:
                        names.remove(name)
                    elif given.minutes and time.monotonic() - began > 60.0 * given.minutes:
                        names.clear()
                        break
        finally:
            bed.close()
    _table(made, whys)


def _table(made: dict[str, int], whys: dict[str, str], lost: str | None = None) -> None:
    print("| fault | made | survived |\n|---|---|---|")
    for name, times in made.items():
        print(f"| {name} | {whys.get(name, times)} | {f'not after {times}' if name == lost else times} |")


if __name__ == "__main__":
    main()
