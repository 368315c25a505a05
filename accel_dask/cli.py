"""The `accel-dask` command."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from accel_dask import admin
from accel_dask.config import Settings, load_settings
from accel_dask.current import (
    find_current,
    forget_current,
    home,
    remember,
    require_current,
    write_current,
)
from accel_dask.drill.plot import check_can_plot
from accel_dask.drill.verdicts import Attack
from accel_dask.errors import AccelError, ConfigError, StoreUnavailable, WaitTimedOut
from accel_dask.flight_errors import from_flight
from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import ColdPolicy, Dataset, SourceSpec, Spread
from accel_dask.model.fallback import FallbackPolicy, FallbackSpec
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.rollup import parse_rollup, read_rollups, told_rollup
from accel_dask.model.tenant import MIB, Quota, User
from accel_dask.scheduler_plugin.waiting import request_waits_for, waiting_for
from accel_dask.status import status_tables
from accel_dask.store.base import StateStore
from accel_dask.store.connect import open_store
from accel_dask.store.mirror import Mirror
from accel_dask.store.records import read_view
from accel_dask.suggest import ask_for_suggestions

app = typer.Typer(
    name="accel-dask",
    help="A fast, fair, never-wrong in-memory serving layer above a lakehouse.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
tenants = typer.Typer(help="Tenants: who is served, within which bounds.", no_args_is_help=True)
datasets = typer.Typer(help="Datasets: named tables, each fed by one source.", no_args_is_help=True)
users = typer.Typer(help="Users: who asks for a tenant.", no_args_is_help=True)
app.add_typer(tenants, name="tenant")
app.add_typer(users, name="user")
app.add_typer(datasets, name="dataset")
drills = typer.Typer(help="Drills on the running cluster.", no_args_is_help=True)
app.add_typer(drills, name="drill")

console = Console()

_INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_SILENT_SECONDS = 15.0
"""A store that says nothing for so long was stopped, or is away for longer than we wait."""
_INTERRUPTED = 130
"""Exit code of what was interrupted before it was done."""

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="Settings file of the cluster (default: the local one's)."),
]


class Data(StrEnum):
    """What the demo can serve."""

    NYCFLIGHTS = "nycflights"


# A cluster on this machine


@app.command()
def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the last step.")] = False,
    data: Annotated[Data, typer.Option(help="Which real data to serve.")] = Data.NYCFLIGHTS,
    masters: Annotated[int, typer.Option(help="etcd members: 1, or 3 for a quorum.")] = 1,
    workers: Annotated[int, typer.Option(help="Worker hosts.")] = 1,
) -> None:
    """Show the whole of it on real flights: publish, load, query, refresh under load.

    Exit code 0 only if every step held. Stays up afterwards unless --once is given.
    """
    from accel_dask.demo import Demo

    del data
    cluster = LocalAccelCluster(LocalOptions(masters=masters, workers=workers))
    shown = Demo(cluster, console)
    every_step_held = False
    with _until_interrupted() as interrupted:
        try:
            shown.run()
            every_step_held = True
            if not once:
                _remember_demo(cluster, shown.tokens)
                console.print("\n[bold]up until Ctrl-C[/]")
                interrupted.wait()
        finally:
            shown.close()
            _stop(cluster)
    if not every_step_held:
        raise typer.Exit(_INTERRUPTED)


@app.command()
def up(
    directory: Annotated[
        Path | None,
        typer.Option(help="Where it keeps its state (default: ~/.accel-dask/cluster)."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Worker hosts.")] = 1,
    masters: Annotated[int, typer.Option(help="etcd members: 1, or 3 for a quorum.")] = 1,
    gateways: Annotated[int, typer.Option(help="Gateway processes.")] = 1,
    gateway_port: Annotated[int, typer.Option(help="Of the first gateway; 0: any.")] = 31337,
    dashboard_port: Annotated[int, typer.Option(help="Of the Dask dashboard; 0: any.")] = 8787,
    detach: Annotated[bool, typer.Option("--detach", help="Go to the background.")] = False,
) -> None:
    """Start a cluster on this machine. The same directory brings the same cluster back."""
    running = find_current()
    if running is not None:
        raise ConfigError(
            f"a cluster already runs in {running.directory} (process {running.pid}); "
            "stop it with `accel-dask down`"
        )
    if detach:
        _detach()
        return
    options = LocalOptions(
        directory=directory or home() / "cluster",
        workers=workers,
        masters=masters,
        gateways=gateways,
        gateway_port=gateway_port,
        dashboard_port=dashboard_port,
    )
    cluster = LocalAccelCluster(options)
    is_up = False
    with _until_interrupted() as interrupted:
        try:
            cluster.start(lambda text: console.print(f"[dim]{text}[/]"))
            remember(cluster, _read_tokens(cluster.directory))
            console.print(f"gateway    {', '.join(cluster.gateway_urls)}")
            console.print(f"dashboard  {cluster.dashboard_url}")
            console.print("[bold]up until Ctrl-C[/]; in another terminal: accel-dask --help")
            is_up = True
            interrupted.wait()
        finally:
            _stop(cluster)
    if not is_up:
        raise typer.Exit(_INTERRUPTED)


@app.command()
def down() -> None:
    """Stop the cluster on this machine. What it had published is there at the next `up`."""
    current = require_current()
    os.kill(current.pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while find_current() is not None or Path(f"/proc/{current.pid}").exists():
        if time.monotonic() > deadline:
            raise AccelError(f"process {current.pid} still runs after 60 s; look at its output")
        time.sleep(0.1)
    console.print("stopped")


# What runs


@app.command()
def status(config: ConfigOption = None) -> None:
    """Hosts, datasets, epochs with their reasons, executors, gateways."""
    with _store(config) as store:
        view = read_view(store)
    current = find_current() if _is_local(config) else None
    if current is not None:
        console.print(f"gateway    {', '.join(current.gateways)}")
        console.print(f"dashboard  {current.dashboard}")
    leader = view.leader
    console.print(f"master     {leader.master if leader else '[red]none leads[/]'}")
    for table in status_tables(view):
        console.print(table)


@app.command()
def publish(
    dataset: Annotated[str, typer.Argument(help="TENANT.DATASET")],
    snapshot: Annotated[
        str | None, typer.Option(help="The source's snapshot id (default: the newest).")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is READY or FAILED.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 600.0,
    config: ConfigOption = None,
) -> None:
    """Bring a dataset's snapshot into memory and switch to it."""
    dataset_id = _dataset_id(dataset)
    with _store(config) as store:
        requested = admin.publish(store, dataset_id, snapshot)
        if not wait:
            console.print(f"requested ({requested.nonce})")
            return
        mirror = Mirror(store)
        mirror.start()
        try:
            started = time.monotonic()
            with console.status(f"publishing {dataset_id}") as spinner:
                result = _wait_showing(mirror, requested, timeout, spinner)
        finally:
            mirror.close()
    if result.is_new:
        seconds = time.monotonic() - started
        console.print(f"{result.epoch} READY after {seconds:.1f} s: {result.epoch.snapshot_id}")
    else:
        console.print(f"{result.epoch} already serves {result.epoch.snapshot_id}")


