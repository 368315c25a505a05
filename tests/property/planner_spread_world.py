"""Datasets as plain tables, and cut into shards over simulated executors.

All executors are one DuckDB; what a fragment names is checked against what its executor has.
Inputs travel as Arrow and get their types back as they do between real executors.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import MappingProxyType

import duckdb
import pyarrow as pa
from answers import without_rewrites
from routes import executor_route

from accel_dask.model.dataset import ColdPolicy
from accel_dask.model.epoch import ShardSummary
from accel_dask.model.executor import Attachment, ExecutorKind
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.rollup import RollupTable, parse_rollup, resolve_rollups, rollup_table
from accel_dask.model.routing import DatasetRoute, RoutingTable
from accel_dask.model.snapshot import Column, ColumnStats
from accel_dask.model.tenant import Quota
from accel_dask.model.ticket import EpochToken
from accel_dask.query_planner.pipeline import plan_query
from accel_dask.query_planner.plan import Fragment, FragmentKind, Part, PlanContext, QueryPlan
from accel_dask.worker_plugin.executor.part_types import typed_columns, types_to_cast, with_types
from accel_dask.worker_plugin.rollup_build import build_rollup, check_rollup

ACME = TenantId("acme")
MAY_ANSWER = (duckdb.BinderException, duckdb.ConversionException, duckdb.OutOfRangeException)
"""Where plain DuckDB says this of a random query, there may be an answer all the same: it does not
bind all that has a meaning, and whether a row is computed that a filter drops is open."""
EPOCH = EpochNumber(7)
_SHARD = re.compile(r"\bs_([0-9a-f]{32})\b")
_INPUT = re.compile(r'"(input_\d+)"')

FLIGHTS = """
SELECT i AS x, (i * 7) % 5 AS carrier, DATE '2013-01-01' + (i % 10)::INT AS day,
    {'y': i, 'z': 'q'} AS s, [i, i + 1] AS l, ((i * 3) % 16) / 2.0::DOUBLE AS delay,
    'n' || (i % 7) AS name, CASE WHEN i % 5 > 0 THEN (i * 11) % 23 END AS gap,
    ((i * 13) % 100)::DECIMAL(12, 2) / 4 AS price, (i % 4)::HUGEINT AS big,
    TIMESTAMP '2013-01-01' + to_minutes(i * 37) AS at, i % 3 = 0 AS flag,
    CASE WHEN i % 6 > 0 THEN 'it''s ' || (i % 3) END AS note, (i % 6)::SMALLINT AS small,
    CASE i % 9 WHEN 0 THEN 'NaN'::DOUBLE WHEN 1 THEN NULL WHEN 2 THEN '-0.0'::DOUBLE
        ELSE i % 4 END AS odd, ((i * 7) % 40 / 4)::DECIMAL(4, 1) AS fee
FROM range(60) t(i)
"""
TABLES = {
    "flights": FLIGHTS,
    "hops": """SELECT (i * 5) % 17 AS x, i % 4 AS leg, (i % 3)::DECIMAL(9, 2) AS cost,
        CASE WHEN i % 4 > 0 THEN 'h' || i END AS label FROM range(24) t(i)""",
    "airlines": "SELECT i AS carrier, 'name' || i AS label, i % 2 AS kind FROM range(4) t(i)",
    "nothing": "SELECT 1 AS a, 'x' AS b WHERE false",
}


@dataclass
class SpreadWorld:
    """One sharding of the tables over executors."""

    plain: duckdb.DuckDBPyConnection
    sharded: duckdb.DuckDBPyConnection
    context: PlanContext
    seed: int
    plans: dict[str, int] = field(default_factory=dict)

    def expected(self, sql: str, values: list[object] | None = None) -> Result:
        return _result(self.plain.sql(sql, params=values))

    def plan(self, sql: str) -> QueryPlan:
        return plan_query(sql, self.context)

    def names(self, sql: str) -> list[str]:
        """The columns' names where one executor has everything."""
        whole = executor_route(
            Attachment(route.dataset_id.name, EPOCH, shard.shard_id)
            for route in self.context.routing.datasets_of(ACME)
            for shard in route.shards
        )
        datasets = {
            key: replace(route, executors=(whole,))
            for key, route in self.context.routing.datasets.items()
        }
        routing = RoutingTable(1, datasets, {}, {}, b"")
        plan = plan_query(sql, replace(self.context, routing=routing))
        assert not plan.fragments[0].inputs
        return list(self.sharded.cursor().sql(plan.fragments[0].sql).columns)

    def answer(self, sql: str, values: list[object] | None = None) -> Result:
        """The answer through the planner, its parts run one by one."""
        return self.run(self.plan(sql), values)

    def is_replicated(self, name: str) -> bool:
        """Whether every executor has all of a dataset."""
        route = self.context.routing.datasets[DatasetId(ACME, name)]
        shards = {Attachment(name, EPOCH, shard.shard_id) for shard in route.shards}
        return all(shards <= executor.attachments for executor in route.executors)

    def run(self, plan: QueryPlan, values: list[object] | None = None) -> Result:
        return _result(self.relation(plan, values))

    def relation(
        self, plan: QueryPlan, values: list[object] | None = None
    ) -> duckdb.DuckDBPyRelation:
        """The answer of a plan, its parts run one by one."""
        fragment = plan.fragments[0]
        inputs = {}
        for one in fragment.inputs:
            tables = [self._part(part, values) for part in one.parts]
            assert len({str(table.schema.metadata) for table in tables}) == 1
            whole = pa.concat_tables(tables)
            assert one.rows is None or whole.num_rows <= one.rows
            inputs[one.name] = whole
        self._check(fragment)
        assert set(_INPUT.findall(fragment.sql)) == set(inputs)
        cursor = self.sharded.cursor()
        for name, table in inputs.items():
            kinds = types_to_cast(table.schema)
            columns = "*" if kinds is None else typed_columns(table.schema, kinds)
            cursor.register(f"raw_{name}", table)
            cursor.execute(f"CREATE TEMP VIEW {name} AS SELECT {columns} FROM raw_{name}")
        return cursor.sql(fragment.sql, params=_picked(fragment.parameters, values))

    def _part(self, part: Part, values: list[object] | None) -> pa.Table:
        self._check(part)
        relation = self.sharded.cursor().sql(part.sql, params=_picked(part.parameters, values))
        kinds = relation.types
        table = relation.to_arrow_table()
        return table.cast(with_types(table.schema, kinds))

    def _check(self, fragment: Fragment | Part) -> None:
        named = {ShardId(found) for found in _SHARD.findall(fragment.sql)}
        assert named == {shard for token in fragment.tokens for shard in token.shards}
        assert (fragment.kind is FragmentKind.COLD) == fragment.candidates[0].is_cold
        for executor in fragment.candidates:
            assert not executor.is_cold or "rollup_" not in fragment.sql
            assert set(_attachments(fragment.tokens)) <= executor.attachments
        assert fragment.candidates


