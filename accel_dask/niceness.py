"""CPU weights without control groups: nice values, which anybody may raise.

Every executor is a session of its own. Where the kernel has autogroups, sessions compete by the
nice value of their autogroup and that of a thread counts only against threads of the same session;
where it has none, the nice values of threads count. Both are set.
"""

from __future__ import annotations

import contextlib
import math
import os
import resource
from collections.abc import Collection
from pathlib import Path
from typing import Final

LOWEST: Final = 19
BEHIND_QUERIES: Final = 10
"""Of processes that no query waits for: a ninth of the weight. What they do comes in bursts and may
take longer. Never the idle class: a host full of queries must not keep them from it."""
PROC: Final = Path("/proc")
_STEP: Final = 1.25
"""One nice value more is so many times less weight."""


def nice_of(weight: int, full_weight: int) -> int:
    """The nice value whose weight against that of nice 0 is as `weight` to `full_weight`."""
    if weight >= full_weight:
        return 0
    return min(LOWEST, round(math.log(full_weight / max(weight, 1)) / math.log(_STEP)))


def has_autogroups(proc: Path = PROC) -> bool:
    """Whether sessions, not threads, compete for the CPU."""
    try:
        return (proc / "sys/kernel/sched_autogroup_enabled").read_text().strip() == "1"
    except OSError:
        return False


def may_lower() -> bool:
    """Whether this process may take a thread's nice value back to 0."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NICE)
    return os.geteuid() == 0 or soft == resource.RLIM_INFINITY or soft >= 20


def set_nice(pid: int, nice: int, *, autogroup: bool, threads: bool) -> bool:
    """Set the nice value of a process, of its session if `autogroup`, of each thread if
    `threads`. Whether it was done; not so if the process has ended."""
    try:
        if autogroup:
            (PROC / str(pid) / "autogroup").write_text(str(nice), encoding="ascii")
        if threads:
            for task in (PROC / str(pid) / "task").iterdir():
                with contextlib.suppress(ProcessLookupError):  # the thread has just ended
                    os.setpriority(os.PRIO_PROCESS, int(task.name), nice)
    except OSError:
        return False
    return True


def let_queries_go_first(spared: Collection[int] = (), proc: Path = PROC) -> None:
    """Lower the weight of this process, for good; threads that start later have that of the one
    that starts them. `spared`: threads, by their kernel's number, that keep theirs."""
    if has_autogroups(proc) and os.getsid(0) == os.getpid():  # else it is others' session too
        with contextlib.suppress(OSError):
            (proc / "self/autogroup").write_text(str(BEHIND_QUERIES), encoding="ascii")
    for task in (proc / "self/task").iterdir():
        thread = int(task.name)
        with contextlib.suppress(OSError):  # it has just ended, or is further behind already
            if thread not in spared and os.getpriority(os.PRIO_PROCESS, thread) < BEHIND_QUERIES:
                os.setpriority(os.PRIO_PROCESS, thread, BEHIND_QUERIES)
