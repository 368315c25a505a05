"""A worker host on real parts: etcd, a Dask scheduler, `dask worker` with its nanny, loaders and
executors. The test plays the master: it writes placements and plans and submits load tasks."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import Client
from distributed.core import rpc
from pyarrow import flight
from whole_cluster import is_alive

from accel_dask.codec import decode, encode
from accel_dask.config import HostSettings, Settings, StoreSettings, settings_to_toml
from accel_dask.errors import LoadError, SnapshotGone
from accel_dask.model.cluster import ClusterView
from accel_dask.model.executor import Attachment, Executor, ExecutorPlan, ExecutorState
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId, WorkerId
from accel_dask.model.load_plan import LoadOrder, LoadTask, ShardManifest
from accel_dask.model.placement import Placement, placement_path
from accel_dask.model.replica import Replica, ReplicaState
from accel_dask.model.snapshot import Column, DataFile
from accel_dask.model.tenant import MIB, Quota
from accel_dask.model.ticket import EpochToken, Ticket, shard_relation, sign
from accel_dask.niceness import BEHIND_QUERIES
from accel_dask.store.base import StateStore
from accel_dask.store.connect import open_store
from accel_dask.store.etcd_server import EmbeddedEtcd
from accel_dask.store.mirror import Mirror
from accel_dask.store.records import delete_record, ensure_meta, put_record
from accel_dask.worker_plugin.plugin import run_load

pytestmark = pytest.mark.cluster

WORKER = WorkerId("host-a")
ROWS = 5_000
CHECKSUM = ROWS * (ROWS - 1) // 2
QUOTA = Quota(executor_memory_bytes=128 * MIB, memory_bytes_per_host=512 * MIB, threads=1)


def wait_for(what: str, predicate: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    pause = threading.Event()
    while not (found := predicate()):
        assert time.monotonic() < deadline, f"in vain for {seconds:g} s: {what}"
        pause.wait(0.02)
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Site:
    """Everything that a host needs, and the host."""

    directory: Path
    shard_dir: Path
    store: StateStore
    mirror: Mirror
    etcd: EmbeddedEtcd
    port: int = field(default_factory=free_port)
    scheduler: subprocess.Popen[bytes] | None = None
    nanny: subprocess.Popen[bytes] | None = None
    nanny_address: str = ""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    @property
    def scheduler_address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def view(self) -> ClusterView:
        return self.mirror.view

    def _spawn(self, name: str, *argv: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *argv],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "ACCEL_CONFIG": str(self.directory / "accel.toml")},
                start_new_session=True,
            )

    def start_scheduler(self) -> None:
        self.scheduler = self._spawn(
            "scheduler",
            *("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard"),
            *("--dashboard-address", "127.0.0.1:0"),
        )

    def start_host(self) -> None:
        self.nanny = self._spawn(
            "host",
            *("worker", self.scheduler_address, "--name", WORKER, "--nthreads", "2"),
            *("--nworkers", "1", "--memory-limit", "1GiB", "--no-dashboard"),
            *("--local-directory", str(self.directory / "dask")),
            *("--preload-nanny", "accel_dask.worker_plugin.preload_nanny"),
            *("--preload", "accel_dask.worker_plugin.preload_worker"),
        )

    def inventory(self) -> Any:
        """What the host agent says is there, asked of the nanny."""

        async def ask() -> Any:
            async with rpc(self.nanny_address) as nanny:
                return await nanny.accel_inventory()

        return json.loads(asyncio.run(ask())["ok"])

    def log(self, name: str = "host") -> str:
        return (self.directory / f"{name}.log").read_text(errors="replace")

    def worker_pid(self) -> int:
        """Of the Dask worker process, the nanny's child."""
        assert self.nanny is not None
        for child in psutil.Process(self.nanny.pid).children():
            with suppress(psutil.NoSuchProcess):  # it has just ended
                if any("multiprocessing.spawn" in part for part in child.cmdline()):
                    return child.pid
        return 0

    def family(self) -> list[psutil.Process]:
        """The nanny and all below it, executors too, which are the zygote's children."""
        assert self.nanny is not None
        nanny = psutil.Process(self.nanny.pid)
        return [nanny, *nanny.children(recursive=True)]

    @contextmanager
    def client(self) -> Iterator[Client]:
        with Client(self.scheduler_address, timeout=20, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=40)
            (worker,) = client.scheduler_info()["workers"].values()
            self.nanny_address = worker["nanny"]
            yield client

    # The master's part

    def stage(self, tenant: str, rows: int = ROWS) -> Staged:
        number = next(self.numbers)
        file = self.directory / f"source-{number}.parquet"
        pq.write_table(pa.table({"v": pa.array(range(rows), pa.int64())}), file)
        return Staged(
            site=self,
            tenant=TenantId(tenant),
            dataset=f"d{number}",
            shard_id=ShardId(uuid.uuid4().hex),
            source=file,
            rows=rows,
        )


