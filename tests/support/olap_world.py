"""The same rows in DuckDB and in real engines, and one question put to both."""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa
import pytest
from answers import Answer, to_answer
from portable_random import TABLES, load_edges, make_edges
from random_queries import as_loaded, make_world

from accel_dask.connectors.olap.base import OlapEngine, RunLimits
from accel_dask.connectors.olap.registry import open_engine
from accel_dask.connectors.olap.servers.mariadb import MariaDbServer
from accel_dask.connectors.olap.servers.postgresql import PostgresServer
from accel_dask.connectors.olap.servers.processes import NotInstalled
from accel_dask.connectors.olap.servers.sail import SailServer
from accel_dask.connectors.olap.settings import EngineSettings
from accel_dask.model.cluster import ClusterView
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.routing import build_routing
from accel_dask.model.snapshot import Column
from accel_dask.query_planner.parse import parse
from accel_dask.query_planner.plan import PlanContext, QueryDraft
from accel_dask.query_planner.portable.compile import PortableQuery, compile_portable
from accel_dask.query_planner.portable.dialects import dialect_named
from accel_dask.query_planner.portable.engine_types import check_columns
from accel_dask.query_planner.portable.from_clause import Table
from accel_dask.query_planner.portable.tree import Node
from accel_dask.query_planner.portable.write import EngineTable
from flightsql_gateway.arrow_types import arrow_type

TENANT = TenantId("acme")
RANDOM_SEED = int(os.environ.get("ACCEL_OLAP_SEED", "7"))
KINDS = ("sail", "mariadb", "postgresql")

_TEXTS = (
    "['a', 'A', 'b', 'B', '', 'a ', ' a', 'über', 'Über', 'a''b', 'a\\b', '東京', 'ß', 'a%', 'zz']"
)
_FACT = f"""
CREATE TABLE fact AS SELECT
    i::BIGINT AS id,
    CASE WHEN hash(i) % 9 > 0 THEN (hash(i * 3) % 7)::INTEGER END AS k,
    CASE WHEN hash(i * 5) % 6 > 0 THEN (hash(i * 7) % 2001)::INTEGER - 1000 END AS n,
    CASE hash(i * 9) % 40 WHEN 0 THEN 9223372036854775807 WHEN 1 THEN -9223372036854775807
        WHEN 2 THEN NULL ELSE (hash(i * 11) % 100000)::BIGINT - 50000 END AS g,
    CASE WHEN hash(i * 11) % 8 > 0
        THEN (((hash(i * 13) % 2000001)::BIGINT - 1000000) / 100)::DECIMAL(9, 2) END AS m,
    CASE hash(i * 17) % 10 WHEN 0 THEN NULL
        ELSE ((hash(i * 19) % 81)::DOUBLE / 4 - 10) END AS x,
    {_TEXTS}[1 + (hash(i * 23) % 15)::INTEGER] AS s,
    CASE WHEN hash(i * 27) % 12 > 0 THEN DATE '2019-12-20' + (hash(i * 29) % 900)::INTEGER END AS d,
    CASE WHEN hash(i * 31) % 7 > 0 THEN TIMESTAMP '2020-02-20 00:00:00'
        + to_microseconds((hash(i * 37) % 50000000000000)::BIGINT) END AS ts,
    [true, false, NULL][1 + (hash(i * 41) % 3)::INTEGER] AS b
FROM range(400) t(i)
"""
_DIM = """
CREATE TABLE dim AS SELECT i::INTEGER AS k,
    ['red', 'Red', 'blue', NULL, 'Blue ', 'grün'][1 + i % 6] AS label, (i % 3)::INTEGER AS grp,
    (i * 1.25)::DECIMAL(12, 4) AS w FROM range(9) t(i)
"""


def duckdb_world() -> duckdb.DuckDBPyConnection:
    """Our own engine with the tables `fact` and `dim`."""
    engine = duckdb.connect()
    engine.execute(_FACT)
    engine.execute(_DIM)
    return engine


def columns_of(engine: duckdb.DuckDBPyConnection, table: str) -> tuple[Column, ...]:
    rows = engine.execute(f"DESCRIBE {table}").fetchall()
    return tuple(Column(name=row[0], type=row[1]) for row in rows)


