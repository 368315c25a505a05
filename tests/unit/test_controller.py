"""The control loop against a real store protocol (in memory), simulated hosts and sources."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import pytest
from simulated_world import COLUMNS, make_dataset

from accel_dask.config import MasterSettings, Settings
from accel_dask.errors import (
    OutcomeUnknown,
    SnapshotGone,
    SourceUnavailable,
    StoreUnavailable,
)
from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import Dataset, PublishRequest
from accel_dask.model.epoch import Epoch, EpochState
from accel_dask.model.executor import Executor, ExecutorPlan, ExecutorState
from accel_dask.model.ids import GatewayId, Revision, TenantId, WorkerId
from accel_dask.model.member import Gateway, Leader, Worker
from accel_dask.model.replica import Replica, ReplicaState
from accel_dask.model.snapshot import DataFile, SnapshotId, SourceSnapshot
from accel_dask.model.tenant import MIB, Quota, Tenant
from accel_dask.scheduler_plugin.controller import Controller, Load
from accel_dask.store.base import Transaction
from accel_dask.store.blobs import delete_blob, list_blobs
from accel_dask.store.memory import MemoryStore
from accel_dask.store.mirror import Mirror
from accel_dask.store.records import create_record, ensure_meta, put_record

FAST = MasterSettings(lease_seconds=1.0, tick_seconds=0.05, validate_seconds=5.0)


@dataclass
class FakeSource:
    """A source whose snapshots are numbers: snapshot n has the files 0..n."""

    newest: int = 1
    error: Exception | None = None
    gate: threading.Event | None = None
    planned: list[str | None] = field(default_factory=list)
    pins: dict[str, int] = field(default_factory=dict)
    file_bytes: int = 64 * MIB

    def current_version(self) -> str:
        return str(self.newest)

    def plan(self, snapshot: str | None) -> SourceSnapshot:
        self.planned.append(snapshot)
        if self.gate is not None:
            self.gate.wait(20)
        if self.error is not None:
            raise self.error
        number = int(snapshot or self.newest)
        files = tuple(
            DataFile(
                path=f"/f{i}", size_bytes=self.file_bytes, record_count=10, partition=f"p{i:03d}"
            )
            for i in range(number)
        )
        return SourceSnapshot(
            snapshot_id=SnapshotId(table_uuid="t", snapshot=str(number), schema_id="0"),
            sequence=number,
            columns=COLUMNS,
            files=files,
        )

    def pin(self, planned: SourceSnapshot, label: str) -> None:
        self.pins[label] = self.pins.get(label, 0) + 1

    def unpin(self, label: str) -> None:
        self.pins.pop(label, None)

    def pinned_labels(self, prefix: str) -> tuple[str, ...]:
        return tuple(label for label in self.pins if label.startswith(prefix))

    def close(self) -> None:
        pass


class FakeHost:
    """Does at once what the master's records ask of one host. Acts on its own mirror."""

    def __init__(self, store: MemoryStore, name: str, *, loads: bool = True) -> None:
        self.store = store
        self.name = WorkerId(name)
        self.loads = loads
        self.ordered: tuple[Load, ...] = ()
        self.ever_ordered: list[Load] = []
        self._lock = threading.Lock()
        worker = Worker(
            worker=self.name,
            host="h",
            memory_bytes=8 * 1024 * MIB,
            cores=2,
            shard_dir="/dev/shm/x",
            in_memory=True,
            enforcement="",
            version="1",
        )
        self.incarnation = create_record(store, worker)
        self.mirror = Mirror(store, on_change=self.act).start()

    def want(self, loads: tuple[Load, ...]) -> None:
        self.ordered = loads
        self.ever_ordered += [load for load in loads if load not in self.ever_ordered]
        if not self.loads:
            return
        for load in loads:
            put_record(
                self.store,
                Replica(
                    worker=load.wanted.worker,
                    shard_id=load.wanted.shard_id,
                    worker_incarnation=self.incarnation,
                    state=ReplicaState.READY,
                    rows=10,
                    file_bytes=load.order.task.source_bytes // 2,
                ),
            )

    def act(self, view: ClusterView) -> None:
        with self._lock:
            running = {e.path[1:] for e in view.records(Executor)}
            for plan in view.records(ExecutorPlan):
                if plan.worker == self.name and plan.path[1:] not in running:
                    put_record(self.store, self.executor(plan))

    def executor(self, plan: ExecutorPlan) -> Executor:
        return Executor(
            worker=plan.worker,
            tenant=plan.tenant,
            generation=plan.generation,
            incarnation="i",
            state=ExecutorState.READY,
            worker_incarnation=self.incarnation,
        )

    def close(self) -> None:
        self.mirror.close()


