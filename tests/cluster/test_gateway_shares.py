"""Shares of concurrency between real gateways: deaths, quotas and tenants that change."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from pyarrow import flight
from store_support import FaultyProxy
from whole_cluster import CHECK, Lakehouse, querying, wait_until

from accel_dask import admin
from accel_dask.errors import (
    AccelError,
    NotResident,
    ResourceExhausted,
    StoreUnavailable,
    Unauthenticated,
    UnknownTable,
)
from accel_dask.flight_errors import FLIGHT_FAILURES, from_flight
from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.ids import Path, TenantId
from accel_dask.model.member import Gateway, Share
from accel_dask.model.share import concurrency_of
from accel_dask.model.tenant import MIB, Quota, Tenant
from accel_dask.store.base import PutEvent
from accel_dask.store.keys import RECORDS, path_of
from accel_dask.store.records import versioned_of
from flightsql_gateway.flight_sql import messages

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

LEASE_SECONDS = 4.0
SMALL = Quota(
    memory_bytes_per_host=256 * MIB,
    executor_memory_bytes=128 * MIB,
    concurrency=4,
    queue_wait_ms=10_000,
    deadline_ms=30_000,
)
TOLD_IN_MID_QUERY = (UnknownTable, NotResident)
"""What a query may be told whose tenant is deleted under it."""
SQL = CHECK.format(table="sales")


@pytest.fixture(scope="module")
def lakehouse(tmp_path_factory: pytest.TempPathFactory) -> Lakehouse:
    lakehouse = Lakehouse(tmp_path_factory.mktemp("lake"))
    lakehouse.write("sales", 1)
    return lakehouse


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalAccelCluster]:
    with pytest.MonkeyPatch.context() as environ:
        environ.setenv("ACCEL_GATEWAY_LEASE_SECONDS", str(LEASE_SECONDS))
        with LocalAccelCluster(LocalOptions(gateways=3)) as running:
            yield running


@pytest.fixture(scope="module")
def acme(cluster: LocalAccelCluster, lakehouse: Lakehouse) -> str:
    """The token of a tenant whose table is served."""
    return serve(cluster, lakehouse, "acme")


def serve(cluster: LocalAccelCluster, lakehouse: Lakehouse, tenant: str) -> str:
    token = cluster.create_tenant(tenant, SMALL)
    cluster.create_dataset(lakehouse.dataset(tenant, "sales"))
    cluster.publish(tenant, "sales")
    cluster.wait_routed()
    return token


def slots(cluster: LocalAccelCluster, tenant: str) -> dict[str, int]:
    return {s.gateway: s.slots for s in cluster.view.records(Share) if s.tenant == tenant}


def division(cluster: LocalAccelCluster) -> list[int]:
    return sorted(slots(cluster, "acme").values())


def check_history(cluster: LocalAccelCluster, tenant: str) -> int:
    """Replay all that was ever written: the number of times that shares changed. Their sum never
    exceeds the concurrency and, once that was lowered, never grows."""
    held: dict[Path, int] = {}
    concurrency, before, changes = 0, 0, 0
    last = cluster.store.read().revision
    watch = cluster.store.watch(RECORDS, 1)
    try:
        reached = 0
        while reached < last:
            batch = watch.next(5)
            assert batch is not None, "the history breaks off"
            reached = batch.revision
            for event in batch.events:
                path = path_of(event.item.key if isinstance(event, PutEvent) else event.key)
                assert path is not None
                if path[0] not in {Share.KIND, Tenant.KIND} or path[1] != tenant:
                    continue
                found = versioned_of(event.item) if isinstance(event, PutEvent) else None
                if path[0] == Tenant.KIND:
                    assert found is None or isinstance(found.record, Tenant)
                    concurrency = found.record.quota.concurrency if found else 0
                    continue
                assert found is None or isinstance(found.record, Share)
                held[path] = found.record.slots if found else 0
                total = sum(held.values())
                assert total <= max(concurrency, before), (tenant, total, concurrency)
                before, changes = total, changes + 1
    finally:
        watch.close()
    return changes


@dataclass
class Asked:
    served: int = 0
    errors: list[AccelError] = field(default_factory=list)


@contextmanager
def asking(url: str, user: str, token: str, clients: int = 3) -> Iterator[Asked]:
    """Clients of one gateway who go on after errors."""
    asked, stop, lock = Asked(), threading.Event(), threading.Lock()
    ticket = flight.Ticket(messages.wrap(messages.new("CommandStatementQuery", query=SQL)))

    def run() -> None:
        client = flight.FlightClient(url)
        header = client.authenticate_basic_token(user, token)
        options = flight.FlightCallOptions(headers=[header], timeout=60)
        while not stop.is_set():
            try:
                client.do_get(ticket, options).read_all()
                with lock:
                    asked.served += 1
            except FLIGHT_FAILURES as error:
                with lock:
                    asked.errors.append(from_flight(error))
                stop.wait(0.05)
        client.close()

    threads = [threading.Thread(target=run, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield asked
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive(), "a client hangs"


def wait_more(asked: Asked, count: int = 20) -> None:
    target = asked.served + count
    wait_until(lambda: asked.served >= target, 60)


def test_all_of_the_concurrency_is_divided_among_the_gateways(
    cluster: LocalAccelCluster, acme: str
) -> None:
    cluster.mirror.wait_for(lambda _: division(cluster) == [1, 1, 2], 20)
    assert acme


def test_one_busy_gateway_gets_what_the_others_do_not_need_and_gives_it_back(
    cluster: LocalAccelCluster, acme: str
) -> None:
    with asking(cluster.gateway_urls[0], "acme", acme, clients=8) as first:
        cluster.mirror.wait_for(lambda _: max(slots(cluster, "acme").values()) == 4, 30)
        with asking(cluster.gateway_urls[1], "acme", acme, clients=8) as second:
            wait_more(second)
            cluster.mirror.wait_for(lambda _: division(cluster)[1:] == [2, 2], 30)
            wait_more(first)
    assert first.errors == second.errors == []
    cluster.mirror.wait_for(lambda _: division(cluster) == [1, 1, 2], 30)


def test_quotas_change_under_load(cluster: LocalAccelCluster, acme: str) -> None:
    with (
        asking(cluster.gateway_urls[0], "acme", acme) as first,
        asking(cluster.gateway_urls[1], "acme", acme) as second,
    ):
        for concurrency in (1, 6, 2, 4):
            admin.change_quota(cluster.store, "acme", concurrency=concurrency)
            cluster.mirror.wait_for(
                lambda _, n=concurrency: sum(slots(cluster, "acme").values()) == n, 30
            )
            wait_more(first)
            wait_more(second)
    assert first.errors == second.errors == []
    assert check_history(cluster, "acme") > 10


def test_tenants_come_and_go_under_load_and_others_do_not_notice(
    cluster: LocalAccelCluster, acme: str, lakehouse: Lakehouse
) -> None:
    with querying(cluster, "acme", acme, SQL) as load:
        load.wait_more(20)
        token = serve(cluster, lakehouse, "guest")
        cluster.mirror.wait_for(lambda _: sum(slots(cluster, "guest").values()) == 4, 30)
        with asking(cluster.gateway_urls[1], "guest", token) as guest:
            wait_more(guest)
            assert guest.errors == []
            admin.delete_tenant(cluster.store, "guest")
            wait_until(lambda: len(guest.errors) > 3, 30)
        cluster.mirror.wait_for(lambda _: not slots(cluster, "guest"), 30)
        load.wait_more(20)
    kinds = Counter(type(error) for error in guest.errors)
    assert kinds.keys() <= {Unauthenticated, *TOLD_IN_MID_QUERY}, guest.errors
    assert Unauthenticated in kinds
    assert load.errors == []


def test_a_gateway_stopped_beyond_its_lease_gives_way_and_takes_part_again(
    cluster: LocalAccelCluster, acme: str
) -> None:
    pid = cluster.pids()["gateway-1"]
    with asking(cluster.gateway_urls[1], "acme", acme) as asked:
        wait_more(asked)
        os.kill(pid, signal.SIGSTOP)
        try:
            cluster.mirror.wait_for(lambda view: len(list(view.records(Gateway))) == 2, 30)
            cluster.mirror.wait_for(lambda _: division(cluster) == [2, 2], 30)
        finally:
            os.kill(pid, signal.SIGCONT)
        cluster.mirror.wait_for(lambda _: len(slots(cluster, "acme")) == 3, 30)
        wait_more(asked)
    # A query that it took up before it knew of its renewed lease is told to go elsewhere.
    assert {type(error) for error in asked.errors} <= {StoreUnavailable}
    assert len(asked.errors) <= 3
    assert check_history(cluster, "acme") > 10


@contextmanager
def gateway_behind(proxy: FaultyProxy, cluster: LocalAccelCluster) -> Iterator[str]:
    """The URL of one more gateway, which reaches the store through `proxy`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "flightsql_gateway", "--port", "0"],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "ACCEL_CONFIG": str(cluster.directory / "accel.toml"),
            "ACCEL_STORE_ENDPOINTS": proxy.address,
        },
    )
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[1]
    finally:
        process.kill()
        process.wait(10)


