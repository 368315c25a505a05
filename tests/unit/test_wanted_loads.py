"""Which loads are wanted, in which order, and how large their files may become."""

from __future__ import annotations

from simulated_world import World, make_dataset, shard_task

from accel_dask.model.ids import ShardId, TenantId, WorkerId
from accel_dask.model.tenant import MIB, Quota, Tenant
from accel_dask.scheduler_plugin.wanted import wanted_loads


def test_each_placed_shard_without_a_ready_replica_is_wanted_once() -> None:
    """Two epochs that share a shard want it loaded once."""
    one, two = make_dataset(name="one"), make_dataset(name="two")
    world = World().begin(hosts=1)
    world.declare(one, two)
    world.publish(one, ["a", "b"])
    world.publish(two, ["b", "c"])
    loads = wanted_loads(world.view)
    assert [load.shard_id for load in loads] == ["a", "b", "c"]
    assert [load.name for load in loads] == [
        "acme.one@1#0/host-1",
        "acme.one@1#1/host-1",
        "acme.two@1#1/host-1",
    ]
    world.load(WorkerId("host-1"), ShardId("b"))
    assert [load.shard_id for load in wanted_loads(world.view)] == ["a", "c"]


def test_tenants_take_turns() -> None:
    world = World().begin(hosts=1, memory_bytes=4096 * MIB)
    world.write(Tenant(tenant=TenantId("globex"), quota=Quota()))
    large, small = make_dataset(name="large"), make_dataset(tenant="globex", name="small")
    world.declare(large, small)
    world.publish(large, [f"l{i}" for i in range(20)])
    world.publish(small, ["s0", "s1"])
    order = [load.shard_id for load in wanted_loads(world.view)]
    assert order[:4] == ["l0", "s0", "l1", "s1"]


def test_files_that_all_grow_to_their_limit_still_fit_the_budget() -> None:
    world = World().begin(hosts=1, memory_bytes_per_host=100 * MIB, executor_memory_bytes=20 * MIB)
    flights = make_dataset()
    world.declare(flights)
    world.publish(flights, [shard_task("a", 30 * MIB), shard_task("b", 10 * MIB)])
    limits = {load.shard_id: load.max_file_bytes for load in wanted_loads(world.view)}
    assert limits == {"a": 50 * MIB, "b": 30 * MIB}
    assert sum(limits.values()) == 80 * MIB
    world.load(WorkerId("host-1"), ShardId("a"), file_bytes=12 * MIB)
    (load,) = wanted_loads(world.view)
    assert load.max_file_bytes == 68 * MIB


def test_nothing_is_wanted_of_hosts_that_are_gone_or_epochs_that_are_over() -> None:
    flights = make_dataset()
    world = World().begin(hosts=1)
    world.declare(flights)
    world.publish(flights, ["a"])
    world.host_down("host-1")
    assert wanted_loads(world.view) == ()
    world.host_up("host-1")
    assert len(wanted_loads(world.view)) == 1
    world.write(delete=[flights.path])
    assert wanted_loads(world.view) == ()