@dataclass
class Bench:
    store: MemoryStore
    mirror: Mirror
    host: FakeHost
    sources: dict[str, FakeSource]
    settings: Settings

    def controller(self, name: str = "m1", loads: object = None) -> Controller:
        return Controller(
            self.store,
            self.settings,
            master=name,
            address=f"tcp://{name}",
            open_source=lambda dataset: self.sources[dataset.name],
            loads=loads or self.host,  # type: ignore[arg-type]
        )

    def wait(self, predicate: Callable[[ClusterView], bool], seconds: float = 10) -> ClusterView:
        return self.mirror.wait_for(predicate, seconds)

    def publish(self, dataset: Dataset, nonce: str, snapshot: str | None = None) -> None:
        put_record(
            self.store,
            PublishRequest(
                tenant=dataset.tenant,
                name=dataset.name,
                nonce=nonce,
                requested_by="test",
                requested_at_ns=0,
                snapshot=snapshot,
            ),
        )


FLIGHTS = make_dataset()


@pytest.fixture
def bench() -> Iterator[Bench]:
    store = MemoryStore()
    ensure_meta(store)
    quota = Quota(memory_bytes_per_host=4096 * MIB)
    put_record(store, Tenant(tenant=TenantId("acme"), quota=quota))
    put_record(store, FLIGHTS)
    host = FakeHost(store, "host-1")
    mirror = Mirror(store).start()
    bench = Bench(store, mirror, host, {"flights": FakeSource()}, Settings(master=FAST))
    yield bench
    host.close()
    mirror.close()
    store.close()


@pytest.fixture
def master(bench: Bench) -> Iterator[Controller]:
    controller = bench.controller()
    controller.start()
    yield controller
    controller.close()


def serves(number: int, dataset: Dataset = FLIGHTS) -> Callable[[ClusterView], bool]:
    def check(view: ClusterView) -> bool:
        serving = view.serving(dataset.dataset_id)
        return serving is not None and serving.epoch == number

    return check


def only(number: int) -> Callable[[ClusterView], bool]:
    def check(view: ClusterView) -> bool:
        numbers = [e.number for e in view.epochs_of(FLIGHTS.dataset_id)]
        return serves(number)(view) and numbers == [number] and len(view.of(ExecutorPlan)) == 1

    return check


def test_a_published_snapshot_becomes_ready_and_a_second_one_replaces_it(
    bench: Bench, master: Controller
) -> None:
    bench.publish(FLIGHTS, "n1")
    view = bench.wait(serves(1))
    view.check_invariants()
    bench.sources["flights"].newest = 3
    bench.publish(FLIGHTS, "n2")
    view = bench.wait(only(2))
    view.check_invariants()
    epoch = view.serving_epoch(FLIGHTS.dataset_id)
    assert epoch is not None
    assert epoch.publish_nonce == "n2"
    assert [line.state.value for line in epoch.story] == ["LOADING", "VALIDATING", "READY"]
    sentences = [told.sentence for told in master.story()]
    assert any("acme.flights@2 serves now" in sentence for sentence in sentences)


