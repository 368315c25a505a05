"""Which processes of a cluster waited for a core, and for how long, by the kernel's own account.

A latency says that somebody waited; this says who. Other work on the machine makes everybody
wait, but only what is run by the wrong weights waits beside an attack and not alone.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from accel_dask.worker_plugin.enforcement.kernel_files import PROC, idle_seconds

_SAMPLE_SECONDS: Final = 0.2
"""Between two looks: threads that end in between are lost with what they did."""
_CLIENTS: Final = "clients"
_ROLES: Final = (
    ("accel_dask.drill.loads", _CLIENTS),
    ("flightsql_gateway", "gateway"),
    ("scheduler_plugin.preload", "scheduler"),
    ("preload_nanny", "host agent"),
    ("multiprocessing", "Dask worker"),
    ("worker_plugin.loader", "loader"),
    ("etcd", "etcd"),
)


@dataclass(frozen=True, slots=True)
class CpuWait:
    """Seconds on a core, and seconds ready to run without one; all threads together."""

    cpu: float = 0.0
    waited: float = 0.0

    def __add__(self, other: CpuWait) -> CpuWait:
        return CpuWait(self.cpu + other.cpu, self.waited + other.waited)


@dataclass(frozen=True, slots=True)
class Waits:
    """Over some time, by role of the processes."""

    seconds: float
    by_role: Mapping[str, CpuWait]
    others_cores: float
    """Cores that everything else on the machine has used: figures mean little if it is much."""

    def text(self, limit: int = 4) -> str:
        """Those who waited longest, for people."""
        longest = sorted(self.by_role.items(), key=lambda item: -item[1].waited)[:limit]
        told = (
            f"{role} {1000 * wait.waited / self.seconds:.0f} ms/s ({wait.cpu / self.seconds:.2f} "
            "cores)"
            for role, wait in longest
        )
        return f"waited for a core: {', '.join(told)}; other work {self.others_cores:.2f} cores"


def parse_schedstat(text: str) -> CpuWait:
    """Of `/proc/<pid>/task/<tid>/schedstat`."""
    cpu_ns, waited_ns = text.split()[:2]
    return CpuWait(int(cpu_ns) / 1e9, int(waited_ns) / 1e9)


def role_of(command: str) -> str | None:
    """What a process of a cluster is there for, by its command line; None: something else."""
    return next((role for mark, role in _ROLES if mark in command), None)


class RunDelay:
    """Looks at the processes below some others from its start to its end; a context manager."""

    def __init__(
        self, roots: Callable[[], tuple[int, ...]], named: Callable[[], Mapping[int, str]]
    ) -> None:
        """`roots`: processes whose descendants to look at. `named`: roles of those that cannot be
        told by their command line, such as executors."""
        self._roots = roots
        self._named = named
        self._before: dict[tuple[int, int], CpuWait] = {}
        self._sums: dict[str, CpuWait] = {}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="run-delay", daemon=True)
        self._started = self._idle = 0.0
        self._seconds = self._busy = 0.0

    def __enter__(self) -> Self:
        self._look(counts=False)
        self._started, self._idle = _uptime(), idle_seconds()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self._look()
        self._seconds = max(_uptime() - self._started, 1e-3)
        idle = idle_seconds() - self._idle
        self._busy = (os.cpu_count() or 1) * self._seconds - idle

    def waits(self) -> Waits:
        """After the end."""
        ours = sum(wait.cpu for wait in self._sums.values())
        by_role = {role: wait for role, wait in self._sums.items() if role != _CLIENTS}
        return Waits(self._seconds, by_role, max(0.0, self._busy - ours) / self._seconds)

    def _run(self) -> None:
        while not self._done.wait(_SAMPLE_SECONDS):
            self._look()

    def _look(self, *, counts: bool = True) -> None:
        named = self._named()
        for pid in descendants(self._roots()):
            role = named.get(pid) or role_of(_command(pid))
            if role is None:
                continue
            for thread, now in _threads(pid).items():
                before = self._before.get((pid, thread), CpuWait())
                self._before[pid, thread] = now
                if counts:
                    more = CpuWait(now.cpu - before.cpu, now.waited - before.waited)
                    self._sums[role] = self._sums.get(role, CpuWait()) + more


def descendants(roots: tuple[int, ...], proc: Path = PROC) -> set[int]:
    """The processes of `roots` and all below them."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            children.setdefault(_parent(entry), []).append(int(entry.name))
    found, left = set[int](), list(roots)
    while left:
        pid = left.pop()
        if pid not in found:
            found.add(pid)
            left += children.get(pid, [])
    return found


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has just ended
        return 0


def _command(pid: int) -> str:
    try:
        return (PROC / str(pid) / "cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def _threads(pid: int) -> dict[int, CpuWait]:
    found = {}
    try:
        for task in (PROC / str(pid) / "task").iterdir():
            try:
                found[int(task.name)] = parse_schedstat((task / "schedstat").read_text())
            except (OSError, ValueError):  # it has just ended, or the kernel does not tell
                continue
    except OSError:
        pass
    return found


def _uptime() -> float:
    return float((PROC / "uptime").read_text().split()[0])
