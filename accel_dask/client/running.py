"""Running one query where people wait: interruptible, with progress when it takes long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

import pyarrow as pa

from accel_dask.client.transport import Answering
from accel_dask.errors import AccelError

log = logging.getLogger(__name__)

T = TypeVar("T")


class Watched:
    """One query on its way. Ctrl-C ends it at the server, too.

    On the main thread its calls are made on another one, as Flight's cannot be interrupted.
    """

    def __init__(
        self, start: Callable[[], Answering], cancel: Callable[[], None], *, progress_ms: int
    ) -> None:
        """`cancel` ends the query by its name: it may be waiting for its first batch."""
        self._start = start
        self._cancel = cancel
        self._patience_seconds = progress_ms / 1000
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._answer: Answering | None = None
        self._rows = 0

    def whole(self) -> tuple[pa.Table, dict[str, Any]]:
        """The whole answer, and its receipt."""
        return self._watch(self._read)

    def batches(self) -> Generator[pa.RecordBatch]:
        """The answer while it arrives."""
        answer = self._watch(self._open)
        batches = answer.batches()
        try:
            while (batch := self._watch(lambda: next(batches, None))) is not None:
                self._rows += batch.num_rows
                yield batch
        except BaseException:
            self._end()
            raise

    def receipt(self) -> dict[str, Any]:
        """Of an answer that was read to its end."""
        assert self._answer is not None
        return self._answer.receipt()

    def _open(self) -> Answering:
        answer = self._start()
        with self._lock:
            self._answer = answer
            if self._is_cancelled:
                answer.cancel()
        return answer

    def _read(self) -> tuple[pa.Table, dict[str, Any]]:
        answer = self._open()
        batches = []
        for batch in answer.batches():
            batches.append(batch)
            self._rows += batch.num_rows
        return pa.Table.from_batches(batches, answer.schema), answer.receipt()

    def _watch(self, work: Callable[[], T]) -> T:
        if threading.current_thread() is not threading.main_thread():
            return work()
        call = _Call(work)
        threading.Thread(target=call.run, name="accel-query", daemon=True).start()
        try:
            if not call.done.wait(self._patience_seconds):
                self._wait_with_progress(call.done)
        except BaseException:
            self._end()
            raise
        return call.result()

    def _wait_with_progress(self, done: threading.Event) -> None:
        from accel_dask.client.display import Progress

        started = time.monotonic() - self._patience_seconds
        with Progress() as progress:
            while True:
                progress.show(time.monotonic() - started, self._rows)
                if done.wait(0.2):
                    return

    def _end(self) -> None:
        """End its stream or, while it waits for its first batch, itself by its name."""
        with self._lock:
            self._is_cancelled = True
            if self._answer is not None:
                self._answer.cancel()
        try:
            self._cancel()
        except AccelError as error:
            log.info("the query could not be cancelled at the server: %s", error)


class _Call(Generic[T]):
    """A call on another thread."""

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self.done = threading.Event()
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result.append(self._work())
        except BaseException as error:  # noqa: BLE001 - raised again where it was asked
            self._error = error
        finally:
            self.done.set()

    def result(self) -> T:
        if self._error is not None:
            raise self._error
        return self._result[0]
