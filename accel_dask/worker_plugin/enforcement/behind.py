"""Groups that stand behind the queries of all tenants: the loaders' and the Dask worker's.

They have a low weight. While they get on they also give way at once to whoever wakes up; without
that the kernel lets whoever runs finish its slice, whatever its weight.
"""

from __future__ import annotations

from typing import Final

from accel_dask.worker_plugin.enforcement.cgroups import Tree
from accel_dask.worker_plugin.enforcement.group_cpu import GroupCpu, GroupShare
from accel_dask.worker_plugin.enforcement.kernel_files import cpu_seconds
from accel_dask.worker_plugin.enforcement.shares import FULL_WEIGHT

WEIGHT: Final = FULL_WEIGHT // 10
LEAST_CORES: Final = 0.1
"""A group that got less than this just now competes by its weight: it never stands still."""
_COMPETES: Final = GroupShare(weight=WEIGHT, limit_percent=0)
_GIVES_WAY: Final = GroupShare(weight=WEIGHT, limit_percent=0, gives_way=True)


class BehindQueries:
    """Not safe to use from several threads."""

    def __init__(self, tree: Tree, group_cpu: GroupCpu, *, gives_way: bool) -> None:
        self._tree = tree
        self._group_cpu = group_cpu
        self._gives_way = gives_way
        self._cpu_seconds: dict[str, dict[int, float]] = {}

    def begin(self, group: str, *, is_looked_at: bool) -> None:
        """The group is there, perhaps not for the first time, and a process is about to join it.
        `is_looked_at`: `look` comes soon; so it gives way from the start, and has its weight in
        time if it gets nowhere."""
        self._group_cpu.forget(group)
        self._group_cpu.apply(group, _GIVES_WAY if is_looked_at and self._gives_way else _COMPETES)
        if group not in self._cpu_seconds:
            self._cpu_seconds[group] = self._cpu_seconds_now(group)

    def end(self, group: str) -> None:
        """The group is gone."""
        self._group_cpu.forget(group)
        self._cpu_seconds.pop(group, None)

    def look(self, seconds: float) -> None:
        """After `seconds` more."""
        for group in self._cpu_seconds:
            used = self._used_cpu_seconds(group)
            gives_way = self._gives_way and used >= LEAST_CORES * seconds
            self._group_cpu.apply(group, _GIVES_WAY if gives_way else _COMPETES)

    def compete(self) -> None:
        """There are no queries; nobody will look for a while."""
        for group in self._cpu_seconds:
            self._group_cpu.apply(group, _COMPETES)

    def _used_cpu_seconds(self, group: str) -> float:
        """Since the last call. A loader lives for a second or so: what a new one used counts."""
        before = self._cpu_seconds[group]
        now = self._cpu_seconds[group] = self._cpu_seconds_now(group)
        return sum(used - before.get(pid, 0.0) for pid, used in now.items())

    def _cpu_seconds_now(self, group: str) -> dict[int, float]:
        return {pid: cpu_seconds(pid) or 0.0 for pid in self._processes(group)}

    def _processes(self, group: str) -> frozenset[int]:
        paths = (group, *(f"{group}/{below}" for below in self._tree.groups(group)))
        return frozenset().union(*(self._tree.processes(path) for path in paths))
