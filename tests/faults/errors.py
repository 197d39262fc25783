"""What a test of faults ends with, when it does not end well."""

from __future__ import annotations

ATTEMPTS = 50  # at a few faults


class Difference(AssertionError):
    """Something is not as it would be without the fault."""


class Attempts:
    """Counts how often a fault is tried: where nothing comes of that, nothing ever will."""

    def __init__(self) -> None:
        self._made = 0

    def more(self, wanted: bool) -> bool:
        """Whether another one is wanted. Raises Difference where there were too many."""
        self._made += wanted
        if self._made > ATTEMPTS:
            raise Difference(f"the fault could not be made in {ATTEMPTS} attempts")
        return wanted


class CannotInject(Exception):
    """This machine does not allow the fault to be made; the message says why."""