@dataclass(frozen=True)
class Result:
    names: list[str]
    types: list[str]
    rows: list[str]
    """In order."""


def _attachments(tokens: tuple[EpochToken, ...]) -> list[Attachment]:
    return [
        Attachment(token.dataset, token.epoch, shard) for token in tokens for shard in token.shards
    ]


def _picked(parameters: tuple[int, ...] | None, values: list[object] | None) -> list[object] | None:
    if values is None or parameters is None:
        return values
    return [values[index] for index in parameters] or None


def _result(relation: duckdb.DuckDBPyRelation) -> Result:
    names, types = list(relation.columns), [str(kind) for kind in relation.types]
    return Result(names, types, [repr(row) for row in relation.fetchall()])


def plain_database() -> duckdb.DuckDBPyConnection:
    plain = duckdb.connect(config={"threads": "1"})
    without_rewrites(plain)
    plain.execute("CREATE SCHEMA acme")
    for name, select in TABLES.items():
        plain.execute(f'CREATE TABLE acme."{name}" AS {select}')
    plain.execute("USE acme")
    return plain


def spread_world(
    seed: int,
    plain: duckdb.DuckDBPyConnection,
    *,
    hosts: int = 0,
    rollups: dict[str, tuple[str, ...]] | None = None,
) -> SpreadWorld:
    """Tables cut at random, with rollups; each shard on one or two of some executors."""
    draw = random.Random(seed)
    hosts = hosts or draw.choice([2, 2, 3, 4])
    cuts, whole = {}, set()
    for name in TABLES:
        table = plain.sql(f'FROM acme."{name}"').to_arrow_table()
        if name == "airlines" and draw.random() < 0.8:
            whole.add(name)
        cuts[name] = _cut(table, draw, name)
    known = frozenset(["x", "day", "carrier", "name"])
    return world_of(draw, plain, cuts, whole, hosts, known, rollups or {})


