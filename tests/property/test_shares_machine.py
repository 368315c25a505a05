"""Shares of a tenant's concurrency, with stale views, lost and late answers, deaths, lost leases
and quotas that change: never more than the tenant may have, and all of it in the end."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from accel_dask.errors import (
    AccelError,
    CommitConflict,
    OutcomeUnknown,
    ResourceExhausted,
    StoreUnavailable,
)
from accel_dask.model.ids import GatewayId, Revision, TenantId
from accel_dask.model.member import Gateway, Share
from accel_dask.model.share import Claim, divide
from accel_dask.model.tenant import Quota, Tenant, tenant_path
from accel_dask.store.base import Transaction
from accel_dask.store.memory import MemoryStore
from accel_dask.store.records import delete_record, put_record, read_view
from flightsql_gateway.admission import Admission, Slot
from flightsql_gateway.shares import Shares

TENANTS = (TenantId("acme"), TenantId("rival"))


# The division


@given(
    concurrency=st.integers(0, 40),
    wanted=st.dictionaries(st.sampled_from("abcdef"), st.integers(0, 50), max_size=6),
    turns=st.lists(st.integers(0, 5), min_size=6, max_size=6),
)
def test_all_slots_are_divided_first_by_what_is_wanted_and_evenly(
    concurrency: int, wanted: dict[str, int], turns: list[int]
) -> None:
    claims = tuple(
        Claim(GatewayId(name), min(count, concurrency), Revision(turns[i]))
        for i, (name, count) in enumerate(sorted(wanted.items()))
    )
    slots = divide(concurrency, claims)
    assert sum(slots.values()) == (concurrency if claims else 0)
    for mine, other in itertools.permutations(claims, 2):
        is_short = slots[mine.gateway] < mine.wanted
        if is_short:  # nobody has more for nothing, and those who want it not much more
            assert slots[other.gateway] <= max(other.wanted, 0)
            assert slots[other.gateway] <= slots[mine.gateway] + 1
        if mine.wanted == other.wanted:
            assert abs(slots[mine.gateway] - slots[other.gateway]) <= 1


def test_where_not_each_can_have_one_it_is_the_turn_of_who_waited_longest() -> None:
    claims = (
        Claim(GatewayId("a"), 2, Revision(30)),
        Claim(GatewayId("b"), 2, Revision(10)),
        Claim(GatewayId("c"), 0, Revision(0)),
    )
    assert divide(1, claims) == {"a": 0, "b": 1, "c": 0}


def test_a_growth_decided_before_the_quota_was_lowered_is_refused() -> None:
    with MemoryStore() as store:
        put_record(store, Tenant(tenant=TENANTS[0], quota=Quota(concurrency=4)))
        shares = Shares(store)
        shares.serve(GatewayId("g1"), Admission(limit=shares.limit))
        lease = store.lease(1e9)
        shares.leased(lease)
        put_record(
            store,
            Gateway(gateway=GatewayId("g1"), address="", applied_revision=Revision(0)),
            lease.lease_id,
        )
        shares.applied(read_view(store))
        put_record(store, Tenant(tenant=TENANTS[0], quota=Quota(concurrency=3)))
        assert shares.decide(), "it must look again"
        assert not list(read_view(store).records(Share))
        shares.applied(read_view(store))
        shares.decide()
        assert [share.slots for share in read_view(store).records(Share)] == [3]


# The protocol


class FakeCall:
    deadline = math.inf


class FakeLease:
    """What a gateway believes of its lease."""

    def __init__(self, store: MemoryStore) -> None:
        self.real = store.lease(1e9)
        self.lease_id = self.real.lease_id
        self.lives = True

    def valid_until(self) -> float:
        return math.inf if self.lives else -math.inf

    def is_lost(self) -> bool:
        return False

    def is_unanswered(self) -> bool:
        return False


class FlakyStore:
    """A gateway's way to the store. One write may be refused, lose its answer, or arrive late."""

    def __init__(self, machine: SharesMachine) -> None:
        self.machine = machine
        self.fault = ""

    def read(self, prefix: str = "") -> object:
        return self.machine.store.read(prefix)

    def commit(self, transaction: Transaction) -> int:
        fault, self.fault = self.fault, ""
        if fault == "refused":
            raise StoreUnavailable("no member answers")
        if fault == "late":
            self.machine.late.append(transaction)
            raise OutcomeUnknown("the answer was lost")
        revision = self.machine.commit(transaction)
        if fault == "lost":
            raise OutcomeUnknown("the answer was lost")
        return revision


