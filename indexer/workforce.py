"""Who does the tasks of a run: processes of this machine, or the workers of a cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self

from indexer.messages import Task, UseCodebook
from indexer.pool import Done


class Workforce(Protocol):
    """Whoever does tasks: worker processes of this machine, or those of a cluster. A context manager."""

    def __enter__(self) -> Self:
        """Itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let them go."""

    def use(self, codebook: UseCodebook) -> None:
        """From here on, tokens are of this codebook."""

    def run(self, tasks: Iterable[Task]) -> Iterator[Done]:
        """Results as they come, in any order."""
