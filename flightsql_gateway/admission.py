"""Places for queries: so many of a tenant at once and of all together, the others wait in order.

A query that would wait for longer than it may is refused at once. Whatever is refused here is
refused with `ResourceExhausted` and told when to come back.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from accel_dask.errors import (
    AccelError,
    DeadlineExceeded,
    QueryCancelled,
    ResourceExhausted,
    Unauthenticated,
)
from accel_dask.model.ids import TenantId
from accel_dask.model.member import TenantLoad
from accel_dask.model.tenant import Quota
from flightsql_gateway.calls import Call
from flightsql_gateway.fair_queue import FairQueue, Limit, Line, ShedReason

_LEAST_RETRY_MS: Final = 50
_MOST_RETRY_MS: Final = 60_000
_LOOK_SECONDS: Final = 0.1
"""How often a waiting query looks whether a share changed by the clock alone."""
DEFAULT_PLACES: Final = 64


class _Waiter:
    """A query that waits for its turn."""

    __slots__ = ("error", "predicted_seconds", "turn")

    def __init__(self) -> None:
        self.turn: Final = threading.Event()
        """Set when it has a place, and when its call has ended."""
        self.predicted_seconds: float | None = None
        """That it is predicted to hold its place, once it has one."""
        self.error: AccelError | None = None
        """Why it waits in vain."""


class Slot:
    """A place, given back once."""

    __slots__ = ("_admission", "is_held", "line", "predicted_seconds", "queue_ms", "taken_at")

    def __init__(
        self,
        admission: Admission,
        line: Line[_Waiter],
        predicted_seconds: float,
        taken_at: float,
        queue_ms: float,
    ) -> None:
        self.queue_ms: Final = queue_ms
        self.line: Final = line
        self.predicted_seconds: Final = predicted_seconds
        self.taken_at: Final = taken_at
        self.is_held = True
        self._admission = admission

    def release(self) -> None:
        self._admission.end(self)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a tenant would use here."""

    running: int
    present: int
    """Queries that run or wait."""
    peak: int
    """Most queries that ran or waited at once since the last look."""


