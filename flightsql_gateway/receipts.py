"""What is known of each answered query, kept for a while per tenant."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from typing import Final

from accel_dask.model.ids import TenantId

_KEPT: Final = 1000
_KEPT_SQL: Final = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetReceipt:
    """A dataset as the query saw it."""

    dataset: str
    epoch: int
    snapshot: str
    shards: int
    total_shards: int
    rollup: str = ""
    """That was read in place of its rows; empty: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One query. Times in milliseconds."""

    query_id: str
    tenant: str
    user: str
    sql: str
    outcome: str
    """`OK`, or the error's code."""
    reason: str
    """Why it took its route, or why it failed."""
    route: str = ""
    """`hot`, `cold` or `olap`; empty: it was not run."""
    datasets: tuple[DatasetReceipt, ...] = ()
    executor: str = ""
    executors: int = 0
    """That one and those that it asked for their parts."""
    verdict: str = ""
    """What statistics said of its cost before it ran."""
    started_at_ms: int = 0
    plan_ms: float = 0.0
    queue_ms: float = 0.0
    run_ms: float = 0.0
    """From sending the ticket to the first batch."""
    total_ms: float = 0.0
    rows: int = 0
    bytes: int = 0
    retries: int = 0


class Receipts:
    """The newest thousand of each tenant. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_tenant: dict[TenantId, deque[Receipt]] = {}

    def add(self, tenant: TenantId, receipt: Receipt) -> None:
        with self._lock:
            kept = self._by_tenant.setdefault(tenant, deque(maxlen=_KEPT))
            kept.append(receipt)

    def last(self, tenant: TenantId, count: int) -> tuple[Receipt, ...]:
        """The newest first."""
        with self._lock:
            kept = tuple(self._by_tenant.get(tenant, ()))
        return kept[::-1][: max(count, 0)]


def shortened(sql: str) -> str:
    """`sql` as it is kept in a receipt."""
    return sql if len(sql) <= _KEPT_SQL else sql[: _KEPT_SQL - 3] + "..."