@dataclass
class Staged:
    """One dataset with one shard, at its epoch 1."""

    site: Site
    tenant: TenantId
    dataset: str
    shard_id: ShardId
    source: Path
    rows: int
    generation: int = 1

    @property
    def dataset_id(self) -> DatasetId:
        return DatasetId(self.tenant, self.dataset)

    @property
    def file(self) -> Path:
        return self.site.shard_dir / f"{self.shard_id}.duckdb"

    def order(self, record_count: int | None = None) -> bytes:
        rows = self.rows if record_count is None else record_count
        size = self.source.stat().st_size if self.source.exists() else 1
        return encode(
            LoadOrder(
                tenant=self.tenant,
                dataset=self.dataset,
                epoch=EpochNumber(1),
                task=LoadTask(
                    shard_id=self.shard_id,
                    columns=(Column(name="v", type="BIGINT"),),
                    files=(DataFile(path=str(self.source), size_bytes=size, record_count=rows),),
                    rows=rows,
                    source_bytes=size,
                ),
                shard_dir=str(self.site.shard_dir),
                spill_dir="",
                memory_bytes=256 * MIB,
                threads=1,
                max_file_bytes=64 * MIB,
            )
        )

    def place(self) -> None:
        put_record(
            self.site.store,
            Placement(
                tenant=self.tenant,
                dataset=self.dataset,
                epoch=EpochNumber(1),
                hosts=((self.shard_id, (WORKER,)),),
            ),
        )

    def displace(self) -> None:
        delete_record(self.site.store, placement_path(self.dataset_id, EpochNumber(1)))

    def submit(self, client: Client, **order: Any) -> Any:
        return client.submit(
            run_load,
            self.order(**order),
            key=("accel-load", f"{self.dataset_id}@1#0/{WORKER}/{uuid.uuid4().hex[:6]}"),
            workers=[WORKER],
            allow_other_workers=False,
            pure=False,
        )

    def load(self, client: Client) -> ShardManifest:
        self.place()
        return decode(self.submit(client).result(timeout=40), ShardManifest)

    def plan(self, generation: int | None = None) -> ExecutorPlan:
        if generation is not None:
            self.generation = generation
        plan = ExecutorPlan(
            worker=WORKER,
            tenant=self.tenant,
            generation=self.generation,
            attachments=(Attachment(self.dataset, EpochNumber(1), self.shard_id),),
            quota=QUOTA,
        )
        put_record(self.site.store, plan)
        return plan

    def unplan(self) -> None:
        plan_path = (ExecutorPlan.KIND, WORKER, self.tenant, f"{self.generation:020d}")
        delete_record(self.site.store, plan_path)

    def replica(self) -> Replica | None:
        return self.site.view.find(Replica, (Replica.KIND, WORKER, self.shard_id))

    def executor(self) -> Executor | None:
        path = (Executor.KIND, WORKER, self.tenant, f"{self.generation:020d}")
        return self.site.view.find(Executor, path)

    def ready_executor(self, seconds: float = 20.0) -> Executor:
        def ready() -> Executor | None:
            found = self.executor()
            return found if found and found.state is ExecutorState.READY else None

        found: Executor = wait_for(f"executor of {self.tenant} READY", ready, seconds)
        return found

    def wait_replica(self, state: ReplicaState, seconds: float = 20.0) -> Replica:
        def found() -> Replica | None:
            replica = self.replica()
            return replica if replica and replica.state is state else None

        replica: Replica = wait_for(f"replica {self.shard_id} {state}", found, seconds)
        return replica

    def ticket(self) -> flight.Ticket:
        meta = self.site.view.meta
        assert meta is not None
        order = Ticket(
            version=1,
            query_id=uuid.uuid4().hex,
            tenant=self.tenant,
            sql=f"SELECT count(*) AS n, sum(v) AS s FROM {shard_relation(self.shard_id)}",
            tokens=(
                EpochToken(dataset=self.dataset, epoch=EpochNumber(1), shards=(self.shard_id,)),
            ),
            expires_at_ms=int(time.time() * 1000) + 60_000,
            timeout_ms=5_000,
            max_result_rows=1000,
        )
        return flight.Ticket(sign(encode(order), bytes.fromhex(meta.ticket_key)))

    def query(self, address: str) -> dict[str, Any]:
        with flight.FlightClient(address) as client:
            options = flight.FlightCallOptions(timeout=5)
            row: dict[str, Any] = client.do_get(self.ticket(), options).read_all().to_pylist()[0]
            return row


