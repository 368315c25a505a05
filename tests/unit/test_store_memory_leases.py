"""Leases of the in-memory store under a clock of the test's own."""

from __future__ import annotations

from accel_dask.store.base import DeleteEvent, PutOp, Transaction
from accel_dask.store.memory import MemoryStore


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_lease_lives_while_it_is_renewed_and_ends_to_the_second() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    lost: list[float] = []
    alive = [True]
    lease = store.lease(9.0, may_renew=lambda: alive[0], on_lost=lambda: lost.append(clock.now))
    assert lease.valid_until() == 100 + 8.1
    store.commit(Transaction(ops=(PutOp("k", b"", lease.lease_id), PutOp("l", b"", 0))))
    for _ in range(10):
        clock.now += 3
        store.check_leases()
    assert lease.valid_until() == 130 + 8.1
    alive[0] = False
    clock.now = 138.9
    store.check_leases()
    assert store.get("k") is not None
    revision = store.read().revision
    clock.now = 139.0
    store.check_leases()
    assert store.get("k") is None
    assert store.get("l") is not None
    assert lease.is_lost()
    assert lost == [139.0]
    batch = store.watch("", revision + 1).next(0)
    assert batch is not None
    assert batch.events == (DeleteEvent("k", revision + 1),)


def test_a_watchdog_that_comes_back_in_time_saves_the_lease() -> None:
    clock = Clock()
    store = MemoryStore(clock)
    alive = [False]
    lease = store.lease(9.0, may_renew=lambda: alive[0])
    clock.now += 5
    store.check_leases()
    assert lease.valid_until() == 108.1
    alive[0] = True
    clock.now += 1
    store.check_leases()
    assert lease.valid_until() == 106 + 8.1
