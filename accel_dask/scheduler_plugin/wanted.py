"""Which loads should be under way: every placed shard that is not READY on its live host. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from accel_dask.model.cluster import ClusterView
from accel_dask.model.epoch import Epoch, EpochState
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId, WorkerId
from accel_dask.model.placement import Placement
from accel_dask.scheduler_plugin.budget import Ledger
from accel_dask.scheduler_plugin.round import is_declared, missing_pairs

_LOADED_STATES = frozenset({EpochState.LOADING, EpochState.VALIDATING, EpochState.READY})


@dataclass(frozen=True, slots=True, kw_only=True)
class WantedLoad:
    """One shard to be built on one host."""

    worker: WorkerId
    shard_id: ShardId
    dataset_id: DatasetId
    epoch: EpochNumber
    index: int
    """The shard's place in the epoch, from 0."""
    plan_digest: str
    max_file_bytes: int
    """What the tenant's budget leaves for this file."""

    @property
    def name(self) -> str:
        """For people and for the Dask task's key."""
        return f"{self.dataset_id}@{self.epoch}#{self.index}/{self.worker}"


def wanted_loads(view: ClusterView) -> tuple[WantedLoad, ...]:
    """All loads that `view` calls for, tenants in turn so that none waits behind another's
    many; one for each (host, shard), whatever number of epochs share it.

    Where tenants share a shard it may take what the one with the most room has left: the least
    one's budget must not fail the others' epochs.
    """
    by_tenant: dict[TenantId, list[WantedLoad]] = {}
    wanted: dict[tuple[WorkerId, ShardId], tuple[TenantId, int]] = {}
    for epoch in view.records(Epoch):
        if epoch.state not in _LOADED_STATES or not is_declared(view, epoch.dataset_id):
            continue
        placement = view.placement(epoch.dataset_id, epoch.number)
        if placement is None:
            continue
        for load in _loads_of(view, epoch, placement):
            slot = (load.worker, load.shard_id)
            first = wanted.get(slot)
            if first is None:
                loads = by_tenant.setdefault(epoch.tenant, [])
                wanted[slot] = (epoch.tenant, len(loads))
                loads.append(load)
                continue
            owner, index = first
            known = by_tenant[owner][index]
            if owner != epoch.tenant and load.max_file_bytes > known.max_file_bytes:
                by_tenant[owner][index] = replace(known, max_file_bytes=load.max_file_bytes)
    return tuple(_in_turn(list(by_tenant.values())))


def _loads_of(view: ClusterView, epoch: Epoch, placement: Placement) -> Iterator[WantedLoad]:
    missing = missing_pairs(view, placement)
    if not missing:
        return
    ledger = Ledger(view, epoch.tenant)
    index = {shard.shard_id: number for number, shard in enumerate(epoch.shards)}
    loading: dict[WorkerId, int] = {}
    for worker, _ in missing:
        loading[worker] = loading.get(worker, 0) + 1
    for worker, shard_id in missing:
        # Loads go on side by side: each may grow into its share of what is left, so that all
        # of them together stay within the budget.
        left = ledger.quota.shard_bytes_per_host - ledger.tenant_bytes(worker)
        left = min(left, ledger.host_free_bytes(worker))
        yield WantedLoad(
            worker=worker,
            shard_id=shard_id,
            dataset_id=epoch.dataset_id,
            epoch=epoch.number,
            index=index[shard_id],
            plan_digest=epoch.plan_digest,
            max_file_bytes=ledger.sizes[shard_id] + max(0, left) // loading[worker],
        )


def _in_turn(queues: list[list[WantedLoad]]) -> Iterator[WantedLoad]:
    longest = max((len(queue) for queue in queues), default=0)
    for position in range(longest):
        for queue in queues:
            if position < len(queue):
                yield queue[position]
