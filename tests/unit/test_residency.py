"""What of a snapshot is in memory, what stays at the source, and who reads that."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulated_world import SECOND, World, make_dataset, shard_task

from accel_dask.model.dataset import ColdPolicy, Dataset, Spread
from accel_dask.model.executor import ExecutorKind, ExecutorPlan, ExecutorState
from accel_dask.model.ids import EpochNumber, ShardId, WorkerId
from accel_dask.model.placement import Placement
from accel_dask.model.routing import build_routing
from accel_dask.model.tenant import MIB
from accel_dask.scheduler_plugin.admission import memory_is_coming_back
from accel_dask.scheduler_plugin.budget import Ledger
from accel_dask.scheduler_plugin.publish import is_short_of_memory
from accel_dask.scheduler_plugin.waiting import waiting_for

COLD = make_dataset(cold=ColdPolicy.ALLOW)
SHARDS = ["a", "b", "c", "d"]
ROOMY = {"memory_bytes_per_host": 512 * MIB, "executor_memory_bytes": 16 * MIB}
FOR_TWO = {"memory_bytes_per_host": 18 * MIB, "executor_memory_bytes": 16 * MIB}
"""Two shards fit."""


def world_of(dataset: Dataset, hosts: int = 1, memory: int = 1024 * MIB, **quota: int) -> World:
    world = World().begin(hosts=hosts, memory_bytes=memory, **{"cold_memory_bytes": MIB, **quota})
    world.declare(dataset)
    return world


def placement_of(world: World, dataset: Dataset, number: int = 1) -> Placement:
    found = world.view.placement(dataset.dataset_id, EpochNumber(number))
    assert found is not None
    return found


def cold_of(world: World, dataset: Dataset, number: int = 1) -> set[str]:
    return set(placement_of(world, dataset, number).cold_shards)


def plans(world: World, kind: ExecutorKind) -> list[ExecutorPlan]:
    return [plan for plan in world.view.records(ExecutorPlan) if plan.kind is kind]


def attached(plan: ExecutorPlan) -> list[str]:
    return [f"{a.epoch}/{a.shard_id}" for a in plan.attachments]


def published(dataset: Dataset, hosts: int = 1, **quota: int) -> World:
    world = world_of(dataset, hosts, **quota)
    world.publish(dataset, SHARDS)
    world.settle()
    return world


@pytest.mark.parametrize("spread", list(Spread))
def test_as_many_of_the_last_shards_as_fit_are_in_memory(spread: Spread) -> None:
    dataset = replace(COLD, spread=spread)
    world = published(dataset, **FOR_TWO)
    assert cold_of(world, dataset) == {"a", "b"}
    assert world.serving_number(dataset) == 1
    epoch = world.view.serving_epoch(dataset.dataset_id)
    assert epoch is not None
    assert "2 of 4 shards stay cold: memory does not hold more" in epoch.story[0].because
    assert "2 of 4 shards stay cold" in epoch.reason
    route = build_routing(world.view).datasets[dataset.dataset_id]
    assert route.cold_shards == {"a", "b"}
    assert "memory_bytes_per_host" in route.cold_because


def test_the_same_snapshot_is_refused_without_the_policy() -> None:
    dataset = make_dataset()
    world = published(dataset, **FOR_TWO)
    assert world.states(dataset) == [(1, "FAILED")]


@pytest.mark.parametrize(("hot", "cold"), [(0, "abcd"), (1, "abc"), (3, "a"), (4, ""), (9, "")])
def test_the_owner_says_how_many_shards_are_in_memory(hot: int, cold: str) -> None:
    dataset = replace(COLD, hot_shards=hot)
    world = published(dataset, **ROOMY)
    assert cold_of(world, dataset) == set(cold)
    assert placement_of(world, dataset).cold_because == (f"hot_shards is {hot}" if cold else "")
    assert world.serving_number(dataset) == 1
    assert len(plans(world, ExecutorKind.HOT)) == (1 if hot else 0)


def test_a_cold_executor_has_all_shards_of_what_is_served_and_two_hosts_run_one() -> None:
    world = published(replace(COLD, hot_shards=1), hosts=4, **ROOMY)
    cold = plans(world, ExecutorKind.COLD)
    assert len(cold) == 2
    assert {tuple(attached(plan)) for plan in cold} == {("1/a", "1/b", "1/c", "1/d")}
    assert len({plan.worker for plan in cold}) == 2
    assert world.settle() == 0, "and it stays so"


def test_a_dataset_without_the_policy_is_on_no_cold_executor() -> None:
    world = published(COLD, **ROOMY)
    other = make_dataset(name="other")
    world.declare(other)
    world.publish(other, ["x"])
    world.settle()
    assert [attached(plan) for plan in plans(world, ExecutorKind.COLD)] == [
        ["1/a", "1/b", "1/c", "1/d"]
    ]


def test_an_epoch_with_cold_shards_is_not_served_before_someone_reads_them() -> None:
    dataset = replace(COLD, hot_shards=0)
    world = world_of(dataset)
    world.publish(dataset, SHARDS)
    for _ in range(5):
        world.reconcile()
    assert world.states(dataset) == [(1, "VALIDATING")]
    epoch = world.view.open_epoch(dataset.dataset_id)
    assert epoch is not None
    assert "cold executor" in waiting_for(world.view, epoch)
    world.settle()
    assert world.serving_number(dataset) == 1


def test_files_that_cannot_be_read_fail_the_epoch_with_their_reason() -> None:
    dataset = replace(COLD, hot_shards=1)
    world = world_of(dataset)
    world.publish(dataset, SHARDS)
    world.load(WorkerId("host-1"), ShardId("d"))
    for _ in range(5):
        world.reconcile()
    (plan,) = plans(world, ExecutorKind.COLD)
    world.put_executor(plan, ExecutorState.FAILED, "COLD_READ_FAILED: file 7 is gone")
    world.reconcile()
    assert world.states(dataset) == [(1, "FAILED")]
    assert "file 7 is gone" in world.view.epochs_of(dataset.dataset_id)[0].reason
    world.settle()
    assert plans(world, ExecutorKind.COLD) == []


def test_a_refresh_keeps_the_old_cold_executor_until_the_new_epoch_serves() -> None:
    dataset = replace(COLD, hot_shards=1)
    world = published(dataset, **ROOMY)
    world.gateway_applies("g1", revision=world.view.revision)
    (before,) = plans(world, ExecutorKind.COLD)
    world.publish(dataset, ["b", "c", "d", "e"], sequence=2)
    world.settle(gateways=False)
    assert world.serving_number(dataset) == 2
    assert before in plans(world, ExecutorKind.COLD), "a gateway still routes to epoch 1"
    world.settle()
    (after,) = plans(world, ExecutorKind.COLD)
    assert attached(after) == ["2/b", "2/c", "2/d", "2/e"]


def test_shards_of_a_lost_host_that_fit_nowhere_else_do_not_stop_a_load() -> None:
    dataset = replace(COLD, spread=Spread.SPREAD)
    world = world_of(dataset, hosts=2, **FOR_TWO)
    world.publish(dataset, SHARDS)
    assert cold_of(world, dataset) == set()
    world.host_down("host-2")
    world.settle()
    assert world.serving_number(dataset) == 1
    assert len(cold_of(world, dataset)) == 2


def test_a_lost_host_changes_nothing_of_what_is_cold_by_choice() -> None:
    dataset = replace(COLD, hot_shards=2, spread=Spread.SPREAD)
    world = published(dataset, hosts=3, **ROOMY)
    world.host_down("host-1")
    world.settle()
    assert cold_of(world, dataset) == {"a", "b"}
    cold = plans(world, ExecutorKind.COLD)
    assert {plan.worker for plan in cold if plan.worker in world.view.workers} == {
        "host-2",
        "host-3",
    }


def test_a_load_that_memory_does_not_hold_leaves_its_shard_cold() -> None:
    world = world_of(COLD, **ROOMY)
    world.publish(COLD, SHARDS)
    world.fail_load("host-1", "b", retryable=False, code="QUOTA_EXCEEDED")
    world.settle()
    assert cold_of(world, COLD) == {"b"}
    assert world.serving_number(COLD) == 1


def test_more_of_the_same_snapshot_comes_into_memory_when_it_is_published_with_more_room() -> None:
    world = published(COLD, **FOR_TWO)
    world.publish(COLD, SHARDS, sequence=1)
    world.settle()
    assert world.serving_number(COLD) == 1, "there is nothing to gain"
    tenant = next(iter(world.view.records(type(world.view.tenant(COLD.tenant)))))
    world.write(replace(tenant, quota=replace(tenant.quota, memory_bytes_per_host=64 * MIB)))
    world.publish(COLD, SHARDS, sequence=1)
    world.settle()
    assert world.serving_number(COLD) == 2
    assert cold_of(world, COLD, 2) == set()


def test_a_snapshot_waits_for_memory_that_is_coming_back() -> None:
    world = published(COLD, **FOR_TWO)
    world.gateway_applies("g1", revision=world.view.revision)
    world.publish(COLD, ["e", "f"], sequence=2)
    world.settle(gateways=False)
    assert cold_of(world, COLD, 2) == {"e", "f"}, "epoch 1 is served until then"
    world.request(COLD)
    planned = world.planned(COLD, [shard_task("g"), shard_task("h")], 3)
    assert is_short_of_memory(world.view, planned)
    assert memory_is_coming_back(world.view, COLD)
    world.settle()
    assert not is_short_of_memory(world.view, planned)
    assert not memory_is_coming_back(world.view, COLD)


def test_another_policy_makes_another_epoch_of_the_same_snapshot() -> None:
    world = published(COLD, **ROOMY)
    changed = replace(COLD, hot_shards=1)
    world.declare(changed)
    world.publish(changed, SHARDS, sequence=1)
    world.settle()
    assert world.serving_number(changed) == 2
    assert cold_of(world, changed, 2) == {"a", "b", "c"}
    refused = make_dataset()
    world.declare(refused)
    world.publish(refused, SHARDS, sequence=1)
    world.settle()
    assert world.serving_number(refused) == 3
    assert cold_of(world, refused, 3) == set()
    assert plans(world, ExecutorKind.COLD) == []


def test_cold_memory_is_taken_off_what_its_hosts_offer() -> None:
    world = published(replace(COLD, hot_shards=1), hosts=3, cold_memory_bytes=100 * MIB, **ROOMY)
    ledger = Ledger(world.view, COLD.tenant)
    free = {host: ledger.host_free_bytes(host) for host in ledger.hosts}
    assert len(ledger.cold_hosts) == 2
    for host, left in free.items():
        hot = (16 + 1) * MIB if placement_of(world, COLD).shards_on(host) else 0
        cold = 100 * MIB if host in ledger.cold_hosts else 0
        assert left == 1024 * MIB - hot - cold


def test_without_a_host_for_a_cold_executor_nothing_is_left_cold() -> None:
    dataset = replace(COLD, hot_shards=1)
    world = world_of(dataset, memory=64 * MIB, cold_memory_bytes=100 * MIB, **ROOMY)
    world.publish(dataset, SHARDS)
    assert world.states(dataset) == [(1, "FAILED")]
    assert "cold_memory_bytes" in world.view.epochs_of(dataset.dataset_id)[0].reason
    roomy = replace(COLD, name="roomy")
    world.declare(roomy)
    world.publish(roomy, SHARDS)
    world.settle()
    assert world.serving_number(roomy) == 1, "all of it is in memory, and nobody stands in"
    served = world.view.serving_epoch(roomy.dataset_id)
    assert served is not None
    assert "no host has room for a cold executor to stand in" in waiting_for(world.view, served)
    assert plans(world, ExecutorKind.COLD) == []


def test_a_deleted_dataset_leaves_no_cold_executor() -> None:
    world = published(COLD, **ROOMY)
    world.write(delete=[COLD.path])
    world.settle()
    assert list(world.view.records(ExecutorPlan)) == []
    world.now_ns += 3600 * SECOND
    assert world.settle() == 0
