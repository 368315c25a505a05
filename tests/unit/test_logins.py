"""A tenant that connects anew all the time waits its turn; nobody else does."""

from __future__ import annotations

import threading

import pytest

from accel_dask.errors import ResourceExhausted
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import Quota
from flightsql_gateway.logins import BURST_SECONDS, MAX_WAIT_SECONDS, MAX_WAITING, Logins

ACME, OTHER = TenantId("acme"), TenantId("other")
QUOTA = Quota(logins_per_second=10)
BURST = int(BURST_SECONDS * 10) + 1


class Clock:
    """Stands still unless it is told to go on; waits take no time."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    def logins(self) -> Logins:
        return Logins(lambda: self.now, self.waits.append)


def test_a_burst_passes_at_once_and_the_next_wait_their_turn() -> None:
    clock = Clock()
    logins = clock.logins()
    for _ in range(BURST):
        logins.admit(ACME, QUOTA)
    assert clock.waits == []
    for _ in range(3):
        logins.admit(ACME, QUOTA)
    assert clock.waits == pytest.approx([0.1, 0.2, 0.3])


def test_one_tenants_logins_are_no_other_tenants() -> None:
    clock = Clock()
    logins = clock.logins()
    for _ in range(BURST + 5):
        logins.admit(ACME, QUOTA)
    waited = len(clock.waits)
    logins.admit(OTHER, QUOTA)
    assert len(clock.waits) == waited


def test_logins_below_the_rate_never_wait() -> None:
    clock = Clock()
    logins = clock.logins()
    for _ in range(200):
        logins.admit(ACME, QUOTA)
        clock.now += 0.101
    assert clock.waits == []


def test_who_would_wait_for_too_long_is_refused_and_uses_no_turn() -> None:
    clock = Clock()
    logins = clock.logins()
    for _ in range(BURST + int(MAX_WAIT_SECONDS * 10)):
        logins.admit(ACME, QUOTA)
    with pytest.raises(ResourceExhausted, match="10 times a second") as refused:
        logins.admit(ACME, QUOTA)
    assert refused.value.retry_after_ms >= MAX_WAIT_SECONDS * 1000
    for _ in range(50):
        with pytest.raises(ResourceExhausted):
            logins.admit(ACME, QUOTA)
    clock.now += 0.2  # two turns
    logins.admit(ACME, QUOTA)


def test_only_so_many_wait_at_once() -> None:
    release, all_wait = threading.Event(), threading.Semaphore(0)

    def sleep(_: float) -> None:
        all_wait.release()
        release.wait(10)

    logins, quota = Logins(lambda: 0.0, sleep), Quota(logins_per_second=1000)
    for _ in range(int(BURST_SECONDS * 1000) + 1):
        logins.admit(ACME, quota)
    threads = [
        threading.Thread(target=logins.admit, args=(ACME, quota)) for _ in range(MAX_WAITING)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert all_wait.acquire(timeout=10)
    with pytest.raises(ResourceExhausted):
        logins.admit(ACME, quota)
    release.set()
    for thread in threads:
        thread.join()