def test_a_shard_that_two_epochs_share_is_loaded_once(bench: Bench, master: Controller) -> None:
    bench.sources["flights"].newest = 2
    bench.publish(FLIGHTS, "n1")
    bench.wait(only(1))
    first = len(bench.host.ever_ordered)
    bench.sources["flights"].newest = 3
    bench.publish(FLIGHTS, "n2")
    bench.wait(only(2))
    shards = [load.wanted.shard_id for load in bench.host.ever_ordered]
    assert len(set(shards)) == len(shards)
    assert len(shards) < first + 3


def test_a_publish_of_the_snapshot_that_is_served_makes_no_new_epoch(
    bench: Bench, master: Controller
) -> None:
    bench.publish(FLIGHTS, "n1")
    bench.wait(only(1))
    bench.publish(FLIGHTS, "again")
    view = bench.wait(lambda v: v.publish_request(FLIGHTS.dataset_id) is None)
    assert [(e.number, e.publish_nonce) for e in view.epochs_of(FLIGHTS.dataset_id)] == [(1, "n1")]


def test_a_source_that_fails_makes_a_failed_epoch_and_the_old_one_serves_on(
    bench: Bench, master: Controller
) -> None:
    bench.publish(FLIGHTS, "n1")
    bench.wait(only(1))
    bench.sources["flights"].error = SnapshotGone("snapshot 7 of acme.flights was expired")
    bench.publish(FLIGHTS, "n2", snapshot="7")
    view = bench.wait(lambda v: any(e.state is EpochState.FAILED for e in v.records(Epoch)))
    failed = view.epochs_of(FLIGHTS.dataset_id)[-1]
    assert failed.publish_nonce == "n2"
    assert failed.reason == "SNAPSHOT_GONE: snapshot 7 of acme.flights was expired"
    assert serves(1)(view)
    view.check_invariants()


def test_a_fault_inside_a_connector_is_told_without_its_inside(
    bench: Bench, master: Controller
) -> None:
    bench.sources["flights"].error = ZeroDivisionError("secret /etc/path")
    bench.publish(FLIGHTS, "n1")
    view = bench.wait(lambda v: bool(v.epochs_of(FLIGHTS.dataset_id)))
    reason = view.epochs_of(FLIGHTS.dataset_id)[0].reason
    assert "ZeroDivisionError" in reason
    assert "secret" not in reason


def test_a_slow_source_does_not_hold_up_other_datasets(bench: Bench, master: Controller) -> None:
    slow = make_dataset(name="slow")
    gate = threading.Event()
    bench.sources["slow"] = FakeSource(gate=gate)
    put_record(bench.store, slow)
    bench.publish(slow, "s1")
    deadline = time.monotonic() + 5
    while not bench.sources["slow"].planned and time.monotonic() < deadline:
        time.sleep(0.01)
    bench.publish(FLIGHTS, "n1")
    view = bench.wait(serves(1))
    assert not view.epochs_of(slow.dataset_id)
    gate.set()
    bench.wait(serves(1, slow))


def test_a_request_that_changes_while_it_is_planned_is_planned_again(
    bench: Bench, master: Controller
) -> None:
    gate = threading.Event()
    source = bench.sources["flights"]
    source.gate, source.newest = gate, 5
    bench.publish(FLIGHTS, "n1", snapshot="2")
    deadline = time.monotonic() + 5
    while not source.planned and time.monotonic() < deadline:
        time.sleep(0.01)
    bench.publish(FLIGHTS, "n2", snapshot="4")
    gate.set()
    view = bench.wait(serves(1))
    epoch = view.serving_epoch(FLIGHTS.dataset_id)
    assert epoch is not None
    assert epoch.publish_nonce == "n2"
    assert epoch.sequence == 4


