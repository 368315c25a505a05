"""Shares when the store is away: a gateway stops by itself, or goes on blindly."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from accel_dask.errors import StoreUnavailable
from accel_dask.model.ids import GatewayId, Revision, TenantId
from accel_dask.model.member import Gateway, Share
from accel_dask.model.share import Holding, next_move, shares_by_tenant
from accel_dask.model.tenant import Quota, Tenant
from accel_dask.store.memory import MemoryStore
from accel_dask.store.records import put_record, read_view
from accel_dask.worker_plugin.executor.ticket_desk import Standing
from flightsql_gateway.admission import Admission
from flightsql_gateway.shares import Shares

ACME = TenantId("acme")


class FakeLease:
    lease_id = 0

    def __init__(self) -> None:
        self.until = time.monotonic() + 1000
        self.is_gone = False
        self.is_silent = False

    def valid_until(self) -> float:
        return self.until

    def is_lost(self) -> bool:
        return self.is_gone

    def is_unanswered(self) -> bool:
        return self.is_silent


@pytest.fixture
def lease() -> FakeLease:
    return FakeLease()


@pytest.fixture
def shares(lease: FakeLease) -> Iterator[Shares]:
    with MemoryStore() as store:
        put_record(store, Tenant(tenant=ACME, quota=Quota(concurrency=3)))
        gateway = GatewayId("g")
        put_record(store, Gateway(gateway=gateway, address="", applied_revision=Revision(0)))
        found = Shares(store)
        found.serve(gateway, Admission(limit=found.limit))
        found.leased(lease)  # type: ignore[arg-type]
        found.applied(read_view(store))
        found.decide()
        yield found


def test_who_has_had_a_slot_all_along_gives_it_to_who_waits_once_there_are_fewer() -> None:
    with MemoryStore() as store:
        put_record(store, Tenant(tenant=ACME, quota=Quota(concurrency=1)))
        for name, slots, wanted, served_at in (("a", 1, 3, 1), ("b", 0, 0, 2), ("c", 0, 0, 3)):
            gateway = GatewayId(name)
            put_record(store, Gateway(gateway=gateway, address="", applied_revision=Revision(0)))
            share = Share(
                tenant=ACME, gateway=gateway, slots=slots, wanted=wanted,
                served_at=Revision(served_at),
            )  # fmt: skip
            put_record(store, share)
        served: list[str] = []
        for _ in range(60):
            for name in "abc":
                view = read_view(store)
                shares = shares_by_tenant(view)[ACME]
                own = next(share for share in shares if share.gateway == name)
                holding = Holding(
                    tenant=ACME, gateway=own.gateway, held=own.slots, running=0, wanted=3
                )
                move = next_move(view, holding, shares)
                if move.share is not None:
                    put_record(store, move.share)
                    if move.share.slots > own.slots:
                        served.append(name)
        turns = {name: served.count(name) for name in "abc"}
        assert min(turns.values()) >= 5
        assert max(turns.values()) - min(turns.values()) <= 2, turns


def test_a_share_counts_while_its_lease_surely_lives(shares: Shares, lease: FakeLease) -> None:
    assert shares.limit(ACME, Quota(concurrency=3)) == 3
    assert shares.limit(ACME, Quota(concurrency=2)) == 2, "a lower quota holds at once"
    assert not shares.is_blind()
    lease.until = time.monotonic() - 1
    assert shares.limit(ACME, Quota(concurrency=3)) == 0


def test_a_gateway_goes_on_blindly_only_if_the_store_does_not_answer(
    shares: Shares, lease: FakeLease
) -> None:
    lease.until = time.monotonic() - 1
    lease.is_silent = True
    assert shares.limit(ACME, Quota(concurrency=3)) == 3
    assert shares.limit(TenantId("without"), Quota()) == 1, "it had none when the store went away"
    assert shares.is_blind()
    lease.is_gone = True
    assert shares.limit(ACME, Quota(concurrency=3)) == 0


def test_another_lease_begins_with_nothing(shares: Shares) -> None:
    shares.leased(FakeLease())  # type: ignore[arg-type]
    assert shares.limit(ACME, Quota(concurrency=3)) == 0


def test_an_executor_refuses_blind_gateways_while_its_own_host_hears_from_the_store() -> None:
    standing = Standing(time.monotonic(), 300)
    standing.check_blind()
    standing.extend(time.monotonic() + 9)
    with pytest.raises(StoreUnavailable, match="another gateway"):
        standing.check_blind()
    standing.check()
    silent = Standing(time.monotonic(), 300)
    silent.extend(time.monotonic() + 0.0)
    silent.check_blind()