def world_of(
    draw: random.Random,
    plain: duckdb.DuckDBPyConnection,
    cuts: Mapping[str, Sequence[pa.Table]],
    whole: Set[str],
    hosts: int,
    known: Set[str],
    rollups: Mapping[str, tuple[str, ...]] = MappingProxyType({}),
) -> SpreadWorld:
    """Tables of `plain`, cut into these shards; those of `whole` are on every executor. `known`
    columns have statistics."""
    seed = draw.randrange(2**32)
    sharded = duckdb.connect(config={"threads": "1"})
    held: list[set[Attachment]] = [set() for _ in range(hosts)]
    datasets: dict[DatasetId, DatasetRoute] = {}
    for number, (name, parts) in enumerate(cuts.items()):
        described = plain.sql(f'FROM "{name}"')
        columns = tuple(
            Column(name=column, type=str(kind))
            for column, kind in zip(described.columns, described.types, strict=True)
        )
        dataset = DatasetId(ACME, name)
        declared = resolve_rollups(dataset, [*map(parse_rollup, rollups.get(name, ()))], columns)
        shards, counts = [], []
        for index, part in enumerate(parts):
            shard = ShardId(f"{seed:08x}{number:08x}{index:016x}")
            _attach(sharded, shard, part, columns)
            built = [rollup_table(dataset, one, columns) for one in declared]
            counts.append(_build(sharded, shard, built))
            is_counted = draw.random() < 0.9
            shards.append(
                ShardSummary(
                    shard_id=shard,
                    rows=part.num_rows if is_counted else None,
                    source_bytes=100,
                    stats=_stats(part, known) if draw.random() < 0.9 else (),
                )
            )
            copies = min(hosts, draw.choice([1, 1, 1, 2]))
            for host in range(hosts) if name in whole else draw.sample(range(hosts), copies):
                held[host].add(Attachment(name, EPOCH, shard))
        datasets[dataset] = DatasetRoute(
            dataset_id=dataset,
            epoch=EPOCH,
            snapshot_id=None,
            columns=columns,
            shards=tuple(shards),
            executors=(),
            rollups=declared,
            rollup_rows=tuple(counts) if declared else (),
        )
    executors = tuple(
        executor_route(held[host], worker=f"w{host}", tenant=ACME) for host in range(hosts)
    )
    datasets = {key: replace(route, executors=executors) for key, route in datasets.items()}
    context = PlanContext(
        tenant=ACME, routing=RoutingTable(1, datasets, {}, {}, b""), quota=Quota()
    )
    return SpreadWorld(plain, sharded, context, seed)


def cooled(world: SpreadWorld, seed: int) -> SpreadWorld:
    """`world` with shards of some tables in no hot executor; cold ones have all of these."""
    draw = random.Random(f"cold {seed}")
    routing = world.context.routing
    allowed = [key for key in routing.datasets if draw.random() < 0.7]
    every = {
        key: [Attachment(key.name, EPOCH, shard.shard_id) for shard in routing.datasets[key].shards]
        for key in allowed
    }
    share = draw.choice([0.3, 0.6, 1.0])
    gone = {one for shards in every.values() for one in shards if draw.random() < share}
    lasting = {one.shard_id for one in gone if draw.random() < 0.7}
    known = {one.address: one for route in routing.datasets.values() for one in route.executors}
    hot = [replace(one, attachments=one.attachments - gone) for one in known.values()]
    cold = [
        executor_route(
            (one for shards in every.values() for one in shards),
            worker=f"c{number}",
            generation=2,
            kind=ExecutorKind.COLD,
        )
        for number in range(draw.choice([1, 2]))
    ]
    datasets = {
        key: replace(
            route,
            executors=(*hot, *cold),
            cold=ColdPolicy.ALLOW if key in allowed else ColdPolicy.REFUSE,
            cold_shards=frozenset(s.shard_id for s in route.shards if s.shard_id in lasting),
            rollup_rows=tuple(
                () if shard.shard_id in lasting else rows
                for shard, rows in zip(route.shards, route.rollup_rows, strict=True)
            )
            if route.rollup_rows
            else (),
        )
        for key, route in routing.datasets.items()
    }
    context = replace(world.context, routing=RoutingTable(1, datasets, {}, {}, b""))
    return replace(world, context=context, plans={})


def _cut(table: pa.Table, draw: random.Random, name: str) -> list[pa.Table]:
    count = {"nothing": draw.choice([0, 1, 2])}.get(name, draw.choice([1, 2, 3, 5]))
    if name == "flights":
        count = draw.choice([2, 3, 4, 6])
    at = sorted(draw.choice(range(table.num_rows + 1)) for _ in range(max(count - 1, 0)))
    bounds = [0, *at, table.num_rows]
    return [table.slice(a, b - a) for a, b in pairwise(bounds)][:count]


def _stats(part: pa.Table, known: Set[str]) -> tuple[ColumnStats, ...]:
    """Of the columns that a source would have statistics of."""
    found = []
    for name in [name for name in part.column_names if name in known]:
        values = [value for value in part[name].to_pylist() if value is not None]
        found.append(
            ColumnStats(
                name=name,
                null_count=part.num_rows - len(values),
                lower=str(min(values)) if values else None,
                upper=str(max(values)) if values else None,
                exact=bool(values),
            )
        )
    return tuple(found)


def _build(
    connection: duckdb.DuckDBPyConnection, shard: ShardId, tables: list[RollupTable]
) -> tuple[int, ...]:
    """Rows of each rollup, built as the loader does."""
    if not tables:
        return ()
    connection.execute(f"USE s_{shard}")
    for table in tables:
        build_rollup(connection, table)
    counts = tuple(check_rollup(connection, shard, table) for table in tables)
    connection.execute("USE memory")
    return counts


def _attach(
    connection: duckdb.DuckDBPyConnection,
    shard: ShardId,
    rows: pa.Table,
    columns: tuple[Column, ...],
) -> None:
    selected = ", ".join(f'CAST("{c.name}" AS {c.type}) AS "{c.name}"' for c in columns)
    connection.execute(f"ATTACH ':memory:' AS s_{shard}")
    connection.register("rows", rows)
    connection.execute(f"CREATE TABLE s_{shard}.main.data AS SELECT {selected} FROM rows")
    connection.unregister("rows")
