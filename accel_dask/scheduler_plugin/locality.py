"""Where tasks of users that read shards should run: on a host that has the shard in memory.

It is decided when a graph comes in, not when it was built: shards may have moved meanwhile. A
preference only; without such a host the task runs anywhere and reads through a gateway.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any, Final

from accel_dask.model.cluster import ClusterView
from accel_dask.model.ids import Revision, WorkerId
from accel_dask.model.routing import executor_routes
from accel_dask.model.shard_ref import ShardRef

logger = logging.getLogger(__name__)

_MAX_DEPTH: Final = 8
_MAX_ITEMS: Final = 1000
"""Of one list or dict: a task that reads a shard names it early."""


class ShardPlaces:
    """Which hosts have a shard in memory, as the newest view says."""

    def __init__(self) -> None:
        self._revision: Revision | None = None
        self._hosts: Mapping[ShardRef, tuple[WorkerId, ...]] = {}

    def prefer(self, scheduler: Any, tasks: Iterable[Any], view: ClusterView) -> int:
        """Have those of `tasks` that read a shard run where it is, if they may; how many."""
        preferred = 0
        for key in tasks:
            state = scheduler.tasks.get(key)
            if state is None or state.run_spec is None or state.worker_restrictions:
                continue
            wanted = shard_of(state.run_spec)
            if wanted is None:
                continue
            names = self._hosts_of(wanted, view)
            addresses = {scheduler.aliases[name] for name in names if name in scheduler.aliases}
            if addresses:
                state.worker_restrictions = addresses
                state.loose_restrictions = True
                preferred += 1
        return preferred

    def _hosts_of(self, wanted: ShardRef, view: ClusterView) -> tuple[WorkerId, ...]:
        if view.revision != self._revision:
            self._hosts, self._revision = shard_hosts(view), view.revision
        return self._hosts.get(wanted, ())


def shard_hosts(view: ClusterView) -> Mapping[ShardRef, tuple[WorkerId, ...]]:
    """The hosts whose READY executors have each shard in memory."""
    found: dict[ShardRef, dict[WorkerId, None]] = {}
    for executor in executor_routes(view):
        if executor.is_cold or executor.worker not in view.workers:
            continue
        for held in executor.attachments:
            ref = ShardRef(executor.tenant, held.dataset, held.epoch, held.shard_id)
            found.setdefault(ref, {})[executor.worker] = None
    return {ref: tuple(workers) for ref, workers in found.items()}


def shard_of(task: Any, depth: int = 0) -> ShardRef | None:
    """The shard that a Dask task reads, also if it was fused with others; None: none."""
    if isinstance(task, ShardRef):
        return task
    if depth >= _MAX_DEPTH:
        return None
    for one in _inside(task):
        found = shard_of(one, depth + 1)
        if found is not None:
            return found
    return None


def _inside(task: Any) -> Iterable[Any]:
    if isinstance(task, dict):
        return list(task.values())[:_MAX_ITEMS]
    if isinstance(task, list | tuple):
        return task[:_MAX_ITEMS]
    # Dask's tasks, and its lists and dicts of them, keep what they are given here.
    args, kwargs = getattr(task, "args", ()), getattr(task, "kwargs", None)
    inside = list(args[:_MAX_ITEMS]) if isinstance(args, list | tuple) else []
    return [*inside, *(kwargs.values() if isinstance(kwargs, dict) else ())]
