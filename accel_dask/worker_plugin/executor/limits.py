"""Bounds that the operating system enforces on an executor. Set once, after it has attached."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from accel_dask.errors import ExecutorUnavailable
from accel_dask.model.tenant import MIB

OOM_SCORE_ADJ = 600
"""The kernel kills an executor rather than its host."""
ENGINE_STACK_BYTES = 16 * MIB
"""Plans nest deeply: DuckDB's depth limits fit into 8 MiB, some do not into 2."""
FLIGHT_STACK_BYTES = MIB // 2
"""Flight starts more than a hundred threads under load, and nothing deep runs on them."""
_PTHREAD_ATTR_BYTES = 256


@dataclass(frozen=True, slots=True)
class Limits:
    """What is really enforced."""

    address_space_bytes: int
    oom_score_adj: int | None
    fair_share: bool
    """Whether the kernel shares the CPU per executor (autogroup), not per thread."""

    def describe(self) -> str:
        """One line, for people."""
        oom = f"oom_score_adj {self.oom_score_adj}" if self.oom_score_adj else "no oom_score_adj"
        share = (
            "a fair CPU share per executor (autogroup)"
            if self.fair_share
            else "no CPU share of its own"
        )
        return f"address space {self.address_space_bytes // MIB} MiB, no core dump, {oom}, {share}"


def apply_limits(memory_bytes: int, slack_bytes: int) -> Limits:
    """Bound this process to the address space it has now plus `memory_bytes` and `slack_bytes`.

    A limit on address space turns what DuckDB's own limit does not see (string functions, lists,
    plans) into out-of-memory errors instead of dead processes.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    wanted = virtual_bytes() + memory_bytes + slack_bytes
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_AS, (wanted, wanted))
    return Limits(wanted, _prefer_as_oom_victim(), _has_autogroup())


def join_groups(files: Iterable[str]) -> None:
    """Move this process into the control groups whose `cgroup.procs` are `files`.

    Raises:
        ExecutorUnavailable: the kernel refuses; without its bounds the process must not go on.
    """
    for file in files:
        try:
            Path(file).write_text("0", encoding="ascii")
        except OSError as error:
            raise ExecutorUnavailable(f"cannot join the control group of {file}") from error


def virtual_bytes() -> int:
    """Address space of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def set_stack_size(size: int) -> None:
    """Stack bytes of the threads that Python, DuckDB and Flight start from now on."""
    threading.stack_size(size)
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
        libc = ctypes.CDLL(None)
        attributes = (ctypes.c_byte * _PTHREAD_ATTR_BYTES)()
        libc.pthread_attr_init(attributes)
        libc.pthread_attr_setstacksize(attributes, ctypes.c_size_t(size))
        libc.pthread_setattr_default_np(attributes)
        libc.pthread_attr_destroy(attributes)


def trim_heap() -> None:
    """Give free memory of the C library's heap back to the system."""
    with contextlib.suppress(OSError, AttributeError):  # another C library has no such call
        ctypes.CDLL(None).malloc_trim(0)


def _prefer_as_oom_victim() -> int | None:
    file = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):
        file.write_text(str(OOM_SCORE_ADJ))
        return OOM_SCORE_ADJ
    return None


def _has_autogroup() -> bool:
    """Whether this session is a scheduling group of its own (needs `setsid` before)."""
    with contextlib.suppress(OSError):
        enabled = Path("/proc/sys/kernel/sched_autogroup_enabled").read_text().strip() == "1"
        return enabled and Path("/proc/self/autogroup").read_text().startswith("/autogroup-")
    return False
