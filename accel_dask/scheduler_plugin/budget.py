"""What every host holds and may still take, as the master accounts for it. Pure.

Placement, admission and the limits of single loads all count with this ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import ColdPolicy
from accel_dask.model.epoch import HOLDING_STATES, Epoch, ShardSummary
from accel_dask.model.executor import ExecutorKind
from accel_dask.model.guarantees import (
    add_placement,
    cpu_guarantees,
    executor_memory,
    placed_files,
    shard_sizes,
)
from accel_dask.model.ids import ShardId, TenantId, WorkerId
from accel_dask.model.placement import Placement
from accel_dask.model.tenant import MIB, Quota

COLD_HOSTS: Final = 2
"""On so many hosts a tenant has a cold executor, if there are."""


def mib(size_bytes: int) -> str:
    """`size_bytes` for people."""
    return f"{size_bytes / MIB:.1f} MiB"


def tenant_shards(view: ClusterView, tenant: TenantId) -> dict[WorkerId, set[ShardId]]:
    """The distinct shards that the tenant's epochs hold on each host, by their placements."""
    held: dict[WorkerId, set[ShardId]] = {}
    for placement in view.records(Placement):
        if placement.tenant == tenant:
            add_placement(held, placement)
    return held


class Ledger:
    """The live hosts' memory against one tenant's budget and their own, as `add` goes on."""

    def __init__(
        self,
        view: ClusterView,
        tenant: TenantId,
        shards: Iterable[ShardSummary] = (),
        *,
        wants_cold: bool = False,
    ) -> None:
        """`shards`: of an epoch that is to come; `wants_cold`: it is read cold too."""
        found = view.tenant(tenant)
        self.tenant = tenant
        self.quota = found.quota if found else Quota()
        self.hosts: tuple[WorkerId, ...] = tuple(sorted(view.workers))
        self.sizes: Mapping[ShardId, int] = shard_sizes(view, shards)
        self.of_tenant = tenant_shards(view, tenant)
        self._everywhere = sum(self.bytes_of(held) for held in self.of_tenant.values())
        self._memory = {w: found.record.memory_bytes for w, found in view.workers.items()}
        self._cores = {w: found.record.cores for w, found in view.workers.items()}
        self._cpu = cpu_guarantees(view)
        self._files = placed_files(view)
        self._executors = executor_memory(view)
        self.cold_hosts: tuple[WorkerId, ...] = ()
        """Hosts that run the tenant's cold executors, or shall."""
        tenants = cold_tenants(view) | ({tenant} if wants_cold else set())
        for one in sorted(tenants):
            self._reserve_cold(view, one)

    def _reserve_cold(self, view: ClusterView, tenant: TenantId) -> None:
        """Choose the hosts of a tenant's cold executors: where one is planned already, then any
        with room, in an order of the tenant's own."""
        found = view.tenant(tenant)
        quota = found.quota if found else Quota()
        size = quota.cold_memory_bytes
        key = (tenant, ExecutorKind.COLD)
        planned = [w for w in self.hosts if view.plans_on(w, tenant, ExecutorKind.COLD)]
        others = [
            worker
            for worker in self.hosts
            if worker not in planned
            and self.host_free_bytes(worker) >= size
            and self._has_cpu(worker, tenant, quota)
        ]
        chosen = (*_ranked(tenant, planned), *_ranked(tenant, others))[:COLD_HOSTS]
        for worker in chosen:
            self._executors.setdefault(worker, {}).setdefault(key, size)
            self._cpu.setdefault(worker, {}).setdefault(tenant, quota.cpu_guarantee_percent)
        if tenant == self.tenant:
            self.cold_hosts = chosen

    def _has_cpu(self, host: WorkerId, tenant: TenantId, quota: Quota) -> bool:
        others = sum(p for t, p in self._cpu.get(host, {}).items() if t != tenant)
        return others + quota.cpu_guarantee_percent <= self._cores[host] * 100

    def bytes_of(self, shards: Iterable[ShardId]) -> int:
        return sum(self.sizes.get(shard, 0) for shard in shards)

    def tenant_bytes(self, host: WorkerId) -> int:
        """Shard bytes of the tenant on `host`."""
        return self.bytes_of(self.of_tenant.get(host, ()))

    def host_free_bytes(self, host: WorkerId) -> int:
        """What `host` still offers, to all tenants together."""
        used = self.bytes_of(self._files.get(host, ()))
        return self._memory[host] - used - sum(self._executors.get(host, {}).values())

    def shortage(self, host: WorkerId, shards: Iterable[ShardId]) -> str:
        """Why `host` cannot take `shards` beside what it holds; empty: it can.

        What it holds already costs nothing, so a budget that was lowered moves nothing.
        """
        wanted = set(shards)
        added = wanted - self.of_tenant.get(host, set())
        if not added:
            return ""
        held, more = self.tenant_bytes(host), self.bytes_of(added)
        if held + more > self.quota.shard_bytes_per_host:
            return (
                f"on host {host} tenant {self.tenant} would hold {mib(held + more)} of shards "
                f"({mib(held)} now), above its {mib(self.quota.shard_bytes_per_host)} "
                "(memory_bytes_per_host less executor_memory_bytes)"
            )
        limit, held = self.quota.memory_bytes_on_all_hosts, self._everywhere
        if held + more > limit:
            return (
                f"tenant {self.tenant} would hold {mib(held + more)} of shards on all hosts "
                f"together ({mib(held)} now), above its {mib(limit)} (memory_bytes_on_all_hosts)"
            )
        needs = self.bytes_of(wanted - self._files.get(host, set()))
        if (self.tenant, ExecutorKind.HOT) not in self._executors.get(host, {}):
            needs += self.quota.executor_memory_bytes
        if needs > self.host_free_bytes(host):
            return (
                f"host {host} has {mib(max(0, self.host_free_bytes(host)))} of its "
                f"{mib(self._memory[host])} left, {mib(needs)} are needed"
            )
        if not self._has_cpu(host, self.tenant, self.quota):
            others = sum(p for t, p in self._cpu.get(host, {}).items() if t != self.tenant)
            return (
                f"host {host} has promised {others} % of its {self._cores[host]} core(s) to other "
                f"tenants, and tenant {self.tenant} is to have {self.quota.cpu_guarantee_percent} "
                "% (cpu_guarantee_percent)"
            )
        return ""

    def add(self, host: WorkerId, shards: Iterable[ShardId]) -> None:
        """Count `shards` of the tenant as held by `host`."""
        added = set(shards)
        if not added:
            return
        held = self.of_tenant.setdefault(host, set())
        self._everywhere += self.bytes_of(added - held)
        held.update(added)
        self._files.setdefault(host, set()).update(added)
        executors = self._executors.setdefault(host, {})
        executors.setdefault((self.tenant, ExecutorKind.HOT), self.quota.executor_memory_bytes)


def cold_tenants(view: ClusterView) -> set[TenantId]:
    """Tenants with an epoch that may be read cold."""
    return {
        epoch.tenant
        for epoch in view.records(Epoch)
        if epoch.cold is ColdPolicy.ALLOW
        and epoch.state in HOLDING_STATES
        and view.tenant(epoch.tenant) is not None
    }


def _ranked(tenant: TenantId, workers: Iterable[WorkerId]) -> list[WorkerId]:
    return sorted(workers, key=lambda w: hashlib.sha256(f"{tenant}|{w}".encode()).digest())
