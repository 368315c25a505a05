"""The records' state machines, the view's invariants and commits."""

from __future__ import annotations

import hashlib
import hmac
import itertools
from dataclasses import replace

import pytest
from simulated_world import World, make_dataset

from accel_dask.codec import decode, encode
from accel_dask.errors import (
    CommitConflict,
    IllegalTransition,
    InvariantViolated,
    StaleEpoch,
    Unauthenticated,
)
from accel_dask.model.cluster import RECORD_TYPES, ClusterView
from accel_dask.model.commit import (
    Commit,
    Delete,
    Incarnation,
    Put,
    Unchanged,
    UnchangedUnder,
    apply_commit,
    holds,
)
from accel_dask.model.epoch import EPOCH_EDGES, Epoch, EpochState, StoryLine, advance
from accel_dask.model.executor import Attachment, Executor, ExecutorPlan, ExecutorState
from accel_dask.model.ids import (
    DatasetId,
    EpochNumber,
    Revision,
    ShardId,
    TenantId,
    WorkerId,
    epoch_segment,
)
from accel_dask.model.member import Gateway
from accel_dask.model.placement import Serving
from accel_dask.model.replica import REPLICA_EDGES, Replica, ReplicaState, move
from accel_dask.model.routing import build_routing
from accel_dask.model.tenant import Quota
from accel_dask.model.ticket import EpochToken, Ticket, fence, sign, verify

FLIGHTS = make_dataset()


def epoch(number: int = 1, state: EpochState = EpochState.LOADING) -> Epoch:
    return Epoch(
        tenant=TenantId("acme"),
        dataset="flights",
        number=EpochNumber(number),
        snapshot_id=None,
        sequence=number,
        state=state,
        replicas=1,
    )


def replica(state: ReplicaState = ReplicaState.LOADING) -> Replica:
    return Replica(
        worker=WorkerId("h"),
        shard_id=ShardId("s"),
        worker_incarnation=Revision(3),
        state=state,
        reason="so far so good",
    )


def serving_world() -> World:
    world = World().begin(hosts=1)
    world.declare(FLIGHTS)
    world.publish(FLIGHTS, ["a"])
    world.settle()
    return world


@pytest.mark.parametrize(("begin", "end"), list(itertools.product(EpochState, EpochState)))
def test_an_epoch_moves_along_its_edges_only(begin: EpochState, end: EpochState) -> None:
    before = epoch(state=begin)
    if end in EPOCH_EDGES[begin]:
        after = advance(before, end, because="it is time", at_ns=7)
        assert (after.state, after.reason, after.since_ns) == (end, "it is time", 7)
    else:
        with pytest.raises(IllegalTransition, match=r"acme\.flights@1 cannot go from"):
            advance(before, end, because="it is time", at_ns=7)


def test_an_illegal_move_tells_the_epochs_story() -> None:
    told = StoryLine(at_ns=1, state=EpochState.FAILED, because="the source was away")
    broken = replace(epoch(state=EpochState.FAILED), story=(told,))
    with pytest.raises(IllegalTransition, match="the source was away"):
        advance(broken, EpochState.READY, because="hope", at_ns=2)


def test_a_story_does_not_grow_for_ever() -> None:
    moving = epoch()
    for at in range(100):
        to = EpochState.VALIDATING if at % 2 == 0 else EpochState.LOADING
        moving = advance(moving, to, because=str(at), at_ns=at)
    assert len(moving.story) == 16
    assert moving.reason == "99"


@pytest.mark.parametrize(("begin", "end"), list(itertools.product(ReplicaState, ReplicaState)))
def test_a_replica_moves_along_its_edges_only(begin: ReplicaState, end: ReplicaState) -> None:
    if end in REPLICA_EDGES[begin]:
        assert move(replica(begin), end, attempt=2).attempt == 2
    else:
        with pytest.raises(IllegalTransition, match="so far so good"):
            move(replica(begin), end)


