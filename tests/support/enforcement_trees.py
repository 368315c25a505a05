"""Directories that look like control groups, for tests without the kernel's."""

from __future__ import annotations

from pathlib import Path

from accel_dask.worker_plugin.enforcement.cgroups import CgroupV1Tree, CgroupV2Tree

_V1_FILES = {
    "cpu": ("cpu.shares", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control"),
    "pids": ("pids.max",),
}
_V2_FILES = ("cpu.weight", "cpu.max", "memory.max", "memory.swap.max", "memory.events", "pids.max")


def make_v1(directory: Path, path: str) -> CgroupV1Tree:
    """A version 1 tree in which the group `path` has the files that the kernel makes."""
    tree = CgroupV1Tree({name: directory / name for name in _V1_FILES}, "accel.")
    tree.make(path)
    for controller, files in _V1_FILES.items():
        for file in files:
            (directory / controller / f"accel.{path}" / file).write_text("9223372036854771712")
    return tree


def make_v2(directory: Path, path: str) -> CgroupV2Tree:
    """As `make_v1`, of version 2; `directory` is the tree."""
    parent = directory
    for name in path.split("/"):
        (parent / "cgroup.subtree_control").write_text("cpu memory pids")
        parent /= name
        parent.mkdir()
    for file in _V2_FILES:
        (parent / file).write_text("")
    return CgroupV2Tree(directory)


class FakeProc:
    """A `/proc` that tells of control groups in a directory."""

    def __init__(
        self,
        directory: Path,
        *,
        v1: tuple[str, ...] = (),
        v2: str | None = None,
        processes: tuple[int, ...] = (),
    ) -> None:
        """`v2`: the controllers of the own group; `processes`: who is in it."""
        self.path = directory / "proc"
        own = self.path / "self"
        own.mkdir(parents=True)
        mounts, groups = [], []
        for number, controller in enumerate(v1, 1):
            point = directory / controller
            point.mkdir()
            mounts.append(f"{number} 0 0:{number} / {point} rw - cgroup cgroup rw,{controller}")
            groups.append(f"{number}:{controller}:/")
        self.group = directory / "unified" / "job"
        if v2 is not None:
            self.group.mkdir(parents=True)
            mounts.append(f"99 0 0:99 / {self.group.parent} rw - cgroup2 cgroup2 rw")
            groups.append("0::/job")
            (self.group / "cgroup.controllers").write_text(v2)
            (self.group / "cgroup.type").write_text("domain")
            (self.group / "cgroup.procs").write_text("\n".join(map(str, processes)))
        (own / "mountinfo").write_text("\n".join(mounts))
        (own / "cgroup").write_text("\n".join(groups))
