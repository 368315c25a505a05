"""Processes that are stopped, with SIGSTOP, for as long as a test wants."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

STOPS_WITHIN_SECONDS = 20.0


def freeze(pid: int) -> None:
    """Stop a process, and return when each of its threads has stopped.

    kill(2) comes back before they have: a thread that runs, or is woken meanwhile, stops on its
    way back from the kernel, and until then may still answer what it is asked.
    """
    os.kill(pid, signal.SIGSTOP)
    deadline = time.monotonic() + STOPS_WITHIN_SECONDS
    while any(state not in "TtZX" for state in _states(pid)):
        assert time.monotonic() < deadline, f"process {pid} does not stop: {_states(pid)}"
        time.sleep(0.001)


def thaw(pid: int) -> None:
    """Let a process go on; one that ended meanwhile is left alone."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


@contextmanager
def frozen(*roots: int) -> Iterator[None]:
    """These processes and those that they have begun stand still in the body."""
    pids: list[int] = []
    try:
        for root in roots:
            freeze(root)  # first: what stands still begins no others
            pids.append(root)
            for child in psutil.Process(root).children(recursive=True):
                with suppress(ProcessLookupError):  # it has ended
                    freeze(child.pid)
                    pids.append(child.pid)
        yield
    finally:
        for pid in pids:
            thaw(pid)


def _states(pid: int) -> list[str]:
    """The state of each thread, as the letter that proc(5) tells."""
    found = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # that thread has ended
            found.append(stat.read_text().rpartition(")")[2].split()[0])
    return found
