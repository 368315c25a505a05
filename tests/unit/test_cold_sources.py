"""What a host tells a cold executor, and that it can tell it again while the store is away."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulated_world import World, make_dataset, shard_task

from accel_dask.codec import decode, encode
from accel_dask.errors import StoreError
from accel_dask.model.dataset import ColdPolicy
from accel_dask.model.epoch import EpochState
from accel_dask.model.executor import ExecutorKind, ExecutorPlan
from accel_dask.model.load_plan import LoadPlan
from accel_dask.model.snapshot import ColumnStats, DataFile
from accel_dask.scheduler_plugin.publish import open_epoch
from accel_dask.store.blobs import get_blob, put_blob
from accel_dask.store.memory import MemoryStore
from accel_dask.worker_plugin.cold_sources import ColdSources

DATASET = make_dataset(cold=ColdPolicy.ALLOW, hot_shards=1)
STATS = (ColumnStats(name="delay", lower="1", upper="2"),)
TASKS = [
    replace(
        shard_task(name),
        files=(DataFile(path=f"/data/{name}.parquet", size_bytes=1, record_count=1, stats=STATS),),
        stats=STATS,
    )
    for name in ("a", "b", "c")
]


def world_with(store: MemoryStore) -> tuple[World, ExecutorPlan]:
    """Epoch 1 in validation, shard c in memory, and the plan of a cold executor."""
    world = World().begin(cold_memory_bytes=1)
    world.declare(DATASET)
    world.request(DATASET)
    planned = world.planned(DATASET, TASKS, 1)
    digest = put_blob(store, encode(planned.plan))
    world.apply(open_epoch(world.round(), replace(planned, plan_digest=digest)))
    world.load_missing()
    while not (plans := cold_plans(world)):
        assert world.reconcile()
    return world, plans[0]


def cold_plans(world: World) -> list[ExecutorPlan]:
    return [p for p in world.view.records(ExecutorPlan) if p.kind is ExecutorKind.COLD]


def test_all_shards_are_told_of_and_those_needed_that_nobody_else_has() -> None:
    store = MemoryStore()
    world, plan = world_with(store)
    told = ColdSources(store).shards(world.view, plan)
    assert [(one.task.shard_id, one.is_needed) for one in told] == [
        ("a", True),
        ("b", True),
        ("c", False),
    ]
    assert told[0].task.files[0].path == "/data/a.parquet"
    assert told[0].task.stats == told[0].task.files[0].stats == ()


def test_a_served_epoch_needs_no_shard_so_that_one_bad_file_spoils_only_itself() -> None:
    store = MemoryStore()
    world, plan = world_with(store)
    world.settle()
    epoch = world.view.serving_epoch(DATASET.dataset_id)
    assert epoch is not None
    assert epoch.state is EpochState.READY
    assert not any(one.is_needed for one in ColdSources(store).shards(world.view, plan))


def test_what_was_read_once_is_told_again_while_the_store_is_away() -> None:
    store = MemoryStore()
    world, plan = world_with(store)
    sources = ColdSources(store)
    told = sources.shards(world.view, plan)
    store.close()
    assert sources.shards(world.view, plan) == told
    with pytest.raises(StoreError):
        ColdSources(store).shards(world.view, plan)


def test_another_plan_under_the_same_number_is_read_anew() -> None:
    """As after the store was restored from a backup."""
    store = MemoryStore()
    world, plan = world_with(store)
    sources = ColdSources(store)
    sources.shards(world.view, plan)
    epoch = world.view.epochs_of(DATASET.dataset_id)[0]
    moved = tuple(replace(task, source_bytes=7) for task in TASKS)
    load_plan = decode(get_blob(store, epoch.plan_digest), LoadPlan)
    other = put_blob(store, encode(replace(load_plan, tasks=moved)))
    world.write(replace(epoch, plan_digest=other))
    assert {one.task.source_bytes for one in sources.shards(world.view, plan)} == {7}
