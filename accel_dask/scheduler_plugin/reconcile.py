"""What the master changes next: a pure function of the cluster's view and the time.

The controller calls it at every change and every tick. Each commit stands alone, so that one
that conflicts does not hold up the others; what conflicts is decided afresh on the next view.
A second call on the view that the first one's commits led to finds nothing left to do, until
a host, a gateway or the clock moves on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from accel_dask.config import MasterSettings
from accel_dask.errors import CommitConflict, QuotaExceeded
from accel_dask.model.cluster import ClusterView, Versioned
from accel_dask.model.commit import Change, Commit, Delete, Put, Requirement, apply_commit
from accel_dask.model.dataset import ColdPolicy, PublishRequest, dataset_path, publish_path
from accel_dask.model.epoch import OPEN_STATES, Epoch, EpochState, LastEpoch, advance
from accel_dask.model.executor import ExecutorPlan, ExecutorState, executor_path
from accel_dask.model.guarantees import quotas_unchanged
from accel_dask.model.ids import DatasetId, Path, ShardId, TenantId, WorkerId
from accel_dask.model.member import FencingToken, Gateway
from accel_dask.model.placement import Placement, Serving, placement_path, serving_path
from accel_dask.model.replica import Replica
from accel_dask.model.tenant import tenant_path
from accel_dask.scheduler_plugin.executor_plans import executor_commits
from accel_dask.scheduler_plugin.placement import Hosts
from accel_dask.scheduler_plugin.residency import left_cold, place_again, told
from accel_dask.scheduler_plugin.round import (
    Round,
    attachments_of,
    cold_plans_of,
    cold_serving_plans,
    executor_of,
    host_is_same,
    is_declared,
    live_pairs,
    lost_hosts,
    missing_pairs,
    replica_failure,
    replicas_unchanged,
    serving_plans,
    shards_on,
    uncovered_shards,
)


def reconcile(
    view: ClusterView, now_ns: int, settings: MasterSettings, token: FencingToken
) -> tuple[Commit, ...]:
    """The commits that `view` calls for at `now_ns` (wall clock). May be none."""
    round_ = Round(view, now_ns, settings, token)
    commits: list[Commit] = []
    busy: set[TenantId] = set()
    planned = _Planned(view)
    for dataset in _datasets(view):
        for commit in _dataset_commits(round_, dataset, planned):
            if planned.take(commit):
                commits.append(commit)
                busy.add(dataset.tenant)
    commits += executor_commits(round_, frozenset(busy))
    return tuple(commits)


class _Planned:
    """The view as this round's commits so far will leave it, so that no two of them give away
    the same room."""

    def __init__(self, view: ClusterView) -> None:
        self.view = view

    def take(self, commit: Commit) -> bool:
        """False: it touches what an earlier commit changes, and is left for the next round."""
        try:
            self.view = apply_commit(self.view, commit)
        except CommitConflict:
            return False
        return True

    def place_again(self, epoch: Epoch, placement: Placement) -> Hosts:
        """Hosts for the epoch's shards as things are now.

        Raises:
            QuotaExceeded: there is no room for what lost hosts held.
        """
        dataset = self.view.dataset(epoch.dataset_id)
        if dataset is None:
            return placement.hosts
        return place_again(self.view, dataset, epoch, placement)


def _datasets(view: ClusterView) -> list[DatasetId]:
    named = {epoch.dataset_id for epoch in view.records(Epoch)}
    named |= {serving.dataset_id for serving in view.records(Serving)}
    named |= {request.dataset_id for request in view.records(PublishRequest)}
    return sorted(named)


def _dataset_commits(round_: Round, dataset: DatasetId, planned: _Planned) -> Iterator[Commit]:
    view = round_.view
    if not is_declared(view, dataset):
        yield from _remove_dataset(round_, dataset)
    for epoch in view.epochs_of(dataset):
        if epoch.state is EpochState.RETIRING:
            yield from _retire(round_, epoch)
        elif epoch.state is not EpochState.FAILED and is_declared(view, dataset):
            yield from _advance(round_, epoch, planned)
    yield from _forget_failed(round_, dataset)


def _advance(round_: Round, epoch: Epoch, planned: _Planned) -> Iterator[Commit]:
    found = round_.view.get(placement_path(epoch.dataset_id, epoch.number))
    if found is None or not isinstance(found.record, Placement):
        if epoch.state in OPEN_STATES:
            yield fail_epoch(round_, epoch, "it has no placement", ())
        return
    placement = Versioned(found.record, found.create_revision, found.mod_revision)
    if epoch.state is EpochState.LOADING:
        yield from _load(round_, epoch, placement, planned)
    elif epoch.state is EpochState.VALIDATING:
        yield from _validate(round_, epoch, placement, planned)
    else:
        yield from _keep_replicated(round_, epoch, placement.record, planned)


# -- LOADING


def _load(
    round_: Round, epoch: Epoch, placement: Versioned[Placement], planned: _Planned
) -> Iterator[Commit]:
    view, record = round_.view, placement.record
    failed = replica_failure(view, placement, round_.settings.load_attempts)
    if failed is not None and _may_stay_cold(epoch, failed):
        because = f"shard {failed.shard_id}: {failed.reason}"
        moved = left_cold(record, (failed.shard_id,), because)
        yield _leave_cold(round_, epoch, record, moved, because, failed.path)
        return
    if failed is not None:
        yield fail_epoch(round_, epoch, _told(failed), (failed.path, record.path))
        return
    if lost_hosts(view, record):
        try:
            hosts = planned.place_again(epoch, record)
        except QuotaExceeded as error:
            homeless = _homeless(view, record)
            if view.workers and homeless:
                because = f"host {', '.join(lost_hosts(view, record))} was lost and {error}"
                if epoch.cold is ColdPolicy.ALLOW:
                    moved = left_cold(record, homeless, because)
                    yield _leave_cold(round_, epoch, record, moved, because)
                    return
                yield fail_epoch(round_, epoch, because, _hosts_same(round_, record))
                return
            hosts = record.hosts
        if hosts != record.hosts:
            yield _move(round_, epoch, record, hosts)
            return
    if not missing_pairs(view, record) and not uncovered_shards(view, record):
        differing = _differing_replicas(view, record)
        if differing:
            yield fail_epoch(
                round_, epoch, differing, tuple(replicas_unchanged(view, live_pairs(view, record)))
            )
            return
        because = f"all {len(epoch.shards)} shards are on their hosts"
        if record.cold_shards:
            held = len(epoch.shards) - len(record.cold_shards)
            because = f"{held} shards are on their hosts, {told(record)}"
        yield round_.commit(
            because_of(epoch, because),
            (epoch.path, record.path, *replicas_unchanged(view, live_pairs(view, record))),
            Put(advance(epoch, EpochState.VALIDATING, because=because, at_ns=round_.now_ns)),
        )


def _differing_replicas(view: ClusterView, placement: Placement) -> str:
    """Why two hosts would answer differently; empty if they do not."""
    for shard_id, workers in placement.hosts:
        found = {r.row_checksum: r for r in view.ready_replicas(shard_id) if r.worker in workers}
        if len(found) > 1:
            rows = ", ".join(f"{r.rows:,} on {r.worker}" for r in found.values())
            return (
                f"hosts loaded different rows of shard {shard_id} ({rows}): the dataset's row "
                "filter must give the same rows each time, without random() or the time"
            )
    return ""


def _homeless(view: ClusterView, placement: Placement) -> tuple[ShardId, ...]:
    """Shards whose hosts are all gone."""
    live = view.workers.keys()
    return tuple(s for s, workers in placement.hosts if workers and not set(workers) & live)


def _may_stay_cold(epoch: Epoch, failed: Replica) -> bool:
    """Whether a shard that memory did not hold, against expectation, is read cold instead."""
    return epoch.cold is ColdPolicy.ALLOW and failed.error_code == QuotaExceeded.code


def _leave_cold(
    round_: Round, epoch: Epoch, placement: Placement, moved: Placement, because: str, *read: Path
) -> Commit:
    return round_.commit(
        because_of(epoch, f"goes on with {told(moved)}; {because}"),
        (epoch.path, placement.path, *read, *_hosts_same(round_, placement)),
        Put(moved),
    )


def _told(replica: Replica) -> str:
    attempts = f"attempt {replica.attempt}" if replica.retryable else "not to be tried again"
    return (
        f"shard {replica.shard_id} could not be loaded on {replica.worker} ({attempts}): "
        f"{replica.error_code}: {replica.reason}"
    )


# -- VALIDATING


def _validate(
    round_: Round, epoch: Epoch, placement: Versioned[Placement], planned: _Planned
) -> Iterator[Commit]:
    view, record = round_.view, placement.record
    lost = _lost_since_loading(round_, epoch, record, planned)
    if lost is not None:
        yield lost
        return
    failure = _executor_failure(view, epoch, record)
    if failure is not None:
        plan, reason = failure
        because = f"its executor on {plan.worker} (generation {plan.generation}) failed: {reason}"
        executor = executor_path(plan.worker, plan.tenant, plan.generation)
        yield fail_epoch(round_, epoch, because, (record.path, plan.path, executor))
        return
    plans = serving_plans(view, epoch, record)
    cold = cold_serving_plans(view, epoch, record)
    if plans is not None and cold is not None:
        yield _serve(round_, epoch, record, (*plans, *cold))
    elif abs(round_.now_ns - epoch.since_ns) > round_.settings.validate_seconds * 1e9:
        waited = f"its executors were not READY within {round_.settings.validate_seconds:g} s"
        yield fail_epoch(round_, epoch, f"{waited}: {_not_up(view, epoch, record)}", (record.path,))


def _lost_since_loading(
    round_: Round, epoch: Epoch, placement: Placement, planned: _Planned
) -> Commit | None:
    """Back to LOADING if a replica or a host that is needed has gone."""
    view = round_.view
    hosts = placement.hosts
    if lost_hosts(view, placement):
        try:
            hosts = planned.place_again(epoch, placement)
        except QuotaExceeded:
            hosts = placement.hosts
    missing = {shard_id for _, shard_id in missing_pairs(view, placement)}
    missing.update(uncovered_shards(view, placement))
    if hosts == placement.hosts and not missing:
        return None
    because = f"{len(missing)} replica(s) went missing" if missing else "a host was lost"
    moved = replace(placement, hosts=hosts)
    changes = [Put(advance(epoch, EpochState.LOADING, because=because, at_ns=round_.now_ns))]
    if moved != placement:
        changes.append(Put(moved))
    return round_.commit(
        because_of(epoch, f"back to loading, {because}"),
        (
            epoch.path,
            placement.path,
            quotas_unchanged(view),
            *_hosts_same(round_, moved),
            *_hosts_same(round_, placement),
        ),
        *changes,
    )


def _executor_failure(
    view: ClusterView, epoch: Epoch, placement: Placement
) -> tuple[ExecutorPlan, str] | None:
    """The newest generation of some host, if it is to attach the epoch and came up FAILED."""
    for worker in sorted({worker for worker, _ in live_pairs(view, placement)}):
        needed = attachments_of(epoch, shards_on(placement, worker))
        for plan in reversed(view.plans_on(worker, epoch.tenant)):
            if not needed <= frozenset(plan.attachments):
                continue
            executor = executor_of(view, plan)
            if executor is not None and executor.state is ExecutorState.FAILED:
                return plan, executor.reason
            break
    if cold_serving_plans(view, epoch, placement) is None:
        return _cold_failure(view, epoch, placement)
    return None


def _cold_failure(
    view: ClusterView, epoch: Epoch, placement: Placement
) -> tuple[ExecutorPlan, str] | None:
    """The last cold executor that is to read the epoch, if all of them came up FAILED."""
    needed = attachments_of(epoch, placement.cold_shards)
    failure = None
    for plan in cold_plans_of(view, epoch.tenant):
        if needed <= frozenset(plan.attachments):
            executor = executor_of(view, plan)
            if executor is None or executor.state is not ExecutorState.FAILED:
                return None
            if str(epoch) not in executor.reason and _is_shared(view, plan, epoch):
                return None  # it is another one's fault, and without that one it may come up
            failure = plan, executor.reason
    return failure


def _is_shared(view: ClusterView, plan: ExecutorPlan, epoch: Epoch) -> bool:
    """Whether another epoch in validation is to be read by the plan's executor."""
    named = {(a.dataset, a.epoch) for a in plan.attachments} - {(epoch.dataset, epoch.number)}
    others = (view.epoch(DatasetId(plan.tenant, name), number) for name, number in named)
    return any(other is not None and other.state is EpochState.VALIDATING for other in others)


