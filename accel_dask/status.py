"""The tables that `accel-dask status` prints."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import Dataset
from accel_dask.model.epoch import Epoch, ShardSummary
from accel_dask.model.executor import Executor, ExecutorKind, ExecutorPlan
from accel_dask.model.member import Gateway, Worker
from accel_dask.model.replica import Replica
from accel_dask.model.share import concurrency_of
from accel_dask.model.tenant import MIB


def status_tables(view: ClusterView) -> tuple[Table, ...]:
    """Hosts, epochs, executors, gateways, tenants' places in gateways, and engines that were asked,
    of `view`."""
    tables = (_hosts(view), _epochs(view), _executors(view), _gateways(view), _places(view))
    engines = _engines(view)
    return (*tables, engines) if engines.row_count else tables


def _hosts(view: ClusterView) -> Table:
    table = Table("host", "address", "shard bytes", "of", "in memory", "enforcement", title="Hosts")
    for worker in view.records(Worker):
        held = sum(r.file_bytes for r in view.records(Replica) if r.worker == worker.worker)
        table.add_row(
            worker.worker,
            worker.host,
            _mib(held),
            _mib(worker.memory_bytes),
            "yes" if worker.in_memory else "[yellow]no[/]",
            worker.enforcement,
        )
    return table


def _epochs(view: ClusterView) -> Table:
    table = Table("dataset", "epoch", "state", "rows", "shards", "why", title="Epochs")
    for dataset in view.records(Dataset):
        epochs = view.epochs_of(dataset.dataset_id)
        if not epochs:
            table.add_row(str(dataset.dataset_id), "", "not published", "", "", "")
        for epoch in epochs:
            rows = sum(_rows(view, shard) for shard in epoch.shards)
            table.add_row(
                str(dataset.dataset_id),
                str(epoch.number),
                epoch.state.value,
                f"{rows:,}",
                _shards(view, epoch),
                epoch.reason,
            )
    return table


def _shards(view: ClusterView, epoch: Epoch) -> str:
    ready = sum(1 for shard in epoch.shards if view.ready_replicas(shard.shard_id))
    placement = view.placement(epoch.dataset_id, epoch.number)
    cold = len(placement.cold_shards) if placement else 0
    return f"{ready}/{len(epoch.shards)}" + (f", {cold} cold" if cold else "")


def _rows(view: ClusterView, shard: ShardSummary) -> int:
    """As loaded; until then as promised, where a filter or deletes do not leave it open."""
    ready = view.ready_replicas(shard.shard_id)
    return ready[0].rows if ready else shard.rows or 0


def _executors(view: ClusterView) -> Table:
    table = Table(
        "tenant",
        "host",
        "generation",
        "kind",
        "state",
        "memory",
        "of",
        "datasets",
        title="Executors",
    )
    running = {e.path[1:]: e for e in view.records(Executor)}
    for plan in view.records(ExecutorPlan):
        executor = running.get(plan.path[1:])
        epochs = sorted({f"{a.dataset}@{a.epoch}" for a in plan.attachments})
        table.add_row(
            plan.tenant,
            plan.worker,
            str(plan.generation),
            plan.kind.value,
            executor.state.value if executor else "starting",
            _mib(executor.resident_bytes) if executor else "",
            _mib(
                plan.quota.cold_memory_bytes
                if plan.kind is ExecutorKind.COLD
                else plan.quota.executor_memory_bytes
            ),
            ", ".join(epochs),
        )
    return table


def _gateways(view: ClusterView) -> Table:
    table = Table(
        "gateway", "queries", "failed", "per second", "p50 ms", "p99 ms", title="Gateways"
    )
    for gateway in view.records(Gateway):
        table.add_row(
            gateway.address,
            f"{gateway.queries:,}",
            f"{gateway.failed:,}",
            f"{gateway.queries_per_second:.1f}",
            f"{gateway.p50_ms:.1f}",
            f"{gateway.p99_ms:.1f}",
        )
    return table


def _places(view: ClusterView) -> Table:
    table = Table(
        "tenant", "gateway", "share", "of", "in use", "queued", "refused",
        title="Places of tenants in gateways",
    )  # fmt: skip
    for gateway in view.records(Gateway):
        for load in gateway.admission:
            table.add_row(
                load.tenant,
                gateway.address,
                str(load.share),
                str(concurrency_of(view, load.tenant)),
                str(load.in_use),
                str(load.queued),
                f"{load.shed:,}",
            )
    return table


def _engines(view: ClusterView) -> Table:
    table = Table(
        "tenant", "engine", "gateway", "queries", "failed", "running", "p50 ms", "p99 ms",
        "breaker", title="Fallback engines",
    )  # fmt: skip
    for gateway in view.records(Gateway):
        for load in gateway.engines:
            is_closed = load.breaker == "closed"
            told = f"{load.breaker}, {load.refused:,} not sent: {load.because}"
            table.add_row(
                load.tenant,
                load.engine,
                gateway.gateway,
                f"{load.queries:,}",
                f"{load.failed:,}",
                str(load.running),
                f"{load.p50_ms:.1f}",
                f"{load.p99_ms:.1f}",
                "closed" if is_closed else f"[yellow]{escape(told)}[/]",
            )
    return table


def _mib(count: int) -> str:
    return f"{count / MIB:,.1f} MiB"
