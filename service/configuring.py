"""`sayagain config`: the settings in force, and where each comes from."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from difflib import get_close_matches
from typing import Any
from urllib.parse import quote

from pydantic import SecretStr
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource
from rich.console import Console
from rich.table import Table

from service.console import JsonOption, failing, print_line, stderr
from service.output import printable
from service.settings import PREFIX, Settings

HIDDEN = "***"
SECRET_WORDS = ("password", "passfile", "secret", "token", "key")  # in the names of a URL's parameters


@dataclass(frozen=True)
class Setting:
    """A setting: its variable in the environment, its value (secrets hidden), where that comes from, what it is for."""

    name: str
    variable: str
    value: Any
    source: str  # default, environment or .env
    description: str


def config(as_json: JsonOption = False) -> None:
    """Print the settings in force, each with where it comes from; variables that are no settings are told of."""
    with failing():
        listed = in_force()
    for warning in unknown():
        stderr.print(f"sayagain: {warning}", markup=False, soft_wrap=True)
    if as_json:
        print_line({"settings": [asdict(setting) for setting in listed]})
        return
    table = Table()
    for column in ("variable", "value", "from", "what it is for"):
        table.add_column(column, overflow="fold")
    for setting in listed:
        value = "" if setting.value is None else printable(str(setting.value))
        table.add_row(setting.variable, value, setting.source, setting.description)
    Console(highlight=False).print(table, markup=False)


def in_force() -> list[Setting]:
    """All settings, in the order of the class. Raises ValidationError for a value that cannot be."""
    values = Settings()
    shown = values.model_dump(mode="json")
    sources = {"environment": EnvSettingsSource(Settings)(), ".env": DotEnvSettingsSource(Settings)()}
    return [
        Setting(
            name,
            PREFIX + name.upper(),
            _hidden(value) if isinstance(value := getattr(values, name), SecretStr) else shown[name],
            next((source for source, found in sources.items() if name in found), "default"),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def unknown() -> list[str]:
    """What to say of variables, of the environment and of .env, that look like settings and are none."""
    given = {*EnvSettingsSource(Settings).env_vars, *DotEnvSettingsSource(Settings).env_vars}
    names = sorted(name.lower().removeprefix(PREFIX.lower()) for name in given if name.upper().startswith(PREFIX))
    said = []
    for name in names:
        if name not in Settings.model_fields:
            close = get_close_matches(name, Settings.model_fields, 1)
            hint = f"; did you mean {PREFIX}{close[0].upper()}?" if close else ""
            said.append(f"{PREFIX}{printable(name).upper()} is no setting{hint}")
    return said


def _hidden(secret: SecretStr) -> str:
    """A URL without its passwords; of anything else nothing."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(secret.get_secret_value())
    except (ArgumentError, ValueError):
        return HIDDEN
    shut = {name: HIDDEN for name in url.query if any(word in name.lower() for word in SECRET_WORDS)}
    return url.update_query_dict(shut).render_as_string(hide_password=True).replace(quote(HIDDEN), HIDDEN)