class Admission:
    """Hands out a gateway's places. Safe to use from several threads."""

    def __init__(
        self,
        places: int = DEFAULT_PLACES,
        limit: Limit = lambda _, quota: quota.concurrency,
        on_wait: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_wait` is called when a query begins to wait."""
        self._lock = threading.Lock()
        self._queue: FairQueue[_Waiter] = FairQueue(places, limit)
        self._on_wait = on_wait

    def admit(self, tenant: TenantId, quota: Quota, call: Call) -> Slot:
        """A place for one query; waits for one if it must.

        Raises:
            ResourceExhausted: the queue is full, or no place becomes free in time.
            Unauthenticated: the tenant was deleted meanwhile.
            QueryCancelled: the call ended meanwhile.
        """
        started = time.monotonic()
        with self._lock:
            line = self._queue.line(tenant, quota)
            predicted = self._queue.enter(line)
            if predicted is not None:
                return Slot(self, line, predicted, started, 0.0)
            self._check_room(line, call.deadline - started)
            waiter = _Waiter()
            self._queue.join(line, waiter)
        until = min(started + quota.queue_wait_ms / 1000, call.deadline)
        self._on_wait()
        call.on_end(waiter.turn.set)
        try:
            while not waiter.turn.wait(min(max(until - time.monotonic(), 0.0), _LOOK_SECONDS)):
                if time.monotonic() >= until:
                    break
                self.limits_changed()  # a lease's time passes without anybody's doing
        finally:
            call.on_end(None)
            predicted = self._stop_waiting(line, waiter)
        if predicted is None:
            raise self._why_none(line, waiter, call)
        now = time.monotonic()
        return Slot(self, line, predicted, now, (now - started) * 1000)

    def _check_room(self, line: Line[_Waiter], seconds_left: float) -> None:
        """
        Raises:
            ResourceExhausted: it would wait in vain.
        """
        quota, waiting = line.quota, len(line.waiting)
        if waiting >= quota.queue_length:
            raise self._shed(line, ShedReason.QUEUE_FULL, f"and {waiting} wait already")
        wait = line.predicted_seconds(self._places_of(line))
        allowed = min(quota.queue_wait_ms / 1000, seconds_left)
        if wait > allowed:
            raise self._shed(
                line,
                ShedReason.PREDICTED_WAIT,
                f"and with {waiting} before it the query would wait about {wait * 1000:.0f} ms, "
                f"beyond the {allowed * 1000:.0f} ms that it may",
            )

    def _places_of(self, line: Line[_Waiter]) -> int:
        """How many of the tenant's queries are answered at a time, as things are."""
        is_full = self._queue.running >= self._queue.places
        return line.running if is_full else self._queue.limit_of(line)

    def _stop_waiting(self, line: Line[_Waiter], waiter: _Waiter) -> float | None:
        with self._lock:
            self._queue.leave(line, waiter)
            return waiter.predicted_seconds

    def _why_none(self, line: Line[_Waiter], waiter: _Waiter, call: Call) -> AccelError:
        """Why `waiter` has no place."""
        if waiter.error is not None:
            return waiter.error
        because = f"and none ended within {line.quota.queue_wait_ms} ms"
        try:
            call.check()
        except DeadlineExceeded:
            because = "and none ended within all the time that the query has"
        except QueryCancelled as error:
            return error
        with self._lock:
            return self._shed(line, ShedReason.WAITED_TOO_LONG, because)

    def _shed(self, line: Line[_Waiter], reason: ShedReason, because: str) -> ResourceExhausted:
        """Called with the lock."""
        line.shed[reason] += 1
        limit = self._queue.limit_of(line)
        wait_ms = line.predicted_seconds(self._places_of(line)) * 1000
        retry_ms = wait_ms or line.quota.queue_wait_ms / 2
        retry_ms = math.ceil(min(max(retry_ms, _LEAST_RETRY_MS), _MOST_RETRY_MS))
        if self._queue.running >= self._queue.places:
            full = f"all {self._queue.places} places of this gateway are taken"
        elif limit == 0:
            full = "this gateway has no place for the tenant at the moment"
        else:
            full = f"{line.running} of its queries run in this gateway, its share being {limit}"
        return ResourceExhausted(
            f"tenant {line.tenant} may run {line.quota.concurrency} queries at once; {full}, "
            f"{because}; retry after {retry_ms} ms"
        )

    def end(self, slot: Slot) -> None:
        """Take `slot` back, if it is not yet."""
        seconds = time.monotonic() - slot.taken_at
        with self._lock:
            if slot.is_held:
                slot.is_held = False
                self._queue.end(slot.line, slot.predicted_seconds, seconds)
                self._call_next()

    def limits_changed(self) -> None:
        """Some tenant may run more queries than before."""
        with self._lock:
            self._call_next()

    def _call_next(self) -> None:
        while (found := self._queue.next()) is not None:
            waiter, predicted_seconds = found
            waiter.predicted_seconds = predicted_seconds
            waiter.turn.set()

    def keep_only(self, tenants: Iterable[TenantId]) -> None:
        """Forget all other tenants: they were deleted."""
        kept = set(tenants)
        with self._lock:
            for tenant in self._queue.lines.keys() - kept:
                for waiter in self._queue.forget(tenant):
                    waiter.error = Unauthenticated(f"tenant {tenant} no longer exists")
                    waiter.turn.set()

    def demand(self, tenant: TenantId) -> Demand:
        """The tenant's since the last call. Who was admitted by an earlier limit is counted: the
        limit is looked at and the place taken under the same lock."""
        with self._lock:
            line = self._queue.lines.get(tenant)
            if line is None:
                return Demand(0, 0, 0)
            return Demand(line.running, line.running + len(line.waiting), line.take_peak())

    def busy(self) -> set[TenantId]:
        """Tenants who have asked something since their `demand` was last looked at."""
        with self._lock:
            return {tenant for tenant, line in self._queue.lines.items() if line.peak}

    def load(self, tenant: TenantId) -> tuple[int, int]:
        """Queries running and waiting."""
        with self._lock:
            line = self._queue.lines.get(tenant)
            return (line.running, len(line.waiting)) if line is not None else (0, 0)

    def shed(self) -> dict[tuple[TenantId, ShedReason], int]:
        """Queries refused since the start."""
        with self._lock:
            return {
                (tenant, reason): count
                for tenant, line in self._queue.lines.items()
                for reason, count in line.shed.items()
            }

    def loads(self) -> tuple[TenantLoad, ...]:
        """Of all tenants that have asked something, in order of their names."""
        with self._lock:
            return tuple(
                TenantLoad(
                    tenant=tenant,
                    share=self._queue.limit_of(line),
                    in_use=line.running,
                    queued=len(line.waiting),
                    shed=line.shed.total(),
                )
                for tenant, line in sorted(self._queue.lines.items())
            )
