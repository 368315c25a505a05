"""Keeps threads that answer queries off each other's cores.

On a virtual machine of few cores Linux often wakes a thread on the core of whoever woke it, beside
one that is idle, and balances the two only at some later tick: the worker queues behind the thread
that waits for it, and a query that takes 8 ms takes 14 (measured on two cores, one query in eight).
So while a query is the only one, and for a moment only, the thread that drives it stays where it
is and the workers are kept away from there. Of several queries each thread that drives one has a
core of its own, as long as there are cores: the kernel leaves two on one core for a tick or more
while another core runs nothing but somebody who gives way.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LONGEST_SECONDS: Final = 0.03
"""Longer queries are for the kernel to balance, also against others on the host."""
_MAX_CORES: Final = 4
"""Where there are more, one more query is no such loss, and a pinned thread is."""


class Cores:
    """Which cores the threads of an engine may use. Safe to use from several threads."""

    def __init__(self, workers: frozenset[int]) -> None:
        """`workers`: the kernel's numbers of the engine's own threads; none: nothing is done."""
        self._workers: Final = workers
        self._all: Final = frozenset(os.sched_getaffinity(0))
        self._core_of_this_thread = getattr(ctypes.PyDLL(None), "sched_getcpu", None)
        self.is_used: Final = (
            bool(workers)
            and 1 < len(self._all) <= _MAX_CORES
            and self._core_of_this_thread is not None
        )
        self._lock = threading.Lock()
        self._driving = 0
        self._bound: dict[int, tuple[int, float]] = {}
        """The core of each thread that stays on one, and since when."""
        self._left_out = -1
        """The core that the workers are kept from."""

    def balance(self) -> None:
        """Called now and then: leave threads that have been bound for long to the kernel."""
        if not self._bound:
            return
        with self._lock:
            until = time.monotonic() - LONGEST_SECONDS
            for thread in [one for one, (_, since) in self._bound.items() if since < until]:
                self._free(thread)
                self._keep_from(-1)

    def begin(self) -> None:
        """The calling thread works for a query from now on, until it calls `end`. It starts no
        threads meanwhile: they would stay on its core."""
        if not self.is_used:
            return
        with self._lock:
            self._driving += 1
            if self._driving == 1:
                core = self._core_now()
                self._keep_from(core)
            else:
                self._keep_from(-1)
                taken = {core for core, _ in self._bound.values()}
                core = min(self._all - taken, default=-1)
            if core >= 0:
                self._bound[threading.get_native_id()] = (core, time.monotonic())
                _allow(0, {core})

    def end(self) -> None:
        if not self.is_used:
            return
        with self._lock:
            self._driving -= 1
            self._free(threading.get_native_id())

    def _core_now(self) -> int:
        """Of the calling thread; -1: none of ours."""
        assert self._core_of_this_thread is not None
        core = int(self._core_of_this_thread())
        return core if core in self._all else -1

    def _free(self, thread: int) -> None:
        if self._bound.pop(thread, None) is not None:
            _allow(thread, self._all)

    def _keep_from(self, core: int) -> None:
        if core == self._left_out:
            return
        self._left_out = core
        for worker in self._workers:
            _allow(worker, self._all - {core})


def _allow(thread: int, cores: frozenset[int] | set[int]) -> None:
    with contextlib.suppress(OSError):  # it has ended, or may no longer use them
        os.sched_setaffinity(thread, cores)


@contextmanager
def new_threads() -> Iterator[set[int]]:
    """The threads that this process has started within; known at the end."""
    before = _threads()
    found: set[int] = set()
    yield found
    found |= _threads() - before


def _threads() -> set[int]:
    return {int(task.name) for task in Path("/proc/self/task").iterdir()}
