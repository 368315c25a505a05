"""The host agent: makes a host be what the cluster's records say, and records what it is.

It lives in the nanny, on threads of its own. One thread follows the view and acts on what
`desired.decide` says; checks of shard files and the keepers of executors have their own. While
the store is away everything serves on, and is reconciled when the store is back.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, assert_never

from accel_dask.config import HostSettings
from accel_dask.errors import (
    CommitConflict,
    ConfigError,
    InvariantViolated,
    ShardDamaged,
    StoreError,
    StoreUnavailable,
)
from accel_dask.model.cluster import ClusterView
from accel_dask.model.executor import Executor, ExecutorKind, ExecutorPlan
from accel_dask.model.ids import Revision, ShardId, TenantId, WorkerId
from accel_dask.model.member import Worker
from accel_dask.store.base import StateStore
from accel_dask.store.mirror import Mirror
from accel_dask.worker_plugin.cold_sources import ColdSources
from accel_dask.worker_plugin.confined import ConfinedExecutors
from accel_dask.worker_plugin.desired import (
    DrainExecutor,
    FailReplica,
    Instruction,
    LocalFacts,
    RegisterReplica,
    RemoveReplica,
    RemoveShard,
    StartExecutor,
    VerifyShard,
    decide,
)
from accel_dask.worker_plugin.enforcement.enforcer import Enforcer
from accel_dask.worker_plugin.executor.spec import ExecutorSpec
from accel_dask.worker_plugin.executors import ExecutorHost, new_incarnation
from accel_dask.worker_plugin.files import ShardFiles
from accel_dask.worker_plugin.host_loads import HostLoads
from accel_dask.worker_plugin.keeper import (
    ExecutorKeeper,
    KeeperTimes,
    key_of,
)
from accel_dask.worker_plugin.registration import HostRegistration
from accel_dask.worker_plugin.replicas import ReplicaRecords
from accel_dask.worker_plugin.running_executor import RunningExecutor
from accel_dask.worker_plugin.shard_dir import ShardDir

logger = logging.getLogger(__name__)

_TICK_SECONDS: Final = 0.5
_FRESH_SECONDS: Final = 5.0
"""A store that was silent for longer counts as away."""
_STALLED_SECONDS: Final = 60.0
"""An agent thread that has not come round for this long no longer keeps the host registered."""
_START_SECONDS: Final = 30.0
"""For the store's first answer, and for an executor to come up."""
_CHECKERS: Final = 2
_STARTS_AT_ONCE: Final = 4
"""Executors that start at the same time; more would only slow each other down."""


