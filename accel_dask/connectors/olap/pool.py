"""A bounded pool of connections to one engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from accel_dask.errors import EngineUnavailable

C = TypeVar("C")


class Pool(Generic[C]):
    """At most `size` connections, opened when needed, kept for the next query."""

    def __init__(
        self, open_: Callable[[], C], close: Callable[[C], None], *, size: int, name: str
    ) -> None:
        self._open = open_
        self._close = close
        self._size = size
        self._name = name
        self._changed = threading.Condition()
        self._idle: list[C] = []
        self._used = 0
        self._is_closed = False

    def take(self, seconds: float) -> C:
        """A connection, given back with `give`.

        Raises:
            EngineUnavailable: none became free in time, or none could be opened.
        """
        until = time.monotonic() + seconds
        with self._changed:
            while not self._idle and self._used >= self._size:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise EngineUnavailable(
                        f"all {self._size} connections to {self._name} are busy; raise the "
                        "fallback option pool_size, or retry later"
                    )
            if self._is_closed:
                raise EngineUnavailable(f"{self._name} is closed")
            self._used += 1
            if self._idle:
                return self._idle.pop()
        try:
            return self._open()
        except BaseException:
            self._less()
            raise

    def give(self, connection: C, *, is_good: bool) -> None:
        """Give it back; one in an unknown state is closed."""
        with self._changed:
            is_kept = is_good and not self._is_closed
            if is_kept:
                self._idle.append(connection)
        if not is_kept:
            self._close_aside(connection)
        self._less()

    def _close_aside(self, connection: C) -> None:
        """Some drivers say goodbye, and wait for an answer that a silent server never gives."""
        threading.Thread(
            target=self._close, args=(connection,), name="engine-close", daemon=True
        ).start()

    def drop_idle(self) -> None:
        """Close those that are not in use: the engine may be another one by now."""
        with self._changed:
            idle, self._idle = self._idle, []
        for connection in idle:
            self._close_aside(connection)

    def _less(self) -> None:
        with self._changed:
            self._used -= 1
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
        self.drop_idle()
