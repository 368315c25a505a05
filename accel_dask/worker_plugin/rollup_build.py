"""The tables of a shard's rollups: made of its rows and compared with them; used by the loader."""

# ruff: noqa: S608 - SQL is built from quoted names
from __future__ import annotations

import duckdb

from accel_dask.errors import ValidationFailed
from accel_dask.model.ids import ShardId
from accel_dask.model.rollup import Dimension, Measure, RollupTable
from accel_dask.model.snapshot import Column
from accel_dask.worker_plugin.source_files import quote
from accel_dask.worker_plugin.validate import is_not_null


def build_rollup(connection: duckdb.DuckDBPyConnection, table: RollupTable) -> None:
    """Make the rollup's table of `main.data`, sorted by its dimensions."""
    name = quote(table.table)
    declared = ", ".join(
        f"{quote(c.name)} {c.type}{' NOT NULL' if is_not_null(c) else ''}" for c in table.columns
    )
    keys = [_key(dimension, column) for dimension, column in table.dimensions]
    values = [_value(measure) for measure, _ in table.measures]
    numbers = ", ".join(str(number + 1) for number in range(len(keys)))
    connection.execute(f"CREATE TABLE main.{name} ({declared})")
    connection.execute(
        f"INSERT INTO main.{name} SELECT {', '.join([*keys, *values])} FROM main.data "
        f"GROUP BY {numbers} ORDER BY {numbers}"
    )


def check_rollup(connection: duckdb.DuckDBPyConnection, shard: ShardId, table: RollupTable) -> int:
    """How many rows the rollup has.

    Raises:
        ValidationFailed: its totals are not those of the rows.
    """
    name = quote(table.table)
    exact = [(m, c) for m, c in table.measures if not (m.function == "sum" and c.type == "DOUBLE")]
    whole = ", ".join(_value(measure) for measure, _ in exact)
    again = ", ".join(_again(measure, column) for measure, column in exact)
    is_same, data, rollup, rows = connection.execute(
        "SELECT a IS NOT DISTINCT FROM b, CAST(a AS VARCHAR), CAST(b AS VARCHAR), n FROM "
        f"(SELECT row({whole}) AS a FROM main.data), "
        f"(SELECT row({again}) AS b, count(*) AS n FROM main.{name})"
    ).fetchall()[0]
    if not is_same:
        raise ValidationFailed(
            f"shard {shard}: rollup {table.name} does not add up: the rows have {data}, it has "
            f"{rollup} of {', '.join(str(measure) for measure, _ in exact)}"
        )
    return int(rows)


def _key(dimension: Dimension, column: Column) -> str:
    name = quote(column.name)
    if not dimension.grain:
        return name
    return f"CAST(date_trunc('{dimension.grain}', {name}) AS {column.type})"


def _value(measure: Measure) -> str:
    name = "*" if measure.column is None else quote(measure.column)
    return f"{measure.function}({name})"


def _again(measure: Measure, column: Column) -> str:
    """The measure of all rows, from those of the groups."""
    name = quote(column.name)
    if measure.function == "count":
        return f"coalesce(sum({name}), 0)"
    return f"{measure.function}({name})"
