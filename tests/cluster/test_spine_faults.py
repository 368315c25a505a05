"""Processes killed under query load: no failed query, no partial answer, loads resume."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from whole_cluster import CHECK, Lakehouse, ask, is_alive, querying, wait_until

from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.executor import Executor
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.member import Worker
from accel_dask.model.replica import Replica, ReplicaState

pytestmark = pytest.mark.cluster

TABLE = "facts"
SQL = CHECK.format(table=TABLE)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalAccelCluster]:
    with LocalAccelCluster(LocalOptions(masters=3)) as running:
        yield running


@pytest.fixture
def served(
    cluster: LocalAccelCluster, lakehouse: Lakehouse, request: pytest.FixtureRequest
) -> tuple[str, str, tuple[int, int, int, int]]:
    """A tenant of its own with one published table: (tenant, token, expected answer)."""
    tenant = f"t{abs(hash(request.node.name)) % 10**8}"
    expected = lakehouse.write(TABLE, 1)
    token = cluster.create_tenant(tenant)
    cluster.create_dataset(lakehouse.dataset(tenant, TABLE))
    cluster.publish(tenant, TABLE)
    cluster.wait_routed()
    return tenant, token, expected


def _publish_next(
    cluster: LocalAccelCluster, lakehouse: Lakehouse, tenant: str, version: int
) -> tuple[int, int, int, int]:
    expected = lakehouse.write(TABLE, version)
    cluster.publish(tenant, TABLE, timeout_seconds=60)
    return expected


def test_a_killed_dask_worker_costs_no_query_and_loads_resume(
    cluster: LocalAccelCluster, lakehouse: Lakehouse, served: tuple[str, str, tuple[int, ...]]
) -> None:
    tenant, token, first = served
    with querying(cluster, tenant, token, SQL) as load:
        load.wait_more()
        nanny = psutil.Process(cluster.pids()["worker-0"])
        workers = [p for p in nanny.children() if "spawn" in " ".join(p.cmdline())]
        assert len(workers) >= 1, [p.cmdline() for p in nanny.children(recursive=True)]
        for worker in workers:
            worker.kill()
        load.wait_more()
        second = _publish_next(cluster, lakehouse, tenant, 2)
        wait_until(lambda: second in load.answers or bool(load.errors))
        load.wait_more()
    assert load.errors == []
    assert set(load.answers) == {first, second}


def test_a_killed_scheduler_costs_no_query_and_loads_resume(
    cluster: LocalAccelCluster, lakehouse: Lakehouse, served: tuple[str, str, tuple[int, ...]]
) -> None:
    tenant, token, first = served
    executors = {e.pid for e in cluster.view.records(Executor) if e.tenant == tenant}
    with querying(cluster, tenant, token, SQL) as load:
        load.wait_more()
        old = cluster.pids()["scheduler"]
        os.kill(old, signal.SIGKILL)
        wait_until(lambda: cluster.pids().get("scheduler", old) != old)
        load.wait_more(100)
        assert executors <= {e.pid for e in cluster.view.records(Executor)}
        second = _publish_next(cluster, lakehouse, tenant, 2)
        wait_until(lambda: second in load.answers or bool(load.errors))
        load.wait_more()
    assert load.errors == []
    assert set(load.answers) == {first, second}


def test_a_killed_etcd_leader_costs_no_query_and_loads_resume(
    cluster: LocalAccelCluster, lakehouse: Lakehouse, served: tuple[str, str, tuple[int, ...]]
) -> None:
    tenant, token, first = served
    with querying(cluster, tenant, token, SQL) as load:
        load.wait_more()
        leader = cluster.etcd.leader_index()
        assert leader is not None
        cluster.etcd.kill(leader)
        load.wait_more(100)
        second = _publish_next(cluster, lakehouse, tenant, 2)
        wait_until(lambda: second in load.answers or bool(load.errors))
        load.wait_more()
    assert load.errors == []
    assert set(load.answers) == {first, second}


def test_a_host_killed_whole_comes_back_from_its_shard_files_without_the_source(
    cluster: LocalAccelCluster, lakehouse: Lakehouse, served: tuple[str, str, tuple[int, ...]]
) -> None:
    tenant, token, expected = served
    processes = _host_processes(cluster)
    cluster.stop_process("worker-0", kill=True)
    wait_until(lambda: not any(map(is_alive, processes)))
    for file in _source_files(lakehouse):
        file.rename(file.with_suffix(".away"))
    cluster.start_worker(0)
    _wait_host(cluster)
    assert _ask_until(cluster, tenant, token) == [expected]
    for file in lakehouse.directory.rglob("*.away"):
        file.rename(file.with_suffix(".parquet"))


def test_a_shard_file_damaged_while_its_host_was_down_is_noticed_and_loaded_again(
    cluster: LocalAccelCluster, lakehouse: Lakehouse, served: tuple[str, str, tuple[int, ...]]
) -> None:
    tenant, token, expected = served
    dataset = DatasetId(TenantId(tenant), TABLE)
    serving = cluster.view.serving(dataset)
    assert serving is not None
    placement = cluster.view.placement(dataset, serving.epoch)
    assert placement is not None
    shard_id = placement.hosts[0][0]
    shard_dir = Path(next(iter(cluster.view.records(Worker))).shard_dir)
    cluster.stop_process("worker-0", kill=True)
    file = shard_dir / f"{shard_id}.duckdb"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.chmod(0o600)
    file.write_bytes(content)
    cluster.start_worker(0)
    _wait_host(cluster)
    assert _ask_until(cluster, tenant, token) == [expected]
    assert file.read_bytes() != bytes(content)


def _host_processes(cluster: LocalAccelCluster) -> list[psutil.Process]:
    nanny = psutil.Process(cluster.pids()["worker-0"])
    found = [nanny, *nanny.children(recursive=True)]
    pids = {p.pid for p in found}
    executors = [e.pid for e in cluster.view.records(Executor) if e.pid and e.pid not in pids]
    for pid in executors:
        with suppress(psutil.NoSuchProcess):  # of the generation before
            found.append(psutil.Process(pid))
    return found


def _source_files(lakehouse: Lakehouse) -> list[Path]:
    return list(lakehouse.directory.rglob("*.parquet"))


def _wait_host(cluster: LocalAccelCluster) -> None:
    def back(view: object) -> bool:
        del view
        return any(
            r.state is ReplicaState.READY and r.worker_incarnation == w.create_revision
            for w in cluster.view.of(Worker)
            for r in cluster.view.records(Replica)
        )

    cluster.mirror.wait_for(back, 30)


def _ask_until(
    cluster: LocalAccelCluster, tenant: str, token: str, seconds: float = 30.0
) -> list[tuple[object, ...]]:
    """The answer, once there is one: between kill and restart there may be none."""
    from adbc_driver_flightsql import dbapi

    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask(cluster.gateway_urls[0], tenant, token, SQL)
        except dbapi.Error:
            if time.monotonic() > deadline:
                raise
