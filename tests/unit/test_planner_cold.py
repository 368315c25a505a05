"""Routing of shards that are in no hot executor."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accel_dask.errors import NotResident, ScanLimit
from accel_dask.model.dataset import ColdPolicy
from accel_dask.model.epoch import ShardSummary
from accel_dask.model.executor import Attachment, ExecutorKind
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId, WorkerId
from accel_dask.model.routing import DatasetRoute, ExecutorRoute, RoutingTable
from accel_dask.model.snapshot import Column
from accel_dask.model.tenant import Quota
from accel_dask.query_planner.cache import PlanCache
from accel_dask.query_planner.pipeline import explain, plan_query
from accel_dask.query_planner.plan import FragmentKind, PlanContext, QueryPlan

ACME = TenantId("acme")
EPOCH = EpochNumber(4)
BYTES = 1000
COUNT = "select count(*) from flights"


def shard(name: str, index: int) -> ShardId:
    return ShardId(f"{name}{index}".encode().hex().ljust(32, "0"))


def executor(worker: str, *held: str, kind: ExecutorKind = ExecutorKind.HOT) -> ExecutorRoute:
    """`held`: as `flights0`."""
    return ExecutorRoute(
        worker=WorkerId(worker),
        tenant=ACME,
        generation=2 if kind is ExecutorKind.COLD else 1,
        incarnation=f"{worker}{kind}",
        address=f"grpc://{worker}:{kind}",
        attachments=frozenset(
            Attachment(one[:-1], EPOCH, shard(one[:-1], int(one[-1]))) for one in held
        ),
        kind=kind,
    )


def cold(worker: str, *held: str) -> ExecutorRoute:
    return executor(worker, *held, kind=ExecutorKind.COLD)


def dataset(
    name: str, shards: int, *executors: ExecutorRoute, stays: tuple[int, ...] = (), **fields: object
) -> DatasetRoute:
    known = {"cold": ColdPolicy.ALLOW, "cold_because": "hot_shards is 1"} | fields
    return DatasetRoute(
        dataset_id=DatasetId(ACME, name),
        epoch=EPOCH,
        snapshot_id=None,
        columns=(Column(name="x", type="BIGINT"),),
        shards=tuple(
            ShardSummary(shard_id=shard(name, i), rows=10, source_bytes=BYTES)
            for i in range(shards)
        ),
        executors=executors,
        cold_shards=frozenset(shard(name, i) for i in stays),
        **known,  # type: ignore[arg-type]
    )


def context(
    *datasets: DatasetRoute, avoid: tuple[str, ...] = (), limit: int = 10**6
) -> PlanContext:
    routing = RoutingTable(1, {one.dataset_id: one for one in datasets}, {}, {}, b"")
    quota = Quota(max_cold_scan_bytes=limit)
    return PlanContext(tenant=ACME, routing=routing, quota=quota, avoid=frozenset(avoid))


def places(plan: QueryPlan) -> list[str]:
    return [f"{one.kind} {one.worker}" for one in plan.fragments[0].candidates]


ALL = ("flights0", "flights1", "flights2")
HOT_1, HOT_2 = executor("w1", *ALL), executor("w2", *ALL)
COLD_1, COLD_2 = cold("w1", *ALL), cold("w2", *ALL)
WHOLE = dataset("flights", 3, HOT_1, HOT_2, COLD_1, COLD_2)


def test_cold_executors_are_the_last_that_a_hot_query_turns_to() -> None:
    plan = plan_query(COUNT, context(WHOLE))
    assert [place.split()[0] for place in places(plan)] == ["hot", "hot", "cold", "cold"]
    assert plan.fragments[0].kind is FragmentKind.HOT
    assert plan.datasets[0].cold_shards == 0


def test_they_do_not_stand_in_for_more_than_may_be_read_cold() -> None:
    plan = plan_query(COUNT, context(WHOLE, limit=3 * BYTES - 1))
    assert {place.split()[0] for place in places(plan)} == {"hot"}


def test_executors_to_avoid_are_stood_in_for() -> None:
    avoid = (HOT_1.address, HOT_2.address)
    plan = plan_query(COUNT, context(WHOLE, avoid=avoid))
    assert plan.fragments[0].kind is FragmentKind.COLD
    assert {place.split()[0] for place in places(plan)} == {"cold"}
    too_much = plan_query(COUNT, context(WHOLE, avoid=avoid, limit=BYTES))
    assert {place.split()[0] for place in places(too_much)} == {"hot"}, "they may be back"


def test_what_is_cold_for_good_is_read_by_one_cold_executor_if_all_is() -> None:
    routing = dataset("flights", 3, COLD_1, COLD_2, stays=(0, 1, 2))
    plan = plan_query(COUNT, context(routing))
    assert plan.fragments[0].kind is FragmentKind.COLD
    assert len(places(plan)) == 2
    assert plan.fragments[0].inputs == ()
    assert plan.datasets[0].cold_shards == 3
    assert any("3 stay at the source: hot_shards is 1" in reason for reason in plan.reasons)
    assert "(cold)" in explain(plan)


def test_hot_and_cold_shards_are_merged_by_a_hot_coordinator() -> None:
    hot = executor("w1", "flights2")
    routing = dataset("flights", 3, hot, COLD_1, COLD_2, stays=(0,))
    plan = plan_query(COUNT, context(routing))
    assert places(plan) == ["hot w1"]
    (part,) = plan.fragments[0].inputs[0].parts
    assert part.kind is FragmentKind.COLD
    assert [one.is_cold for one in part.candidates] == [True, True]
    (token,) = part.tokens
    assert set(token.shards) == {shard("flights", 0), shard("flights", 1)}
    (reason,) = [one for one in plan.reasons if one.startswith("cold")]
    assert reason == (
        "cold: 2 of the 3 shards of acme.flights@4, 2,000 bytes of files (1 stay at the source: "
        "hot_shards is 1; 1 are on no hot executor at the moment)"
    )


def test_a_cold_executor_stands_in_for_a_peer_of_a_spread_query_too() -> None:
    routing = dataset(
        "flights", 3, executor("w1", "flights0", "flights1"), executor("w2", "flights2"), COLD_1
    )
    plan = plan_query(COUNT, context(routing))
    (part,) = plan.fragments[0].inputs[0].parts
    assert part.kind is FragmentKind.HOT
    assert [one.kind for one in part.candidates] == [ExecutorKind.HOT, ExecutorKind.COLD]


def test_pruning_comes_first() -> None:
    hot = executor("w1", "flights2")
    routing = dataset("flights", 3, hot, COLD_1, stays=(0, 1))
    plan = plan_query("select 1 from flights where false", context(routing))
    assert places(plan)[0] == "hot w1"
    assert plan.datasets[0].cold_shards == 0


def test_a_join_gathers_cold_rows_where_the_other_table_is_hot_alone() -> None:
    hot = executor("w1", "flights2", "carriers0")
    routing = dataset("flights", 3, hot, COLD_1, stays=(0, 1))
    carriers = dataset("carriers", 1, hot, cold=ColdPolicy.REFUSE)
    plan = plan_query("select count(*) from flights join carriers using (x)",
                      context(routing, carriers))  # fmt: skip
    assert places(plan) == ["hot w1"]
    (part,) = plan.fragments[0].inputs[0].parts
    assert {token.dataset for token in part.tokens} == {"flights"}


def test_a_table_that_would_be_read_cold_again_for_a_join_counts_as_well() -> None:
    hot = executor("w1", "flights2", "carriers0", "carriers1")
    reader = cold("w2", *ALL, "carriers0", "carriers1")
    routing = dataset("flights", 3, hot, reader, stays=(0, 1))
    carriers = dataset("carriers", 2, hot, reader)
    sql = "select count(*) from flights join carriers using (x)"

    def read(limit: int) -> set[str]:
        plan = plan_query(sql, context(routing, carriers, limit=limit))
        return {t.dataset for p in plan.fragments[0].inputs[0].parts for t in p.tokens}

    assert read(4 * BYTES) == {"flights", "carriers"}
    assert read(4 * BYTES - 1) == {"flights"}


def test_more_than_may_be_read_cold_is_refused_with_limit_and_dataset() -> None:
    routing = dataset("flights", 3, executor("w1", "flights2"), COLD_1, stays=(0, 1))
    with pytest.raises(ScanLimit, match=r"2 shards.*acme\.flights.*2,000.*1,999.*max_cold_scan"):
        plan_query(COUNT, context(routing, limit=2 * BYTES - 1))


def test_what_only_has_to_come_back_is_waited_for_instead() -> None:
    routing = dataset("flights", 3, executor("w1", "flights2"), COLD_1)
    with pytest.raises(NotResident, match=r"at the moment.*max_cold_scan_bytes.*try again"):
        plan_query(COUNT, context(routing, limit=BYTES))


def test_without_the_policy_the_way_out_is_named() -> None:
    routing = dataset("flights", 3, executor("w1", "flights2"), cold=ColdPolicy.REFUSE)
    with pytest.raises(NotResident, match=r'2 of the 3 shards of acme\.flights@4.*cold = "allow"'):
        plan_query(COUNT, context(routing))


def test_with_the_policy_but_without_a_cold_executor_that_is_said() -> None:
    routing = dataset("flights", 3, executor("w1", "flights2"), stays=(0, 1))
    with pytest.raises(NotResident, match="no cold executor reads them either"):
        plan_query(COUNT, context(routing))


def test_rollups_are_not_read_cold() -> None:
    routing = replace(
        dataset("flights", 3, executor("w1", "flights2"), COLD_1), table="rollup_by_x"
    )
    with pytest.raises(NotResident, match="no cold executor"):
        plan_query("select x from flights", context(routing))
    whole = plan_query("select x from flights", context(replace(WHOLE, table="rollup_by_x")))
    assert {place.split()[0] for place in places(whole)} == {"hot"}


def test_a_cached_plan_does_not_outlive_another_residency() -> None:
    cache = PlanCache()
    first = cache.plan(COUNT, context(WHOLE))
    assert cache.plan(COUNT, context(WHOLE)) is first
    changed = dataset("flights", 3, executor("w1", "flights2"), COLD_1, stays=(0, 1))
    assert cache.plan(COUNT, context(changed)).datasets[0].cold_shards == 2


def test_a_query_over_no_table_runs_on_a_cold_executor_if_there_is_no_other() -> None:
    routing = dataset("flights", 3, COLD_1, stays=(0, 1, 2))
    assert places(plan_query("select 1", context(routing))) == ["cold w1"]
