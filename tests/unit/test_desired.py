"""What a host should do, decided from any view and any state of the host."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from accel_dask.model.cluster import ClusterView, Record, Versioned
from accel_dask.model.executor import Attachment, ExecutorKind, ExecutorPlan
from accel_dask.model.ids import EpochNumber, Revision, ShardId, TenantId, WorkerId
from accel_dask.model.member import Worker
from accel_dask.model.placement import Placement
from accel_dask.model.replica import Replica, ReplicaState
from accel_dask.model.tenant import Quota
from accel_dask.worker_plugin.desired import (
    DrainExecutor,
    FailReplica,
    Instruction,
    LocalExecutor,
    LocalFacts,
    RegisterReplica,
    RemoveReplica,
    RemoveShard,
    ShardFileState,
    StartExecutor,
    VerifyShard,
    decide,
)

US, OTHER = WorkerId("us"), WorkerId("other")
TENANTS = (TenantId("a"), TenantId("b"))
SHARDS = tuple(ShardId(f"{n:032x}") for n in range(4))
INCARNATION = Revision(7)
NOW = Revision(100)


def host(worker: WorkerId) -> Worker:
    return Worker(
        worker=worker,
        host="127.0.0.1",
        memory_bytes=1,
        cores=1,
        shard_dir="/dev/shm/x",
        in_memory=True,
        enforcement="",
        version="0",
    )


def placement(number: int, *hosts: tuple[ShardId, tuple[WorkerId, ...]]) -> Placement:
    return Placement(tenant=TENANTS[0], dataset="d", epoch=EpochNumber(number), hosts=hosts)


def plan(
    tenant: TenantId, generation: int, shards: Iterable[ShardId], worker: WorkerId = US
) -> ExecutorPlan:
    return ExecutorPlan(
        worker=worker,
        tenant=tenant,
        generation=generation,
        attachments=tuple(sorted(attached(shards))),
        quota=Quota(),
    )


def replica(
    shard_id: ShardId, state: ReplicaState, incarnation: int = INCARNATION, worker: WorkerId = US
) -> Replica:
    return Replica(
        worker=worker,
        shard_id=shard_id,
        worker_incarnation=Revision(incarnation),
        state=state,
    )


def view_of(*records: Record, incarnation: int = INCARNATION) -> ClusterView:
    entries = {r.path: Versioned(r, Revision(50), Revision(50)) for r in records}
    ours = host(US)
    if incarnation:
        entries[ours.path] = Versioned(ours, Revision(incarnation), Revision(incarnation))
    return ClusterView(NOW, entries)


def facts(
    files: dict[ShardId, ShardFileState] | None = None,
    *,
    loads: Iterable[ShardId] = (),
    executors: Iterable[LocalExecutor] = (),
    fresh: bool = True,
    incarnation: int = INCARNATION,
) -> LocalFacts:
    return LocalFacts(
        incarnation=Revision(incarnation),
        is_view_fresh=fresh,
        files=tuple(sorted((files or {}).items())),
        loads=frozenset(loads),
        executors=tuple(executors),
    )


def attached(shards: Iterable[ShardId]) -> frozenset[Attachment]:
    return frozenset(Attachment("d", EpochNumber(1), s) for s in shards)


def executor(tenant: TenantId, generation: int, shards: Iterable[ShardId]) -> LocalExecutor:
    return LocalExecutor(tenant=tenant, generation=generation, attachments=attached(shards))


VERIFIED, UNCHECKED, CHECKING = (
    ShardFileState.VERIFIED,
    ShardFileState.UNCHECKED,
    ShardFileState.CHECKING,
)


def test_an_executor_starts_when_all_its_shard_files_are_verified() -> None:
    view = view_of(placement(1, *((s, (US,)) for s in SHARDS[:2])), plan(TENANTS[0], 1, SHARDS[:2]))
    half = facts({SHARDS[0]: VERIFIED, SHARDS[1]: UNCHECKED})
    assert not [i for i in decide(view, US, half) if isinstance(i, StartExecutor)]
    whole = facts(dict.fromkeys(SHARDS[:2], VERIFIED))
    assert decide(view, US, whole)[0] == StartExecutor(plan(TENANTS[0], 1, SHARDS[:2]))


def test_an_executor_starts_from_a_stale_view_too() -> None:
    view = view_of(plan(TENANTS[0], 1, SHARDS[:1]))
    away = facts({SHARDS[0]: VERIFIED}, fresh=False)
    assert decide(view, US, away) == (StartExecutor(plan(TENANTS[0], 1, SHARDS[:1])),)


def test_a_plan_of_another_host_is_nothing_to_us() -> None:
    view = view_of(plan(TENANTS[0], 1, SHARDS[:1], OTHER))
    found = decide(view, US, facts({SHARDS[0]: VERIFIED}))
    assert found == (RemoveShard(SHARDS[0]),)


def test_an_executor_without_a_plan_is_drained_once() -> None:
    running = executor(TENANTS[0], 1, SHARDS[:1])
    files = {SHARDS[0]: VERIFIED}
    view = view_of(replica(SHARDS[0], ReplicaState.READY))
    drained = decide(view, US, facts(files, executors=[running]))
    assert drained == (DrainExecutor(TENANTS[0], 1),)
    draining = replace(running, is_draining=True)
    assert decide(view, US, facts(files, executors=[draining])) == ()


def test_an_executor_of_another_plan_with_its_number_is_drained() -> None:
    running = executor(TENANTS[0], 1, SHARDS[:1])
    wanted = placement(1, *((s, (US,)) for s in SHARDS[:2]))
    view = view_of(
        wanted,
        plan(TENANTS[0], 1, SHARDS[:2]),
        *(replica(s, ReplicaState.READY) for s in SHARDS[:2]),
    )
    files = dict.fromkeys(SHARDS[:2], VERIFIED)
    assert decide(view, US, facts(files, executors=[running])) == (DrainExecutor(TENANTS[0], 1),)


def test_a_file_goes_only_when_nothing_wants_it() -> None:
    file = {SHARDS[0]: VERIFIED}
    said = replica(SHARDS[0], ReplicaState.READY)
    removed = (RemoveShard(SHARDS[0]),)
    assert decide(view_of(said), US, facts(file)) == removed
    assert decide(view_of(said, placement(1, (SHARDS[0], (US,)))), US, facts(file)) == ()
    assert decide(view_of(said, placement(1, (SHARDS[0], (OTHER,)))), US, facts(file)) == removed
    draining = [replace(executor(TENANTS[0], 1, SHARDS[:1]), is_draining=True)]
    assert decide(view_of(said), US, facts(file, executors=draining)) == ()
    assert decide(view_of(said), US, facts(file, loads=SHARDS[:1])) == ()
    planned = decide(view_of(said, plan(TENANTS[0], 1, SHARDS[:2])), US, facts(file))
    assert RemoveShard(SHARDS[0]) not in planned


def test_an_unknown_file_is_removed_unread_and_kept_while_nobody_knows() -> None:
    file = {SHARDS[0]: UNCHECKED}
    assert decide(view_of(), US, facts(file)) == (RemoveShard(SHARDS[0]),)
    kept = (VerifyShard(SHARDS[0]),)
    assert decide(view_of(), US, facts(file, fresh=False)) == kept
    assert decide(view_of(incarnation=0), US, facts(file, incarnation=0)) == kept
    older_view = view_of(incarnation=INCARNATION - 1)
    assert decide(older_view, US, facts(file)) == kept
    assert decide(ClusterView(0, {}), US, facts(file)) == kept


def test_a_verified_file_is_registered_until_the_store_says_so() -> None:
    wanted = placement(1, (SHARDS[0], (US,)))
    file = facts({SHARDS[0]: VERIFIED})
    register = (RegisterReplica(SHARDS[0]),)
    assert decide(view_of(wanted), US, file) == register
    for state in (ReplicaState.LOADING, ReplicaState.FAILED):
        assert decide(view_of(wanted, replica(SHARDS[0], state)), US, file) == register
    old = replica(SHARDS[0], ReplicaState.READY, INCARNATION - 1)
    assert decide(view_of(wanted, old), US, file) == register
    said = replica(SHARDS[0], ReplicaState.READY)
    assert decide(view_of(wanted, said), US, file) == ()


def test_a_record_without_its_file_fails_or_goes() -> None:
    wanted = placement(1, (SHARDS[0], (US,)))
    ready = replica(SHARDS[0], ReplicaState.READY)
    (gone,) = decide(view_of(wanted, ready), US, facts())
    assert isinstance(gone, FailReplica)
    assert gone.error.code == "SHARD_DAMAGED"
    assert gone.error.retryable
    (crashed,) = decide(view_of(wanted, replica(SHARDS[0], ReplicaState.LOADING)), US, facts())
    assert isinstance(crashed, FailReplica)
    assert crashed.error.code == "LOADER_CRASHED"
    failed = replica(SHARDS[0], ReplicaState.FAILED)
    assert decide(view_of(wanted, failed), US, facts()) == ()
    assert decide(view_of(ready), US, facts()) == (RemoveReplica(SHARDS[0]),)
    assert decide(view_of(failed), US, facts()) == (RemoveReplica(SHARDS[0]),)
    foreign = replica(SHARDS[0], ReplicaState.READY, worker=OTHER)
    assert decide(view_of(foreign), US, facts()) == ()


def test_a_load_under_way_is_left_alone() -> None:
    loading = replica(SHARDS[0], ReplicaState.LOADING)
    view = view_of(placement(1, (SHARDS[0], (US,))), loading)
    assert decide(view, US, facts(loads=SHARDS[:1])) == ()
    appeared = facts({SHARDS[0]: UNCHECKED}, loads=SHARDS[:1])
    assert decide(view, US, appeared) == ()


# Any view, any host

shard_sets = st.frozensets(st.sampled_from(SHARDS), max_size=3)
placements = st.builds(
    lambda number, here, there: placement(
        number,
        *((s, (US,) if s in here else (OTHER,)) for s in sorted(here | there)),
    ),
    st.integers(1, 3),
    shard_sets,
    shard_sets,
)
plans = st.builds(
    plan,
    st.sampled_from(TENANTS),
    st.integers(1, 2),
    shard_sets,
    st.sampled_from((US, OTHER)),
)
replicas = st.builds(
    replica,
    st.sampled_from(SHARDS),
    st.sampled_from(ReplicaState),
    st.sampled_from((INCARNATION - 1, INCARNATION)),
    st.sampled_from((US, OTHER)),
)
views = st.builds(
    lambda records, incarnation: view_of(*records, incarnation=incarnation),
    st.lists(st.one_of(placements, plans, replicas), max_size=8),
    st.sampled_from((0, INCARNATION - 1, INCARNATION, INCARNATION)),
)
hosts = st.builds(
    lambda files, loads, executors, fresh, incarnation: facts(
        files,
        loads=loads,
        executors={(e.tenant, e.generation): e for e in executors}.values(),
        fresh=fresh,
        incarnation=incarnation,
    ),
    st.dictionaries(st.sampled_from(SHARDS), st.sampled_from(ShardFileState)),
    shard_sets,
    st.lists(
        st.builds(
            LocalExecutor,
            tenant=st.sampled_from(TENANTS),
            generation=st.integers(1, 2),
            attachments=shard_sets.map(attached),
            is_draining=st.booleans(),
        ),
        max_size=3,
    ),
    st.booleans(),
    st.sampled_from((0, INCARNATION, INCARNATION)),
)


@settings(deadline=None)
@given(views, hosts)
def test_nothing_is_removed_that_anything_wants(view: ClusterView, host: LocalFacts) -> None:
    for instruction in decide(view, US, host):
        if isinstance(instruction, RemoveShard | RemoveReplica):
            shard_id = instruction.shard_id
            assert shard_id not in view.wanted_shards.get(US, frozenset())
            assert shard_id not in host.loads
            assert not any(a.shard_id == shard_id for e in host.executors for a in e.attachments)
            ours = [p for p in view.records(ExecutorPlan) if p.worker == US]
            assert not any(a.shard_id == shard_id for p in ours for a in p.attachments)
            assert dict(host.files).get(shard_id) is not CHECKING


@settings(deadline=None)
@given(views, hosts)
def test_without_a_fresh_view_of_this_registration_nothing_is_written_or_ended(
    view: ClusterView, host: LocalFacts
) -> None:
    registered = view.workers.get(US)
    is_known = (
        host.is_view_fresh
        and registered is not None
        and registered.create_revision == host.incarnation
    )
    if not is_known:
        found = decide(view, US, host)
        assert all(isinstance(i, StartExecutor | VerifyShard) for i in found)


@settings(deadline=None)
@given(views, hosts)
def test_a_shard_gets_one_instruction_and_an_executor_one(
    view: ClusterView, host: LocalFacts
) -> None:
    found = decide(view, US, host)
    shards = [i.shard_id for i in found if not isinstance(i, StartExecutor | DrainExecutor)]
    assert len(shards) == len(set(shards))
    starts = [(i.plan.tenant, i.plan.generation) for i in found if isinstance(i, StartExecutor)]
    drains = [(i.tenant, i.generation) for i in found if isinstance(i, DrainExecutor)]
    running = {(e.tenant, e.generation) for e in host.executors}
    assert len(set(starts)) == len(starts)
    assert not set(starts) & running
    assert set(drains) <= running
    for instruction in found:
        if isinstance(instruction, StartExecutor):
            states = dict(host.files)
            for attachment in instruction.plan.attachments:
                assert states.get(attachment.shard_id) is VERIFIED


def obey(
    view: ClusterView, host: LocalFacts, found: tuple[Instruction, ...]
) -> tuple[ClusterView, LocalFacts]:
    """The world after the instructions were carried out without a hitch."""
    files, executors = dict(host.files), list(host.executors)
    entries = dict(view.entries)
    for instruction in found:
        match instruction:
            case StartExecutor(started):
                shards = frozenset(a.shard_id for a in started.attachments)
                executors.append(executor(started.tenant, started.generation, shards))
            case DrainExecutor(tenant, generation):
                executors = [
                    e for e in executors if (e.tenant, e.generation) != (tenant, generation)
                ]
            case VerifyShard(shard_id):
                files[shard_id] = VERIFIED
            case RemoveShard(shard_id):
                del files[shard_id]
                entries.pop(replica(shard_id, ReplicaState.READY).path, None)
            case RemoveReplica(shard_id):
                entries.pop(replica(shard_id, ReplicaState.READY).path)
            case RegisterReplica(shard_id):
                said = replica(shard_id, ReplicaState.READY)
                entries[said.path] = Versioned(said, NOW, NOW)
            case FailReplica(shard_id):
                said = replica(shard_id, ReplicaState.FAILED)
                entries[said.path] = Versioned(said, NOW, NOW)
    return ClusterView(NOW, entries), replace(
        host, files=tuple(sorted(files.items())), executors=tuple(executors)
    )


@settings(deadline=None)
@given(views, hosts)
def test_a_host_that_obeys_comes_to_rest_with_what_is_wanted(
    view: ClusterView, host: LocalFacts
) -> None:
    view = view_of(*(v.record for v in view.entries.values() if v.record.path != (Worker.KIND, US)))
    host = replace(
        host,
        incarnation=INCARNATION,
        is_view_fresh=True,
        loads=frozenset(),
        files=tuple((s, UNCHECKED if f is CHECKING else f) for s, f in host.files),
        executors=tuple(replace(e, is_draining=False) for e in host.executors),
    )
    for _ in range(6):
        found = decide(view, US, host)
        if not found:
            break
        view, host = obey(view, host, found)
    assert decide(view, US, host) == ()
    there = {shard for shard, _ in host.files}
    ours = [p for p in view.records(ExecutorPlan) if p.worker == US]
    wanted = set(view.wanted_shards.get(US, frozenset()))
    wanted |= {a.shard_id for p in ours for a in p.attachments}
    assert there <= wanted
    ready = {
        r.shard_id
        for r in view.records(Replica)
        if r.worker == US and r.state is ReplicaState.READY
    }
    assert ready == there
    could_run = {
        (p.tenant, p.generation) for p in ours if {a.shard_id for a in p.attachments} <= there
    }
    planned = {(p.tenant, p.generation) for p in ours}
    running = {(e.tenant, e.generation) for e in host.executors}
    assert could_run <= running <= planned


# -- cold executors


def test_a_cold_executor_needs_no_shard_files_and_keeps_none() -> None:
    cold = replace(plan(TENANTS[0], 1, SHARDS[:1]), kind=ExecutorKind.COLD)
    running = replace(executor(TENANTS[0], 1, SHARDS[:1]), kind=ExecutorKind.COLD)
    there = {SHARDS[0]: VERIFIED}
    assert set(decide(view_of(cold), US, facts(there))) == {
        StartExecutor(cold),
        RemoveShard(SHARDS[0]),
    }
    found = decide(view_of(cold), US, facts(there, executors=[running]))
    assert found == (RemoveShard(SHARDS[0]),)
    found = decide(view_of(), US, facts(executors=[running]))
    assert found == (DrainExecutor(TENANTS[0], 1),)
