"""Places for queries: so many of a tenant at once, so many waiting in order, for so long."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Final

from accel_dask.errors import TooManyQueries
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import Quota
from flightsql_gateway.calls import Call

_LOOK_SECONDS: Final = 0.05
"""How often a waiting query looks whether its client is still there."""


class _Line:
    """One tenant's places and queue."""

    def __init__(self) -> None:
        self.running = 0
        self.waiting: deque[threading.Event] = deque()


class Slot:
    """A place, given back once."""

    def __init__(self, admission: Admission, tenant: TenantId, queue_ms: float) -> None:
        self.queue_ms: Final = queue_ms
        self._admission = admission
        self._tenant = tenant
        self._lock = threading.Lock()
        self._is_released = False

    def release(self) -> None:
        with self._lock:
            if self._is_released:
                return
            self._is_released = True
        self._admission.release(self._tenant)


class Admission:
    """Per-tenant concurrency with a first-in-first-out queue."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[TenantId, _Line] = {}

    def admit(self, tenant: TenantId, quota: Quota, call: Call) -> Slot:
        """A place for one query; waits for one if it must.

        Raises:
            TooManyQueries: the queue is full, or no place became free in time.
            QueryCancelled, DeadlineExceeded: the call ended meanwhile.
        """
        started = time.monotonic()
        turn = threading.Event()
        with self._lock:
            line = self._lines.setdefault(tenant, _Line())
            if line.running < quota.concurrency and not line.waiting:
                line.running += 1
                return Slot(self, tenant, 0.0)
            if len(line.waiting) >= quota.queue_length:
                raise _too_many(tenant, quota, f"and {len(line.waiting)} wait already")
            line.waiting.append(turn)
        try:
            self._wait(turn, started + quota.queue_wait_ms / 1000, tenant, quota, call)
        except BaseException:
            self._leave(tenant, turn)
            raise
        return Slot(self, tenant, (time.monotonic() - started) * 1000)

    def _wait(
        self, turn: threading.Event, until: float, tenant: TenantId, quota: Quota, call: Call
    ) -> None:
        while not turn.wait(min(_LOOK_SECONDS, max(until - time.monotonic(), 0.001))):
            call.check()
            if time.monotonic() >= until:
                raise _too_many(tenant, quota, f"and none ended within {quota.queue_wait_ms} ms")

    def _leave(self, tenant: TenantId, turn: threading.Event) -> None:
        """Give up waiting; a place that was handed over meanwhile goes to the next."""
        with self._lock:
            line = self._lines[tenant]
            if turn in line.waiting:
                line.waiting.remove(turn)
                return
        self.release(tenant)

    def release(self, tenant: TenantId) -> None:
        """A query ended: its place goes to who has waited longest."""
        with self._lock:
            line = self._lines[tenant]
            if line.waiting:
                line.waiting.popleft().set()
            else:
                line.running -= 1

    def load(self, tenant: TenantId) -> tuple[int, int]:
        """Queries running and waiting."""
        with self._lock:
            line = self._lines.get(tenant, _Line())
            return line.running, len(line.waiting)


def _too_many(tenant: TenantId, quota: Quota, because: str) -> TooManyQueries:
    return TooManyQueries(
        f"{quota.concurrency} queries of tenant {tenant} are running, its limit, {because}; "
        f"retry after {max(quota.queue_wait_ms // 2, 100)} ms"
    )
