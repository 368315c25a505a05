"""The `accel-dask` command."""

from __future__ import annotations

import logging
import os
import sys

import typer
from rich.console import Console

from accel_dask.cli.datasets import datasets
from accel_dask.cli.drills import drills
from accel_dask.cli.local_cluster import demo, down, up
from accel_dask.cli.publishing import publish
from accel_dask.cli.queries import query, suggest
from accel_dask.cli.status import status
from accel_dask.cli.tenants import tenants, users
from accel_dask.errors import AccelError

app = typer.Typer(
    name="accel-dask",
    help="A fast, fair, never-wrong in-memory serving layer above a lakehouse.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
for command in (demo, up, down, status, publish, query, suggest):
    app.command()(command)
app.add_typer(tenants, name="tenant")
app.add_typer(users, name="user")
app.add_typer(datasets, name="dataset")
app.add_typer(drills, name="drill")


def main() -> None:
    """Entry point: errors of ours are one line, not a traceback."""
    logging.basicConfig(level=os.environ.get("ACCEL_LOG", "WARNING"))
    try:
        app()
    except AccelError as error:
        Console(stderr=True).print(f"[red]error[/] {error}", highlight=False)
        sys.exit(1)