def _not_up(view: ClusterView, epoch: Epoch, placement: Placement) -> str:
    found = []
    for worker in sorted({worker for worker, _ in live_pairs(view, placement)}):
        needed = attachments_of(epoch, shards_on(placement, worker))
        plans = [p for p in view.plans_on(worker, epoch.tenant) if needed <= set(p.attachments)]
        if not plans:
            found.append(f"no generation with it was started on {worker}")
        elif serving_plans(view, epoch, replace(placement, hosts=_only(placement, worker))) is None:
            found.append(f"generation {plans[-1].generation} on {worker} is not up")
    if cold_serving_plans(view, epoch, placement) is None:
        found.append("no cold executor reads its cold shards")
    return "; ".join(found) or "no host of it is alive"


def _only(placement: Placement, worker: WorkerId) -> Hosts:
    return tuple((shard, (worker,)) for shard, workers in placement.hosts if worker in workers)


def _serve(
    round_: Round, epoch: Epoch, placement: Placement, plans: tuple[ExecutorPlan, ...]
) -> Commit:
    """The switch: from this revision on the dataset is answered from `epoch`."""
    view = round_.view
    pointer = serving_path(epoch.dataset_id)
    before = view.serving(epoch.dataset_id)
    old = view.serving_epoch(epoch.dataset_id)
    if before is not None and before.epoch > epoch.number:
        return fail_epoch(round_, epoch, f"epoch {before.epoch} is served already", (pointer,))
    because = f"{len(plans)} executor(s) have all of its {len(epoch.shards)} shards"
    if placement.cold_shards:
        because += f"; {told(placement)}"
    serving = Serving(
        tenant=epoch.tenant, dataset=epoch.dataset, epoch=epoch.number, since_ns=round_.now_ns
    )
    counted = with_rollup_rows(view, epoch)
    changes = [
        Put(advance(counted, EpochState.READY, because=because, at_ns=round_.now_ns)),
        Put(serving),
    ]
    requires: list[Requirement | Path] = [
        epoch.path,
        pointer,
        placement.path,
        dataset_path(epoch.dataset_id),
        tenant_path(epoch.tenant),
        *replicas_unchanged(view, live_pairs(view, placement)),
    ]
    for plan in plans:
        requires += [plan.path, executor_path(plan.worker, plan.tenant, plan.generation)]
    if old is not None:
        replaced = f"epoch {epoch.number} serves now"
        changes.append(
            Put(advance(old, EpochState.RETIRING, because=replaced, at_ns=round_.now_ns))
        )
        requires.append(old.path)
    return round_.commit(because_of(epoch, f"serves now, {because}"), requires, *changes)


