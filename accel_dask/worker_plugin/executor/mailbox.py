"""Messages from other threads for one that waits for sockets as well."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Read by one thread; anybody may put something in, also after it was closed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mail: deque[T] = deque()
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._is_closed = False

    def fileno(self) -> int:
        """Readable while there is something in it."""
        return self._descriptor

    def put(self, message: T) -> None:
        with self._lock:
            if not self._is_closed:
                self._mail.append(message)
                os.eventfd_write(self._descriptor, 1)

    def take(self) -> T | None:
        """The oldest; None: it is empty."""
        with self._lock:
            if self._mail:
                return self._mail.popleft()
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._descriptor)
            return None

    def close(self) -> None:
        """What comes from here on is thrown away."""
        with self._lock:
            if not self._is_closed:
                self._is_closed = True
                os.close(self._descriptor)
