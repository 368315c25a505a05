"""The cluster's state as plain values, for the page, the JSON route, the RPC and the metrics.

Numbers are plain; ages are in seconds, sizes in bytes. Nothing in it is secret. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import Dataset, PublishRequest
from accel_dask.model.epoch import Epoch
from accel_dask.model.executor import Executor, ExecutorKind, ExecutorPlan
from accel_dask.model.guarantees import shard_sizes
from accel_dask.model.member import Gateway, Worker
from accel_dask.model.replica import Replica
from accel_dask.model.share import concurrency_of
from accel_dask.scheduler_plugin.round import executor_of
from accel_dask.scheduler_plugin.waiting import request_waits_for, waiting_for

Row = dict[str, Any]


def summarize(view: ClusterView, now_ns: int) -> Row:
    """All of `view` that operators look at."""
    leader = view.leader
    return {
        "cluster": view.meta.cluster_id if view.meta else "",
        "revision": view.revision,
        "leader": leader.master if leader else "",
        "leader_address": leader.address if leader else "",
        "datasets": [_dataset(view, dataset, now_ns) for dataset in view.records(Dataset)],
        "epochs": [_epoch(view, epoch, now_ns) for epoch in view.records(Epoch)],
        "requests": [_request(view, request, now_ns) for request in view.records(PublishRequest)],
        "executors": [_executor(view, plan) for plan in view.records(ExecutorPlan)],
        "hosts": [_host(view, worker) for worker in view.records(Worker)],
        "gateways": [_gateway(gateway) for gateway in view.records(Gateway)],
        "shares": [row for gateway in view.records(Gateway) for row in _shares(view, gateway)],
        "engines": [
            {"gateway": gateway.gateway, **asdict(load)}
            for gateway in view.records(Gateway)
            for load in gateway.engines
        ],
        "queries_per_second": queries_per_second(view),
    }


def queries_per_second(view: ClusterView) -> dict[str, float]:
    """Of each tenant, over all gateways."""
    totals: dict[str, float] = defaultdict(float)
    for gateway in view.records(Gateway):
        for tenant, rate in gateway.per_tenant:
            totals[tenant] += rate
    return dict(sorted(totals.items()))


def _dataset(view: ClusterView, dataset: Dataset, now_ns: int) -> Row:
    serving = view.serving(dataset.dataset_id)
    epoch = view.serving_epoch(dataset.dataset_id)
    shards = epoch.shards if epoch else ()
    rows = [_rows_of(view, shard.shard_id, shard.rows) for shard in shards]
    sizes = [_bytes_of(view, shard.shard_id) for shard in shards]
    return {
        "tenant": dataset.tenant,
        "dataset": dataset.name,
        "source": dataset.source.connector,
        "epoch": epoch.number if epoch else None,
        "snapshot": str(epoch.snapshot_id) if epoch and epoch.snapshot_id else "",
        "since_seconds": _age(serving.since_ns, now_ns) if serving else None,
        "rows": sum(rows),
        "shards": len(shards),
        "shards_ready": sum(bool(view.ready_replicas(shard.shard_id)) for shard in shards),
        "shards_cold": _cold(view, epoch) if epoch else 0,
        "replicas": min(epoch.replicas if epoch else dataset.wanted_replicas, len(view.workers)),
        "bytes": sum(sizes),
    }


def _rows_of(view: ClusterView, shard_id: Any, promised: int | None) -> int:
    ready = view.ready_replicas(shard_id)
    return ready[0].rows if ready else promised or 0


def _bytes_of(view: ClusterView, shard_id: Any) -> int:
    ready = view.ready_replicas(shard_id)
    return ready[0].file_bytes if ready else 0


def _epoch(view: ClusterView, epoch: Epoch, now_ns: int) -> Row:
    ready = sum(bool(view.ready_replicas(shard.shard_id)) for shard in epoch.shards)
    return {
        "tenant": epoch.tenant,
        "dataset": epoch.dataset,
        "epoch": epoch.number,
        "state": epoch.state.value,
        "age_seconds": _age(epoch.since_ns, now_ns),
        "snapshot": str(epoch.snapshot_id) if epoch.snapshot_id else "",
        "shards": len(epoch.shards),
        "shards_ready": ready,
        "shards_cold": _cold(view, epoch),
        "reason": epoch.reason,
        "waiting_for": waiting_for(view, epoch),
        "story": [
            {
                "at_seconds_ago": _age(line.at_ns, now_ns),
                "state": line.state.value,
                "because": line.because,
            }
            for line in epoch.story
        ],
    }


def _cold(view: ClusterView, epoch: Epoch) -> int:
    placement = view.placement(epoch.dataset_id, epoch.number)
    return len(placement.cold_shards) if placement else 0


def _request(view: ClusterView, request: PublishRequest, now_ns: int) -> Row:
    return {
        "tenant": request.tenant,
        "dataset": request.name,
        "snapshot": request.snapshot or "newest",
        "requested_by": request.requested_by,
        "age_seconds": _age(request.requested_at_ns, now_ns),
        "waiting_for": request_waits_for(view, request),
    }


def _executor(view: ClusterView, plan: ExecutorPlan) -> Row:
    executor: Executor | None = executor_of(view, plan)
    shards = {attachment.shard_id for attachment in plan.attachments}
    sizes = shard_sizes(view)
    is_cold = plan.kind is ExecutorKind.COLD
    tenant = view.tenant(plan.tenant)
    quota = tenant.quota if tenant else plan.quota
    return {
        "tenant": plan.tenant,
        "host": plan.worker,
        "generation": plan.generation,
        "kind": plan.kind.value,
        "state": executor.state.value if executor else "STARTING",
        "reason": executor.reason if executor else "",
        "pid": executor.pid if executor else 0,
        "start_ms": executor.start_ms if executor else 0,
        "epochs": sorted({f"{a.dataset}@{a.epoch}" for a in plan.attachments}),
        "shards": len(shards),
        "shard_bytes": 0 if is_cold else sum(sizes.get(shard, 0) for shard in shards),
        "resident_bytes": executor.resident_bytes if executor else 0,
        "executor_memory_bytes": (
            plan.quota.cold_memory_bytes if is_cold else plan.quota.executor_memory_bytes
        ),
        "memory_bytes_per_host": (
            quota.cold_memory_bytes if is_cold else quota.memory_bytes_per_host
        ),
    }


def _host(view: ClusterView, worker: Worker) -> Row:
    replicas = [r for r in view.records(Replica) if r.worker == worker.worker]
    executors = [e for e in view.records(Executor) if e.worker == worker.worker]
    return {
        "host": worker.worker,
        "address": worker.host,
        "cores": worker.cores,
        "memory_bytes": worker.memory_bytes,
        "shard_bytes": sum(replica.file_bytes for replica in replicas),
        "executor_bytes": sum(executor.resident_bytes for executor in executors),
        "shards": sum(r.state.value == "READY" for r in replicas),
        "failed": sum(r.state.value == "FAILED" for r in replicas),
        "executors": len(executors),
        "in_memory": worker.in_memory,
        "shard_dir": worker.shard_dir,
        "enforcement": worker.enforcement,
        "version": worker.version,
    }


def _gateway(gateway: Gateway) -> Row:
    return {
        "gateway": gateway.gateway,
        "address": gateway.address,
        "applied_revision": gateway.applied_revision,
        "queries": gateway.queries,
        "failed": gateway.failed,
        "queries_per_second": gateway.queries_per_second,
        "p50_ms": gateway.p50_ms,
        "p99_ms": gateway.p99_ms,
        "per_tenant": dict(gateway.per_tenant),
    }


def _shares(view: ClusterView, gateway: Gateway) -> Iterator[Row]:
    """One gateway's places for each tenant that has asked it something."""
    for load in gateway.admission:
        yield {
            "tenant": load.tenant,
            "gateway": gateway.gateway,
            "share": load.share,
            "of": concurrency_of(view, load.tenant),
            "in_use": load.in_use,
            "queued": load.queued,
            "shed": load.shed,
        }


def _age(at_ns: int, now_ns: int) -> float:
    return round(max(0, now_ns - at_ns) / 1e9, 1)
