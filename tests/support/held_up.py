"""Times at which a machine did not even run a real-time thread that was due.

No weight or priority within the machine helps then: its hypervisor has given the core to others, or
its kernel was busy. `python held_up.py CORE` is the probe of one core; it tells what it has seen,
a line of JSON, when its input ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from typing import Final

LEAST_SECONDS: Final = 0.003
"""Shorter ones are not told."""
_PAUSE_SECONDS: Final = 0.002

Time = tuple[float, float]
"""Start and end, monotonic seconds."""


class HeldUp:
    """Probes on all cores while it is open; `times` when it is closed."""

    def __init__(self) -> None:
        self.times: tuple[Time, ...] = ()
        self._probes = [
            subprocess.Popen(
                [sys.executable, __file__, str(core)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for core in sorted(os.sched_getaffinity(0))
        ]

    def __enter__(self) -> HeldUp:
        return self

    def __exit__(self, *_: object) -> None:
        told = [probe.communicate(timeout=20)[0] for probe in self._probes]
        found = [(start, end) for text in told for start, end in json.loads(text)]
        self.times = tuple(sorted(found))

    def between(self, start: float, end: float) -> tuple[Time, ...]:
        """Those that touch the time from `start` to `end`."""
        return tuple(one for one in self.times if one[0] < end and start < one[1])


def _watch(core: int) -> None:
    os.sched_setaffinity(0, {core})
    with contextlib.suppress(OSError):  # without the right to it, it also sees others' work
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    found: list[Time] = []
    reader = threading.Thread(target=sys.stdin.read, daemon=True)
    reader.start()
    while reader.is_alive():
        due = time.monotonic() + _PAUSE_SECONDS
        time.sleep(_PAUSE_SECONDS)
        now = time.monotonic()
        if now - due >= LEAST_SECONDS:
            found.append((due, now))
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    _watch(int(sys.argv[1]))
