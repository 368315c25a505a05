"""Latency and throughput of queries through the gateway beside in-process DuckDB, on TPC-H.

    python benchmarks/query.py [--scale 1] [--rounds 30] [--seconds 5]

A tenant on one host, then beside it another on four. Twelve dashboard queries and one-row lookups
are asked of

    duckdb   DuckDB in this process, each table a sorted, compressed one in a file on tmpfs
    shards   DuckDB in this process, each table a view over the tenant's own shard files
    flight   the gateway, by a pyarrow Flight client in one round trip
    adbc     the gateway, by ADBC
    spread   the gateway of the tenant on four hosts, by a pyarrow Flight client

Every answer is compared with DuckDB's. Prints P50, P95 and P99 for one client and for eight, and
exits with 1 when a limit is missed. The limits are held against `duckdb`, the faster of the two:
`shards` binds every shard for every query.

Literals: `repeated` asks each query with a few fixed values, as dashboards that refresh do;
`fresh` with new values each time.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import duckdb
import pyarrow as pa
from adbc_driver_flightsql import dbapi
from answers import asks_flight, difference, publish_all, to_answer
from tpch_data import FACTS, TABLES, large_tpch_quota, tpch_datasets, tpch_directory

from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.tenant import Quota
from accel_dask.model.ticket import shard_database, shard_relation

ADDED_P50_MS: Final = 2.0
ADDED_P99_MS: Final = 6.0
THROUGHPUT_AT_LEAST: Final = 0.6
FOUR_HOSTS_AT_MOST: Final = 1.3
SMALL_MS: Final = 10.0
"""A query is small when DuckDB's P50 is below this."""
CLIENTS: Final = 8
TENANT: Final = "bench"

DASHBOARD: Final = {
    "revenue_by_day": """
        SELECT l_shipdate, sum(l_extendedprice * (1 - l_discount)) AS revenue, count(*) AS lines
        FROM lineitem WHERE l_shipdate BETWEEN DATE '{day}' AND DATE '{day}' + 29
        GROUP BY l_shipdate ORDER BY l_shipdate""",
    "revenue_by_month": """
        SELECT date_trunc('month', l_shipdate) AS month, sum(l_extendedprice) AS revenue
        FROM lineitem WHERE l_shipdate >= DATE '{year}-01-01' AND l_shipdate <= DATE '{year}-12-31'
        GROUP BY month ORDER BY month""",
    "flags_of_a_quarter": """
        SELECT l_returnflag, l_linestatus, sum(l_quantity) AS quantity, avg(l_discount) AS discount
        FROM lineitem WHERE l_shipdate BETWEEN DATE '{day}' AND DATE '{day}' + 90
        GROUP BY l_returnflag, l_linestatus ORDER BY l_returnflag, l_linestatus""",
    "top_parts_of_a_week": """
        SELECT l_partkey, sum(l_extendedprice) AS revenue FROM lineitem
        WHERE l_shipdate BETWEEN DATE '{day}' AND DATE '{day}' + 6
        GROUP BY l_partkey ORDER BY revenue DESC, l_partkey LIMIT 10""",
    "ship_modes_of_a_week": """
        SELECT l_shipmode, count(*) AS lines, sum(l_quantity) AS quantity FROM lineitem
        WHERE l_shipdate BETWEEN DATE '{day}' AND DATE '{day}' + 6
        GROUP BY l_shipmode ORDER BY l_shipmode""",
    "priorities_of_a_month": """
        SELECT o_orderpriority, count(*) AS orders, sum(o_totalprice) AS total FROM orders
        WHERE o_orderdate BETWEEN DATE '{day}' AND DATE '{day}' + 29
        GROUP BY o_orderpriority ORDER BY o_orderpriority""",
    "nations_of_a_week": """
        SELECT n_name, sum(l_extendedprice * (1 - l_discount)) AS revenue
        FROM lineitem JOIN supplier ON l_suppkey = s_suppkey
            JOIN nation ON s_nationkey = n_nationkey
        WHERE l_shipdate BETWEEN DATE '{day}' AND DATE '{day}' + 6
        GROUP BY n_name ORDER BY n_name""",
    "top_customers_of_a_week": """
        SELECT c_custkey, c_name, sum(o_totalprice) AS total
        FROM orders JOIN customer ON o_custkey = c_custkey
        WHERE o_orderdate BETWEEN DATE '{day}' AND DATE '{day}' + 6
        GROUP BY c_custkey, c_name ORDER BY total DESC, c_custkey LIMIT 10""",
    "late_lines_of_a_month": """
        SELECT l_shipmode, count(*) FILTER (WHERE l_receiptdate > l_commitdate) AS late,
            count(*) AS lines
        FROM lineitem WHERE l_shipdate BETWEEN DATE '{day}' AND DATE '{day}' + 29
        GROUP BY l_shipmode ORDER BY l_shipmode""",
    "discounted_year": """
        SELECT sum(l_extendedprice * l_discount) AS revenue FROM lineitem
        WHERE l_shipdate >= DATE '{year}-01-01' AND l_shipdate <= DATE '{year}-12-31'
        AND l_discount BETWEEN 0.05 AND 0.07 AND l_quantity < 24""",
    "segments_of_a_quarter": """
        SELECT c_mktsegment, count(*) AS orders, sum(o_totalprice) AS total
        FROM orders JOIN customer ON o_custkey = c_custkey
        WHERE o_orderdate BETWEEN DATE '{day}' AND DATE '{day}' + 90
        GROUP BY c_mktsegment ORDER BY c_mktsegment""",
    "orders_overview": """
        SELECT count(*) AS orders, sum(o_totalprice) AS total, min(o_orderdate) AS first,
            max(o_orderdate) AS last FROM orders""",
}
LOOKUPS: Final = {
    "one_customer": """
        SELECT c_custkey, c_name, c_acctbal FROM customer WHERE c_custkey = {customer}""",
    "one_order": """
        SELECT o_orderkey, o_totalprice, o_orderstatus FROM orders
        WHERE o_orderdate = DATE '{order_day}' AND o_orderkey = {order}""",
    "one_supplier": "SELECT s_name, s_phone FROM supplier WHERE s_suppkey = {supplier}",
}
QUERIES: Final = {**DASHBOARD, **LOOKUPS}

