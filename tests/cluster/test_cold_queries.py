"""Shards that are not in memory, on a real cluster: read from the snapshot's own files."""

from __future__ import annotations

import datetime as dt
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from adbc_driver_flightsql import dbapi
from answers import difference, gateway_client, plain_answer, publish_all
from iceberg_deletes import add_position_deletes
from pyarrow import flight
from pyiceberg.transforms import IdentityTransform
from whole_cluster import CHECK, Lakehouse, adbc, ask, querying, wait_until

from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import ColdPolicy, Dataset, SourceSpec, Spread
from accel_dask.model.executor import Executor, ExecutorKind, ExecutorPlan, ExecutorState
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.tenant import MIB, Quota

pytestmark = pytest.mark.cluster

QUOTA = Quota(executor_memory_bytes=128 * MIB, memory_bytes_per_host=192 * MIB)
DAY = dt.date(2024, 3, 1)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalAccelCluster]:
    with LocalAccelCluster(LocalOptions(workers=2)) as running:
        yield running


def executors(view: ClusterView, tenant: str, kind: ExecutorKind) -> list[Executor]:
    """READY ones of the newest plans."""
    plans = [p for p in view.records(ExecutorPlan) if p.tenant == tenant and p.kind is kind]
    paths = {plan.path[1:] for plan in plans}
    return [
        e for e in view.records(Executor) if e.path[1:] in paths and e.state is ExecutorState.READY
    ]


def receipts(
    cluster: LocalAccelCluster, user: str, token: str, last: int = 1
) -> list[dict[str, Any]]:
    with flight.FlightClient(cluster.gateway_urls[0]) as client:
        header = client.authenticate_basic_token(user, token)
        action = flight.Action("accel.receipts", json.dumps({"last": last}).encode())
        (result,) = client.do_action(action, flight.FlightCallOptions(headers=[header]))
        found: list[dict[str, Any]] = json.loads(result.body.to_pybytes())
        return found


# Part of the shards cold


@dataclass
class Mixed:
    """Tables of which some shards are cold, and the same in plain DuckDB."""

    cluster: LocalAccelCluster
    token: str
    plain: duckdb.DuckDBPyConnection


@pytest.fixture(scope="module")
def mixed(cluster: LocalAccelCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mixed]:
    directory = tmp_path_factory.mktemp("mixed")
    lakehouse = Lakehouse(directory / "lake")
    trips = evolved_trips(lakehouse)
    stops = pa.table({"stop": pa.array(range(6), pa.int32()), "label": [f"s{i}" for i in range(6)]})
    events = pa.table(
        {
            "id": pa.array(range(900)),
            "kind": pa.array([f"k{i % 4}" for i in range(900)]),
            "ratio": pa.array([float("nan") if i % 50 == 0 else i / 7 for i in range(900)]),
        }
    )
    for number in range(3):
        folder = directory / "events" / f"part={number}"
        folder.mkdir(parents=True)
        pq.write_table(events.slice(number * 300, 300), folder / "it's [1].parquet")
    (directory / "stops").mkdir()
    pq.write_table(stops, directory / "stops" / "all.parquet")
    small = {"tenant": TenantId("mixed"), "shard_target_bytes": 1}
    fields = {"spread": Spread.SPREAD, "cold": ColdPolicy.ALLOW}
    token = cluster.create_tenant("mixed", QUOTA)
    publish_all(
        cluster,
        (
            lakehouse.dataset("mixed", "trips", shard_target_bytes=1, hot_shards=2, **fields),
            replace(
                _parquet("events", directory / "events", **small, **fields),
                hot_shards=0,
                row_filter="kind <> 'k3'",
            ),
            _parquet("stops", directory / "stops", **small, spread=Spread.EVERYWHERE),
        ),
    )
    with duckdb.connect(config={"threads": 1}) as plain:
        plain.execute("SET TimeZone = 'UTC'")
        for name, rows in (("trips", trips), ("all_events", events), ("stops", stops)):
            plain.register(f"{name}_rows", rows)
            plain.execute(f"CREATE TABLE {name} AS FROM {name}_rows")
        plain.execute(
            "CREATE TABLE events AS SELECT id, kind, "
            "CASE WHEN isnan(ratio) THEN NULL ELSE ratio END AS ratio "
            "FROM all_events WHERE kind <> 'k3'"
        )
        yield Mixed(cluster, token, plain)


def evolved_trips(lakehouse: Lakehouse) -> pa.Table:
    """A table of four days with deletes, a renamed and an added column; all of its rows."""

    def rows(first: int, day: int, name: str, **more: Any) -> pa.Table:
        numbers = range(first, first + 50)
        return pa.table(
            {
                name: pa.array(numbers, pa.int32()),
                "stop": pa.array([n % 7 for n in numbers], pa.int32()),
                "fare": pa.array([Decimal(n * 3 % 17) for n in numbers], pa.decimal128(9, 2)),
                "day": pa.array([DAY + dt.timedelta(days=day)] * 50),
                **more,
            }
        )

    first = rows(0, 0, "trip")
    table = lakehouse.catalog.create_table("ns.trips", schema=first.schema)
    with table.update_spec() as update:
        update.add_field("day", IdentityTransform(), "day")
    table.append(first)
    table.append(rows(50, 1, "trip"))
    add_position_deletes(table, lambda n: n % 5 == 0)
    with table.update_schema() as update:
        update.rename_column("trip", "ride")
    table.append(rows(100, 2, "ride"))
    with table.update_schema() as update:
        update.add_column("note", _string())
    table.append(rows(150, 3, "ride", note=pa.array(["ü"] * 50)))
    add_position_deletes(table, lambda n: n == 7)
    found: pa.Table = lakehouse.catalog.load_table("ns.trips").scan().to_arrow()
    return found


