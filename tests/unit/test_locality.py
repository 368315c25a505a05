"""Where Dask tasks that read shards are sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from dask._task_spec import List, Task

from accel_dask.model.cluster import ClusterView, Record, Versioned
from accel_dask.model.executor import (
    Attachment,
    Executor,
    ExecutorKind,
    ExecutorPlan,
    ExecutorState,
)
from accel_dask.model.ids import EpochNumber, Revision, ShardId, TenantId, WorkerId
from accel_dask.model.member import Worker
from accel_dask.model.shard_ref import ShardRef
from accel_dask.model.tenant import Quota
from accel_dask.scheduler_plugin.locality import ShardPlaces, shard_hosts, shard_of

REF = ShardRef("acme", "facts", 3, "aa")


def records(worker: str, *, state: ExecutorState = ExecutorState.READY,
            kind: ExecutorKind = ExecutorKind.HOT) -> list[Record]:  # fmt: skip
    name, tenant = WorkerId(worker), TenantId("acme")
    return [
        Worker(worker=name, host="h", memory_bytes=1, cores=1, shard_dir="", in_memory=True,
               enforcement="", version=""),
        ExecutorPlan(
            worker=name, tenant=tenant, generation=1, quota=Quota(), kind=kind,
            attachments=(Attachment("facts", EpochNumber(3), ShardId("aa")),),
        ),
        Executor(worker=name, tenant=tenant, generation=1, incarnation="", state=state, address=""),
    ]  # fmt: skip


def view_of(*groups: list[Record], revision: int = 1) -> ClusterView:
    entries = {
        one.path: Versioned(one, Revision(1), Revision(1)) for group in groups for one in group
    }
    return ClusterView(revision, entries)


def scheduler_of(**tasks: Any) -> Any:
    states = {
        key: SimpleNamespace(run_spec=spec, worker_restrictions=None, loose_restrictions=False)
        for key, spec in tasks.items()
    }
    return SimpleNamespace(tasks=states, aliases={"w1": "tcp://1", "w2": "tcp://2"})


def test_hosts_are_those_whose_ready_hot_executors_have_the_shard() -> None:
    gone = records("w4")[1:]
    view = view_of(
        records("w1"),
        records("w2", state=ExecutorState.FAILED),
        records("w3", kind=ExecutorKind.COLD),
        gone,
    )
    assert shard_hosts(view) == {REF: ("w1",)}


def test_a_shard_is_found_in_plain_fused_and_nested_tasks() -> None:
    read = Task("read", print, REF, [1, 2])
    sums = Task("sum", sum, Task("inner", print, REF))
    assert shard_of(read) == shard_of(sums) == REF
    assert shard_of(Task.fuse(read, Task("next", len, read.ref()), key="both")) == REF
    assert shard_of(Task("kw", print, other=List(REF))) == REF
    assert shard_of(Task("none", print, 1, "facts@3/aa", b=[2])) is None


def test_tasks_prefer_the_host_of_the_moment_and_may_run_elsewhere() -> None:
    places = ShardPlaces()
    for revision, worker, address in ((1, "w1", "tcp://1"), (2, "w2", "tcp://2")):
        scheduler = scheduler_of(read=Task("read", print, REF), other=Task("other", print, 1))
        view = view_of(records(worker), revision=revision)
        assert places.prefer(scheduler, ["read", "other", "gone"], view) == 1
        assert scheduler.tasks["read"].worker_restrictions == {address}
        assert scheduler.tasks["read"].loose_restrictions
        assert scheduler.tasks["other"].worker_restrictions is None


def test_a_choice_of_the_user_and_an_unknown_host_are_left_alone() -> None:
    scheduler = scheduler_of(mine=Task("mine", print, REF), far=Task("far", print, REF))
    scheduler.tasks["mine"].worker_restrictions = {"tcp://9"}
    assert ShardPlaces().prefer(scheduler, ["mine", "far"], view_of(records("w7"))) == 0
    assert scheduler.tasks["mine"].worker_restrictions == {"tcp://9"}
    assert scheduler.tasks["far"].worker_restrictions is None
