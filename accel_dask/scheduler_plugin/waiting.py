"""What an epoch, or a publish request, is waiting for: one sentence for operators. Pure."""

from __future__ import annotations

from collections import Counter

from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import ColdPolicy, PublishRequest
from accel_dask.model.epoch import Epoch, EpochState
from accel_dask.model.executor import ExecutorState
from accel_dask.model.member import Gateway
from accel_dask.model.placement import Placement
from accel_dask.scheduler_plugin.budget import Ledger, mib
from accel_dask.scheduler_plugin.round import (
    attachments_of,
    cold_plans_of,
    cold_serving_plans,
    executor_of,
    is_declared,
    live_pairs,
    lost_hosts,
    missing_pairs,
    shards_on,
)


def waiting_for(view: ClusterView, epoch: Epoch) -> str:
    """Why `epoch` is not further than it is; empty if it waits for nothing."""
    if epoch.state is EpochState.RETIRING:
        return _for_gateways(view, epoch)
    placement = view.placement(epoch.dataset_id, epoch.number)
    if placement is None or epoch.state is EpochState.FAILED:
        return ""
    told = []
    if epoch.state is EpochState.VALIDATING:
        told.append(_for_executors(view, epoch, placement))
    else:
        told.append(_for_loads(view, placement))
    if epoch.state is EpochState.READY and epoch.cold is ColdPolicy.ALLOW:
        told.append(_for_stand_ins(view, epoch))
    lost = lost_hosts(view, placement)
    if lost:
        told.append(f"host {', '.join(lost)} is gone and no other one can take its shards")
    return "; ".join(text for text in told if text)


def request_waits_for(view: ClusterView, request: PublishRequest) -> str:
    """Why `request` is not answered yet."""
    dataset = request.dataset_id
    if not is_declared(view, dataset):
        return f"{dataset} is not declared"
    open_epoch = view.open_epoch(dataset)
    if open_epoch is not None:
        return f"epoch {open_epoch.number} is on its way"
    if not view.workers:
        return "no host is alive"
    return "its snapshot is being planned"


def _for_loads(view: ClusterView, placement: Placement) -> str:
    missing = Counter(worker for worker, _ in missing_pairs(view, placement))
    if not missing:
        return ""
    total = sum(len(workers) for _, workers in placement.hosts)
    hosts = ", ".join(f"{count} on {worker}" for worker, count in sorted(missing.items()))
    return f"{total - missing.total()} of {total} replicas are READY; to load: {hosts}"


def _for_executors(view: ClusterView, epoch: Epoch, placement: Placement) -> str:
    told = []
    for worker in sorted({worker for worker, _ in live_pairs(view, placement)}):
        needed = attachments_of(epoch, shards_on(placement, worker))
        plans = [p for p in view.plans_on(worker, epoch.tenant) if needed <= set(p.attachments)]
        if not plans:
            told.append(f"{worker}: an executor before it is still starting")
            continue
        executor = executor_of(view, plans[-1])
        if executor is None:
            told.append(f"{worker}: generation {plans[-1].generation} is starting")
        elif executor.state is not ExecutorState.READY:
            told.append(f"{worker}: generation {plans[-1].generation} {executor.state}")
    if cold_serving_plans(view, epoch, placement) is None:
        told.append(_for_cold(view, epoch, placement))
    return "; ".join(told)


def _for_cold(view: ClusterView, epoch: Epoch, placement: Placement) -> str:
    if cold_plans_of(view, epoch.tenant):
        return f"a cold executor for its {len(placement.cold_shards)} cold shards is starting"
    quota = Ledger(view, epoch.tenant).quota
    return (
        "no host has room for the cold executor that its cold shards need "
        f"(cold_memory_bytes, {mib(quota.cold_memory_bytes)})"
    )


def _for_stand_ins(view: ClusterView, epoch: Epoch) -> str:
    ledger = Ledger(view, epoch.tenant)
    if ledger.cold_hosts:
        return ""
    return (
        "no host has room for a cold executor to stand in for hot ones "
        f"(cold_memory_bytes, {mib(ledger.quota.cold_memory_bytes)})"
    )


def _for_gateways(view: ClusterView, epoch: Epoch) -> str:
    found = view.get(epoch.path)
    switch = found.mod_revision if found else 0
    behind = [g for g in view.records(Gateway) if g.applied_revision < switch]
    return "; ".join(
        f"gateway {g.gateway} is at revision {g.applied_revision}, the switch was {switch}"
        for g in behind
    )
