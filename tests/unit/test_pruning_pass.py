"""Pruning as a pass of the planner: what it leaves of a plan."""

from __future__ import annotations

import pytest
from routes import executor_route

from accel_dask.errors import NotResident
from accel_dask.model.epoch import ShardSummary
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.routing import DatasetRoute, RoutingTable
from accel_dask.model.snapshot import Column, ColumnStats
from accel_dask.query_planner.pipeline import explain, plan_query
from accel_dask.query_planner.plan import PlanContext, QueryPlan

ACME = TenantId("acme")
DAYS = [f"2013-01-{day:02d}" for day in range(1, 11)]
SHARDS = [ShardId(f"{index:032d}") for index in range(len(DAYS))]


def planned(sql: str, resident: range = range(len(DAYS))) -> QueryPlan:
    """The plan of `sql` over one shard a day, some of which are on an executor."""
    executor = executor_route(
        Attachment("flights", EpochNumber(1), SHARDS[index]) for index in resident
    )
    flights = DatasetRoute(
        dataset_id=DatasetId(ACME, "flights"),
        epoch=EpochNumber(1),
        snapshot_id=None,
        columns=(Column(name="day", type="DATE"), Column(name="n", type="INTEGER")),
        shards=tuple(
            ShardSummary(
                shard_id=shard,
                rows=5,
                source_bytes=1,
                stats=(ColumnStats(name="day", null_count=0, lower=day, upper=day),),
            )
            for shard, day in zip(SHARDS, DAYS, strict=True)
        ),
        executors=(executor,),
    )
    routing = RoutingTable(1, {flights.dataset_id: flights}, {}, {}, b"")
    return plan_query(sql, PlanContext(tenant=ACME, routing=routing))


def test_a_plan_names_only_the_shards_that_can_match() -> None:
    plan = planned("SELECT sum(n) FROM flights WHERE day BETWEEN '2013-01-03' AND '2013-01-04'")
    (fragment,) = plan.fragments
    assert [shard in fragment.sql for shard in SHARDS] == [index in {2, 3} for index in range(10)]
    assert fragment.tokens[0].shards == (SHARDS[2], SHARDS[3])
    assert (plan.datasets[0].shards, plan.datasets[0].total_shards) == (2, 10)
    assert "pruned flights to 2 of 10 shards by day" in explain(plan)


def test_a_shard_that_is_pruned_need_not_be_resident() -> None:
    sql = "SELECT sum(n) FROM flights WHERE day = '2013-01-03'"
    assert planned(sql, resident=range(3)).datasets[0].shards == 1
    with pytest.raises(NotResident):
        planned(sql, resident=range(2))


def test_where_no_shard_can_match_one_is_read_so_that_the_executor_checks_the_epoch() -> None:
    plan = planned("SELECT * FROM flights WHERE 1 = 0", resident=range(7, 9))
    (fragment,) = plan.fragments
    assert fragment.tokens[0].shards == (SHARDS[7],)
    assert SHARDS[7] in fragment.sql
    assert plan.datasets[0].shards == 1
    assert "pruned flights to 0 of 10 shards" in explain(plan)


def test_a_query_without_a_usable_condition_says_nothing_of_pruning() -> None:
    plan = planned("SELECT sum(n) FROM flights WHERE n = ?")
    assert plan.datasets[0].shards == 10
    assert "pruned" not in explain(plan)