def with_rollup_rows(view: ClusterView, epoch: Epoch) -> Epoch:
    """`epoch` with the rows of its shards' rollups, as its replicas count them."""
    if not epoch.rollups:
        return epoch
    rows = {
        replica.shard_id: replica.rollup_rows
        for shard in epoch.shards
        for replica in view.ready_replicas(shard.shard_id)
    }
    return replace(epoch, rollup_rows=tuple(rows.get(shard.shard_id, ()) for shard in epoch.shards))


# -- READY


def _keep_replicated(
    round_: Round, epoch: Epoch, placement: Placement, planned: _Planned
) -> Iterator[Commit]:
    """Places what lost hosts held elsewhere. Without room anywhere the placement stays as it
    is, for the hosts' return."""
    wanted = min(epoch.replicas, len(round_.view.workers))
    live = round_.view.workers.keys()
    if all(len(set(workers) & live) >= wanted for _, workers in placement.hosts if workers):
        return
    try:
        hosts = planned.place_again(epoch, placement)
    except QuotaExceeded:
        return
    if hosts != placement.hosts:
        yield _move(round_, epoch, placement, hosts)


def _move(
    round_: Round,
    epoch: Epoch,
    placement: Placement,
    hosts: Hosts,
) -> Commit:
    moved = replace(placement, hosts=hosts)
    before = dict(placement.hosts)
    new = sum(len(set(workers) - set(before[shard_id])) for shard_id, workers in hosts)
    lost = lost_hosts(round_.view, placement)
    why = f"host {', '.join(lost)} is gone" if lost else "there are hosts for more replicas"
    return round_.commit(
        because_of(epoch, f"{new} replica(s) placed anew because {why}"),
        (
            epoch.path,
            placement.path,
            dataset_path(epoch.dataset_id),
            quotas_unchanged(round_.view),
            *_hosts_same(round_, placement),
            *_hosts_same(round_, moved),
        ),
        Put(moved),
    )


