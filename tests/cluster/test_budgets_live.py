"""Budgets on a whole cluster: they change while queries run, and hold when a tenant breaks out."""

from __future__ import annotations

import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import flight
from whole_cluster import CHECK, Lakehouse, ask, querying, wait_until

from accel_dask import admin
from accel_dask.codec import encode
from accel_dask.errors import QuotaExceeded
from accel_dask.local import LocalAccelCluster
from accel_dask.model.cluster import ClusterView
from accel_dask.model.executor import Executor, ExecutorPlan, ExecutorState
from accel_dask.model.member import Worker
from accel_dask.model.tenant import MIB, Quota
from accel_dask.model.ticket import EpochToken, Ticket, sign
from accel_dask.worker_plugin.enforcement.kernel_files import parse_own_groups

pytestmark = pytest.mark.cluster

TABLE = "facts"
SQL = CHECK.format(table=TABLE)
QUOTA = Quota(memory_bytes_per_host=512 * MIB, executor_memory_bytes=128 * MIB, threads=1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalAccelCluster]:
    with LocalAccelCluster() as running:
        yield running


@pytest.fixture(scope="module")
def tokens(cluster: LocalAccelCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    lakehouse = Lakehouse(tmp_path_factory.mktemp("budgets"))
    lakehouse.write(TABLE, 1)
    found = {}
    for tenant in ("calm", "wild"):
        found[tenant] = cluster.create_tenant(tenant, QUOTA)
        cluster.create_dataset(lakehouse.dataset(tenant, TABLE))
        cluster.publish(tenant, TABLE)
    cluster.wait_routed()
    return found


def find_executor(view: ClusterView, tenant: str) -> Executor | None:
    ready = (e for e in view.records(Executor) if e.state is ExecutorState.READY)
    return next((e for e in ready if e.tenant == tenant), None)


def executor_of(cluster: LocalAccelCluster, tenant: str) -> Executor:
    found = find_executor(cluster.view, tenant)
    assert found is not None
    return found


def group_files(cluster: LocalAccelCluster, executor: Executor) -> tuple[Path, Path]:
    """Of the tenant's CPU weight and the executor's memory limit, in version 1."""
    (host,) = cluster.view.records(Worker)
    if not host.enforcement.startswith("cgroup v1"):
        pytest.skip(f"version 1 control groups cannot be made here: {host.enforcement}")
    own = parse_own_groups(Path(f"/proc/{executor.pid}/cgroup").read_text())
    root = Path("/sys/fs/cgroup")
    return (
        root / "cpu" / Path(own["cpu"].lstrip("/")).parent / "cpu.shares",
        root / "memory" / own["memory"].lstrip("/") / "memory.limit_in_bytes",
    )


def attack(cluster: LocalAccelCluster, executor: Executor, sql: str) -> None:
    """Run `sql` on an executor, past the gateway and what it refuses."""
    meta = cluster.view.meta
    assert meta is not None
    plans = cluster.view.records(ExecutorPlan)
    plan = next(plan for plan in plans if plan.path[1:] == executor.path[1:])
    attached = plan.attachments[0]
    ticket = Ticket(
        version=1,
        query_id=uuid.uuid4().hex,
        tenant=executor.tenant,
        sql=sql,
        tokens=(
            EpochToken(dataset=attached.dataset, epoch=attached.epoch, shards=(attached.shard_id,)),
        ),
        expires_at_ms=int(time.time() * 1000) + 60_000,
        timeout_ms=20_000,
        max_result_rows=1_000,
    )
    signed = flight.Ticket(sign(encode(ticket), bytes.fromhex(meta.ticket_key)))
    with flight.connect(executor.address) as client:
        client.do_get(signed, flight.FlightCallOptions(timeout=30)).read_all()


def test_a_changed_quota_reaches_a_running_executor_without_a_restart(
    cluster: LocalAccelCluster, tokens: dict[str, str]
) -> None:
    executor = executor_of(cluster, "wild")
    shares, limit = group_files(cluster, executor)
    with querying(cluster, "wild", tokens["wild"], SQL) as load:
        load.wait_more()
        before = int(limit.read_text())
        admin.change_quota(cluster.store, "wild", cpu_weight=25, memory_bytes_per_host=600 * MIB)
        wait_until(lambda: int(limit.read_text()) > before)
        wait_until(lambda: int(shares.read_text()) < 2048)
        load.wait_more()
    assert load.errors == []
    assert executor_of(cluster, "wild").pid == executor.pid
    admin.change_quota(cluster.store, "wild", cpu_weight=100, memory_bytes_per_host=512 * MIB)


def test_more_executor_memory_comes_with_a_new_generation_and_no_failed_query(
    cluster: LocalAccelCluster, tokens: dict[str, str]
) -> None:
    before = executor_of(cluster, "wild")
    with querying(cluster, "wild", tokens["wild"], SQL) as load:
        load.wait_more()
        admin.change_quota(cluster.store, "wild", executor_memory_bytes=160 * MIB)
        cluster.mirror.wait_for(
            lambda view: (
                before.path not in view.entries and find_executor(view, "wild") is not None
            ),
            60.0,
        )
        load.wait_more()
    assert load.errors == []


def test_a_host_does_not_promise_more_than_it_has(
    cluster: LocalAccelCluster, tokens: dict[str, str]
) -> None:
    (host,) = cluster.view.records(Worker)
    with pytest.raises(QuotaExceeded, match=f"tenant calm: host {host.worker} would have promised"):
        admin.change_quota(
            cluster.store,
            "calm",
            executor_memory_bytes=host.memory_bytes,
            memory_bytes_per_host=2 * host.memory_bytes,
        )
    with pytest.raises(QuotaExceeded, match="cpu_guarantee_percent"):
        admin.change_quota(cluster.store, "calm", cpu_guarantee_percent=host.cores * 100)
    assert ask(cluster.gateway_urls[0], "calm", tokens["calm"], SQL)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT length(repeat('x', 700000000))",
        "SELECT len(list_sort(range(60000000)))",
        "SELECT sum(length(repeat(CAST(i AS VARCHAR), 9000000))) FROM range(200) t(i)",
    ],
)
def test_a_query_that_takes_more_than_the_budget_harms_nobody_else(
    cluster: LocalAccelCluster, tokens: dict[str, str], sql: str
) -> None:
    calm, wild = executor_of(cluster, "calm"), executor_of(cluster, "wild")
    with querying(cluster, "calm", tokens["calm"], SQL) as load:
        load.wait_more()
        with pytest.raises((flight.FlightError, pa.ArrowException)):
            attack(cluster, wild, sql)
        assert ask(cluster.gateway_urls[0], "wild", tokens["wild"], SQL)
        load.wait_more()
    assert load.errors == []
    assert executor_of(cluster, "calm").pid == calm.pid


def test_an_executor_that_the_kernel_ended_answers_again(
    cluster: LocalAccelCluster, tokens: dict[str, str]
) -> None:
    """As it does when a process is over its memory."""
    wild = executor_of(cluster, "wild")
    os.kill(wild.pid, signal.SIGKILL)
    started = time.monotonic()
    assert ask(cluster.gateway_urls[0], "wild", tokens["wild"], SQL)
    assert time.monotonic() - started < 5
    cluster.mirror.wait_for(
        lambda view: getattr(find_executor(view, "wild"), "pid", wild.pid) != wild.pid, 30.0
    )
