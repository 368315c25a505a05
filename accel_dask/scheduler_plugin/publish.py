"""From a publish request to an open epoch, or to a FAILED one that says why not. Pure.

The request is deleted by the commit that answers it. Whoever waits for a request's nonce looks
for the request to be gone, and then for the epoch with that `publish_nonce`: it was opened (or
FAILED) for it. If no epoch has the nonce, there was nothing new: the dataset serves that
snapshot already, or a later request took this one's place.

An epoch's number is one above the highest that any record of its dataset names. The highest
epoch's record is never forgotten while the dataset is declared, and a `LastEpoch` keeps its number
when the dataset has been deleted, so no number is used twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from accel_dask.codec import encode
from accel_dask.errors import AccelError, LoadError, NotAcceleratable, QuotaExceeded
from accel_dask.model import row_filter
from accel_dask.model.cluster import ClusterView
from accel_dask.model.commit import Commit, Delete, Put
from accel_dask.model.dataset import (
    ColdPolicy,
    Dataset,
    PublishRequest,
    dataset_path,
    publish_path,
)
from accel_dask.model.epoch import (
    Epoch,
    EpochState,
    LastEpoch,
    ShardSummary,
    StoryLine,
    last_epoch_path,
)
from accel_dask.model.executor import ExecutorPlan
from accel_dask.model.guarantees import quotas_unchanged
from accel_dask.model.ids import DatasetId, EpochNumber, Revision
from accel_dask.model.load_plan import LoadPlan, LoadTask
from accel_dask.model.placement import Placement, serving_path
from accel_dask.model.snapshot import Column, SourceSnapshot
from accel_dask.model.tenant import tenant_path
from accel_dask.scheduler_plugin.residency import residency, told
from accel_dask.scheduler_plugin.round import Round, is_declared
from accel_dask.scheduler_plugin.shard_stats import MAX_EPOCH_BYTES, ROLLUP_BYTES, summary_stats


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedPublish:
    """A request whose snapshot was planned and cut, and whose load plan is stored."""

    request: PublishRequest
    dataset: Dataset
    dataset_revision: Revision
    """Of the dataset's declaration that was planned by."""
    snapshot: SourceSnapshot
    plan: LoadPlan
    plan_digest: str
    source_version: str = ""
    """As in `Epoch`."""


def next_number(view: ClusterView, dataset: DatasetId) -> EpochNumber:
    """The number of the dataset's next epoch; never one that was used before."""
    used = [epoch.number for epoch in view.epochs_of(dataset)]
    serving = view.serving(dataset)
    if serving is not None:
        used.append(serving.epoch)
    last = view.find(LastEpoch, last_epoch_path(dataset))
    if last is not None:
        used.append(last.number)
    used += [
        attachment.epoch
        for plan in view.records(ExecutorPlan)
        if plan.tenant == dataset.tenant
        for attachment in plan.attachments
        if attachment.dataset == dataset.name
    ]
    return EpochNumber(1 + max(used, default=0))


def can_take_up(view: ClusterView, request: PublishRequest) -> bool:
    """Whether the request's turn has come: its dataset has no epoch on its way, and there is
    a host to load on."""
    return (
        is_declared(view, request.dataset_id)
        and view.open_epoch(request.dataset_id) is None
        and bool(view.workers)
    )


def is_current(view: ClusterView, planned: PlannedPublish) -> bool:
    """Whether what was planned is still what is asked for; else it must be planned again."""
    found = view.get(dataset_path(planned.dataset.dataset_id))
    return (
        view.publish_request(planned.dataset.dataset_id) == planned.request
        and found is not None
        and found.mod_revision == planned.dataset_revision
        and next_number(view, planned.dataset.dataset_id) == planned.plan.epoch
    )


def held_columns(snapshot: SourceSnapshot, tasks: Sequence[LoadTask]) -> tuple[Column, ...]:
    """The columns of the epoch: those that its shards hold."""
    return tasks[0].columns if tasks else snapshot.columns


