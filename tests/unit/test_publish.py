"""Publish requests and the commits that answer them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulated_world import World, change_quota, make_dataset, shard_task, spread_dataset

from accel_dask.errors import (
    CommitConflict,
    LoadError,
    NotAcceleratable,
    QuotaExceeded,
    SourceUnavailable,
)
from accel_dask.model.commit import apply_commit
from accel_dask.model.ids import EpochNumber, TenantId
from accel_dask.model.tenant import MIB
from accel_dask.scheduler_plugin.admission import admit, memory_is_coming_back
from accel_dask.scheduler_plugin.placement import place
from accel_dask.scheduler_plugin.publish import (
    can_take_up,
    is_current,
    load_plan,
    next_number,
    open_epoch,
    refuse,
)
from accel_dask.scheduler_plugin.summary import summarize
from accel_dask.scheduler_plugin.waiting import request_waits_for

FLIGHTS = make_dataset()


def world_with(hosts: int = 1, **quota: int) -> World:
    world = World().begin(hosts=hosts, **quota)
    world.declare(FLIGHTS)
    return world


def test_one_commit_opens_the_epoch_places_it_and_answers_the_request() -> None:
    world = world_with()
    request = world.request(FLIGHTS, "nonce-1")
    commit = open_epoch(world.round(), world.planned(FLIGHTS, [shard_task("a")], 7))
    world.apply(commit)
    epoch = world.view.open_epoch(FLIGHTS.dataset_id)
    assert epoch is not None
    assert (epoch.publish_nonce, epoch.sequence, epoch.number) == ("nonce-1", 7, 1)
    assert world.view.publish_request(FLIGHTS.dataset_id) is None
    assert world.view.placement(FLIGHTS.dataset_id, EpochNumber(1)) is not None
    assert "1 shards, 10 rows promised" in epoch.reason
    assert not can_take_up(world.view, request), "one epoch at a time"


def test_a_request_that_was_replaced_meanwhile_is_not_answered() -> None:
    world = world_with()
    world.request(FLIGHTS, "nonce-1")
    planned = world.planned(FLIGHTS, [shard_task("a")], 1)
    commit = open_epoch(world.round(), planned)
    world.request(FLIGHTS, "nonce-2")
    with pytest.raises(CommitConflict):
        apply_commit(world.view, commit)
    assert not is_current(world.view, planned)


@pytest.mark.parametrize("changed", ["dataset", "tenant"])
def test_a_declaration_that_changed_meanwhile_is_not_published_by(changed: str) -> None:
    world = world_with()
    world.request(FLIGHTS)
    planned = world.planned(FLIGHTS, [shard_task("a")], 1)
    commit = open_epoch(world.round(), planned)
    if changed == "dataset":
        world.write(replace(FLIGHTS, row_filter="delay > 0"))
        assert not is_current(world.view, planned)
    else:
        change_quota(world, threads=1)
    with pytest.raises(CommitConflict):
        apply_commit(world.view, commit)


def test_the_snapshot_that_is_served_makes_no_new_epoch() -> None:
    world = world_with()
    world.publish(FLIGHTS, ["a"], sequence=3)
    world.settle()
    world.request(FLIGHTS, "again")
    commit = open_epoch(world.round(), world.planned(FLIGHTS, [shard_task("a")], 3))
    world.apply(commit)
    assert "serves snapshot 3 (schema 0) already" in commit.because
    assert world.states(FLIGHTS) == [(1, "READY")]
    assert world.view.publish_request(FLIGHTS.dataset_id) is None


def test_the_same_snapshot_under_another_declaration_is_a_new_epoch() -> None:
    world = world_with()
    world.publish(FLIGHTS, ["a"], sequence=3)
    world.settle()
    filtered = replace(FLIGHTS, row_filter="delay > 0")
    world.declare(filtered)
    world.publish(filtered, ["a-filtered"], sequence=3)
    world.settle()
    assert world.states(FLIGHTS) == [(2, "READY")]


def test_an_older_snapshot_is_refused_unless_it_is_named() -> None:
    world = world_with()
    world.publish(FLIGHTS, ["a"], sequence=9)
    world.settle()
    world.request(FLIGHTS, "older")
    with pytest.raises(LoadError, match="publish it by its id"):
        open_epoch(world.round(), world.planned(FLIGHTS, [shard_task("b")], 8))
    world.request(FLIGHTS, "rollback", snapshot="8")
    commit = open_epoch(world.round(), world.planned(FLIGHTS, [shard_task("b")], 8))
    world.apply(commit)
    assert world.states(FLIGHTS) == [(1, "READY"), (2, "LOADING")]


def test_a_refused_request_leaves_a_failed_epoch_with_its_nonce_and_reason() -> None:
    world = world_with()
    request = world.request(FLIGHTS, "nonce-1")
    world.apply(refuse(world.round(), request, SourceUnavailable("the catalog is away")))
    (epoch,) = world.view.epochs_of(FLIGHTS.dataset_id)
    assert (epoch.state, epoch.publish_nonce) == ("FAILED", "nonce-1")
    assert epoch.reason == "SOURCE_UNAVAILABLE: the catalog is away"
    assert next_number(world.view, FLIGHTS.dataset_id) == 2


def test_a_snapshot_without_shards_cannot_be_opened() -> None:
    world = world_with()
    world.request(FLIGHTS)
    snapshot = world.planned(FLIGHTS, [shard_task("a")], 1).snapshot
    with pytest.raises(NotAcceleratable, match=r"acme\.flights"):
        load_plan(FLIGHTS, EpochNumber(1), snapshot, ())


def test_a_load_plan_keeps_its_tasks_in_the_epochs_order() -> None:
    world = world_with()
    world.request(FLIGHTS)
    planned = world.planned(FLIGHTS, [shard_task("b"), shard_task("a")], 1)
    world.apply(open_epoch(world.round(), planned))
    epoch = world.view.open_epoch(FLIGHTS.dataset_id)
    assert epoch is not None
    assert [s.shard_id for s in epoch.shards] == ["b", "a"]
    assert [t.shard_id for t in planned.plan.tasks] == ["b", "a"]


# -- admission


def test_a_tenant_over_its_budget_is_told_the_figures_and_the_way_out() -> None:
    world = world_with(memory_bytes_per_host=484 * MIB, executor_memory_bytes=384 * MIB)
    world.publish(FLIGHTS, [shard_task("a", 60 * MIB)])
    world.load_missing()
    world.settle()
    shards = world.planned_shards(FLIGHTS, [shard_task("b", 100 * MIB)])
    with pytest.raises(QuotaExceeded) as refused:
        admit(world.view, FLIGHTS, shards)
    told = str(refused.value)
    assert "acme.flights needs 101.0 MiB for shards on one host" in told
    assert "100.0 MiB new and 1.0 MiB that tenant acme holds" in told
    assert "The budget is 100.0 MiB" in told
    assert "Raise memory_bytes_per_host" in told


def test_shards_that_both_epochs_share_are_counted_once() -> None:
    world = world_with(memory_bytes_per_host=134 * MIB, executor_memory_bytes=34 * MIB)
    world.publish(FLIGHTS, [shard_task("a", 60 * MIB), shard_task("b", 30 * MIB)])
    shards = world.planned_shards(FLIGHTS, [shard_task("a", 60 * MIB), shard_task("c", 10 * MIB)])
    admit(world.view, FLIGHTS, shards)


def test_an_undeclared_tenant_has_no_budget() -> None:
    world = world_with()
    stranger = make_dataset(tenant="nobody")
    with pytest.raises(QuotaExceeded, match="not declared"):
        admit(world.view, stranger, ())


def test_a_spread_dataset_may_be_larger_than_one_hosts_budget() -> None:
    wide = spread_dataset()
    world = World().begin(hosts=3, memory_bytes_per_host=50 * MIB, executor_memory_bytes=MIB)
    world.declare(wide)
    tasks = [shard_task(f"s{i}", 20 * MIB) for i in range(6)]
    admit(world.view, wide, world.planned_shards(wide, tasks))
    with pytest.raises(QuotaExceeded, match=r"on 3 host\(s\)"):
        admit(world.view, wide, world.planned_shards(wide, [*tasks, *map(more, range(3))]))


def test_a_tenant_is_bounded_on_all_hosts_together_with_every_replica_counted() -> None:
    wide = spread_dataset()
    world = World().begin(hosts=3, memory_bytes_on_all_hosts=130 * MIB)
    world.declare(wide)
    tasks = [shard_task(f"s{i}", 20 * MIB) for i in range(6)]
    place(world.view, wide, world.planned_shards(wide, tasks))
    with pytest.raises(QuotaExceeded, match=r"140.0 MiB .* on all hosts together .* 130.0 MiB"):
        place(world.view, wide, world.planned_shards(wide, [*tasks, more(1)]))


def more(number: int) -> object:
    return shard_task(f"more{number}", 20 * MIB)


def test_memory_that_is_on_its_way_back_is_worth_waiting_for() -> None:
    world = world_with()
    world.publish(FLIGHTS, ["a"])
    world.settle()
    assert not memory_is_coming_back(world.view, FLIGHTS)
    world.gateway_applies("slow", revision=1)
    world.publish(FLIGHTS, ["b"], sequence=2)
    world.settle(gateways=False)
    assert world.states(FLIGHTS) == [(1, "RETIRING"), (2, "READY")]
    assert memory_is_coming_back(world.view, FLIGHTS)


# -- what operators are told


def test_a_waiting_request_says_what_it_waits_for() -> None:
    world = world_with(hosts=0)
    request = world.request(FLIGHTS)
    assert request_waits_for(world.view, request) == "no host is alive"
    world.host_up("host-1")
    assert request_waits_for(world.view, request) == "its snapshot is being planned"
    world.answer(FLIGHTS, [shard_task("a")], 1)
    request = world.request(FLIGHTS, "next")
    assert request_waits_for(world.view, request) == "epoch 1 is on its way"


def test_the_summary_follows_an_epoch_through_its_life() -> None:
    world = world_with(hosts=2)
    world.publish(FLIGHTS, ["a", "b"])

    def seen() -> dict[str, object]:
        (epoch,) = summarize(world.view, world.now_ns)["epochs"]
        return epoch

    assert seen()["state"] == "LOADING"
    assert seen()["waiting_for"] == "0 of 2 replicas are READY; to load: 2 on host-1"
    world.load_missing()
    world.reconcile()
    assert "is still starting" in str(seen()["waiting_for"])
    world.reconcile()
    assert "is starting" in str(seen()["waiting_for"])
    world.settle()
    assert (seen()["state"], seen()["waiting_for"]) == ("READY", "")
    state = summarize(world.view, world.now_ns)
    assert state["datasets"][0]["epoch"] == 1
    assert state["executors"][0]["epochs"] == ["flights@1"]
    assert TenantId("acme") in {row["tenant"] for row in state["datasets"]}
