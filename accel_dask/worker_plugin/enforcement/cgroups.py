"""Control groups of versions 1 and 2 behind one interface.

A `Tree` is where our groups are made, all below the same parent and with names that begin alike.
They have no group in common: the weight of one tenant must not draw on that of another against
whatever else runs beside them. Groups are named by relative paths, the first part being the
tenant. In version 1 every controller has a hierarchy of its own, so one of our groups is a
directory in each.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from accel_dask.worker_plugin.enforcement.kernel_files import parse_flat

log = logging.getLogger(__name__)

PROCS: Final = "cgroup.procs"
OURS: Final = "accel-"
"""So begin the names of all host agents' groups; then the agent's name, a dot, the path."""
PROBE: Final = "probe-0"
"""The group by which an agent tries out what it may do."""
_PREFIX: Final = re.compile(rf"{OURS}[A-Za-z0-9_-]+\.")
PERIOD_US: Final = 100_000
_MAX_WEIGHT: Final = 10_000
_SHARES_PER_WEIGHT: Final = 1024 / 100


@dataclass(frozen=True, slots=True)
class Powers:
    """What a tree can do on this host."""

    cpu: bool
    memory: bool
    pids: bool


class Tree(Protocol):
    """The groups of one host agent. Methods raise OSError."""

    version: int
    powers: Powers

    def beside(self) -> tuple[Tree, ...]:
        """The trees of other host agents that have groups where ours are."""

    def lock(self, path: str) -> int | None:
        """A descriptor that holds the group locked until it is closed, if only by this process's
        end; None: the group is not there, or somebody else has it locked."""

    def make(self, path: str) -> None:
        """Make the group and those above it; it may be there already."""

    def remove(self, path: str) -> bool:
        """Remove the group and those in it, or all of ours if the path is empty; whether nothing
        of it is left."""

    def join_files(self, path: str) -> tuple[str, ...]:
        """A process that writes `0` to each of these is in the group."""

    def processes(self, path: str) -> frozenset[int]: ...

    def groups(self, path: str = "") -> tuple[str, ...]:
        """Names of the groups directly in `path`."""

    def set_cpu_weight(self, path: str, weight: int) -> None:
        """1 to 10,000; 100 is the weight of any other group."""

    def set_cpu_idle(self, path: str, is_idle: bool) -> None:
        """Whether the group's processes run only where those of no other group want to, and stop
        at once when one does. Weights can be set, and have to be set again, once it is not so.
        Linux 5.15 or later; FileNotFoundError before."""

    def set_cpu_limit(self, path: str, percent: int) -> None:
        """Percent of one core, never more even if the host is idle; 0: no limit."""

    def set_memory_limit(self, path: str, limit_bytes: int) -> None:
        """Beyond it the kernel kills a process of the group. OSError (busy) if more is in use
        already and the kernel leaves it at that."""

    def set_pids_limit(self, path: str, limit: int) -> None: ...

    def memory_kills(self, path: str) -> int:
        """How often the kernel killed for want of memory in the group."""


class CgroupV2Tree:
    """One directory per group."""

    version = 2

    def __init__(self, base: Path, prefix: str = "") -> None:
        """Groups are made in `base`, whose controllers must be passed on already (see
        `find.py`), with names that begin with `prefix`."""
        self._base = base
        self._prefix = prefix
        controllers = frozenset((base / "cgroup.subtree_control").read_text().split())
        self.powers = Powers("cpu" in controllers, "memory" in controllers, "pids" in controllers)
        self._passed_on = " ".join(f"+{c}" for c in sorted(controllers & {"cpu", "memory", "pids"}))

    def beside(self) -> tuple[Tree, ...]:
        return tuple(CgroupV2Tree(self._base, p) for p in _others((self._base,), self._prefix))

    def lock(self, path: str) -> int | None:
        return _lock(self._at(path))

    def make(self, path: str) -> None:
        directory = self._base
        for name in (self._prefix + path).split("/"):
            if directory != self._base:
                _write(directory / "cgroup.subtree_control", self._passed_on)
            directory /= name
            directory.mkdir(exist_ok=True)

    def _at(self, path: str) -> Path:
        return self._base / (self._prefix + path)

    def remove(self, path: str) -> bool:
        names = [path] if path else self.groups()
        return not [name for name in names if not _remove_directory(self._at(name))]

    def join_files(self, path: str) -> tuple[str, ...]:
        return (str(self._at(path) / PROCS),)

    def processes(self, path: str) -> frozenset[int]:
        return _pids(self._at(path))

    def groups(self, path: str = "") -> tuple[str, ...]:
        return _subdirectories(self._at(path)) if path else _ours(self._base, self._prefix)

    def set_cpu_weight(self, path: str, weight: int) -> None:
        _write(self._at(path) / "cpu.weight", str(min(max(weight, 1), _MAX_WEIGHT)))

    def set_cpu_idle(self, path: str, is_idle: bool) -> None:
        _write(self._at(path) / "cpu.idle", str(int(is_idle)))

    def set_cpu_limit(self, path: str, percent: int) -> None:
        quota = str(percent * PERIOD_US // 100) if percent else "max"
        _write(self._at(path) / "cpu.max", f"{quota} {PERIOD_US}")

    def set_memory_limit(self, path: str, limit_bytes: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # a kernel without swap accounting
            _write(self._at(path) / "memory.swap.max", "0")
        _write(self._at(path) / "memory.max", str(limit_bytes))

    def set_pids_limit(self, path: str, limit: int) -> None:
        _write(self._at(path) / "pids.max", str(limit))

    def memory_kills(self, path: str) -> int:
        return _flat(self._at(path) / "memory.events").get("oom_kill", 0)


class CgroupV1Tree:
    """One directory per group and controller."""

    version = 1

    def __init__(self, bases: Mapping[str, Path], prefix: str = "") -> None:
        """Groups are made in `bases`, one for each controller (`cpu`, `memory`, `pids`) that can
        be used, with names that begin with `prefix`."""
        self._bases = dict(bases)
        self._prefix = prefix
        self.powers = Powers("cpu" in bases, "memory" in bases, "pids" in bases)

    def _each(self, path: str) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(base / (self._prefix + path) for base in self._bases.values()))

    def _at(self, controller: str, path: str) -> Path:
        return self._bases[controller] / (self._prefix + path)

    def beside(self) -> tuple[Tree, ...]:
        bases = self._bases
        return tuple(CgroupV1Tree(bases, p) for p in _others(bases.values(), self._prefix))

    def lock(self, path: str) -> int | None:
        return _lock(self._each(path)[0])

    def make(self, path: str) -> None:
        for directory in self._each(path):
            directory.mkdir(parents=True, exist_ok=True)

    def remove(self, path: str) -> bool:
        names = [path] if path else self.groups()
        directories = [directory for name in names for directory in self._each(name)]
        return not [directory for directory in directories if not _remove_directory(directory)]

    def join_files(self, path: str) -> tuple[str, ...]:
        return tuple(str(directory / PROCS) for directory in self._each(path))

    def processes(self, path: str) -> frozenset[int]:
        return frozenset().union(*(_pids(directory) for directory in self._each(path)))

    def groups(self, path: str = "") -> tuple[str, ...]:
        found: list[str] = []
        for base in self._bases.values():
            directory = base / (self._prefix + path)
            found += _subdirectories(directory) if path else _ours(base, self._prefix)
        return tuple(dict.fromkeys(found))

    def set_cpu_weight(self, path: str, weight: int) -> None:
        shares = round(min(max(weight, 1), _MAX_WEIGHT) * _SHARES_PER_WEIGHT)
        _write(self._at("cpu", path) / "cpu.shares", str(shares))

    def set_cpu_idle(self, path: str, is_idle: bool) -> None:
        _write(self._at("cpu", path) / "cpu.idle", str(int(is_idle)))

    def set_cpu_limit(self, path: str, percent: int) -> None:
        directory = self._at("cpu", path)
        _write(directory / "cpu.cfs_period_us", str(PERIOD_US))
        _write(directory / "cpu.cfs_quota_us", str(percent * PERIOD_US // 100 if percent else -1))

    def set_memory_limit(self, path: str, limit_bytes: int) -> None:
        directory = self._at("memory", path)
        memory, with_swap = (
            directory / "memory.limit_in_bytes",
            directory / "memory.memsw.limit_in_bytes",
        )
        files = [memory, with_swap] if with_swap.exists() else [memory]
        # Memory may never be above memory and swap together: the order of the writes matters.
        if int(memory.read_text()) < limit_bytes:
            files.reverse()
        for file in files:
            _write(file, str(limit_bytes))

    def set_pids_limit(self, path: str, limit: int) -> None:
        _write(self._at("pids", path) / "pids.max", str(limit))

    def memory_kills(self, path: str) -> int:
        return _flat(self._at("memory", path) / "memory.oom_control").get("oom_kill", 0)


def _write(file: Path, text: str) -> None:
    # Unbuffered, and never created: in a control group a missing file means a missing power.
    descriptor = os.open(file, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _flat(file: Path) -> dict[str, int]:
    try:
        return parse_flat(file.read_text())
    except OSError:
        return {}


def _pids(directory: Path) -> frozenset[int]:
    try:
        return frozenset(int(pid) for pid in (directory / PROCS).read_text().split())
    except FileNotFoundError:
        return frozenset()


def _subdirectories(directory: Path) -> tuple[str, ...]:
    try:
        with os.scandir(directory) as entries:  # asks no file for its kind; this is done often
            return tuple(sorted(entry.name for entry in entries if entry.is_dir()))
    except FileNotFoundError:
        return ()


def _ours(base: Path, prefix: str) -> tuple[str, ...]:
    names = _subdirectories(base)
    return tuple(name.removeprefix(prefix) for name in names if name.startswith(prefix))


def _others(bases: Iterable[Path], prefix: str) -> list[str]:
    """Prefixes of the groups in `bases` that are other agents'."""
    names = (name for base in bases for name in _subdirectories(base))
    found = {match[0] for name in names if (match := _PREFIX.match(name))}
    return sorted(found - {prefix})


def _lock(directory: Path) -> int | None:
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if directory.stat().st_ino == os.fstat(descriptor).st_ino:  # not removed meanwhile
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


def _remove_directory(directory: Path) -> bool:
    """Depth first. A group with processes, or one whose last process is just ending, stays."""
    stay = [name for name in _subdirectories(directory) if not _remove_directory(directory / name)]
    return not stay and _succeeds(directory.rmdir)


def _succeeds(remove: Callable[[], None]) -> bool:
    try:
        remove()
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
            log.warning("a control group cannot be removed: %s", error)
        return False
    return True
