"""The host agent on a memory store, with executors that are played by the test."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from accel_dask.codec import encode
from accel_dask.config import HostSettings
from accel_dask.errors import (
    ConfigError,
    LoadError,
    ShardDamaged,
    SnapshotGone,
    StoreUnavailable,
)
from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import Dataset
from accel_dask.model.executor import Attachment, Executor, ExecutorPlan, ExecutorState
from accel_dask.model.ids import EpochNumber, ShardId, TenantId, WorkerId
from accel_dask.model.load_plan import LoadOrder, LoadTask, ShardManifest
from accel_dask.model.member import Worker, worker_path
from accel_dask.model.placement import Placement
from accel_dask.model.replica import Replica, ReplicaState
from accel_dask.model.tenant import MIB, Quota
from accel_dask.store.memory import MemoryStore
from accel_dask.store.records import (
    create_record,
    delete_record,
    ensure_meta,
    put_record,
    read_view,
)
from accel_dask.worker_plugin import agent as agent_module
from accel_dask.worker_plugin import keeper as keeper_module
from accel_dask.worker_plugin.agent import HostAgent
from accel_dask.worker_plugin.enforcement.enforcer import Enforcer
from accel_dask.worker_plugin.executor.spec import ExecutorSpec
from accel_dask.worker_plugin.shard_dir import ShardDir

US = WorkerId("us")
TENANT = TenantId("acme")


class PlayedExecutor:
    """Looks like a running executor."""

    def __init__(self, spec: ExecutorSpec, pid: int) -> None:
        self.spec = spec
        self.incarnation = spec.incarnation
        self.pid = pid
        self.address = f"grpc://127.0.0.1:{pid}"
        self.ticket_port = pid
        self.start_ms = 1
        self.unanswered = 0
        self.exit_reason = ""
        self.leases: list[float] = []
        self.drained_with: float | None = None
        self.killed = False
        self.ends_when_drained = True
        self._ended = threading.Event()

    @property
    def has_ended(self) -> bool:
        return self._ended.is_set()

    def extend_lease(self, deadline: float) -> None:
        self.leases.append(deadline)

    def drain(self, seconds: float) -> None:
        self.drained_with = seconds
        if self.ends_when_drained:
            self._ended.set()

    def kill(self, because: str = "") -> None:
        self.killed = True
        self._ended.set()

    def wait_ended(self, timeout: float) -> bool:
        return self._ended.wait(timeout)

    def resident_bytes(self) -> int:
        return 50 * MIB

    def die(self) -> None:
        self.exit_reason = "the test ended it"
        self._ended.set()


class PlayedExecutors:
    """Looks like `ExecutorHost`."""

    def __init__(self) -> None:
        self.launched: list[PlayedExecutor] = []
        self.fails_with: Exception | None = None
        self.tries = 0
        self.tried_at: list[float] = []
        self.is_closed = False
        self.gate = threading.Event()
        self.gate.set()

    def start(self) -> None: ...

    def launch(self, spec: ExecutorSpec, timeout_seconds: float) -> PlayedExecutor:
        self.gate.wait(timeout_seconds)
        self.tries += 1
        self.tried_at.append(time.monotonic())
        if self.fails_with is not None:
            raise self.fails_with
        executor = PlayedExecutor(spec, 1000 + self.tries)
        self.launched.append(executor)
        return executor

    def close(self) -> None:
        self.is_closed = True


class AwayStore(MemoryStore):
    """Can be unreachable: everything fails, and its watches are silent."""

    def __init__(self) -> None:
        super().__init__()
        self.is_away = False

    def come_back(self) -> None:
        """After so long that all leases have ended."""
        for lease in tuple(self._leases.values()):
            self.end_lease(lease)
            lease.report_loss()
        self.is_away = False

    def _check_open(self) -> None:
        if self.is_away:
            raise StoreUnavailable("nobody answers")
        super()._check_open()


def wait_for(what: str, predicate: Callable[[], Any], seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (found := predicate()):
        assert time.monotonic() < deadline, f"in vain for {seconds:g} s: {what}"
        pause.wait(0.01)
    return found


def let_it_come_round(agent: HostAgent) -> None:
    """Wait until the agent has acted on all that it has seen by now."""
    for _ in range(2):
        before = agent._came_round_at
        agent._wake.set()
        wait_for("another round", lambda before=before: agent._came_round_at > before)


class Site:
    def __init__(self, directory: Path) -> None:
        self.store = AwayStore()
        ensure_meta(self.store)
        self.shard_dir = ShardDir(directory / "shards")
        self.shard_dir.create()
        self.settings = HostSettings(
            lease_seconds=1.0, drain_seconds=0.3, spill_dir=str(directory / "spill")
        )
        self.agents: list[HostAgent] = []
        self.executors = PlayedExecutors()

    def agent(self, host: str = "127.0.0.1", shard_dir: ShardDir | None = None) -> HostAgent:
        """A new life of the host."""
        self.executors = PlayedExecutors()
        shards = shard_dir or self.shard_dir
        record = Worker(
            worker=US,
            host=host,
            memory_bytes=1,
            cores=1,
            shard_dir=str(shards.path),
            in_memory=False,
            enforcement="",
            version="0",
        )
        agent = HostAgent(
            self.store,
            self.settings,
            record,
            shards,
            self.executors,  # type: ignore[arg-type]
            Enforcer(None, 1, uses_nice=False),
        )
        self.agents.append(agent)
        return agent

    def started(self) -> HostAgent:
        agent = self.agent()
        agent.start()
        return agent

    @property
    def view(self) -> ClusterView:
        return read_view(self.store)

    def incarnation(self) -> int:
        found = self.view.workers.get(US)
        return found.create_revision if found else 0

    def shard(self, content: bytes = b"rows") -> ShardId:
        """A shard file with its manifest, as a loader leaves it."""
        shard_id = ShardId(uuid.uuid4().hex)
        self.write(shard_id, content)
        return shard_id

    def write(self, shard_id: ShardId, content: bytes = b"rows") -> None:
        manifest = ShardManifest(
            format_version=1,
            shard_id=shard_id,
            rows=4,
            file_bytes=len(content),
            file_sha256=hashlib.sha256(content).hexdigest(),
            row_checksum="1",
            columns=(),
            stats=(),
            load_ms=1,
            peak_memory_bytes=1,
        )
        self.shard_dir.shard_file(shard_id).write_bytes(content)
        self.shard_dir.manifest_file(shard_id).write_bytes(encode(manifest))

    def place(self, *shards: ShardId, epoch: int = 1) -> None:
        put_record(self.store, self.placement(*shards, epoch=epoch))

    def placement(self, *shards: ShardId, epoch: int = 1) -> Placement:
        return Placement(
            tenant=TENANT,
            dataset="d",
            epoch=EpochNumber(epoch),
            hosts=tuple((s, (US,)) for s in sorted(shards)),
        )

    def displace(self, epoch: int = 1) -> None:
        delete_record(self.store, self.placement(epoch=epoch).path)

    def plan(self, *shards: ShardId, generation: int = 1) -> ExecutorPlan:
        plan = ExecutorPlan(
            worker=US,
            tenant=TENANT,
            generation=generation,
            attachments=tuple(Attachment("d", EpochNumber(1), s) for s in sorted(shards)),
            quota=Quota(),
        )
        put_record(self.store, plan)
        return plan

    def replica(self, shard_id: ShardId) -> Replica | None:
        return self.view.find(Replica, (Replica.KIND, US, shard_id))

    def executor(self, generation: int = 1) -> Executor | None:
        return self.view.find(Executor, (Executor.KIND, US, TENANT, f"{generation:020d}"))

    def is_ready(self, shard_id: ShardId) -> bool:
        return bool(self.view.ready_replicas(shard_id))

    def order(self, shard_id: ShardId, **changes: Any) -> LoadOrder:
        order = LoadOrder(
            tenant=TENANT,
            dataset="d",
            epoch=EpochNumber(1),
            task=LoadTask(shard_id=shard_id, columns=(), files=()),
            shard_dir=str(self.shard_dir.path),
            spill_dir="",
            memory_bytes=MIB,
            threads=1,
            max_file_bytes=MIB,
        )
        return replace(order, **changes)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    yield site
    site.store.is_away = False
    for agent in site.agents:
        agent.stop()
    site.store.close()


def test_files_found_at_start_are_adopted_removed_or_reported(site: Site) -> None:
    kept, unknown, damaged, unwanted = (site.shard() for _ in range(4))
    site.place(kept, damaged)
    site.shard_dir.shard_file(damaged).write_bytes(b"ro_s")
    crashed = site.shard_dir.path / f"{unknown}.1.tmp.duckdb"
    crashed.write_bytes(b"half")
    site.started()
    wait_for("the sound one to be READY", lambda: site.is_ready(kept))
    wait_for("the others to go", lambda: site.shard_dir.list_ids() == (kept,))
    assert not crashed.exists()
    assert site.replica(unwanted) is None


def test_a_damaged_file_of_a_ready_replica_is_a_failed_one(site: Site) -> None:
    shard_id = site.shard()
    site.place(shard_id)
    site.started()
    wait_for("READY", lambda: site.is_ready(shard_id))
    site.agents[-1].stop()
    site.shard_dir.shard_file(shard_id).write_bytes(b"ro_s")
    site.started()

    def reported() -> Replica | None:
        found = site.replica(shard_id)
        return found if found and found.state is ReplicaState.FAILED else None

    found = wait_for("FAILED", reported)
    assert (found.error_code, found.retryable, found.attempt) == ("SHARD_DAMAGED", True, 0)
    assert "is not the one its manifest describes" in found.reason
    assert found.worker_incarnation == site.incarnation()
    assert not site.shard_dir.shard_file(shard_id).exists()


def test_a_file_that_vanishes_fails_its_replica(site: Site) -> None:
    shard_id = site.shard()
    site.place(shard_id)
    site.started()
    wait_for("READY", lambda: site.is_ready(shard_id))
    site.shard_dir.remove(shard_id)
    wait_for("FAILED", lambda: site.replica(shard_id).state is ReplicaState.FAILED)  # type: ignore[union-attr]


def test_an_executor_runs_for_its_plan_until_the_plan_goes(site: Site) -> None:
    shard_id = site.shard()
    site.place(shard_id)
    site.started()
    plan = site.plan(shard_id)
    record = wait_for("the executor", site.executor)
    (running,) = site.executors.launched
    assert record == Executor(
        worker=US,
        tenant=TENANT,
        generation=1,
        incarnation=running.incarnation,
        state=ExecutorState.READY,
        address=running.address,
        ticket_port=running.ticket_port,
        pid=running.pid,
        worker_incarnation=record.worker_incarnation,
        start_ms=1,
        resident_bytes=50 * MIB,
    )
    assert record.worker_incarnation == site.incarnation()
    assert running.spec.attachments == plan.attachments
    wait_for("its lease to be extended", lambda: running.leases)
    assert running.leases[-1] > time.monotonic() - 1
    site.displace()
    delete_record(site.store, plan.path)
    wait_for("the executor to be drained", lambda: running.drained_with is not None)
    wait_for("its record to go", lambda: site.executor() is None)
    wait_for("its file to go", lambda: site.shard_dir.list_ids() == ())
    assert not running.killed


def test_a_file_stays_while_an_executor_drains(site: Site) -> None:
    shard_id = site.shard()
    site.place(shard_id)
    site.settings = replace(site.settings, drain_seconds=1.0)
    site.started()
    plan = site.plan(shard_id)
    wait_for("the executor", site.executor)
    (running,) = site.executors.launched
    running.ends_when_drained = False
    site.displace()
    delete_record(site.store, plan.path)
    wait_for("its record to go", lambda: site.executor() is None)
    assert site.shard_dir.list_ids() == (shard_id,)
    assert site.replica(shard_id) is not None
    assert not running.killed
    wait_for("it to be killed in the end", lambda: running.killed)
    wait_for("its file to go", lambda: site.shard_dir.list_ids() == ())


def test_a_dead_executor_is_started_again_at_once(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "_STEADY_END_SECONDS", 5.0)
    monkeypatch.setattr(keeper_module, "_FIRST_BACKOFF_SECONDS", 5.0)
    shard_id = site.shard()
    site.place(shard_id)
    agent = site.started()
    site.plan(shard_id)
    before = wait_for("the executor", site.executor)
    (first,) = site.executors.launched
    begun = time.monotonic()
    first.die()
    agent.executor_ended(first.spec)
    wait_for("another", lambda: site.executor().incarnation != before.incarnation)  # type: ignore[union-attr]
    assert time.monotonic() - begun < 3
    assert first.drained_with is None


def test_an_executor_that_keeps_dying_has_to_wait(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "_IMMEDIATE_STARTS", 3)
    monkeypatch.setattr(keeper_module, "_STEADY_END_SECONDS", 2.0)
    shard_id = site.shard()
    site.place(shard_id)
    agent = site.started()
    site.plan(shard_id)
    for count in range(1, 5):
        wait_for("the executor", lambda count=count: len(site.executors.launched) >= count)
        site.executors.launched[-1].die()
        agent.executor_ended(site.executors.launched[-1].spec)
    wait_for("FAILED", lambda: (e := site.executor()) and e.state is ExecutorState.FAILED)
    assert site.executor().reason == "it ended 4 times within 30 s"  # type: ignore[union-attr]
    wait_for("the fifth", lambda: len(site.executors.launched) == 5)
    first, _, _, fourth, fifth = site.executors.tried_at
    assert fourth - first < 1.8, "some crashes cost no wait"
    assert 1.9 < fifth - fourth < 8, "not long: the tenant has nobody else here"
    wait_for("READY", lambda: site.executor().state is ExecutorState.READY)  # type: ignore[union-attr]


def test_an_executor_that_cannot_start_says_why_and_is_tried_again(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_module, "_FIRST_BACKOFF_SECONDS", 0.2)
    shard_id = site.shard()
    site.place(shard_id)
    site.started()
    site.executors.fails_with = ShardDamaged("a block of it does not check out")
    site.plan(shard_id)
    record = wait_for("the record", site.executor)
    assert record.state is ExecutorState.FAILED
    assert record.reason == "a block of it does not check out"
    wait_for("a third try", lambda: site.executors.tries > 2)
    assert site.is_ready(shard_id), "the file was checked again and is sound"
    first, second, third = site.executors.tried_at[:3]
    assert second - first >= 0.2
    assert third - second >= 0.4
    site.executors.fails_with = None
    wait_for("READY", lambda: site.executor().state is ExecutorState.READY, 20)  # type: ignore[union-attr]
    assert site.executor().reason == ""  # type: ignore[union-attr]


def test_a_failed_start_finds_the_damaged_file(site: Site) -> None:
    shard_id = site.shard()
    site.place(shard_id)
    site.started()
    wait_for("READY", lambda: site.is_ready(shard_id))
    site.shard_dir.shard_file(shard_id).write_bytes(b"ro_s")
    site.executors.fails_with = ShardDamaged("a block of it does not check out")
    site.plan(shard_id)
    wait_for("FAILED", lambda: site.replica(shard_id).state is ReplicaState.FAILED)  # type: ignore[union-attr]
    assert site.shard_dir.list_ids() == ()


def test_executors_of_several_tenants_start_side_by_side(site: Site) -> None:
    shard_id = site.shard()
    site.place(shard_id)
    site.started()
    site.executors.gate.clear()
    for tenant in ("one", "two"):
        plan = replace(site.plan(shard_id), tenant=TenantId(tenant))
        put_record(site.store, plan)
    delete_record(site.store, site.plan(shard_id).path)
    wait_for("READY meanwhile", lambda: site.is_ready(shard_id))
    site.executors.gate.set()

    def tenants() -> set[str]:
        return {e.tenant for e in site.view.records(Executor)}

    wait_for("both", lambda: tenants() >= {"one", "two"})


def test_a_lost_registration_is_made_anew_with_everything_on_it(site: Site) -> None:
    shard_id = site.shard()
    site.place(shard_id)
    site.started()
    site.plan(shard_id)
    before = wait_for("the executor", site.executor)
    wait_for("READY", lambda: site.is_ready(shard_id))
    delete_record(site.store, worker_path(US))
    wait_for("registered anew", lambda: site.incarnation() > before.worker_incarnation)
    wait_for("READY again", lambda: site.is_ready(shard_id))
    wait_for(
        "the executor too",
        lambda: site.executor().worker_incarnation == site.incarnation(),  # type: ignore[union-attr]
    )
    assert len(site.executors.launched) == 1


def test_the_store_comes_back_and_the_host_is_reconciled(site: Site) -> None:
    shard_id, retired = site.shard(), site.shard()
    site.place(shard_id)
    site.place(retired, epoch=2)
    agent = site.started()
    site.plan(shard_id)
    before = wait_for("the executor", site.executor)
    wait_for("READY", lambda: site.is_ready(shard_id) and site.is_ready(retired))
    site.store.is_away = True
    (first,) = site.executors.launched
    first.die()
    agent.executor_ended(first.spec)
    wait_for("another executor all the same", lambda: len(site.executors.launched) == 2)
    assert site.shard_dir.list_ids() == tuple(sorted((shard_id, retired)))
    site.store.come_back()
    site.displace(epoch=2)
    wait_for("registered anew", lambda: site.incarnation() > before.worker_incarnation)
    wait_for("READY again", lambda: site.is_ready(shard_id))
    wait_for("what is not wanted any more to go", lambda: site.shard_dir.list_ids() == (shard_id,))
    second = site.executors.launched[-1].incarnation
    wait_for("the executor", lambda: (e := site.executor()) and e.incarnation == second)


def test_the_inventory_tells_what_is_there(site: Site) -> None:
    shard_id = site.shard()
    site.place(shard_id)
    agent = site.started()
    site.plan(shard_id)
    wait_for("the executor", site.executor)
    inventory = agent.inventory()
    assert inventory["shards"] == {shard_id: "VERIFIED"}
    assert [e["generation"] for e in inventory["executors"]] == [1]
    assert inventory["incarnation"] == site.incarnation()
    assert encode(inventory)


def test_a_host_in_its_next_life_takes_its_name_over_at_once(site: Site) -> None:
    agent = site.agent()
    before = site.store.lease(60)  # of the process that was killed
    create_record(site.store, agent._registration._record, before.lease_id)
    dead = Executor(
        worker=US, tenant=TENANT, generation=1, incarnation="x", state=ExecutorState.READY
    )
    put_record(site.store, dead, before.lease_id)
    incarnation = site.incarnation()
    begun = time.monotonic()
    agent.start()
    assert site.incarnation() > incarnation
    assert time.monotonic() - begun < 1
    assert site.executor() is None, "nobody is routed to an executor that died with its host"


def test_a_second_host_of_the_same_name_is_refused(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.started()
    site.settings = replace(site.settings, lease_seconds=0.2)
    foreign = site.agent(host="10.0.0.2", shard_dir=ShardDir(tmp_path / "theirs"))
    monkeypatch.setattr(agent_module, "_FRESH_SECONDS", 0.5)
    begun = time.monotonic()
    with pytest.raises(ConfigError, match="another host is registered as worker us"):
        foreign.start()
    assert time.monotonic() - begun < 5
    assert site.incarnation() == site.agents[0].incarnation()


def test_a_second_agent_on_the_same_directory_is_refused(site: Site) -> None:
    site.started()
    with pytest.raises(ConfigError, match="another host agent uses the shard directory"):
        site.agent().start()


def test_stop_takes_everything_off_the_cluster_and_keeps_the_files(site: Site) -> None:
    shard_id = site.shard()
    site.place(shard_id)
    agent = site.started()
    site.plan(shard_id)
    wait_for("the executor", site.executor)
    agent.stop()
    assert site.incarnation() == 0
    assert site.executor() is None
    assert site.executors.is_closed
    assert site.executors.launched[0].drained_with == 0.3
    assert site.shard_dir.list_ids() == (shard_id,)


# Loads


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"])


def test_a_load_is_recorded_from_start_to_end(site: Site) -> None:
    shard_id = ShardId(uuid.uuid4().hex)
    agent = site.started()
    site.place(shard_id)
    order = agent.loads.started(site.order(shard_id, memory_bytes=1 << 50), os.getpid())
    assert order.memory_bytes == site.settings.loader_memory_bytes
    assert order.spill_dir == site.settings.spill_dir
    assert site.replica(shard_id).state is ReplicaState.LOADING  # type: ignore[union-attr]
    assert agent.loads.is_wanted(order)
    site.write(shard_id)
    assert agent.loads.finished(order).rows == 4
    assert site.is_ready(shard_id)
    assert agent.inventory()["loads"] == []


def test_a_load_that_left_no_sound_file_is_not_ready(site: Site) -> None:
    shard_id = ShardId(uuid.uuid4().hex)
    agent = site.started()
    site.place(shard_id)
    order = agent.loads.started(site.order(shard_id), os.getpid())
    with pytest.raises(ShardDamaged):
        agent.loads.finished(order)
    assert site.replica(shard_id).state is ReplicaState.FAILED  # type: ignore[union-attr]
    order = agent.loads.started(site.order(shard_id), os.getpid())
    site.write(shard_id)
    site.shard_dir.shard_file(shard_id).write_bytes(b"longer than that")
    with pytest.raises(ShardDamaged):
        agent.loads.finished(order)
    wait_for("the file to go", lambda: site.shard_dir.list_ids() == ())
    wait_for("FAILED", lambda: site.replica(shard_id).state is ReplicaState.FAILED)  # type: ignore[union-attr]


def test_a_failed_load_is_recorded_with_its_reason(site: Site) -> None:
    shard_id = ShardId(uuid.uuid4().hex)
    agent = site.started()
    site.place(shard_id)
    order = agent.loads.started(site.order(shard_id), os.getpid())
    agent.loads.failed(order, SnapshotGone("the file is gone"))
    found = site.replica(shard_id)
    assert found is not None
    assert (found.state, found.error_code) == (ReplicaState.FAILED, "SNAPSHOT_GONE")
    again = agent.loads.started(site.order(shard_id), os.getpid())
    assert site.replica(shard_id).attempt == 2  # type: ignore[union-attr]
    agent.loads.failed(again, SnapshotGone("still"))
    site.displace()
    wait_for("the record to go", lambda: site.replica(shard_id) is None)


def test_a_load_whose_process_died_is_recorded_as_failed(site: Site) -> None:
    shard_id = ShardId(uuid.uuid4().hex)
    agent = site.started()
    site.place(shard_id)
    process = sleeper()
    agent.loads.started(site.order(shard_id), process.pid)
    process.kill()
    process.wait()
    wait_for("FAILED", lambda: site.replica(shard_id).state is ReplicaState.FAILED)  # type: ignore[union-attr]
    assert site.replica(shard_id).error_code == "LOADER_CRASHED"  # type: ignore[union-attr]
    assert agent.inventory()["loads"] == []


def test_a_load_that_nothing_wants_or_that_is_another_hosts_is_refused(site: Site) -> None:
    shard_id = ShardId(uuid.uuid4().hex)
    agent = site.started()
    with pytest.raises(LoadError, match="no placement wants"):
        agent.loads.started(site.order(shard_id), os.getpid())
    site.place(shard_id)
    with pytest.raises(LoadError, match="keeps its shard files in"):
        agent.loads.started(site.order(shard_id, shard_dir="/elsewhere"), os.getpid())
    assert site.replica(shard_id) is None
    assert agent.inventory()["loads"] == []


def test_a_load_is_wanted_as_long_as_any_placement_wants_its_shard(site: Site) -> None:
    shard_id = ShardId(uuid.uuid4().hex)
    agent = site.started()
    site.place(shard_id)
    order = agent.loads.started(site.order(shard_id), os.getpid())
    site.place(shard_id, epoch=2)
    wait_for("it to be seen", lambda: agent._mirror.view.placement(order_id(order), EpochNumber(2)))
    site.displace(epoch=1)
    assert agent.loads.is_wanted(order)
    site.displace(epoch=2)
    wait_for("not any more", lambda: not agent.loads.is_wanted(order))
    site.store.is_away = True
    assert agent.loads.is_wanted(order)
    site.store.is_away = False
    agent.loads.failed(order, SnapshotGone("cancelled"))


def order_id(order: LoadOrder) -> Any:
    return Dataset(
        tenant=order.tenant,
        name=order.dataset,
        source=None,  # type: ignore[arg-type]
    ).dataset_id


def test_a_load_that_ends_while_the_store_is_away_is_registered_later(site: Site) -> None:
    shard_id = ShardId(uuid.uuid4().hex)
    agent = site.started()
    site.place(shard_id)
    order = agent.loads.started(site.order(shard_id), os.getpid())
    site.store.is_away = True
    site.write(shard_id)
    assert agent.loads.finished(order).rows == 4
    site.store.is_away = False
    wait_for("READY", lambda: site.is_ready(shard_id))


def test_a_file_is_not_removed_while_its_load_runs(site: Site) -> None:
    shard_id = ShardId(uuid.uuid4().hex)
    agent = site.started()
    site.place(shard_id)
    order = agent.loads.started(site.order(shard_id), os.getpid())
    site.write(shard_id)
    site.displace()
    wait_for("the view to be applied", lambda: not list(agent._mirror.view.records(Placement)))
    let_it_come_round(agent)
    assert site.shard_dir.list_ids() == (shard_id,)
    agent.loads.finished(order)
    wait_for("the file to go", lambda: site.shard_dir.list_ids() == ())
    wait_for("its record to go", lambda: site.replica(shard_id) is None)
