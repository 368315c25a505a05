"""Answers as Arrow tables for others: labels instead of codes, durations, and zones."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from accel_dask.client.dtypes import DType, Kind


def as_arrow(table: pa.Table, dtypes: Sequence[DType]) -> pa.Table:
    """`table`, as it was sent, with the types that its columns stand for."""
    for index, dtype in enumerate(dtypes):
        column = _shown(table.column(index), dtype)
        if column is not table.column(index):
            table = table.set_column(index, table.column_names[index], column)
    return table


def _shown(column: pa.ChunkedArray, dtype: DType) -> pa.ChunkedArray:
    if dtype.kind is Kind.CATEGORY:
        return _labelled(column, dtype)
    if dtype.kind is Kind.DURATION:
        return column.cast(pa.int64()).cast(pa.duration("us"))
    if dtype.kind is Kind.TIMESTAMPTZ and dtype.zone != "UTC":
        return column.cast(pa.timestamp("us", tz=dtype.zone))
    return column


def _labelled(column: pa.ChunkedArray, dtype: DType) -> pa.ChunkedArray:
    """Codes as a dictionary of labels, in order; intervals are texts."""
    labels = list(dtype.categories)
    if any(not isinstance(label, str | int | float) for label in labels):
        labels = [str(label) for label in labels]
    dictionary = pa.array(labels)
    codes = column.combine_chunks().cast(pa.int32())
    if isinstance(codes, pa.ChunkedArray):
        codes = codes.chunk(0) if codes.num_chunks else pa.array([], pa.int32())
    found = pa.DictionaryArray.from_arrays(codes, dictionary, ordered=True)
    return pa.chunked_array([found])
