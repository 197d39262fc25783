"""What a test of faults ends with, when it does not end well."""

from __future__ import annotations


class Difference(AssertionError):
    """Something is not as it would be without the fault."""


class CannotInject(Exception):
    """This machine does not allow the fault to be made; the message says why."""
