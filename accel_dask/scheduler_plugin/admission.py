"""Whether a new epoch fits its tenant's budget at all, before hosts are compared. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from accel_dask.errors import QuotaExceeded
from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import Dataset, Spread
from accel_dask.model.epoch import Epoch, EpochState, ShardSummary
from accel_dask.model.ids import ShardId
from accel_dask.model.placement import Placement
from accel_dask.model.replica import Replica
from accel_dask.scheduler_plugin.budget import Ledger, mib


def admit(view: ClusterView, dataset: Dataset, shards: Sequence[ShardSummary]) -> None:
    """Check that `shards` fit beside all that the tenant holds, the serving epoch included:
    both are held while the dataset is refreshed. A shard that both share counts once.

    Raises:
        QuotaExceeded: they do not; the message has the figures and the ways out.
    """
    tenant = view.tenant(dataset.tenant)
    if tenant is None:
        raise QuotaExceeded(
            f"{dataset.dataset_id}: tenant {dataset.tenant} is not declared, so it has no budget; "
            "declare it first"
        )
    ledger = Ledger(view, dataset.tenant, shards)
    new = {shard.shard_id for shard in shards}
    if dataset.spread is Spread.TOGETHER:
        held = _held_together(view, dataset)
        held_bytes = ledger.bytes_of(held)
        new_bytes = ledger.bytes_of(new - held)
        hosts, scope = 1, "on one host"
    else:
        anywhere = set().union(*ledger.of_tenant.values())
        held_bytes = sum(ledger.tenant_bytes(host) for host in ledger.hosts)
        new_bytes = ledger.bytes_of(new - anywhere) * min(
            dataset.wanted_replicas, len(ledger.hosts)
        )
        hosts = len(ledger.hosts)
        scope = f"on {hosts} host(s)"
    budget = tenant.quota.shard_bytes_per_host * hosts
    if held_bytes + new_bytes <= budget or not new_bytes:
        return
    raise QuotaExceeded(
        f"{dataset.dataset_id} needs {mib(held_bytes + new_bytes)} for shards {scope}: "
        f"{mib(new_bytes)} new and {mib(held_bytes)} that tenant {dataset.tenant} holds (the "
        f"epoch served now too, until the new one is READY). The budget is {mib(budget)}: per "
        f"host, memory_bytes_per_host {mib(tenant.quota.memory_bytes_per_host)} less "
        f"executor_memory_bytes {mib(tenant.quota.executor_memory_bytes)}. "
        "Raise memory_bytes_per_host, or hold fewer columns or rows"
    )


def memory_is_coming_back(view: ClusterView, dataset: Dataset) -> bool:
    """Whether memory will be free soon by itself: an epoch of the tenant retires, or shard
    files that nothing wants are still being removed."""
    for epoch in view.records(Epoch):
        if epoch.state is EpochState.RETIRING and epoch.tenant == dataset.tenant:
            return True
    return any(
        replica.file_bytes > 0
        and replica.worker in view.workers
        and replica.shard_id not in view.wanted_shards.get(replica.worker, frozenset())
        for replica in view.records(Replica)
    )


def _held_together(view: ClusterView, dataset: Dataset) -> set[ShardId]:
    """Shards of the tenant's TOGETHER datasets: they are on the same hosts."""
    held: set[ShardId] = set()
    for placement in view.records(Placement):
        other = view.dataset(placement.dataset_id)
        if placement.tenant == dataset.tenant and other and other.spread is Spread.TOGETHER:
            held.update(shard_id for shard_id, workers in placement.hosts if workers)
    return held
