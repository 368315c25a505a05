"""The same dashboard with and without rollups, on TPC-H.

    python benchmarks/rollup.py [--scale 1] [--rounds 30]

Two tenants on one host hold the same tables, one of them with rollups. Each query is asked of both
turn by turn, with new dates each time; the answers are compared, and receipts must say that the
rollup was read. Prints P50 and P95 of both, the rows that the plan bounds, and the size of the
shard files.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Final

import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from answers import asks_flight, difference, publish_all, to_answer
from tpch_data import FACTS, tpch_datasets, tpch_quota

from accel_dask.flight_client import FlightSession
from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.replica import Replica
from accel_dask.model.rollup import parse_rollup

PLAIN, ROLLED = "plain", "rolled"
ROLLUPS: Final = {
    "lineitem": (
        (
            "daily: l_shipdate, l_shipmode, l_returnflag, l_linestatus; count(*), sum(l_quantity), "
            "sum(l_extendedprice), avg(l_discount)"
        ),
    ),
    "orders": (
        "daily: o_orderdate, o_orderpriority; count(*), sum(o_totalprice), max(o_totalprice)",
    ),
}
QUERIES: Final = {
    "revenue_by_month": """
        SELECT date_trunc('month', l_shipdate) AS month, sum(l_extendedprice) AS revenue
        FROM lineitem WHERE l_shipdate >= DATE '{day}' GROUP BY month ORDER BY month""",
    "flags_of_a_quarter": """
        SELECT l_returnflag, l_linestatus, sum(l_quantity) AS quantity, avg(l_discount) AS discount
        FROM lineitem WHERE l_shipdate BETWEEN DATE '{day}' AND DATE '{day}' + 90
        GROUP BY l_returnflag, l_linestatus ORDER BY l_returnflag, l_linestatus""",
    "ship_modes_of_a_year": """
        SELECT l_shipmode, count(*) AS lines, sum(l_quantity) AS quantity FROM lineitem
        WHERE l_shipdate BETWEEN DATE '{day}' AND DATE '{day}' + 364
        GROUP BY l_shipmode ORDER BY l_shipmode""",
    "priorities_of_a_month": """
        SELECT o_orderpriority, count(*) AS orders, sum(o_totalprice) AS total FROM orders
        WHERE o_orderdate BETWEEN DATE '{day}' AND DATE '{day}' + 29
        GROUP BY o_orderpriority ORDER BY o_orderpriority""",
    "orders_overview": """
        SELECT count(*) AS orders, sum(o_totalprice) AS total, min(o_orderdate) AS first,
            max(o_orderdate) AS last FROM orders WHERE o_orderdate <> DATE '{day}'""",
}


@contextmanager
def on_a_cluster(scale: float) -> Iterator[tuple[LocalAccelCluster, dict[str, str]]]:
    """And the tenants' tokens."""
    tokens = {}
    with LocalAccelCluster(LocalOptions(workers=1)) as cluster:
        for tenant in (PLAIN, ROLLED):
            datasets = [one for one in tpch_datasets(tenant, scale) if one.name in FACTS]
            if tenant == ROLLED:
                datasets = [
                    replace(one, rollups=tuple(map(parse_rollup, ROLLUPS[one.name])))
                    for one in datasets
                ]
            tokens[tenant] = cluster.create_tenant(tenant, tpch_quota(scale))
            started = time.perf_counter()
            publish_all(cluster, datasets)
            print(
                f"{tenant:7} {file_bytes(cluster, tenant) / 2**20:8.1f} MiB of shard files, "
                f"loaded in {time.perf_counter() - started:.1f} s"
            )
        yield cluster, tokens


def file_bytes(cluster: LocalAccelCluster, tenant: str) -> int:
    sizes = {one.shard_id: one.file_bytes for one in cluster.view.records(Replica)}
    epochs = [cluster.view.serving_epoch(DatasetId(TenantId(tenant), name)) for name in FACTS]
    return sum(sizes[shard.shard_id] for epoch in epochs if epoch for shard in epoch.shards)


def measure(
    name: str,
    asks: dict[str, Callable[[str], pa.Table]],
    sessions: dict[str, FlightSession],
    rounds: int,
) -> None:
    draw = random.Random(name)
    taken: dict[str, list[float]] = {tenant: [] for tenant in asks}
    for number in range(rounds + 2):
        day = date(1992, 3, 1) + timedelta(days=draw.randrange(1800))
        sql = QUERIES[name].format(day=day)
        found = {}
        for tenant, ask in asks.items():
            started = time.perf_counter()
            table = ask(sql)
            if number >= 2:
                taken[tenant].append((time.perf_counter() - started) * 1000)
            found[tenant] = to_answer(table)
        wrong = difference(found[PLAIN], found[ROLLED])
        assert not wrong, f"{wrong}\n{sql}"
    rows = {}
    for tenant, session in sessions.items():
        receipt = session.receipt()
        assert receipt is not None
        is_rolled = bool(receipt["datasets"][0]["rollup"])
        assert is_rolled == (tenant == ROLLED), receipt["reason"]
        rows[tenant] = receipt["verdict"].split("scans at most ")[1].split(" rows")[0]
    told = "  ".join(
        f"{tenant} {statistics.median(times):7.2f} {statistics.quantiles(times, n=20)[-1]:7.2f} ms "
        f"({rows[tenant]} rows)"
        for tenant, times in taken.items()
    )
    ratio = statistics.median(taken[PLAIN]) / statistics.median(taken[ROLLED])
    print(f"{name:24} {told}  {ratio:5.1f} times as fast")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    with ExitStack() as stack:
        cluster, tokens = stack.enter_context(on_a_cluster(arguments.scale))
        url = cluster.gateway_urls[0]
        asks, sessions = {}, {}
        for tenant, token in tokens.items():
            asks[tenant] = stack.enter_context(asks_flight(cluster, tenant, token))
            sessions[tenant] = stack.enter_context(FlightSession(url, tenant, token))
        print(f"scale {arguments.scale:g}, {arguments.rounds} rounds; P50 and P95")
        for name in QUERIES:
            measure(name, asks, sessions, arguments.rounds)


if __name__ == "__main__":
    main()
