"""Weighted fairness between tenants, on simulated time: nobody starves, nothing idles, weights
hold."""

from __future__ import annotations

import heapq
import random
from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import Quota
from flightsql_gateway.fair_queue import FairQueue


@dataclass(frozen=True)
class Tenant:
    weight: int
    limit: int
    seconds: float
    """How long its queries take, give or take half."""

    @property
    def quota(self) -> Quota:
        return Quota(cpu_weight=self.weight, concurrency=self.limit)


TENANTS = st.lists(
    st.builds(
        Tenant,
        weight=st.sampled_from([10, 100, 300, 1000]),
        limit=st.integers(1, 6),
        seconds=st.sampled_from([0.001, 0.01, 0.3, 2.0]),
    ),
    min_size=2,
    max_size=5,
)


class Simulation:
    """Tenants who always have something waiting."""

    def __init__(self, tenants: list[Tenant], places: int, seed: int) -> None:
        self.tenants = {TenantId(f"t{i}"): tenant for i, tenant in enumerate(tenants)}
        self.queue: FairQueue[TenantId] = FairQueue(places, lambda _, quota: quota.concurrency)
        self.now = 0.0
        self.held: Counter[TenantId] = Counter()
        """Seconds of places."""
        self.longest_wait: Counter[TenantId] = Counter()
        self.last: dict[TenantId, float] = dict.fromkeys(self.tenants, 0.0)
        self._random = random.Random(seed)
        self._ends: list[tuple[float, int, TenantId, float, float]] = []
        self._count = 0
        for tenant in self.tenants:
            self._wait(tenant)

    def _wait(self, tenant: TenantId) -> None:
        line = self.queue.line(tenant, self.tenants[tenant].quota)
        while len(line.waiting) < 3:
            self.queue.join(line, tenant)

    def run(self, queries: int) -> None:
        for _ in range(queries):
            self._begin_all()
            ends, _, tenant, predicted, seconds = heapq.heappop(self._ends)
            self.now = ends
            self.held[tenant] += seconds
            line = self.queue.lines[tenant]
            self.queue.end(line, predicted, seconds)

    def _begin_all(self) -> None:
        while (found := self.queue.next()) is not None:
            tenant, predicted = found
            self.longest_wait[tenant] = max(self.longest_wait[tenant], self.now - self.last[tenant])
            self.last[tenant] = self.now
            seconds = self.tenants[tenant].seconds * self._random.uniform(0.5, 1.5)
            self._count += 1
            heapq.heappush(
                self._ends, (self.now + seconds, self._count, tenant, predicted, seconds)
            )
            self._wait(tenant)
        self._check_nothing_idles()

    def _check_nothing_idles(self) -> None:
        queue = self.queue
        running = {tenant: queue.lines[tenant].running for tenant in self.tenants}
        assert queue.running == sum(running.values()) <= queue.places
        for tenant, spec in self.tenants.items():
            assert running[tenant] <= spec.limit
        could_run = any(running[t] < spec.limit for t, spec in self.tenants.items())
        assert queue.running == queue.places or not could_run


@settings(deadline=None)
@given(tenants=TENANTS, places=st.integers(1, 6), seed=st.integers(0, 999))
def test_places_are_never_idle_and_nobody_starves(
    tenants: list[Tenant], places: int, seed: int
) -> None:
    simulation = Simulation(tenants, places, seed)
    simulation.run(400)
    waited = {
        tenant: max(simulation.longest_wait[tenant], simulation.now - simulation.last[tenant])
        for tenant in simulation.tenants
    }
    longest = max(tenant.seconds for tenant in tenants) * 1.5
    total = sum(tenant.weight for tenant in tenants)
    for key, tenant in simulation.tenants.items():
        # Its own query, paid for at its weight, and one of everybody else's before it.
        bound = 4 * longest * (total / tenant.weight + len(tenants) + 1)
        assert waited[key] <= bound, (key, waited)


@settings(deadline=None, max_examples=15)
@given(
    weights=st.lists(st.sampled_from([100, 200, 400]), min_size=2, max_size=4),
    seconds=st.lists(st.sampled_from([0.01, 0.03, 0.1]), min_size=4, max_size=4),
    places=st.integers(1, 4),
    seed=st.integers(0, 999),
)
def test_time_in_places_is_shared_by_weight(
    weights: list[int], seconds: list[float], places: int, seed: int
) -> None:
    tenants = [
        Tenant(weight, places, length) for weight, length in zip(weights, seconds, strict=False)
    ]
    simulation = Simulation(tenants, places, seed)
    simulation.run(1500)
    total = sum(simulation.held.values())
    for key, tenant in simulation.tenants.items():
        expected = tenant.weight / sum(weights)
        assert abs(simulation.held[key] / total - expected) < 0.06, simulation.held


def test_a_tenant_that_comes_back_has_saved_up_nothing_and_owes_nothing() -> None:
    queue: FairQueue[str] = FairQueue(1, lambda _, quota: quota.concurrency)
    busy, idle = (queue.line(TenantId(name), Quota()) for name in ("busy", "idle"))
    for _ in range(1000):
        predicted = queue.enter(busy)
        assert predicted is not None
        queue.end(busy, predicted, 1.0)
    queue.join(busy, "first")
    for number in range(3):
        queue.join(idle, f"idle {number}")
        queue.join(busy, f"busy {number}")
    order = []
    while (found := queue.next()) is not None:
        who, predicted = found
        order.append(who)
        queue.end(idle if who.startswith("idle") else busy, predicted, 1.0)
    assert {"first", "busy 0"} & set(order[:3])
    assert {"idle 0"} <= set(order[:2])
