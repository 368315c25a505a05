"""The shape of record batches on the wire: bounded in bytes, never dictionary-encoded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa

from accel_dask.errors import UnsupportedQuery

_VECTOR_ROWS = 2048
_MAX_ROWS = 64 * 1024
_WIDTHS = {"BOOLEAN": 1, "TINYINT": 1, "SMALLINT": 2, "INTEGER": 4, "DATE": 4, "FLOAT": 4}
_MAX_DEPTH = 32
"""Readers of Arrow streams give up at 64, and recursion needs stack."""
_NESTED_WIDTH, _TEXT_WIDTH, _OTHER_WIDTH = 128, 32, 16


def batch_rows(types: Iterable[Any], max_batch_bytes: int) -> int:
    """Rows to ask of DuckDB at a time for columns of these types: whole vectors of it."""
    row_bytes = sum(_width(str(kind)) for kind in types) or 1
    vectors = max_batch_bytes // row_bytes // _VECTOR_ROWS
    return max(_VECTOR_ROWS, min(vectors * _VECTOR_ROWS, _MAX_ROWS))


def _width(kind: str) -> int:
    if "[" in kind or ("(" in kind and not kind.startswith("DECIMAL")):
        return _NESTED_WIDTH
    if kind in {"VARCHAR", "BLOB", "JSON", "BIT"}:
        return _TEXT_WIDTH
    return _WIDTHS.get(kind, 8 if "INT" in kind or kind == "DOUBLE" else _OTHER_WIDTH)


def slices(batch: pa.RecordBatch, max_bytes: int) -> Iterator[pa.RecordBatch]:
    """`batch` in parts of at most about `max_bytes` each, or of one row; nothing if empty."""
    if not batch.num_rows:
        return
    size = batch.nbytes
    if size <= max_bytes or batch.num_rows == 1:
        yield batch
        return
    parts = min(-(-size // max_bytes), batch.num_rows)
    step = -(-batch.num_rows // parts)
    for offset in range(0, batch.num_rows, step):
        yield from slices(batch.slice(offset, step), max_bytes)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """`schema` with the values' type in place of every dictionary."""
    dictionaries = [_has_dictionary(field.type) for field in schema]
    if not any(dictionaries):
        return schema
    return pa.schema([field.with_type(_plain(field.type)) for field in schema])


def plain_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """`batch` in the form of `schema`, which `plain_schema` made of its own."""
    if batch.schema.equals(schema):
        return batch
    try:
        columns = [
            column if column.type.equals(field.type) else column.cast(field.type)
            for column, field in zip(batch.columns, schema, strict=True)
        ]
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid) as error:
        raise UnsupportedQuery(
            "an ENUM inside a nested value cannot be sent; cast it to VARCHAR"
        ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _has_dictionary(kind: pa.DataType, depth: int = 0) -> bool:
    if depth > _MAX_DEPTH:
        raise UnsupportedQuery(f"a value nested deeper than {_MAX_DEPTH} cannot be sent")
    # All children, not only up to the first: the depth of each counts.
    found = [_has_dictionary(kind.field(i).type, depth + 1) for i in range(kind.num_fields)]
    return pa.types.is_dictionary(kind) or any(found)


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if not _has_dictionary(kind):
        return kind
    if pa.types.is_struct(kind):
        return pa.struct([f.with_type(_plain(f.type)) for f in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain(kind.key_type), _plain(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain(kind.value_type))
    raise UnsupportedQuery(f"a value of type {kind} cannot be sent; cast its ENUM to VARCHAR")
