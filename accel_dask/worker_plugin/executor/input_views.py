"""How a statement sees its inputs: as views of its own connection to the engine.

To make a view takes the engine 0.4 ms, half of what a small query takes. So after a query with few
rows its connection stays, and serves the next one whose inputs have the very same names, columns
and types; only what the views read is another then.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Final

import duckdb
import pyarrow as pa

from accel_dask.errors import InvariantViolated
from accel_dask.worker_plugin.executor.part_types import typed_columns, types_to_cast

SMALL_ROWS: Final = 10_000
"""The engine is told how many rows a table has, and of these views it is not. That matters for
the plans of queries with many."""
_MAX_KEPT: Final = 32

_Key = tuple[tuple[str, bytes], ...]


class _Read:
    """What a view reads: tables of one schema, one after the other."""

    def __init__(self, schema: pa.Schema) -> None:
        self.table: pa.Table | None = None
        self._schema = schema

    def __arrow_c_schema__(self) -> object:
        return self._schema.__arrow_c_schema__()

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        if self.table is None:  # never an input without rows in place of one that is not there
            raise InvariantViolated("an input is read that no query has")
        return self.table.__arrow_c_stream__(requested_schema)


class ShownInputs:
    """A connection that sees the inputs of one query. Made by `InputViews`."""

    def __init__(
        self, cursor: duckdb.DuckDBPyConnection, key: _Key, reads: Mapping[str, _Read]
    ) -> None:
        self.cursor: Final = cursor
        self.key: Final = key
        """Empty: it is for this query alone."""
        self.reads: Final = reads


class InputViews:
    """Of an engine. Safe to use from several threads."""

    def __init__(self, new_cursor: Callable[[], duckdb.DuckDBPyConnection]) -> None:
        self._new_cursor = new_cursor
        self._lock = threading.Lock()
        self._kept: OrderedDict[_Key, list[ShownInputs]] = OrderedDict()
        """Last used, last in order."""
        self._count = 0

    def show(self, tables: Mapping[str, pa.Table]) -> ShownInputs:
        """A connection whose statements see `tables` by their names. Whoever calls gives it back
        or closes its cursor.

        Raises:
            duckdb.Error: the engine cannot read them.
        """
        if sum(table.num_rows for table in tables.values()) > SMALL_ROWS:
            cursor = self._new_cursor()
            for name, table in tables.items():
                _show(cursor, name, table, table.schema)
            return ShownInputs(cursor, (), {})
        key = tuple((name, bytes(table.schema.serialize())) for name, table in tables.items())
        shown = self._taken(key) or self._made(key, tables)
        for name, table in tables.items():
            shown.reads[name].table = table
        return shown

    def give_back(self, shown: ShownInputs) -> None:
        """Its query has ended well, and nobody interrupts it any more."""
        for read in shown.reads.values():
            read.table = None
        gone = [shown]
        with self._lock:
            if shown.key:
                self._kept.setdefault(shown.key, []).append(gone.pop())
                self._kept.move_to_end(shown.key)
                self._count += 1
                if self._count > _MAX_KEPT:
                    gone.append(self._oldest())
        for each in gone:
            _close(each)

    def close(self) -> None:
        with self._lock:
            kept, self._kept = self._kept, OrderedDict()
            self._count = 0
        for alike in kept.values():
            for shown in alike:
                _close(shown)

    def _taken(self, key: _Key) -> ShownInputs | None:
        with self._lock:
            return self._pop(key) if key in self._kept else None

    def _oldest(self) -> ShownInputs:
        return self._pop(next(iter(self._kept)))

    def _pop(self, key: _Key) -> ShownInputs:
        """The lock is held."""
        alike = self._kept[key]
        shown = alike.pop()
        self._count -= 1
        if not alike:
            del self._kept[key]
        return shown

    def _made(self, key: _Key, tables: Mapping[str, pa.Table]) -> ShownInputs:
        shown = ShownInputs(
            self._new_cursor(), key, {name: _Read(table.schema) for name, table in tables.items()}
        )
        try:
            for name, table in tables.items():
                _show(shown.cursor, name, shown.reads[name], table.schema)
        except BaseException:
            _close(shown)
            raise
        return shown


def _show(cursor: duckdb.DuckDBPyConnection, name: str, rows: Any, schema: pa.Schema) -> None:
    types = types_to_cast(schema)
    if types is None:
        cursor.register(name, rows)
        return
    cursor.register(f"{name}_raw", rows)
    columns = typed_columns(schema, types)
    cursor.execute(f'CREATE TEMP VIEW "{name}" AS SELECT {columns} FROM "{name}_raw"')  # noqa: S608


def _close(shown: ShownInputs) -> None:
    with contextlib.suppress(duckdb.Error):
        shown.cursor.close()
