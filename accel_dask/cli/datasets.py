"""The commands `dataset ...`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from accel_dask import admin
from accel_dask.cli import connection
from accel_dask.cli.options import (
    ConfigOption,
    DatasetArgument,
    YesOption,
    dataset_id_of,
    key_value,
    names_of,
)
from accel_dask.cli.terminal import confirm, console
from accel_dask.errors import ConfigError
from accel_dask.model.dataset import ColdPolicy, Dataset, SourceSpec, Spread
from accel_dask.model.fallback import FallbackPolicy, FallbackSpec
from accel_dask.model.rollup import parse_rollup, read_rollups, told_rollup
from accel_dask.store.records import read_view

datasets = typer.Typer(help="Datasets: named tables, each fed by one source.", no_args_is_help=True)


@datasets.command("create")
def dataset_create(
    dataset: DatasetArgument,
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
    dataset_id = dataset_id_of(dataset)
    options = dict(key_value(text) for text in option or [])
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
        columns=names_of(columns),
        row_filter=row_filter,
        sort_by=names_of(sort_by),
        replicas=replicas,
        spread=spread,
        rollups=tuple(map(parse_rollup, rollup or [])),
        poll_seconds=poll_seconds,
        cold=cold,
        hot_shards=hot_shards,
    )
    with connection.cluster_store(config) as store:
        was = read_view(store).dataset(dataset_id)
        declared = replace(declared, fallback=was.fallback if was else None)
        admin.create_dataset(store, declared)
    console.print(f"dataset {dataset_id} declared; now: accel-dask publish {dataset_id}")


@datasets.command("delete")
def dataset_delete(
    dataset: DatasetArgument,
    yes: YesOption = False,
    config: ConfigOption = None,
) -> None:
    """Take a dataset away: it is answered no more. Its source keeps its data."""
    dataset_id = dataset_id_of(dataset)
    with connection.cluster_store(config) as store:
        view = read_view(store)
        serving = view.serving_epoch(dataset_id)
        confirm(f"delete {dataset_id} ({serving or 'no epoch'} serves)?", yes)
        admin.delete_dataset(store, dataset_id)
    console.print(f"dataset {dataset_id} deleted; hosts return its memory")


@datasets.command("fallback")
def dataset_fallback(
    dataset: DatasetArgument,
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
    dataset_id = dataset_id_of(dataset)
    if off == bool(engine):
        raise ConfigError("name an --engine, or say --off")
    options = tuple(sorted(key_value(text) for text in option or []))
    spec = None if off else FallbackSpec(engine=engine, policy=policy, options=options)
    with connection.cluster_store(config) as store:
        admin.change_fallback(store, dataset_id, spec)
    console.print(f"dataset {dataset_id}: " + ("no fallback" if off else f"{engine}, {policy}"))


@datasets.command("rollup")
def dataset_rollup(
    dataset: DatasetArgument,
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
    dataset_id = dataset_id_of(dataset)
    add = [
        *map(parse_rollup, declared or []),
        *(read_rollups(file.read_text(encoding="utf-8")) if file else ()),
    ]
    if not add and not drop:
        raise ConfigError("name a rollup to add or to --drop; see --help")
    with connection.cluster_store(config) as store:
        changed = admin.change_rollups(store, dataset_id, add, drop or [])
    for one in changed.rollups:
        console.print(told_rollup(one), markup=False, highlight=False)
    console.print(f"now: accel-dask publish {dataset_id}")
