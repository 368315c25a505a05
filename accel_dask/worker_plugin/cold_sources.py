"""What a host tells its cold executors of their shards: the load tasks, out of the load plans."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import replace

from accel_dask.codec import decode
from accel_dask.errors import ExecutorUnavailable
from accel_dask.model.cluster import ClusterView
from accel_dask.model.epoch import Epoch, EpochState
from accel_dask.model.executor import ExecutorPlan
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId
from accel_dask.model.load_plan import LoadPlan, LoadTask
from accel_dask.store.base import StateStore
from accel_dask.store.blobs import get_blob
from accel_dask.worker_plugin.executor.spec import ColdShard

_Tasks = Mapping[ShardId, LoadTask]


class ColdSources:
    """Keeps the load plans in use, so that executors start again while the store is away. Safe
    to use from several threads."""

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: dict[tuple[DatasetId, EpochNumber], tuple[str, _Tasks]] = {}
        """By epoch: the load plan's digest, and its tasks."""

    def shards(self, view: ClusterView, plan: ExecutorPlan) -> tuple[ColdShard, ...]:
        """All shards of `plan`.

        Raises:
            ExecutorUnavailable: an epoch of it has gone.
            StoreError: its load plan cannot be read.
        """
        self._forget_unused(view)
        found = []
        for name, number in sorted({(a.dataset, a.epoch) for a in plan.attachments}):
            dataset = DatasetId(plan.tenant, name)
            epoch = view.epoch(dataset, number)
            tasks = self._tasks(dataset, number, epoch)
            needed = _needed(view, epoch)
            found += [
                ColdShard(task=tasks[a.shard_id], is_needed=a.shard_id in needed)
                for a in plan.attachments
                if (a.dataset, a.epoch) == (name, number)
            ]
        return tuple(found)

    def _tasks(self, dataset: DatasetId, number: EpochNumber, epoch: Epoch | None) -> _Tasks:
        known = self._known.get((dataset, number))
        if known is not None and (epoch is None or epoch.plan_digest == known[0]):
            return known[1]
        if epoch is None:
            raise ExecutorUnavailable(f"epoch {number} of {dataset} has gone")
        load_plan = decode(get_blob(self._store, epoch.plan_digest), LoadPlan)
        tasks = {task.shard_id: _without_statistics(task) for task in load_plan.tasks}
        with self._lock:
            self._known[dataset, number] = (epoch.plan_digest, tasks)
        return tasks

    def _forget_unused(self, view: ClusterView) -> None:
        used = {
            (DatasetId(plan.tenant, a.dataset), a.epoch)
            for plan in view.records(ExecutorPlan)
            for a in plan.attachments
        }
        with self._lock:
            self._known = {key: known for key, known in self._known.items() if key in used}


def _needed(view: ClusterView, epoch: Epoch | None) -> frozenset[ShardId]:
    """Shards without which the epoch cannot become READY. Afterwards a file that is gone must
    not keep the executor from answering for the others."""
    if epoch is None or epoch.state is not EpochState.VALIDATING:
        return frozenset()
    placement = view.placement(epoch.dataset_id, epoch.number)
    return placement.cold_shards if placement else frozenset()


def _without_statistics(task: LoadTask) -> LoadTask:
    files = tuple(replace(file, stats=()) for file in task.files)
    return replace(task, files=files, stats=())