# -- RETIRING, FAILED and datasets that are gone


def _retire(round_: Round, epoch: Epoch) -> Iterator[Commit]:
    """Ends an epoch once every live gateway routes by a revision past the switch, which wrote
    the epoch's record last. A gateway that joins later starts past it."""
    found = round_.view.get(epoch.path)
    switch = found.mod_revision if found else 0
    behind = [g for g in round_.view.records(Gateway) if g.applied_revision < switch]
    grace_ns = int(round_.settings.retire_grace_seconds * 1e9)
    # A clock that was set back must not keep it: the gateways' word counts, not the grace.
    if behind or 0 <= round_.now_ns - epoch.since_ns < grace_ns:
        return
    placement = placement_path(epoch.dataset_id, epoch.number)
    yield round_.commit(
        because_of(epoch, "ends: no gateway routes to it any more"),
        (epoch.path, placement),
        *_forgotten(round_.view, epoch),
        Delete(placement),
    )


def _forgotten(view: ClusterView, epoch: Epoch) -> tuple[Change, ...]:
    """The epoch's record deleted; its number is kept where no other record tells of it."""
    delete = Delete(epoch.path)
    if any(other.number > epoch.number for other in view.epochs_of(epoch.dataset_id)):
        return (delete,)
    last = LastEpoch(tenant=epoch.tenant, dataset=epoch.dataset, number=epoch.number)
    known = view.find(LastEpoch, last.path)
    if known is not None and known.number >= epoch.number:
        return (delete,)
    return (Put(last), delete)


