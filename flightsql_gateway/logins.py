"""How often a tenant's users may log in at one gateway.

A new connection with its login takes as much of a gateway's time as several queries, and comes
before every limit on queries: without a limit of its own, a tenant that connects anew for each
query takes that time from all others. Those beyond the rate wait their turn instead of being
refused, which would have them back at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from accel_dask.errors import ResourceExhausted
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import Quota

BURST_SECONDS: Final = 2.0
"""So many seconds' logins may come at once, after as long without any."""
MAX_WAIT_SECONDS: Final = 5.0
MAX_WAITING: Final = 128
"""Of one tenant: each keeps a thread."""


@dataclass(slots=True)
class _Turns:
    """One tenant's."""

    paid_until: float = 0.0
    """Monotonic seconds up to which logins have used the rate."""
    waiting: int = 0


class Logins:
    """Safe to use from several threads."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._turns: dict[TenantId, _Turns] = {}

    def admit(self, tenant: TenantId, quota: Quota) -> None:
        """Let a login of `tenant` through, when its turn has come.

        Raises:
            ResourceExhausted: too many wait already, or it would wait for too long.
        """
        with self._lock:
            turns = self._turns.setdefault(tenant, _Turns())
            now = self._clock()
            paid_until = max(turns.paid_until, now)
            wait = round(paid_until - now - BURST_SECONDS, 3)
            if wait > MAX_WAIT_SECONDS or (wait > 0 and turns.waiting >= MAX_WAITING):
                raise ResourceExhausted(
                    f"tenant {tenant} logs in more often than {quota.logins_per_second} times a "
                    "second in one gateway, its limit (logins_per_second); keep connections open, "
                    f"and retry after {round(max(wait, 0.1) * 1000)} ms"
                )
            turns.paid_until = paid_until + 1 / quota.logins_per_second
            if wait <= 0:
                return
            turns.waiting += 1
        try:
            self._sleep(wait)
        finally:
            with self._lock:
                turns.waiting -= 1
