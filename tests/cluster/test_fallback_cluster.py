"""A real cluster with a real engine behind it answers what memory does not hold."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from adbc_driver_flightsql import dbapi
from olap_world import Worlds, started
from whole_cluster import CHECK, Lakehouse, adbc, ask

from accel_dask import admin
from accel_dask.connectors.olap.servers.sail import SailServer
from accel_dask.errors import LoadError
from accel_dask.flight_client import FlightSession
from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.fallback import FallbackPolicy, FallbackSpec
from accel_dask.model.tenant import MIB, Quota

pytestmark = pytest.mark.cluster


@pytest.fixture
def sail(worlds: Worlds) -> Iterator[SailServer]:
    started(worlds, "sail")
    server = SailServer()
    yield server
    server.close()


def test_a_dataset_too_large_for_its_tenant_is_answered_by_its_engine(
    lakehouse: Lakehouse, sail: SailServer
) -> None:
    expected = lakehouse.write("large", 1, rows=200_000)
    table = lakehouse.catalog.load_table("ns.large")
    sail.register("large", table.location())
    spec = FallbackSpec(
        engine="flightsql",
        policy=FallbackPolicy.ON_MISS,
        options=tuple(
            sorted({"uri": sail.uri, "table": "large", "time_travel": "iceberg"}.items())
        ),
    )
    with LocalAccelCluster(LocalOptions()) as cluster:
        quota = Quota(executor_memory_bytes=256 * MIB, memory_bytes_per_host=256 * MIB + 1)
        token = cluster.create_tenant("small", quota)
        declared = lakehouse.dataset("small", "large", row_filter="part <> 3", fallback=spec)
        cluster.create_dataset(declared)
        with pytest.raises(LoadError, match="QUOTA_EXCEEDED"):
            cluster.publish("small", "large")
        cluster.wait_routed()
        lakehouse.write("large", 2, rows=10)  # not what was published
        url = cluster.gateway_urls[0]
        sql = CHECK.format(table="large")
        rows = ask(url, "small", token, sql.replace("CAST(sum(value) AS BIGINT)", "max(part)"))
        assert rows == [(expected[0] * 3 // 4, 2, 1, 1)]
        with adbc(url, "small", token) as connection, connection.cursor() as cursor:
            cursor.execute("select part, count(*) as n from large group by part order by part")
            assert cursor.fetchall() == [(part, 50_000) for part in range(3)]
        with FlightSession(url, "small", token) as session:
            receipt = session.receipts(1)[0]
        assert (receipt["route"], receipt["fallback"]) == ("olap", "miss")
        assert receipt["is_pinned"]


HEAVY = (
    "select a.part, count(*) as n, sum(a.value) as s, max(b.value) as m from hot a "
    "join hot b on a.part = b.part where b.value < 2000 "
    "and a.value + b.value > 3000 group by a.part order by a.part"
)
CAPS = {
    "x-accel-max-scan-rows": ("10", "SCAN_LIMIT"),
    "x-accel-max-scan-bytes": ("1", "SCAN_LIMIT"),
    "x-accel-max-cpu-ms": ("1", "CPU_LIMIT"),
}


def test_what_a_real_executor_may_not_do_its_engine_does(
    lakehouse: Lakehouse, sail: SailServer
) -> None:
    lakehouse.write("hot", 1, rows=30_000)
    sail.register("hot", lakehouse.catalog.load_table("ns.hot").location())
    options = {"uri": sail.uri, "table": "hot", "time_travel": "iceberg"}
    spec = FallbackSpec(
        engine="flightsql", policy=FallbackPolicy.ON_BREACH, options=tuple(sorted(options.items()))
    )
    with LocalAccelCluster(LocalOptions()) as cluster:
        token = cluster.create_tenant("busy")
        cluster.create_dataset(lakehouse.dataset("busy", "hot", fallback=spec))
        cluster.publish("busy", "hot")
        lakehouse.write("hot", 2, rows=10)  # not what is served
        cluster.wait_routed()
        url = cluster.gateway_urls[0]
        expected = ask(url, "busy", token, HEAVY)
        assert len(expected) == 4

        def check(reason: str, code: str, **headers: str) -> None:
            login = {"username": "busy", "password": token, **headers}
            with (
                dbapi.connect(url, db_kwargs=login, autocommit=True) as connection,
                connection.cursor() as cursor,
            ):
                cursor.execute(HEAVY)
                assert cursor.fetchall() == expected, code
            with FlightSession(url, "busy", token) as session:
                receipt = session.receipts(1)[0]
            told = (receipt["route"], receipt["fallback"], receipt["is_pinned"])
            assert told == ("olap", reason, True), code
            assert code in receipt["reason"]

        for header, (value, code) in CAPS.items():
            check("breach", code, **{f"adbc.flight.sql.rpc.call_header.{header}": value})
        admin.change_quota(cluster.store, "busy", deadline_ms=15)
        cluster.wait_routed()
        check("breach", "DEADLINE_EXCEEDED")
