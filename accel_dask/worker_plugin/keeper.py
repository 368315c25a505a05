"""Keeps one executor generation running and registered, from its start to its end.

The host agent has one keeper per executor plan, each with its own thread, so that a slow start,
a silent executor or a long drain of one tenant never delays another's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Final, Protocol

from accel_dask.errors import AccelError, ExecutorUnavailable, StoreError
from accel_dask.model.commit import Commit, Incarnation, Put
from accel_dask.model.executor import Executor, ExecutorKind, ExecutorPlan, ExecutorState
from accel_dask.model.ids import Revision, TenantId
from accel_dask.model.member import worker_path
from accel_dask.store.base import Lease, StateStore
from accel_dask.store.records import commit_records
from accel_dask.worker_plugin.desired import LocalExecutor
from accel_dask.worker_plugin.running_executor import RunningExecutor

logger = logging.getLogger(__name__)

_TICK_SECONDS: Final = 1.0
_WINDOW_SECONDS: Final = 30.0
_IMMEDIATE_STARTS: Final = 10
"""An executor that ends starts again at once, up to so many times in the window: the tenant has
nobody else on this host."""
_STEADY_END_SECONDS: Final = 0.2
"""After that a start waits so long. Not longer: what ends it is its own tenant's, such as queries
over its memory, and so is the CPU that the start takes."""
_FIRST_BACKOFF_SECONDS: Final = 0.5
_MAX_BACKOFF_SECONDS: Final = 15.0
_UNANSWERED_PINGS: Final = 2
"""The lease of an executor that left more than these unanswered is not renewed."""
_REPORT_SECONDS: Final = 5.0
_REPORT_BYTES: Final = 8 * 1024 * 1024
"""A change of resident memory below this is not worth a write."""


class HostContext(Protocol):
    """What a keeper needs of its host."""

    def incarnation(self) -> Revision:
        """Of the host's registration; 0: none at the moment."""

    def is_store_near(self) -> bool:
        """Whether the store answered just now: asking it will not block for long."""

    def launch(self, plan: ExecutorPlan) -> RunningExecutor:
        """Start the plan's executor and wait until it is READY. Whoever notices its end must
        `poke` its keeper."""

    def start_failed(self, plan: ExecutorPlan) -> None:
        """The plan's executor did not come up."""

    def keeper_ended(self, keeper: ExecutorKeeper) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class KeeperTimes:
    """Times of one keeper, in seconds."""

    lease_seconds: float
    drain_seconds: float


