"""JSON in a form's field or in a URL, read with one clear error."""

from __future__ import annotations

from typing import Annotated, TypeVar

from fastapi import Depends, Form, Query
from pydantic import JsonValue, TypeAdapter, ValidationError

from service.errors import BadRequest
from service.schemas import Metadata

T = TypeVar("T")

WHERE = 'a JSON object: recordings whose metadata contain it, as {"language": "ml"}'
_METADATA: TypeAdapter[dict[str, JsonValue]] = TypeAdapter(Metadata)


def read_json(adapter: TypeAdapter[T], text: str, field: str, form: str = "") -> T:
    """What `text` says; `form` tells what it should be. Raises BadRequest."""
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        message = f"{field} is {form}: " if form else f"{field}: "
        raise BadRequest(f"{message}{where + ': ' if where else ''}{first['msg']}", field) from error


Where = dict[str, JsonValue] | None


def _query(where: Annotated[str | None, Query(max_length=20_000, description=WHERE)] = None) -> Where:
    return None if where is None else read_json(_METADATA, where, "where")


def _form(where: Annotated[str | None, Form(max_length=20_000, description=WHERE)] = None) -> Where:
    return None if where is None else read_json(_METADATA, where, "where")


WhereQuery = Annotated[Where, Depends(_query)]
WhereForm = Annotated[Where, Depends(_form)]
