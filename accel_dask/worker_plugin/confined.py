"""Starts a host's executors and loaders within their tenants' budgets, and follows changes of
those while they run."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from accel_dask.errors import ExecutorUnavailable, LoaderCrashed
from accel_dask.model.cluster import ClusterView
from accel_dask.model.executor import ExecutorPlan
from accel_dask.model.ids import ShardId, TenantId, WorkerId
from accel_dask.model.load_plan import LoadOrder
from accel_dask.model.tenant import MIB, Quota, Tenant
from accel_dask.worker_plugin.enforcement.budgets import (
    cold_limit_bytes,
    engine_quota,
    executor_limit_bytes,
    loader_limit_bytes,
)
from accel_dask.worker_plugin.enforcement.confinement import Confinement, Role
from accel_dask.worker_plugin.enforcement.enforcer import Enforcer
from accel_dask.worker_plugin.executor.spec import ExecutorSpec
from accel_dask.worker_plugin.executors import ExecutorHost
from accel_dask.worker_plugin.files import ShardFiles
from accel_dask.worker_plugin.running_executor import RunningExecutor

log = logging.getLogger(__name__)


class ConfinedExecutors:
    """Used by the host agent. Safe to use from several threads."""

    def __init__(
        self,
        executors: ExecutorHost,
        enforcer: Enforcer,
        worker: WorkerId,
        view: Callable[[], ClusterView],
        files: ShardFiles,
    ) -> None:
        self._executors = executors
        self._enforcer = enforcer
        self._worker = worker
        self._view = view
        self._files = files
        self._lock = threading.Lock()
        self._confinements: dict[str, tuple[ExecutorSpec, Confinement]] = {}

    def launch(self, spec: ExecutorSpec, timeout_seconds: float) -> RunningExecutor:
        """Start an executor that has as much memory as its tenant's budget leaves.

        Raises:
            AccelError: as `ExecutorHost.launch`, or the kernel refuses the bounds.
        """
        limit = self._limit_bytes(self._view(), spec)
        name = f"{spec.generation}-{spec.incarnation[:8]}"
        try:
            role = Role.HOT if spec.cold is None else Role.COLD
            confinement = self._enforcer.confine(spec.tenant, role, name, limit)
        except OSError as error:
            raise ExecutorUnavailable(
                f"executor of tenant {spec.tenant}, generation {spec.generation}: the kernel "
                f"refuses its bounds ({error})"
            ) from error
        spec = replace(
            spec,
            quota=engine_quota(spec.quota, limit),
            join_files=confinement.join_files,
        )
        with self._lock:
            self._confinements[spec.incarnation] = (spec, confinement)
        try:
            running = self._executors.launch(spec, timeout_seconds)
        except BaseException:
            self.ended(spec)
            raise
        confinement.watch(running.pid, running.kill)
        if running.has_ended:
            self.ended(spec)
        return running

    def ended(self, spec: ExecutorSpec) -> None:
        """The executor has ended."""
        with self._lock:
            _, confinement = self._confinements.pop(spec.incarnation, (spec, None))
        if confinement is None:
            return
        if confinement.was_killed_for_memory():
            log.warning(
                "executor of tenant %s, generation %d: the kernel ended it over its %d MiB",
                spec.tenant, spec.generation, confinement.limit_bytes // MIB,
            )  # fmt: skip
        self._enforcer.release(confinement)

    def follow(self, view: ClusterView) -> None:
        """Let changed quotas take effect on what runs."""
        self._enforcer.set_quotas({t.tenant: t.quota for t in view.records(Tenant)})
        with self._lock:
            running = tuple(self._confinements.values())
        for spec, confinement in running:
            confinement.set_limit(self._limit_bytes(view, spec))

    def _limit_bytes(self, view: ClusterView, spec: ExecutorSpec) -> int:
        tenant = view.tenant(spec.tenant)
        quota = tenant.quota if tenant else Quota()
        if spec.cold is not None:
            return cold_limit_bytes(quota)
        return executor_limit_bytes(quota, self._shard_bytes(view, spec))

    def _shard_bytes(self, view: ClusterView, spec: ExecutorSpec) -> int:
        """Of the tenant's shard files on this host: attached here, or by another generation."""
        shards = {attachment.shard_id for attachment in spec.attachments}
        shards |= attached_shards(view, self._worker, spec.tenant)
        manifests = (self._files.manifest(shard) for shard in shards)
        return sum(manifest.file_bytes for manifest in manifests if manifest is not None)


def attached_shards(view: ClusterView, worker: WorkerId, tenant: TenantId) -> set[ShardId]:
    """Shards that the tenant's executors on the host attach, of all generations."""
    plans: tuple[ExecutorPlan, ...] = view.plans_on(worker, tenant)
    return {attachment.shard_id for plan in plans for attachment in plan.attachments}


class ConfinedLoaders:
    """Used by the host's loads. A loader is a child of the Dask worker and joins its group by
    itself."""

    def __init__(self, enforcer: Enforcer) -> None:
        self._enforcer = enforcer
        self._lock = threading.Lock()
        self._confinements: dict[ShardId, Confinement] = {}
        self._numbers = itertools.count(1)

    def confine(self, order: LoadOrder) -> LoadOrder:
        """`order` with the control group of its loader.

        Raises:
            LoaderCrashed: the kernel refuses.
        """
        shard_id = order.task.shard_id
        name = f"{shard_id}-{next(self._numbers)}"
        try:
            confinement = self._enforcer.confine(
                order.tenant, Role.LOAD, name, loader_limit_bytes(order)
            )
        except OSError as error:
            raise LoaderCrashed(
                f"{order.tenant}.{order.dataset}@{order.epoch}, shard {shard_id}: the kernel "
                f"refuses the loader's bounds ({error})"
            ) from error
        self._replace(shard_id, confinement)
        return replace(order, join_files=confinement.join_files)

    def ended(self, order: LoadOrder) -> None:
        """The loader has ended."""
        self._replace(order.task.shard_id, None)

    def _replace(self, shard_id: ShardId, confinement: Confinement | None) -> None:
        with self._lock:
            before = self._confinements.pop(shard_id, None)
            if confinement is not None:
                self._confinements[shard_id] = confinement
        if before is not None:
            self._enforcer.release(before)