class Pump:
    """Queries one executor all the time, and counts."""

    def __init__(self, staged: Staged) -> None:
        self.staged = staged
        self.answered = 0
        self.failures: list[str] = []
        self.slowest_ms = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        address = self.staged.ready_executor().address
        with flight.FlightClient(address) as client:
            while not self._stop.wait(0.01):
                begun = time.monotonic()
                try:
                    options = flight.FlightCallOptions(timeout=5)
                    table = client.do_get(self.staged.ticket(), options).read_all()
                    assert table.to_pylist() == [{"n": ROWS, "s": CHECKSUM}]
                    self.answered += 1
                except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
                    self.failures.append(repr(error))
                self.slowest_ms = max(self.slowest_ms, (time.monotonic() - begun) * 1000)

    def __enter__(self) -> Pump:
        self._thread.start()
        wait_for("the first answer", lambda: self.answered)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("site")
    mark = uuid.uuid4().hex[:8]
    shard_dir = Path(f"/dev/shm/accel-test-{mark}")
    with EmbeddedEtcd(Path(f"/dev/shm/accel-test-etcd-{mark}"), members=1) as etcd:
        settings = Settings(
            store=StoreSettings(endpoints=tuple(etcd.endpoints), prefix=f"/accel/test-{mark}/v1"),
            host=HostSettings(
                shard_dir=str(shard_dir), lease_seconds=3.0, drain_seconds=3.0, memory_bytes=1 << 30
            ),
        )
        (directory / "accel.toml").write_text(settings_to_toml(settings))
        with open_store(settings.store) as store:
            ensure_meta(store)
            with Mirror(store) as mirror:
                site = Site(directory, shard_dir, store, mirror, etcd)
                site.start_scheduler()
                site.start_host()
                try:
                    wait_for("the host", lambda: WORKER in site.view.workers, 30)
                    yield site
                finally:
                    for process in (site.nanny, site.scheduler):
                        assert process is not None
                        process.terminate()
                    for process in (site.nanny, site.scheduler):
                        assert process is not None
                        try:
                            process.wait(20)
                        except subprocess.TimeoutExpired:
                            process.kill()
                            process.wait()
                    print(site.log())
    for left in sorted(Path("/dev/shm").glob(f"accel-test*{mark}")):
        subprocess.run(["rm", "-rf", str(left)], check=True)


