"""An engine's answer under its limits; what every kind of engine wraps its batches in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

import pyarrow as pa

from accel_dask.connectors.olap.base import RunLimits
from accel_dask.errors import (
    AccelError,
    DeadlineExceeded,
    EngineDisagrees,
    QueryCancelled,
    RowLimit,
)


class LimitedStream:
    """Counts rows and bytes, knows the deadline, and gives the connection back once."""

    def __init__(
        self,
        batches: Iterator[pa.RecordBatch],
        limits: RunLimits,
        *,
        engine: str,
        translate: Callable[[BaseException], AccelError],
        cancel: Callable[[], None],
        release: Callable[[bool], None],
    ) -> None:
        """`release` is told whether the connection may be used again."""
        self._batches = batches
        self._limits: Final = limits
        self._engine = engine
        self._translate = translate
        self._cancel = cancel
        self._release: Callable[[bool], None] | None = release
        self._lock = threading.Lock()
        self._ends_at = time.monotonic() + limits.seconds
        self._rows = self._bytes = 0
        self._is_cancelled = self._is_whole = False

    def read(self) -> pa.RecordBatch | None:
        if self._is_whole:
            return None
        try:
            batch = next(self._batches, None)
        except AccelError:
            raise
        except Exception as error:
            raise self._error(error) from error
        self._check_time()
        if batch is None:
            self._is_whole = True
            return None
        self._count(batch)
        return batch

    def _error(self, error: BaseException) -> AccelError:
        if self._is_cancelled:
            return QueryCancelled(f"the query at {self._engine} was cancelled")
        if time.monotonic() >= self._ends_at - 0.05:
            return self._late()
        return self._translate(error)

    def _late(self) -> DeadlineExceeded:
        return DeadlineExceeded(
            f"{self._engine} did not answer within {self._limits.seconds:.1f} s, the limit of the "
            "tenant's fallback_deadline_ms or what was left of the query's own"
        )

    def _check_time(self) -> None:
        if self._is_cancelled:
            raise QueryCancelled(f"the query at {self._engine} was cancelled")
        if time.monotonic() >= self._ends_at:
            raise self._late()

    def _count(self, batch: pa.RecordBatch) -> None:
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        limits = self._limits
        if limits.promised_rows is not None and self._rows > limits.promised_rows:
            raise EngineDisagrees(
                f"{self._engine} sent {self._rows:,} rows of an answer that has at most "
                f"{limits.promised_rows:,}"
            )
        if self._rows > limits.max_rows:
            raise RowLimit(
                f"the answer of {self._engine} has more than {limits.max_rows:,} rows, the "
                "limit of its fallback (fallback_max_rows, or the client's own max_result_rows); "
                "aggregate, filter or add a LIMIT"
            )
        if self._bytes > limits.max_bytes:
            raise RowLimit(
                f"the answer of {self._engine} has more than {limits.max_bytes:,} bytes, the "
                "limit of its fallback (fallback_max_bytes, or the client's own max_result_bytes); "
                "ask for fewer columns or rows"
            )

    def cancel(self) -> None:
        self._is_cancelled = True
        if not self._is_whole:
            self._cancel()

    def close(self) -> None:
        with self._lock:
            release, self._release = self._release, None
        if release is None:
            return
        if not self._is_whole and not self._is_cancelled:
            self._cancel()
        release(self._is_whole)
