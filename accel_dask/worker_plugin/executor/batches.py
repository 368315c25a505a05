"""The shape of record batches on the wire: bounded in bytes, never dictionary-encoded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from accel_dask.errors import UnsupportedQuery

READ_ROWS: Final = 4096
"""Rows to ask of the engine at a time."""
_MAX_ROWS: Final = 64 * 1024
_MAX_KEPT: Final = 256
"""Schemas."""
_MAX_KEPT_BYTES: Final = 4096
"""Of one, serialized."""
_MAX_DEPTH: Final = 32
"""Readers of Arrow streams give up at 64, and recursion needs stack."""


@dataclass(frozen=True, slots=True)
class SentSchema:
    """The schema of an answer, as it is sent."""

    schema: pa.Schema
    message: pa.Buffer
    """The schema, serialized."""
    is_read: bool
    """The engine's batches have the very columns of it."""


class SentSchemas:
    """Makes them of what the engine gives, and keeps those of the last answers: they are the same
    again and again, and to look for dictionaries takes as long as a ticket's check does. Safe to
    use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[bytes, SentSchema] = {}
        """By what they were made of, serialized."""

    def of(self, schema: pa.Schema) -> SentSchema:
        """For batches of `schema`.

        Raises:
            UnsupportedQuery: it cannot be sent.
        """
        message = schema.serialize()
        key = message.to_pybytes()
        kept = self._kept.get(key)
        if kept is not None:
            return kept
        plain = plain_schema(schema)
        is_read = plain is schema
        made = SentSchema(plain, message if is_read else plain.serialize(), is_read)
        if len(key) <= _MAX_KEPT_BYTES:
            with self._lock:
                if len(self._kept) >= _MAX_KEPT:
                    del self._kept[next(iter(self._kept))]
                self._kept[key] = made
        return made


def read_some(
    reader: pa.RecordBatchReader, sent: SentSchema, max_bytes: int
) -> tuple[pa.RecordBatch | None, int, bool]:
    """What `reader` gives up to about `max_bytes`, as one batch (None: nothing) in the form of
    `sent`, its bytes, and whether that was all."""
    found: list[pa.RecordBatch] = []
    rows = size = 0
    while rows < _MAX_ROWS and size < max_bytes:
        try:
            batch = reader.read_next_batch()
        except StopIteration:
            return *_joined(found, size), True
        if not sent.is_read:
            batch = plain_batch(batch, sent.schema)
        found.append(batch)
        rows += batch.num_rows
        size += batch.nbytes
    return *_joined(found, size), False


def _joined(batches: list[pa.RecordBatch], size: int) -> tuple[pa.RecordBatch | None, int]:
    if len(batches) > 1:
        joined = pa.concat_batches(batches)
        return joined, joined.nbytes
    return (batches[0] if batches else None), size


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