@pytest.fixture(scope="module")
def acme(site: Site) -> Staged:
    """A tenant that is loaded and served for the whole module."""
    staged = site.stage("acme")
    with site.client() as client:
        manifest = staged.load(client)
    assert manifest.rows == ROWS
    staged.plan()
    return staged


def test_a_loaded_shard_is_a_ready_replica_and_its_executor_answers(
    site: Site, acme: Staged
) -> None:
    replica = acme.wait_replica(ReplicaState.READY)
    executor = acme.ready_executor()
    assert acme.query(executor.address) == {"n": ROWS, "s": CHECKSUM}
    host = site.view.workers[WORKER]
    assert replica.worker_incarnation == host.create_revision
    assert replica.attempt == 1
    assert replica.rows == ROWS
    assert replica.file_bytes == acme.file.stat().st_size
    assert executor.worker_incarnation == host.create_revision
    assert host.record.in_memory
    print(f"executor start: {executor.start_ms} ms")


def test_a_killed_dask_worker_costs_no_query_and_loads_go_on(site: Site, acme: Staged) -> None:
    with Pump(acme) as pump:
        before = site.worker_pid()
        os.kill(before, signal.SIGKILL)
        wait_for("a new Dask worker", lambda: site.worker_pid() not in (0, before))
        with site.client() as client:
            assert site.stage("acme").load(client).rows == ROWS
    assert pump.failures == []
    print(f"worker killed: {pump.answered} answers, slowest {pump.slowest_ms:.0f} ms")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_lost_scheduler_costs_no_query_and_loads_go_on(
    site: Site, acme: Staged, how: signal.Signals
) -> None:
    assert site.scheduler is not None
    executor = acme.ready_executor()
    with Pump(acme) as pump:
        worker = site.worker_pid()
        site.scheduler.send_signal(how)
        site.scheduler.wait(20)
        wait_for("the worker to end", lambda: site.worker_pid() != worker)
        site.start_scheduler()
        begun = time.monotonic()
        with site.client() as client:
            back = time.monotonic() - begun
            assert site.stage("acme").load(client).rows == ROWS
    assert pump.failures == []
    assert acme.ready_executor().incarnation == executor.incarnation
    print(
        f"scheduler, {how.name}: {pump.answered} answers, slowest {pump.slowest_ms:.0f} ms, "
        f"worker back {back:.1f} s after the new scheduler's start"
    )


def test_a_killed_executor_answers_again_within_half_a_second(site: Site, acme: Staged) -> None:
    taken_ms = []
    for _ in range(4):
        before = acme.ready_executor()
        begun = time.monotonic()
        os.kill(before.pid, signal.SIGKILL)
        wait_for("another executor", partial(has_replaced, acme, before))
        assert acme.query(acme.ready_executor().address) == {"n": ROWS, "s": CHECKSUM}
        taken_ms.append((time.monotonic() - begun) * 1000)
    print(f"executor killed: answers again after {taken_ms} ms")
    assert min(taken_ms) <= 500, "others use this machine as well"


def has_replaced(staged: Staged, before: Executor) -> bool:
    found = staged.executor()
    return found is not None and found.incarnation != before.incarnation


def test_the_host_agent_lets_queries_go_first(site: Site, acme: Staged) -> None:
    """Also after the zygote was started again: its executors inherit none of it."""
    assert site.nanny is not None
    zygote = next(p for p in site.family() if any("executor.zygote" in a for a in p.cmdline()))
    zygote.kill()
    before = acme.ready_executor()
    os.kill(before.pid, signal.SIGKILL)
    wait_for("another executor", lambda: (e := acme.executor()) is not None and e.pid != before.pid)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert psutil.Process(site.nanny.pid).nice() == max(own, BEHIND_QUERIES)
    assert psutil.Process(acme.ready_executor().pid).nice() == own


