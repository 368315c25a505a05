"""What of a spread table is moved, for which query."""

from __future__ import annotations

import pytest
from routes import executor_route

from accel_dask.model.epoch import ShardSummary
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.routing import DatasetRoute, RoutingTable
from accel_dask.model.snapshot import Column, ColumnStats
from accel_dask.query_planner.disjoint import disjoint_columns
from accel_dask.query_planner.pipeline import plan_query
from accel_dask.query_planner.plan import PlanContext

ACME = TenantId("acme")
EPOCH = EpochNumber(1)
SHARDS = {name: ShardId(f"{number:032x}") for number, name in enumerate(
    ["sales 0", "sales 1", "returns 0", "returns 1", "stores"]
)}  # fmt: skip
COLUMNS = {
    "sales": "id BIGINT, store BIGINT, price DOUBLE, note VARCHAR, day DATE, sent DATE",
    "returns": "sale BIGINT, store BIGINT, day DATE, reason VARCHAR",
    "stores": "store BIGINT, city VARCHAR, country VARCHAR",
}


def columns(name: str) -> tuple[Column, ...]:
    pairs = [text.split() for text in COLUMNS[name].split(", ")]
    return tuple(Column(name=column, type=kind) for column, kind in pairs)


def routing() -> RoutingTable:
    """Two executors: each has half of both facts, and all of the stores."""
    held: list[set[Attachment]] = [set(), set()]
    routes = []
    for name in COLUMNS:
        shards = [shard for told, shard in SHARDS.items() if told.startswith(name)]
        for number, shard in enumerate(shards):
            for host in (0, 1) if len(shards) == 1 else (number,):
                held[host].add(Attachment(name, EPOCH, shard))
        routes.append(
            (name, tuple(ShardSummary(shard_id=s, rows=9, source_bytes=9) for s in shards))
        )
    executors = tuple(
        executor_route(held[host], worker=f"w{host}", tenant=ACME) for host in range(2)
    )
    datasets = {
        DatasetId(ACME, name): DatasetRoute(
            dataset_id=DatasetId(ACME, name), epoch=EPOCH, snapshot_id=None,
            columns=columns(name), shards=shards, executors=executors,
        )
        for name, shards in routes
    }  # fmt: skip
    return RoutingTable(1, datasets, {}, {}, b"")


def part_of(sql: str, table: str) -> str:
    """The SQL of the part that reads `table`."""
    plan = plan_query(sql, PlanContext(tenant=ACME, routing=routing()))
    found = [
        part.sql
        for one in plan.fragments[0].inputs
        for part in one.parts
        if f"of acme.{table}" in one.because
    ]
    assert found
    return found[0]


# Query | table | what its part says | what it does not. One a line.
# ruff: noqa: E501
MOVED = """
select s.note, r.reason from sales s join returns r on s.id = r.sale where s.price > 5|sales|WHERE (s.price > 5)|"day"
select s.note, r.reason from sales s join returns r on s.id = r.sale where s.price > 5|sales|SELECT "id", "note" FROM|SELECT "id", "price"
select s.note from sales s join returns r on s.id = r.sale where s.day < s.sent|sales|(s.day < s.sent)|"store"
select s.note from sales s, returns r, stores t where s.id = r.sale and r.store = t.store and t.city = 'Bern'|returns|"r"."store" IN (SELECT "t"."store" FROM|reason
select s.note from sales s, returns r, stores t where s.id = r.sale and r.store = t.store|returns|SELECT "sale", "store"|IN (
select s.note from sales s join returns r on s.id = r.sale left join stores t on t.store = s.store and t.city = 'x'|sales|SELECT|IN (
select s.id from sales s where exists (select * from returns r where r.sale = s.id and r.reason = 'late')|returns|SELECT DISTINCT "sale"|"day"
select s.id from sales s where s.id in (select sale from returns where day > date '2024-01-01')|returns|SELECT DISTINCT sale AS|"reason"
select s.id from sales s where s.id in (select sale from returns order by day, sale limit 3)|returns|LIMIT 3|DISTINCT
select s.id from sales s where (select max(sale) from returns r where r.store = s.store) in (1, 2)|returns|SELECT|DISTINCT
select t.city, (select avg(s.price) from sales s where s.store = t.store) from stores t where t.country = 'CH'|sales|"s"."store" IN (SELECT "t"."store" FROM|note
select s.id, r.sale from sales s full join returns r on s.id = r.sale and s.price > 3|sales|SELECT "id", "price"|WHERE
select s.id, r.sale from returns r left join sales s on s.id = r.sale and s.price > 3|sales|WHERE (s.price > 3)|SELECT "id", "price"
select s.id, r.sale from sales s left join returns r on s.id = r.sale and s.price > 3|sales|SELECT "id", "price"|WHERE
with c as (select 1 as store) select s.id from sales s, returns r where s.id = r.sale and exists (select 1 from stores t where t.city = 'x')|sales|SELECT|IN (
""".strip()


