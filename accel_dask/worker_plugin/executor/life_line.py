"""Dying with the parent: a pipe whose write end only the parent holds.

The kernel sends SIGKILL when the parent's end closes, whatever the parent died of, whichever
thread started us, and also to a stopped process. An executor outlives the zygote that forked it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal

log = logging.getLogger(__name__)


def die_with(read_end: int) -> int:
    """Tie this process to whoever holds the pipe's write end; the descriptor to keep open.

    Where the system cannot do it, the end of the control socket has to be enough.
    """
    try:
        # The owner and the signal belong to an open file, so that every process needs its own.
        own = os.open(f"/proc/self/fd/{read_end}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.fcntl(own, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(own, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(own, fcntl.F_SETFL, fcntl.fcntl(own, fcntl.F_GETFL) | os.O_ASYNC)
    except OSError as error:
        log.warning("no signal at the parent's death: %s", error)
        return read_end
    poll = select.poll()
    poll.register(own, 0)
    if poll.poll(0):  # it was dead before we were armed
        os._exit(0)
    return own
