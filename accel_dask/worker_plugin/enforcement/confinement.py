"""The bounds of one process: its control group, or what stands in for one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Final

from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import MIB
from accel_dask.worker_plugin.enforcement.cgroups import Tree
from accel_dask.worker_plugin.enforcement.kernel_files import cpu_seconds, private_bytes

log = logging.getLogger(__name__)

_MAX_THREADS: Final = 4096
"""Of one process; Flight starts more than a hundred under load."""


class Role(StrEnum):
    """What a process does for its tenant."""

    HOT = "hot"
    COLD = "cold"
    LOAD = "load"

    @property
    def weight(self) -> int:
        """CPU weight among the processes of one tenant."""
        return {Role.HOT: 100, Role.COLD: 25, Role.LOAD: 10}[self]


class Confinement:
    """Made by `Enforcer.confine`, before the process starts; closed after it has ended."""

    def __init__(
        self,
        tree: Tree | None,
        tenant: TenantId,
        role: Role,
        name: str,
        limit_bytes: int,
        *,
        among: str = "",
    ) -> None:
        """`among`: the group that its own is made in; empty: the tenant's."""
        self.tenant: Final = tenant
        self.role: Final = role
        self.among: Final = among or tenant
        self.path: Final = f"{among}/{tenant}-{name}" if among else f"{tenant}/{role}-{name}"
        self.limit_bytes = limit_bytes
        self.join_files: tuple[str, ...] = ()
        """The process is to write `0` to each of them before it does anything else."""
        self.pid = 0
        self.is_closed = False
        self._tree = tree
        self._lock = threading.Lock()
        self._kill: Callable[[str], None] | None = None
        self._cpu_seconds = 0.0
        if tree is not None:
            try:
                self._make(tree)
            except OSError:
                tree.remove(self.path)
                raise

    def _make(self, tree: Tree) -> None:
        tree.make(self.path)
        tree.set_cpu_weight(self.path, self.role.weight)
        if tree.powers.pids:
            tree.set_pids_limit(self.path, _MAX_THREADS)
        tree.set_memory_limit(self.path, self.limit_bytes)
        self.join_files = tree.join_files(self.path)

    @property
    def bounds_memory(self) -> bool:
        """Whether the kernel bounds its memory; else it must be watched."""
        return self._tree is not None

    def watch(self, pid: int, kill: Callable[[str], None]) -> None:
        """The process runs as `pid`; `kill` ends it, for the reason given."""
        self._cpu_seconds = cpu_seconds(pid) or 0.0
        self._kill = kill
        self.pid = pid

    def used_cpu_seconds(self) -> float:
        """CPU since the last call."""
        if self.is_closed:
            return 0.0
        before, self._cpu_seconds = self._cpu_seconds, self._total_cpu_seconds()
        return max(0.0, self._cpu_seconds - before)

    def _total_cpu_seconds(self) -> float:
        pids: Iterable[int] = (self.pid,) if self.pid else ()
        if not self.pid and self._tree is not None:  # nobody told: a loader's parent is elsewhere
            pids = self._tree.processes(self.path)
        return sum(cpu_seconds(pid) or 0.0 for pid in pids)

    def set_limit(self, limit_bytes: int) -> None:
        """Change the memory limit while the process runs; it is ended if it is over the new one
        and the kernel cannot get it below."""
        with self._lock:
            if self.is_closed or limit_bytes == self.limit_bytes:
                return
            self.limit_bytes = limit_bytes
            if self._tree is None:
                return
            try:
                self._tree.set_memory_limit(self.path, limit_bytes)
            except OSError as error:
                self._end_over_limit(f"its limit is {limit_bytes // MIB} MiB now ({error})")

    def check_memory(self) -> None:
        """End the process if it is over its limit, where the kernel does not do it."""
        if self.bounds_memory or not self.pid or self.is_closed:
            return
        used = private_bytes(self.pid)
        if used is not None and used > self.limit_bytes:
            self._end_over_limit(
                f"it had {used // MIB} MiB, its limit is {self.limit_bytes // MIB} MiB"
            )

    def _end_over_limit(self, because: str) -> None:
        log.warning("%s is over its memory limit and is ended: %s", self.path, because)
        if self._kill is not None:
            self._kill(f"it was over its memory limit: {because}")

    def was_killed_for_memory(self) -> bool:
        """Whether the kernel has ended a process of it for want of memory."""
        return self._tree is not None and self._tree.memory_kills(self.path) > 0

    def close(self) -> None:
        """The process has ended."""
        with self._lock:
            self.is_closed = True
