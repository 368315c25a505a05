"""Calls under way: noticing that a client went away or a deadline passed, while others block.

Flight tells a handler of neither. One thread looks at every open call every few milliseconds, and
runs what the call has registered for its end. Asking Flight whether a client is still there takes
a tenth of a millisecond, so that is done less often for calls that last: many long queries of one
tenant must not take the gateway's time from the short ones of another.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from accel_dask.errors import AccelError, DeadlineExceeded, QueryCancelled

log = logging.getLogger(__name__)

_POLL_SECONDS: Final = 0.01
_MAX_ASK_SECONDS: Final = 0.05
"""A client is asked after at least this often."""
_ASKS_PER_AGE: Final = 8
"""Before that, so often in the time that the call has lasted."""
_LINGER_SECONDS: Final = 1.0
"""The thread keeps looking this long after the last call, to spare each call a wake-up."""


class Call:
    """One call of a client. Closed by its handler before Flight takes its context away."""

    def __init__(
        self,
        watch: CallWatch,
        is_cancelled: Callable[[], bool],
        deadline: float,
        deadline_text: str,
    ) -> None:
        self.deadline: Final = deadline
        """Monotonic seconds."""
        self._watch = watch
        self._is_cancelled = is_cancelled
        self._deadline_text = deadline_text
        self._lock = threading.Lock()
        self._opened_at = time.monotonic()
        self._ask_at = self._opened_at + _POLL_SECONDS
        self._ended: AccelError | None = None
        self._on_end: Callable[[], None] | None = None
        self._is_closed = False

    def remaining(self) -> float:
        """Seconds left of the deadline. Whether the client is still there is not asked, which
        takes a tenth of a millisecond: the watch does so all the time.

        Raises:
            DeadlineExceeded, QueryCancelled: none, or the call is known to be over.
        """
        left = self.deadline - time.monotonic()
        if self._ended is not None or left <= 0:
            self.check()
        return left

    def check(self) -> None:
        """Raise if the call is over."""
        error = self._poll()
        if error is not None:
            raise type(error)(str(error))

    @property
    def is_over(self) -> bool:
        return self._poll() is not None

    def on_end(self, action: Callable[[], None] | None) -> None:
        """Run `action`, once and on another thread, if the call ends before it is closed. It
        replaces the one before; None: nothing is to be done any more."""
        with self._lock:
            self._on_end = action

    def close(self) -> None:
        """The handler is done: never look at the client again."""
        with self._lock:
            self._is_closed = True
            self._on_end = None
        self._watch.remove(self)

    def _poll(self, *, asks: bool = True) -> AccelError | None:
        with self._lock:
            if self._ended is None and not self._is_closed:
                # Under the lock, so that `close` never returns during a look at the context.
                if asks and self._is_cancelled():
                    self._ended = QueryCancelled("the client went away or cancelled")
                elif time.monotonic() >= self.deadline:
                    self._ended = DeadlineExceeded(self._deadline_text)
            return self._ended

    def poll(self) -> bool:
        """Look once, and act on an end. True: it has ended."""
        now = time.monotonic()
        asks = now >= self._ask_at
        if asks:
            self._ask_at = now + ask_pause(now - self._opened_at)
        if self._poll(asks=asks) is None:
            return False
        with self._lock:
            action, self._on_end = self._on_end, None
        if action is not None:
            action()
        return True


def ask_pause(age_seconds: float) -> float:
    """Seconds until the client of a call that has lasted for so long is asked after again."""
    return min(max(age_seconds / _ASKS_PER_AGE, _POLL_SECONDS), _MAX_ASK_SECONDS)


class CallWatch:
    """Polls the open calls on one thread."""

    def __init__(self, on_turn: Callable[[], None] = lambda: None) -> None:
        """`on_turn`: what else is done there, every few milliseconds while there are calls, and
        before the thread rests."""
        self._on_turn = on_turn
        self._changed = threading.Condition()
        self._open: set[Call] = set()
        self._is_closing = False
        self._is_parked = False
        self._thread = threading.Thread(target=self._run, name="call-watch", daemon=True)
        self._thread.start()

    def open(self, is_cancelled: Callable[[], bool], deadline: float, deadline_text: str) -> Call:
        """A new call, watched until it is closed."""
        call = Call(self, is_cancelled, deadline, deadline_text)
        with self._changed:
            self._open.add(call)
            if self._is_parked:
                self._changed.notify_all()
        return call

    def remove(self, call: Call) -> None:
        with self._changed:
            self._open.discard(call)

    def close(self) -> None:
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()

    def _run(self) -> None:
        busy_at = time.monotonic()
        while True:
            try:
                self._on_turn()
            except Exception:
                log.exception("what the calls left to do failed")
            with self._changed:
                if not self._open and time.monotonic() - busy_at > _LINGER_SECONDS:
                    self._is_parked = True
                    self._changed.wait_for(lambda: bool(self._open) or self._is_closing)
                    self._is_parked = False
                if self._is_closing:
                    return
                calls = tuple(self._open)
            for call in calls:
                busy_at = time.monotonic()
                try:
                    call.poll()
                except Exception:  # the thread must go on for the other calls
                    log.exception("ending a call failed")
            time.sleep(_POLL_SECONDS)
