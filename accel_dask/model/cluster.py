"""All of the cluster's records at one revision of the store; what decisions are made on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Final, Generic, TypeVar, cast

from accel_dask.errors import InvariantViolated
from accel_dask.model.dataset import (
    ColdPolicy,
    Dataset,
    PublishRequest,
    dataset_path,
    publish_path,
)
from accel_dask.model.epoch import (
    HOLDING_STATES,
    OPEN_STATES,
    Epoch,
    EpochState,
    LastEpoch,
    epoch_path,
)
from accel_dask.model.executor import Executor, ExecutorKind, ExecutorPlan
from accel_dask.model.ids import (
    DatasetId,
    EpochNumber,
    Path,
    Revision,
    ShardId,
    TenantId,
    WorkerId,
)
from accel_dask.model.member import (
    LEADER_PATH,
    META_PATH,
    ClusterMeta,
    Gateway,
    Leader,
    Share,
    Worker,
)
from accel_dask.model.placement import Placement, Serving, placement_path, serving_path
from accel_dask.model.replica import Replica, ReplicaState
from accel_dask.model.tenant import Tenant, User, tenant_path

Record = (
    ClusterMeta
    | Dataset
    | Epoch
    | Executor
    | ExecutorPlan
    | Gateway
    | LastEpoch
    | Leader
    | Placement
    | PublishRequest
    | Replica
    | Serving
    | Share
    | Tenant
    | User
    | Worker
)

RECORD_TYPES: Final[Mapping[str, type[Record]]] = MappingProxyType(
    {
        cls.KIND: cls
        for cls in (
            ClusterMeta,
            Dataset,
            Epoch,
            Executor,
            ExecutorPlan,
            Gateway,
            LastEpoch,
            Leader,
            Placement,
            PublishRequest,
            Replica,
            Serving,
            Share,
            Tenant,
            User,
            Worker,
        )
    }
)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Versioned(Generic[R]):
    """A record with the store revisions at which it was created and last written."""

    record: R
    create_revision: Revision
    mod_revision: Revision


class ClusterView:
    """Every record under the cluster's prefix at `revision`. Immutable."""

    def __init__(self, revision: int, entries: Mapping[Path, Versioned[Record]]) -> None:
        self.revision = Revision(revision)
        self.entries: Mapping[Path, Versioned[Record]] = MappingProxyType(dict(entries))

    def get(self, path: Path) -> Versioned[Record] | None:
        return self.entries.get(path)

    @cached_property
    def _by_kind(self) -> Mapping[str, tuple[Versioned[Record], ...]]:
        kinds: dict[str, list[Versioned[Record]]] = {}
        for path in sorted(self.entries):
            kinds.setdefault(path[0], []).append(self.entries[path])
        return {kind: tuple(found) for kind, found in kinds.items()}

    def of(self, record_type: type[R]) -> tuple[Versioned[R], ...]:
        """All records of one type, in path order."""
        kind: str = record_type.KIND  # type: ignore[attr-defined]
        return cast("tuple[Versioned[R], ...]", self._by_kind.get(kind, ()))

    def records(self, record_type: type[R]) -> Iterator[R]:
        """As `of`, without the revisions."""
        return (found.record for found in self.of(record_type))

    def find(self, record_type: type[R], path: Path) -> R | None:
        """The record at `path`, or None."""
        found = self.entries.get(path)
        return found.record if found and isinstance(found.record, record_type) else None

    # What follows are the look-ups that several decisions share.

    @property
    def meta(self) -> ClusterMeta | None:
        return self.find(ClusterMeta, META_PATH)

    @property
    def leader(self) -> Leader | None:
        return self.find(Leader, LEADER_PATH)

    def tenant(self, tenant: TenantId) -> Tenant | None:
        return self.find(Tenant, tenant_path(tenant))

    def dataset(self, dataset: DatasetId) -> Dataset | None:
        return self.find(Dataset, dataset_path(dataset))

    def publish_request(self, dataset: DatasetId) -> PublishRequest | None:
        return self.find(PublishRequest, publish_path(dataset))

    def epoch(self, dataset: DatasetId, number: EpochNumber) -> Epoch | None:
        return self.find(Epoch, epoch_path(dataset, number))

    def placement(self, dataset: DatasetId, number: EpochNumber) -> Placement | None:
        return self.find(Placement, placement_path(dataset, number))

    def serving(self, dataset: DatasetId) -> Serving | None:
        return self.find(Serving, serving_path(dataset))

    def serving_epoch(self, dataset: DatasetId) -> Epoch | None:
        serving = self.serving(dataset)
        return self.epoch(dataset, serving.epoch) if serving else None

    @cached_property
    def _epochs_by_dataset(self) -> Mapping[DatasetId, tuple[Epoch, ...]]:
        found: dict[DatasetId, list[Epoch]] = {}
        for epoch in self.records(Epoch):
            found.setdefault(epoch.dataset_id, []).append(epoch)
        return {dataset: tuple(epochs) for dataset, epochs in found.items()}

    def epochs_of(self, dataset: DatasetId) -> tuple[Epoch, ...]:
        """In order of their numbers."""
        return self._epochs_by_dataset.get(dataset, ())

    def open_epoch(self, dataset: DatasetId) -> Epoch | None:
        """The epoch on its way, if there is one."""
        return next((e for e in self.epochs_of(dataset) if e.state in OPEN_STATES), None)

    @cached_property
    def workers(self) -> Mapping[WorkerId, Versioned[Worker]]:
        """The live hosts. The create revision is a host's incarnation."""
        return {found.record.worker: found for found in self.of(Worker)}

    @cached_property
    def _ready_replicas(self) -> Mapping[ShardId, tuple[Replica, ...]]:
        found: dict[ShardId, list[Replica]] = {}
        for replica in self.records(Replica):
            worker = self.workers.get(replica.worker)
            if (
                replica.state is ReplicaState.READY
                and worker is not None
                and worker.create_revision == replica.worker_incarnation
            ):
                found.setdefault(replica.shard_id, []).append(replica)
        return {shard: tuple(replicas) for shard, replicas in found.items()}

    def ready_replicas(self, shard_id: ShardId) -> tuple[Replica, ...]:
        """READY replicas vouched for by a host that is alive now."""
        return self._ready_replicas.get(shard_id, ())

    @cached_property
    def wanted_shards(self) -> Mapping[WorkerId, frozenset[ShardId]]:
        """What each host must hold: its part of every placement."""
        wanted: dict[WorkerId, set[ShardId]] = {}
        for placement in self.records(Placement):
            for shard_id, workers in placement.hosts:
                for worker in workers:
                    wanted.setdefault(worker, set()).add(shard_id)
        return {worker: frozenset(shards) for worker, shards in wanted.items()}

    def plans_on(
        self, worker: WorkerId, tenant: TenantId, kind: ExecutorKind = ExecutorKind.HOT
    ) -> tuple[ExecutorPlan, ...]:
        """Executor plans of a tenant on a host, oldest generation first."""
        return tuple(
            plan
            for plan in self.records(ExecutorPlan)
            if plan.worker == worker and plan.tenant == tenant and plan.kind is kind
        )

    def check_invariants(self) -> None:
        """Raise `InvariantViolated`, naming every contradiction among the records."""
        broken = list(_contradictions(self))
        if broken:
            raise InvariantViolated(f"at revision {self.revision}: " + "; ".join(broken))