def fail_epoch(
    round_: Round, epoch: Epoch, because: str, requires: tuple[Requirement | Path, ...] = ()
) -> Commit:
    """FAILED, and its memory returned. Its executor plans go when the round after finds that
    nothing needs them."""
    placement = placement_path(epoch.dataset_id, epoch.number)
    return round_.commit(
        because_of(epoch, f"failed: {because}"),
        (epoch.path, placement, *requires),
        Put(advance(epoch, EpochState.FAILED, because=because, at_ns=round_.now_ns)),
        Delete(placement),
    )


def _forget_failed(round_: Round, dataset: DatasetId) -> Iterator[Commit]:
    """Keeps the newest FAILED epochs, and always the dataset's highest number, from which the
    next one is counted."""
    view = round_.view
    epochs = view.epochs_of(dataset)
    failed = [epoch for epoch in epochs if epoch.state is EpochState.FAILED]
    if is_declared(view, dataset):
        kept = round_.settings.keep_failed
        old = [e for e in failed[: max(0, len(failed) - kept)] if e.number != epochs[-1].number]
    else:
        old = failed if len(failed) == len(epochs) and not _is_attached(view, dataset) else []
    for epoch in old:
        yield round_.commit(
            because_of(epoch, "its failure is old enough to be forgotten"),
            (epoch.path,),
            *_forgotten(view, epoch),
        )


def _is_attached(view: ClusterView, dataset: DatasetId) -> bool:
    return any(
        attachment.dataset == dataset.name
        for plan in view.records(ExecutorPlan)
        if plan.tenant == dataset.tenant
        for attachment in plan.attachments
    )


def _remove_dataset(round_: Round, dataset: DatasetId) -> Iterator[Commit]:
    """The operator took the dataset or its tenant away: nothing of it is to be served."""
    view = round_.view
    gone: tuple[Path, ...] = (dataset_path(dataset), tenant_path(dataset.tenant))
    if view.publish_request(dataset) is not None:
        request = publish_path(dataset)
        yield round_.commit(
            f"{dataset} is not declared, so there is nothing to publish",
            (request, *gone),
            Delete(request),
        )
    for epoch in view.epochs_of(dataset):
        if epoch.state in OPEN_STATES:
            yield fail_epoch(round_, epoch, "its dataset was deleted", gone)
    pointer = serving_path(dataset)
    if view.serving(dataset) is None:
        return
    served = view.serving_epoch(dataset)
    changes: list[Put | Delete] = [Delete(pointer)]
    requires: list[Path] = [pointer, *gone]
    if served is not None:
        because = "its dataset was deleted"
        retiring = advance(served, EpochState.RETIRING, because=because, at_ns=round_.now_ns)
        changes.append(Put(retiring))
        requires.append(served.path)
    yield round_.commit(f"{dataset} was deleted and is not served any more", requires, *changes)


def _hosts_same(round_: Round, placement: Placement) -> tuple[Requirement, ...]:
    workers = sorted({worker for _, workers in placement.hosts for worker in workers})
    return tuple(host_is_same(round_.view, worker) for worker in workers)


def because_of(epoch: Epoch, what: str) -> str:
    """A commit's sentence: the epoch, and what becomes of it."""
    return f"{epoch} {what}"
