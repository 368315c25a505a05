"""What the hosts have promised to tenants, and the transaction that keeps promises within hosts.

A host promises each tenant that it holds data of the executors' memory, the bytes of the shard
files placed there, and a share of its CPU. Whoever adds a promise (the master that places, the
operator who raises a quota) commits only if no other promise was added since its view, so two that
fit one by one but not together cannot both pass. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from accel_dask.errors import QuotaExceeded
from accel_dask.model.cluster import ClusterView
from accel_dask.model.commit import Commit, Put, Requirement, UnchangedUnder, apply_commit
from accel_dask.model.epoch import Epoch, ShardSummary
from accel_dask.model.executor import ExecutorKind, ExecutorPlan
from accel_dask.model.ids import ShardId, TenantId, WorkerId
from accel_dask.model.member import Worker
from accel_dask.model.placement import Placement
from accel_dask.model.replica import Replica
from accel_dask.model.tenant import MIB, Quota, Tenant

ExecutorMemory = dict[tuple[TenantId, ExecutorKind], int]

_AWAY: Final = (
    "is away, so nobody knows what it offers; change it when the host is back, or when what it "
    "held is placed elsewhere"
)
_PROMISES: Final = (
    Tenant.KIND, Placement.KIND, ExecutorPlan.KIND, Replica.KIND, Worker.KIND,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HostPromises:
    """The sum of what one host has promised."""

    memory_bytes: int
    cpu_percent: int


def quotas_unchanged(view: ClusterView) -> Requirement:
    """The requirement that no quota was changed since `view`; of every commit that places."""
    return UnchangedUnder((Tenant.KIND,), view.revision)


def quota_commit(view: ClusterView, tenant: Tenant) -> Commit:
    """The commit that writes `tenant`, new or with another quota.

    Raises:
        QuotaExceeded: a host that the tenant is on cannot promise as much.
    """
    commit = Commit(
        requirements=tuple(UnchangedUnder((kind,), view.revision) for kind in _PROMISES),
        changes=(Put(tenant),),
        because=f"the quota of tenant {tenant.tenant} is changed",
    )
    before = promises(view, of_absent=True)
    after = promises(apply_commit(view, commit), of_absent=True)
    for worker, now in sorted(after.items()):
        found = view.workers.get(worker)
        _check(tenant.tenant, worker, before[worker], now, found.record if found else None)
    return commit


def _check(
    tenant: TenantId, worker: WorkerId, was: HostPromises, now: HostPromises, host: Worker | None
) -> None:
    """
    Raises:
        QuotaExceeded: the host, which is away if it is None, cannot promise as much.
    """
    if now.memory_bytes > max(host.memory_bytes if host else 0, was.memory_bytes):
        way_out = _AWAY
        if host:
            way_out = (
                f"offers {host.memory_bytes / MIB:.1f} MiB; lower executor_memory_bytes or "
                "cold_memory_bytes, or add a host"
            )
        raise QuotaExceeded(
            f"tenant {tenant}: host {worker} would have promised {now.memory_bytes / MIB:.1f} MiB "
            f"to its tenants, {was.memory_bytes / MIB:.1f} MiB now, and {way_out}"
        )
    if now.cpu_percent > max(host.cores * 100 if host else 0, was.cpu_percent):
        way_out = f"the host {_AWAY}"
        if host:
            way_out = f"its {host.cores} core(s) are {host.cores * 100}; lower it, or add a host"
        raise QuotaExceeded(
            f"tenant {tenant}: the cpu_guarantee_percent of the tenants on host {worker} would "
            f"add up to {now.cpu_percent}, {was.cpu_percent} now, and {way_out}"
        )


def promises(view: ClusterView, *, of_absent: bool = False) -> dict[WorkerId, HostPromises]:
    """What every live host has promised; `of_absent`: also those that are away, but whose return
    something is kept for."""
    sizes, files = shard_sizes(view), placed_files(view)
    executors, cpu = executor_memory(view), cpu_guarantees(view)
    return {
        worker: HostPromises(
            memory_bytes=sum(sizes.get(shard, 0) for shard in files.get(worker, ()))
            + sum(executors.get(worker, {}).values()),
            cpu_percent=sum(cpu.get(worker, {}).values()),
        )
        for worker in (view.workers.keys() | executors.keys() if of_absent else view.workers)
    }


def broken_promises(view: ClusterView) -> tuple[str, ...]:
    """Sentences on the hosts that have promised more than they offer; none while the invariant
    holds. A host that comes back smaller breaks it, and nobody else."""
    broken = []
    for worker, sums in sorted(promises(view).items()):
        host = view.workers[worker].record
        if sums.memory_bytes > host.memory_bytes:
            broken.append(
                f"host {worker} has promised {sums.memory_bytes / MIB:.1f} MiB and offers "
                f"{host.memory_bytes / MIB:.1f} MiB"
            )
        if sums.cpu_percent > host.cores * 100:
            broken.append(
                f"host {worker} has promised {sums.cpu_percent} % of a core and has "
                f"{host.cores * 100} %"
            )
    return tuple(broken)


def shard_sizes(view: ClusterView, shards: Iterable[ShardSummary] = ()) -> dict[ShardId, int]:
    """Bytes of every shard that an epoch names, and of `shards`: measured where some host has
    built the shard file, else the size of its source files."""
    sizes: dict[ShardId, int] = {}
    for epoch in view.records(Epoch):
        sizes.update((shard.shard_id, shard.source_bytes) for shard in epoch.shards)
    sizes.update((shard.shard_id, shard.source_bytes) for shard in shards)
    measured: dict[ShardId, int] = {}
    for replica in view.records(Replica):
        if replica.file_bytes > 0:
            known = measured.get(replica.shard_id, 0)
            measured[replica.shard_id] = max(known, replica.file_bytes)
    return sizes | measured


def add_placement(held: dict[WorkerId, set[ShardId]], placement: Placement) -> None:
    """Add what each host holds of `placement`."""
    for shard_id, workers in placement.hosts:
        for worker in workers:
            held.setdefault(worker, set()).add(shard_id)


def placed_files(view: ClusterView) -> dict[WorkerId, set[ShardId]]:
    """Shard files that are or will be on each host: what is placed there, and what is there
    still because an executor drains."""
    files: dict[WorkerId, set[ShardId]] = {}
    for placement in view.records(Placement):
        add_placement(files, placement)
    for replica in view.records(Replica):
        if replica.file_bytes > 0:
            files.setdefault(replica.worker, set()).add(replica.shard_id)
    return files


def executor_memory(view: ClusterView) -> dict[WorkerId, ExecutorMemory]:
    """Executor memory of each tenant on each host: of a tenant with a plan or a placement there,
    by its quota as it is now, or as it was when a generation that still runs was planned."""
    memory: dict[WorkerId, ExecutorMemory] = {}
    for worker, tenant, kind, size in _sizes_of_executors(view):
        present = memory.setdefault(worker, {})
        present[tenant, kind] = max(size, present.get((tenant, kind), 0))
    return memory


def cpu_guarantees(view: ClusterView) -> dict[WorkerId, dict[TenantId, int]]:
    """Percent of one core promised to each tenant on each host."""
    guarantees: dict[WorkerId, dict[TenantId, int]] = {}
    for worker, tenant, _, _ in _sizes_of_executors(view):
        found = view.tenant(tenant)
        quota = found.quota if found else Quota()
        guarantees.setdefault(worker, {})[tenant] = quota.cpu_guarantee_percent
    return guarantees


def _sizes_of_executors(
    view: ClusterView,
) -> Iterable[tuple[WorkerId, TenantId, ExecutorKind, int]]:
    for plan in view.records(ExecutorPlan):
        yield plan.worker, plan.tenant, plan.kind, _size(plan.quota, plan.kind)
        found = view.tenant(plan.tenant)
        if found is not None:
            yield plan.worker, plan.tenant, plan.kind, _size(found.quota, plan.kind)
    for placement in view.records(Placement):
        found = view.tenant(placement.tenant)
        if found is not None:
            size = _size(found.quota, ExecutorKind.HOT)
            for worker in {worker for _, workers in placement.hosts for worker in workers}:
                yield worker, placement.tenant, ExecutorKind.HOT, size


def _size(quota: Quota, kind: ExecutorKind) -> int:
    return quota.cold_memory_bytes if kind is ExecutorKind.COLD else quota.executor_memory_bytes
