"""Placement under any mix of hosts, tenants, datasets and budgets."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_world import World, change_quota, make_dataset

from accel_dask.errors import QuotaExceeded
from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import ColdPolicy, Dataset, Spread
from accel_dask.model.epoch import Epoch, EpochState, ShardSummary
from accel_dask.model.ids import EpochNumber, ShardId, TenantId, WorkerId
from accel_dask.model.placement import Placement
from accel_dask.model.replica import Replica, ReplicaState
from accel_dask.model.tenant import MIB, Quota, Tenant
from accel_dask.scheduler_plugin.admission import admit
from accel_dask.scheduler_plugin.budget import Ledger
from accel_dask.scheduler_plugin.placement import Hosts, place
from accel_dask.scheduler_plugin.residency import residency

SHARDS = [f"s{i}" for i in range(12)]
EXECUTOR = 16 * MIB


def summaries(sizes: dict[str, int]) -> tuple[ShardSummary, ...]:
    return tuple(
        ShardSummary(shard_id=ShardId(shard), rows=1, source_bytes=size)
        for shard, size in sorted(sizes.items())
    )


@st.composite
def shard_sets(draw: st.DrawFn, most: int = 8) -> dict[str, int]:
    chosen = draw(st.lists(st.sampled_from(SHARDS), min_size=1, max_size=most, unique=True))
    # A shard's content decides its size, so it has one size everywhere.
    return {shard: (3 + 7 * SHARDS.index(shard) % 40) * MIB for shard in chosen}


@st.composite
def held_worlds(draw: st.DrawFn) -> World:
    """A cluster that holds what earlier placements gave it."""
    world = World(check_each=False)
    world.begin(hosts=0)
    world.write(
        Tenant(
            tenant=TenantId("acme"),
            quota=Quota(
                memory_bytes_per_host=EXECUTOR + draw(st.integers(20, 400)) * MIB,
                executor_memory_bytes=EXECUTOR,
            ),
        ),
        Tenant(
            tenant=TenantId("other"),
            quota=Quota(memory_bytes_per_host=300 * MIB, executor_memory_bytes=EXECUTOR),
        ),
    )
    for number in range(draw(st.integers(1, 5))):
        world.host_up(f"host-{number}", draw(st.integers(20, 500)) * MIB)
    for number in range(draw(st.integers(0, 4))):
        dataset = make_dataset(
            tenant=draw(st.sampled_from(["acme", "acme", "other"])),
            name=f"d{number}",
            spread=draw(st.sampled_from(list(Spread))),
            replicas=draw(st.integers(1, 3)),
        )
        world.declare(dataset)
        hold(world, dataset, draw(shard_sets()), draw(st.booleans()))
    return world


def hold(world: World, dataset: Dataset, sizes: dict[str, int], is_loaded: bool) -> bool:
    """Place an epoch of `dataset`, and load it; False where there is no room."""
    try:
        hosts = place(world.view, dataset, summaries(sizes))
    except QuotaExceeded:
        return False
    number = EpochNumber(1 + len(world.view.epochs_of(dataset.dataset_id)))
    world.write(
        Epoch(
            tenant=dataset.tenant,
            dataset=dataset.name,
            number=number,
            snapshot_id=None,
            sequence=number,
            state=EpochState.READY,
            replicas=dataset.wanted_replicas,
            shards=summaries(sizes),
        ),
        Placement(tenant=dataset.tenant, dataset=dataset.name, epoch=number, hosts=hosts),
    )
    if is_loaded:
        for shard_id, workers in hosts:
            for worker in workers:
                world.load(worker, shard_id, sizes[shard_id] // 2)
    return True


def budgets_hold(view: ClusterView, dataset: Dataset, shards: object, hosts: Hosts) -> None:
    """No host that gets something new is over the tenant's budget or its own."""
    before = Ledger(view, dataset.tenant, summaries(dict.fromkeys([], 0)))
    after = Ledger(view, dataset.tenant, shards)  # type: ignore[arg-type]
    for shard_id, workers in hosts:
        for worker in workers:
            if worker in after.hosts:
                after.add(worker, (shard_id,))
    for worker in after.hosts:
        added = after.of_tenant.get(worker, set()) - before.of_tenant.get(worker, set())
        if added:
            assert after.tenant_bytes(worker) <= after.quota.shard_bytes_per_host
            assert after.host_free_bytes(worker) >= 0


