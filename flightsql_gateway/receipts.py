"""What is known of each answered query, kept for a while per tenant."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

from accel_dask.model.fallback import FallbackReason
from accel_dask.model.ids import TenantId
from flightsql_gateway.history import History

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
    cold_shards: int = 0
    """Of `shards`, those that were read from the source's files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartReceipt:
    """A share of a spread query, as the executor that it was asked of gave it."""

    executor: str
    rows: int
    bytes: int
    ms: float
    cpu_ms: float
    scanned_rows: int | None
    alternatives: int
    """Executors that were asked before and did not give it."""


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
    """`hot`, `cold`, `hot+cold` or `olap`; empty: it was not run."""
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
    """Executors that were asked beyond the first."""
    predicted_scan_rows: int | None = None
    """At most, by statistics; None: the source does not say."""
    scanned_rows: int | None = None
    """By the engine, with the parts; None: it did not count, as for short queries."""
    executor_queue_ms: float = 0.0
    """In the executor: waiting for a thread, fetching what others have, computing."""
    gather_ms: float = 0.0
    engine_ms: float = 0.0
    cpu_ms: float = 0.0
    """In all executors."""
    peak_memory_bytes: int | None = None
    gathered_rows: int = 0
    gathered_bytes: int = 0
    parts: tuple[PartReceipt, ...] = ()
    fallback: str = ""
    """Why the engine was asked: `miss`, `breach`, `overload`, `error` or `policy`; empty: it was
    not."""
    engine: str = ""
    """Which, and how it read its tables."""
    is_pinned: bool | None = None
    """Whether the engine read the snapshot that memory serves; None: no engine was asked."""
    limits: dict[str, int] = field(default_factory=dict)
    """That it ran under: the tenant's, or the client's own where those are lower."""


@dataclass(frozen=True, slots=True)
class FallbackNote:
    """Why an OLAP engine was asked for a query, which, and what it read."""

    reason: FallbackReason
    because: str
    """The error that memory gave; empty: it was not asked."""
    engine: str
    is_pinned: bool


class Receipts:
    """The newest thousand of each tenant. Safe to use from several threads."""

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        """`settle` sees to it that all queries that have ended are here; called before a look."""
        self._settle = settle
        self._lock = threading.Lock()
        self._by_tenant: dict[TenantId, deque[Receipt]] = {}
        self.history: Final = History(settle)

    def add(self, tenant: TenantId, receipt: Receipt) -> None:
        if receipt.outcome == "OK" and receipt.route:
            is_rollup = any(one.rollup for one in receipt.datasets)
            self.history.add(tenant, receipt.sql, receipt.total_ms, is_rollup=is_rollup)
        with self._lock:
            kept = self._by_tenant.setdefault(tenant, deque(maxlen=_KEPT))
            kept.append(receipt)

    def last(self, tenant: TenantId, count: int, user: str = "") -> tuple[Receipt, ...]:
        """The newest first; of `user` alone if it is given."""
        self._settle()
        with self._lock:
            kept = tuple(self._by_tenant.get(tenant, ()))
        wanted = (one for one in reversed(kept) if user in {"", one.user})
        return tuple(islice(wanted, max(count, 0)))

    def find(self, tenant: TenantId, query_id: str) -> Receipt | None:
        """The receipt of one query; None: it is not known, or known no more."""
        self._settle()
        with self._lock:
            kept = tuple(self._by_tenant.get(tenant, ()))
        return next((one for one in reversed(kept) if one.query_id == query_id), None)


def shortened(sql: str) -> str:
    """`sql` as it is kept in a receipt."""
    return sql if len(sql) <= _KEPT_SQL else sql[: _KEPT_SQL - 3] + "..."