def test_a_frozen_executor_is_replaced(site: Site, acme: Staged) -> None:
    before = acme.ready_executor()
    os.kill(before.pid, signal.SIGSTOP)
    wait_for("another executor", partial(has_replaced, acme, before), 15)
    assert acme.query(acme.ready_executor().address) == {"n": ROWS, "s": CHECKSUM}
    wait_for("it to be reaped", lambda: not psutil.pid_exists(before.pid), 5)


def test_a_host_that_was_frozen_registers_anew_with_its_executors(site: Site, acme: Staged) -> None:
    assert site.nanny is not None
    before, host = acme.ready_executor(), site.view.workers[WORKER]
    with Pump(acme) as pump:
        os.kill(site.nanny.pid, signal.SIGSTOP)
        try:
            wait_for("its leases to end", lambda: WORKER not in site.view.workers)
            wait_for("its executors' too", lambda: acme.executor() is None)
            assert not site.view.ready_replicas(acme.shard_id)
        finally:
            os.kill(site.nanny.pid, signal.SIGCONT)
        wait_for("the host to be back", lambda: WORKER in site.view.workers)
        wait_for("its replica to be back", lambda: site.view.ready_replicas(acme.shard_id))
        after = acme.ready_executor()
    assert pump.failures == []
    assert after.incarnation == before.incarnation
    assert after.worker_incarnation > host.create_revision


def test_a_load_without_its_source_is_a_failed_replica(site: Site) -> None:
    staged = site.stage("acme")
    order = staged.order()
    staged.source.unlink()
    staged.place()
    with site.client() as client, pytest.raises(SnapshotGone):
        client.submit(run_load, order, workers=[WORKER], pure=False).result(timeout=40)
    replica = staged.wait_replica(ReplicaState.FAILED)
    assert replica.error_code == "SNAPSHOT_GONE"
    assert not replica.retryable
    assert staged.source.name in replica.reason or staged.dataset in replica.reason
    assert not list(site.shard_dir.glob(f"{staged.shard_id}*"))
    staged.displace()
    wait_for("the record to go", lambda: staged.replica() is None)


def test_a_load_that_nothing_wants_is_refused(site: Site) -> None:
    staged = site.stage("acme")
    with site.client() as client, pytest.raises(LoadError, match="no placement wants"):
        staged.submit(client).result(timeout=40)
    assert staged.replica() is None


def suspended_loader(staged: Staged) -> psutil.Process:
    """The loader of `staged`, stopped in the middle of its work."""

    def begun() -> list[str]:
        files = staged.site.shard_dir.glob(f"{staged.shard_id}.*.tmp.duckdb")
        return [file.name for file in files]

    (name,) = wait_for("the loader at work", begun)
    loader = psutil.Process(int(name.split(".")[1]))
    loader.suspend()
    return loader


def test_a_load_ends_with_its_dask_worker_and_may_be_tried_again(site: Site) -> None:
    staged = site.stage("acme", rows=3_000_000)
    staged.place()
    with site.client() as client:
        load = staged.submit(client)
        loader = suspended_loader(staged)
        assert staged.wait_replica(ReplicaState.LOADING).attempt == 1
        load.cancel()  # or Dask would run it again by itself
        os.kill(site.worker_pid(), signal.SIGKILL)
        replica = staged.wait_replica(ReplicaState.FAILED)
        assert replica.error_code == "LOADER_CRASHED"
        assert replica.retryable
        wait_for("the loader to die with it", lambda: not is_alive(loader))
    with site.client() as client:
        assert decode(staged.submit(client).result(timeout=40), ShardManifest).rows == staged.rows
    assert staged.wait_replica(ReplicaState.READY).attempt == 2
    wait_for("what it left to go", lambda: not list(site.shard_dir.glob("*.tmp*")))