def test_every_record_of_a_view_survives_the_codec_at_its_path() -> None:
    world = serving_world()
    world.gateway_applies("g")
    world.request(FLIGHTS)
    kinds = set()
    for path, entry in world.view.entries.items():
        kinds.add(path[0])
        again = decode(encode(entry.record), RECORD_TYPES[path[0]])
        assert again == entry.record
        assert again.path == path
    assert kinds == set(RECORD_TYPES) - {"user", "last_epoch", "share"}


def test_paths_of_epochs_sort_as_their_numbers() -> None:
    numbers = [1, 2, 9, 10, 11, 99, 100, 10**12]
    assert sorted(map(epoch_segment, reversed(numbers))) == [epoch_segment(n) for n in numbers]


# -- invariants


def test_the_invariants_name_every_contradiction() -> None:
    world = serving_world()
    world.check_each = False
    dataset = FLIGHTS.dataset_id
    world.write(
        Serving(tenant=dataset.tenant, dataset=dataset.name, epoch=EpochNumber(9), since_ns=0),
        epoch(3),
        epoch(4),
    )
    with pytest.raises(InvariantViolated) as broken:
        world.view.check_invariants()
    told = str(broken.value)
    for part in (
        "serves epoch 9, which has no record",
        "acme.flights@1 is READY but its dataset does not serve it",
        "acme.flights has 2 open epochs",
        "acme.flights@3 is LOADING without a placement",
        "acme.flights@3 is open behind the serving epoch 9",
    ):
        assert part in told


def test_a_failed_epoch_must_not_hold_memory() -> None:
    world = serving_world()
    world.check_each = False
    served = world.view.serving_epoch(FLIGHTS.dataset_id)
    assert served is not None
    world.write(replace(served, state=EpochState.FAILED))
    with pytest.raises(InvariantViolated, match="FAILED but still holds memory"):
        world.view.check_invariants()


def test_an_executor_plan_has_one_epoch_of_a_dataset() -> None:
    world = serving_world()
    world.check_each = False
    world.write(
        ExecutorPlan(
            worker=WorkerId("host-1"),
            tenant=TenantId("acme"),
            generation=99,
            attachments=(
                Attachment("flights", EpochNumber(1), ShardId("a")),
                Attachment("flights", EpochNumber(2), ShardId("a")),
            ),
            quota=Quota(),
        )
    )
    with pytest.raises(InvariantViolated, match="two epochs of one dataset"):
        world.view.check_invariants()


def test_a_replica_of_an_earlier_life_of_its_host_does_not_count() -> None:
    world = serving_world()
    assert world.view.ready_replicas(ShardId("a"))
    world.host_down("host-1")
    assert not world.view.ready_replicas(ShardId("a"))
    world.host_up("host-1")
    assert not world.view.ready_replicas(ShardId("a"))
    world.verify_files(WorkerId("host-1"))
    assert world.view.ready_replicas(ShardId("a"))


# -- commits


def test_a_commit_is_all_or_nothing() -> None:
    view = ClusterView(5, {})
    gateway = Gateway(gateway="g", address="a", applied_revision=Revision(1))  # type: ignore[arg-type]
    put = Commit(requirements=(Unchanged(gateway.path, Revision(0)),), changes=(Put(gateway),),
                 because="it is new")  # fmt: skip
    after = apply_commit(view, put)
    assert after.revision == 6
    assert after.entries[gateway.path].create_revision == 6
    with pytest.raises(CommitConflict, match="it is new"):
        apply_commit(after, put)
    assert view.entries == {}
    again = apply_commit(after, replace(put, requirements=()))
    assert again.entries[gateway.path].create_revision == 6
    assert again.entries[gateway.path].mod_revision == 7
    gone = apply_commit(again, Commit(requirements=(), changes=(Delete(gateway.path),), because=""))
    assert gone.entries == {}


