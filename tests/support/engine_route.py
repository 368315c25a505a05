"""The client's statements answered by an OLAP engine, as a gateway's fallback would: what the
portable subset refuses is refused, all else is written in the engine's dialect and asked of it."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Mapping
from contextlib import closing
from typing import Any, Final

import pyarrow as pa
from client_world import LocalAnswer, LocalTransport
from olap_world import LIMITS, TENANT, EngineWorld, columns_of, compile_sql, schema_of

from accel_dask.model.ids import DatasetId
from accel_dask.model.snapshot import Column
from accel_dask.query_planner.portable.compile import PortableQuery
from accel_dask.query_planner.portable.dialects import dialect_named
from accel_dask.query_planner.portable.from_clause import Table

_TYPES: Final[Mapping[str, Mapping[str, str]]] = {
    "postgresql": {"DOUBLE": "double precision", "VARCHAR": "text"},
    "mariadb": {"VARCHAR": "varchar(200)", "TIMESTAMP": "datetime(6)", "BOOLEAN": "tinyint(1)"},
    "sail": {"VARCHAR": "STRING", "TIMESTAMP": "TIMESTAMP_NTZ"},
}
_NAN: Final = {
    "postgresql": "CAST('NaN' AS double precision)",
    "mariadb": "NULL",
    "sail": "CAST('NaN' AS DOUBLE)",
}
_NO_TYPE_OF_THE_SUBSET: Final = "TIMESTAMP WITH TIME ZONE"


class EngineTransport(LocalTransport):
    """Has the same tables in an engine; each is brought there when it is first asked for."""

    def __init__(self, world: EngineWorld) -> None:
        super().__init__()
        self.answered = 0
        self._world = world
        self._writer = dialect_named(world.server.dialect)({})
        self._rows: dict[str, pa.Table] = {}
        self._there: set[str] = set()
        self._made: dict[str, tuple[Column, ...]] = {}
        is_sail = world.name == "sail"
        self._connection = None if is_sail else world.server.connect()

    def put(
        self, name: str, table: pa.Table, sort_by: tuple[str, ...] = (), *, loaded: bool = False
    ) -> None:
        # Nothing but datasets have an engine behind them. It has their rows as the source does.
        super().put(name, table, sort_by, loaded=True)
        self._rows[name] = table
        self._there.discard(name)

    def query(
        self, sql: str, *, timeout_ms: int, headers: Mapping[str, str], name: str
    ) -> LocalAnswer:
        self.sent.append(sql)
        tables = {
            one: Table(DatasetId(TENANT, one), columns_of(self.database, f'"{one}"'))
            for one in self.schemas
        }
        query = compile_sql(sql, tables)
        for scan in query.scans:
            self._bring(scan.dataset.name)
        answer = LocalAnswer(self._ask(query))
        self.answered += 1
        return answer

    def _ask(self, query: PortableQuery) -> pa.Table:
        schema = schema_of(query)
        with closing(self._world.engine.run(self._world.sql(query), schema, LIMITS)) as stream:
            batches = []
            while (batch := stream.read()) is not None:
                batches.append(batch)
        return pa.Table.from_batches(batches, schema)

    def _bring(self, name: str) -> None:
        if name in self._there:
            return
        columns = tuple(
            one
            for one in columns_of(self.database, f'"{name}"')
            if one.type != _NO_TYPE_OF_THE_SUBSET
        )
        self._world.names[name] = {
            "postgresql": ("public", name), "mariadb": ("accel", name), "sail": (name,)
        }[self._world.name]  # fmt: skip
        rows = self._rows[name].select([one.name for one in columns]).to_pylist()
        values = ", ".join(f"({', '.join(map(self._written, row.values()))})" for row in rows)
        if self._world.name == "sail":
            self._make_view(name, columns, values)
        else:
            self._fill(name, columns, values)
        self._there.add(name)

    def _make_view(self, name: str, columns: tuple[Column, ...], values: str) -> None:
        casts = ", ".join(
            f"CAST(v.c{index} AS {self._type(one)}) AS {self._writer.quote(one.name)}"
            for index, one in enumerate(columns)
        )
        names = ", ".join(f"c{index}" for index in range(len(columns)))
        empty = f"({', '.join(['NULL'] * len(columns))})"
        where = "" if values else " WHERE false"
        self._world.server.execute(
            f"CREATE OR REPLACE TEMP VIEW {self._writer.quote(name)} AS "
            f"SELECT {casts} FROM VALUES {values or empty} AS v({names}){where}"
        )

    def _fill(self, name: str, columns: tuple[Column, ...], values: str) -> None:
        assert self._connection is not None
        quoted = self._writer.quote(name)
        with self._connection.cursor() as cursor:
            if self._made.get(name) == columns:
                cursor.execute(f"DELETE FROM {quoted}")
            else:
                types = ", ".join(
                    f"{self._writer.quote(one.name)} {self._type(one)}" for one in columns
                )
                cursor.execute(f"DROP TABLE IF EXISTS {quoted}")
                cursor.execute(f"CREATE TABLE {quoted} ({types})")
                self._made[name] = columns
            if values:
                cursor.execute(f"INSERT INTO {quoted} VALUES {values}")

    def _type(self, column: Column) -> str:
        return _TYPES[self._world.name].get(column.type, column.type)

    def _written(self, value: Any) -> str:
        match value:
            case None:
                return "NULL"
            case bool():
                return str(value).upper()
            case float():
                if math.isnan(value):
                    return _NAN[self._world.name]
                return repr(value) if "e" in repr(value) else f"{value!r}e0"
            case int():
                return str(value)
            case dt.datetime():
                return f"'{value.isoformat(' ', 'microseconds')}'"
            case dt.date():
                return f"'{value.isoformat()}'"
            case _:
                return self._writer.text(str(value))

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
        super().close()
