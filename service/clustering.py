"""`sayagain cluster`: PostgreSQL on several servers."""

from __future__ import annotations

import typer

from service.console import failing, stderr
from service.settings import Settings

app = typer.Typer(no_args_is_help=True, help="PostgreSQL on several servers, by its extension Citus")


@app.callback()
def cluster() -> None:
    """PostgreSQL on several servers, by its extension Citus."""


@app.command()
def init() -> None:
    """Spread the tables over the servers of a Citus cluster: segments by recording, what they refer to everywhere.

    The database URL is the coordinator's. What lies right already stays; the service and everything that indexes has to
    be stopped meanwhile. See docs/scale.md.
    """
    from indexer import distribution
    from service.deps import open_database

    with failing():
        placed = distribution.distribute(open_database(Settings()))
        told = f"placed {', '.join(placed)}" if placed else "all tables lie as they ought to"
        stderr.print(told, markup=False)