Ask = Callable[[str], pa.Table]


class Literals:
    """Values for the queries: a few fixed ones, or new ones each time."""

    def __init__(self, plain: duckdb.DuckDBPyConnection, *, fresh: bool, seed: int = 7) -> None:
        self._draw = random.Random(seed)
        self._orders = plain.execute(
            "SELECT o_orderkey, o_orderdate FROM orders ORDER BY hash(o_orderkey) LIMIT 5000"
        ).fetchall()
        (self._customers,) = plain.execute("SELECT max(c_custkey) FROM customer").fetchall()[0]
        (self._suppliers,) = plain.execute("SELECT max(s_suppkey) FROM supplier").fetchall()[0]
        self._fixed = None if fresh else [self._new() for _ in range(3)]

    def sql(self, name: str) -> str:
        values = self._draw.choice(self._fixed) if self._fixed else self._new()
        return " ".join(QUERIES[name].format(**values).split())

    def _new(self) -> dict[str, Any]:
        order, order_day = self._draw.choice(self._orders)
        return {
            "day": date(1992, 3, 1) + timedelta(days=self._draw.randrange(2200)),
            "year": self._draw.randrange(1993, 1998),
            "order": order,
            "order_day": order_day,
            "customer": self._draw.randrange(1, self._customers + 1),
            "supplier": self._draw.randrange(1, self._suppliers + 1),
        }


# Who is asked