def load_plan(
    dataset: Dataset,
    number: EpochNumber,
    snapshot: SourceSnapshot,
    tasks: tuple[LoadTask, ...],
) -> tuple[LoadPlan, bytes]:
    """The load plan of epoch `number`, and its bytes.

    Raises:
        NotAcceleratable: there is not a single shard to load, or each load of one would hold
            other rows.
    """
    why_not = row_filter.refusal(str(dataset.dataset_id), dataset.row_filter)
    if why_not is not None:
        raise NotAcceleratable(why_not)
    if not tasks:
        raise NotAcceleratable(
            f"snapshot {snapshot.snapshot_id} of {dataset.dataset_id} was cut into no shards; "
            "publish one with data"
        )
    plan = LoadPlan(
        tenant=dataset.tenant,
        dataset=dataset.name,
        epoch=number,
        snapshot_id=snapshot.snapshot_id,
        columns=held_columns(snapshot, tasks),
        tasks=tasks,
    )
    return plan, encode(plan)


def open_epoch(round_: Round, planned: PlannedPublish) -> Commit:
    """The commit that answers the request: `Epoch(LOADING)` with its placement, or only the
    request's deletion if the dataset serves that very snapshot.

    Raises:
        QuotaExceeded: the tenant's or the hosts' memory does not hold it.
        LoadError: the snapshot is older than the one served, and was not asked for by name, or
            it has more shards than a record takes.
    """
    view, dataset = round_.view, planned.dataset
    epoch = _new_epoch(round_, planned)
    serving = view.serving_epoch(dataset.dataset_id)
    if serving is not None and _is_same(serving, epoch) and not _warms_up(view, serving, dataset):
        return _nothing_new(round_, planned.request, serving)
    if serving is not None and _goes_back(serving, epoch) and not planned.request.snapshot:
        raise LoadError(
            f"{dataset.dataset_id}: the newest snapshot {epoch.snapshot_id} is older than "
            f"{serving.snapshot_id}, which epoch {serving.number} serves. To go back to it, "
            "publish it by its id"
        )
    found = residency(view, dataset, epoch.shards)
    placement = Placement(
        tenant=epoch.tenant,
        dataset=epoch.dataset,
        epoch=epoch.number,
        hosts=found.hosts,
        cold_because=found.cold_because,
    )
    if placement.cold_shards:
        line = epoch.story[-1]
        line = replace(line, because=f"{line.because}; {told(placement)}")
        epoch = replace(epoch, story=(*epoch.story[:-1], line))
    _check_size(epoch, placement)
    return round_.commit(
        f"{epoch} opens: {epoch.reason}",
        (*_answers(planned.request), epoch.path, placement.path, quotas_unchanged(view)),
        Put(epoch),
        Put(placement),
        Delete(planned.request.path),
    )


def is_short_of_memory(view: ClusterView, planned: PlannedPublish) -> bool:
    """Whether more of the snapshot would be cold than its dataset's owner wants."""
    dataset = planned.dataset
    if dataset.cold is ColdPolicy.REFUSE:
        return False
    try:
        return residency(view, dataset, _summaries(planned.plan.tasks)).is_short
    except QuotaExceeded:
        return True


def refuse(
    round_: Round, request: PublishRequest, error: AccelError, planned: PlannedPublish | None = None
) -> Commit:
    """The commit that answers the request with a FAILED epoch and its reason."""
    dataset = request.dataset_id
    because = f"{error.code}: {error}"
    if planned is not None:
        epoch = _new_epoch(round_, planned)
    else:
        epoch = Epoch(
            tenant=dataset.tenant,
            dataset=dataset.name,
            number=next_number(round_.view, dataset),
            snapshot_id=None,
            sequence=0,
            state=EpochState.FAILED,
            replicas=0,
            publish_nonce=request.nonce,
        )
    failed = Epoch(
        tenant=epoch.tenant,
        dataset=epoch.dataset,
        number=epoch.number,
        snapshot_id=epoch.snapshot_id,
        sequence=epoch.sequence,
        state=EpochState.FAILED,
        replicas=epoch.replicas,
        source_version=epoch.source_version,
        columns=epoch.columns,  # its fallback engine may answer for it
        row_filter=epoch.row_filter,
        publish_nonce=request.nonce,
        story=(StoryLine(at_ns=round_.now_ns, state=EpochState.FAILED, because=because),),
    )
    return round_.commit(
        f"{failed} failed: {because}",
        (*_answers(request), failed.path),
        Put(failed),
        Delete(request.path),
    )


