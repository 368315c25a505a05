"""Who may run next in a gateway: in order within a tenant, by weight between tenants. Without
locks, threads or clocks; `admission.py` has those.

Between tenants it is start-time fair queueing (Goyal, Vin, Cheng 1996) of the time that queries
hold their places: each query moves its tenant's *finish* on by its time over the tenant's weight,
and of all tenants who wait and may run one more, the one that is behind the most goes first. The
time is predicted when a query begins, from those before it, and put right when it has ended. A
tenant that was idle begins at the present virtual time: nobody saves up a claim.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Generic, TypeVar

from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import Quota

W = TypeVar("W")

_FIRST_SECONDS: Final = 0.01
"""What a tenant's first query is taken to last."""
_SMOOTHING: Final = 0.1
"""How much a query's time moves the average of its tenant's."""
_ENOUGH: Final = 5
"""So many queries must have ended before a wait is predicted."""

Limit = Callable[[TenantId, Quota], int]
"""How many queries of a tenant may run here at the moment."""


class ShedReason(StrEnum):
    """Why a query was refused."""

    QUEUE_FULL = "queue_full"
    WAITED_TOO_LONG = "waited_too_long"
    PREDICTED_WAIT = "predicted_wait"


@dataclass(slots=True)
class Line(Generic[W]):
    """One tenant's places and queue."""

    tenant: TenantId
    quota: Quota = field(default_factory=Quota)
    running: int = 0
    peak: int = 0
    """Most queries that ran or waited at once since it was last asked for."""
    waiting: deque[W] = field(default_factory=deque)
    finish: float = 0.0
    """Virtual time up to which it has had its share."""
    mean_seconds: float = _FIRST_SECONDS
    """That a query holds its place."""
    ended: int = 0
    shed: Counter[ShedReason] = field(default_factory=Counter)

    def predicted_seconds(self, places: int) -> float:
        """Until one more query at the end of the queue would begin; 0: it cannot be told."""
        if self.ended < _ENOUGH:
            return 0.0
        return self.mean_seconds * (len(self.waiting) + 1) / max(places, 1)

    def take_peak(self) -> int:
        """Most queries that ran or waited at once since the last call."""
        now = self.running + len(self.waiting)
        peak, self.peak = max(self.peak, now), now
        return peak

    def measured(self, seconds: float) -> None:
        """A query ended after `seconds`."""
        self.ended += 1
        weight = max(_SMOOTHING, 1 / self.ended)
        self.mean_seconds += weight * (seconds - self.mean_seconds)


class FairQueue(Generic[W]):
    """Places of one gateway. `W` is whoever waits for one."""

    def __init__(self, places: int, limit: Limit) -> None:
        self.places: Final = places
        self.running = 0
        self.lines: Final[dict[TenantId, Line[W]]] = {}
        self._waiting: dict[TenantId, Line[W]] = {}
        self._limit = limit
        self._now = 0.0
        """Virtual time: the start of the query that began last."""

    def line(self, tenant: TenantId, quota: Quota) -> Line[W]:
        """The tenant's, with its quota as it is now."""
        line = self.lines.get(tenant)
        if line is None:
            line = self.lines[tenant] = Line(tenant)
        line.quota = quota
        return line

    def limit_of(self, line: Line[W]) -> int:
        return self._limit(line.tenant, line.quota)

    def enter(self, line: Line[W]) -> float | None:
        """Take a place now: the seconds that it is predicted to be held. None: there is none, or
        others wait."""
        if line.waiting or self.running >= self.places or line.running >= self.limit_of(line):
            line.peak = max(line.peak, line.running + len(line.waiting) + 1)
            return None
        return self._begin(line)

    def join(self, line: Line[W], waiter: W) -> None:
        """Stand at the end of the queue."""
        line.waiting.append(waiter)
        self._waiting[line.tenant] = line

    def leave(self, line: Line[W], waiter: W) -> bool:
        """Stop waiting; False: it does not wait (any more)."""
        try:
            line.waiting.remove(waiter)
        except ValueError:
            return False
        if not line.waiting:
            self._waiting.pop(line.tenant, None)
        return True

    def next(self) -> tuple[W, float] | None:
        """Whoever takes a place that is free, and the seconds that it is predicted to be held."""
        if not self._waiting or self.running >= self.places:
            return None
        first: Line[W] | None = None
        for line in self._waiting.values():
            is_behind = first is None or line.finish < first.finish
            if is_behind and line.running < self.limit_of(line):
                first = line
        if first is None:
            return None  # who waits has all the places that it may have
        waiter = first.waiting.popleft()
        if not first.waiting:
            del self._waiting[first.tenant]
        return waiter, self._begin(first)

    def end(self, line: Line[W], predicted_seconds: float, seconds: float) -> None:
        """A query gives its place back after `seconds`."""
        self.running -= 1
        line.running -= 1
        line.finish += (seconds - predicted_seconds) / max(line.quota.cpu_weight, 1)
        line.measured(seconds)

    def forget(self, tenant: TenantId) -> tuple[W, ...]:
        """The tenant is gone: whoever waited."""
        line = self.lines.pop(tenant, None)
        self._waiting.pop(tenant, None)
        if line is None:
            return ()
        waiting = tuple(line.waiting)
        line.waiting.clear()
        return waiting

    def _begin(self, line: Line[W]) -> float:
        self.running += 1
        line.running += 1
        line.peak = max(line.peak, line.running + len(line.waiting))
        self._now = max(self._now, line.finish)
        line.finish = self._now + line.mean_seconds / max(line.quota.cpu_weight, 1)
        return line.mean_seconds