def _string() -> Any:
    from pyiceberg.types import StringType

    return StringType()


def _parquet(name: str, directory: Path, **fields: Any) -> Dataset:
    source = SourceSpec(connector="parquet", options=(("path", str(directory)),))
    return Dataset(name=name, source=source, **fields)


QUERIES = tuple(
    """
SELECT count(*), sum(fare), min(day), max(ride), count(note) FROM trips
SELECT day, count(*) AS n, avg(fare) AS a FROM trips GROUP BY day ORDER BY day
SELECT ride, stop, note FROM trips WHERE ride % 9 = 0 ORDER BY ride
SELECT ride FROM trips WHERE day = DATE '2024-03-01' ORDER BY ride DESC LIMIT 5
SELECT label, sum(fare) AS f FROM trips JOIN stops USING (stop) GROUP BY label ORDER BY label
SELECT kind, count(ratio) AS r, max(ratio) AS m FROM events GROUP BY kind ORDER BY kind
SELECT count(DISTINCT fare), median(fare), string_agg(DISTINCT note, ',') FROM trips
SELECT ride, kind FROM trips JOIN events ON ride = id WHERE stop = 3 ORDER BY ride
SELECT count(*) FROM trips WHERE ride IN (SELECT id FROM events WHERE ratio > 10)
SELECT ride, row_number() OVER (PARTITION BY stop ORDER BY ride) FROM trips ORDER BY ride
""".strip().splitlines()
)


@pytest.mark.parametrize("sql", QUERIES)
def test_hot_and_cold_shards_together_answer_as_plain_duckdb_does(mixed: Mixed, sql: str) -> None:
    with gateway_client(mixed.cluster, "mixed", mixed.token) as client:
        found = client.ask(sql)
    order = range(len(found.names)) if "ORDER BY" in sql else None
    assert difference(plain_answer(mixed.plain, sql), found, order) == ""


def test_status_receipt_and_explain_tell_what_was_read_cold_and_why(mixed: Mixed) -> None:
    placement = mixed.cluster.view.placement(
        DatasetId(TenantId("mixed"), "trips"),
        mixed.cluster.view.serving(DatasetId(TenantId("mixed"), "trips")).epoch,  # type: ignore[union-attr]
    )
    assert placement is not None
    assert len(placement.cold_shards) == len(placement.hosts) - 2 == 2
    url = mixed.cluster.gateway_urls[0]
    ask(url, "mixed", mixed.token, "SELECT count(*) FROM trips")
    told = receipts(mixed.cluster, "mixed", mixed.token)[0]
    assert told["route"] == "hot+cold"
    assert told["datasets"][0]["cold_shards"] == 2
    assert "cold: 2 of the 4 shards of mixed.trips@1" in told["reason"]
    assert "2 stay at the source: hot_shards is 2" in told["reason"]
    lines = ask(url, "mixed", mixed.token, "EXPLAIN SELECT count(*) FROM trips")
    explained = "\n".join(line for (line,) in lines)
    assert "reads 4 of 4 shards, 2 of them cold" in explained
    assert "part (cold) on" in explained
    ask(url, "mixed", mixed.token, "SELECT count(*) FROM events")
    told = receipts(mixed.cluster, "mixed", mixed.token)[0]
    assert (told["route"], told["datasets"][0]["cold_shards"]) == ("cold", 3)
    assert told["executor"].endswith("(cold)")
    ask(url, "mixed", mixed.token, "SELECT count(*) FROM stops")
    assert receipts(mixed.cluster, "mixed", mixed.token)[0]["route"] == "hot"


# Executors that die, files that change


def served(
    cluster: LocalAccelCluster, lakehouse: Lakehouse, tenant: str, rows: int = 1000, **fields: Any
) -> tuple[str, tuple[int, ...]]:
    """One published table `facts` that may be read cold: its tenant's token, and CHECK on it."""
    expected = lakehouse.write("facts", 1, rows=rows)
    token = cluster.create_tenant(tenant, QUOTA)
    dataset = lakehouse.dataset(tenant, "facts", cold=ColdPolicy.ALLOW, **fields)
    publish_all(cluster, [dataset])
    cluster.mirror.wait_for(
        lambda view: len(executors(view, tenant, ExecutorKind.COLD)) == 2,
        30,
        "the cold executors",
    )
    cluster.wait_routed()
    return token, expected


