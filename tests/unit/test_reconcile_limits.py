"""Decisions at the edges: clocks that jump, many datasets, wide epochs, shared shards."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulated_world import SECOND, World, make_dataset, shard_task

from accel_dask.codec import encode
from accel_dask.config import MasterSettings
from accel_dask.errors import NotAcceleratable
from accel_dask.model.commit import Commit
from accel_dask.model.ids import ShardId, TenantId, WorkerId
from accel_dask.model.replica import Replica, replica_path
from accel_dask.model.snapshot import ColumnStats
from accel_dask.model.tenant import MIB, Quota, Tenant
from accel_dask.scheduler_plugin.poller import Poller
from accel_dask.scheduler_plugin.publish import open_epoch
from accel_dask.scheduler_plugin.reconcile import reconcile
from accel_dask.scheduler_plugin.wanted import wanted_loads
from accel_dask.store.base import MAX_REQUEST_BYTES, MAX_TRANSACTION_OPS
from accel_dask.store.memory import MemoryStore
from accel_dask.store.records import commit_records

FLIGHTS = make_dataset()


@pytest.mark.parametrize("grace_seconds", [0.0, 5.0])
def test_an_epoch_retires_although_the_clock_was_set_back(grace_seconds: float) -> None:
    world = World(settings=MasterSettings(retire_grace_seconds=grace_seconds)).begin()
    world.declare(FLIGHTS)
    world.publish(FLIGHTS, ["a"], sequence=1)
    world.settle()
    world.publish(FLIGHTS, ["b"], sequence=2)
    while world.serving_number(FLIGHTS) != 2:
        world.reconcile()
        world.host_acts(WorkerId("host-1"))
    world.now_ns -= 500 * SECOND
    world.settle()
    assert world.states(FLIGHTS) == [(2, "READY")]


def test_validation_ends_although_the_clock_was_set_back() -> None:
    world = World().begin()
    world.declare(FLIGHTS)
    world.publish(FLIGHTS, ["a"])
    world.load_missing()
    world.reconcile()
    assert world.states(FLIGHTS) == [(1, "VALIDATING")]
    world.now_ns -= 500 * SECOND
    world.reconcile()
    assert world.states(FLIGHTS) == [(1, "FAILED")]


def test_polling_goes_on_although_the_clock_was_set_back() -> None:
    polled = make_dataset(poll_seconds=1.0)
    world = World().begin()
    world.declare(polled)
    poller = Poller()
    assert poller.is_new(world.view, polled, "v1", world.now_ns)
    assert list(poller.due(world.view, world.now_ns - 500 * SECOND)) == [polled]


def test_very_many_datasets_of_a_tenant_stay_within_a_transaction() -> None:
    world = World(check_each=False).begin(memory_bytes=4096 * MIB)
    datasets = [make_dataset(name=f"d{i:03d}") for i in range(140)]
    world.declare(*datasets)
    for dataset in datasets:
        world.publish(dataset, [shard_task(dataset.name, 1024)])
    assert world.token is not None
    largest = 0
    for _ in range(20):
        for commit in reconcile(world.view, world.now_ns, world.settings, world.token):
            largest = max(largest, _compares(commit))
        world.reconcile()
        world.host_acts(WorkerId("host-1"))
    assert {world.serving_number(dataset) for dataset in datasets} == {1}
    assert largest <= MAX_TRANSACTION_OPS


def _compares(commit: Commit) -> int:
    return 2 * len(commit.requirements)  # at most two of the store's for one of ours


def wide_task(number: int, columns: int) -> object:
    stats = tuple(
        ColumnStats(name=f"column_{i}", null_count=0, lower="2013-01-01", upper="2013-12-31")
        for i in range(columns)
    )
    return replace(shard_task(f"{number:032x}", 1024), stats=stats, sort_by=("column_0",))


def test_the_record_of_a_wide_epoch_keeps_the_bounds_that_fit() -> None:
    """The switch writes two epochs in one transaction."""
    world = World().begin()
    world.declare(FLIGHTS)
    world.request(FLIGHTS)
    tasks = [wide_task(i, columns=150) for i in range(300)]
    world.apply(open_epoch(world.round(), world.planned(FLIGHTS, tasks, 1)))  # type: ignore[arg-type]
    epoch = world.view.open_epoch(FLIGHTS.dataset_id)
    assert epoch is not None
    assert 2 * len(encode(epoch)) < MAX_REQUEST_BYTES
    kept = [stats.name for stats in epoch.shards[0].stats]
    assert kept[0] == "column_0", "what it is sorted by comes first"
    assert len(kept) < 150


def test_an_epoch_with_more_shards_than_a_record_takes_is_refused_with_the_way_out() -> None:
    world = World(check_each=False).begin()
    world.declare(FLIGHTS)
    world.request(FLIGHTS)
    tasks = [wide_task(i, columns=0) for i in range(10_000)]
    with pytest.raises(NotAcceleratable, match=r"10,000 shards.*raise shard_target_bytes"):
        open_epoch(world.round(), world.planned(FLIGHTS, tasks, 1))  # type: ignore[arg-type]


def test_a_shard_that_tenants_share_may_take_what_the_one_with_most_room_has_left() -> None:
    world = World().begin(memory_bytes_per_host=30 * MIB, executor_memory_bytes=20 * MIB)
    roomy = Quota(memory_bytes_per_host=300 * MIB, executor_memory_bytes=20 * MIB)
    world.write(Tenant(tenant=TenantId("globex"), quota=roomy))
    theirs = make_dataset(tenant="globex")
    world.declare(FLIGHTS, theirs)
    world.publish(FLIGHTS, [shard_task("shared", 5 * MIB)])
    world.publish(theirs, [shard_task("shared", 5 * MIB)])
    (load,) = wanted_loads(world.view)
    assert load.max_file_bytes == 280 * MIB


def test_hosts_that_loaded_different_rows_of_a_shard_do_not_serve_it() -> None:
    """A row filter with random() or the time in it would give each host an answer of its own."""
    twice = make_dataset(replicas=2)
    world = World().begin(hosts=2)
    world.declare(twice)
    world.publish(twice, ["a"])
    world.load_missing()
    for host, rows in (("host-1", 10), ("host-2", 11)):
        found = world.view.find(Replica, replica_path(WorkerId(host), ShardId("a")))
        assert found is not None
        world.write(replace(found, rows=rows, row_checksum=str(rows)))
    world.reconcile()
    assert world.states(twice) == [(1, "FAILED")]
    reason = world.view.epochs_of(twice.dataset_id)[0].reason
    assert "10 on host-1, 11 on host-2" in reason
    assert "row filter" in reason


def test_a_commit_of_that_size_is_one_that_the_store_takes() -> None:
    world = World().begin()
    world.declare(FLIGHTS)
    world.request(FLIGHTS)
    tasks = [wide_task(i, columns=150) for i in range(300)]
    commit = open_epoch(world.round(), world.planned(FLIGHTS, tasks, 1))  # type: ignore[arg-type]
    with MemoryStore() as store:
        commit_records(store, replace(commit, requirements=()))
