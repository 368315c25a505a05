"""The engines of one gateway: opened once each, with what they said of their tables; and each
tenant's way to one, with a breaker and figures of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from accel_dask.connectors.olap.base import OlapEngine
from accel_dask.connectors.olap.registry import open_engine
from accel_dask.connectors.olap.settings import EngineSettings
from accel_dask.errors import (
    AccelError,
    DeadlineExceeded,
    EngineDisagrees,
    EngineUnavailable,
)
from accel_dask.model.ids import TenantId
from accel_dask.model.member import EngineLoad
from accel_dask.query_planner.portable.engine_types import check_columns
from flightsql_gateway.fallback.breaker import Breaker
from flightsql_gateway.fallback.engine_figures import EngineCounts, EngineFigures
from flightsql_gateway.fallback.target import Target

log = logging.getLogger(__name__)

_COLUMNS_SECONDS: Final = 60.0
_MAX_TABLES: Final = 1000
_BLAMED: Final = (EngineUnavailable, EngineDisagrees, DeadlineExceeded)
"""What speaks against the engine, rather than against a query."""

OpenEngine = Callable[[EngineSettings, str], OlapEngine]
_EngineKey = tuple[EngineSettings, str]


class Engine:
    """One engine and its connections, which tenants share."""

    def __init__(self, settings: EngineSettings, dialect: str, opened: OlapEngine) -> None:
        self.opened: Final = opened
        self.settings: Final = settings
        self.dialect: Final = dialect
        self._columns: OrderedDict[str, tuple[float, tuple[tuple[str, str], ...]]] = OrderedDict()

    def check_tables(self, target: Target) -> None:
        """Check that the engine's tables are what memory holds, as far as types tell.

        Raises:
            EngineDisagrees: they are not.
            EngineUnavailable, EngineFailed: it did not say.
        """
        for route, table, quoted in target.tables:
            now = time.monotonic()
            kept = self._columns.get(quoted)
            if kept is None or now - kept[0] > _COLUMNS_SECONDS:
                kept = (now, self.opened.columns(table.name, quoted))
                self._columns[quoted] = kept
                while len(self._columns) > _MAX_TABLES:
                    self._columns.popitem(last=False)
            for scan in target.query.scans:
                if scan.dataset != route.dataset_id:
                    continue
                try:
                    check_columns(
                        scan, kept[1], self.dialect, quoted,
                        by_arrow=self.opened.describes_by_arrow,
                    )  # fmt: skip
                except EngineDisagrees:
                    self._columns.pop(quoted, None)  # whoever mends it need not wait
                    raise


class TenantEngine:
    """One tenant's way to one engine: what its queries meet there closes it to nobody else."""

    def __init__(self, tenant: TenantId, engine: Engine) -> None:
        self.tenant: Final = tenant
        self.engine: Final = engine
        self._lock = threading.Lock()
        self._breaker = Breaker()
        self._figures = EngineFigures()

    def enter(self, seconds: float) -> float:
        """Note that a query begins; what `leave` wants.

        Raises:
            EngineUnavailable: the engine is left alone at the moment.
        """
        now = time.monotonic()
        with self._lock:
            breaker = self._breaker
            if breaker.is_open(now):
                self._figures.refused()
                raise EngineUnavailable(
                    f"{self.engine.settings} has failed {breaker.failures} times in a row for "
                    f"tenant {self.tenant} and is left alone; retry after "
                    f"{round(breaker.retry_after(now) * 1000)} ms. The last failure: "
                    f"{breaker.because}"
                )
            self._breaker = breaker.began(now, seconds)
        return self._figures.began()

    def leave(self, began: float, error: AccelError | None) -> None:
        """Note how it ended."""
        self._figures.ended(began, error)
        with self._lock:
            was = self._breaker
            if error is None:
                self._breaker = was.succeeded()
            elif isinstance(error, _BLAMED):
                self._breaker = was.failed(time.monotonic(), str(error)[:300])
            else:
                self._breaker = was.gave_no_sign()
            now = self._breaker
        if now.rest_until is not None and now.rest_until != was.rest_until:
            log.warning(
                "%s is left alone for %.1f s for tenant %s: %s",
                self.engine.settings, now.rest_seconds, self.tenant, error,
            )  # fmt: skip

    def counts(self) -> EngineCounts:
        return self._figures.counts()

    @property
    def name(self) -> str:
        """Of the engine, for people."""
        return f"{self.engine.settings}, {self.engine.dialect}"

    @property
    def state(self) -> str:
        """Of its breaker."""
        return self._breaker.state(time.monotonic())

    def load(self) -> EngineLoad:
        """For operators."""
        counts, breaker = self.counts(), self._breaker
        return EngineLoad(
            tenant=self.tenant,
            engine=self.name,
            queries=counts.queries,
            failed=counts.failed,
            refused=counts.refused,
            running=counts.running,
            breaker=breaker.state(time.monotonic()),
            because=breaker.because,
            p50_ms=counts.p50_ms,
            p99_ms=counts.p99_ms,
        )


class Engines:
    """Safe to use from several threads."""

    def __init__(self, open_: OpenEngine = open_engine) -> None:
        self._open = open_
        self._lock = threading.Lock()
        self._engines: dict[_EngineKey, Engine] = {}
        self._ways: dict[tuple[TenantId, _EngineKey], TenantEngine] = {}

    def engine(self, target: Target) -> TenantEngine:
        """The tenant's way to the target's engine.

        Raises:
            ConfigError: its package is not installed.
        """
        key = (target.settings, target.dialect)
        with self._lock:
            way = self._ways.get((target.tenant, key))
            if way is None:
                engine = self._engines.get(key)
                if engine is None:
                    engine = self._engines[key] = Engine(*key, self._open(*key))
                way = self._ways[(target.tenant, key)] = TenantEngine(target.tenant, engine)
            return way

    def ways(self) -> tuple[TenantEngine, ...]:
        """Those that were ever asked for."""
        with self._lock:
            return tuple(self._ways.values())

    def close(self) -> None:
        with self._lock:
            engines, self._engines = list(self._engines.values()), {}
            self._ways = {}
        for engine in engines:
            engine.opened.close()