@pytest.mark.parametrize("line", MOVED.splitlines())
def test_no_more_is_moved_than_the_query_needs(line: str) -> None:
    sql, table, has, lacks = line.split("|")
    found = part_of(sql, table)
    assert has in found
    assert lacks not in found


def test_a_name_that_may_be_of_a_cte_is_not_taken_for_an_outer_column() -> None:
    sql = """with c as (select sale as city_id, reason from returns)
        select t.city from stores t where t.country = 'CH' and t.store in (
            select s.id from sales s, c where s.store = store)"""
    assert " IN (" not in part_of(sql, "sales")


def stats(lower: str | None, upper: str | None, nulls: int | None = 0) -> tuple[ColumnStats, ...]:
    return (ColumnStats(name="Day", null_count=nulls, lower=lower, upper=upper),)


@pytest.mark.parametrize(
    ("shards", "is_disjoint"),
    [
        ([stats("2024-01-01", "2024-01-31"), stats("2024-02-01", "2024-02-09")], True),
        ([stats("2024-01-01", "2024-02-01"), stats("2024-02-01", "2024-02-09")], False),
        ([stats("2024-01-01", "2024-12-31"), stats("2024-02-01", "2024-02-09")], False),
        ([stats("2024-01-01", "2024-01-31", 1), stats("2024-02-01", "2024-02-09")], True),
        ([stats("2024-01-01", "2024-01-31", 1), stats("2024-02-01", "2024-02-09", 2)], False),
        ([stats("2024-01-01", "2024-01-31", None), stats("2024-02-01", "2024-02-09")], False),
        ([stats(None, None, 9), stats("2024-02-01", "2024-02-09")], True),
        ([stats(None, None, 9), stats("2024-02-01", "2024-02-09", 1)], False),
        ([stats(None, "2024-01-31"), stats("2024-02-01", "2024-02-09")], False),
        ([(), stats("2024-02-01", "2024-02-09")], False),
        ([stats("11999-01-01", "2024-01-31"), stats("2024-02-01", "2024-02-09")], False),
    ],
)
def test_parts_are_disjoint_by_a_column_if_statistics_prove_it(
    shards: list[tuple[ColumnStats, ...]], is_disjoint: bool
) -> None:
    ids = [ShardId(f"{number:032x}") for number in range(len(shards))]
    route = DatasetRoute(
        dataset_id=DatasetId(ACME, "sales"), epoch=EPOCH, snapshot_id=None, executors=(),
        columns=(Column(name="Day", type="DATE"), Column(name="price", type="DOUBLE")),
        shards=tuple(
            ShardSummary(shard_id=shard, rows=9, source_bytes=9, stats=told)
            for shard, told in zip(ids, shards, strict=True)
        ),
    )  # fmt: skip
    found = disjoint_columns(route, [[one] for one in ids], {"day", "price"})
    assert found == ({"day"} if is_disjoint else set())
    assert disjoint_columns(route, [ids, []], {"day"}) in (set(), {"day"})
