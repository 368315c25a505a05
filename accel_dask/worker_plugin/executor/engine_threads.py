"""The threads that the engine's work runs on: as many as a tenant may have queries at once, and
as many again for parts of queries that its other executors answer.

They are few and have large stacks, for deep plans. Flight's own threads and those of connections
are many, come and go, and must be small: address space is bounded.

A thread that nobody needs may be lent to a connection, which then is answered there without a
word between threads, and stays with it, free for others all the while.
"""

from __future__ import annotations

import logging
import os
import select
import socket
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


_Done = SimpleQueue[BaseException | None]


class EngineThread:
    """Does one thing at a time, for one query at a time."""

    def __init__(self, name: str) -> None:
        self.loan: Loan | None = None
        self.is_lingering = False
        """Free, and waiting on somebody's connection meanwhile."""
        self._later: list[Callable[[], None]] = []
        self._work: SimpleQueue[tuple[Callable[[], None], _Done] | None] = SimpleQueue()
        self._disturbed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        assert self._thread.ident is not None
        self.ident: Final = self._thread.ident
        self.cpu_clock: Final = time.pthread_getcpuclockid(self._thread.ident)

    def call(self, work: Callable[[], None]) -> None:
        """Run `work` there; returns, or raises what it raised, when it has ended."""
        if threading.get_ident() == self.ident:
            failure = _attempted(work)
        else:
            done: _Done = SimpleQueue()
            self._work.put((work, done))
            failure = done.get()
        if failure is not None:
            raise failure

    def later(self, work: Callable[[], None]) -> None:
        """On this thread: have `work` done there when the answer that is being made is sent, and
        before anything else is begun. It must not raise."""
        self._later.append(work)

    def do_later(self) -> None:
        """On this thread: do now what was to be done later."""
        while self._later:
            self._later.pop()()

    def wait_for(self, connection: socket.socket) -> None:
        """On this thread: until `connection` has something to read, or `disturb`."""
        waited = select.poll()
        waited.register(connection, select.POLLIN)
        waited.register(self._disturbed, select.POLLIN)
        waited.poll()

    def disturb(self) -> None:
        """Have `wait_for` return, the present one or the next."""
        os.eventfd_write(self._disturbed, 1)

    def was_disturbed(self) -> None:
        """The next `wait_for` waits again."""
        os.eventfd_read(self._disturbed)

    def end(self) -> None:
        self._work.put(None)
        self._thread.join()
        os.close(self._disturbed)

    def _run(self) -> None:
        while (ordered := self._work.get()) is not None:
            work, done = ordered
            failure = _attempted(work)
            del (
                ordered,
                work,
            )  # nothing of the query is kept, or freed on a thread with a small stack
            done.put(failure)
            del failure
            self.do_later()


class Loan:
    """A thread set aside for the first query that asks for one on this very thread."""

    def __init__(self, thread: EngineThread) -> None:
        self.thread: Final = thread


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
        self._by_ident = {thread.ident: thread for thread in self._all}
        self._lock = threading.Lock()
        self._free = list(self._all)
        """Taken from the end; those that linger are at the beginning."""
        self._line: deque[_Place] = deque()
        self._is_closed = False

    def acquire(self, query: Waiting) -> EngineThread:
        """A thread for `query` alone: the one it is on, if that was lent; else whoever came first
        gets one first.

        Raises:
            ResourceExhausted: none became free in the query's time, or too many wait.
            AccelError: the query was stopped meanwhile.
        """
        here = self._by_ident.get(threading.get_ident())
        if here is not None and here.loan is not None:
            here.loan = None
            return here
        with self._lock:
            if self._free:
                return self._taken()
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
        with self._lock:
            self._is_closed = True
            for thread in self._free:
                if thread.is_lingering:
                    thread.disturb()
        for thread in self._all:
            thread.end()

    # Threads that stay with a connection

    def lend(self) -> Loan | None:
        """A thread that is free now, for what is called on it next. None: all are at work."""
        with self._lock:
            if not self._free or self._is_closed:
                return None
            return _lent(self._taken())

    def unlend(self, loan: Loan) -> None:
        """Free the thread, if no query has asked for it."""
        if loan.thread.loan is loan:
            loan.thread.loan = None
            self.release(loan.thread)

    def linger(self, thread: EngineThread, connection: socket.socket) -> Loan | None:
        """On `thread`, whose query is over: wait for `connection`. None: the thread is wanted
        elsewhere, else there is something to read."""
        with self._lock:
            if self._is_closed or thread not in self._free:
                return None
            self._free.remove(thread)
            self._free.insert(0, thread)
            thread.is_lingering = True
        thread.wait_for(connection)
        with self._lock:
            if thread.is_lingering and not self._is_closed:
                thread.is_lingering = False
                self._free.remove(thread)
                return _lent(thread)
            thread.is_lingering = False
        thread.was_disturbed()
        return None

    def _taken(self) -> EngineThread:
        """A free one. The lock is held."""
        thread = self._free.pop()
        if thread.is_lingering:
            thread.is_lingering = False
            thread.disturb()
        return thread

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


def _lent(thread: EngineThread) -> Loan:
    thread.loan = Loan(thread)
    return thread.loan


def _attempted(work: Callable[[], None]) -> BaseException | None:
    """What `work` failed with."""
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - raised again where it is waited for
        return _without_frames(error)
    return None


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