def test_an_older_snapshot_is_served_only_when_it_is_asked_for_by_name(
    bench: Bench, master: Controller
) -> None:
    source = bench.sources["flights"]
    source.newest = 3
    bench.publish(FLIGHTS, "n1")
    bench.wait(only(1))
    source.newest = 2
    bench.publish(FLIGHTS, "n2")
    view = bench.wait(lambda v: any(e.state is EpochState.FAILED for e in v.records(Epoch)))
    assert serves(1)(view)
    assert "publish it by its id" in view.epochs_of(FLIGHTS.dataset_id)[-1].reason
    bench.publish(FLIGHTS, "n3", snapshot="2")
    bench.wait(serves(3))


def test_pins_live_as_long_as_their_epoch(bench: Bench, master: Controller) -> None:
    source = bench.sources["flights"]
    bench.publish(FLIGHTS, "n1")
    bench.wait(only(1))
    assert len(source.pins) == 1
    first = next(iter(source.pins))
    source.newest = 2
    bench.publish(FLIGHTS, "n2")
    bench.wait(only(2))
    deadline = time.monotonic() + 5
    while first in source.pins and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [label.rsplit("-", 1)[1] for label in source.pins] == ["2"]


def test_load_plans_of_epochs_that_are_gone_are_removed(bench: Bench, master: Controller) -> None:
    for number in range(1, 5):
        bench.sources["flights"].newest = number
        bench.publish(FLIGHTS, f"n{number}")
        bench.wait(only(number))
    deadline = time.monotonic() + 5
    while len(list_blobs(bench.store)) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(list_blobs(bench.store)) == 1


def test_what_an_earlier_master_left_is_swept_when_a_term_begins(bench: Bench) -> None:
    from accel_dask.store.blobs import put_blob

    put_blob(bench.store, b"left over")
    controller = bench.controller()
    controller.start()
    try:
        bench.publish(FLIGHTS, "n1")
        bench.wait(serves(1))
        assert len(list_blobs(bench.store)) == 1
    finally:
        controller.close()


def test_a_dataset_is_polled_and_published_when_its_source_changes(
    bench: Bench, master: Controller
) -> None:
    polled = make_dataset(name="polled", poll_seconds=0.05)
    source = bench.sources["polled"] = FakeSource()
    put_record(bench.store, polled)
    bench.wait(serves(1, polled))
    source.newest = 2
    view = bench.wait(serves(2, polled))
    epoch = view.serving_epoch(polled.dataset_id)
    assert epoch is not None
    assert "poller published" in epoch.story[0].because
    assert source.planned == [None, None]


def test_a_second_master_takes_over_and_finishes_what_the_first_began(bench: Bench) -> None:
    class Nobody:
        def want(self, loads: tuple[Load, ...]) -> None:
            """Loads are ordered and never done."""

    first = bench.controller("m1", Nobody())
    first.start()
    bench.wait(lambda v: v.leader is not None and v.leader.master == "m1")
    bench.publish(FLIGHTS, "n1")
    bench.wait(lambda v: v.open_epoch(FLIGHTS.dataset_id) is not None)
    second = bench.controller("m2")
    second.start()
    try:
        assert not second.is_leader
        first.close()
        bench.wait(lambda v: v.leader is not None and v.leader.master == "m2")
        view = bench.wait(serves(1))
        assert [e.number for e in view.epochs_of(FLIGHTS.dataset_id)] == [1]
        assert second.is_leader
        assert not first.is_leader
    finally:
        first.close()
        second.close()


def test_a_loop_that_is_stuck_loses_leadership(bench: Bench) -> None:
    stuck, released = threading.Event(), threading.Event()

    class Stuck:
        def want(self, loads: tuple[Load, ...]) -> None:
            if loads:
                stuck.set()
                released.wait(20)

    first = bench.controller("m1", Stuck())
    first.start()
    bench.wait(lambda v: v.leader is not None)
    bench.publish(FLIGHTS, "n1")
    assert stuck.wait(10)
    second = bench.controller("m2")
    second.start()
    try:
        bench.wait(lambda v: v.leader is not None and v.leader.master == "m2", 15)
        bench.wait(serves(1))
        released.set()
        assert not first.is_leader
        assert serves(1)(bench.mirror.view)
    finally:
        released.set()
        first.close()
        second.close()


