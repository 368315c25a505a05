"""Command lines for child processes that must not outlive us; used by every supervisor."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# A launcher, since code between fork and exec is not safe in a process with threads.
_LAUNCH = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)
if os.getppid() == int(sys.argv[1]):
    os.execvp(sys.argv[2], sys.argv[2:])
"""


def dying_with_parent(argv: Sequence[str]) -> tuple[str, ...]:
    """`argv` so that the kernel kills the process when the thread that starts it ends
    (PR_SET_PDEATHSIG, prctl(2)): start it from a thread that lives as long as it should."""
    return (sys.executable, "-I", "-S", "-c", _LAUNCH, str(os.getpid()), *argv)
