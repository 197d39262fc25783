"""`sayagain keys`: make, list and revoke the keys of the HTTP interface."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from service import keys
from service.console import JsonOption, failing, print_line, stderr
from service.output import printable
from service.settings import Settings

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


class ScopeOption(StrEnum):
    """What a key allows; each allows all before it too."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="what it is for")],
    scope: Annotated[
        ScopeOption, typer.Option(help="read: search and listen; write: delete recordings too; admin: whole archives")
    ] = ScopeOption.READ,
    per_minute: Annotated[
        int | None, typer.Option(min=1, help="so many requests a minute; without it, any number")
    ] = None,
) -> None:
    """Make a key and print it: it is shown this once. From the first key on, the service answers nobody without one."""
    from indexer import database
    from service.deps import open_database

    with failing():
        engine = open_database(Settings())
        with database.connect(engine) as connection, connection.begin():
            key = keys.create(connection, name, keys.Scope[scope.name], per_minute)
        typer.echo(key)
        stderr.print("this is shown once; only its hash is stored", markup=False)


@app.command("list")
def list_(as_json: JsonOption = False) -> None:
    """All keys, without their texts."""
    from indexer import database
    from service.deps import open_database

    with failing():
        with database.connect(open_database(Settings())) as connection:
            listed = keys.list_keys(connection)
        for key in listed:
            revoked_at = None if key.revoked_at is None else key.revoked_at.isoformat(timespec="seconds")
            about = {
                "id": key.id, "name": key.name, "scope": key.scope.name.lower(), "per_minute": key.per_minute,
                "created_at": key.created_at.isoformat(timespec="seconds"), "revoked_at": revoked_at,
            }  # fmt: skip
            if as_json:
                print_line(about)
            else:
                limit = "" if key.per_minute is None else f"  {key.per_minute} a minute"
                state = "" if revoked_at is None else f"  revoked {revoked_at}"
                typer.echo(
                    f"{key.id}  {printable(key.name)}  {about['scope']}{limit}  made {about['created_at']}{state}"
                )


@app.command()
def revoke(key_id: Annotated[int, typer.Argument(metavar="ID", help="as `keys list` shows it")]) -> None:
    """Let a key open nothing from now on."""
    from indexer import database
    from service.deps import open_database

    with failing():
        with database.connect(open_database(Settings())) as connection, connection.begin():
            keys.revoke(connection, key_id)
        stderr.print(f"revoked {key_id}", markup=False)
