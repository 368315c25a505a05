"""Ends queries whose time or CPU time is over, or whose client has gone."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from enum import Enum
from typing import Protocol

from accel_dask.worker_plugin.executor.cores import Cores
from accel_dask.worker_plugin.executor.cpu_time import CpuMeter

log = logging.getLogger(__name__)

TICK_SECONDS = 0.01
LINGER_SECONDS = 1.0
"""The thread keeps ticking this long after the last query, to spare each query a wake-up."""
FROZEN_SECONDS = 5
"""The kernel ends the process when the thread itself gets no turn for this long."""


class StopReason(Enum):
    DEADLINE = "its time was over"
    CPU = "it used more CPU time than it may"
    CANCELLED = "its client went away"


class Watched(Protocol):
    """A query as the watchdog sees it. `stop` never blocks; the first reason stays."""

    deadline: float
    stopped_at: float | None

    @property
    def is_computing(self) -> bool: ...

    def is_over_cpu(self) -> bool: ...

    def client_is_gone(self) -> bool: ...

    def stop(self, reason: StopReason) -> None: ...


class Watchdog:
    """One thread for all queries of an executor."""

    def __init__(
        self,
        stuck_seconds: float,
        on_stuck: Callable[[str], None],
        *,
        cpu: CpuMeter | None = None,
        cores: Cores | None = None,
        die_frozen: bool = False,
    ) -> None:
        """`on_stuck` gets a sentence. `die_frozen`: let the kernel end the process when it
        holds the interpreter lock so long that not even this thread gets a turn."""
        self._stuck_seconds = stuck_seconds
        self._on_stuck = on_stuck
        self._cpu = cpu or CpuMeter()
        self._cores = cores or Cores(frozenset())
        self._die_frozen = die_frozen
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._watched: set[Watched] = set()
        self._parked = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._thread.start()

    def add(self, query: Watched) -> None:
        with self._lock:
            self._watched.add(query)
            if self._parked:
                self._wake.notify()

    def remove(self, query: Watched) -> None:
        """After this, `query` (and the call context behind it) is not touched any more."""
        with self._lock:
            self._watched.discard(query)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        idle_since = time.monotonic()
        while True:
            with self._lock:
                if self._closed:
                    return
                now = time.monotonic()
                if self._watched:
                    idle_since = now
                elif now - idle_since > LINGER_SECONDS:
                    self._park()
                    idle_since = time.monotonic()
                    continue
                self._tick(now)
            self._arm(FROZEN_SECONDS)
            time.sleep(TICK_SECONDS)

    def _park(self) -> None:
        self._arm(0)
        self._parked = True
        while not self._watched and not self._closed:
            self._wake.wait()
        self._parked = False

    def _arm(self, seconds: float) -> None:
        # The default action of SIGALRM needs no interpreter. It also ends a process whose
        # watchdog has failed: queries without one would have no deadline.
        if self._die_frozen:
            signal.setitimer(signal.ITIMER_REAL, seconds)

    def _tick(self, now: float) -> None:
        if self._watched:
            self._cpu.settle()
            self._cores.balance()
        for query in tuple(self._watched):
            stopped_at = query.stopped_at
            if stopped_at is None:
                if now >= query.deadline:
                    query.stop(StopReason.DEADLINE)
                elif query.is_over_cpu():
                    query.stop(StopReason.CPU)
                elif query.client_is_gone():
                    query.stop(StopReason.CANCELLED)
            elif query.is_computing and now - stopped_at > self._stuck_seconds:
                self._on_stuck(
                    f"{query} did not stop within {self._stuck_seconds:g} s of its interruption"
                )
            else:
                # An interruption is lost when the engine was between two phases of the query.
                query.stop(StopReason.CANCELLED)