def test_a_hot_executor_that_is_killed_or_stopped_is_answered_for_cold(
    cluster: LocalAccelCluster, lakehouse: Lakehouse
) -> None:
    token, expected = served(cluster, lakehouse, "killed")
    with querying(cluster, "killed", token, CHECK.format(table="facts")) as load:
        load.wait_more()
        for number in range(3):
            (hot,) = executors(cluster.view, "killed", ExecutorKind.HOT)
            os.kill(hot.pid, signal.SIGKILL if number else signal.SIGSTOP)
            load.wait_more()
            cluster.mirror.wait_for(
                lambda view, old=hot.incarnation: any(
                    e.incarnation != old for e in executors(view, "killed", ExecutorKind.HOT)
                ),
                60,
                "another hot executor",
            )
            load.wait_more()
    assert load.errors == []
    assert set(load.answers) == {expected}
    routes = Counter(told["route"] for told in receipts(cluster, "killed", token, 1000))
    assert set(routes) == {"hot", "cold"}, routes


def test_a_cold_executor_that_is_killed_or_stopped_is_answered_for_by_the_other(
    cluster: LocalAccelCluster, lakehouse: Lakehouse
) -> None:
    token, expected = served(cluster, lakehouse, "cold_killed", hot_shards=0)
    assert executors(cluster.view, "cold_killed", ExecutorKind.HOT) == []
    with querying(cluster, "cold_killed", token, CHECK.format(table="facts")) as load:
        load.wait_more()
        for number, cold in enumerate(executors(cluster.view, "cold_killed", ExecutorKind.COLD)):
            os.kill(cold.pid, signal.SIGSTOP if number else signal.SIGKILL)
            load.wait_more()
    assert load.errors == []
    assert set(load.answers) == {expected}


def test_after_the_first_batch_a_killed_cold_executor_is_a_clean_error(
    cluster: LocalAccelCluster, lakehouse: Lakehouse
) -> None:
    token, _ = served(cluster, lakehouse, "midway", rows=600_000, hot_shards=0)
    with (
        adbc(cluster.gateway_urls[0], "midway", token) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute("SELECT value, version, part, value || 'x' AS t FROM facts")
        reader = cursor.fetch_record_batch()
        assert reader.read_next_batch().num_rows > 0
        for cold in executors(cluster.view, "midway", ExecutorKind.COLD):
            psutil.Process(cold.pid).kill()
        with pytest.raises((dbapi.Error, OSError, pa.ArrowException)) as caught:
            reader.read_all()
    assert "Traceback" not in str(caught.value)


def test_epochs_switched_while_everything_is_read_cold_are_never_mixed(
    cluster: LocalAccelCluster, lakehouse: Lakehouse
) -> None:
    token, first = served(cluster, lakehouse, "refreshed", hot_shards=0)
    expected = {first}
    with querying(cluster, "refreshed", token, CHECK.format(table="facts")) as load:
        for version in range(2, 5):
            load.wait_more(4)
            expected.add(lakehouse.write("facts", version, rows=1000 + version))
            cluster.publish("refreshed", "facts")
        load.wait_more()
    assert load.errors == []
    assert set(load.answers) <= expected
    assert len(load.answers) >= 3


def test_a_file_that_changed_is_an_error_that_names_it_until_the_next_publish(
    cluster: LocalAccelCluster, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    file = tmp_path / "data" / "one.parquet"
    pq.write_table(pa.table({"x": list(range(100))}), file)
    token = cluster.create_tenant("changed", QUOTA)
    dataset = _parquet(
        "facts",
        tmp_path / "data",
        tenant=TenantId("changed"),
        cold=ColdPolicy.ALLOW,
        hot_shards=0,
    )
    publish_all(cluster, [dataset])
    url, sql = cluster.gateway_urls[0], "SELECT count(*), sum(x) FROM facts"
    assert ask(url, "changed", token, sql) == [(100, 4950)]
    pq.write_table(pa.table({"x": list(range(200))}), tmp_path / "new")
    (tmp_path / "new").replace(file)
    with pytest.raises(dbapi.Error, match=r"COLD_READ_FAILED.*was replaced"):
        ask(url, "changed", token, sql)
    cluster.publish("changed", "facts")
    cluster.wait_routed()
    assert ask(url, "changed", token, sql) == [(200, 19900)]
    file.unlink()
    with pytest.raises(dbapi.Error, match=r"COLD_READ_FAILED.*is gone"):
        ask(url, "changed", token, sql)


def test_more_than_may_be_read_cold_is_refused_by_its_limit(
    cluster: LocalAccelCluster, lakehouse: Lakehouse
) -> None:
    token, expected = served(cluster, lakehouse, "limited", hot_shards=0)
    url, sql = cluster.gateway_urls[0], CHECK.format(table="facts")
    assert ask(url, "limited", token, sql) == [expected]
    token = cluster.create_tenant("limited", replace(QUOTA, max_cold_scan_bytes=100))
    cluster.wait_routed()

    def refusal() -> str:
        try:
            ask(url, "limited", token, sql)
        except dbapi.Error as error:
            return str(error)
        return ""

    wait_until(lambda: "SCAN_LIMIT" in (told := refusal()) and "max_cold_scan_bytes" in told, 10)
