"""What all decisions of one round of the control loop share, and facts that several ask. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from accel_dask.config import MasterSettings
from accel_dask.model.cluster import ClusterView, Versioned
from accel_dask.model.commit import (
    Change,
    Commit,
    Incarnation,
    Requirement,
    UnchangedUnder,
    fence_by,
    unchanged,
)
from accel_dask.model.epoch import Epoch, EpochState
from accel_dask.model.executor import (
    Attachment,
    Executor,
    ExecutorKind,
    ExecutorPlan,
    ExecutorState,
    executor_path,
)
from accel_dask.model.ids import DatasetId, Path, Revision, ShardId, TenantId, WorkerId
from accel_dask.model.member import FencingToken, worker_path
from accel_dask.model.placement import Placement
from accel_dask.model.replica import Replica, ReplicaState, replica_path

_MAX_REPLICA_REQUIREMENTS: Final = 64
"""More replicas than this are required by host, in one range comparison each: a transaction
takes a limited number of comparisons."""


@dataclass(frozen=True, slots=True)
class Round:
    """A view, the time, and the token that every commit is fenced by."""

    view: ClusterView
    now_ns: int
    settings: MasterSettings
    token: FencingToken

    def commit(
        self, because: str, requires: Iterable[Requirement | Path], *changes: Change
    ) -> Commit:
        """A fenced commit; a path among `requires` must be unchanged since the view."""
        required = dict.fromkeys(fence_by(self.view, self.token))
        for item in requires:
            required[unchanged(self.view, item) if isinstance(item, tuple) else item] = None
        return Commit(requirements=tuple(required), changes=changes, because=because)


def is_declared(view: ClusterView, dataset: DatasetId) -> bool:
    """Whether the operator wants the dataset: it and its tenant have records."""
    return view.dataset(dataset) is not None and view.tenant(dataset.tenant) is not None


def host_is_same(view: ClusterView, worker: WorkerId) -> Incarnation:
    """The requirement that the host is still of the incarnation that the view shows."""
    found = view.workers.get(worker)
    return Incarnation(worker_path(worker), found.create_revision if found else Revision(0))


def replicas_unchanged(
    view: ClusterView, pairs: Iterable[tuple[WorkerId, ShardId]]
) -> Iterator[Requirement]:
    """The requirement that these replicas, and their hosts, are as the view has them."""
    wanted = tuple(pairs)
    for worker in sorted({worker for worker, _ in wanted}):
        yield host_is_same(view, worker)
    if len(wanted) <= _MAX_REPLICA_REQUIREMENTS:
        for worker, shard_id in wanted:
            yield unchanged(view, replica_path(worker, shard_id))
        return
    # Blind to deletions, but a host only deletes replicas that no placement wants.
    for worker in sorted({worker for worker, _ in wanted}):
        yield UnchangedUnder((Replica.KIND, worker), view.revision)


def is_ready_on(view: ClusterView, worker: WorkerId, shard_id: ShardId) -> bool:
    """Whether a live host vouches for a READY replica of the shard."""
    return any(replica.worker == worker for replica in view.ready_replicas(shard_id))


def live_pairs(view: ClusterView, placement: Placement) -> Iterator[tuple[WorkerId, ShardId]]:
    """(host, shard) of the placement where the host is alive."""
    for shard_id, workers in placement.hosts:
        for worker in workers:
            if worker in view.workers:
                yield worker, shard_id


def missing_pairs(view: ClusterView, placement: Placement) -> tuple[tuple[WorkerId, ShardId], ...]:
    """(live host, shard) of the placement without a READY replica: what is still to load."""
    return tuple(pair for pair in live_pairs(view, placement) if not is_ready_on(view, *pair))


def uncovered_shards(view: ClusterView, placement: Placement) -> tuple[ShardId, ...]:
    """Shards to be in memory that no live host of the placement has READY."""
    covered = {s for w, s in live_pairs(view, placement) if is_ready_on(view, w, s)}
    return tuple(s for s, workers in placement.hosts if workers and s not in covered)


def lost_hosts(view: ClusterView, placement: Placement) -> tuple[WorkerId, ...]:
    """Hosts that the placement names and that are not alive."""
    named = {worker for _, workers in placement.hosts for worker in workers}
    return tuple(sorted(named - view.workers.keys()))


def shards_on(placement: Placement, worker: WorkerId) -> frozenset[ShardId]:
    return frozenset(placement.shards_on(worker))


def attachments_of(epoch: Epoch, shards: Iterable[ShardId]) -> frozenset[Attachment]:
    return frozenset(Attachment(epoch.dataset, epoch.number, shard_id) for shard_id in shards)


def target_epochs(view: ClusterView, tenant: TenantId) -> Iterator[Epoch]:
    """What the tenant's executors are to have: of each dataset the epoch in validation, else the
    one served."""
    datasets = {e.dataset_id for e in view.records(Epoch) if e.tenant == tenant}
    for dataset in sorted(datasets):
        if not is_declared(view, dataset):
            continue
        epochs = view.epochs_of(dataset)
        coming = [epoch for epoch in epochs if epoch.state is EpochState.VALIDATING]
        ready = [epoch for epoch in epochs if epoch.state is EpochState.READY]
        yield from (coming or ready)[-1:]


def executor_of(view: ClusterView, plan: ExecutorPlan) -> Executor | None:
    """The executor that runs for `plan` on the host as it lives now."""
    path = executor_path(plan.worker, plan.tenant, plan.generation)
    executor = view.find(Executor, path)
    host = view.workers.get(plan.worker)
    if executor is None or host is None:
        return None
    return executor if executor.worker_incarnation == host.create_revision else None


def is_up(view: ClusterView, plan: ExecutorPlan) -> bool:
    executor = executor_of(view, plan)
    return executor is not None and executor.state is ExecutorState.READY


def plan_serving(
    view: ClusterView, epoch: Epoch, placement: Placement, worker: WorkerId
) -> ExecutorPlan | None:
    """The newest generation on `worker` that is READY with all shards of `epoch` placed there."""
    needed = attachments_of(epoch, shards_on(placement, worker))
    for plan in reversed(view.plans_on(worker, epoch.tenant)):
        if needed <= frozenset(plan.attachments) and is_up(view, plan):
            return plan
    return None


def serving_plans(
    view: ClusterView, epoch: Epoch, placement: Placement
) -> tuple[ExecutorPlan, ...] | None:
    """One READY generation on every live host of the placement; None if one has none, or if
    some shard that is not cold is on no live host."""
    plans = []
    workers = sorted({worker for worker, _ in live_pairs(view, placement)})
    for worker in workers:
        plan = plan_serving(view, epoch, placement, worker)
        if plan is None:
            return None
        plans.append(plan)
    covered = {shard_id for worker in workers for shard_id in shards_on(placement, worker)}
    wanted = {shard_id for shard_id, named in placement.hosts if named}
    return tuple(plans) if wanted <= covered else None


def cold_plans_of(view: ClusterView, tenant: TenantId) -> tuple[ExecutorPlan, ...]:
    """Plans of the tenant's cold executors on live hosts, oldest generation first."""
    return tuple(
        plan
        for worker in sorted(view.workers)
        for plan in view.plans_on(worker, tenant, ExecutorKind.COLD)
    )


def cold_serving_plans(
    view: ClusterView, epoch: Epoch, placement: Placement
) -> tuple[ExecutorPlan, ...] | None:
    """READY cold executors that read all cold shards of `epoch`; None if there is none and it
    has such shards."""
    if not placement.cold_shards:
        return ()
    needed = attachments_of(epoch, placement.cold_shards)
    found = [
        plan
        for plan in cold_plans_of(view, epoch.tenant)
        if needed <= frozenset(plan.attachments) and is_up(view, plan)
    ]
    return tuple(found) or None


def replica_failure(
    view: ClusterView, placement: Versioned[Placement], load_attempts: int
) -> Replica | None:
    """A replica of the placement whose load will not be tried again.

    A FAILED record from before the placement, or of an earlier life of the host, tells of
    another load and does not count.
    """
    for worker, shard_id in live_pairs(view, placement.record):
        found = view.get(replica_path(worker, shard_id))
        if found is None or not isinstance(found.record, Replica):
            continue
        replica = found.record
        if (
            replica.state is ReplicaState.FAILED
            and found.mod_revision > placement.create_revision
            and replica.worker_incarnation == view.workers[worker].create_revision
            and (not replica.retryable or replica.attempt >= load_attempts)
        ):
            return replica
    return None
