"""The routing table: for every dataset its serving epoch and the executors that have it.

Built from a view by each gateway; queries are planned against one table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import ColdPolicy, Dataset, Rollup
from accel_dask.model.epoch import Epoch, ShardSummary
from accel_dask.model.executor import (
    Attachment,
    Executor,
    ExecutorKind,
    ExecutorPlan,
    ExecutorState,
)
from accel_dask.model.fallback import FallbackPolicy, FallbackSpec
from accel_dask.model.ids import DatasetId, EpochNumber, Revision, ShardId, TenantId, WorkerId
from accel_dask.model.member import META_PATH, ClusterMeta
from accel_dask.model.placement import Serving
from accel_dask.model.snapshot import Column, SnapshotId
from accel_dask.model.tenant import Quota, Tenant, User
from accel_dask.model.ticket import DATA_TABLE


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorRoute:
    """A READY executor and what it has attached."""

    worker: WorkerId
    tenant: TenantId
    generation: int
    incarnation: str
    address: str
    attachments: frozenset[Attachment]
    ticket_port: int = 0
    kind: ExecutorKind = ExecutorKind.HOT

    @property
    def is_cold(self) -> bool:
        return self.kind is ExecutorKind.COLD


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRoute:
    """The epoch that a dataset serves, and who can answer for it."""

    dataset_id: DatasetId
    epoch: EpochNumber
    snapshot_id: SnapshotId | None
    columns: tuple[Column, ...]
    shards: tuple[ShardSummary, ...]
    executors: tuple[ExecutorRoute, ...]
    """Executors that have at least one shard of the epoch attached."""
    sort_by: tuple[str, ...] = ()
    """As the dataset declares it."""
    rollups: tuple[Rollup, ...] = ()
    rollup_rows: tuple[tuple[int, ...], ...] = ()
    """As in `Epoch`."""
    table: str = DATA_TABLE
    """Which table of the shard files `columns` and the shards' rows are of: the data, or, where
    the planner chose one, a rollup."""
    cold: ColdPolicy = ColdPolicy.REFUSE
    cold_shards: frozenset[ShardId] = frozenset()
    """Shards that stay at the source for as long as the epoch lives."""
    cold_because: str = ""
    """Why, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackRoute:
    """A dataset as its fallback engine has to answer for it."""

    dataset_id: DatasetId
    spec: FallbackSpec
    connector: str
    """That reads its source."""
    source_table: str
    """The source's own name for the table; empty: it has none."""
    epoch: EpochNumber
    """The serving one, else the newest of which the columns are known."""
    snapshot_id: SnapshotId | None
    columns: tuple[Column, ...]
    row_filter: str | None


class RoutingTable:
    """Immutable. `revision` is the view's."""

    def __init__(
        self,
        revision: int,
        datasets: Mapping[DatasetId, DatasetRoute],
        quotas: Mapping[TenantId, Quota],
        users: Mapping[str, User],
        ticket_key: bytes,
        declared: Iterable[DatasetId] = (),
        fallbacks: Mapping[DatasetId, FallbackRoute] | None = None,
    ) -> None:
        self.revision = Revision(revision)
        self.datasets = MappingProxyType(dict(datasets))
        self.quotas = MappingProxyType(dict(quotas))
        self.users = MappingProxyType(dict(users))
        self.ticket_key = ticket_key
        """Signs tickets and bearer tokens; empty before the cluster has one."""
        self.declared = frozenset(declared)
        """All datasets that there are, also those without a READY epoch."""
        self.fallbacks = MappingProxyType(dict(fallbacks or {}))
        """Of the datasets that have an engine behind them."""
        self.always_at_engines = frozenset(
            key.tenant
            for key, route in self.fallbacks.items()
            if route.spec.policy is FallbackPolicy.ALWAYS
        )
        """Tenants with a dataset that is never answered from memory."""
        self.alike = MappingProxyType(_alike({*self.declared, *self.datasets}))
        """Names that differ in their case only, by tenant and the name in lower case."""

    def datasets_of(self, tenant: TenantId) -> tuple[DatasetRoute, ...]:
        """In order of their names."""
        return tuple(self.datasets[key] for key in sorted(self.datasets) if key.tenant == tenant)

    def quota_of(self, tenant: TenantId) -> Quota:
        """The tenant's; the default one if it is not known."""
        return self.quotas.get(tenant, Quota())


