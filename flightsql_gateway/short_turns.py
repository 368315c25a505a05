"""Short turns on a core, for a process that has much to answer and little to compute.

The kernel lets whoever runs finish its slice, up to some milliseconds, before it looks at who has
woken up; a thread that asks for less at a time goes first instead (Linux 6.12, "EEVDF": a shorter
slice is an earlier deadline, and preempts a longer one). Nobody gets more of a core by it, and it
needs no privilege.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import struct
from typing import Final

log = logging.getLogger(__name__)

SLICE_NS: Final = 300_000
_SET: Final = {"x86_64": 314, "aarch64": 274}
"""Numbers of the system call sched_setattr; sched_getattr's is the next."""
_ATTRIBUTES: Final = struct.Struct("=IIQiIQQQ")
"""struct sched_attr, version 0: size, policy, flags, nice, priority, runtime, deadline, period."""
_KEEP_POLICY: Final = 0x08


def take_short_turns() -> bool:
    """For this thread and those that it starts; False: the kernel knows nothing of it."""
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    wanted = _ATTRIBUTES.pack(_ATTRIBUTES.size, 0, _KEEP_POLICY, nice, 0, SLICE_NS, 0, 0)
    try:
        _call(0, ctypes.create_string_buffer(wanted, _ATTRIBUTES.size), 0)
    except OSError as error:
        log.info("no short turns on a core: %s", error.strerror)
        return False
    return slice_ns() == SLICE_NS


def slice_ns(thread: int = 0) -> int:
    """What a thread, by its number or 0 for this one, has asked for; 0: nothing.

    Raises:
        OSError: it is not there.
    """
    found = ctypes.create_string_buffer(_ATTRIBUTES.size)
    _call(1, found, _ATTRIBUTES.size, 0, thread=thread)
    return int(_ATTRIBUTES.unpack(found.raw)[5])


def _call(offset: int, *arguments: object, thread: int = 0) -> None:
    number = _SET.get(platform.machine())
    if number is None:
        raise OSError(0, f"the system call's number on {platform.machine()} is not known")
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(number + offset, thread, *arguments) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