class ExecutorKeeper:
    """The life of one generation of a tenant's executor on this host."""

    def __init__(
        self, plan: ExecutorPlan, host: HostContext, store: StateStore, times: KeeperTimes
    ) -> None:
        self.plan = plan
        self._host = host
        self._store = store
        self._times = times
        self._wake = threading.Event()
        self._retry = threading.Event()
        self._draining = threading.Event()
        self._ended = threading.Event()
        self._running: RunningExecutor | None = None
        self._failure = ""
        self._lease: Lease | None = None
        self._registered: Executor | None = None
        self._report_at = float("-inf")
        self._store_complaint = ""
        self._thread = threading.Thread(
            target=self._run, name=f"executor-{plan.tenant}-{plan.generation}", daemon=True
        )

    def start(self) -> None:
        self._thread.start()

    def drain(self) -> None:
        """Take it off the routes, let its queries end, then end it. Does not wait."""
        self._draining.set()
        self._wake.set()

    def poke(self) -> None:
        """Look again now: the executor ended, or the host was registered anew."""
        self._wake.set()

    def file_came(self) -> None:
        """A start that failed for want of a file may work now: try without waiting."""
        self._retry.set()
        self._wake.set()

    def join(self, timeout_seconds: float) -> bool:
        """Wait until the executor has ended; false if it has not in time."""
        return self._ended.wait(max(0.0, timeout_seconds))

    def facts(self) -> LocalExecutor:
        return LocalExecutor(
            tenant=self.plan.tenant,
            generation=self.plan.generation,
            attachments=frozenset(self.plan.attachments),
            kind=self.plan.kind,
            is_draining=self._draining.is_set(),
        )

    def describe(self) -> dict[str, object]:
        """For people."""
        running = self._running
        return {
            "tenant": self.plan.tenant,
            "generation": self.plan.generation,
            "kind": self.plan.kind.value,
            "pid": running.pid if running else 0,
            "address": running.address if running else "",
            "is_draining": self._draining.is_set(),
            "failure": self._failure,
        }

    def __str__(self) -> str:
        cold = "cold " if self.plan.kind is ExecutorKind.COLD else ""
        return (
            f"{cold}executor of tenant {self.plan.tenant}, generation {self.plan.generation}, "
            f"on worker {self.plan.worker}"
        )

    # From here on: the keeper's thread.

    def _run(self) -> None:
        try:
            self._keep()
        except Exception:
            logger.exception("%s: its keeper failed", self)
        try:
            self._end()
        except Exception:
            logger.exception("%s: it could not be ended in good order", self)
        self._ended.set()
        self._host.keeper_ended(self)

    def _keep(self) -> None:
        failures = 0
        deaths: deque[float] = deque()
        while not self._draining.is_set():
            if self._launch():
                failures = 0
                self._serve()
                if self._ends_steadily(deaths):
                    self._back_off(_STEADY_END_SECONDS)
            else:
                failures += 1
                self._back_off(_FIRST_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 10))

    def _ends_steadily(self, deaths: deque[float]) -> bool:
        """Whether the executor has ended so often lately that the next start shall wait."""
        now = time.monotonic()
        deaths.append(now)
        while deaths[0] < now - _WINDOW_SECONDS:
            deaths.popleft()
        if len(deaths) <= _IMMEDIATE_STARTS or self._draining.is_set():
            return False
        self._failure = f"it ended {len(deaths)} times within {_WINDOW_SECONDS:g} s"
        return True

    def _back_off(self, seconds: float) -> None:
        seconds = min(_MAX_BACKOFF_SECONDS, seconds)
        if not self._draining.is_set():
            logger.warning("%s: starting it again in %.1f s", self, seconds)
        until = time.monotonic() + seconds
        self._retry.clear()
        while not self._draining.is_set() and not self._retry.is_set():
            self._wake.clear()
            self._register_if_needed()
            if (left := until - time.monotonic()) <= 0:
                return
            self._wake.wait(min(left, _TICK_SECONDS))

    def _launch(self) -> bool:
        try:
            running = self._host.launch(self.plan)
        except Exception as error:
            expected = isinstance(error, AccelError)
            logger.error("%s could not be started: %s", self, error, exc_info=not expected)
            self._failure = str(error) if expected else "internal error; see the host's log"
            self._register_if_needed()
            self._host.start_failed(self.plan)
            return False
        self._failure = ""
        self._running = running
        logger.info("%s is up: pid %d, %d ms", self, running.pid, running.start_ms)
        return True

    def _serve(self) -> None:
        """Until the executor ends or is to be drained."""
        running = self._running
        assert running is not None
        while not self._draining.is_set():
            self._wake.clear()
            if running.wait_ended(0):
                logger.warning("%s ended unasked: %s", self, running.exit_reason)
                self._running = None
                return
            self._register_if_needed()
            if self._lease is not None and self._registered is not None:
                running.extend_lease(self._lease.valid_until())
            self._wake.wait(_TICK_SECONDS)

    def _may_renew(self) -> bool:
        """Asked on the store's thread: the lease lives only as long as what it stands for."""
        if self._failure:
            return not self._ended.is_set()
        running = self._running
        return (
            running is not None
            and not running.has_ended
            and running.unanswered <= _UNANSWERED_PINGS
        )

    def _register_if_needed(self) -> None:
        wanted = self._record()
        if wanted is None or self._is_registered(wanted):
            return
        if not self._host.is_store_near():
            return  # it serves on; asking now would only block this thread
        try:
            self._register(wanted)
            self._store_complaint = ""
        except StoreError as error:
            if str(error) != self._store_complaint:
                logger.warning("%s could not be registered: %s", self, error)
            self._store_complaint = str(error)

    def _record(self) -> Executor | None:
        """What the store should say now; None: nothing can be said at the moment."""
        running, incarnation = self._running, self._host.incarnation()
        if incarnation == 0 or (running is None and not self._failure):
            return None
        blank = Executor(
            worker=self.plan.worker,
            tenant=self.plan.tenant,
            generation=self.plan.generation,
            incarnation="",
            state=ExecutorState.FAILED,
            worker_incarnation=incarnation,
            reason=self._failure,
        )
        if running is None:
            return blank
        return replace(
            blank,
            state=ExecutorState.READY,
            incarnation=running.incarnation,
            address=running.address,
            ticket_port=running.ticket_port,
            pid=running.pid,
            start_ms=running.start_ms,
            resident_bytes=self._resident_bytes(running),
        )

    def _resident_bytes(self, running: RunningExecutor) -> int:
        """Measured now and then only: each change is a write to the store."""
        there = self._registered
        if there is not None and time.monotonic() < self._report_at:
            return there.resident_bytes
        self._report_at = time.monotonic() + _REPORT_SECONDS
        return running.resident_bytes()

    def _is_registered(self, wanted: Executor) -> bool:
        there = self._registered
        if there is None or self._lease is None or self._lease.is_lost():
            return False
        if replace(there, resident_bytes=wanted.resident_bytes) != wanted:
            return False
        return abs(there.resident_bytes - wanted.resident_bytes) < _REPORT_BYTES

    def _register(self, record: Executor) -> None:
        if self._lease is None or self._lease.is_lost():
            self._registered = None
            self._lease = self._store.lease(
                self._times.lease_seconds, self._may_renew, self._wake.set
            )
        commit = Commit(
            requirements=(Incarnation(worker_path(record.worker), record.worker_incarnation),),
            changes=(Put(record, self._lease.lease_id),),
            because=f"{self} is {record.state}",
        )
        commit_records(self._store, commit, idempotent=True)
        self._registered = record

    def _end(self) -> None:
        running, self._running = self._running, None
        if running is not None:
            self._stop(running)
        self._deregister()

    def _stop(self, running: RunningExecutor) -> None:
        seconds = self._times.drain_seconds
        running.drain(seconds)
        self._deregister()
        if not running.wait_ended(seconds + _TICK_SECONDS):
            logger.warning(
                "%s did not end within %g s of draining; killing pid %d", self, seconds, running.pid
            )
            running.kill("it did not end when it was drained")
            if not running.wait_ended(10):
                raise ExecutorUnavailable(f"{self} does not end (pid {running.pid})")
        logger.info("%s has ended", self)

    def _deregister(self) -> None:
        lease, self._lease, self._registered = self._lease, None, None
        if lease is None:
            return
        try:
            lease.close()
        except StoreError as error:
            logger.warning("%s: its record ends with its lease: %s", self, error)


def key_of(keeper: ExecutorKeeper) -> tuple[TenantId, int]:
    return (keeper.plan.tenant, keeper.plan.generation)