class OneGateway:
    def __init__(self, machine: SharesMachine, name: str) -> None:
        self.name = GatewayId(name)
        self.machine = machine
        self.store = FlakyStore(machine)
        self.shares = Shares(self.store)  # type: ignore[arg-type]
        self.admission = Admission(limit=self.shares.limit)
        self.shares.serve(self.name, self.admission)
        self.slots: dict[TenantId, list[Slot]] = {tenant: [] for tenant in TENANTS}
        self.orphans: Counter[TenantId] = Counter()
        """Queries that were running when the lease was lost."""
        self.register()

    def register(self) -> None:
        self.lease = FakeLease(self.machine.store)
        self.shares.leased(self.lease)  # type: ignore[arg-type]
        record = Gateway(gateway=self.name, address="", applied_revision=Revision(0))
        put_record(self.machine.store, record, self.lease.lease_id)

    def see(self) -> None:
        self.shares.applied(read_view(self.machine.store))

    def decide(self) -> None:
        try:
            self.shares.decide()
        except AccelError:
            return


GATEWAYS = st.integers(0, 3)


class SharesMachine(RuleBasedStateMachine):
    """Checks the sum at every commit, and every gateway's queries after every step."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        self.late: list[Transaction] = []
        self.gateways: list[OneGateway] = []
        self.sums: Counter[TenantId] = Counter()
        self.numbers = itertools.count(1)

    @initialize(concurrency=st.integers(1, 6))
    def begin(self, concurrency: int) -> None:
        for tenant in TENANTS:
            put_record(self.store, Tenant(tenant=tenant, quota=Quota(concurrency=concurrency)))
        for _ in range(2):
            self.gateways.append(OneGateway(self, f"g{next(self.numbers)}"))

    def commit(self, transaction: Transaction) -> int:
        revision = self.store.commit(transaction)
        self.check_sums()
        return revision

    def check_sums(self) -> None:
        view = read_view(self.store)
        for tenant in TENANTS:
            found = view.tenant(tenant)
            allowed = found.quota.concurrency if found else 0
            total = sum(share.slots for share in view.records(Share) if share.tenant == tenant)
            assert total <= max(allowed, self.sums[tenant]), (tenant, total, allowed)
            self.sums[tenant] = total

    def check_running(self) -> None:
        view = read_view(self.store)
        shares = {(s.tenant, s.gateway): s.slots for s in view.records(Share)}
        for gateway in self.gateways:
            for tenant in TENANTS:
                running = len(gateway.slots[tenant]) - gateway.orphans[tenant]
                if gateway.lease.lives and view.tenant(tenant) is not None:
                    assert running <= shares.get((tenant, gateway.name), 0)

    def pick(self, index: int) -> OneGateway | None:
        return self.gateways[index % len(self.gateways)] if self.gateways else None

    @precondition(lambda self: len(self.gateways) < 4)
    @rule()
    def a_gateway_starts(self) -> None:
        self.gateways.append(OneGateway(self, f"g{next(self.numbers)}"))

    @rule(index=GATEWAYS)
    def a_gateway_is_killed(self, index: int) -> None:
        gateway = self.pick(index)
        if gateway is not None:
            self.gateways.remove(gateway)
            gateway.lease.real.close()
            self.check_sums()

    @rule(index=GATEWAYS)
    def a_gateway_loses_its_lease(self, index: int) -> None:
        """It knows, by its own clock, before the store ends the lease."""
        gateway = self.pick(index)
        if gateway is not None and gateway.lease.lives:
            gateway.lease.lives = False
            gateway.lease.real.close()
            self.check_sums()
            for tenant in TENANTS:
                gateway.orphans[tenant] = len(gateway.slots[tenant])

    @rule(index=GATEWAYS)
    def a_gateway_gets_another_lease(self, index: int) -> None:
        gateway = self.pick(index)
        if gateway is not None and not gateway.lease.lives:
            gateway.register()

    @rule(index=GATEWAYS)
    def a_gateway_sees_the_present(self, index: int) -> None:
        gateway = self.pick(index)
        if gateway is not None:
            gateway.see()

    @rule(index=GATEWAYS, fault=st.sampled_from(["", "", "", "refused", "lost", "late"]))
    def a_gateway_decides(self, index: int, fault: str) -> None:
        gateway = self.pick(index)
        if gateway is not None:
            gateway.store.fault = fault
            gateway.decide()
            gateway.store.fault = ""
            self.check_running()

    @rule(index=GATEWAYS, fault=st.sampled_from(["", "lost", "late"]))
    def a_gateway_sees_and_decides(self, index: int, fault: str) -> None:
        self.a_gateway_sees_the_present(index)
        self.a_gateway_decides(index, fault)

    @rule(faults=st.lists(st.sampled_from(["", "", "", "lost", "late"]), min_size=4, max_size=4))
    def all_decide_on_the_same_view(self, faults: list[str]) -> None:
        for gateway in self.gateways:
            gateway.see()
        for index, fault in zip(range(len(self.gateways)), faults, strict=False):
            self.a_gateway_decides(index, fault)

    @rule(tenant=st.sampled_from(TENANTS), counts=st.lists(st.integers(0, 9), min_size=4))
    def queries_begin_everywhere(self, tenant: TenantId, counts: list[int]) -> None:
        for index, count in zip(range(len(self.gateways)), counts, strict=False):
            self.queries_begin(index, tenant, count)

    @precondition(lambda self: self.late)
    @rule(index=st.integers(0, 9))
    def a_write_arrives_late(self, index: int) -> None:
        transaction = self.late.pop(index % len(self.late))
        try:
            self.commit(transaction)
        except (CommitConflict, AccelError):
            return
        self.check_running()

    @rule(index=GATEWAYS, tenant=st.sampled_from(TENANTS), count=st.integers(1, 7))
    def queries_begin(self, index: int, tenant: TenantId, count: int) -> None:
        gateway = self.pick(index)
        for _ in range(count if gateway is not None else 0):
            assert gateway is not None
            quota = Quota(concurrency=100, queue_length=0)
            try:
                slot = gateway.admission.admit(tenant, quota, FakeCall())  # type: ignore[arg-type]
            except ResourceExhausted:
                continue
            assert gateway.lease.lives, "it began a query without a lease"
            gateway.slots[tenant].append(slot)
        self.check_running()

    @rule(index=GATEWAYS, tenant=st.sampled_from(TENANTS), count=st.integers(1, 7))
    def queries_end(self, index: int, tenant: TenantId, count: int) -> None:
        gateway = self.pick(index)
        for _ in range(count if gateway is not None else 0):
            assert gateway is not None
            if gateway.slots[tenant]:
                gateway.slots[tenant].pop(0).release()
                gateway.orphans[tenant] = max(gateway.orphans[tenant] - 1, 0)

    @rule(tenant=st.sampled_from(TENANTS), concurrency=st.integers(1, 8))
    def a_quota_changes(self, tenant: TenantId, concurrency: int) -> None:
        put_record(self.store, Tenant(tenant=tenant, quota=Quota(concurrency=concurrency)))

    @rule(tenant=st.sampled_from(TENANTS))
    def a_tenant_is_deleted(self, tenant: TenantId) -> None:
        delete_record(self.store, tenant_path(tenant))
        for gateway in self.gateways:
            # Whatever still runs is of a tenant that there is no more.
            gateway.orphans[tenant] = len(gateway.slots[tenant])

    def teardown(self) -> None:
        """Once all is quiet, every slot is somebody's."""
        try:
            self._settle()
        finally:
            self.store.close()

    def _settle(self) -> None:
        for gateway in self.gateways:
            if not gateway.lease.lives:
                gateway.register()
            for slots in gateway.slots.values():
                while slots:
                    slots.pop().release()
        for _ in range(6):
            for gateway in self.gateways:
                gateway.see()
                gateway.decide()
                self.check_running()
        view = read_view(self.store)
        for tenant in TENANTS:
            found = view.tenant(tenant)
            shares = [share for share in view.records(Share) if share.tenant == tenant]
            if self.gateways:
                assert sum(s.slots for s in shares) == (found.quota.concurrency if found else 0)
            for gateway in self.gateways:
                slots = next((s.slots for s in shares if s.gateway == gateway.name), 0)
                assert gateway.shares.limit(tenant, Quota(concurrency=100)) == slots


TestSharesMachine = pytest.mark.filterwarnings("ignore")(SharesMachine.TestCase)
TestSharesMachine.settings = settings(max_examples=50, stateful_step_count=40, deadline=None)
