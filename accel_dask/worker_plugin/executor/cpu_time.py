"""CPU time of each query, though queries share the engine's threads.

What the thread that drives a query uses is the query's own. Everything else that the process
uses, above all the engine's worker threads, is split evenly between the queries that compute at
that moment; it is settled whenever one begins or ends, and at each turn of the watchdog.
"""

from __future__ import annotations

import threading
import time
from typing import Final

_NS_PER_MS: Final = 1e6


class CpuAccount:
    """One query's. Read by any thread, written by its meter."""

    def __init__(self) -> None:
        self.ns = 0
        self.clock: int | None = None
        """Of the thread that drives it now."""
        self.seen_ns = 0
        """Of that clock, at the last settling."""

    @property
    def ms(self) -> float:
        return self.ns / _NS_PER_MS


class CpuMeter:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: list[CpuAccount] = []
        self._seen_ns = time.process_time_ns()
        self._ahead_ns = 0
        """What threads' clocks, read after the process's, were ahead of it: at most 0."""

    def begin(self, account: CpuAccount, clock: int | None) -> None:
        """From now on `account` is computing; `clock`: the CPU clock of the thread that does
        nothing else meanwhile, None: there is none."""
        with self._lock:
            self._settle()
            account.clock = clock
            account.seen_ns = time.clock_gettime_ns(clock) if clock is not None else 0
            self._open.append(account)

    def end(self, account: CpuAccount) -> None:
        with self._lock:
            self._settle()
            self._open.remove(account)

    def settle(self) -> None:
        """Bring all accounts up to date."""
        with self._lock:
            self._settle()

    def _settle(self) -> None:
        used = time.process_time_ns()
        shared, self._seen_ns = used - self._seen_ns, used
        if not self._open:
            self._ahead_ns = 0
            return
        shared += self._ahead_ns
        for account in self._open:
            if account.clock is not None:
                now = time.clock_gettime_ns(account.clock)
                own = now - account.seen_ns
                account.seen_ns = now
                account.ns += own
                shared -= own
        self._ahead_ns = min(shared, 0)
        each = max(shared, 0) // len(self._open)
        for account in self._open:
            account.ns += each