def test_a_lost_answer_is_resolved_by_reading_and_not_by_guessing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = bench.store.commit
    lost: list[Transaction] = []

    def lose_some(transaction: Transaction) -> int:
        is_ours = any("epoch/" in getattr(op, "key", "") for op in transaction.ops)
        if is_ours and len(lost) < 6 and not transaction.idempotent:
            lost.append(transaction)
            if len(lost) % 2:
                commit(transaction)
            raise OutcomeUnknown("the answer was lost")
        return commit(transaction)

    monkeypatch.setattr(bench.store, "commit", lose_some)
    controller = bench.controller()
    controller.start()
    try:
        bench.publish(FLIGHTS, "n1")
        view = bench.wait(only(1))
        view.check_invariants()
        assert len(lost) >= 2
    finally:
        controller.close()


def test_one_bad_decision_does_not_end_the_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accel_dask.scheduler_plugin import controller as module

    real, calls = module.reconcile, []

    def fails_twice(*args: object) -> object:
        calls.append(1)
        if len(calls) <= 2:
            raise RuntimeError("a bug")
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "reconcile", fails_twice)
    controller = bench.controller()
    controller.start()
    try:
        bench.publish(FLIGHTS, "n1")
        bench.wait(serves(1))
    finally:
        controller.close()


def test_a_publish_waits_for_the_first_host(bench: Bench) -> None:
    empty = MemoryStore()
    ensure_meta(empty)
    put_record(empty, Tenant(tenant=TenantId("acme"), quota=Quota()))
    put_record(empty, FLIGHTS)
    bench.sources["flights"].file_bytes = MIB

    class Later:
        host: FakeHost | None = None

        def want(self, loads: tuple[Load, ...]) -> None:
            if self.host:
                self.host.want(loads)

    later = Later()
    controller = Controller(
        empty,
        bench.settings,
        master="m",
        address="tcp://m",
        open_source=lambda _: bench.sources["flights"],
        loads=later,
    )
    controller.start()
    mirror = Mirror(empty).start()
    try:
        lonely = Bench(empty, mirror, bench.host, bench.sources, bench.settings)
        lonely.publish(FLIGHTS, "n1")
        mirror.wait_for(lambda v: bool(v.of(Leader)), 5)
        assert not mirror.view.epochs_of(FLIGHTS.dataset_id)
        later.host = FakeHost(empty, "host-9")
        mirror.wait_for(serves(1), 10)
        later.host.close()
    finally:
        controller.close()
        mirror.close()
        empty.close()


def test_an_unreachable_source_is_not_polled_into_failed_epochs(
    bench: Bench, master: Controller
) -> None:
    polled = make_dataset(name="polled", poll_seconds=0.05)

    class Away(FakeSource):
        asked = 0

        def current_version(self) -> str:
            self.asked += 1
            raise SourceUnavailable("the catalog does not answer")

    source = bench.sources["polled"] = Away()
    put_record(bench.store, polled)
    deadline = time.monotonic() + 5
    while source.asked < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert source.asked >= 3
    assert not bench.mirror.view.epochs_of(polled.dataset_id)


def test_an_epoch_whose_load_plan_is_gone_fails_instead_of_waiting_for_ever(bench: Bench) -> None:
    class Nobody:
        def want(self, loads: tuple[Load, ...]) -> None:
            """Loads are ordered and never done."""

    first = bench.controller("m1", Nobody())
    first.start()
    bench.publish(FLIGHTS, "n1")
    bench.wait(lambda v: v.open_epoch(FLIGHTS.dataset_id) is not None)
    first.close()
    for digest in list_blobs(bench.store):
        delete_blob(bench.store, digest)
    second = bench.controller("m2")
    second.start()
    try:
        view = bench.wait(lambda v: v.open_epoch(FLIGHTS.dataset_id) is None)
        assert "its load plan cannot be read" in view.epochs_of(FLIGHTS.dataset_id)[0].reason
    finally:
        second.close()