@contextmanager
def shards_in_duckdb(
    cluster: LocalAccelCluster, threads: int
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB in this process with the shard files of `cluster`'s one host attached, and a view
    over the shards of each table."""
    files = {file.stem: file for file in shard_directory(cluster).rglob("*.duckdb")}
    with duckdb.connect(config={"threads": threads}) as engine:
        for table in TABLES:
            epoch = cluster.view.serving_epoch(DatasetId(TenantId(TENANT), table))
            assert epoch is not None
            for shard in epoch.shards:
                engine.execute(
                    f"ATTACH '{files[shard.shard_id]}' AS "
                    f"{shard_database(shard.shard_id)} (READ_ONLY)"
                )
            rows = " UNION ALL ".join(
                f"SELECT * FROM {shard_relation(shard.shard_id)}" for shard in epoch.shards
            )
            engine.execute(f"CREATE VIEW {table} AS {rows}")
        yield engine


@contextmanager
def tables_in_duckdb(
    scale: float, directory: Path, threads: int
) -> Iterator[duckdb.DuckDBPyConnection]:
    """A DuckDB in this process with all tables in one file, sorted as the shards are."""
    file = directory / "plain.duckdb"
    with duckdb.connect(file, config={"threads": threads}) as engine:
        for table in TABLES:
            order = f"ORDER BY {FACTS[table]}" if table in FACTS else ""
            engine.execute(
                f"CREATE TABLE {table} AS FROM read_parquet("
                f"'{tpch_directory(scale)}/{table}/**/*.parquet', hive_partitioning=false) {order}"
            )
        engine.execute("CHECKPOINT")
    with duckdb.connect(file, read_only=True, config={"threads": threads}) as engine:
        yield engine


def shard_directory(cluster: LocalAccelCluster) -> Path:
    root = cluster._shard_root
    assert root is not None
    return root / "worker-0"


@contextmanager
def asks_duckdb(engine: duckdb.DuckDBPyConnection) -> Iterator[Ask]:
    cursor = engine.cursor()
    yield lambda sql: cursor.sql(sql).to_arrow_table()
    cursor.close()


@contextmanager
def asks_adbc(cluster: LocalAccelCluster, token: str) -> Iterator[Ask]:
    with (
        dbapi.connect(
            cluster.gateway_urls[0],
            db_kwargs={"username": TENANT, "password": token},
            autocommit=True,
        ) as connection,
        connection.cursor() as cursor,
    ):

        def ask(sql: str) -> pa.Table:
            cursor.execute(sql)
            return cursor.fetch_arrow_table()

        yield ask


# Measuring


@dataclass
class Times:
    """Milliseconds of one who is asked, by query."""

    by_query: dict[str, list[float]] = field(default_factory=dict)

    def add(self, query: str, milliseconds: float) -> None:
        self.by_query.setdefault(query, []).append(milliseconds)

    def all(self, names: Sequence[str]) -> list[float]:
        return sorted(one for name in names for one in self.by_query.get(name, ()))


def percentile(values: Sequence[float], share: float) -> float:
    return (
        sorted(values)[min(int(len(values) * share), len(values) - 1)] if values else float("nan")
    )


def one_client(
    asked: dict[str, Ask], literals: Literals, rounds: int, *, in_turn: bool
) -> tuple[dict[str, Times], dict[str, Times]]:
    """Their times, and the times less DuckDB's of the same query of the same round.

    In each round everyone is asked the same queries: in blocks, all of them of one and then of
    the next, as a client that asks one query after the other; or in turn, each query of everyone
    before the next query, so that whoever is asked has been idle while the others worked.
    """
    times = {name: Times() for name in asked}
    added = {name: Times() for name in asked}
    order = list(asked)
    for number in range(rounds + 2):
        texts = {query: literals.sql(query) for query in QUERIES}
        order = order[1:] + order[:1]
        turns = [(name, query) for query in texts for name in order]
        if not in_turn:
            turns = [(name, query) for name in order for query in texts]
        taken: dict[str, dict[str, float]] = {query: {} for query in texts}
        tables: dict[str, dict[str, pa.Table]] = {query: {} for query in texts}
        for name, query in turns:
            started = time.perf_counter()
            tables[query][name] = asked[name](texts[query])
            taken[query][name] = (time.perf_counter() - started) * 1000
        for query, sql in texts.items():
            check(query, sql, tables[query])
            if number < 2:
                continue  # warming up
            for name, milliseconds in taken[query].items():
                times[name].add(query, milliseconds)
                added[name].add(query, milliseconds - taken[query]["duckdb"])
    return times, added


def check(query: str, sql: str, tables: dict[str, pa.Table]) -> None:
    expected = to_answer(tables["duckdb"])
    for name, table in tables.items():
        told = difference(expected, to_answer(table))
        if told:
            raise AssertionError(f"{name} answers {query} wrong: {told}\n{sql}")


def many_clients(
    make: Callable[[], Any], queries: Sequence[str], literals: Sequence[Literals], seconds: float
) -> tuple[float, list[float]]:
    """Queries a second and their times, of clients that ask without a pause."""
    stop = time.perf_counter() + seconds
    times: list[list[float]] = [[] for _ in literals]
    failures: list[BaseException] = []
    ready = threading.Barrier(len(literals))

    def run(number: int) -> None:
        nonlocal stop
        try:
            with make() as ask:
                order = list(queries)
                random.Random(number).shuffle(order)
                ask(literals[number].sql(order[0]))
                if ready.wait(60) == 0:
                    stop = time.perf_counter() + seconds
                ready.wait(60)
                while time.perf_counter() < stop:
                    query = order[len(times[number]) % len(order)]
                    started = time.perf_counter()
                    ask(literals[number].sql(query))
                    times[number].append((time.perf_counter() - started) * 1000)
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            ready.abort()
            failures.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(literals))]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + 120)
    if failures:
        raise failures[0]
    all_times = [one for some in times for one in some]
    return len(all_times) / min(seconds, time.perf_counter() - started), all_times


# Printing


def show(title: str, times: dict[str, Times], names: Sequence[str]) -> None:
    print(f"\n{title}")
    print(f"  {'':14}{'P50':>9}{'P95':>9}{'P99':>9}  ms")
    for name, found in times.items():
        values = found.all(names)
        figures = "".join(f"{percentile(values, share):9.2f}" for share in (0.5, 0.95, 0.99))
        print(f"  {name:14}{figures}  ({len(values)} queries)")


def show_queries(times: dict[str, Times]) -> None:
    print(f"\n  {'P50 by query, ms':28}" + "".join(f"{name:>14}" for name in times))
    for query in QUERIES:
        p50 = [percentile(found.by_query[query], 0.5) for found in times.values()]
        print(f"  {query:28}" + "".join(f"{value:14.2f}" for value in p50))


@dataclass
class Limits:
    """What the limits say; `held` is false once one is missed."""

    held: bool = True

    def check(self, what: str, value: float, limit: float, *, at_least: bool = False) -> None:
        holds = value >= limit if at_least else value <= limit
        self.held = self.held and holds
        sign = ">=" if at_least else "<="
        print(f"  {what:58}{value:8.2f}  {sign} {limit:<5} {'holds' if holds else 'MISSED'}")


def latencies(asked: dict[str, Ask], plain: duckdb.DuckDBPyConnection, rounds: int) -> list[Any]:
    """One client, with both kinds of literals, in both orders."""
    judged: list[Any] = []
    for in_turn, fresh in ((False, False), (False, True), (True, False), (True, True)):
        kind = f"{'fresh' if fresh else 'repeated'}, {'in turn' if in_turn else 'in blocks'}"
        literals = Literals(plain, fresh=fresh)
        times, added = one_client(asked, literals, rounds, in_turn=in_turn)
        show(f"1 client, dashboard mix, {kind}", times, list(DASHBOARD))
        show(f"1 client, one-row lookups, {kind}", times, list(LOOKUPS))
        show(f"1 client, added to DuckDB's time of the same query, {kind}", added, list(QUERIES))
        if not fresh:
            show_queries(times)
        judged.append((kind, times, added))
    return judged


def throughputs(
    makers: dict[str, Callable[[], Any]], plain: duckdb.DuckDBPyConnection, seconds: float
) -> dict[str, float]:
    """Eight clients, in three slices each, so that all see the same machine."""
    rates: dict[str, list[float]] = {name: [] for name in makers}
    times: dict[str, Times] = {name: Times() for name in makers}
    for number in range(3):
        for name, make in makers.items():
            literals = [Literals(plain, fresh=False, seed=number * 100 + i) for i in range(CLIENTS)]
            rate, found = many_clients(make, list(DASHBOARD), literals, seconds)
            rates[name].append(rate)
            times[name].by_query.setdefault("mix", []).extend(found)
    show(f"{CLIENTS} clients, dashboard mix, repeated literals", times, ["mix"])
    for name, found in rates.items():
        print(f"  {name:14}{statistics.median(found):9.1f} queries/s  (of {len(found)} slices)")
    return {name: statistics.median(found) for name, found in rates.items()}


def judge(judged: list[Any], over_hosts: list[Any], rates: dict[str, float], hosts: int) -> bool:
    limits = Limits()
    print("\nLimits")
    for kind, _, added in judged:
        extra = added["flight"].all(list(QUERIES))
        limits.check(
            f"added by the gateway, Flight, P50 ms ({kind})", percentile(extra, 0.5), ADDED_P50_MS
        )
        limits.check(
            f"added by the gateway, Flight, P99 ms ({kind})", percentile(extra, 0.99), ADDED_P99_MS
        )
    for kind, times, _ in over_hosts:
        small = [
            query
            for query in QUERIES
            if percentile(times["duckdb"].by_query[query], 0.5) < SMALL_MS
        ]
        ratios = [
            percentile(times["spread"].by_query[query], 0.5)
            / percentile(times["flight"].by_query[query], 0.5)
            for query in small
        ]
        limits.check(
            f"{hosts} hosts / 1, geomean of {len(small)} small queries ({kind})",
            statistics.geometric_mean(ratios),
            FOUR_HOSTS_AT_MOST,
        )
    print(
        f"  for comparison, {CLIENTS} clients through the gateway / DuckDB over the shard files: "
        f"{rates['flight'] / rates['shards']:.2f}"
    )
    limits.check(
        f"{CLIENTS} clients through the gateway / DuckDB, queries/s",
        rates["flight"] / rates["duckdb"],
        THROUGHPUT_AT_LEAST,
        at_least=True,
    )
    return limits.held


def start(
    stack: ExitStack, hosts: int, scale: float, quota: Quota
) -> tuple[LocalAccelCluster, str]:
    cluster = stack.enter_context(LocalAccelCluster(LocalOptions(workers=hosts)))
    token = cluster.create_tenant(TENANT, quota)
    publish_all(cluster, tpch_datasets(TENANT, scale))
    return cluster, token


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=30, help="each query, with one client")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each slice of many clients")
    parser.add_argument("--hosts", type=int, default=4, help="of the second tenant; 1: none")
    told = parser.parse_args()
    tpch_directory(told.scale)
    quota = large_tpch_quota(told.scale)
    with ExitStack() as stack:
        cluster, token = start(stack, 1, told.scale, quota)
        makers: dict[str, Callable[[], Any]] = {
            "flight": lambda: asks_flight(cluster, TENANT, token),
            "adbc": lambda: asks_adbc(cluster, token),
        }
        directory = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="accel-benchmark-", dir="/dev/shm")
        )
        plain = stack.enter_context(tables_in_duckdb(told.scale, Path(directory), quota.threads))
        shards = stack.enter_context(shards_in_duckdb(cluster, quota.threads))
        makers = {
            "duckdb": lambda: asks_duckdb(plain),
            "shards": lambda: asks_duckdb(shards),
            **makers,
        }
        print(
            f"TPC-H SF {told.scale:g}, load average {os.getloadavg()[0]:.1f} "
            f"on {os.cpu_count()} cores"
        )
        asked = {name: stack.enter_context(make()) for name, make in makers.items()}
        judged = latencies(asked, plain, told.rounds)
        rates = throughputs(makers, plain, told.seconds)
        over_hosts: list[Any] = []
        if told.hosts > 1:
            # Only now: a second cluster's own work is felt on a machine of few cores.
            others, other_token = start(stack, told.hosts, told.scale, quota)
            spread = stack.enter_context(asks_flight(others, TENANT, other_token))
            few = {"duckdb": asked["duckdb"], "flight": asked["flight"], "spread": spread}
            print(f"\n{told.hosts} hosts")
            over_hosts = latencies(few, plain, told.rounds)
        return 0 if judge(judged, over_hosts, rates, told.hosts) else 1


if __name__ == "__main__":
    sys.exit(main())
