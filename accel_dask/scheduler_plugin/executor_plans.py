"""Which executors each host should run: one new generation at a time per tenant, host and kind.
Pure.

A generation is never changed. Its number is the revision of the view that it was decided on:
revisions only grow, so numbers are never used twice, even after all plans were deleted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from accel_dask.model.cluster import ClusterView
from accel_dask.model.commit import Commit, Delete, Put, Requirement, UnchangedUnder
from accel_dask.model.dataset import Dataset, dataset_path
from accel_dask.model.epoch import Epoch, EpochState, epoch_path
from accel_dask.model.executor import (
    Attachment,
    Executor,
    ExecutorKind,
    ExecutorPlan,
    ExecutorState,
    executor_path,
)
from accel_dask.model.guarantees import quotas_unchanged
from accel_dask.model.ids import DatasetId, Path, ShardId, TenantId, WorkerId
from accel_dask.model.placement import Placement, Serving, placement_path, serving_path
from accel_dask.model.replica import Replica, ReplicaState, replica_path
from accel_dask.model.tenant import Quota
from accel_dask.scheduler_plugin.cold_plans import cold_attachments, cold_hosts, is_spare_cold
from accel_dask.scheduler_plugin.round import (
    Round,
    attachments_of,
    executor_of,
    host_is_same,
    is_ready_on,
    is_up,
    replicas_unchanged,
    serving_plans,
    shards_on,
    target_epochs,
)

Place = tuple[WorkerId, TenantId]

_TO: Final = {ExecutorKind.HOT: "attach", ExecutorKind.COLD: "read cold"}
_MAX_SINGLE_FACTS: Final = 32
"""More epochs than this are required unchanged by tenant, not one by one: a transaction takes a
limited number of comparisons."""


def executor_commits(round_: Round, busy: frozenset[TenantId]) -> Iterator[Commit]:
    """Commits that bring the executor plans in line with the epochs, one per tenant and host.

    Tenants in `busy` have commits of their own in this round and are left for the next.
    """
    cold = cold_hosts(round_.view)
    for worker, tenant in _places(round_.view, cold):
        if tenant in busy:
            continue
        for kind in ExecutorKind:
            if worker in round_.view.workers:
                wants_cold = worker in cold.get(tenant, ())
                commit = _on_live_host(round_, worker, tenant, kind, wants_cold=wants_cold)
            else:
                commit = _on_lost_host(round_, worker, tenant, kind)
            if commit is not None:
                yield commit
                break  # both take the next number


def _places(view: ClusterView, cold: Mapping[TenantId, tuple[WorkerId, ...]]) -> list[Place]:
    found: set[Place] = {(plan.worker, plan.tenant) for plan in view.records(ExecutorPlan)}
    for placement in view.records(Placement):
        found.update((w, placement.tenant) for _, workers in placement.hosts for w in workers)
    found.update((worker, tenant) for tenant, workers in cold.items() for worker in workers)
    return sorted(found)


def desired_attachments(view: ClusterView, worker: WorkerId, tenant: TenantId) -> set[Attachment]:
    """What the tenant's executor on `worker` should have attached.

    Of each dataset one epoch: the one in validation, else the one served. It is attached when
    all of its shards here are READY; until then what a generation had of it stays, less what
    was found damaged.
    """
    desired: set[Attachment] = set()
    for epoch in target_epochs(view, tenant):
        placement = view.placement(epoch.dataset_id, epoch.number)
        if placement is None:
            continue
        here = shards_on(placement, worker)
        if all(is_ready_on(view, worker, shard_id) for shard_id in here):
            desired |= attachments_of(epoch, here)
        else:
            desired |= _attached_before(view, worker, epoch, here)
    return desired


def _attached_before(
    view: ClusterView, worker: WorkerId, epoch: Epoch, here: frozenset[ShardId]
) -> frozenset[Attachment]:
    placed = attachments_of(epoch, here)
    for plan in reversed(view.plans_on(worker, epoch.tenant)):
        attached = placed & frozenset(plan.attachments)
        if attached:
            # While nothing runs for the plan (its host was restarted) it is only waited for.
            if not is_up(view, plan):
                return attached
            return frozenset(a for a in attached if not _is_damaged(view, worker, a.shard_id))
    return frozenset()


def _is_damaged(view: ClusterView, worker: WorkerId, shard_id: ShardId) -> bool:
    replica = view.find(Replica, replica_path(worker, shard_id))
    return replica is not None and replica.state is not ReplicaState.READY


def _on_live_host(
    round_: Round, worker: WorkerId, tenant: TenantId, kind: ExecutorKind, *, wants_cold: bool
) -> Commit | None:
    view = round_.view
    found = view.tenant(tenant)
    plans = view.plans_on(worker, tenant, kind)
    desired: set[Attachment] = set()
    if found and kind is ExecutorKind.HOT:
        desired = desired_attachments(view, worker, tenant)
    elif found and wants_cold:
        desired = cold_attachments(view, tenant)
    quota = found.quota if found else Quota()
    keeper = _keeper(view, plans, desired, quota)
    changes: list[Put | Delete] = []
    if keeper is None and desired:
        newest = plans[-1] if plans else None
        if newest is not None and _is_coming_up(round_, newest, desired):
            keeper = newest
        else:
            keeper = _next_plan(view, worker, tenant, desired, quota, kind)
            changes.append(Put(keeper))
    removed = _removable(view, plans, keeper)
    changes += [Delete(plan.path) for plan in removed]
    if not changes:
        return None
    requires: list[Requirement | Path] = [
        UnchangedUnder((ExecutorPlan.KIND, worker, tenant), view.revision),
        host_is_same(view, worker),
        quotas_unchanged(view),
        *(plan.path for plan in plans),
        *_facts_of(view, worker, tenant, plans, desired, kind),
    ]
    return round_.commit(_because(worker, tenant, kind, changes, removed), requires, *changes)


def _keeper(
    view: ClusterView, plans: tuple[ExecutorPlan, ...], desired: set[Attachment], quota: Quota
) -> ExecutorPlan | None:
    """The generation that is as desired: the newest that runs, else the newest there is."""
    matching = [
        plan
        for plan in plans
        if set(plan.attachments) == desired
        and _born_with(plan.quota, plan.kind) == _born_with(quota, plan.kind)
    ]
    running = [plan for plan in matching if is_up(view, plan)]
    if running:
        return running[-1]
    return matching[-1] if matching else None


def _born_with(quota: Quota, kind: ExecutorKind) -> tuple[int, ...]:
    """The limits that an executor gets at its start and that cannot be changed later."""
    if kind is ExecutorKind.COLD:
        quota = quota.for_cold()
    return (quota.executor_memory_bytes, quota.threads, quota.concurrency)


def _is_coming_up(round_: Round, plan: ExecutorPlan, desired: set[Attachment]) -> bool:
    """Whether to let `plan`, which is not what is desired any more, come up first.

    Otherwise datasets that are published in turn would replace each other's generations
    before any is up. Not for long: a quarter of the time that validation is given.
    """
    view = round_.view
    executor = executor_of(view, plan)
    if executor is not None and executor.state is ExecutorState.FAILED:
        return False
    if executor is not None and executor.state is ExecutorState.READY:
        return False
    patience_ns = int(round_.settings.validate_seconds / 4 * 1e9)
    for dataset, number in {(a.dataset, a.epoch) for a in desired - set(plan.attachments)}:
        epoch = view.epoch(DatasetId(plan.tenant, dataset), number)
        is_waiting = epoch is not None and epoch.state is EpochState.VALIDATING
        if is_waiting and abs(round_.now_ns - epoch.since_ns) > patience_ns:  # type: ignore[union-attr]
            return False
    return all(_may_attach(view, plan, attachment) for attachment in plan.attachments)


def _may_attach(view: ClusterView, plan: ExecutorPlan, attachment: Attachment) -> bool:
    epoch = view.epoch(DatasetId(plan.tenant, attachment.dataset), attachment.epoch)
    return (
        epoch is not None
        and epoch.state in (EpochState.VALIDATING, EpochState.READY)
        and (plan.kind is ExecutorKind.COLD or is_ready_on(view, plan.worker, attachment.shard_id))
    )


def _next_plan(
    view: ClusterView,
    worker: WorkerId,
    tenant: TenantId,
    desired: set[Attachment],
    quota: Quota,
    kind: ExecutorKind,
) -> ExecutorPlan:
    used = [p.generation for one in ExecutorKind for p in view.plans_on(worker, tenant, one)]
    used += [
        executor.generation
        for executor in view.records(Executor)
        if executor.worker == worker and executor.tenant == tenant
    ]
    attachments = tuple(sorted(desired))
    return ExecutorPlan(
        worker=worker,
        tenant=tenant,
        # Above all numbers in use as well: after a restore from a backup revisions go back.
        generation=max([view.revision, *(number + 1 for number in used)]),
        attachments=attachments,
        quota=quota,
        kind=kind,
        because=f"to {_TO[kind]} {_datasets(attachments)}",
    )


def _removable(
    view: ClusterView, plans: tuple[ExecutorPlan, ...], keeper: ExecutorPlan | None
) -> list[ExecutorPlan]:
    """Plans besides `keeper` that no epoch in use needs, oldest first."""
    retained = list(plans)
    removable = []
    for plan in plans:
        if plan is keeper:
            continue
        others = [other for other in retained if other is not plan and is_up(view, other)]
        if all(_is_spare(view, plan, a, others, keeper) for a in plan.attachments):
            removable.append(plan)
            retained.remove(plan)
    return removable


def _is_spare(
    view: ClusterView,
    plan: ExecutorPlan,
    attachment: Attachment,
    others: Iterable[ExecutorPlan],
    keeper: ExecutorPlan | None,
) -> bool:
    """Whether queries can do without this attachment of `plan`."""
    dataset = DatasetId(plan.tenant, attachment.dataset)
    epoch = view.epoch(dataset, attachment.epoch)
    if epoch is None or epoch.state not in (EpochState.READY, EpochState.RETIRING):
        return True
    if any(attachment in other.attachments for other in others):
        return True
    if plan.kind is ExecutorKind.COLD:
        return is_spare_cold(view, plan, attachment, is_replaced=keeper is None)
    placement = view.placement(dataset, attachment.epoch)
    if placement is None:
        return True
    if plan.worker in placement.workers_of(attachment.shard_id):
        return plan.worker in view.workers and _is_damaged(view, plan.worker, attachment.shard_id)
    return serving_plans(view, epoch, placement) is not None


def _facts_of(
    view: ClusterView,
    worker: WorkerId,
    tenant: TenantId,
    plans: tuple[ExecutorPlan, ...],
    desired: set[Attachment],
    kind: ExecutorKind,
) -> Iterator[Requirement | Path]:
    """What the decision rests on: the epochs and pointers of every dataset concerned, the
    executors here, and the replicas to be attached."""
    attached = {(a.dataset, a.epoch) for plan in plans for a in plan.attachments}
    attached |= {(a.dataset, a.epoch) for a in desired}
    if len(attached) > _MAX_SINGLE_FACTS:
        # Blind to deletions, but epochs, placements and pointers are the fenced leader's alone,
        # and a dataset that is deleted at this moment is looked at again in the next round.
        for record in (Epoch.KIND, Placement.KIND, Dataset.KIND, Serving.KIND):
            yield UnchangedUnder((record, tenant), view.revision)
        attached = set()
    for name, number in sorted(attached):
        dataset = DatasetId(tenant, name)
        yield epoch_path(dataset, number)
        yield placement_path(dataset, number)
    for name in sorted({name for name, _ in attached}):
        yield dataset_path(DatasetId(tenant, name))
        yield serving_path(DatasetId(tenant, name))
    for plan in plans:
        yield executor_path(worker, tenant, plan.generation)
    if kind is ExecutorKind.HOT:
        yield from replicas_unchanged(view, ((worker, a.shard_id) for a in sorted(desired)))


def _because(
    worker: WorkerId,
    tenant: TenantId,
    kind: ExecutorKind,
    changes: list[Put | Delete],
    removed: list[ExecutorPlan],
) -> str:
    cold = "cold " if kind is ExecutorKind.COLD else ""
    parts = [
        f"starts {cold}generation {change.record.generation} {change.record.because}"
        for change in changes
        if isinstance(change, Put) and isinstance(change.record, ExecutorPlan)
    ]
    if removed:
        numbers = ", ".join(str(plan.generation) for plan in removed)
        parts.append(f"ends {cold}generation {numbers}, which no epoch in use needs")
    return f"tenant {tenant} on {worker} {' and '.join(parts)}"


def _on_lost_host(
    round_: Round, worker: WorkerId, tenant: TenantId, kind: ExecutorKind
) -> Commit | None:
    """Plans of a host that is gone stay for its return while anything is placed there, and
    while its executors still answer and nobody else does."""
    view = round_.view
    removed = []
    for plan in view.plans_on(worker, tenant, kind):
        answers = executor_path(worker, tenant, plan.generation) in view.entries
        if all(
            _is_obsolete(view, plan, attachment, answers=answers) for attachment in plan.attachments
        ):
            removed.append(plan)
    if not removed:
        return None
    requires: list[Requirement | Path] = [
        host_is_same(view, worker),
        *(plan.path for plan in removed),
        *_facts_of(view, worker, tenant, tuple(removed), set(), kind),
    ]
    return round_.commit(
        f"host {worker} is gone and nothing of tenant {tenant} is placed there any more",
        requires,
        *(Delete(plan.path) for plan in removed),
    )


def _is_obsolete(
    view: ClusterView, plan: ExecutorPlan, attachment: Attachment, *, answers: bool
) -> bool:
    dataset = DatasetId(plan.tenant, attachment.dataset)
    epoch = view.epoch(dataset, attachment.epoch)
    placement = view.placement(dataset, attachment.epoch)
    if epoch is None or placement is None or epoch.state is EpochState.FAILED:
        return True
    if plan.kind is ExecutorKind.COLD:
        return is_spare_cold(view, plan, attachment, is_replaced=True)
    if plan.worker in placement.workers_of(attachment.shard_id):
        return False
    return not answers or serving_plans(view, epoch, placement) is not None


def _datasets(attachments: tuple[Attachment, ...]) -> str:
    epochs = sorted({(a.dataset, a.epoch) for a in attachments})
    return ", ".join(f"{dataset}@{number}" for dataset, number in epochs)
