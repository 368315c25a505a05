"""Commands that ask as a user: query, and suggest, of what was asked."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from accel_dask.cli import connection
from accel_dask.cli.local_tokens import credentials
from accel_dask.cli.options import ConfigOption, TokenOption, UserOption, dataset_id_of
from accel_dask.cli.terminal import console
from accel_dask.errors import ConfigError
from accel_dask.flight_errors import from_flight
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import User
from accel_dask.store.records import read_view
from accel_dask.suggest import ask_for_suggestions


def query(
    sql: Annotated[str, typer.Argument(help="One SELECT.")],
    user: UserOption = None,
    token: TokenOption = None,
    gateway: Annotated[str | None, typer.Option(help="grpc://host:port")] = None,
    limit: Annotated[int, typer.Option(help="Rows to print.")] = 50,
    explain: Annotated[bool, typer.Option("--explain", help="Show the plan instead.")] = False,
) -> None:
    """Ask a question over ADBC and print the answer with its receipt."""
    from adbc_driver_flightsql import dbapi

    from accel_dask.flight_client import FlightSession

    url, user, token = credentials(gateway, user, token)
    with FlightSession(url, user, token) as session:
        if explain:
            console.print(session.explain(sql), markup=False, highlight=False)
            return
        options = {"username": user, "password": token}
        try:
            with (
                dbapi.connect(url, db_kwargs=options, autocommit=True) as adbc,
                adbc.cursor() as cursor,
            ):
                cursor.execute(sql)
                names = [column[0] for column in cursor.description or ()]
                rows = cursor.fetchmany(limit + 1)
        except dbapi.Error as error:
            raise from_flight(error) from error
        table = Table(*names)
        for row in rows[:limit]:
            table.add_row(*("" if value is None else str(value) for value in row))
        console.print(table)
        if len(rows) > limit:
            console.print(f"[dim]more than {limit} rows; see --limit[/]")
        receipt = session.receipts(1)[0]
        epochs = ", ".join(f"{e['dataset']}@{e['epoch']}" for e in receipt["datasets"])
        console.print(f"[dim]{receipt['route']} · {epochs} · {receipt['total_ms']:.1f} ms[/]")


def suggest(
    what: Annotated[
        str, typer.Argument(metavar="[TENANT[.DATASET]]", help="Default: the user's tenant.")
    ] = "",
    user: UserOption = None,
    token: TokenOption = None,
    config: ConfigOption = None,
) -> None:
    """Propose rollups from what the gateways were asked, with the time that each would save."""
    with connection.cluster_store(config) as store:
        view = read_view(store)
    wanted, _, name = what.partition(".")
    users = {one.name: one.tenant for one in view.records(User)}
    _, user, token = credentials("", user or (wanted if wanted in users else None), token)
    tenant = users.get(user, TenantId(user))
    if wanted and wanted != tenant:
        raise ConfigError(f"user {user} is of tenant {tenant}, not {wanted}; give --user")
    dataset = dataset_id_of(what) if name else None
    suggestions = ask_for_suggestions(view, tenant, (user, token), dataset)
    if not suggestions:
        console.print("nothing to suggest: no query of the history would read fewer rows")
    for one in suggestions:
        asked = one.candidate
        console.print(
            f"[bold]{asked.dataset}[/] {one.rows:,} rows -> about {one.rollup_rows:,}: answers "
            f"{asked.queries:,} queries ({len(asked.answers)} shapes) that took "
            f"{asked.total_ms / 1000:.1f} s, of which it would save up to "
            f"{one.saved_ms / 1000:.1f} s"
        )
        console.print(f"  {one.command}", markup=False, highlight=False, soft_wrap=True)
