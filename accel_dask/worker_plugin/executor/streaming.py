"""A statement of the engine as a stream of Arrow batches, bound once.

The engine's client binds a statement twice on its public way to a stream (`con.sql` to know the
columns, then again to run it), which is a third of a short query's time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import duckdb
import pyarrow as pa


def open_stream(
    cursor: duckdb.DuckDBPyConnection,
    sql: str,
    values: list[Any] | None,
    batch_rows: int,
    *,
    wants_types: bool,
) -> tuple[pa.RecordBatchReader, Sequence[object] | None]:
    """The rows of `sql`, computed up to the first, and the engine's types of its columns, if they
    are wanted.

    Raises:
        duckdb.Error: it does not bind, or fails.
    """
    submit = getattr(cursor, "_submit", None)
    if submit is None:  # not part of the client's public face: another version may not have it
        relation = cursor.sql(sql, params=values)
        return relation.to_arrow_reader(batch_rows), relation.types
    result = submit(sql, values, "stream", batch_rows)
    types = [column[1] for column in result.description] if wants_types else None
    return result.arrow_reader(), types
