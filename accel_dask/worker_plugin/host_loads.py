"""The loads of a host, as its Dask worker reports them; part of the host agent.

Called on any thread but an event loop's.
"""

from __future__ import annotations

import logging
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from accel_dask.config import HostSettings
from accel_dask.errors import AccelError, LoaderCrashed, LoadError, ShardDamaged, StoreError
from accel_dask.model.cluster import ClusterView
from accel_dask.model.commit import Unchanged
from accel_dask.model.ids import DatasetId, WorkerId
from accel_dask.model.load_plan import LoadOrder, ShardManifest
from accel_dask.model.placement import Placement, placement_path
from accel_dask.store.base import StateStore
from accel_dask.store.records import get_record
from accel_dask.worker_plugin.confined import ConfinedLoaders
from accel_dask.worker_plugin.enforcement.enforcer import Enforcer
from accel_dask.worker_plugin.files import ShardFiles
from accel_dask.worker_plugin.load import clean_spill
from accel_dask.worker_plugin.replicas import ReplicaRecords

logger = logging.getLogger(__name__)

_LOADER_DIES_SECONDS = 10.0


class HostLoads:
    """Records each load's start and end, and refuses those that nothing wants."""

    def __init__(
        self,
        store: StateStore,
        settings: HostSettings,
        worker: WorkerId,
        files: ShardFiles,
        replicas: ReplicaRecords,
        view: Callable[[], ClusterView],
        on_change: Callable[[], None],
        enforcer: Enforcer,
    ) -> None:
        self._store = store
        self._settings = settings
        self._worker = worker
        self._files = files
        self._replicas = replicas
        self._view = view
        self._on_change = on_change
        self._loaders = ConfinedLoaders(enforcer)
        self._spill_dir = _spill_dir(settings, worker)
        self._clean_until = float("-inf")

    def clean_spill(self) -> None:
        """Remove what crashed loaders spilled."""
        clean_spill(self._spill_dir)

    def started(self, order: LoadOrder, pid: int) -> LoadOrder:
        """Process `pid`, the Dask worker, begins to load `order`; the order as it is to be run
        on this host.

        Raises:
            LoadError: nothing wants the load (any more), or it was meant for another host.
            StoreError: the store could not record it; the load must not begin.
        """
        order = self._loaders.confine(self._settle(order))
        shard_id = order.task.shard_id
        try:
            self._files.begin_load(order, pid)
        except ProcessLookupError as error:
            self._loaders.ended(order)
            raise LoaderCrashed(f"the Dask worker {pid} that loads {shard_id} is gone") from error
        try:
            placement = self._placement_of(order)
            self._replicas.load_started(
                shard_id, placement, f"loading {_name(order)} on {self._worker}"
            )
        except BaseException:
            self._files.end_load(order)
            self._loaders.ended(order)
            raise
        return order

    def finished(self, order: LoadOrder) -> ShardManifest:
        """The load ended well; the manifest as it is on disk.

        Raises:
            ShardDamaged: the file is not what its manifest says. Recorded as a failed load.
        """
        self._loaders.ended(order)
        shard_id = order.task.shard_id
        try:
            manifest = self._files.loaded(order)
        except ShardDamaged as error:
            self.failed(order, error)
            raise
        try:
            self._replicas.register(manifest, f"{_name(order)} is loaded on {self._worker}")
        except StoreError as error:
            logger.warning(
                "worker %s: %s is loaded, to be registered when the store is back: %s",
                self._worker,
                shard_id,
                error,
            )
        finally:
            self._files.end_load(order)
        self._on_change()
        return manifest

    def failed(self, order: LoadOrder, error: AccelError) -> None:
        """The load ended with `error`. If its file is here all the same, the file decides."""
        self._loaders.ended(order)
        shard_id = order.task.shard_id
        logger.warning("worker %s: loading %s failed: %s", self._worker, _name(order), error)
        self._files.end_load(order, error)
        self._files.shard_dir.clean_temporary()
        self._files.recheck(shard_id)
        looked = self._files.look()
        try:
            if shard_id not in dict(looked.files) and shard_id not in looked.loads:
                self._replicas.fail(shard_id, error)
        except StoreError as refused:
            logger.warning("worker %s: could not record that: %s", self._worker, refused)
        finally:
            self._on_change()

    def is_wanted(self, order: LoadOrder) -> bool:
        """Whether the placement that ordered the load still stands, or another one wants its
        shard. Says yes while the store is away: a file that nobody wants is removed again."""
        shard_id = order.task.shard_id
        try:
            self._placement_of(order)
        except StoreError:
            return True
        except LoadError:
            return shard_id in self._view().wanted_shards.get(self._worker, frozenset())
        return True

    def end_orphaned(self) -> None:
        """Record the end of loads whose Dask worker process has ended."""
        if time.monotonic() < self._clean_until:
            self._files.shard_dir.clean_temporary()
        for order in self._files.end_orphaned_loads():
            # Its loader dies with it, though not at once, and keeps its file until then.
            self._clean_until = time.monotonic() + _LOADER_DIES_SECONDS
            self.failed(order, LoaderCrashed("the Dask worker process that ran the load has ended"))

    def _settle(self, order: LoadOrder) -> LoadOrder:
        """What the master left open is this host's to say."""
        shard_dir = str(self._files.shard_dir.path)
        if order.shard_dir not in ("", shard_dir):
            raise LoadError(
                f"the load of {_name(order)} writes to {order.shard_dir}, but worker "
                f"{self._worker} keeps its shard files in {shard_dir}"
            )
        limit = self._settings.loader_memory_bytes
        return replace(
            order,
            shard_dir=shard_dir,
            spill_dir=str(self._spill_dir),
            memory_bytes=min(order.memory_bytes or limit, limit),
        )

    def _placement_of(self, order: LoadOrder) -> Unchanged:
        """The requirement that the placement which wants the load stays as it is.

        Raises:
            LoadError: there is none.
        """
        path = placement_path(_dataset_of(order), order.epoch)
        found = get_record(self._store, path)
        placement = found.record if found else None
        if (
            found is None
            or not isinstance(placement, Placement)
            or self._worker not in placement.workers_of(order.task.shard_id)
        ):
            raise LoadError(
                f"no placement wants {_name(order)} on worker {self._worker} (any more)"
            )
        return Unchanged(path, found.mod_revision)


def _dataset_of(order: LoadOrder) -> DatasetId:
    return DatasetId(order.tenant, order.dataset)


def _name(order: LoadOrder) -> str:
    return f"shard {order.task.shard_id} of {order.tenant}.{order.dataset}@{order.epoch}"


def _spill_dir(settings: HostSettings, worker: WorkerId) -> Path:
    if settings.spill_dir:
        return Path(settings.spill_dir)
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", worker)
    return Path(tempfile.gettempdir()) / f"accel-dask-spill-{os.getuid()}" / name
