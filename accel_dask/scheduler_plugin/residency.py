"""How much of a snapshot is held in memory, and what of it stays at the source. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from accel_dask.errors import QuotaExceeded
from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import ColdPolicy, Dataset
from accel_dask.model.epoch import Epoch, ShardSummary
from accel_dask.model.ids import ShardId
from accel_dask.model.placement import Placement
from accel_dask.scheduler_plugin.admission import admit
from accel_dask.scheduler_plugin.budget import Ledger, mib
from accel_dask.scheduler_plugin.placement import Hosts, place


@dataclass(frozen=True, slots=True)
class Residency:
    """Where each shard of an epoch is held; nowhere: it is cold."""

    hosts: Hosts
    cold_because: str = ""
    is_short: bool = False
    """Memory does not hold as much as it should."""

    @property
    def hot_count(self) -> int:
        return sum(1 for _, workers in self.hosts if workers)


def residency(view: ClusterView, dataset: Dataset, shards: Sequence[ShardSummary]) -> Residency:
    """Hosts for the shards of a new epoch. Where its dataset may be read cold, for as many of
    the last ones in sort order as `hot_shards` says and memory holds.

    Raises:
        QuotaExceeded: memory does not hold them and the dataset may not be read cold, or no host
            has room for a cold executor.
    """
    if dataset.cold is ColdPolicy.REFUSE:
        return Residency(_hot(view, dataset, shards))
    wanted = len(shards)
    because = ""
    is_short = False
    if dataset.hot_shards is not None and dataset.hot_shards < wanted:
        wanted = dataset.hot_shards
        because = f"hot_shards is {wanted}"
    try:
        found = _newest(view, dataset, shards, wanted)
    except QuotaExceeded as error:
        is_short = True
        because = f"memory does not hold more: {error}"
        found = _most(view, dataset, shards, wanted)
    if not because:
        return Residency(found)
    _check_cold_host(view, dataset, because)
    return Residency(found, because, is_short)


def _most(
    view: ClusterView, dataset: Dataset, shards: Sequence[ShardSummary], too_many: int
) -> Hosts:
    """For as many of the last shards as there is room for, by bisection."""
    best = _newest(view, dataset, shards, 0)
    fits = 0
    while too_many - fits > 1:
        count = (fits + too_many) // 2
        try:
            best = _newest(view, dataset, shards, count)
        except QuotaExceeded:
            too_many = count
        else:
            fits = count
    return best


def _newest(
    view: ClusterView, dataset: Dataset, shards: Sequence[ShardSummary], count: int
) -> Hosts:
    """For the last `count` of `shards`; nowhere for the others."""
    hot = _hot(view, dataset, shards[len(shards) - count :]) if count else ()
    return (*((shard.shard_id, ()) for shard in shards[: len(shards) - count]), *hot)


def _hot(view: ClusterView, dataset: Dataset, shards: Sequence[ShardSummary]) -> Hosts:
    admit(view, dataset, shards)
    return place(view, dataset, shards)


def _check_cold_host(view: ClusterView, dataset: Dataset, because: str) -> None:
    ledger = Ledger(view, dataset.tenant, wants_cold=True)
    if ledger.cold_hosts:
        return
    raise QuotaExceeded(
        f"shards of {dataset.dataset_id} would stay at the source, because {because}; and no host "
        f"has {mib(ledger.quota.cold_memory_bytes)} left for a cold executor of tenant "
        f"{dataset.tenant} (cold_memory_bytes). Add a host or memory, or lower cold_memory_bytes"
    )


def place_again(view: ClusterView, dataset: Dataset, epoch: Epoch, placement: Placement) -> Hosts:
    """Hosts for the shards of an epoch as things are now. What is cold stays cold.

    Raises:
        QuotaExceeded: there is no room for what lost hosts held.
    """
    cold = placement.cold_shards
    hot = [shard for shard in epoch.shards if shard.shard_id not in cold]
    declared = replace(dataset, replicas=epoch.replicas, cold=epoch.cold)
    hosts = dict(place(view, declared, hot, placement)) if hot else {}
    return tuple((shard.shard_id, hosts.get(shard.shard_id, ())) for shard in epoch.shards)


def left_cold(placement: Placement, shards: Iterable[ShardId], because: str) -> Placement:
    """`placement` without hosts for `shards`."""
    gone = set(shards)
    hosts = tuple((shard, () if shard in gone else workers) for shard, workers in placement.hosts)
    return replace(placement, hosts=hosts, cold_because=placement.cold_because or because)


def told(placement: Placement) -> str:
    """How much of an epoch is held in memory; empty: all of it."""
    cold = len(placement.cold_shards)
    if not cold:
        return ""
    return f"{cold} of {len(placement.hosts)} shards stay cold: {placement.cold_because}"