def test_a_load_whose_placement_goes_is_stopped(site: Site) -> None:
    staged = site.stage("acme", rows=3_000_000)
    staged.place()
    with site.client() as client:
        load = staged.submit(client)
        loader = suspended_loader(staged)
        staged.displace()
        with pytest.raises(LoadError):
            load.result(timeout=20)
    wait_for("nothing of it left", lambda: staged.replica() is None)
    assert not list(site.shard_dir.glob(f"{staged.shard_id}*"))
    assert not is_alive(loader)


def test_a_deleted_plan_drains_and_a_deleted_placement_unlinks(site: Site) -> None:
    staged = site.stage("other", rows=200_000)
    with site.client() as client:
        staged.load(client)
    staged.plan()
    executor = staged.ready_executor()
    assert staged.file.exists()
    staged.displace()
    with site.client() as client:
        site.stage("other").load(client)  # the agent has come round several times since
    assert staged.file.exists(), "an executor still has it attached"
    staged.unplan()
    wait_for("the executor to end", lambda: not psutil.pid_exists(executor.pid))
    wait_for("its record to go", lambda: staged.executor() is None)
    wait_for("the file to go", lambda: not staged.file.exists())
    wait_for("the replica to go", lambda: staged.replica() is None)
    assert not list(site.shard_dir.glob(f"{staged.shard_id}*"))


def test_a_new_generation_runs_beside_the_old_one(site: Site) -> None:
    staged = site.stage("gen")
    with site.client() as client:
        staged.load(client)
    staged.plan(1)
    first = staged.ready_executor()
    staged.plan(2)
    second = staged.ready_executor()
    assert staged.query(first.address) == staged.query(second.address)
    staged.generation = 1
    staged.unplan()
    wait_for("the old generation to end", lambda: not psutil.pid_exists(first.pid))
    assert staged.query(second.address) == {"n": ROWS, "s": CHECKSUM}
    staged.generation = 2
    staged.unplan()
    staged.displace()
    wait_for("the file to go", lambda: not staged.file.exists())


def test_executors_serve_on_and_start_again_while_the_store_is_away(
    site: Site, acme: Staged
) -> None:
    other = site.stage("outage")
    with site.client() as client:
        other.load(client)
    other.plan()
    other_executor = other.ready_executor()
    incarnation = site.view.workers[WORKER].create_revision
    with Pump(acme) as pump:
        site.etcd.pause(0)
        try:
            away_since = time.monotonic()
            os.kill(other_executor.pid, signal.SIGKILL)

            def respawned() -> bool:
                return any(
                    e["tenant"] == "outage" and e["pid"] not in (0, other_executor.pid)
                    for e in site.inventory()["executors"]
                )

            wait_for("the executor to run again", respawned)
            respawn_ms = (time.monotonic() - away_since) * 1000
            wait_for("the leases to be over", lambda: time.monotonic() - away_since > 7)
        finally:
            site.etcd.resume(0)

        def is_back() -> bool:
            host, found = site.view.workers.get(WORKER), other.executor()
            return (
                host is not None
                and host.create_revision != incarnation
                and found is not None
                and found.pid != other_executor.pid
                and found.worker_incarnation == host.create_revision
                and bool(site.view.ready_replicas(other.shard_id))
                and bool(site.view.ready_replicas(acme.shard_id))
            )

        wait_for("the host to be registered anew", is_back, 20)
        back_s = time.monotonic() - away_since
    assert pump.failures == []
    assert other.query(other.ready_executor().address) == {"n": ROWS, "s": CHECKSUM}
    print(f"store away 7 s: respawn {respawn_ms:.0f} ms, reconciled {back_s - 7:.1f} s after it")
    other.unplan()
    other.displace()
    wait_for("the file to go", lambda: not other.file.exists())


