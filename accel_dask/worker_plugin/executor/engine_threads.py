"""The threads that the engine's work runs on: as many as a tenant may have queries at once, and
as many again for parts of queries that its other executors answer.

They are few and have large stacks, for deep plans. Flight's own threads are many, come and go,
and must be small: address space is bounded.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, Protocol

from accel_dask.errors import AccelError, ResourceExhausted

log = logging.getLogger(__name__)

_CLIENT_POLL_SECONDS = 0.02
_RETRY_AFTER_MS = 100


class Waiting(Protocol):
    """A query that wants a thread."""

    deadline: float

    def check_stopped(self) -> None:
        """Raise what it was stopped for, if it was."""


class EngineThread:
    """Does one thing at a time, for one query at a time."""

    def __init__(self, name: str) -> None:
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        assert self._thread.ident is not None
        self.cpu_clock: Final = time.pthread_getcpuclockid(self._thread.ident)

    def call(self, work: Callable[[], None]) -> None:
        """Run `work` there; returns, or raises what it raised, when it has ended."""
        self._work.put(work)
        error = self._done.get()
        if error is not None:
            raise error

    def end(self) -> None:
        self._work.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            failure: BaseException | None = None
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
                failure = _without_frames(error)
            del work  # nothing of the query is kept, or freed on a thread with a small stack
            self._done.put(failure)
            del failure


class _Place:
    """One query's place in the line."""

    def __init__(self) -> None:
        self.thread: EngineThread | None = None
        self.is_called = threading.Event()


class EngineThreads:
    """Hands out threads. Queries beyond their number wait in line, until their time is over."""

    def __init__(self, tenant: str, what: str, count: int, queue_length: int | None) -> None:
        """`what`: the plural of what runs on them, for people. `queue_length`: None: no limit but
        the deadlines of those that wait."""
        self._tenant = tenant
        self._what = what
        self._queue_length = queue_length
        self._all = tuple(EngineThread(f"{what}-{i}") for i in range(count))
        self._lock = threading.Lock()
        self._free = list(self._all)
        self._line: deque[_Place] = deque()

    def acquire(self, query: Waiting) -> EngineThread:
        """A thread for `query` alone; whoever came first gets one first.

        Raises:
            ResourceExhausted: none became free in the query's time, or too many wait.
            AccelError: the query was stopped meanwhile.
        """
        with self._lock:
            if self._free:
                return self._free.pop()
            if self._queue_length is not None and len(self._line) >= self._queue_length:
                raise self._too_many(f"and {len(self._line)} wait")
            place = _Place()
            self._line.append(place)
        return self._wait(query, place)

    def release(self, thread: EngineThread) -> None:
        with self._lock:
            if self._line:
                place = self._line.popleft()
                place.thread = thread
                place.is_called.set()
            else:
                self._free.append(thread)

    @property
    def free_count(self) -> int:
        return len(self._free)

    def close(self) -> None:
        for thread in self._all:
            thread.end()

    def _wait(self, query: Waiting, place: _Place) -> EngineThread:
        try:
            while not place.is_called.wait(_CLIENT_POLL_SECONDS):
                if time.monotonic() >= query.deadline:
                    raise self._too_many("and none ended in this query's time")
                query.check_stopped()
        except BaseException:
            self._leave(place)
            raise
        assert place.thread is not None
        return place.thread

    def _leave(self, place: _Place) -> None:
        with self._lock:
            if place.thread is None:
                self._line.remove(place)
                return
        self.release(place.thread)  # it was called in the very moment

    def _too_many(self, because: str) -> ResourceExhausted:
        return ResourceExhausted(
            f"{len(self._all)} {self._what} of tenant {self._tenant} run here, its limit, "
            f"{because}; retry after {_RETRY_AFTER_MS} ms"
        )


def _without_frames(error: BaseException) -> BaseException:
    """`error` without its tracebacks: their frames hold plans, which are freed with them."""
    if not isinstance(error, AccelError):
        log.error("the engine's work failed unexpectedly", exc_info=error)
    pending: list[BaseException | None] = [error]
    seen: set[int] = set()
    while pending:
        found = pending.pop()
        if found is not None and id(found) not in seen:
            seen.add(id(found))
            found.__traceback__ = None
            pending += [found.__cause__, found.__context__]
    return error
