"""What one tenant's queries at one engine came to: counts, times, how many are there now."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from dataclasses import dataclass
from typing import Final

from accel_dask.errors import AccelError
from flightsql_gateway.load_figures import quantile

BUCKETS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
"""Upper bounds in seconds; beyond the last there is one more."""
_RECENT: Final = 200


@dataclass(frozen=True, slots=True)
class EngineCounts:
    """Totals since the gateway started, and how long the last two hundred took."""

    outcomes: tuple[tuple[str, int], ...]
    """`OK` or the error's code, of queries that ended."""
    refused: int
    """Not sent, because the engine was left alone."""
    running: int
    histogram: tuple[int, ...]
    """Queries of each of `BUCKETS`, not added up, and of those beyond."""
    seconds: float
    """Of all queries together."""
    p50_ms: float
    p99_ms: float

    @property
    def queries(self) -> int:
        return sum(count for _, count in self.outcomes)

    @property
    def failed(self) -> int:
        """Neither answered nor cancelled."""
        return sum(n for outcome, n in self.outcomes if outcome not in {"OK", "QUERY_CANCELLED"})


class EngineFigures:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outcomes: Counter[str] = Counter()
        self._refused = self._running = 0
        self._histogram = [0] * (len(BUCKETS) + 1)
        self._seconds = 0.0
        self._recent: deque[float] = deque(maxlen=_RECENT)

    def began(self) -> float:
        """When, for `ended`."""
        with self._lock:
            self._running += 1
        return time.monotonic()

    def refused(self) -> None:
        with self._lock:
            self._refused += 1

    def ended(self, began: float, error: AccelError | None) -> None:
        seconds = time.monotonic() - began
        with self._lock:
            self._running -= 1
            self._outcomes["OK" if error is None else error.code] += 1
            self._histogram[bisect_left(BUCKETS, seconds)] += 1
            self._seconds += seconds
            self._recent.append(seconds)

    def counts(self) -> EngineCounts:
        with self._lock:
            times = sorted(self._recent)
            return EngineCounts(
                outcomes=tuple(sorted(self._outcomes.items())),
                refused=self._refused,
                running=self._running,
                histogram=tuple(self._histogram),
                seconds=self._seconds,
                p50_ms=round(quantile(times, 0.5) * 1000, 2),
                p99_ms=round(quantile(times, 0.99) * 1000, 2),
            )
