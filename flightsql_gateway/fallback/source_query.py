"""One query at an engine, for all who ask the same at the same time.

A thread of its own pulls the answer; whoever asks reads it from the start, at a pace of their own.
The rows are held until the last reader has gone, within the fallback's limits.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import pyarrow as pa

from accel_dask.connectors.olap.base import EngineStream
from accel_dask.errors import AccelError, DeadlineExceeded, EngineFailed, QueryCancelled

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.25
_GRACE_SECONDS: Final = 2.0


class SourceQuery:
    """Safe to use from several threads."""

    def __init__(
        self,
        start: Callable[[], EngineStream],
        on_end: Callable[[AccelError | None], None],
        ends_at: float,
    ) -> None:
        """`on_end` is told once how it ended, before any reader is. A driver that does not end
        by `ends_at` (monotonic seconds) is waited for no more."""
        self._ends_at = ends_at
        self._start = start
        self._on_end = on_end
        self._changed = threading.Condition()
        self._batches: list[pa.RecordBatch] = []
        self._error: AccelError | None = None
        self._is_done = self._is_given_up = self._is_ended = False
        self._readers = 0
        self._stream: EngineStream | None = None
        self._thread = threading.Thread(target=self._run, name="source-query", daemon=True)

    def begin(self) -> None:
        self._thread.start()

    def join(self) -> SharedReader | None:
        """A reader of the whole answer; None: it is over, ask anew."""
        with self._changed:
            if self._is_done or self._is_given_up:
                return None
            self._readers += 1
            return SharedReader(self)

    def check_wanted(self) -> None:
        """
        Raises:
            QueryCancelled: everyone who asked has gone.
        """
        if self._is_given_up:
            raise QueryCancelled("nobody waits for the answer any more")

    def _run(self) -> None:
        error: AccelError | None = None
        try:
            self._pull()
        except AccelError as failure:
            error = failure
        except Exception as failure:  # a driver's bug must reach the reader, not a dead thread
            log.exception("a query at an engine failed unexpectedly")
            error = EngineFailed(f"the engine's driver failed: {type(failure).__name__}")
            error.__cause__ = failure
        finally:
            with contextlib.suppress(AccelError):
                if self._stream is not None:
                    self._stream.close()
            self._end(error)

    def _end(self, error: AccelError | None) -> None:
        """Note how it ended, the first time."""
        with self._changed:
            if self._is_ended:
                return
            self._is_ended = True
        try:
            self._on_end(error)
        finally:
            with self._changed:
                self._error = error
                self._is_done = True
                self._changed.notify_all()

    def _check_alive(self) -> None:
        if time.monotonic() > self._ends_at + _GRACE_SECONDS:
            self._end(DeadlineExceeded("the engine gave no sign of life within the deadline"))

    def _pull(self) -> None:
        self.check_wanted()
        stream = self._start()
        with self._changed:
            self._stream = stream
        self.check_wanted()
        while (batch := stream.read()) is not None:
            with self._changed:
                self._batches.append(batch)
                self._changed.notify_all()

    def _read(self, reader: SharedReader, index: int) -> pa.RecordBatch | None:
        """The batch of that number; None: there are no more, and the answer is whole."""
        while not self._wait(reader, index):
            self._check_alive()
        with self._changed:
            if reader.is_cancelled:
                raise QueryCancelled("the query was given up")
            if index < len(self._batches):
                return self._batches[index]
            if self._error is not None:
                raise type(self._error)(str(self._error)) from self._error
            return None

    def _wait(self, reader: SharedReader, index: int) -> bool:
        with self._changed:
            return self._changed.wait_for(
                lambda: index < len(self._batches) or self._is_done or reader.is_cancelled,
                _LOOK_SECONDS,
            )

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _leave(self) -> None:
        """A reader has gone; with the last one goes the query."""
        with self._changed:
            self._readers -= 1
            if self._readers or self._is_done:
                return
            self._is_given_up = True
        # Telling the engine may take a while, and the caller watches others too.
        threading.Thread(target=self._give_up, name="source-cancel", daemon=True).start()

    def _give_up(self) -> None:
        stream = self._stream
        if stream is not None:
            stream.cancel()
        if self._thread.is_alive():
            self._thread.join(_GRACE_SECONDS)
        self._end(QueryCancelled("nobody waits for the answer any more"))


class SharedReader:
    """One reader's place in a shared answer."""

    def __init__(self, query: SourceQuery) -> None:
        self._query: Final = query
        self._next = 0
        self.is_cancelled = False
        self._lock = threading.Lock()
        self._is_closed = False

    def read(self) -> pa.RecordBatch | None:
        """The next batch; None: that was all.

        Raises:
            AccelError: the answer will not be whole, or this reader was cancelled.
        """
        batch = self._query._read(self, self._next)  # noqa: SLF001 - two halves of one thing
        self._next += 1
        return batch

    def cancel(self) -> None:
        """From another thread: a blocked `read` fails."""
        self.is_cancelled = True
        self._query._wake()  # noqa: SLF001
        self.close()

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        self._query._leave()  # noqa: SLF001
