"""Threads for pings of executors, so that nobody waits for one that hangs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final

from accel_dask.errors import ExecutorUnavailable

log = logging.getLogger(__name__)

_MAX_THREADS: Final = 1024


class CallThreads:
    """Grows with the calls that are open at once. Its threads keep no process alive: a call to an
    executor that hangs ends when its time is over, and nobody waits for that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._idle = 0
        self._count = 0

    def submit(self, work: Callable[[], None]) -> None:
        """Run `work` at once, on some thread.

        Raises:
            ExecutorUnavailable: too many calls hang.
        """
        with self._lock:
            if self._idle:
                self._idle -= 1
            elif self._count >= _MAX_THREADS:
                raise ExecutorUnavailable(
                    f"{self._count} calls to executors are open in this gateway; try again"
                )
            else:
                self._count += 1
                threading.Thread(target=self._run, name="call", daemon=True).start()
        self._work.put(work)

    def close(self) -> None:
        for _ in range(self._count):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception:  # the thread must go on for the other calls
                log.exception("a call to an executor failed unexpectedly")
            del work
            with self._lock:
                self._idle += 1
