"""What the host agent knows of its shard files and of the loads under way."""

from __future__ import annotations

import os
import select
import threading
from dataclasses import dataclass, field

from accel_dask.errors import AccelError, ShardDamaged
from accel_dask.model.ids import ShardId
from accel_dask.model.load_plan import LoadOrder, ShardManifest
from accel_dask.worker_plugin.desired import ShardFileState
from accel_dask.worker_plugin.shard_dir import ShardDir


@dataclass(slots=True)
class _Load:
    """One load task, in the Dask worker with this process id."""

    order: LoadOrder
    pidfd: int


@dataclass(slots=True)
class _File:
    state: ShardFileState
    manifest: ShardManifest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFiles:
    """A consistent look at files and loads."""

    files: tuple[tuple[ShardId, ShardFileState], ...]
    loads: frozenset[ShardId]


@dataclass(slots=True)
class ShardFiles:
    """The state of every shard file, guarded by one lock. No store, no decisions."""

    shard_dir: ShardDir
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _files: dict[ShardId, _File] = field(default_factory=dict)
    _loads: dict[ShardId, list[_Load]] = field(default_factory=dict)
    _failures: dict[ShardId, AccelError] = field(default_factory=dict)

    def look(self) -> HostFiles:
        """Compare what is known with what is on disk."""
        with self._lock:
            there = set(self.shard_dir.list_ids())
            for shard_id in there - self._files.keys():
                self._files[shard_id] = _File(ShardFileState.UNCHECKED)
            for shard_id in self._files.keys() - there:
                if self._files[shard_id].state is not ShardFileState.CHECKING:
                    del self._files[shard_id]
            return HostFiles(
                files=tuple(sorted((s, f.state) for s, f in self._files.items())),
                loads=frozenset(self._loads),
            )

    def manifest(self, shard_id: ShardId) -> ShardManifest | None:
        """Of a verified file; None if it is not (any more)."""
        with self._lock:
            known = self._files.get(shard_id)
            return known.manifest if known and known.state is ShardFileState.VERIFIED else None

    def failure(self, shard_id: ShardId) -> AccelError | None:
        """Why the file is not here: it was damaged, or its last load failed."""
        with self._lock:
            return self._failures.get(shard_id)

    def forget(self, shard_id: ShardId) -> None:
        """Nothing wants the shard any more."""
        with self._lock:
            self._failures.pop(shard_id, None)

    # Checks and removals

    def begin_check(self, shard_id: ShardId) -> bool:
        """Claim the file; false if somebody else has it, or a load is about to write it."""
        with self._lock:
            known = self._files.get(shard_id)
            if known is None or known.state is ShardFileState.CHECKING or shard_id in self._loads:
                return False
            self._files[shard_id] = _File(ShardFileState.CHECKING)
            return True

    def check(self, shard_id: ShardId) -> ShardManifest:
        """Compare a claimed file with its manifest; a damaged one is removed.

        Raises:
            ShardDamaged: it was.
        """
        try:
            manifest = self.shard_dir.verify(shard_id)
        except ShardDamaged as error:
            with self._lock:
                self._failures[shard_id] = error
                self.remove_claimed(shard_id)
            raise
        with self._lock:
            self._files[shard_id] = _File(ShardFileState.VERIFIED, manifest)
            self._failures.pop(shard_id, None)
        return manifest

    def remove_claimed(self, shard_id: ShardId) -> bool:
        """Unlink a claimed file, unless a load of it began meanwhile."""
        with self._lock:
            if shard_id in self._loads:
                self._files[shard_id] = _File(ShardFileState.UNCHECKED)
                return False
            self.shard_dir.remove(shard_id)
            self._files.pop(shard_id, None)
            return True

    def recheck(self, shard_id: ShardId) -> None:
        """Trust the file no longer; it is checked once more before anything new relies on it."""
        with self._lock:
            known = self._files.get(shard_id)
            if known is not None and known.state is not ShardFileState.CHECKING:
                self._files[shard_id] = _File(ShardFileState.UNCHECKED)

    def release(self, shard_id: ShardId) -> None:
        """Give a claimed file back, unchecked."""
        with self._lock:
            if shard_id in self._files:
                self._files[shard_id] = _File(ShardFileState.UNCHECKED)

    # Loads

    def begin_load(self, order: LoadOrder, pid: int) -> None:
        """From here on the file is the load's: nothing else removes or checks it.

        Raises:
            ProcessLookupError: there is no process `pid`.
        """
        load = _Load(order, os.pidfd_open(pid))
        with self._lock:
            self._loads.setdefault(order.task.shard_id, []).append(load)

    def end_load(self, order: LoadOrder, failure: AccelError | None = None) -> None:
        """One load of the shard is over; it failed if there is a `failure`."""
        with self._lock:
            if failure is not None:
                self._failures[order.task.shard_id] = failure
            loads = self._loads.get(order.task.shard_id, [])
            for load in loads:
                if load.order == order:
                    self._drop(load)
                    return

    def loaded(self, order: LoadOrder) -> ShardManifest:
        """The manifest on disk after a load; the file counts as verified.

        Raises:
            ShardDamaged: the file is not there, or is not what the manifest says.
        """
        shard_id = order.task.shard_id
        with self._lock:
            manifest = self.shard_dir.manifest(shard_id)
            try:
                found = self.shard_dir.shard_file(shard_id).stat().st_size
            except OSError as error:
                raise ShardDamaged(f"shard file {shard_id} is not there: {error}") from error
            if found != manifest.file_bytes:
                raise ShardDamaged(
                    f"shard file {shard_id} has {found} bytes, "
                    f"its manifest says {manifest.file_bytes}"
                )
            self._files[shard_id] = _File(ShardFileState.VERIFIED, manifest)
            self._failures.pop(shard_id, None)
            return manifest

    def end_orphaned_loads(self) -> tuple[LoadOrder, ...]:
        """End the loads whose Dask worker process is gone; their orders."""
        with self._lock:
            orphaned = [
                load for loads in self._loads.values() for load in loads if _has_ended(load.pidfd)
            ]
            for load in orphaned:
                self._drop(load)
            return tuple(load.order for load in orphaned)

    def _drop(self, load: _Load) -> None:
        shard_id = load.order.task.shard_id
        self._loads[shard_id].remove(load)
        if not self._loads[shard_id]:
            del self._loads[shard_id]
        os.close(load.pidfd)


def _has_ended(pidfd: int) -> bool:
    """A process's descriptor becomes readable when it ends."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))