@given(
    held_worlds(),
    shard_sets(),
    st.sampled_from(list(Spread)),
    st.integers(1, 3),
)
def test_a_placement_never_breaks_a_budget_and_is_complete_or_refused(
    world: World, sizes: dict[str, int], spread: Spread, replicas: int
) -> None:
    dataset = make_dataset(name="d0", spread=spread, replicas=replicas)
    world.declare(dataset)
    shards = summaries(sizes)
    try:
        hosts = place(world.view, dataset, shards)
    except QuotaExceeded:
        return
    assert hosts == place(world.view, dataset, shards), "not deterministic"
    assert [shard_id for shard_id, _ in hosts] == [s.shard_id for s in shards]
    wanted = min(dataset.wanted_replicas, len(world.view.workers))
    for _, workers in hosts:
        assert len(workers) == len(set(workers)) == wanted
        assert set(workers) <= set(world.view.workers)
    if spread is Spread.TOGETHER:
        assert len({workers for _, workers in hosts}) == 1
    budgets_hold(world.view, dataset, shards, hosts)


@given(held_worlds(), shard_sets(), st.integers(1, 3))
def test_a_spread_shard_that_is_held_already_is_not_moved(
    world: World, sizes: dict[str, int], replicas: int
) -> None:
    dataset = make_dataset(name="wide", spread=Spread.SPREAD, replicas=replicas)
    world.declare(dataset)
    if not hold(world, dataset, sizes, is_loaded=True):
        return
    held = {ShardId(s): {r.worker for r in world.view.ready_replicas(ShardId(s))} for s in sizes}
    wanted = min(dataset.wanted_replicas, len(world.view.workers))
    for shard_id, workers in place(world.view, dataset, summaries(sizes)):
        assert len(set(workers) - held[shard_id]) == max(0, wanted - len(held[shard_id]))


@given(
    held_worlds(),
    shard_sets(),
    st.sampled_from(list(Spread)),
    st.integers(1, 3),
    st.integers(0, 4),
)
def test_when_a_host_is_lost_only_its_shards_move_and_its_return_moves_nothing(
    world: World, sizes: dict[str, int], spread: Spread, replicas: int, victim: int
) -> None:
    dataset = make_dataset(name="mine", spread=spread, replicas=replicas)
    world.declare(dataset)
    if not hold(world, dataset, sizes, is_loaded=True):
        return
    shards = summaries(sizes)
    before = world.view.placement(dataset.dataset_id, EpochNumber(1))
    assert before is not None
    assert place(world.view, dataset, shards, before) == before.hosts, "moves without a reason"
    names = sorted(world.view.workers)
    lost = names[victim % len(names)]
    memory = world.view.workers[lost].record.memory_bytes
    world.host_down(lost)
    try:
        hosts = place(world.view, dataset, shards, before)
    except QuotaExceeded:
        return
    live = set(world.view.workers)
    for shard_id, workers in hosts:
        old = set(before.workers_of(shard_id))
        assert old & live <= set(workers), "a replica on a live host was moved"
        if lost not in old:
            assert set(workers) == old
        assert len(set(workers) & live) >= min(dataset.wanted_replicas, len(live))
    budgets_hold(world.view, dataset, shards, hosts)
    moved = replace(before, hosts=hosts)
    world.write(moved)
    world.host_up(lost, memory)
    again = place(world.view, dataset, shards, moved)
    wanted = min(dataset.wanted_replicas, len(world.view.workers))
    for shard_id, workers in again:
        kept = set(moved.workers_of(shard_id))
        assert kept <= set(workers)
        assert len(set(workers) - kept) == max(0, wanted - len(kept))


@given(shard_sets(most=12), st.integers(2, 5))
def test_spread_shards_are_balanced_by_bytes(sizes: dict[str, int], hosts: int) -> None:
    world = World().begin(hosts=hosts, memory_bytes=4096 * MIB, memory_bytes_per_host=4096 * MIB)
    dataset = make_dataset(spread=Spread.SPREAD)
    world.declare(dataset)
    laid = dict.fromkeys(world.view.workers, 0)
    for shard_id, (worker,) in place(world.view, dataset, summaries(sizes)):
        laid[worker] += sizes[shard_id]
    assert max(laid.values()) - min(laid.values()) <= max(sizes.values())


