"""Finds out, by trying, which control groups this process may make.

All groups are made below the one that this process is in, so that whatever bounds the host as a
whole bounds them too.
"""

from __future__ import annotations

import logging
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from accel_dask.errors import ConfigError
from accel_dask.worker_plugin.enforcement.cgroups import (
    OURS,
    PROBE,
    PROCS,
    CgroupV1Tree,
    CgroupV2Tree,
    Tree,
)
from accel_dask.worker_plugin.enforcement.kernel_files import (
    PROC,
    CgroupMount,
    parse_cgroup_mounts,
    parse_own_groups,
)

log = logging.getLogger(__name__)

CONTROLLERS: Final = ("cpu", "memory", "pids")
_AGENT_LEAF: Final = "accel-agent"
_AGENT_WEIGHT: Final = 11
"""As `niceness.BEHIND_QUERIES`."""
_PROBE_BYTES: Final = 64 * 1024 * 1024


def find_tree(name: str, parent: str = "", proc: Path = PROC) -> tuple[Tree | None, str]:
    """A tree of the host agent's, proved to work, or None and why there is none.

    `name`: no other agent on this machine may have it.
    `parent`: a directory of a version 2 hierarchy that was delegated to us, without processes;
    empty: the group that this process is in.

    Raises:
        ConfigError: `parent` was given and cannot be used.
    """
    name = OURS + re.sub(r"[^A-Za-z0-9_-]", "_", name) + "."
    reasons = []
    for find in (_version_1, _version_2):
        try:
            tree = find(name, parent, proc)
            if tree is not None:
                prove(tree)
                return tree, ""
        except OSError as error:
            reasons.append(str(error))
    why = "; ".join(reasons) or "no control groups are mounted here"
    if parent:
        raise ConfigError(f"[host] cgroup = {parent!r} cannot be used: {why}")
    return None, why


def prove(tree: Tree) -> None:
    """Do once all that will be needed.

    Raises:
        OSError: what does not work.
    """
    tree.remove(PROBE)
    if not (tree.powers.cpu and tree.powers.memory):
        raise OSError("the CPU and memory controllers are not both to be had")
    tree.make(PROBE)
    try:
        tree.set_cpu_weight(PROBE, 50)
        tree.set_memory_limit(PROBE, _PROBE_BYTES)
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
            try:
                for file in tree.join_files(PROBE):
                    Path(file).write_text(str(child.pid), encoding="ascii")
            finally:
                child.kill()
    finally:
        tree.remove(PROBE)


def _mounts(proc: Path) -> tuple[CgroupMount, ...]:
    return parse_cgroup_mounts((proc / "self" / "mountinfo").read_text())


def _own_directory(mount: CgroupMount, own: str) -> Path:
    """Of the group `own` below a mount, which may show a part of the hierarchy only."""
    below = own if mount.root == "/" else own.removeprefix(mount.root)
    return Path(mount.mount_point) / below.strip("/")


def _version_1(name: str, parent: str, proc: Path) -> Tree | None:
    if parent:
        return None
    own = parse_own_groups((proc / "self" / "cgroup").read_text())
    bases: dict[str, Path] = {}
    for mount in _mounts(proc):
        for controller in CONTROLLERS:
            if mount.version == 1 and controller in mount.options and controller in own:
                directory = _own_directory(mount, own[controller])
                if _can_divide(directory / f"{name}{PROBE}"):
                    bases[controller] = directory
    return CgroupV1Tree(bases, name) if bases else None


def _can_divide(probe: Path) -> bool:
    try:
        probe.mkdir(exist_ok=True)
    except OSError as error:
        log.info("no control group: %s", error)
        return False
    return True


def _version_2(name: str, parent: str, proc: Path) -> Tree | None:
    mount = next((m for m in _mounts(proc) if m.version == 2), None)
    if mount is None:
        return None
    own = _own_directory(mount, parse_own_groups((proc / "self" / "cgroup").read_text())[""])
    if own.name == _AGENT_LEAF and not parent:  # an earlier life of this process moved there
        own = own.parent
    delegated = Path(parent) if parent else own
    wanted = set(CONTROLLERS) & set((delegated / "cgroup.controllers").read_text().split())
    if not wanted >= {"cpu", "memory"}:
        raise OSError(f"{delegated} has no CPU and memory controllers (of version 2)")
    is_top = not (delegated / "cgroup.type").exists()  # of the machine, not of a container
    moves = not is_top and not parent
    if moves:
        _move_aside(delegated, proc)
    _pass_on(delegated, wanted)
    if moves:  # among the groups, where nice values mean nothing
        (delegated / _AGENT_LEAF / "cpu.weight").write_text(str(_AGENT_WEIGHT), encoding="ascii")
    return CgroupV2Tree(delegated, name)


def _pass_on(directory: Path, controllers: set[str]) -> None:
    (directory / "cgroup.subtree_control").write_text(
        " ".join(f"+{controller}" for controller in sorted(controllers)), encoding="ascii"
    )


def _move_aside(directory: Path, proc: Path) -> None:
    """Version 2 divides a group's resources only if no process is in the group itself: ours move
    into a leaf. Those of others are not touched.

    Raises:
        OSError: there are processes of others.
    """
    pids = [int(pid) for pid in (directory / PROCS).read_text().split()]
    ours = _family(proc)
    strangers = [pid for pid in pids if not ours(pid)]
    if strangers:
        raise OSError(
            f"{directory} holds processes of others (such as {strangers[0]}); run the host in a "
            "group of its own (systemd: Delegate=yes), or name an empty one as [host] cgroup"
        )
    leaf = directory / _AGENT_LEAF
    leaf.mkdir(exist_ok=True)
    for pid in pids:
        (leaf / PROCS).write_text(str(pid), encoding="ascii")


def _family(proc: Path) -> Callable[[int], bool]:
    """Whether a process is this one or a descendant of it."""

    def parent_of(pid: int) -> int:
        try:
            return int((proc / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            return 0

    def is_ours(pid: int) -> bool:
        while pid not in {0, os.getpid()}:
            pid = parent_of(pid)
        return pid != 0

    return is_ours
