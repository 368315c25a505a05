"""Executor plans (what the master wants) and executors (what runs)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NamedTuple

from accel_dask.model.ids import (
    EpochNumber,
    Path,
    Revision,
    ShardId,
    TenantId,
    WorkerId,
    epoch_segment,
)
from accel_dask.model.tenant import Quota


class Attachment(NamedTuple):
    """One shard of one epoch, attached by an executor."""

    dataset: str
    epoch: EpochNumber
    shard_id: ShardId


class ExecutorKind(StrEnum):
    """Where an executor's shards come from."""

    HOT = "hot"
    """Shard files in the host's memory."""
    COLD = "cold"
    """The snapshot's own files, read anew by each query."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorPlan:
    """One generation of a tenant's executor on a host. Never changed; replaced or deleted."""

    KIND: ClassVar[str] = "executor_plan"

    worker: WorkerId
    tenant: TenantId
    generation: int
    attachments: tuple[Attachment, ...]
    """Sorted. One epoch per dataset."""
    quota: Quota
    kind: ExecutorKind = ExecutorKind.HOT
    because: str = ""

    @property
    def path(self) -> Path:
        return executor_plan_path(self.worker, self.tenant, self.generation)


class ExecutorState(StrEnum):
    READY = "READY"
    """Attached, locked down, rehearsed, answering."""
    FAILED = "FAILED"
    """Could not be brought up; `reason` says why. Tried again with back-off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Executor:
    """A running executor, on its own lease."""

    KIND: ClassVar[str] = "executor"

    worker: WorkerId
    tenant: TenantId
    generation: int
    incarnation: str
    """Random, new at each start; tickets name it."""
    state: ExecutorState
    address: str = ""
    """`grpc://host:port` of its Flight server, for peers and pings."""
    ticket_port: int = 0
    """Where it takes tickets of gateways, on the same host; see `ticket_stream`."""
    pid: int = 0
    worker_incarnation: Revision = Revision(0)  # noqa: RUF009
    start_ms: int = 0
    """From the order to READY."""
    resident_bytes: int = 0
    reason: str = ""

    @property
    def path(self) -> Path:
        return executor_path(self.worker, self.tenant, self.generation)


def executor_plan_path(worker: WorkerId, tenant: TenantId, generation: int) -> Path:
    return (ExecutorPlan.KIND, worker, tenant, epoch_segment(generation))


def executor_path(worker: WorkerId, tenant: TenantId, generation: int) -> Path:
    return (Executor.KIND, worker, tenant, epoch_segment(generation))
