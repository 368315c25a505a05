"""What was asked, by shape: the totals that rollups are proposed from.

An answered query costs one append. Its statement is made a shape later, on a thread of its own;
where that falls behind, the oldest are lost, and the totals are a sample.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from accel_dask.model.ids import TenantId
from accel_dask.query_planner.shapes import shape_of

_MAX_PENDING: Final = 4096
_FOLD_AT: Final = 512
_MAX_SHAPES: Final = 500
"""Of one tenant; those that took the least time are forgotten."""

_shape_of = lru_cache(maxsize=2048)(shape_of)


@dataclass(slots=True)
class ShapeTotals:
    """All queries of one shape."""

    shape: str
    queries: int = 0
    total_ms: float = 0.0
    from_rollups: int = 0
    """So many of them were answered from a rollup."""


class History:
    """Safe to use from several threads."""

    def __init__(self, settle: Callable[[], None] = lambda: None) -> None:
        """`settle`: as for `Receipts`."""
        self._settle = settle
        self._pending: deque[tuple[TenantId, str, float, bool]] = deque(maxlen=_MAX_PENDING)
        self._totals: dict[TenantId, dict[str, ShapeTotals]] = {}
        self._lock = threading.Lock()
        self._is_full = threading.Event()
        self._folder: threading.Thread | None = None

    def add(self, tenant: TenantId, sql: str, total_ms: float, *, is_rollup: bool) -> None:
        """A query was answered."""
        self._pending.append((tenant, sql, total_ms, is_rollup))
        if len(self._pending) >= _FOLD_AT:
            self._is_full.set()
            if self._folder is None:
                self._start()

    def shapes(self, tenant: TenantId) -> tuple[ShapeTotals, ...]:
        """Those that took the most time first."""
        self._settle()
        self._fold()
        with self._lock:
            found = tuple(self._totals.get(tenant, {}).values())
        return tuple(sorted(found, key=lambda one: -one.total_ms))

    def _start(self) -> None:
        with self._lock:
            if self._folder is None:
                self._folder = threading.Thread(target=self._run, name="history", daemon=True)
                self._folder.start()

    def _run(self) -> None:
        while True:
            self._is_full.wait()
            self._is_full.clear()
            self._fold()

    def _fold(self) -> None:
        while True:
            try:
                tenant, sql, total_ms, is_rollup = self._pending.popleft()
            except IndexError:
                return
            shape = _shape_of(sql)
            if shape is None:
                continue
            with self._lock:
                totals = self._totals.setdefault(tenant, {})
                if shape not in totals and len(totals) >= _MAX_SHAPES:
                    del totals[min(totals, key=lambda key: totals[key].total_ms)]
                found = totals.setdefault(shape, ShapeTotals(shape))
                found.queries += 1
                found.total_ms += total_ms
                found.from_rollups += is_rollup
