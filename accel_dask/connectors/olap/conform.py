"""What an engine sent, as exactly the schema that our own engine would give. Nothing is guessed:
a value that does not convert without loss, or another type, is an error."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Final

import pyarrow as pa

from accel_dask.errors import EngineDisagrees


def conform_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """
    Raises:
        EngineDisagrees: it cannot be brought to `schema`.
    """
    _check_count(batch.num_columns, schema)
    columns = [
        _converted(column, field) for column, field in zip(batch.columns, schema, strict=True)
    ]
    if not columns:
        raise EngineDisagrees("the engine sent a batch without columns")
    return pa.record_batch(columns, schema=schema)


def _check_count(found: int, schema: pa.Schema) -> None:
    if found != len(schema):
        raise EngineDisagrees(f"the engine sent {found} columns where {len(schema)} were asked for")


def _converted(column: pa.Array, field: pa.Field) -> pa.Array:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage  # PostgreSQL's numeric: digits as text
        if not (pa.types.is_decimal(field.type) or pa.types.is_integer(field.type)):
            _disagree(field, "a number as text")
    elif not _may_convert(column.type, field.type):
        _disagree(field, str(column.type))
    if column.type == field.type:
        return column
    try:
        if pa.types.is_string(column.type) and pa.types.is_integer(field.type):
            column = column.cast(pa.decimal128(38, 0))
        if pa.types.is_integer(column.type) and pa.types.is_decimal(field.type):
            column = column.cast(pa.decimal128(20, 0))
        return column.cast(field.type)  # safe: fails where a value would change
    except pa.ArrowException as error:
        raise EngineDisagrees(
            f"column {field.name!r}: the engine sent a value that is no {field.type}: "
            f"{str(error).splitlines()[0][:200]}"
        ) from error


def _disagree(field: pa.Field, found: str) -> None:
    raise EngineDisagrees(
        f"column {field.name!r}: the engine sent {found} where {field.type} was asked for"
    )


def _may_convert(found: pa.DataType, wanted: pa.DataType) -> bool:
    kinds = pa.types
    if found == wanted:
        return True
    if kinds.is_integer(wanted):
        return bool(kinds.is_integer(found) or (kinds.is_decimal(found) and found.scale == 0))
    if kinds.is_decimal(wanted):
        return bool(kinds.is_integer(found) or kinds.is_decimal(found))
    if kinds.is_string(wanted):
        return bool(kinds.is_large_string(found) or kinds.is_string_view(found))
    if kinds.is_timestamp(wanted):
        return bool(kinds.is_timestamp(found) and found.tz is None)
    return False


_PYTHON: Final[tuple[tuple[Any, frozenset[type]], ...]] = (
    (pa.types.is_boolean, frozenset({int})),
    (pa.types.is_integer, frozenset({int, Decimal})),
    (pa.types.is_decimal, frozenset({int, Decimal})),
    (pa.types.is_floating, frozenset({float})),
    (pa.types.is_string, frozenset({str})),
    (pa.types.is_date, frozenset({dt.date})),
    (pa.types.is_timestamp, frozenset({dt.datetime})),
)


def conform_rows(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Rows of Python values, as a MySQL client gives them, in `schema`.

    Raises:
        EngineDisagrees: they are something else.
    """
    if rows:
        _check_count(len(rows[0]), schema)
    columns = zip(*rows, strict=True) if rows else ((),) * len(schema)
    arrays = [_array(values, field) for values, field in zip(columns, schema, strict=True)]
    return pa.record_batch(arrays, schema=schema)


def _array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    allowed = next((types for test, types in _PYTHON if test(field.type)), frozenset())
    found = set(map(type, values)) - {type(None)}
    if not found <= allowed:
        _disagree(field, ", ".join(sorted(one.__name__ for one in found - allowed)))
    if pa.types.is_boolean(field.type):
        if not set(values) <= {0, 1, None}:
            _disagree(field, "a number other than 0 and 1")
        values = [None if value is None else bool(value) for value in values]
    elif pa.types.is_integer(field.type) and Decimal in found:
        values = [_whole(value, field) for value in values]
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, OverflowError) as error:
        raise EngineDisagrees(
            f"column {field.name!r}: the engine sent a value that is no {field.type}: "
            f"{str(error).splitlines()[0][:200]}"
        ) from error


def _whole(value: Any, field: pa.Field) -> int | None:
    if value is None:
        return None
    if value != int(value):
        _disagree(field, f"{value}")
    return int(value)