def _contradictions(view: ClusterView) -> Iterable[str]:
    for serving in view.records(Serving):
        epoch = view.epoch(serving.dataset_id, serving.epoch)
        if epoch is None:
            yield f"{serving.dataset_id} serves epoch {serving.epoch}, which has no record"
        elif epoch.state is not EpochState.READY:
            yield f"{serving.dataset_id} serves epoch {serving.epoch}, which is {epoch.state}"
    for epoch in view.records(Epoch):
        yield from _epoch_contradictions(view, epoch)
    open_epochs = Counter(e.dataset_id for e in view.records(Epoch) if e.state in OPEN_STATES)
    for dataset, count in open_epochs.items():
        if count > 1:
            yield f"{dataset} has {count} open epochs"
    for plan in view.records(ExecutorPlan):
        datasets = {attachment.dataset for attachment in plan.attachments}
        pairs = {(a.dataset, a.epoch) for a in plan.attachments}
        if len(pairs) != len(datasets):
            yield f"executor plan {plan.path} has two epochs of one dataset"


def _epoch_contradictions(view: ClusterView, epoch: Epoch) -> Iterable[str]:
    serving = view.serving(epoch.dataset_id)
    if epoch.state is EpochState.READY and (serving is None or serving.epoch != epoch.number):
        yield f"{epoch} is READY but its dataset does not serve it"
    if epoch.state in OPEN_STATES and serving is not None and epoch.number < serving.epoch:
        yield f"{epoch} is open behind the serving epoch {serving.epoch}"
    placement = view.placement(epoch.dataset_id, epoch.number)
    if placement is None:
        if epoch.state in HOLDING_STATES:
            yield f"{epoch} is {epoch.state} without a placement"
        return
    if epoch.state is EpochState.FAILED:
        yield f"{epoch} FAILED but still holds memory"
    if {shard for shard, _ in placement.hosts} != {shard.shard_id for shard in epoch.shards}:
        yield f"{epoch} and its placement name different shards"
    if epoch.cold is ColdPolicy.REFUSE and placement.cold_shards:
        yield f"{epoch} leaves shards cold that its dataset wants in memory"