@app.command()
def query(
    sql: Annotated[str, typer.Argument(help="One SELECT.")],
    user: Annotated[str | None, typer.Option(help="Default: the only user known here.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="ACCEL_TOKEN", help="Default: the one kept here.")
    ] = None,
    gateway: Annotated[str | None, typer.Option(help="grpc://host:port")] = None,
    limit: Annotated[int, typer.Option(help="Rows to print.")] = 50,
    explain: Annotated[bool, typer.Option("--explain", help="Show the plan instead.")] = False,
) -> None:
    """Ask a question over ADBC and print the answer with its receipt."""
    from adbc_driver_flightsql import dbapi

    from accel_dask.flight_client import FlightSession

    url, user, token = _credentials(gateway, user, token)
    with FlightSession(url, user, token) as session:
        if explain:
            console.print(session.explain(sql), markup=False, highlight=False)
            return
        options = {"username": user, "password": token}
        try:
            with (
                dbapi.connect(url, db_kwargs=options, autocommit=True) as connection,
                connection.cursor() as cursor,
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


# Tenants and datasets


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
    with _store(config) as store:
        is_new = read_view(store).tenant(TenantId(name)) is None
        admin.create_tenant(store, name, quota)
        if not is_new:
            console.print(f"tenant {name}: quota changed")
            return
        token = admin.create_user(store, name, name)
    console.print(f"tenant {name} created; user {name}, token {token}")
    if _is_local(config):
        _keep_token(name, token)


@tenants.command("quota")
def tenant_quota(
    name: Annotated[str, typer.Argument(help="The tenant.")],
    changes: Annotated[
        list[str] | None, typer.Argument(help="FIELD=NUMBER, such as cpu_weight=300.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Change single fields of a tenant's quota while it is served; show it."""
    wanted = {field: _number(field, value) for field, value in map(_key_value, changes or [])}
    with _store(config) as store:
        quota = admin.change_quota(store, name, **wanted)
    table = Table("field", "now")
    for field, value in asdict(quota).items():
        table.add_row(field, f"[bold]{value:,}[/]" if field in wanted else f"{value:,}")
    console.print(table)


def _number(field: str, value: str) -> int:
    try:
        return int(value)
    except ValueError as error:
        raise ConfigError(f"{field} must be a whole number, not {value!r}") from error


YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@tenants.command("delete")
def tenant_delete(
    name: Annotated[str, typer.Argument()],
    yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """Take a tenant away, with its users and datasets. Its sources keep their data."""
    with _store(config) as store:
        has = admin.holdings(store, name)
        _confirm(
            f"delete tenant {name} with {len(has.users)} user(s) ({_listed(has.users)}) and "
            f"{len(has.datasets)} dataset(s) ({_listed(has.datasets)})?",
            yes,
        )
        gone = admin.delete_tenant(store, name)
    console.print(f"tenant {name} deleted; hosts return its memory")
    if _is_local(config):
        _forget_tokens(gone.users)


@datasets.command("delete")
def dataset_delete(
    dataset: Annotated[str, typer.Argument(help="TENANT.DATASET")],
    yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """Take a dataset away: it is answered no more. Its source keeps its data."""
    dataset_id = _dataset_id(dataset)
    with _store(config) as store:
        view = read_view(store)
        serving = view.serving_epoch(dataset_id)
        _confirm(f"delete {dataset_id} ({serving or 'no epoch'} serves)?", yes)
        admin.delete_dataset(store, dataset_id)
    console.print(f"dataset {dataset_id} deleted; hosts return its memory")


@users.command("rotate-token")
def user_rotate_token(
    name: Annotated[str, typer.Argument()],
    yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """Give a user another token and refuse the old one."""
    _confirm(f"give user {name} another token? Who uses the old one is refused", yes)
    with _store(config) as store:
        token = admin.rotate_token(store, name)
    console.print(f"user {name}, token {token}")
    if _is_local(config):
        _keep_token(name, token)


def _confirm(question: str, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True)


def _listed(names: Sequence[object], most: int = 5) -> str:
    told = ", ".join(str(name) for name in names[:most])
    return told + (", ..." if len(names) > most else "") if names else "none"


@datasets.command("create")
def dataset_create(
    dataset: Annotated[str, typer.Argument(help="TENANT.DATASET")],
    table: Annotated[str | None, typer.Option(help="Iceberg table, NAMESPACE.NAME.")] = None,
    catalog_uri: Annotated[str | None, typer.Option(help="Of the Iceberg catalog.")] = None,
    warehouse: Annotated[str | None, typer.Option(help="Of the Iceberg catalog.")] = None,
    parquet: Annotated[str | None, typer.Option(help="Directory of Parquet files.")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="Further KEY=VALUE for the connector.")
    ] = None,
    columns: Annotated[str, typer.Option(help="Comma-separated; default: all.")] = "",
    row_filter: Annotated[str | None, typer.Option(help="SQL predicate on rows to hold.")] = None,
    sort_by: Annotated[str, typer.Option(help="Comma-separated; default: the source's.")] = "",
    replicas: Annotated[int, typer.Option(help="On how many hosts.")] = 1,
    spread: Annotated[
        Spread, typer.Option(help="Lay shards together, spread over hosts, or on every host.")
    ] = Spread.TOGETHER,
    rollup: Annotated[
        list[str] | None,
        typer.Option(help='"NAME: DIMENSIONS; MEASURES"; see `dataset rollup`.'),
    ] = None,
    poll_seconds: Annotated[float, typer.Option(help="Look for new snapshots; 0: never.")] = 0.0,
    cold: Annotated[
        ColdPolicy,
        typer.Option(help="May shards that are not in memory be read from the source's files?"),
    ] = ColdPolicy.REFUSE,
    hot_shards: Annotated[
        int | None,
        typer.Option(help="With --cold allow: hold only the last N shards (default: what fits)."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Declare a dataset (or change its declaration). `publish` brings it into memory."""
    dataset_id = _dataset_id(dataset)
    options = dict(_key_value(text) for text in option or [])
    if parquet:
        # The master looks for it, and its working directory is another one.
        options["path"] = parquet if "://" in parquet else str(Path(parquet).absolute())
    elif table:
        options |= {"table": table}
        options |= {"catalog_uri": catalog_uri} if catalog_uri else {}
        options |= {"warehouse": warehouse} if warehouse else {}
    elif "metadata_location" not in options:
        raise ConfigError("name the source: --parquet DIRECTORY, or --table with --catalog-uri")
    source = SourceSpec(
        connector="parquet" if parquet else "iceberg", options=tuple(sorted(options.items()))
    )
    declared = Dataset(
        tenant=dataset_id.tenant,
        name=dataset_id.name,
        source=source,
        columns=_names(columns),
        row_filter=row_filter,
        sort_by=_names(sort_by),
        replicas=replicas,
        spread=spread,
        rollups=tuple(map(parse_rollup, rollup or [])),
        poll_seconds=poll_seconds,
        cold=cold,
        hot_shards=hot_shards,
    )
    with _store(config) as store:
        was = read_view(store).dataset(dataset_id)
        declared = replace(declared, fallback=was.fallback if was else None)
        admin.create_dataset(store, declared)
    console.print(f"dataset {dataset_id} declared; now: accel-dask publish {dataset_id}")


@datasets.command("fallback")
def dataset_fallback(
    dataset: Annotated[str, typer.Argument(help="TENANT.DATASET")],
    engine: Annotated[str, typer.Option(help="flightsql, mysql or postgresql.")] = "",
    policy: Annotated[
        FallbackPolicy, typer.Option(help="For which reasons the engine is asked.")
    ] = FallbackPolicy.ON_ERROR,
    option: Annotated[
        list[str] | None,
        typer.Option(help="KEY=VALUE: uri, user, password_env, dialect, table, time_travel, ..."),
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="No engine any more.")] = False,
    config: ConfigOption = None,
) -> None:
    """Put an OLAP engine behind a dataset, for what memory does not answer. At once."""
    dataset_id = _dataset_id(dataset)
    if off == bool(engine):
        raise ConfigError("name an --engine, or say --off")
    options = tuple(sorted(_key_value(text) for text in option or []))
    spec = None if off else FallbackSpec(engine=engine, policy=policy, options=options)
    with _store(config) as store:
        admin.change_fallback(store, dataset_id, spec)
    console.print(f"dataset {dataset_id}: " + ("no fallback" if off else f"{engine}, {policy}"))


@datasets.command("rollup")
def dataset_rollup(
    dataset: Annotated[str, typer.Argument(help="TENANT.DATASET")],
    declared: Annotated[
        list[str] | None, typer.Argument(help='"NAME: DIMENSIONS; MEASURES", one or more.')
    ] = None,
    drop: Annotated[list[str] | None, typer.Option(help="Name of one to drop.")] = None,
    file: Annotated[Path | None, typer.Option(help="TOML with [[rollup]] tables.")] = None,
    config: ConfigOption = None,
) -> None:
    """Add rollups to a dataset, change or drop them. The next `publish` builds them.

    Dimensions are columns or date_trunc('day', column); measures are count(*), or count, sum, min,
    max or avg of a column: "daily: date_trunc('day', ts), carrier; count(*), sum(delay)".
    """
    dataset_id = _dataset_id(dataset)
    add = [
        *map(parse_rollup, declared or []),
        *(read_rollups(file.read_text(encoding="utf-8")) if file else ()),
    ]
    if not add and not drop:
        raise ConfigError("name a rollup to add or to --drop; see --help")
    with _store(config) as store:
        changed = admin.change_rollups(store, dataset_id, add, drop or [])
    for one in changed.rollups:
        console.print(told_rollup(one), markup=False, highlight=False)
    console.print(f"now: accel-dask publish {dataset_id}")


@app.command()
def suggest(
    what: Annotated[
        str, typer.Argument(metavar="[TENANT[.DATASET]]", help="Default: the user's tenant.")
    ] = "",
    user: Annotated[str | None, typer.Option(help="Default: the only user known here.")] = None,
    token: Annotated[
        str | None, typer.Option(envvar="ACCEL_TOKEN", help="Default: the one kept here.")
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Propose rollups from what the gateways were asked, with the time that each would save."""
    with _store(config) as store:
        view = read_view(store)
    wanted, _, name = what.partition(".")
    users = {one.name: one.tenant for one in view.records(User)}
    _, user, token = _credentials("", user or (wanted if wanted in users else None), token)
    tenant = users.get(user, TenantId(user))
    if wanted and wanted != tenant:
        raise ConfigError(f"user {user} is of tenant {tenant}, not {wanted}; give --user")
    dataset = _dataset_id(what) if name else None
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


# Drills


@drills.command("noisy-neighbour")
def noisy_neighbour(
    attack: Annotated[
        list[Attack] | None, typer.Option(help="Only this one; may be repeated.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Of each of the two tenants.", min=1000)] = 6_000_000,
    seconds: Annotated[float, typer.Option(help="Of each measurement.", min=1.0)] = 15.0,
    rate: Annotated[float, typer.Option(help="The victim's queries per second.", min=1.0)] = 30.0,
    plot: Annotated[
        Path | None, typer.Option(help="Save a picture: .png, .svg or .pdf (needs the extra plot).")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Save all figures; - prints them instead.")
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(help="Where to write the data, if hosts do not share this machine's /tmp."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Attack the running cluster as one tenant and measure what another one sees of it.

    Makes two tenants with synthetic data and takes them away again. Exit code 1 if a limit did not
    hold.
    """
    from accel_dask.drill.drill import Plan
    from accel_dask.drill.show import show_drill
    from accel_dask.drill.site import DrillSite, Target

    if plot is not None:
        check_can_plot(plot)
    out = Console(stderr=True) if json_file == Path("-") else console
    current = find_current() if _is_local(config) else None
    plan = Plan(attacks=tuple(attack or Attack), seconds=seconds, rate=rate)
    exit_code = _INTERRUPTED
    with _until_interrupted(), _store(config) as store, Mirror(store).start() as mirror:
        target = Target(store=store, mirror=mirror, roots=(current.pid,) if current else ())
        site = DrillSite(
            target, rows=rows, directory=directory, say=lambda text: out.print(f"[dim]{text}[/]")
        )
        try:
            site.set_up()
            has_held = show_drill(site, plan, out, plot=plot, json_file=json_file)
            exit_code = 0 if has_held else 1
        finally:
            _ignore_interrupts()  # a second Ctrl-C must not leave the tenants behind
            site.take_down()
    if exit_code:
        raise typer.Exit(exit_code)


# Parts


@contextmanager
def _store(config: Path | None) -> Iterator[StateStore]:
    with open_store(_settings(config).store) as store:
        yield store


def _settings(config: Path | None) -> Settings:
    if _is_local(config):
        return load_settings(require_current().config_file)
    return load_settings(config)


def _is_local(config: Path | None) -> bool:
    """Whether the cluster that `accel-dask up` started is meant."""
    return config is None and "ACCEL_CONFIG" not in os.environ


def _credentials(gateway: str | None, user: str | None, token: str | None) -> tuple[str, str, str]:
    current = find_current() if gateway is None or token is None else None
    known = current.tokens if current else {}
    if gateway is None:
        gateway = require_current().gateways[0]
    if user is None:
        if len(known) != 1:
            raise ConfigError(f"name the --user (known here: {', '.join(known) or 'none'})")
        user = next(iter(known))
    token = token or known.get(user)
    if token is None:
        raise ConfigError(f"no token of user {user} is kept here; give --token or ACCEL_TOKEN")
    return gateway, user, token


def _dataset_id(text: str) -> DatasetId:
    tenant, dot, name = text.partition(".")
    if not (tenant and dot and name):
        raise ConfigError(f"{text!r} does not name a dataset; write TENANT.DATASET")
    return DatasetId(TenantId(tenant), name)


def _key_value(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"{text!r}: write KEY=VALUE")
    return key, value


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _wait_showing(
    mirror: Mirror, requested: admin.Requested, timeout: float, spinner: Any
) -> admin.Published:
    waits_for = ""

    def show(view: ClusterView) -> bool:
        nonlocal waits_for
        waits_for = _waits_for(view, requested.dataset)
        spinner.update(waits_for)
        return admin.publish_result(view, requested) is not None

    deadline = time.monotonic() + timeout
    while True:
        try:
            mirror.wait_for(show, min(1.0, max(0.0, deadline - time.monotonic())))
        except WaitTimedOut as error:
            if time.monotonic() - mirror.last_contact > _SILENT_SECONDS:
                raise StoreUnavailable(
                    f"the cluster's state store went silent while {requested.dataset} was being "
                    "published; the request is answered when it is back"
                ) from error
            if time.monotonic() >= deadline:
                raise WaitTimedOut(
                    f"{requested.dataset} was not published within {timeout:g} s ({waits_for}). "
                    "It goes on; see `accel-dask status`"
                ) from error
        else:
            return admin.wait_published(mirror, requested, 5.0)


def _waits_for(view: ClusterView, dataset: DatasetId) -> str:
    epoch = view.open_epoch(dataset)
    request = view.publish_request(dataset)
    if epoch is not None:
        return f"{epoch} {epoch.state}: {waiting_for(view, epoch) or epoch.reason}"
    return f"{dataset}: {request_waits_for(view, request)}" if request else str(dataset)


def _remember_demo(cluster: LocalAccelCluster, tokens: dict[str, str]) -> None:
    running = find_current()
    if running is None:
        remember(cluster, tokens)
        return
    console.print(
        f"another cluster runs in {running.directory}: accel-dask commands go to that one; to ask "
        "this one, give --gateway, --user and --token"
    )


def _keep_token(user: str, token: str) -> None:
    current = require_current()
    tokens = {**current.tokens, user: token}
    write_current(replace(current, tokens=tokens))
    _write_tokens(Path(current.directory), tokens)


def _forget_tokens(users: Sequence[str]) -> None:
    current = require_current()
    tokens = {user: token for user, token in current.tokens.items() if user not in users}
    write_current(replace(current, tokens=tokens))
    _write_tokens(Path(current.directory), tokens)


def _write_tokens(directory: Path, tokens: dict[str, str]) -> None:
    file = directory / "tokens"
    file.touch(mode=0o600)
    file.write_text("".join(f"{user} {token}\n" for user, token in tokens.items()))


def _read_tokens(directory: Path) -> dict[str, str]:
    file = directory / "tokens"
    if not file.exists():
        return {}
    pairs = (line.split(maxsplit=1) for line in file.read_text().splitlines())
    return {user: token.strip() for user, token in pairs}


def _detach() -> None:
    log = home() / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "accel_dask.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    with console.status("starting"):
        while find_current() is None:
            if process.poll() is not None:
                raise AccelError(f"the cluster did not start:\n{log.read_text()}")
            time.sleep(0.1)
    current = require_current()
    console.print(f"up (process {current.pid}, log {log})")
    console.print(f"gateway    {', '.join(current.gateways)}")
    console.print(f"dashboard  {current.dashboard}")


def _stop(cluster: LocalAccelCluster) -> None:
    """End the cluster. A second Ctrl-C must not leave half of it behind."""
    _ignore_interrupts()
    forget_current(os.getpid())
    console.print("[dim]stopping[/]")
    cluster.close()


def _ignore_interrupts() -> None:
    for number in _INTERRUPTS:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _until_interrupted() -> Iterator[threading.Event]:
    """SIGTERM, a closed terminal and Ctrl-C interrupt whatever goes on."""
    interrupted = threading.Event()

    def stop(number: int, frame: object) -> None:
        del number, frame
        interrupted.set()
        raise KeyboardInterrupt

    for number in _INTERRUPTS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup and "&" leave it
            signal.signal(number, stop)
    with suppress(KeyboardInterrupt):
        yield interrupted


def main() -> None:
    """Entry point: errors of ours are one line, not a traceback."""
    logging.basicConfig(level=os.environ.get("ACCEL_LOG", "WARNING"))
    try:
        app()
    except AccelError as error:
        Console(stderr=True).print(f"[red]error[/] {error}", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
