"""A host's registration: its `Worker` record on a lease. Used by the host agent alone."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from accel_dask.codec import decode
from accel_dask.errors import CommitConflict, ConfigError, StoreError
from accel_dask.model.commit import Change, Commit, Delete, Put, Unchanged
from accel_dask.model.ids import Path, Revision
from accel_dask.model.member import Worker
from accel_dask.store.base import KeyValue, Lease, StateStore
from accel_dask.store.keys import key_of
from accel_dask.store.records import commit_records

logger = logging.getLogger(__name__)


class HostRegistration:
    """Registers a host, again with a new incarnation whenever the old one was lost.

    The caller holds the lock on the host's shard directory, so a record that names the same
    host and directory is of a process that has ended and may be replaced at once.
    """

    def __init__(
        self,
        store: StateStore,
        record: Worker,
        ttl_seconds: float,
        may_renew: Callable[[], bool],
        on_lost: Callable[[], None],
    ) -> None:
        self._store = store
        self._record = record
        self._ttl_seconds = ttl_seconds
        self._may_renew = may_renew
        self._on_lost = on_lost
        self._lease: Lease | None = None
        self._incarnation = Revision(0)

    @property
    def incarnation(self) -> Revision:
        """The create revision of the host's record; 0: it has none at the moment."""
        lease = self._lease
        return Revision(0) if lease is None or lease.is_lost() else self._incarnation

    def ensure(self, stale: Iterable[Path] = ()) -> bool:
        """Register if needed; true if that was done now. With it go the records at `stale`.

        Raises:
            ConfigError: another host is registered under this name.
            StoreError: the store could not do it.
        """
        if self.incarnation:
            return False
        if self._lease is None or self._lease.is_lost():
            self._incarnation = Revision(0)
            self._lease = self._store.lease(self._ttl_seconds, self._may_renew, self._on_lost)
        there = self._store.get(key_of(self._record.path))
        if there is not None and there.lease_id != self._lease.lease_id:
            self._make_way(there, tuple(stale))
            there = None
        # Found on our lease: the write was done, only its answer was lost.
        self._incarnation = (
            Revision(there.create_revision) if there is not None else self._create(stale)
        )
        logger.info(
            "worker %s is registered as incarnation %d", self._record.worker, self._incarnation
        )
        return True

    def forget(self) -> None:
        """The record is gone although its lease lives: somebody deleted it."""
        self._incarnation = Revision(0)

    def close(self) -> None:
        """Take the host off the cluster now."""
        lease, self._lease = self._lease, None
        if lease is None:
            return
        try:
            lease.close()
        except StoreError as error:
            logger.warning(
                "worker %s: its record ends with its lease: %s", self._record.worker, error
            )

    def _create(self, stale: Iterable[Path]) -> Revision:
        assert self._lease is not None
        changes: list[Change] = [Put(self._record, self._lease.lease_id)]
        changes += [Delete(path) for path in stale]
        commit = Commit(
            requirements=(Unchanged(self._record.path, Revision(0)),),
            changes=tuple(changes),
            because=f"worker {self._record.worker} is here",
        )
        return commit_records(self._store, commit)

    def _make_way(self, there: KeyValue, stale: tuple[Path, ...]) -> None:
        """Delete the record of this host's former process."""
        found = decode(there.value, Worker)
        if (found.host, found.shard_dir) != (self._record.host, self._record.shard_dir):
            raise ConfigError(
                f"another host is registered as worker {found.worker} (address {found.host}, "
                f"shard directory {found.shard_dir}); give each worker its own name, or wait "
                f"{self._ttl_seconds:g} s if that host has just ended"
            )
        commit = Commit(
            requirements=(Unchanged(found.path, Revision(there.mod_revision)),),
            changes=(Delete(found.path), *(Delete(path) for path in stale)),
            because=f"the former process of worker {found.worker} has ended",
        )
        try:
            commit_records(self._store, commit, idempotent=True)
        except CommitConflict as error:
            logger.info("worker %s: %s", found.worker, error)
