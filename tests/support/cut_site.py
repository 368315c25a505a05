"""A table cut into shards that one engine serves by the planner's SQL, beside the whole one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import duckdb
from routes import executor_route

from accel_dask.model.epoch import ShardSummary
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.routing import DatasetRoute, RoutingTable
from accel_dask.model.snapshot import Column, ColumnStats
from accel_dask.query_planner.pipeline import plan_query
from accel_dask.query_planner.plan import PlanContext, QueryPlan

ACME = TenantId("acme")
EPOCH = EpochNumber(7)
CUTS = 4


class Site(NamedTuple):
    """The same rows as one table of an engine that does not optimise, and cut into shards."""

    oracle: duckdb.DuckDBPyConnection
    engine: duckdb.DuckDBPyConnection
    context: PlanContext

    def differs(self, sql: str, parameters: tuple[object, ...] = ()) -> str:
        """How the answers differ; empty: they do not."""
        physical = self.physical(sql)
        expected = self.oracle.execute(sql, parameters).fetchall()
        found = self.engine.execute(physical, parameters).fetchall()
        is_same = sorted(map(repr, found)) == sorted(map(repr, expected))
        return "" if is_same else f"{sql}: {found} instead of {expected}"

    def plan(self, sql: str) -> QueryPlan:
        return plan_query(sql, self.context)

    def physical(self, sql: str) -> str:
        return self.plan(sql).fragments[0].sql

    def names(self, sql: str) -> list[tuple[str, ...]]:
        return [
            tuple(column[0] for column in engine.execute(text).description or ())
            for engine, text in ((self.oracle, sql), (self.engine, self.physical(sql)))
        ]


@contextmanager
def cut_site(events: str, rows: int = 40) -> Iterator[Site]:
    """A site of the table `events`, made by that query. Its column `k` counts its rows."""
    oracle, engine = duckdb.connect(), duckdb.connect()
    for connection in (oracle, engine):
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET threads = 1")
    oracle.execute(f"CREATE TABLE events AS {events}")
    oracle.execute("PRAGMA disable_optimizer")
    dataset = DatasetId(ACME, "events")
    columns = tuple(
        Column(name=row[0], type=row[1]) for row in oracle.execute("DESCRIBE events").fetchall()
    )
    shards = tuple(_shard(engine, events, index, rows // CUTS, columns) for index in range(CUTS))
    executor = executor_route(Attachment("events", EPOCH, shard.shard_id) for shard in shards)
    route = DatasetRoute(
        dataset_id=dataset,
        epoch=EPOCH,
        snapshot_id=None,
        columns=columns,
        shards=shards,
        executors=(executor,),
    )
    routing = RoutingTable(1, {dataset: route}, {}, {}, b"")
    yield Site(oracle, engine, PlanContext(tenant=ACME, routing=routing))
    oracle.close()
    engine.close()


def _shard(
    engine: duckdb.DuckDBPyConnection,
    events: str,
    index: int,
    rows: int,
    columns: tuple[Column, ...],
) -> ShardSummary:
    shard = ShardId(f"{index:032x}")
    relation = f"s_{shard}.main.data"
    engine.execute(f"ATTACH ':memory:' AS s_{shard}")
    engine.execute(f"CREATE TABLE {relation} AS FROM ({events}) WHERE k // {rows} = {index}")
    stats = []
    for column in columns:
        if column.type.startswith("STRUCT"):
            continue
        lower, upper, nulls = engine.execute(
            f"SELECT min({column.name})::VARCHAR, max({column.name})::VARCHAR, "
            f"count(*) - count({column.name}) FROM {relation}"
        ).fetchall()[0]
        stats.append(ColumnStats(name=column.name, lower=lower, upper=upper, null_count=nulls))
    return ShardSummary(shard_id=shard, rows=rows, source_bytes=0, stats=tuple(stats))