@given(st.lists(shard_sets(most=3), min_size=2, max_size=4), st.data())
def test_together_datasets_always_share_a_host(
    datasets: list[dict[str, int]], data: st.DataObject
) -> None:
    """Whatever the number of replicas of each: a join needs one host with all of them."""
    world = World(check_each=False).begin(hosts=4, memory_bytes_per_host=1024 * MIB)
    declared = []
    for number, sizes in enumerate(datasets):
        dataset = make_dataset(name=f"t{number}", replicas=data.draw(st.integers(1, 3)))
        world.declare(dataset)
        declared.append(dataset)
        assert hold(world, dataset, sizes, is_loaded=data.draw(st.booleans()))
    common = set(world.view.workers)
    for placement in world.view.records(Placement):
        for _, workers in placement.hosts:
            common &= set(workers)
    assert common
    world.host_down(min(common))
    for dataset in declared:
        placement = world.view.placement(dataset.dataset_id, EpochNumber(1))
        epoch = world.view.epoch(dataset.dataset_id, EpochNumber(1))
        assert placement is not None
        assert epoch is not None
        hosts = place(world.view, dataset, epoch.shards, placement)
        world.write(replace(placement, hosts=hosts))
    common = set(world.view.workers)
    for placement in world.view.records(Placement):
        for _, workers in placement.hosts:
            common &= set(workers)
    assert common


@given(held_worlds(), shard_sets(), st.sampled_from(list(Spread)))
def test_what_admission_refuses_could_not_have_been_placed_beside_the_serving_epoch(
    world: World, sizes: dict[str, int], spread: Spread
) -> None:
    """On one host both checks count the same; admission only says it in the tenant's terms."""
    if len(world.view.workers) != 1:
        return
    dataset = make_dataset(name="d0", spread=spread)
    world.declare(dataset)
    try:
        admit(world.view, dataset, summaries(sizes))
    except QuotaExceeded:
        with pytest.raises(QuotaExceeded):
            place(world.view, dataset, summaries(sizes))


def test_a_measured_file_counts_with_its_own_size() -> None:
    world = World().begin(hosts=1, memory_bytes_per_host=100 * MIB, executor_memory_bytes=MIB)
    dataset = make_dataset()
    world.declare(dataset)
    with pytest.raises(QuotaExceeded):
        place(world.view, dataset, summaries({"a": 200 * MIB}))
    incarnation = world.view.workers[WorkerId("host-1")].create_revision
    world.write(
        Replica(
            worker=WorkerId("host-1"),
            shard_id=ShardId("a"),
            worker_incarnation=incarnation,
            state=ReplicaState.READY,
            file_bytes=50 * MIB,
        )
    )
    assert place(world.view, dataset, summaries({"a": 200 * MIB})) == (("a", ("host-1",)),)


@given(
    held_worlds(),
    shard_sets(),
    st.sampled_from(list(Spread)),
    st.integers(1, 3),
    st.one_of(st.none(), st.integers(0, 8)),
    st.integers(1, 200),
)
def test_what_may_be_cold_is_hot_from_the_end_as_far_as_budgets_go_with_room_to_read_the_rest(
    world: World,
    sizes: dict[str, int],
    spread: Spread,
    replicas: int,
    hot_shards: int | None,
    cold_mib: int,
) -> None:
    dataset = make_dataset(
        name="d0", spread=spread, replicas=replicas, cold=ColdPolicy.ALLOW, hot_shards=hot_shards
    )
    world.declare(dataset)
    change_quota(world, cold_memory_bytes=cold_mib * MIB)
    shards = summaries(sizes)
    try:
        found = residency(world.view, dataset, shards)
    except QuotaExceeded as error:
        assert "cold_memory_bytes" in str(error)  # noqa: PT017 - a refusal is one of two ends
        return
    assert [shard_id for shard_id, _ in found.hosts] == [s.shard_id for s in shards]
    is_hot = [bool(workers) for _, workers in found.hosts]
    assert is_hot == sorted(is_hot)
    wanted = len(shards) if hot_shards is None else min(hot_shards, len(shards))
    assert found.hot_count <= wanted
    assert found.is_short == (found.hot_count < wanted)
    assert bool(found.cold_because) == (not all(is_hot))
    budgets_hold(world.view, dataset, shards, found.hosts)
    ledger = Ledger(world.view, dataset.tenant, shards, wants_cold=True)
    assert ledger.cold_hosts or all(is_hot)
    for shard_id, workers in found.hosts:
        for worker in workers:
            ledger.add(worker, (shard_id,))
    for worker in ledger.cold_hosts:
        added = any(worker in workers for _, workers in found.hosts)
        assert ledger.host_free_bytes(worker) >= 0 or not added