def test_requirements_see_rewrites_and_incarnations() -> None:
    world = World().begin(hosts=1)
    path = ("worker", "host-1")
    entry = world.view.entries[path]
    unchanged = Unchanged(path, entry.mod_revision)
    incarnation = Incarnation(path, entry.create_revision)
    under = UnchangedUnder(("worker",), world.view.revision)
    assert all(holds(world.view, r) for r in (unchanged, incarnation, under))
    world.write(replace(entry.record, cores=9))
    assert [holds(world.view, r) for r in (unchanged, incarnation, under)] == [False, True, False]
    world.host_down("host-1")
    assert [holds(world.view, r) for r in (unchanged, incarnation, under)] == [False, False, True]
    world.host_up("host-1")
    assert not holds(world.view, incarnation), "another life of the same host"


def test_an_under_requirement_does_not_mistake_a_longer_name_for_a_child() -> None:
    world = World().begin(hosts=0)
    revision = world.view.revision
    world.host_up("host-10")
    assert holds(world.view, UnchangedUnder(("worker", "host-1"), Revision(revision)))


# -- routing and tickets


def test_only_the_newest_ready_generation_of_a_host_is_routed_to() -> None:
    world = serving_world()
    (plan,) = world.plans("host-1")
    newer = replace(plan, generation=plan.generation + 1)
    world.write(newer)
    table = build_routing(world.view)
    assert [e.generation for e in table.datasets[FLIGHTS.dataset_id].executors] == [plan.generation]
    world.put_executor(newer, ExecutorState.READY)
    table = build_routing(world.view)
    assert [e.generation for e in table.datasets[FLIGHTS.dataset_id].executors] == [
        newer.generation
    ]
    executor = next(e for e in world.view.records(Executor) if e.generation == newer.generation)
    world.write(replace(executor, state=ExecutorState.FAILED))
    table = build_routing(world.view)
    assert [e.generation for e in table.datasets[FLIGHTS.dataset_id].executors] == [plan.generation]


def test_a_dataset_without_a_serving_pointer_is_not_in_the_routing_table() -> None:
    world = World().begin(hosts=1)
    world.declare(FLIGHTS)
    world.publish(FLIGHTS, ["a"])
    assert build_routing(world.view).datasets == {}
    world.settle()
    assert set(build_routing(world.view).datasets) == {DatasetId(TenantId("acme"), "flights")}


def test_a_ticket_is_fenced_by_tenant_epoch_and_shard() -> None:
    token = EpochToken(dataset="flights", epoch=EpochNumber(2), shards=(ShardId("a"),))
    ticket = Ticket(
        version=1,
        query_id="q",
        tenant=TenantId("acme"),
        sql="select 1",
        tokens=(token,),
        expires_at_ms=0,
        timeout_ms=0,
        max_result_rows=1,
    )
    attached = {Attachment("flights", EpochNumber(2), ShardId("a"))}
    fence(ticket, TenantId("acme"), attached)
    with pytest.raises(StaleEpoch):
        fence(ticket, TenantId("globex"), attached)
    for number, shard in ((1, "a"), (3, "a"), (2, "b")):
        with pytest.raises(StaleEpoch, match=r"acme\.flights"):
            fence(
                ticket,
                TenantId("acme"),
                {Attachment("flights", EpochNumber(number), ShardId(shard))},
            )


def test_a_signature_covers_every_byte() -> None:
    signed = sign(b"payload", b"key")
    assert verify(signed, b"key") == b"payload"
    for at in range(len(signed)):
        forged = signed[:at] + bytes([signed[at] ^ 1]) + signed[at + 1 :]
        with pytest.raises(Unauthenticated):
            verify(forged, b"key")
    for bad in (b"", signed[:10], signed[:-1]):
        with pytest.raises(Unauthenticated):
            verify(bad, b"key")


@pytest.mark.parametrize("length", [0, 1, 32, 63, 64, 65, 200])
def test_signatures_are_the_standards(length: int) -> None:
    key = bytes(range(length))
    for payload in (b"", b"payload", b"x" * 5000):
        expected = hmac.digest(key, payload, hashlib.sha256)
        assert sign(payload, key) == sign(payload, key) == expected + payload