def test_a_full_budget_waits_for_the_memory_of_a_retiring_epoch(
    bench: Bench, master: Controller
) -> None:
    """A refresh right after a refresh must not fail for the epoch that is on its way out."""
    source = bench.sources["flights"]
    source.file_bytes = 1000 * MIB
    put_record(
        bench.store,
        Gateway(gateway=GatewayId("slow"), address="g", applied_revision=Revision(1)),
    )
    bench.publish(FLIGHTS, "n1")
    bench.wait(serves(1))
    put_record(bench.store, replace(FLIGHTS, row_filter="delay > 0"))
    bench.publish(FLIGHTS, "n2")
    bench.wait(serves(2))
    source.file_bytes = 3000 * MIB
    put_record(bench.store, replace(FLIGHTS, row_filter="delay > 1"))
    bench.publish(FLIGHTS, "n3")
    bench.wait(lambda v: len(v.epochs_of(FLIGHTS.dataset_id)) == 2)
    deadline = time.monotonic() + 5
    while source.planned.count(None) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert bench.mirror.view.publish_request(FLIGHTS.dataset_id) is not None, "it waits"
    put_record(
        bench.store,
        Gateway(gateway=GatewayId("slow"), address="g", applied_revision=Revision(10**6)),
    )
    bench.wait(serves(3))


def test_a_budget_that_will_not_do_fails_at_once(bench: Bench, master: Controller) -> None:
    bench.sources["flights"].file_bytes = 5000 * MIB
    bench.publish(FLIGHTS, "n1")
    view = bench.wait(lambda v: bool(v.epochs_of(FLIGHTS.dataset_id)))
    (failed,) = view.epochs_of(FLIGHTS.dataset_id)
    assert failed.state is EpochState.FAILED
    assert failed.reason.startswith("QUOTA_EXCEEDED: acme.flights needs 5000.0 MiB")


