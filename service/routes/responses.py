"""How errors are told of in the OpenAPI document."""

from __future__ import annotations

from typing import Any

from service.schemas import ErrorOut


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer with these statuses."""
    return {status: {"model": ErrorOut} for status in statuses}
