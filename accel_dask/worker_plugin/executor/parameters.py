"""A ticket's parameters as values that DuckDB binds."""

from __future__ import annotations

import datetime as dt
from typing import Any, cast

import duckdb
import pyarrow as pa
from duckdb import sqltypes

from accel_dask.errors import InvalidQuery


def bind_values(ipc: bytes) -> list[Any] | None:
    """The values in `ipc`, an Arrow stream of one row with a column per `?`; None: none.

    Raises:
        InvalidQuery: not such a stream, or a type that cannot be a parameter.
    """
    if not ipc:
        return None
    try:
        table = pa.ipc.open_stream(ipc).read_all()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InvalidQuery("the parameters are not an Arrow IPC stream") from error
    if table.num_rows != 1:
        raise InvalidQuery(f"one row of parameters is needed, not {table.num_rows}")
    return [
        _value(column.chunk(0)[0] if column.num_chunks == 1 else column[0], position)
        for position, column in enumerate(table.columns, start=1)
    ]


def _value(scalar: pa.Scalar, position: int) -> Any:
    """Typed where Python's own type would lose the width, the unit or the precision."""
    kind = scalar.type
    if not scalar.is_valid:
        return None
    if pa.types.is_dictionary(kind):
        return _value(scalar.value, position)
    try:
        if pa.types.is_timestamp(kind) and kind.unit == "ns" and kind.tz is None:
            text = str(scalar.cast(pa.string()).as_py())
            return duckdb.Value(text, sqltypes.TIMESTAMP_NS)
        if pa.types.is_timestamp(kind) and kind.tz is not None:
            micros = cast("pa.Scalar", scalar.cast(pa.timestamp("us", kind.tz))).value
            return dt.datetime.fromtimestamp(0, dt.UTC) + dt.timedelta(microseconds=micros)
        if pa.types.is_time(kind) and kind.unit == "ns":
            return scalar.cast(pa.time64("us")).as_py()
        return scalar.as_py()
    except (pa.ArrowException, ValueError, OverflowError) as error:
        raise InvalidQuery(f"parameter {position} of type {kind} cannot be bound") from error
