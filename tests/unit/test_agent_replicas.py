"""How a host's replica records change, and that only the registered host changes them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accel_dask.errors import (
    CommitConflict,
    LoaderCrashed,
    OutcomeUnknown,
    ShardDamaged,
    SnapshotGone,
    StoreUnavailable,
)
from accel_dask.model.commit import Unchanged
from accel_dask.model.ids import EpochNumber, Revision, ShardId, TenantId, WorkerId
from accel_dask.model.load_plan import ShardManifest
from accel_dask.model.member import Worker
from accel_dask.model.placement import Placement
from accel_dask.model.replica import REPLICA_EDGES, Replica, ReplicaState, replica_path
from accel_dask.store.memory import MemoryStore
from accel_dask.store.records import create_record, get_record, put_record, read_view
from accel_dask.worker_plugin.replicas import ReplicaRecords, failed, loading, ready

US = WorkerId("us")
SHARD = ShardId("a" * 32)
MANIFEST = ShardManifest(
    format_version=1,
    shard_id=SHARD,
    rows=10,
    file_bytes=100,
    file_sha256="",
    row_checksum="7",
    columns=(),
    stats=(),
    load_ms=5,
    peak_memory_bytes=0,
)
PLACEMENT = Placement(
    tenant=TenantId("t"), dataset="d", epoch=EpochNumber(1), hosts=((SHARD, (US,)),)
)

states = st.sampled_from(ReplicaState)
records = st.one_of(
    st.none(),
    st.builds(
        lambda state, attempt, incarnation: Replica(
            worker=US,
            shard_id=SHARD,
            worker_incarnation=Revision(incarnation),
            state=state,
            attempt=attempt,
            reason="before",
        ),
        states,
        st.integers(0, 5),
        st.integers(1, 9),
    ),
)
NEW = Replica(worker=US, shard_id=SHARD, worker_incarnation=Revision(9), state=ReplicaState.LOADING)


@settings(deadline=None)
@given(records, st.sampled_from([loading, ready, failed]))
def test_a_change_is_a_legal_step_or_none_and_vouched_for_by_the_new_incarnation(
    now: Replica | None, step: Callable[[Replica], Callable[[Replica | None], Replica | None]]
) -> None:
    found = step(NEW)(now)
    if found is None:
        assert step is loading
        assert now is not None
        assert now.state is ReplicaState.READY
        return
    assert found.worker_incarnation == 9
    if now is None or found.state is now.state:
        return
    through_loading = ReplicaState.LOADING in REPLICA_EDGES[now.state]
    assert found.state in REPLICA_EDGES[now.state] or through_loading


def test_each_load_counts_and_a_damaged_file_counts_from_the_start() -> None:
    first = loading(NEW)(None)
    assert first is not None
    assert first.attempt == 1
    lost = failed(replace(NEW, reason="it crashed"))(first)
    assert lost is not None
    assert (lost.state, lost.attempt, lost.reason) == (ReplicaState.FAILED, 1, "it crashed")
    second = loading(NEW)(lost)
    assert second is not None
    assert (second.attempt, second.reason) == (2, "")
    there = ready(NEW)(second)
    assert there is not None
    assert (there.state, there.attempt) == (ReplicaState.READY, 2)
    damaged = failed(replace(NEW, reason="damaged"))(there)
    assert damaged is not None
    assert damaged.attempt == 0
    again = loading(NEW)(damaged)
    assert again is not None
    assert again.attempt == 1


class Host:
    """A registered host on a memory store."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.incarnation = Revision(0)
        self.replicas = ReplicaRecords(self.store, US, lambda: self.incarnation)
        self.register()
        put_record(self.store, PLACEMENT)

    def register(self) -> None:
        record = Worker(
            worker=US,
            host="127.0.0.1",
            memory_bytes=1,
            cores=1,
            shard_dir="/x",
            in_memory=True,
            enforcement="",
            version="0",
        )
        self.incarnation = create_record(self.store, record)

    def placement(self) -> Unchanged:
        found = get_record(self.store, PLACEMENT.path)
        assert found is not None
        return Unchanged(PLACEMENT.path, found.mod_revision)

    def replica(self) -> Replica | None:
        return read_view(self.store).find(Replica, replica_path(US, SHARD))


def test_a_load_walks_from_loading_to_ready() -> None:
    host = Host()
    host.replicas.load_started(SHARD, host.placement(), "test")
    assert host.replica() == replace(NEW, worker_incarnation=host.incarnation)
    host.replicas.register(MANIFEST, "test")
    there = host.replica()
    assert there is not None
    assert (there.state, there.rows, there.file_bytes) == (ReplicaState.READY, 10, 100)
    before = get_record(host.store, there.path)
    host.replicas.register(MANIFEST, "once more")
    assert get_record(host.store, there.path) == before, "the same again is no write"


def test_a_load_does_not_start_for_a_placement_that_has_changed() -> None:
    host = Host()
    seen = host.placement()
    put_record(host.store, replace(PLACEMENT, hosts=()))
    with pytest.raises(CommitConflict):
        host.replicas.load_started(SHARD, seen, "test")
    assert host.replica() is None


def test_a_failure_is_told_with_its_code_and_whether_to_try_again() -> None:
    host = Host()
    host.replicas.load_started(SHARD, host.placement(), "test")
    host.replicas.fail(SHARD, LoaderCrashed("it crashed"))
    there = host.replica()
    assert there is not None
    assert (there.error_code, there.retryable) == ("LOADER_CRASHED", True)
    host.replicas.fail(SHARD, SnapshotGone("no file"))
    there = host.replica()
    assert there is not None
    assert (there.error_code, there.retryable, there.reason) == ("SNAPSHOT_GONE", False, "no file")
    host.replicas.fail(SHARD, ShardDamaged("bits"))
    there = host.replica()
    assert there is not None
    assert there.error_code == "SHARD_DAMAGED"


def test_a_host_that_is_not_registered_any_more_writes_nothing() -> None:
    host = Host()
    host.incarnation = Revision(0)
    with pytest.raises(StoreUnavailable, match="not registered"):
        host.replicas.register(MANIFEST, "test")
    host.incarnation = Revision(1)  # another process has registered since
    with pytest.raises(CommitConflict):
        host.replicas.register(MANIFEST, "test")
    with pytest.raises(CommitConflict):
        host.replicas.remove(SHARD, read_view(host.store))
    assert host.replica() is None


def test_a_record_is_not_removed_once_something_newer_may_want_it() -> None:
    host = Host()
    host.replicas.register(MANIFEST, "test")
    view = read_view(host.store)
    put_record(host.store, replace(PLACEMENT, epoch=EpochNumber(2)))
    with pytest.raises(CommitConflict):
        host.replicas.remove(SHARD, view)
    assert host.replica() is not None
    host.replicas.remove(SHARD, read_view(host.store))
    assert host.replica() is None


@pytest.mark.parametrize("applied", [True, False])
def test_a_lost_answer_is_resolved_by_reading_and_counts_one_attempt(applied: bool) -> None:
    host = Host()
    real, lost = host.store.commit, []

    def commit(transaction: object) -> int:
        if not lost:
            lost.append(True)
            if applied:
                real(transaction)  # type: ignore[arg-type]
            raise OutcomeUnknown("the answer was lost")
        return real(transaction)  # type: ignore[arg-type]

    with mock.patch.object(host.store, "commit", commit):
        host.replicas.load_started(SHARD, host.placement(), "test")
    there = host.replica()
    assert there is not None
    assert (there.state, there.attempt) == (ReplicaState.LOADING, 1)
