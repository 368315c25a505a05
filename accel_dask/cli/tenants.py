"""The commands `tenant ...` and `user ...`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from accel_dask import admin
from accel_dask.cli import connection
from accel_dask.cli.local_tokens import forget_tokens, keep_token
from accel_dask.cli.options import ConfigOption, YesOption, key_value, number_of
from accel_dask.cli.terminal import confirm, console, listed
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import MIB, Quota
from accel_dask.store.records import read_view

tenants = typer.Typer(help="Tenants: who is served, within which bounds.", no_args_is_help=True)
users = typer.Typer(help="Users: who asks for a tenant.", no_args_is_help=True)


@tenants.command("create")
def tenant_create(
    name: Annotated[str, typer.Argument(help="Letters, digits, underscores.")],
    memory_mib: Annotated[int, typer.Option(help="Memory on one host, in MiB.")] = 1024,
    executor_mib: Annotated[int, typer.Option(help="Of that for running queries.")] = 384,
    threads: Annotated[int, typer.Option(help="DuckDB threads of an executor.")] = 2,
    concurrency: Annotated[int, typer.Option(help="Queries at once.")] = 4,
    deadline_ms: Annotated[int, typer.Option(help="Longest time of one query.")] = 10_000,
    max_result_rows: Annotated[int, typer.Option(help="Rows of one answer.")] = 1_000_000,
    cold_mib: Annotated[int, typer.Option(help="Memory of a cold executor, in MiB.")] = 384,
    max_cold_scan_mib: Annotated[
        int, typer.Option(help="Source bytes that one query may read cold, in MiB.")
    ] = 512,
    config: ConfigOption = None,
) -> None:
    """Create a tenant (or change its quota) and give it a user of the same name."""
    quota = Quota(
        memory_bytes_per_host=memory_mib * MIB,
        executor_memory_bytes=executor_mib * MIB,
        threads=threads,
        concurrency=concurrency,
        deadline_ms=deadline_ms,
        max_result_rows=max_result_rows,
        cold_memory_bytes=cold_mib * MIB,
        max_cold_scan_bytes=max_cold_scan_mib * MIB,
    )
    with connection.cluster_store(config) as store:
        is_new = read_view(store).tenant(TenantId(name)) is None
        admin.create_tenant(store, name, quota)
        if not is_new:
            console.print(f"tenant {name}: quota changed")
            return
        token = admin.create_user(store, name, name)
    console.print(f"tenant {name} created; user {name}, token {token}")
    if connection.is_local(config):
        keep_token(name, token)


@tenants.command("quota")
def tenant_quota(
    name: Annotated[str, typer.Argument(help="The tenant.")],
    changes: Annotated[
        list[str] | None, typer.Argument(help="FIELD=NUMBER, such as cpu_weight=300.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Change single fields of a tenant's quota while it is served; show it."""
    wanted = {field: number_of(field, value) for field, value in map(key_value, changes or [])}
    with connection.cluster_store(config) as store:
        quota = admin.change_quota(store, name, **wanted)
    table = Table("field", "now")
    for field, value in asdict(quota).items():
        table.add_row(field, f"[bold]{value:,}[/]" if field in wanted else f"{value:,}")
    console.print(table)


@tenants.command("delete")
def tenant_delete(
    name: Annotated[str, typer.Argument()],
    yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """Take a tenant away, with its users and datasets. Its sources keep their data."""
    with connection.cluster_store(config) as store:
        has = admin.holdings(store, name)
        confirm(
            f"delete tenant {name} with {len(has.users)} user(s) ({listed(has.users)}) and "
            f"{len(has.datasets)} dataset(s) ({listed(has.datasets)})?",
            yes,
        )
        gone = admin.delete_tenant(store, name)
    console.print(f"tenant {name} deleted; hosts return its memory")
    if connection.is_local(config):
        forget_tokens(gone.users)


@users.command("rotate-token")
def user_rotate_token(
    name: Annotated[str, typer.Argument()],
    yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """Give a user another token and refuse the old one."""
    confirm(f"give user {name} another token? Who uses the old one is refused", yes)
    with connection.cluster_store(config) as store:
        token = admin.rotate_token(store, name)
    console.print(f"user {name}, token {token}")
    if connection.is_local(config):
        keep_token(name, token)
