"""The master's decisions, one situation each. `test_reconcile_machine` mixes them all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulated_world import SECOND, World, change_quota, make_dataset, shard_task, spread_dataset

from accel_dask.config import MasterSettings
from accel_dask.errors import CommitConflict
from accel_dask.model.commit import Incarnation, UnchangedUnder, apply_commit
from accel_dask.model.executor import Executor, ExecutorPlan, ExecutorState
from accel_dask.model.ids import EpochNumber, ShardId, WorkerId
from accel_dask.model.placement import Placement
from accel_dask.model.tenant import MIB
from accel_dask.scheduler_plugin.reconcile import reconcile
from accel_dask.scheduler_plugin.wanted import wanted_loads

FLIGHTS = make_dataset()
HOST_1, HOST_2 = WorkerId("host-1"), WorkerId("host-2")


def world_with(hosts: int = 1, dataset: object = FLIGHTS, **quota: int) -> World:
    world = World().begin(hosts=hosts, **quota)
    world.declare(dataset)
    return world


def serving_world(hosts: int = 1) -> World:
    """Epoch 1 with shards a and b is served."""
    world = world_with(hosts)
    world.publish(FLIGHTS, ["a", "b"])
    world.settle()
    return world


def plans(world: World, worker: str = "host-1") -> list[list[str]]:
    return [
        [f"{a.dataset}@{a.epoch}/{a.shard_id}" for a in plan.attachments]
        for plan in world.plans(worker)
    ]


def placed_on(world: World, number: int, dataset: object = FLIGHTS) -> dict[str, tuple[str, ...]]:
    placement = world.view.placement(dataset.dataset_id, EpochNumber(number))
    assert placement is not None
    return dict(placement.hosts)


# -- the walk


def test_each_step_waits_for_the_one_before_it() -> None:
    world = world_with()
    world.publish(FLIGHTS, ["a", "b"])
    assert world.reconcile() == 0, "nothing is loaded yet"
    world.load(HOST_1, ShardId("a"))
    assert world.reconcile() == 0, "one of two shards is loaded"
    world.load(HOST_1, ShardId("b"))
    assert world.reconcile() == 1
    assert world.states(FLIGHTS) == [(1, "VALIDATING")]
    assert world.reconcile() == 1, "an executor is planned"
    assert world.reconcile() == 0, "it is not up yet"
    world.start_executors(HOST_1)
    assert world.reconcile() == 1
    assert world.states(FLIGHTS) == [(1, "READY")]
    assert world.serving_number(FLIGHTS) == 1
    assert world.reconcile() == 0, "it is at rest"


def test_the_switch_is_one_commit_that_rests_on_all_it_has_seen() -> None:
    world = world_with(hosts=2, dataset=make_dataset(replicas=2))
    world.publish(make_dataset(replicas=2), ["a", "b"])
    for _ in range(3):
        for worker in (HOST_1, HOST_2):
            world.load_missing(worker)
            world.start_executors(worker)
        if world.states(FLIGHTS) == [(1, "VALIDATING")] and len(world.plans("host-2")) == 1:
            break
        world.reconcile()
    for worker in (HOST_1, HOST_2):
        world.start_executors(worker)
    (switch,) = reconcile(world.view, world.now_ns, world.settings, world.round().token)
    assert "serves now" in switch.because
    executor = next(iter(world.view.records(Executor)))
    spoilers = [
        lambda: world.write(replace(executor, state=ExecutorState.FAILED)),
        lambda: world.fail_load("host-2", "b", retryable=True),
        lambda: world.host_down("host-2"),
        lambda: world.elect("another master"),
        lambda: world.write(delete=[FLIGHTS.path]),
        lambda: world.write(replace(next(iter(world.view.records(Placement))), hosts=())),
    ]
    world.check_each = False
    for spoil in spoilers:
        view = world.view
        spoil()
        with pytest.raises(CommitConflict):
            apply_commit(world.view, switch)
        world.view = view
    apply_commit(world.view, switch)


def test_a_switch_with_very_many_replicas_stays_within_a_transaction() -> None:
    world = world_with(memory_bytes_per_host=1024 * MIB)
    world.publish(FLIGHTS, [f"s{i:03d}" for i in range(300)])
    world.load_missing()
    world.reconcile()
    world.reconcile()
    world.start_executors(HOST_1)
    (switch,) = reconcile(world.view, world.now_ns, world.settings, world.round().token)
    assert "serves now" in switch.because
    assert len(switch.requirements) < 100
    assert UnchangedUnder(("replica", "host-1"), world.view.revision) in switch.requirements
    view = world.view
    world.fail_load("host-1", "s299", retryable=True)
    with pytest.raises(CommitConflict):
        apply_commit(world.view, switch)
    assert apply_commit(view, switch)


def test_the_old_epoch_stays_until_every_gateway_has_moved_on() -> None:
    world = serving_world()
    world.gateway_applies("fast")
    world.gateway_applies("slow", revision=3)
    world.publish(FLIGHTS, ["b", "c"], sequence=2)
    world.settle(gateways=False)
    assert world.states(FLIGHTS) == [(1, "RETIRING"), (2, "READY")]
    assert len(plans(world)) == 2, "the old generation still answers"
    world.gateway_applies("fast")
    world.settle(gateways=False)
    assert world.states(FLIGHTS) == [(1, "RETIRING"), (2, "READY")]
    world.gateway_applies("slow")
    world.settle(gateways=False)
    assert world.states(FLIGHTS) == [(2, "READY")]
    assert plans(world) == [["flights@2/b", "flights@2/c"]]
    assert world.files[HOST_1] == {"b", "c"}


def test_a_gateway_that_is_gone_holds_nothing_up() -> None:
    world = serving_world()
    world.gateway_applies("dead", revision=3)
    world.publish(FLIGHTS, ["c"], sequence=2)
    world.settle(gateways=False)
    assert len(world.states(FLIGHTS)) == 2
    world.write(delete=[("gateway", "dead")])
    world.settle(gateways=False)
    assert world.states(FLIGHTS) == [(2, "READY")]


def test_a_replaced_epoch_is_kept_for_the_grace_time() -> None:
    world = serving_world()
    world.settings = MasterSettings(retire_grace_seconds=10)
    world.publish(FLIGHTS, ["c"], sequence=2)
    world.settle()
    assert world.states(FLIGHTS) == [(1, "RETIRING"), (2, "READY")]
    world.now_ns += 11 * SECOND
    world.settle()
    assert world.states(FLIGHTS) == [(2, "READY")]


# -- failures


def test_a_load_that_cannot_succeed_fails_the_epoch_and_returns_its_memory() -> None:
    world = serving_world()
    world.publish(FLIGHTS, ["a", "x"], sequence=2)
    world.fail_load("host-1", "x", retryable=False, code="SCHEMA_UNSUPPORTED")
    world.reconcile()
    assert world.states(FLIGHTS) == [(1, "READY"), (2, "FAILED")]
    reason = world.view.epochs_of(FLIGHTS.dataset_id)[-1].reason
    assert "shard x could not be loaded on host-1" in reason
    assert "SCHEMA_UNSUPPORTED: the test says so" in reason
    assert world.view.placement(FLIGHTS.dataset_id, EpochNumber(2)) is None
    world.settle()
    assert plans(world) == [["flights@1/a", "flights@1/b"]]
    assert world.files[HOST_1] == {"a", "b"}


def test_a_load_is_tried_again_until_its_attempts_are_used_up() -> None:
    world = world_with()
    world.publish(FLIGHTS, ["x"])
    for attempt in (1, 2):
        world.fail_load("host-1", "x", retryable=True, attempt=attempt)
        assert world.reconcile() == 0
        assert [load.shard_id for load in wanted_loads(world.view)] == ["x"]
    world.fail_load("host-1", "x", retryable=True, attempt=3)
    world.reconcile()
    assert world.states(FLIGHTS) == [(1, "FAILED")]
    assert wanted_loads(world.view) == ()


def test_a_failure_of_an_earlier_epoch_does_not_fail_the_next_one() -> None:
    world = world_with()
    world.publish(FLIGHTS, ["x"])
    world.fail_load("host-1", "x", retryable=False)
    world.reconcile()
    world.publish(FLIGHTS, ["x"], sequence=2)
    assert world.reconcile() == 0, "the failed replica is from before this placement"
    world.load(HOST_1, ShardId("x"))
    world.settle()
    assert world.states(FLIGHTS) == [(1, "FAILED"), (2, "READY")]


def test_an_executor_that_does_not_come_up_fails_the_epoch_and_the_old_one_serves_on() -> None:
    world = serving_world()
    world.publish(FLIGHTS, ["a", "c"], sequence=2)
    world.load_missing()
    world.reconcile()
    world.reconcile()
    world.put_executor(world.plans("host-1")[-1], ExecutorState.FAILED, "out of memory")
    world.settle()
    assert world.states(FLIGHTS) == [(1, "READY"), (2, "FAILED")]
    assert "out of memory" in world.view.epochs_of(FLIGHTS.dataset_id)[-1].reason
    assert plans(world) == [["flights@1/a", "flights@1/b"]]


def test_validation_that_takes_too_long_fails_the_epoch_and_says_who_was_late() -> None:
    world = world_with()
    world.publish(FLIGHTS, ["a"])
    world.load_missing()
    world.reconcile()
    world.reconcile()
    world.now_ns += 61 * SECOND
    world.reconcile()
    reason = world.view.epochs_of(FLIGHTS.dataset_id)[-1].reason
    assert "not READY within 60 s" in reason
    assert "on host-1 is not up" in reason
    world.settle()
    assert plans(world) == []


def test_only_the_newest_failures_are_kept_and_no_number_comes_twice() -> None:
    world = world_with()
    world.settings = MasterSettings(keep_failed=0)
    for sequence in range(1, 5):
        world.publish(FLIGHTS, ["x"], sequence=sequence)
        world.fail_load("host-1", "x", retryable=False)
        world.settle()
        assert world.states(FLIGHTS) == [(sequence, "FAILED")]


# -- hosts come and go


def test_what_a_lost_host_held_is_placed_elsewhere_and_served_from_there() -> None:
    world = serving_world(hosts=2)
    (before,) = set(placed_on(world, 1).values())
    (other,) = {"host-1", "host-2"} - set(before)
    world.host_down(before[0])
    world.settle()
    assert set(placed_on(world, 1).values()) == {(other,)}
    assert plans(world, other) == [["flights@1/a", "flights@1/b"]]
    assert plans(world, before[0]) == []
    world.host_up(before[0])
    assert world.reconcile() == 0, "its return moves nothing"


def test_without_another_host_the_placement_waits_for_the_hosts_return() -> None:
    world = serving_world()
    world.host_down("host-1")
    assert world.settle() == 0, "there is nothing to do, over and over again"
    assert set(placed_on(world, 1).values()) == {("host-1",)}
    assert len(plans(world)) == 1
    world.host_up("host-1")
    world.verify_files(HOST_1)
    loads = wanted_loads(world.view)
    world.settle()
    assert loads == (), "the files are still there: nothing is read from the source"
    assert plans(world) == [["flights@1/a", "flights@1/b"]]


def test_a_restarting_host_does_not_make_new_generations() -> None:
    """Its files are checked one by one; the plan that wants them all just waits."""
    world = serving_world()
    (generation,) = [plan.generation for plan in world.plans("host-1")]
    world.host_down("host-1")
    world.host_up("host-1")
    world.reconcile()
    world.load(HOST_1, ShardId("a"))
    world.reconcile()
    assert [plan.generation for plan in world.plans("host-1")] == [generation]
    world.load(HOST_1, ShardId("b"))
    world.settle()
    assert [plan.generation for plan in world.plans("host-1")] == [generation]


def test_a_host_lost_while_loading_is_replaced() -> None:
    world = world_with(hosts=2)
    world.publish(FLIGHTS, ["a", "b"])
    ((lost,),) = set(placed_on(world, 1).values())
    world.host_down(lost)
    world.settle()
    assert world.serving_number(FLIGHTS) == 1
    assert lost not in {w for workers in placed_on(world, 1).values() for w in workers}


def test_a_host_lost_while_validating_sends_the_epoch_back_to_loading() -> None:
    world = world_with(hosts=2)
    world.publish(FLIGHTS, ["a"])
    ((lost,),) = set(placed_on(world, 1).values())
    world.load_missing()
    world.reconcile()
    world.reconcile()
    world.host_down(lost)
    world.reconcile()
    assert world.states(FLIGHTS) == [(1, "LOADING")]
    world.settle()
    assert world.serving_number(FLIGHTS) == 1


def test_a_lost_host_with_no_room_elsewhere_fails_the_coming_epoch_only() -> None:
    world = World().begin(hosts=1, memory_bytes_per_host=500 * MIB)
    world.host_up("small", memory_bytes=100 * MIB)
    world.declare(FLIGHTS)
    world.publish(FLIGHTS, [shard_task("a", 50 * MIB)])
    world.settle()
    world.publish(FLIGHTS, [shard_task("b", 50 * MIB)], sequence=2)
    world.host_down("host-1")
    world.settle()
    assert world.states(FLIGHTS) == [(1, "READY"), (2, "FAILED")]
    reason = world.view.epochs_of(FLIGHTS.dataset_id)[-1].reason
    assert "host-1 was lost" in reason
    assert "host small has" in reason


def test_a_new_host_brings_replicas_that_were_missing() -> None:
    wide = spread_dataset(replicas=2)
    world = world_with(dataset=wide)
    world.publish(wide, ["a", "b"])
    world.settle()
    assert set(placed_on(world, 1, wide).values()) == {("host-1",)}
    world.host_up("host-2")
    world.settle()
    assert set(placed_on(world, 1, wide).values()) == {("host-1", "host-2")}
    assert plans(world, "host-2") == [["wide@1/a", "wide@1/b"]]


def test_a_damaged_shard_leaves_the_executor_and_comes_back_loaded() -> None:
    world = serving_world()
    world.files[HOST_1].discard(ShardId("a"))
    world.fail_load("host-1", "a", retryable=True, attempt=0)
    world.reconcile()
    world.start_executors(HOST_1)
    world.reconcile()
    assert plans(world) == [["flights@1/b"]]
    world.settle()
    assert plans(world) == [["flights@1/a", "flights@1/b"]]


# -- executors


def test_two_datasets_published_in_turn_do_not_replace_each_others_generations() -> None:
    other = make_dataset(name="weather")
    world = world_with()
    world.declare(other)
    world.publish(FLIGHTS, ["a"])
    world.load_missing()
    world.reconcile()
    world.reconcile()
    (first,) = world.plans("host-1")
    world.publish(other, ["w"])
    world.load_missing()
    world.reconcile()
    world.reconcile()
    assert world.plans("host-1") == [first], "it may come up first"
    world.now_ns += 16 * SECOND
    world.reconcile()
    assert plans(world) == [["flights@1/a", "weather@1/w"]], "but not for ever"
    world.settle()
    assert world.serving_number(FLIGHTS) == 1
    assert world.serving_number(other) == 1


def test_a_crashed_executor_of_the_served_epoch_keeps_its_plan_during_a_refresh() -> None:
    world = serving_world()
    world.publish(FLIGHTS, ["c"], sequence=2)
    world.load_missing()
    world.reconcile()
    world.reconcile()
    assert len(plans(world)) == 2
    world.crash_executors(HOST_1)
    world.reconcile()
    world.reconcile()
    assert len(plans(world)) == 2


def test_a_changed_quota_starts_a_new_generation_before_the_old_one_ends() -> None:
    world = serving_world()
    (old,) = world.plans("host-1")
    change_quota(world, threads=4)
    world.reconcile()
    assert len(world.plans("host-1")) == 2
    world.reconcile()
    assert len(world.plans("host-1")) == 2
    world.settle()
    (new,) = world.plans("host-1")
    assert new.generation > old.generation
    assert new.quota.threads == 4
    change_quota(world, deadline_ms=1)
    assert world.settle() == 0, "executors are not born with a deadline"


def test_generation_numbers_only_grow_even_when_all_plans_were_deleted() -> None:
    world = serving_world()
    seen = [plan.generation for plan in world.view.records(ExecutorPlan)]
    world.write(delete=[FLIGHTS.path])
    world.settle()
    assert plans(world) == []
    world.declare(FLIGHTS)
    world.publish(FLIGHTS, ["a"], sequence=5)
    world.settle()
    (plan,) = world.plans("host-1")
    assert plan.generation > max(seen)


# -- what the operator takes away


def test_a_deleted_dataset_leaves_nothing_behind() -> None:
    world = serving_world()
    world.gateway_applies("g")
    world.publish(FLIGHTS, ["c"], sequence=2)
    world.request(FLIGHTS, "more")
    world.write(delete=[FLIGHTS.path])
    world.settle()
    kinds = {path[0] for path in world.view.entries}
    assert kinds == {"meta", "tenant", "leader", "worker", "gateway", "last_epoch"}
    assert world.files[HOST_1] == set()


def test_the_epochs_of_a_dataset_that_was_deleted_and_declared_again_are_numbered_on() -> None:
    world = serving_world()
    for sequence in (2, 3):
        before = max(epoch.number for epoch in world.view.epochs_of(FLIGHTS.dataset_id))
        world.write(delete=[FLIGHTS.path])
        world.settle()
        assert not world.view.epochs_of(FLIGHTS.dataset_id)
        world.write(FLIGHTS)
        world.publish(FLIGHTS, ["c"], sequence=sequence)
        world.settle()
        serving = world.view.serving_epoch(FLIGHTS.dataset_id)
        assert serving is not None
        assert serving.number == before + 1


def test_a_deleted_tenant_takes_its_datasets_with_it() -> None:
    world = serving_world()
    world.write(delete=[("tenant", "acme")])
    world.settle()
    kinds = {path[0] for path in world.view.entries}
    assert kinds == {"meta", "leader", "worker", "dataset", "last_epoch"}


# -- masters


def test_every_commit_is_fenced() -> None:
    world = serving_world()
    world.publish(FLIGHTS, ["c"], sequence=2)
    world.load_missing()
    token = world.round().token
    commits = reconcile(world.view, world.now_ns, world.settings, token)
    assert commits
    world.elect("another")
    for commit in commits:
        assert Incarnation(("leader",), token.create_revision) in commit.requirements
        with pytest.raises(CommitConflict):
            apply_commit(world.view, commit)


def test_a_decision_does_not_depend_on_anything_but_its_arguments() -> None:
    world = serving_world(hosts=2)
    world.publish(FLIGHTS, ["c"], sequence=2)
    world.load_missing()
    token = world.round().token
    first = reconcile(world.view, world.now_ns, world.settings, token)
    assert first == reconcile(world.view, world.now_ns, world.settings, token)