def _new_epoch(round_: Round, planned: PlannedPublish) -> Epoch:
    request, snapshot = planned.request, planned.snapshot
    tasks = planned.plan.tasks
    rows = sum(task.rows for task in tasks if task.rows is not None)
    because = (
        f"{request.requested_by} published snapshot {snapshot.snapshot_id}: "
        f"{len(tasks)} shards, {rows:,} rows promised"
    )
    return Epoch(
        tenant=planned.dataset.tenant,
        dataset=planned.dataset.name,
        number=next_number(round_.view, planned.dataset.dataset_id),
        snapshot_id=snapshot.snapshot_id,
        sequence=snapshot.sequence,
        state=EpochState.LOADING,
        replicas=planned.dataset.wanted_replicas,
        columns=planned.plan.columns,
        shards=_summaries(tasks),
        rollups=tasks[0].rollups,
        cold=planned.dataset.cold,
        hot_shards=planned.dataset.hot_shards,
        row_filter=planned.dataset.row_filter,
        plan_digest=planned.plan_digest,
        source_version=planned.source_version,
        publish_nonce=request.nonce,
        story=(StoryLine(at_ns=round_.now_ns, state=EpochState.LOADING, because=because),),
    )


def _summaries(tasks: Sequence[LoadTask]) -> tuple[ShardSummary, ...]:
    return tuple(
        ShardSummary(
            shard_id=task.shard_id,
            rows=task.rows,
            source_bytes=task.source_bytes,
            stats=stats,
        )
        for task, stats in zip(tasks, summary_stats(tasks), strict=True)
    )


def _check_size(epoch: Epoch, *others: Placement) -> None:
    """Raise `NotAcceleratable` if the records are larger than the store takes."""
    size = sum(len(encode(record)) for record in (epoch, *others))
    size += ROLLUP_BYTES * len(epoch.rollups) * len(epoch.shards)
    if size > MAX_EPOCH_BYTES:
        raise NotAcceleratable(
            f"{epoch.dataset_id}: {len(epoch.shards):,} shards and {len(epoch.columns):,} columns "
            f"take {size:,} bytes of records, and the state store takes {MAX_EPOCH_BYTES:,}; "
            "raise shard_target_bytes, or hold fewer columns"
        )


def _is_same(serving: Epoch, epoch: Epoch) -> bool:
    """The same snapshot, held in the same way: a changed declaration makes other shards."""
    return (
        serving.snapshot_id == epoch.snapshot_id
        and serving.columns == epoch.columns
        and serving.replicas == epoch.replicas
        and (serving.cold, serving.hot_shards) == (epoch.cold, epoch.hot_shards)
        and [s.shard_id for s in serving.shards] == [s.shard_id for s in epoch.shards]
    )


def _warms_up(view: ClusterView, serving: Epoch, dataset: Dataset) -> bool:
    """Whether memory holds more of the served snapshot by now than it did."""
    placement = view.placement(serving.dataset_id, serving.number)
    if placement is None or not placement.cold_shards:
        return False
    hot = len(placement.hosts) - len(placement.cold_shards)
    try:
        return residency(view, dataset, serving.shards).hot_count > hot
    except QuotaExceeded:
        return False


def _goes_back(serving: Epoch, epoch: Epoch) -> bool:
    """Whether the snapshot is older than the served one. Only one table's history has an order:
    a dataset that was declared anew over another source goes forward."""
    before, now = serving.snapshot_id, epoch.snapshot_id
    is_same_table = before is None or now is None or before.table_uuid == now.table_uuid
    return is_same_table and epoch.sequence < serving.sequence


def _nothing_new(round_: Round, request: PublishRequest, serving: Epoch) -> Commit:
    return round_.commit(
        f"{serving} serves snapshot {serving.snapshot_id} already: nothing new to publish",
        (*_answers(request), serving.path),
        Delete(request.path),
    )


def _answers(request: PublishRequest) -> tuple[tuple[str, ...], ...]:
    """What every answer to a request rests on."""
    dataset = request.dataset_id
    return (
        publish_path(dataset),
        dataset_path(dataset),
        tenant_path(dataset.tenant),
        serving_path(dataset),
    )
