"""Running one query where people wait: interruptible, with progress when it takes long."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa

from accel_dask.client.transport import Answering
from accel_dask.errors import AccelError

log = logging.getLogger(__name__)


def run_watched(
    start: Callable[[], Answering], cancel: Callable[[], None], *, progress_ms: int
) -> tuple[pa.Table, dict[str, Any]]:
    """The whole answer, and its receipt. Ctrl-C ends the query at the server, too.

    On the main thread the query runs on another one, as Flight's calls cannot be interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        return _read(_Run(start))
    run = _Run(start)
    thread = threading.Thread(target=run.run, name="accel-query", daemon=True)
    thread.start()
    try:
        if not run.done.wait(progress_ms / 1000):
            _wait_with_progress(run)
    except BaseException:
        _end(run, cancel)
        raise
    return run.result()


def _end(run: _Run, cancel: Callable[[], None]) -> None:
    """End the query: its stream, or, while it waits for its first batch, by its name."""
    run.cancel()
    try:
        cancel()
    except AccelError as error:
        log.info("the query could not be cancelled at the server: %s", error)


class _Run:
    """One query on its way."""

    def __init__(self, start: Callable[[], Answering]) -> None:
        self._start = start
        self.done = threading.Event()
        self.rows = 0
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._answer: Answering | None = None
        self._result: tuple[pa.Table, dict[str, Any]] | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self.read()
        except BaseException as error:  # noqa: BLE001 - raised again where the query was asked
            self._error = error
        finally:
            self.done.set()

    def read(self) -> tuple[pa.Table, dict[str, Any]]:
        answer = self._start()
        with self._lock:
            self._answer = answer
            if self._is_cancelled:
                answer.cancel()
        batches = []
        for batch in answer.batches():
            batches.append(batch)
            self.rows += batch.num_rows
        return pa.Table.from_batches(batches, answer.schema), answer.receipt()

    def cancel(self) -> None:
        with self._lock:
            self._is_cancelled = True
            if self._answer is not None:
                self._answer.cancel()

    def result(self) -> tuple[pa.Table, dict[str, Any]]:
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result


def _read(run: _Run) -> tuple[pa.Table, dict[str, Any]]:
    return run.read()


def _wait_with_progress(run: _Run) -> None:
    from accel_dask.client.display import Progress

    started = time.monotonic()
    with Progress() as progress:
        while not run.done.wait(0.2):
            progress.show(time.monotonic() - started, run.rows)
