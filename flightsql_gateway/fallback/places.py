"""Places at engines: so many queries of a tenant at once, the others wait in order for a while."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

_LOOK_SECONDS: Final = 0.05


class _Line:
    def __init__(self) -> None:
        self.running = 0
        self.waiting: deque[threading.Event] = deque()


class Places:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}

    def take(self, key: str, limit: int, until: float, check: Callable[[], None]) -> bool:
        """Wait for a place until `until`; False: none became free. `check` may raise meanwhile."""
        turn = threading.Event()
        with self._lock:
            line = self._lines.setdefault(key, _Line())
            if line.running < limit and not line.waiting:
                line.running += 1
                return True
            line.waiting.append(turn)
        try:
            while not turn.wait(min(_LOOK_SECONDS, max(until - time.monotonic(), 0.001))):
                check()
                if time.monotonic() >= until:
                    return self._leave(key, turn)
        except BaseException:
            if self._leave(key, turn):
                self.give(key)
            raise
        return True

    def _leave(self, key: str, turn: threading.Event) -> bool:
        """Give up waiting; True: a place was handed over meanwhile, and is ours."""
        with self._lock:
            line = self._lines[key]
            if turn in line.waiting:
                line.waiting.remove(turn)
                return False
        return True

    def give(self, key: str) -> None:
        """Give a place back: to who has waited longest."""
        with self._lock:
            line = self._lines[key]
            if line.waiting:
                line.waiting.popleft().set()
            else:
                line.running -= 1
                if not line.running:
                    del self._lines[key]

    def running(self, key: str) -> int:
        with self._lock:
            line = self._lines.get(key)
            return line.running if line else 0
