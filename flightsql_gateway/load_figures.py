"""What this gateway has served lately: counts, rates, latencies."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_WINDOW_SECONDS: Final = 10.0
_MAX_SAMPLES: Final = 5_000


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadSummary:
    """Totals since the start; rates and latencies of the last ten seconds."""

    queries: int
    failed: int
    queries_per_second: float
    p50_ms: float
    p99_ms: float
    per_tenant: tuple[tuple[str, float], ...]


class LoadFigures:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._started_at = time.monotonic()
        self._queries = 0
        self._failed = 0
        self._samples: deque[tuple[float, str, float]] = deque(maxlen=_MAX_SAMPLES)

    def add(self, tenant: str, total_ms: float, *, failed: bool) -> None:
        """One query ended."""
        with self._lock:
            self._queries += 1
            self._failed += failed
            self._samples.append((time.monotonic(), tenant, total_ms))

    def summary(self) -> LoadSummary:
        now = time.monotonic()
        with self._lock:
            recent = [sample for sample in self._samples if now - sample[0] <= _WINDOW_SECONDS]
            queries, failed = self._queries, self._failed
        seconds = max(min(_WINDOW_SECONDS, now - self._started_at), 0.1)
        if recent and len(recent) == _MAX_SAMPLES:
            seconds = max(now - recent[0][0], 0.1)
        times = sorted(total_ms for _, _, total_ms in recent)
        tenants = Counter(tenant for _, tenant, _ in recent)
        return LoadSummary(
            queries=queries,
            failed=failed,
            queries_per_second=round(len(recent) / seconds, 2),
            p50_ms=round(quantile(times, 0.5), 2),
            p99_ms=round(quantile(times, 0.99), 2),
            per_tenant=tuple(
                (tenant, round(count / seconds, 2)) for tenant, count in sorted(tenants.items())
            ),
        )


def quantile(ordered: Sequence[float], share: float) -> float:
    """The value that `share` of the `ordered` are not above; 0 if there are none."""
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0
