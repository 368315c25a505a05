"""What a host should do next: a pure function of the cluster's view and of what is on the host."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from accel_dask.errors import LoaderCrashed, LoadError, ShardDamaged
from accel_dask.model.cluster import ClusterView
from accel_dask.model.executor import Attachment, ExecutorKind, ExecutorPlan
from accel_dask.model.ids import Revision, ShardId, TenantId, WorkerId
from accel_dask.model.replica import Replica, ReplicaState


class ShardFileState(StrEnum):
    """What the host knows of one of its shard files."""

    UNCHECKED = "UNCHECKED"
    """Found on disk, not compared with its manifest yet."""
    CHECKING = "CHECKING"
    """Being compared, or being removed: leave it alone."""
    VERIFIED = "VERIFIED"
    """Its bytes are those of its manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalExecutor:
    """An executor generation that this host is responsible for, whatever its state."""

    tenant: TenantId
    generation: int
    attachments: frozenset[Attachment]
    kind: ExecutorKind = ExecutorKind.HOT
    is_draining: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFacts:
    """What is on the host. Of one moment, gathered after the view it is used with."""

    incarnation: Revision
    """The create revision of this host's `Worker` record; 0: not registered."""
    is_view_fresh: bool
    """The view follows the store now; false while the store does not answer."""
    files: tuple[tuple[ShardId, ShardFileState], ...]
    loads: frozenset[ShardId]
    """Shards with a load under way."""
    executors: tuple[LocalExecutor, ...]


@dataclass(frozen=True, slots=True)
class StartExecutor:
    """All shard files of the plan are here, or it needs none, and nothing runs for it."""

    plan: ExecutorPlan


@dataclass(frozen=True, slots=True)
class DrainExecutor:
    """Its plan is gone, or another one has its number (the store was restored)."""

    tenant: TenantId
    generation: int


@dataclass(frozen=True, slots=True)
class VerifyShard:
    """Compare the file with its manifest before anything relies on it."""

    shard_id: ShardId


@dataclass(frozen=True, slots=True)
class RemoveShard:
    """Nothing wants the file: delete its record if there is one, then the file."""

    shard_id: ShardId


@dataclass(frozen=True, slots=True)
class RegisterReplica:
    """The file is here and verified, and the store does not say so."""

    shard_id: ShardId


@dataclass(frozen=True, slots=True)
class FailReplica:
    """The record speaks of a file, or of a load, that is not here."""

    shard_id: ShardId
    error: LoadError
    """Why, if the host knows nothing better."""


@dataclass(frozen=True, slots=True)
class RemoveReplica:
    """Neither a file nor anyone who wants one."""

    shard_id: ShardId


Instruction = (
    StartExecutor
    | DrainExecutor
    | VerifyShard
    | RemoveShard
    | RegisterReplica
    | FailReplica
    | RemoveReplica
)


def decide(view: ClusterView, worker: WorkerId, facts: LocalFacts) -> tuple[Instruction, ...]:
    """What `worker` should do now, most urgent first."""
    can_write = _can_write(view, worker, facts)
    instructions: list[Instruction] = [*_start(view, worker, facts)]
    instructions += _verify(view, worker, facts, may_remove=can_write)
    if can_write:
        instructions += _drain(view, worker, facts)
        instructions += _replicas(view, worker, facts)
        instructions += _removals(view, worker, facts)
    return tuple(instructions)


def _can_write(view: ClusterView, worker: WorkerId, facts: LocalFacts) -> bool:
    """Only a view that already shows this registration is no older than it; one from before
    (or from a store that came back empty) must not cost a file or an executor."""
    registered = view.workers.get(worker)
    return (
        facts.is_view_fresh
        and registered is not None
        and registered.create_revision == facts.incarnation
    )


def _plans(view: ClusterView, worker: WorkerId) -> Iterator[ExecutorPlan]:
    return (plan for plan in view.records(ExecutorPlan) if plan.worker == worker)


def _start(view: ClusterView, worker: WorkerId, facts: LocalFacts) -> Iterator[Instruction]:
    """Also from a stale view: an executor is started again while the store is away."""
    verified = {shard for shard, state in facts.files if state is ShardFileState.VERIFIED}
    known = {(e.tenant, e.generation) for e in facts.executors}
    for plan in _plans(view, worker):
        is_cold = plan.kind is ExecutorKind.COLD
        has_files = is_cold or all(a.shard_id in verified for a in plan.attachments)
        if has_files and (plan.tenant, plan.generation) not in known:
            yield StartExecutor(plan)


def _drain(view: ClusterView, worker: WorkerId, facts: LocalFacts) -> Iterator[Instruction]:
    planned = {(p.tenant, p.generation): frozenset(p.attachments) for p in _plans(view, worker)}
    for executor in facts.executors:
        key = (executor.tenant, executor.generation)
        if planned.get(key) != executor.attachments and not executor.is_draining:
            yield DrainExecutor(*key)


def _verify(
    view: ClusterView, worker: WorkerId, facts: LocalFacts, *, may_remove: bool
) -> Iterator[Instruction]:
    wanted = _wanted(view, worker, facts)
    for shard_id, state in facts.files:
        is_settled = state is not ShardFileState.UNCHECKED or shard_id in facts.loads
        if not is_settled and (shard_id in wanted or not may_remove):
            yield VerifyShard(shard_id)


def _replicas(view: ClusterView, worker: WorkerId, facts: LocalFacts) -> Iterator[Instruction]:
    """Bring the records of this host's replicas in line with its files. Shards with a load
    under way are left to the load."""
    files = dict(facts.files)
    wanted = _wanted(view, worker, facts)
    records = {r.shard_id: r for r in view.records(Replica) if r.worker == worker}
    for shard_id, state in facts.files:
        if state is not ShardFileState.VERIFIED or shard_id in facts.loads:
            continue
        if shard_id in wanted and not _says_ready(records.get(shard_id), facts):
            yield RegisterReplica(shard_id)
    for shard_id, replica in records.items():
        if shard_id in files or shard_id in facts.loads:
            continue
        if shard_id not in wanted:
            yield RemoveReplica(shard_id)
        elif replica.state is ReplicaState.READY:
            gone = ShardDamaged(f"the file of shard {shard_id} is gone from worker {worker}")
            yield FailReplica(shard_id, gone)
        elif replica.state is not ReplicaState.FAILED:
            crashed = LoaderCrashed(
                f"the load of shard {shard_id} on {worker} ended without a result"
            )
            yield FailReplica(shard_id, crashed)


def _says_ready(replica: Replica | None, facts: LocalFacts) -> bool:
    return (
        replica is not None
        and replica.state is ReplicaState.READY
        and replica.worker_incarnation == facts.incarnation
    )


def _removals(view: ClusterView, worker: WorkerId, facts: LocalFacts) -> Iterator[Instruction]:
    wanted = _wanted(view, worker, facts)
    for shard_id, state in facts.files:
        if state is not ShardFileState.CHECKING and shard_id not in wanted:
            yield RemoveShard(shard_id)


def _wanted(view: ClusterView, worker: WorkerId, facts: LocalFacts) -> frozenset[ShardId]:
    """Shards whose files must stay: placed here, planned or attached here, or being loaded."""
    wanted = set(view.wanted_shards.get(worker, frozenset())) | facts.loads
    hot = [p.attachments for p in _plans(view, worker) if p.kind is ExecutorKind.HOT]
    hot += [tuple(e.attachments) for e in facts.executors if e.kind is ExecutorKind.HOT]
    wanted.update(attachment.shard_id for attachments in hot for attachment in attachments)
    return frozenset(wanted)
