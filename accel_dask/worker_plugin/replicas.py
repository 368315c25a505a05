"""The records of this host's replicas: how they change, and the commits that change them.

Called by the host agent alone; a host writes no other host's replicas.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from accel_dask.errors import AccelError, CommitConflict, OutcomeUnknown, StoreUnavailable
from accel_dask.model.cluster import ClusterView
from accel_dask.model.commit import (
    Commit,
    Delete,
    Incarnation,
    Put,
    Requirement,
    Unchanged,
    UnchangedUnder,
)
from accel_dask.model.executor import ExecutorPlan
from accel_dask.model.ids import Revision, ShardId, WorkerId
from accel_dask.model.load_plan import ShardManifest
from accel_dask.model.member import worker_path
from accel_dask.model.placement import Placement
from accel_dask.model.replica import Replica, ReplicaState, move, replica_path
from accel_dask.store.base import StateStore
from accel_dask.store.records import commit_records, get_record

logger = logging.getLogger(__name__)

_TRIES: Final = 5

Change = Callable[[Replica | None], Replica | None]
"""The new record from the one there is; None leaves it alone."""


def loading(new: Replica) -> Change:
    """A load of it begins: one more attempt, unless the file is there already."""

    def change(now: Replica | None) -> Replica | None:
        if now is None:
            return replace(new, state=ReplicaState.LOADING, attempt=1)
        if now.state is ReplicaState.READY:
            return None
        return move(
            now,
            ReplicaState.LOADING,
            worker_incarnation=new.worker_incarnation,
            attempt=now.attempt + 1,
            error_code="",
            retryable=False,
            reason="",
        )

    return change


def ready(new: Replica) -> Change:
    """Its file is here and verified."""

    def change(now: Replica | None) -> Replica | None:
        if now is None:
            return replace(new, state=ReplicaState.READY)
        facts: dict[str, Any] = {
            "worker_incarnation": new.worker_incarnation,
            "rows": new.rows,
            "file_bytes": new.file_bytes,
            "row_checksum": new.row_checksum,
            "rollup_rows": new.rollup_rows,
            "load_ms": new.load_ms,
            "error_code": "",
            "retryable": False,
            "reason": "",
        }
        if now.state is ReplicaState.READY:  # vouched for once more, by this incarnation
            return replace(now, **facts)
        if now.state is ReplicaState.FAILED:  # the file came after all
            now = move(now, ReplicaState.LOADING)
        return move(now, ReplicaState.READY, **facts)

    return change


def failed(new: Replica) -> Change:
    """Its load ended without a file, or its file was found damaged or gone."""

    def change(now: Replica | None) -> Replica | None:
        if now is None:
            return replace(new, state=ReplicaState.FAILED)
        told: dict[str, Any] = {
            "worker_incarnation": new.worker_incarnation,
            "error_code": new.error_code,
            "retryable": new.retryable,
            "reason": new.reason,
        }
        match now.state:
            case ReplicaState.FAILED:
                return replace(now, **told)
            case ReplicaState.READY:  # it had been loaded: attempts count from the start again
                return move(now, ReplicaState.FAILED, attempt=0, **told)
            case ReplicaState.LOADING | ReplicaState.VALIDATING:
                return move(now, ReplicaState.FAILED, **told)

    return change


class ReplicaRecords:
    """Writes this host's `Replica` records, each commit bound to the host's incarnation."""

    def __init__(
        self, store: StateStore, worker: WorkerId, incarnation: Callable[[], Revision]
    ) -> None:
        self._store = store
        self._worker = worker
        self._incarnation = incarnation

    def load_started(self, shard_id: ShardId, placement: Unchanged, because: str) -> None:
        """Count an attempt.

        Raises:
            CommitConflict: the placement that wanted the load has changed.
        """
        self._change(shard_id, loading(self._blank(shard_id)), because, (placement,))

    def register(self, manifest: ShardManifest, because: str) -> None:
        new = replace(
            self._blank(manifest.shard_id),
            rows=manifest.rows,
            file_bytes=manifest.file_bytes,
            row_checksum=manifest.row_checksum,
            rollup_rows=manifest.rollup_rows,
            load_ms=manifest.load_ms,
        )
        self._change(manifest.shard_id, ready(new), because)

    def fail(self, shard_id: ShardId, error: AccelError) -> None:
        reason = str(error)
        new = replace(
            self._blank(shard_id), error_code=error.code, reason=reason, retryable=error.retryable
        )
        self._change(shard_id, failed(new), reason)

    def remove(self, shard_id: ShardId, view: ClusterView) -> None:
        """Delete the record of a shard that nothing in `view` wants here.

        Raises:
            CommitConflict: something that may want it was written since `view`.
        """
        commit = Commit(
            requirements=(
                self._registered(),
                UnchangedUnder((Placement.KIND,), view.revision),
                UnchangedUnder((ExecutorPlan.KIND, self._worker), view.revision),
            ),
            changes=(Delete(replica_path(self._worker, shard_id)),),
            because=f"worker {self._worker} no longer has to hold shard {shard_id}",
        )
        commit_records(self._store, commit, idempotent=True)

    def _blank(self, shard_id: ShardId) -> Replica:
        return Replica(
            worker=self._worker,
            shard_id=shard_id,
            worker_incarnation=self._incarnation(),
            state=ReplicaState.LOADING,
        )

    def _change(
        self,
        shard_id: ShardId,
        change: Change,
        because: str,
        requirements: tuple[Requirement, ...] = (),
    ) -> None:
        """Read, change, write if unchanged meanwhile; again if something came between."""
        path = replica_path(self._worker, shard_id)
        written: Replica | None = None
        failure: CommitConflict | OutcomeUnknown | None = None
        for _ in range(_TRIES):
            there = get_record(self._store, path)
            now = there.record if there and isinstance(there.record, Replica) else None
            if written is not None and now == written:
                return  # the write whose answer was lost
            written = change(now)
            if written is None or written == now:
                return
            commit = Commit(
                requirements=(
                    self._registered(),
                    Unchanged(path, there.mod_revision if there else Revision(0)),
                    *requirements,
                ),
                changes=(Put(written),),
                because=because,
            )
            try:
                commit_records(self._store, commit)
            except (CommitConflict, OutcomeUnknown) as error:
                failure = error
            else:
                logger.info(
                    "worker %s: replica of shard %s is %s (%s)",
                    self._worker,
                    shard_id,
                    written.state,
                    because,
                )
                return
        assert failure is not None
        raise failure

    def _registered(self) -> Requirement:
        incarnation = self._incarnation()
        if incarnation == 0:
            raise StoreUnavailable(
                f"worker {self._worker} is not registered with the store at the moment"
            )
        return Incarnation(worker_path(self._worker), incarnation)
