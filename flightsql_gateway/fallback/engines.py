"""The engines of one gateway: opened once each, with their breakers, and what they said of their
tables."""

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
from accel_dask.query_planner.portable.engine_types import check_columns
from flightsql_gateway.fallback.breaker import Breaker
from flightsql_gateway.fallback.target import Target

log = logging.getLogger(__name__)

_COLUMNS_SECONDS: Final = 60.0
_MAX_TABLES: Final = 1000
_BLAMED: Final = (EngineUnavailable, EngineDisagrees, DeadlineExceeded)
"""What speaks against the engine, rather than against a query."""

OpenEngine = Callable[[EngineSettings, str], OlapEngine]


class Engine:
    """One engine, guarded."""

    def __init__(self, settings: EngineSettings, dialect: str, opened: OlapEngine) -> None:
        self.opened: Final = opened
        self._settings = settings
        self._dialect = dialect
        self._lock = threading.Lock()
        self._breaker = Breaker()
        self._columns: OrderedDict[str, tuple[float, tuple[tuple[str, str], ...]]] = OrderedDict()

    def enter(self, seconds: float) -> None:
        """Note that a query begins.

        Raises:
            EngineUnavailable: the engine is left alone at the moment.
        """
        now = time.monotonic()
        with self._lock:
            breaker = self._breaker
            if breaker.is_open(now):
                raise EngineUnavailable(
                    f"{self._settings} has failed {breaker.failures} times in a row and is left "
                    f"alone; retry after {round(breaker.retry_after(now) * 1000)} ms. The last "
                    f"failure: {breaker.because}"
                )
            self._breaker = breaker.began(now, seconds)

    def leave(self, error: AccelError | None) -> None:
        """Note how it ended."""
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
            log.warning("%s is left alone for %.1f s: %s", self._settings, now.rest_seconds, error)

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
                        scan, kept[1], self._dialect, quoted,
                        by_arrow=self.opened.describes_by_arrow,
                    )  # fmt: skip
                except EngineDisagrees:
                    self._columns.pop(quoted, None)  # whoever mends it need not wait
                    raise


class Engines:
    """Safe to use from several threads."""

    def __init__(self, open_: OpenEngine = open_engine) -> None:
        self._open = open_
        self._lock = threading.Lock()
        self._engines: dict[tuple[EngineSettings, str], Engine] = {}

    def engine(self, target: Target) -> Engine:
        """
        Raises:
            ConfigError: its package is not installed.
        """
        key = (target.settings, target.dialect)
        with self._lock:
            found = self._engines.get(key)
            if found is None:
                found = Engine(*key, self._open(*key))
                self._engines[key] = found
            return found

    def close(self) -> None:
        with self._lock:
            engines, self._engines = list(self._engines.values()), {}
        for engine in engines:
            engine.opened.close()
