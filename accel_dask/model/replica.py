"""Replicas: one shard file on one host. Its host alone writes the record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, ClassVar, Final

from accel_dask.errors import IllegalTransition
from accel_dask.model.ids import Path, Revision, ShardId, WorkerId


class ReplicaState(StrEnum):
    LOADING = "LOADING"
    VALIDATING = "VALIDATING"
    READY = "READY"
    FAILED = "FAILED"


REPLICA_EDGES: Final[dict[ReplicaState, frozenset[ReplicaState]]] = {
    ReplicaState.LOADING: frozenset(
        {
            ReplicaState.VALIDATING,
            ReplicaState.READY,
            ReplicaState.FAILED,
            ReplicaState.LOADING,
        }
    ),
    ReplicaState.VALIDATING: frozenset(
        {ReplicaState.READY, ReplicaState.FAILED, ReplicaState.LOADING}
    ),
    ReplicaState.READY: frozenset({ReplicaState.FAILED}),
    ReplicaState.FAILED: frozenset({ReplicaState.LOADING}),
}
"""LOADING may start over (its loader died with its host); READY fails when found damaged.
A replica that is not wanted any more is deleted, from whatever state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """One shard file on one host."""

    KIND: ClassVar[str] = "replica"

    worker: WorkerId
    shard_id: ShardId
    worker_incarnation: Revision
    """The host's registration that vouches for it; another one does not count."""
    state: ReplicaState
    attempt: int = 1
    rows: int = 0
    file_bytes: int = 0
    row_checksum: str = ""
    rollup_rows: tuple[int, ...] = ()
    """As in `ShardManifest`."""
    error_code: str = ""
    retryable: bool = False
    reason: str = ""
    load_ms: int = 0

    @property
    def path(self) -> Path:
        return replica_path(self.worker, self.shard_id)


def replica_path(worker: WorkerId, shard_id: ShardId) -> Path:
    return (Replica.KIND, worker, shard_id)


def move(replica: Replica, to: ReplicaState, **changes: Any) -> Replica:
    """`replica` in state `to`, with `changes` to its other fields.

    Raises:
        IllegalTransition: its state does not lead there.
    """
    if to not in REPLICA_EDGES[replica.state]:
        raise IllegalTransition(
            f"replica of shard {replica.shard_id} on {replica.worker} cannot go from "
            f"{replica.state} to {to} (attempt {replica.attempt}: {replica.reason})"
        )
    return replace(replica, state=to, **changes)
