"""Compare what was loaded with what the source promised; used by the loader, on every shard."""

# ruff: noqa: S608 - SQL is built from quoted names and literals
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import duckdb

from accel_dask.errors import ValidationFailed
from accel_dask.model.load_plan import LoadTask
from accel_dask.model.snapshot import Column, ColumnStats
from accel_dask.worker_plugin.source_files import literal, quote

_BOUND_CHARACTERS: Final = 128
"""Longer texts are cut in the statistics; a cut lower bound is still a lower bound."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What is in `main.data`."""

    rows: int
    row_checksum: str
    stats: tuple[ColumnStats, ...]
    rollup_rows: tuple[int, ...] = ()


def validate(
    connection: duckdb.DuckDBPyConnection, task: LoadTask, promised_rows: int | None
) -> Loaded:
    """Check `main.data` against `task`, in one pass over it.

    Args:
        promised_rows: how many rows there must be; None where a row filter leaves it open.

    Raises:
        ValidationFailed: names the column, what was expected and what was found.
    """
    _check_schema(connection, task)
    found = _measure(connection, task)
    _check_rows(task, found["rows"], promised_rows)
    for index, column in enumerate(task.columns):
        _check_column(task, column, index, found)
    return Loaded(
        rows=found["rows"],
        row_checksum=f"{found['hash_xor']:016x}{found['hash_sum'] % 2**64:016x}",
        stats=tuple(_stats(column, i, found) for i, column in enumerate(task.columns)),
    )


def _check_schema(connection: duckdb.DuckDBPyConnection, task: LoadTask) -> None:
    found = connection.execute(
        "SELECT name, type, \"notnull\" FROM pragma_table_info('main.data') ORDER BY cid"
    ).fetchall()
    ordered = [(column.name, column.type, is_not_null(column)) for column in task.columns]
    if found != ordered:
        raise ValidationFailed(
            f"shard {task.shard_id} has the columns {found}, ordered were {ordered}"
        )


def is_not_null(column: Column) -> bool:
    """Whether the shard refuses NULLs in `column`. Floats may hold NaN, which becomes NULL."""
    return not column.nullable and column.type not in {"FLOAT", "DOUBLE"}


def _measure(connection: duckdb.DuckDBPyConnection, task: LoadTask) -> Mapping[str, Any]:
    """Everything that is checked or recorded, by one query."""
    names = ", ".join(quote(column.name) for column in task.columns)
    wanted = [
        "count(*) AS rows",
        "coalesce(bit_xor(accel_hash), 0) AS hash_xor",
        "coalesce(sum(accel_hash), 0) AS hash_sum",
    ]
    promised = {stats.name: stats for stats in task.stats}
    for index, column in enumerate(task.columns):
        name = quote(column.name)
        wanted.append(f"count({name}) AS count_{index}")
        if column.type == "BLOB":
            continue
        wanted.append(f"CAST(min({name}) AS VARCHAR) AS min_{index}")
        wanted.append(f"CAST(max({name}) AS VARCHAR) AS max_{index}")
        bounds = promised.get(column.name)
        if bounds and bounds.lower is not None:
            lower = f"CAST({literal(bounds.lower)} AS {column.type})"
            wanted.append(f"coalesce(min({name}) >= {lower}, true) AS above_{index}")
        if bounds and bounds.upper is not None:
            upper = f"CAST({literal(bounds.upper)} AS {column.type})"
            wanted.append(f"coalesce(max({name}) <= {upper}, true) AS below_{index}")
    cursor = connection.execute(
        f"SELECT {', '.join(wanted)} FROM (SELECT *, hash({names}) AS accel_hash FROM main.data)"
    )
    values = cursor.fetchone()
    assert values is not None
    assert cursor.description is not None
    return dict(zip((described[0] for described in cursor.description), values, strict=True))


def _check_rows(task: LoadTask, found: int, promised: int | None) -> None:
    if promised is not None and found != promised:
        raise ValidationFailed(f"shard {task.shard_id}: expected {promised} rows, found {found}")


def _check_column(task: LoadTask, column: Column, index: int, found: Mapping[str, Any]) -> None:
    promised = next((s for s in task.stats if s.name == column.name), None)
    if promised is None:
        return
    is_whole = task.row_filter is None and not any(file.deletes for file in task.files)
    nulls = found["rows"] - found[f"count_{index}"]
    where = f"shard {task.shard_id}: column {column.name}"
    expected = promised.null_count
    if expected is not None and (nulls > expected or (is_whole and nulls != expected)):
        at_most = "" if is_whole else "at most "
        raise ValidationFailed(f"{where}: expected {at_most}{expected} NULLs, found {nulls}")
    if is_whole and promised.lower is not None and found["rows"] and nulls == found["rows"]:
        raise ValidationFailed(
            f"{where}: expected values from {promised.lower} on, found only NULLs"
        )
    if not found.get(f"above_{index}", True):
        raise ValidationFailed(
            f"{where}: expected nothing below {promised.lower}, found {found[f'min_{index}']}"
        )
    if not found.get(f"below_{index}", True):
        raise ValidationFailed(
            f"{where}: expected nothing above {promised.upper}, found {found[f'max_{index}']}"
        )


def _stats(column: Column, index: int, found: Mapping[str, Any]) -> ColumnStats:
    lower: str | None = found.get(f"min_{index}")
    upper: str | None = found.get(f"max_{index}")
    is_long = any(text and len(text) > _BOUND_CHARACTERS for text in (lower, upper))
    if is_long:
        lower = lower[:_BOUND_CHARACTERS] if lower else None
        upper = upper if upper and len(upper) <= _BOUND_CHARACTERS else None
    return ColumnStats(
        name=column.name,
        null_count=found["rows"] - found[f"count_{index}"],
        lower=lower,
        upper=upper,
        exact=lower is not None and upper is not None and not is_long,
    )