def test_another_host_with_the_same_shard_directory_is_refused(site: Site, acme: Staged) -> None:
    refused = subprocess.run(
        [
            *(sys.executable, "-m", "dask", "worker", site.scheduler_address),
            *("--name", WORKER, "--nworkers", "1", "--no-dashboard"),
            *("--preload-nanny", "accel_dask.worker_plugin.preload_nanny"),
        ],
        env={**os.environ, "ACCEL_CONFIG": str(site.directory / "accel.toml")},
        capture_output=True,
        text=True,
        timeout=30,
        cwd=site.directory,
        check=False,
    )
    assert refused.returncode == 1
    (line,) = [li for li in refused.stderr.splitlines() if li.startswith("accel-dask:")]
    assert f"another host agent uses the shard directory {site.shard_dir}" in line
    assert acme.query(acme.ready_executor().address) == {"n": ROWS, "s": CHECKSUM}


def test_a_killed_host_leaves_no_orphan_and_comes_back_from_its_files(
    site: Site, acme: Staged
) -> None:
    assert site.nanny is not None
    damaged = site.stage("acme")
    with site.client() as client:
        damaged.load(client)
    damaged.wait_replica(ReplicaState.READY)
    stray = site.shard_dir / f"{'0' * 32}.duckdb"
    before, family = acme.ready_executor(), site.family()
    assert before.pid in [process.pid for process in family]
    site.nanny.kill()
    killed_at = time.monotonic()
    site.nanny.wait()
    wait_for("all its processes to end", lambda: not any(is_alive(p) for p in family), 5)
    orphan_ms = (time.monotonic() - killed_at) * 1000
    assert orphan_ms < 3000

    for staged in (acme, damaged):
        staged.source.unlink()
    with damaged.file.open("r+b") as file:
        file.seek(damaged.file.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))
    stray.write_bytes(b"of a load that crashed")
    log_before = len(site.log())
    begun = time.monotonic()
    site.start_host()

    def is_back() -> bool:
        found = acme.executor()
        return found is not None and found.pid != before.pid and found.pid != 0

    wait_for("the executor to be back", is_back, 30)
    back_s = time.monotonic() - begun
    assert acme.query(acme.ready_executor().address) == {"n": ROWS, "s": CHECKSUM}
    replica = damaged.wait_replica(ReplicaState.FAILED)
    assert replica.error_code == "SHARD_DAMAGED"
    assert replica.retryable
    assert not damaged.file.exists()
    assert not stray.exists()
    assert f"shard {damaged.shard_id} is damaged and was removed" in site.log()[log_before:]
    wait_for("its replica", lambda: site.view.ready_replicas(acme.shard_id))
    print(f"host killed: no orphan after {orphan_ms:.0f} ms; back {back_s:.1f} s after its start")


def test_a_retired_host_drains_and_leaves_the_cluster(site: Site, acme: Staged) -> None:
    assert site.nanny is not None
    family = site.family()
    with site.client() as client:
        client.retire_workers(names=[WORKER], close_workers=True)
    assert site.nanny.wait(20) == 0
    wait_for("the host to leave", lambda: WORKER not in site.view.workers)
    wait_for("its executor's record to go", lambda: acme.executor() is None, 5)
    wait_for("its processes to end", lambda: not any(is_alive(p) for p in family), 5)
    assert acme.file.exists(), "shard files stay for the next start"


def test_a_host_ends_when_told_to_although_its_scheduler_is_gone(site: Site, acme: Staged) -> None:
    assert site.scheduler is not None
    site.start_host()
    wait_for("the host", lambda: WORKER in site.view.workers)
    with site.client():
        worker = site.worker_pid()
    acme.ready_executor()
    family = site.family()
    site.scheduler.kill()
    wait_for("a worker that waits for it", lambda: site.worker_pid() not in (0, worker), 60)
    assert site.nanny is not None
    site.nanny.terminate()
    assert site.nanny.wait(15) == 0
    wait_for("its processes to end", lambda: not any(is_alive(p) for p in family), 5)
    wait_for("the host to leave", lambda: WORKER not in site.view.workers)
