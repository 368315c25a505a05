"""Reads what the kernel says of control groups and processes. Every function takes the root of
`/proc`, or the text, so that tests need no kernel."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PROC: Final = Path("/proc")
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupMount:
    """One mounted hierarchy of control groups."""

    version: int
    mount_point: str
    root: str
    """The group that the mount point shows; not `/` inside a container."""
    options: frozenset[str]
    """Of the file system; with version 1, the controllers are among them."""


def parse_cgroup_mounts(mountinfo: str) -> tuple[CgroupMount, ...]:
    """The control group mounts of `/proc/self/mountinfo`, a later one over an earlier."""
    mounts: dict[str, CgroupMount] = {}
    for line in mountinfo.splitlines():
        left, separator, right = line.partition(" - ")
        fields, described = left.split(), right.split()
        if not separator or len(fields) < 5 or len(described) < 3:
            continue
        kind = described[0]
        mount_point = _unescape(fields[4])
        mounts.pop(mount_point, None)
        if kind in {"cgroup", "cgroup2"}:
            mounts[mount_point] = CgroupMount(
                version=2 if kind == "cgroup2" else 1,
                mount_point=mount_point,
                root=_unescape(fields[3]),
                options=frozenset(described[2].split(",")),
            )
    return tuple(mounts.values())


def parse_own_groups(text: str) -> dict[str, str]:
    """Group by controller from `/proc/self/cgroup`; version 2's is under the empty name."""
    groups = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            groups[controller] = path
    return groups


def parse_flat(text: str) -> dict[str, int]:
    """A file of `name value` lines; other lines are left out."""
    values = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        if value.strip().lstrip("-").isdigit():
            values[name] = int(value)
    return values


def parse_pressure_us(text: str) -> int | None:
    """Microseconds in which some task waited, from a pressure file; None if it does not say."""
    for line in text.splitlines():
        if line.startswith("some "):
            fields = dict(field.partition("=")[::2] for field in line.split()[1:])
            return int(fields["total"]) if "total" in fields else None
    return None


def cpu_seconds(pid: int, proc: Path = PROC) -> float | None:
    """CPU that a process has used, all its threads; None: there is no such process."""
    try:
        fields = (proc / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND


def private_bytes(pid: int, proc: Path = PROC) -> int | None:
    """Resident memory of a process that no file backs; None: there is no such process."""
    try:
        fields = (proc / str(pid) / "statm").read_text().split()
    except OSError:
        return None
    return (int(fields[1]) - int(fields[2])) * _PAGE_BYTES


def waited_us(proc: Path = PROC) -> int | None:
    """Microseconds since boot in which some task of the host waited for a core; None: the kernel
    does not tell."""
    try:
        return parse_pressure_us((proc / "pressure" / "cpu").read_text())
    except OSError:
        return None


def idle_seconds(proc: Path = PROC) -> float:
    """Seconds since boot in which the host's cores were idle, added up."""
    fields = (proc / "stat").read_text().split("\n", 1)[0].split()
    return (int(fields[4]) + int(fields[5])) / _TICKS_PER_SECOND


def _unescape(path: str) -> str:
    """Undo mountinfo's octal escapes."""
    for code, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        path = path.replace(code, character)
    return path
