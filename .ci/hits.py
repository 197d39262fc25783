"""Read `sayagain search service/demo/query.opus --json` and fail unless the best hits are true ones."""

import csv
import json
import sys
from pathlib import Path

DEMO = Path(__file__).parent.parent / "service" / "demo"
BEST = 3  # hits at the top, each of which must be true


def table(name: str) -> list[dict[str, str]]:
    """The rows of one of the demo's tables."""
    with (DEMO / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def main() -> int:
    """0 where the first hits overlap places where the term is said."""
    answer = json.loads(sys.stdin.readline())
    term = next(row["term"] for row in table("terms.tsv") if row["clip"] == "query.opus")
    said = [row for row in table("truth.tsv") if row["term"] == term]
    true = [
        any(
            row["recording"] == hit["recording"]["name"]
            and float(row["start"]) < hit["end"]
            and float(row["end"]) > hit["start"]
            for row in said
        )
        for hit in answer["hits"]
    ]
    right = sum(true[: len(said)])
    sys.stdout.write(
        f"{term}: {right} of the first {len(said)} hits are among the {len(said)} places where it is said\n"
    )
    if len(true) < BEST or not all(true[:BEST]):
        sys.stderr.write(f"the first {BEST} hits are not all true: {true[:BEST]}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
