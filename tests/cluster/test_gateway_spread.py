"""A gateway over several real executors, none of which has everything."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from adbc_driver_flightsql import dbapi
from executor_builders import EPOCH, TENANT, make_shard, make_spec
from pyarrow import flight

from accel_dask.config import GatewaySettings
from accel_dask.errors import (
    AccelError,
    ExecutorUnavailable,
    ReadOnly,
    RowLimit,
    ScanLimit,
    UnsupportedQuery,
)
from accel_dask.flight_errors import from_flight
from accel_dask.model.epoch import Epoch, EpochState, ShardSummary
from accel_dask.model.executor import Attachment, Executor, ExecutorPlan, ExecutorState
from accel_dask.model.ids import ShardId, WorkerId
from accel_dask.model.placement import Placement, Serving
from accel_dask.model.snapshot import Column
from accel_dask.model.tenant import MIB, Quota, Tenant, User, hash_token
from accel_dask.store.memory import MemoryStore
from accel_dask.store.records import ensure_meta, put_record
from accel_dask.worker_plugin.executors import ExecutorHost
from accel_dask.worker_plugin.running_executor import RunningExecutor
from flightsql_gateway.app import GatewayApp
from flightsql_gateway.flight_sql import messages

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

ROWS = 30_000
SALES = f"""
    SELECT i AS id, (i % 7)::INTEGER AS store, (i * 7 % 1000)::DECIMAL(12, 2) / 4 AS amount,
        ['ab', 'cd', NULL][i % 3 + 1] AS code, DATE '2024-01-01' + (i // 1000)::INTEGER AS day,
        (i % 5)::HUGEINT AS big, i / 3.0::DOUBLE AS ratio,
        ('00000000-0000-0000-0000-00000000000' || (i % 4))::UUID AS tag
    FROM range({ROWS}) t(i)
"""
STORES = "SELECT i::INTEGER AS store, 'store ' || i AS label FROM range(6) t(i)"
CUTS = [(0, 9_000), (9_000, 9_000), (9_000, 21_000), (21_000, ROWS)]
TOKEN = "secret-of-acme"


class Site:
    """Shards of `sales` on three executors, `stores` on all of them, and a gateway."""

    def __init__(self, directory: Path, quota: Quota) -> None:
        self.store = MemoryStore()
        self.key = ensure_meta(self.store, "test").ticket_key
        self.quota = quota
        self.shard_dir = directory / "shards"
        self.shard_dir.mkdir()
        self.plain = duckdb.connect()
        self.plain.execute("CREATE SCHEMA acme")
        self.plain.execute("USE acme")
        self.host = ExecutorHost(directory / "run")
        self.host.start()
        self.executors: dict[str, RunningExecutor] = {}
        self.app = GatewayApp(GatewaySettings(port=0), self.store)
        put_record(self.store, Tenant(tenant=TENANT, quota=quota))
        put_record(self.store, User(name="ann", tenant=TENANT, token_sha256=hash_token(TOKEN)))
        sales = [
            make_shard(self.shard_dir, f"FROM ({SALES}) WHERE id >= {a} AND id < {b}")
            for a, b in CUTS
        ]
        stores = [make_shard(self.shard_dir, STORES)]
        self._declare("sales", SALES, sales, [b - a for a, b in CUTS])
        self._declare("stores", STORES, stores, [6])
        held = {"w1": [0, 1], "w2": [2, 3], "w3": [2, 3]}
        for worker, indexes in held.items():
            self._launch(
                worker,
                tuple(
                    sorted(
                        [Attachment("sales", EPOCH, sales[index]) for index in indexes]
                        + [Attachment("stores", EPOCH, stores[0])]
                    )
                ),
            )
        self.url = self.app.start(10)

    def _declare(self, name: str, rows: str, shards: list[ShardId], counts: list[int]) -> None:
        self.plain.execute(f"CREATE TABLE {name} AS {rows}")
        described = self.plain.sql(f"FROM {name}")
        epoch = Epoch(
            tenant=TENANT,
            dataset=name,
            number=EPOCH,
            snapshot_id=None,
            sequence=1,
            state=EpochState.READY,
            replicas=1,
            columns=tuple(
                Column(name=column, type=str(kind))
                for column, kind in zip(described.columns, described.types, strict=True)
            ),
            shards=tuple(
                ShardSummary(shard_id=shard, rows=count, source_bytes=count * 10)
                for shard, count in zip(shards, counts, strict=True)
            ),
        )
        put_record(self.store, epoch)
        hosts = tuple((shard, (WorkerId("w1"),)) for shard in shards)
        put_record(self.store, Placement(tenant=TENANT, dataset=name, epoch=EPOCH, hosts=hosts))
        put_record(self.store, Serving(tenant=TENANT, dataset=name, epoch=EPOCH, since_ns=0))

    def _launch(self, worker: str, attachments: tuple[Attachment, ...]) -> None:
        spec = make_spec(
            self.shard_dir,
            worker=WorkerId(worker),
            attachments=attachments,
            ticket_key=self.key,
            quota=self.quota,
        )
        executor = self.executors[worker] = self.host.launch(spec)
        plan = ExecutorPlan(
            worker=spec.worker,
            tenant=TENANT,
            generation=1,
            attachments=attachments,
            quota=self.quota,
        )
        put_record(self.store, plan)
        record = Executor(
            worker=spec.worker,
            tenant=TENANT,
            generation=1,
            incarnation=executor.incarnation,
            state=ExecutorState.READY,
            address=executor.address,
        )
        put_record(self.store, record)

    def connect(self) -> Any:
        kwargs = {"username": "ann", "password": TOKEN}
        return dbapi.connect(self.url, db_kwargs=kwargs, autocommit=True)

    def client(self) -> tuple[flight.FlightClient, flight.FlightCallOptions]:
        client = flight.FlightClient(self.url)
        header = client.authenticate_basic_token("ann", TOKEN)
        return client, flight.FlightCallOptions(headers=[header], timeout=30)

    def ask(self, sql: str) -> pa.Table:
        client, options = self.client()
        command = messages.wrap(messages.new("CommandStatementQuery", query=sql))
        return client.do_get(flight.Ticket(command), options).read_all()

    def refusal(self, sql: str) -> tuple[type[AccelError], str]:
        with pytest.raises((flight.FlightError, pa.ArrowException, OSError, ValueError)) as failed:
            self.ask(sql)
        error = from_flight(failed.value)
        return type(error), str(error)

    def receipt(self) -> dict[str, Any]:
        client, options = self.client()
        action = flight.Action("accel.receipts", json.dumps({"last": 1}).encode())
        (result,) = client.do_action(action, options)
        found: dict[str, Any] = json.loads(result.body.to_pybytes())[0]
        return found

    def close(self) -> None:
        self.app.close(5)
        self.host.close()
        self.store.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, Quota(executor_memory_bytes=192 * MIB, threads=1))
    yield site
    site.close()


def rows(table: pa.Table) -> list[str]:
    """DuckDB itself gives an average of integers in two ways, an ulp apart."""
    return sorted(
        repr(tuple(float(f"{v:.14g}") if isinstance(v, float) else v for v in row.values()))
        for row in table.to_pylist()
    )


# One a line.
# ruff: noqa: E501
QUERIES = """
select count(*), sum(id), sum(amount), min(day), max(code), avg(amount), avg(id), sum(big) from sales
select store, count(*) n, sum(amount) s, avg(big) from sales group by store having count(*) > 10 order by s desc, store limit 3
select tag, big, count(*) from sales group by tag, big
select s.label, sum(amount) from sales join stores s using (store) where day < '2024-01-20' group by s.label
select s.label, count(id) from stores s left join sales on s.store = sales.store and id < 100 group by s.label
select * from sales order by id desc limit 20
select id, tag, big from sales where id in (5, 10000, 25000) and store < 7
select count(distinct code), count(distinct tag) from sales
select median(id), quantile_cont(amount, 0.9) from sales where store = 3
select a.id from sales a join sales b on a.id = b.id + 20000 where a.store = 1
with t as (select day, count(*) n from sales group by day) select max(n), min(day) from t
select store, rank() over (order by sum(id)) r from sales group by store
select distinct store, code from sales
select count(*) from sales where amount > (select avg(amount) from sales)
select id from sales where day = '2024-01-03' except select id from sales where store > 2
select sum(amount), code from sales where id > 1000000 group by code
select sum(amount) from sales where id > 1000000
"""


def test_the_answers_are_those_of_one_database(site: Site) -> None:
    for sql in QUERIES.strip().splitlines():
        expected = site.plain.sql(sql)
        got = site.ask(sql)
        assert got.column_names == expected.columns, sql
        table = expected.to_arrow_table()
        assert [field.type for field in got.schema] == [field.type for field in table.schema], sql
        assert rows(got) == rows(table), sql


def test_receipts_tell_of_all_executors_and_the_verdict(site: Site) -> None:
    site.ask("select count(*) from sales")
    receipt = site.receipt()
    assert receipt["outcome"] == "OK"
    assert receipt["route"] == "hot"
    assert receipt["executors"] == 2
    assert receipt["verdict"].startswith("bounded; aggregate: scans at most 30,000 rows")
    site.ask("select label from stores")
    assert site.receipt()["executors"] == 1


def test_parameters_reach_the_parts(site: Site) -> None:
    with site.connect() as connection, connection.cursor() as cursor:
        cursor.execute(
            "select store, sum(amount) + ? as s from sales where id < ? and code = ? "
            "group by store having count(*) > ? order by store",
            [1, 20_000, "ab", 2],
        )
        expected = site.plain.execute(
            "select store, sum(amount) + 1 as s from sales where id < 20000 and code = 'ab' "
            "group by store having count(*) > 2 order by store"
        ).fetchall()
        assert cursor.fetchall() == expected
        cursor.execute("select count(*) from sales where id between ? and ?", [5, 22_000])
        assert cursor.fetchall() == [(21_996,)]
        cursor.execute("select median(id) from sales where id < ?", [1_000])
        assert cursor.fetchall() == [(499.5,)]


def test_a_query_can_be_explained_in_sql(site: Site) -> None:
    with site.connect() as connection, connection.cursor() as cursor:
        cursor.execute("EXPLAIN select store, count(*) from sales group by store")
        text = "\n".join(line for (line,) in cursor.fetchall())
    for part in ("prune: acme.sales@3", "bound: bounded", "plan: input_0: partial results",
                 "part on w", "fragment 1 (hot)", "GROUP BY"):  # fmt: skip
        assert part in text, text
    assert site.ask("explain select 1").column_names == ["plan"]
    for sql in ("explain drop table sales", "explain analyze select 1", "explain explain select 1"):
        assert site.refusal(sql)[0] in {ReadOnly, UnsupportedQuery}


def test_what_cannot_be_gathered_is_refused_before_it_runs(tmp_path: Path) -> None:
    site = Site(tmp_path, Quota(executor_memory_bytes=192 * MIB, max_gather_rows=2_000))
    try:
        kind, message = site.refusal("select median(id) from sales")
        assert kind is ScanLimit
        assert "median is computed over all rows at once" in message
        assert site.ask("select median(id) m from sales where id < 500")["m"].to_pylist() == [249.5]
        kind, message = site.refusal("select median(id) m from sales where id > 500")
        assert kind is RowLimit
        assert "2000 rows" in message
        assert site.ask("select count(*) n from sales")["n"].to_pylist() == [ROWS]
    finally:
        site.close()


def test_a_killed_executor_costs_no_query_that_others_can_answer(site: Site) -> None:
    queries = [
        f"select count(*) as n, max(id) as s from sales where store >= {store}"
        for store in range(6)
    ]
    expected = [site.plain.execute(sql).fetchall() for sql in queries]

    def answers() -> list[list[tuple[Any, ...]]]:
        return [[tuple(row.values()) for row in site.ask(sql).to_pylist()] for sql in queries]

    assert answers() == expected
    # Its records stay: the gateway must find out by itself, as must whoever asks it for a part.
    os.kill(site.executors["w2"].pid, signal.SIGKILL)
    assert answers() == expected
    os.kill(site.executors["w3"].pid, signal.SIGKILL)
    assert site.refusal(queries[0])[0] is ExecutorUnavailable
