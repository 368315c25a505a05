"""Flight's threads, known to the interpreter for as long as they last.

For a thread that Python has not made, the interpreter makes a state and maps memory for its frames
each time the thread calls into Python, and throws both away when it returns: five times a query,
which takes a query of a few milliseconds 0.2 of them. A state that is asked for once more than it
is given back stays (PyGILState_Ensure and PyGILState_Release, "Non-Python created threads" in
Python's C API). It is given back when the thread ends, by what runs destructors of thread-local
objects (`__cxa_thread_atexit_impl`, "Destructor support for thread_local variables" of glibc);
where the C library has none of it, threads are treated as ever.
"""

from __future__ import annotations

import ctypes
import threading
from typing import Any, Final

_LOCKED: Final = 0
"""PyGILState_LOCKED: whoever asked had the interpreter's lock already, and keeps it."""

_of_thread: Final = threading.local()


def _give_back(_: object) -> None:
    """Called when a thread ends, which by itself takes the state and gives it back."""
    ctypes.pythonapi.PyGILState_Release(_LOCKED)


_end_of_thread: Final = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(_give_back)


def _found_at_exit() -> Any:
    try:
        return ctypes.CDLL(None)["__cxa_thread_atexit_impl"]
    except AttributeError:
        return None


_at_exit: Final = _found_at_exit()
_here: Final = ctypes.cast(ctypes.pythonapi.PyGILState_Release, ctypes.c_void_p)
"""Somewhere in the library that must stay loaded until then."""


def keep_known() -> None:
    """Keep what the interpreter knows of this thread until it ends. Called on a thread of Flight,
    from Python; nothing is done on Python's own, whose state stays anyway."""
    if getattr(_of_thread, "is_known", False):
        return
    _of_thread.is_known = True
    is_own = not isinstance(threading.current_thread(), threading._DummyThread)  # noqa: SLF001
    if is_own or _at_exit is None:
        return
    if _at_exit(_end_of_thread, None, _here) == 0:
        ctypes.pythonapi.PyGILState_Ensure()