def test_a_gateway_that_alone_is_cut_off_from_the_store_is_refused_by_executors(
    cluster: LocalAccelCluster, acme: str
) -> None:
    with (
        FaultyProxy(cluster.etcd.endpoints[0]) as proxy,
        gateway_behind(proxy, cluster) as url,
        asking(url, "acme", acme) as asked,
    ):
        cluster.mirror.wait_for(lambda _: len(slots(cluster, "acme")) == 4, 30)
        wait_more(asked)
        assert asked.errors == []
        proxy.black_hole = True
        cluster.mirror.wait_for(lambda _: len(slots(cluster, "acme")) == 3, 30)
        wait_until(lambda: len(asked.errors) > 3, 30)
        told = {type(error) for error in asked.errors}
        assert told <= {StoreUnavailable, ResourceExhausted}, asked.errors
        assert StoreUnavailable in told
        assert "another gateway" in str(asked.errors[-1])
        proxy.black_hole = False
        proxy.cut()
        cluster.mirror.wait_for(lambda _: len(slots(cluster, "acme")) == 4, 60)
        wait_more(asked)
    assert check_history(cluster, "acme") > 10


def test_the_share_of_a_killed_gateway_is_taken_over_within_its_lease(
    cluster: LocalAccelCluster, acme: str
) -> None:
    with (
        asking(cluster.gateway_urls[0], "acme", acme) as alive,
        asking(cluster.gateway_urls[2], "acme", acme) as killed,
    ):
        wait_more(alive)
        wait_more(killed)
        gateways = {g.address: g.gateway for g in cluster.view.records(Gateway)}
        dead = gateways[cluster.gateway_urls[2]]
        assert slots(cluster, "acme")[dead] > 0
        cluster.stop_process("gateway-2", kill=True)
        started = time.monotonic()
        cluster.mirror.wait_for(
            lambda view: (
                dead not in slots(cluster, "acme")
                and sum(slots(cluster, "acme").values()) == concurrency_of(view, TenantId("acme"))
            ),
            30,
        )
        took = time.monotonic() - started
        wait_more(alive)
    assert alive.errors == []
    assert not [error for error in killed.errors if isinstance(error, ResourceExhausted)]
    assert took < LEASE_SECONDS + 2
    assert check_history(cluster, "acme") > 10