def test_a_poll_that_hangs_does_not_keep_its_dataset_from_being_published(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accel_dask.scheduler_plugin import publishing

    monkeypatch.setitem(publishing._MOST_SECONDS, "poll", 0.2)
    polled = make_dataset(name="polled", poll_seconds=0.01)
    released, threads = threading.Event(), []

    class Hangs(FakeSource):
        def current_version(self) -> str:
            threads.append(threading.current_thread())
            released.wait(20)
            return "1"

    bench.sources["polled"] = Hangs()
    put_record(bench.store, polled)
    controller = bench.controller()
    controller.start()
    try:
        deadline = time.monotonic() + 5
        while not threads and time.monotonic() < deadline:
            time.sleep(0.01)
        bench.publish(polled, "n1")
        bench.wait(serves(1, polled), 5)
        bench.publish(FLIGHTS, "n1")
        bench.wait(serves(1), 5)
        assert len(threads) == 1, "a source that hangs costs one thread, not one for each poll"
    finally:
        released.set()
        controller.close()


def test_a_new_version_is_published_although_the_store_was_away_when_it_was_seen(
    bench: Bench, master: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accel_dask.scheduler_plugin import publishing

    polled = make_dataset(name="polled", poll_seconds=0.05)
    source = bench.sources["polled"] = FakeSource()
    put_record(bench.store, polled)
    bench.wait(serves(1, polled))
    refused: list[object] = []

    def away_once(store: MemoryStore, record: PublishRequest) -> int:
        if not refused:
            refused.append(record)
            raise StoreUnavailable("no member of etcd answered in time")
        return create_record(store, record)

    monkeypatch.setattr(publishing, "create_record", away_once)
    source.newest = 2
    bench.wait(serves(2, polled), 5)
    assert refused


def test_the_load_plans_of_refused_publishes_are_removed(bench: Bench, master: Controller) -> None:
    bench.sources["flights"].file_bytes = 5000 * MIB
    for number in range(1, 5):
        bench.publish(FLIGHTS, f"n{number}")
        bench.wait(lambda v, n=number: len(v.epochs_of(FLIGHTS.dataset_id)) == n)  # type: ignore[misc]
    deadline = time.monotonic() + 5
    while list_blobs(bench.store) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list_blobs(bench.store) == ()


def test_a_snapshot_pinned_for_a_request_that_was_replaced_is_released(
    bench: Bench, master: Controller
) -> None:
    source = bench.sources["flights"]
    source.gate = threading.Event()
    bench.publish(FLIGHTS, "n1", snapshot="2")
    deadline = time.monotonic() + 5
    while not source.planned and time.monotonic() < deadline:
        time.sleep(0.01)
    source.newest = 4
    bench.publish(FLIGHTS, "n2")
    source.gate.set()
    bench.wait(serves(1))
    while len(source.pins) != 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [label.rsplit("-", 1)[1] for label in source.pins] == ["4"]


def test_a_new_leader_does_not_undo_what_an_operator_went_back_to(bench: Bench) -> None:
    polled = make_dataset(name="polled", poll_seconds=0.02)
    source = bench.sources["polled"] = FakeSource(newest=3)
    put_record(bench.store, polled)
    first = bench.controller("m1")
    first.start()
    bench.wait(serves(1, polled))
    bench.publish(polled, "back", snapshot="2")
    bench.wait(serves(2, polled))
    first.close()
    asked = threading.Event()
    version = source.current_version

    def current_version() -> str:
        if bench.mirror.view.leader is not None:
            asked.set()
        return version()

    source.current_version = current_version  # type: ignore[method-assign]
    second = bench.controller("m2")
    second.start()
    try:
        for _ in range(3):
            asked.clear()
            assert asked.wait(5), "the new leader polls"
        serving = bench.mirror.view.serving_epoch(polled.dataset_id)
        assert serving is not None
        assert (serving.number, serving.sequence) == (2, 2)
        assert bench.mirror.view.publish_request(polled.dataset_id) is None
        source.newest = 4
        bench.wait(serves(3, polled))
    finally:
        second.close()


def test_a_new_leader_releases_what_the_last_one_had_pinned_for_nothing(bench: Bench) -> None:
    source = bench.sources["flights"]
    first = bench.controller("m1")
    first.start()
    bench.publish(FLIGHTS, "n1")
    bench.wait(serves(1))
    first.close()
    (held,) = source.pins
    prefix = held.rsplit("-", 1)[0]
    source.pins |= {f"{prefix}-7": 1, f"{prefix}_2-7": 1, "accel-another-acme-flights-7": 1}
    second = bench.controller("m2")
    second.start()
    try:
        deadline = time.monotonic() + 5
        while f"{prefix}-7" in source.pins and time.monotonic() < deadline:
            time.sleep(0.01)
        assert source.pins.keys() == {held, f"{prefix}_2-7", "accel-another-acme-flights-7"}
    finally:
        second.close()


def test_a_commit_that_no_store_takes_does_not_hold_up_the_others(
    bench: Bench, master: Controller, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accel_dask.scheduler_plugin import publishing

    large = make_dataset(name="a_large_one")
    bench.sources[large.name] = FakeSource()
    put_record(bench.store, large)
    real = publishing.open_epoch

    def too_large(round_: object, planned: publishing.PlannedPublish) -> object:
        commit = real(round_, planned)  # type: ignore[arg-type]
        if planned.dataset.name != large.name:
            return commit
        return replace(commit, because="x", changes=commit.changes * 300)

    monkeypatch.setattr(publishing, "open_epoch", too_large)
    bench.publish(large, "n1")
    deadline = time.monotonic() + 5
    while not bench.sources[large.name].planned and time.monotonic() < deadline:
        time.sleep(0.01)
    assert bench.sources[large.name].planned
    bench.publish(FLIGHTS, "n1")
    bench.wait(serves(1), 5)