def rows_of(engine: duckdb.DuckDBPyConnection, table: str) -> pa.Table:
    return engine.sql(f"SELECT * FROM {table}").to_arrow_table()


def compile_sql(
    sql: str, tables: dict[str, Table], parameters: tuple[Node, ...] = ()
) -> PortableQuery:
    """The portable query of `sql` over `tables`, by name.

    Raises:
        NotPortable: it is not in the subset.
    """
    context = PlanContext(tenant=TENANT, routing=build_routing(ClusterView(0, {})))
    parsed = parse(QueryDraft(sql=sql), context).parsed
    assert parsed is not None
    found = {id(one.node): tables[one.table.lower()] for one in parsed.tables}
    return compile_portable(parsed, found, parameters)


def schema_of(query: PortableQuery) -> pa.Schema:
    return pa.schema([pa.field(one.name, arrow_type(str(one.type))) for one in query.outputs])


LIMITS = RunLimits(seconds=20.0, max_rows=1_000_000, max_bytes=1 << 28)


@dataclass
class EngineWorld:
    """A real server with our tables, and the engine that asks it."""

    name: str
    server: Any
    engine: OlapEngine
    names: dict[str, tuple[str, ...]]
    snapshots: dict[str, str] = field(default_factory=dict)
    iceberg: dict[str, Any] = field(default_factory=dict)
    """The Iceberg tables that it reads, as pyiceberg has them."""

    def sql(self, query: PortableQuery, *, is_pinned: bool = False) -> str:
        targets = {
            scan.dataset: EngineTable(
                self.names[scan.dataset.name],
                self.snapshots.get(scan.dataset.name) if is_pinned else None,
            )
            for scan in query.scans
        }
        return dialect_named(self.server.dialect)(targets).write(query.query)

    def check(self, query: PortableQuery) -> None:
        writer = dialect_named(self.server.dialect)({})
        for scan in query.scans:
            parts = self.names[scan.dataset.name]
            quoted = writer.table(EngineTable(parts))
            check_columns(
                scan,
                self.engine.columns(parts, quoted),
                self.server.dialect,
                quoted,
                by_arrow=self.engine.describes_by_arrow,
            )

    def ask(self, query: PortableQuery, limits: RunLimits = LIMITS) -> Answer:
        return self.ask_sql(self.sql(query), schema_of(query), limits, query.max_rows)

    def ask_sql(
        self, sql: str, schema: pa.Schema, limits: RunLimits = LIMITS, promised: int | None = None
    ) -> Answer:
        limits = replace(limits, promised_rows=promised)
        with closing(self.engine.run(sql, schema, limits)) as stream:
            batches = []
            while (batch := stream.read()) is not None:
                batches.append(batch)
        return to_answer(pa.Table.from_batches(batches, schema))

    def raw(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows as the engine itself says, for showing where it differs."""
        if isinstance(self.server, MariaDbServer):
            with self.server.connect() as connection, connection.cursor() as cursor:
                cursor.execute(sql)
                return list(cursor.fetchall())
        if isinstance(self.server, PostgresServer):
            connection = self.server.connect()
        else:
            from adbc_driver_flightsql import dbapi

            connection = dbapi.connect(self.server.uri, autocommit=True)
        with connection, connection.cursor() as cursor:
            cursor.execute(sql)
            table = cursor.fetch_arrow_table()
            return list(zip(*(column.to_pylist() for column in table.columns), strict=True))

    def close(self) -> None:
        self.engine.close()
        self.server.close()


def busy_seconds(world: EngineWorld) -> float:
    """CPU time of the server and its children so far."""
    server = psutil.Process(world.server.process.pid)
    total = 0.0
    for process in (server, *server.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


_MARIADB_TYPES = {
    "BIGINT": "bigint", "INTEGER": "int", "DOUBLE": "double", "VARCHAR": "varchar(200)",
    "DATE": "date", "TIMESTAMP": "datetime(6)", "BOOLEAN": "tinyint(1)",
}  # fmt: skip


def start_world(kind: str, tables: dict[str, pa.Table], directory: Path) -> EngineWorld:
    """A server of `kind` with `tables` in it.

    Raises:
        NotInstalled: this machine does not have it.
    """
    if kind == "sail":
        return _sail(tables, directory)
    if kind == "mariadb":
        server = MariaDbServer()
        for name, rows in tables.items():
            load_mariadb(server, name, rows)
        names = {name: ("accel", name) for name in tables}
    else:
        server = PostgresServer()
        for name, rows in tables.items():
            load_postgres(server, name, rows)
        names = {name: ("public", name) for name in tables}
    user = "root" if kind == "mariadb" else "accel"
    settings = EngineSettings(kind=server.kind, uri=server.uri, user=user)
    return EngineWorld(kind, server, open_engine(settings, server.dialect), names)


def load_mariadb(server: MariaDbServer, name: str, rows: pa.Table) -> None:
    described = duckdb.from_arrow(rows).query("t", "DESCRIBE SELECT * FROM t").fetchall()
    columns = [(row[0], _MARIADB_TYPES.get(row[1], row[1].lower())) for row in described]
    server.load(name, columns, [tuple(map(_plain, row.values())) for row in rows.to_pylist()])


def _plain(value: Any) -> Any:
    """MariaDB has no NaN."""
    return None if isinstance(value, float) and value != value else value


def load_postgres(server: PostgresServer, name: str, rows: pa.Table) -> None:
    described = duckdb.from_arrow(rows).query("t", "DESCRIBE SELECT * FROM t").fetchall()
    kinds = {"DOUBLE": "double precision", "VARCHAR": "text"}
    columns = ", ".join(f'"{row[0]}" {kinds.get(row[1], row[1])}' for row in described)
    server.load("incoming", rows)
    picked = ", ".join(f'CAST("{row[0]}" AS {kinds.get(row[1], row[1])})' for row in described)
    server.execute(
        f'DROP TABLE IF EXISTS "{name}"',
        f'CREATE TABLE "{name}" ({columns})',
        f'INSERT INTO "{name}" SELECT {picked} FROM incoming',
    )


def _sail(tables: dict[str, pa.Table], directory: Path) -> EngineWorld:
    from pyiceberg.catalog.sql import SqlCatalog

    directory.mkdir(parents=True, exist_ok=True)
    catalog = SqlCatalog(
        "test", uri=f"sqlite:///{directory}/catalog.db", warehouse=f"file://{directory}"
    )
    catalog.create_namespace_if_not_exists("accel")
    server = SailServer()
    snapshots, iceberg = {}, {}
    for name, rows in tables.items():
        table = catalog.create_table(f"accel.{name}", schema=rows.schema)
        table.append(rows)
        snapshot = table.current_snapshot()
        assert snapshot is not None
        snapshots[name], iceberg[name] = str(snapshot.snapshot_id), table
        server.register(name, table.location())
    engine = open_engine(EngineSettings(kind="flightsql", uri=server.uri), "spark")
    names = {name: (name,) for name in tables}
    return EngineWorld("sail", server, engine, names, snapshots, iceberg)


class Worlds:
    """The engines of a test run, each started when a test first wants it."""

    def __init__(self, directory: Path) -> None:
        self.duckdb = duckdb_world()
        self.random = make_world(self.duckdb, "r", RANDOM_SEED)
        make_edges(self.duckdb)
        names = ("fact", "dim", *TABLES, *(layout.table for layout in self.random.layouts))
        self.rows = {name: rows_of(self.duckdb, name) for name in names}
        as_loaded(self.duckdb, self.random)
        load_edges(self.duckdb)
        self.tables = {
            name: Table(DatasetId(TENANT, name), columns_of(self.duckdb, name)) for name in names
        }
        self._directory = directory
        self._started: dict[str, EngineWorld | NotInstalled] = {}

    def start(self, kind: str) -> EngineWorld:
        """
        Raises:
            NotInstalled: this machine does not have it.
        """
        found = self._started.get(kind)
        if found is None:
            try:
                found = start_world(kind, self.rows, self._directory / kind)
            except NotInstalled as error:
                found = error
            self._started[kind] = found
        if isinstance(found, NotInstalled):
            raise found
        return found

    def close(self) -> None:
        for world in self._started.values():
            if isinstance(world, EngineWorld):
                world.close()
        self.duckdb.close()


def started(worlds: Worlds, kind: str) -> EngineWorld:
    """The engine of `kind`; the test is skipped where this machine does not have it."""
    try:
        return worlds.start(kind)
    except NotInstalled as error:
        pytest.skip(str(error))
