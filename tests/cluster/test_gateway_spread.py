"""A gateway over several real executors, none of which has everything."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from spread_site import ROWS, TOKEN
from spread_site import SpreadSite as Site

from accel_dask.errors import (
    CpuLimit,
    ExecutorUnavailable,
    ReadOnly,
    RowLimit,
    ScanLimit,
    UnknownTable,
    UnsupportedQuery,
)
from accel_dask.flight_client import FlightSession
from accel_dask.model.tenant import MIB, Quota

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]


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
    [part] = receipt["parts"]
    assert part["executor"] in {"w1/3", "w2/3", "w3/3"} - {receipt["executor"]}
    assert (part["rows"], part["alternatives"]) == (1, 0)
    assert part["ms"] > 0
    assert receipt["gathered_rows"] == 1
    assert receipt["predicted_scan_rows"] == ROWS
    assert receipt["scanned_rows"] is None, "a short query is not counted"
    assert receipt["cpu_ms"] >= part["cpu_ms"] > 0
    assert receipt["limits"]["max_cpu_ms"] == site.quota.max_cpu_ms
    site.ask("select label from stores")
    assert site.receipt()["executors"] == 1
    with FlightSession(site.url, "ann", TOKEN) as session:
        assert session.receipt(receipt["query_id"]) == receipt
        newest = session.receipt()
        assert newest is not None
        assert newest["sql"] == "select label from stores"
        assert session.receipt("0" * 32) is None


def test_a_session_tells_faults_of_the_asked_statement_as_errors_of_the_tree(site: Site) -> None:
    with FlightSession(site.url, "ann", TOKEN) as session:
        with pytest.raises(UnknownTable, match="has no table 'nowhere'"):
            session.explain("select 1 from nowhere")
        with pytest.raises(ReadOnly):
            session.explain("drop table sales")


def test_a_query_beyond_its_cpu_time_is_stopped_on_every_executor(site: Site) -> None:
    sql = "select count(*) from sales a, sales b where a.ratio + b.ratio < 0 and a.code <> b.code"
    started = time.monotonic()
    kind, told = site.refusal(sql, {"x-accel-max-cpu-ms": "100"})
    assert kind is CpuLimit
    assert "more than the 100 ms of CPU time" in told
    assert time.monotonic() - started < 3
    receipt = site.receipt()
    assert (receipt["outcome"], receipt["limits"]["max_cpu_ms"]) == ("CPU_LIMIT", 100)


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
                 "part (hot) on w", "fragment 1 (hot)", "GROUP BY"):  # fmt: skip
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