class HostAgent:
    """One worker host. `start` and `stop` block; call them off the event loop."""

    def __init__(
        self,
        store: StateStore,
        settings: HostSettings,
        record: Worker,
        shard_dir: ShardDir,
        executors: ExecutorHost,
        enforcer: Enforcer,
    ) -> None:
        """`executors` must tell `executor_ended` of every executor that ends."""
        self.worker: WorkerId = record.worker
        self._store = store
        self._settings = settings
        self._shard_dir = shard_dir
        self._executors = executors
        self.enforcer = enforcer
        self._starts = threading.BoundedSemaphore(_STARTS_AT_ONCE)
        self._files = ShardFiles(shard_dir)
        self._mirror = Mirror(store, lambda _: self._wake.set())
        self._registration = HostRegistration(
            store, record, settings.lease_seconds, self._may_renew, self._lease_lost
        )
        self._replicas = ReplicaRecords(store, self.worker, self.incarnation)
        self.loads = HostLoads(
            store,
            settings,
            self.worker,
            self._files,
            self._replicas,
            lambda: self._mirror.view,
            self._file_changed,
            enforcer,
        )
        self._confined = ConfinedExecutors(
            executors, enforcer, self.worker, lambda: self._mirror.view, self._files
        )
        self._sources = ColdSources(store)
        self._keepers: dict[tuple[TenantId, int], ExecutorKeeper] = {}
        self._keepers_lock = threading.Lock()
        self._checkers = ThreadPoolExecutor(_CHECKERS, thread_name_prefix="shard-check")
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._came_round_at = time.monotonic()
        self._complaint = ""
        self._directory_lock = -1
        self._thread = threading.Thread(target=self._run, name="host-agent", daemon=True)

    # Life

    def start(self) -> None:
        """Register the host and begin.

        Raises:
            ConfigError: the shard directory cannot be used or is another agent's, or another
                host has this worker's name.
            StoreError: the store did not answer in time.
        """
        self._shard_dir.create()
        self._directory_lock = _lock_directory(self._shard_dir.path, self.worker)
        self._shard_dir.clean_temporary()
        self.loads.clean_spill()
        self._executors.start()
        self.enforcer.start()
        found = self._files.look().files
        logger.info(
            "worker %s: %d shard files in %s to be checked",
            self.worker,
            len(found),
            self._shard_dir.path,
        )
        self._mirror.start(_START_SECONDS)
        self._register_first(self._mirror.view)
        self._thread.start()

    def stop(self) -> None:
        """Take the host off the cluster, drain its executors, end. Also after a `start` that
        failed."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(_START_SECONDS)
        self._registration.close()
        keepers = self._all_keepers()
        for keeper in keepers:
            keeper.drain()
        deadline = time.monotonic() + self._settings.drain_seconds + _START_SECONDS
        for keeper in keepers:
            if not keeper.join(deadline - time.monotonic()):
                logger.error("%s did not end", keeper)
        self._executors.close()
        self._checkers.shutdown(wait=True, cancel_futures=True)
        self.enforcer.close()
        self._mirror.close()
        if self._directory_lock >= 0:
            os.close(self._directory_lock)
            self._directory_lock = -1
        logger.info("worker %s: the host agent has ended", self.worker)

    def inventory(self) -> dict[str, Any]:
        """What is here, for people: plain dicts, lists, strings and numbers."""
        looked = self._files.look()
        return {
            "worker": self.worker,
            "incarnation": int(self.incarnation()),
            "is_store_near": self.is_store_near(),
            "shard_dir": str(self._shard_dir.path),
            "used_bytes": self._shard_dir.used_bytes(),
            "shards": {shard_id: str(state) for shard_id, state in looked.files},
            "loads": sorted(looked.loads),
            "executors": [keeper.describe() for keeper in self._all_keepers()],
            "enforcement": self.enforcer.report(),
        }

    def _file_changed(self) -> None:
        """A load ended: an executor that lacked its file may start now."""
        for keeper in self._all_keepers():
            keeper.file_came()
        self._wake.set()

    # What keepers need of their host

    def incarnation(self) -> Revision:
        return self._registration.incarnation

    def is_store_near(self) -> bool:
        return time.monotonic() - self._mirror.last_contact < _FRESH_SECONDS

    def launch(self, plan: ExecutorPlan) -> RunningExecutor:
        meta = self._mirror.view.meta
        if meta is None:
            raise InvariantViolated("the cluster has no meta record, so no key for tickets")
        is_cold = plan.kind is ExecutorKind.COLD
        spec = ExecutorSpec(
            tenant=plan.tenant,
            worker=self.worker,
            generation=plan.generation,
            incarnation=new_incarnation(),
            attachments=plan.attachments,
            shard_dir=str(self._shard_dir.path),
            cold=self._sources.shards(self._mirror.view, plan) if is_cold else None,
            quota=plan.quota.for_cold() if is_cold else plan.quota,
            ticket_key=meta.ticket_key,
            host=self._settings.host,
            grace_seconds=self._settings.executor_grace_seconds,
        )
        with self._starts:
            return self._confined.launch(spec, _START_SECONDS)

    def executor_ended(self, spec: ExecutorSpec) -> None:
        """Told by the executor host: its keeper starts it again, or had it drained."""
        self._confined.ended(spec)
        keeper = self._keepers.get((spec.tenant, spec.generation))
        if keeper is not None:
            keeper.poke()

    def start_failed(self, plan: ExecutorPlan) -> None:
        if plan.kind is ExecutorKind.COLD:
            return
        for attachment in plan.attachments:
            self._files.recheck(attachment.shard_id)
        self._wake.set()

    def keeper_ended(self, keeper: ExecutorKeeper) -> None:
        with self._keepers_lock:
            self._keepers.pop(key_of(keeper), None)
        self._wake.set()

    # The agent's thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.wait(_TICK_SECONDS)
            self._wake.clear()
            self._came_round_at = time.monotonic()
            try:
                self._come_round()
            except (StoreError, ConfigError) as error:
                self._complain(str(error))
            except Exception:
                logger.exception("worker %s: the host agent stumbled, going on", self.worker)
            else:
                self._complaint = ""

    def _complain(self, complaint: str) -> None:
        if complaint != self._complaint:
            logger.warning("worker %s: %s", self.worker, complaint)
        self._complaint = complaint

    def _come_round(self) -> None:
        self.loads.end_orphaned()
        view = self._mirror.view
        self._confined.follow(view)
        instructions = decide(view, self.worker, self._facts())
        for instruction in instructions:
            if isinstance(instruction, StartExecutor | VerifyShard):  # these need no store
                self._act(instruction, view)
        if self.is_store_near():
            self._stay_registered(view)
        for instruction in instructions:
            if self._stopping.is_set():
                return
            if not isinstance(instruction, StartExecutor | VerifyShard):
                try:
                    self._act(instruction, view)
                except CommitConflict as error:  # the next view will tell
                    logger.debug("worker %s: %s", self.worker, error)

    def _facts(self) -> LocalFacts:
        executors = tuple(keeper.facts() for keeper in self._all_keepers())
        looked = self._files.look()
        return LocalFacts(
            incarnation=self.incarnation(),
            is_view_fresh=self.is_store_near(),
            files=looked.files,
            loads=looked.loads,
            executors=executors,
        )

    def _act(self, instruction: Instruction, view: ClusterView) -> None:
        match instruction:
            case StartExecutor(plan):
                self._start_executor(plan)
            case DrainExecutor(tenant, generation):
                keeper = self._keepers.get((tenant, generation))
                if keeper is not None:
                    logger.info("%s: its plan is gone, draining", keeper)
                    keeper.drain()
            case VerifyShard(shard_id):
                if self._files.begin_check(shard_id):
                    self._checkers.submit(self._check, shard_id)
            case RegisterReplica(shard_id):
                manifest = self._files.manifest(shard_id)
                if manifest is not None:
                    because = f"its shard file is on {self.worker} and as its manifest says"
                    self._replicas.register(manifest, because)
            case FailReplica(shard_id, error):
                self._replicas.fail(shard_id, self._files.failure(shard_id) or error)
            case RemoveShard(shard_id):
                self._remove(shard_id, view)
            case RemoveReplica(shard_id):
                self._replicas.remove(shard_id, view)
                self._files.forget(shard_id)
            case _:
                assert_never(instruction)

    def _start_executor(self, plan: ExecutorPlan) -> None:
        times = KeeperTimes(
            lease_seconds=self._settings.lease_seconds,
            drain_seconds=self._settings.drain_seconds,
        )
        keeper = ExecutorKeeper(plan, self, self._store, times)
        with self._keepers_lock:
            self._keepers[key_of(keeper)] = keeper
        keeper.start()

    def _check(self, shard_id: ShardId) -> None:
        """On a checker thread."""
        try:
            self._files.check(shard_id)
        except ShardDamaged as error:
            logger.error(
                "worker %s: shard %s is damaged and was removed: %s", self.worker, shard_id, error
            )
        except Exception:
            logger.exception("worker %s: shard %s could not be checked", self.worker, shard_id)
            self._files.release(shard_id)
        self._wake.set()

    def _remove(self, shard_id: ShardId, view: ClusterView) -> None:
        if not self._files.begin_check(shard_id):
            return
        try:
            self._replicas.remove(shard_id, view)
        except BaseException:
            self._files.release(shard_id)
            raise
        self._files.forget(shard_id)
        if self._files.remove_claimed(shard_id):
            logger.info("worker %s: removed shard file %s: unused", self.worker, shard_id)

    # Registration

    def _register_first(self, view: ClusterView) -> None:
        stale = [e.path for e in view.records(Executor) if e.worker == self.worker]
        deadline = time.monotonic() + self._settings.lease_seconds + _FRESH_SECONDS
        while True:
            try:
                self._registration.ensure(stale)
            except (ConfigError, StoreError) as error:
                if time.monotonic() >= deadline:
                    raise
                self._complain(str(error))
                self._stopping.wait(_TICK_SECONDS)
                if self._stopping.is_set():
                    raise StoreUnavailable("stopped before the host was registered") from error
            else:
                return

    def _stay_registered(self, view: ClusterView) -> None:
        incarnation = self.incarnation()
        there = view.workers.get(self.worker)
        is_gone = there is None or there.create_revision != incarnation
        if incarnation and view.revision >= incarnation and is_gone:
            logger.warning("worker %s: its record is gone from the store", self.worker)
            self._registration.forget()
        if self._registration.ensure():
            for keeper in self._all_keepers():
                keeper.poke()
            self._wake.set()

    def _may_renew(self) -> bool:
        return time.monotonic() - self._came_round_at < _STALLED_SECONDS

    def _lease_lost(self) -> None:
        logger.warning("worker %s: its lease was lost, registering again", self.worker)
        self._wake.set()

    def _all_keepers(self) -> tuple[ExecutorKeeper, ...]:
        with self._keepers_lock:
            return tuple(self._keepers.values())


def _lock_directory(directory: Path, worker: WorkerId) -> int:
    """Claim the shard directory for this process; ends with it or when the descriptor closes.

    Raises:
        ConfigError: another host agent has it.
    """
    descriptor = os.open(directory / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError(
            f"worker {worker}: another host agent uses the shard directory {directory}; "
            "give each worker its own [host] shard_dir"
        ) from error
    return descriptor