def _alike(datasets: Iterable[DatasetId]) -> dict[tuple[TenantId, str], tuple[str, ...]]:
    names: dict[tuple[TenantId, str], list[str]] = {}
    for dataset in datasets:
        names.setdefault((dataset.tenant, dataset.name.lower()), []).append(dataset.name)
    return {key: tuple(sorted(found)) for key, found in names.items() if len(found) > 1}


def build_routing(view: ClusterView) -> RoutingTable:
    """The routing table of `view`. On one host only the newest generation of a kind that has
    an epoch is routed to; older ones answer what is under way and end."""
    routes = executor_routes(view)
    declared = {dataset.dataset_id: dataset for dataset in view.records(Dataset)}
    datasets = {}
    for serving in view.records(Serving):
        epoch = view.epoch(serving.dataset_id, serving.epoch)
        if epoch is None:
            continue
        placement = view.placement(serving.dataset_id, serving.epoch)
        datasets[serving.dataset_id] = DatasetRoute(
            dataset_id=serving.dataset_id,
            epoch=epoch.number,
            snapshot_id=epoch.snapshot_id,
            columns=epoch.columns,
            shards=epoch.shards,
            executors=_newest_with(routes, serving.dataset_id, epoch.number),
            sort_by=_sort_by(declared.get(serving.dataset_id), epoch),
            rollups=epoch.rollups,
            rollup_rows=epoch.rollup_rows,
            cold=epoch.cold,
            cold_shards=placement.cold_shards if placement else frozenset(),
            cold_because=placement.cold_because if placement else "",
        )
    meta = view.find(ClusterMeta, META_PATH)
    return RoutingTable(
        view.revision,
        datasets,
        {tenant.tenant: tenant.quota for tenant in view.records(Tenant)},
        {user.name: user for user in view.records(User)},
        bytes.fromhex(meta.ticket_key) if meta else b"",
        declared,
        _fallbacks(view),
    )


def _fallbacks(view: ClusterView) -> dict[DatasetId, FallbackRoute]:
    found = {}
    for dataset in view.records(Dataset):
        spec = dataset.fallback
        if spec is None or spec.policy is FallbackPolicy.NEVER:
            continue
        epoch = view.serving_epoch(dataset.dataset_id) or max(
            (epoch for epoch in view.epochs_of(dataset.dataset_id) if epoch.columns),
            key=lambda epoch: epoch.number,
            default=None,
        )
        if epoch is None:
            continue
        found[dataset.dataset_id] = FallbackRoute(
            dataset_id=dataset.dataset_id,
            spec=spec,
            connector=dataset.source.connector,
            source_table=dataset.source.option("table") or "",
            epoch=epoch.number,
            snapshot_id=epoch.snapshot_id,
            columns=epoch.columns,
            row_filter=epoch.row_filter,
        )
    return found


def _sort_by(dataset: Dataset | None, epoch: Epoch) -> tuple[str, ...]:
    """The dataset's declared order, if the epoch has its columns."""
    names = {column.name for column in epoch.columns}
    wanted = dataset.sort_by if dataset is not None else ()
    return wanted if set(wanted) <= names else ()


def executor_routes(view: ClusterView) -> tuple[ExecutorRoute, ...]:
    """The READY executors of all tenants and hosts."""
    plans = {(p.worker, p.tenant, p.generation): p for p in view.records(ExecutorPlan)}
    routes = []
    for executor in view.records(Executor):
        plan = plans.get((executor.worker, executor.tenant, executor.generation))
        if plan is None or executor.state is not ExecutorState.READY:
            continue
        routes.append(
            ExecutorRoute(
                worker=executor.worker,
                tenant=executor.tenant,
                generation=executor.generation,
                incarnation=executor.incarnation,
                address=executor.address,
                ticket_port=executor.ticket_port,
                attachments=frozenset(plan.attachments),
                kind=plan.kind,
            )
        )
    return tuple(routes)


def _newest_with(
    routes: tuple[ExecutorRoute, ...], dataset: DatasetId, epoch: EpochNumber
) -> tuple[ExecutorRoute, ...]:
    newest: dict[tuple[WorkerId, ExecutorKind], ExecutorRoute] = {}
    for route in routes:
        if route.tenant != dataset.tenant or not any(
            a.dataset == dataset.name and a.epoch == epoch for a in route.attachments
        ):
            continue
        key = (route.worker, route.kind)
        known = newest.get(key)
        if known is None or known.generation < route.generation:
            newest[key] = route
    return tuple(newest[key] for key in sorted(newest))
