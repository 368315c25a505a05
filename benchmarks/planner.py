"""What planning costs: cold, from the cache, and over executors that have a part each.

`python benchmarks/planner.py` prints medians in milliseconds and fails above the limits.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from routes import executor_route

from accel_dask.model.epoch import ShardSummary
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.routing import DatasetRoute, RoutingTable
from accel_dask.model.snapshot import Column, ColumnStats
from accel_dask.query_planner.cache import PlanCache
from accel_dask.query_planner.pipeline import plan_query, warm_up
from accel_dask.query_planner.plan import PlanContext

TENANT, EPOCH = TenantId("acme"), EpochNumber(1)
AGGREGATE: Final = (
    "SELECT carrier, count(*) AS n, sum(delay) AS total, avg(delay) AS mean FROM flights "
    "WHERE day BETWEEN DATE '2013-03-01' AND DATE '2013-03-31' AND cancelled = 0 "
    "GROUP BY carrier ORDER BY n DESC LIMIT 10"
)
JOIN: Final = (
    "WITH late AS (SELECT carrier, day, delay FROM flights WHERE delay > 15) "
    "SELECT a.name, count(*) AS n, max(l.delay) FROM late l JOIN airlines a "
    "ON l.carrier = a.carrier WHERE l.day >= DATE '2013-06-01' GROUP BY a.name ORDER BY 2 DESC"
)
COLD_LIMIT_MS: Final = 4.0
CACHED_LIMIT_MS: Final = 0.15


def context(shards: int, hosts: int) -> PlanContext:
    """`flights` in so many shards, spread over so many executors; `airlines` on each of them."""
    flights = [ShardId(f"{index:032x}") for index in range(shards)]
    airlines = ShardId("f" * 32)
    executors = tuple(
        executor_route(
            [
                Attachment("airlines", EPOCH, airlines),
                *(Attachment("flights", EPOCH, shard) for shard in flights[host::hosts]),
            ],
            worker=f"w{host}",
            tenant=TENANT,
        )
        for host in range(hosts)
    )
    columns = {
        "flights": {
            "day": "DATE",
            "carrier": "VARCHAR",
            "delay": "INTEGER",
            "cancelled": "INTEGER",
            **{f"extra_{n}": "DOUBLE" for n in range(20)},
        },
        "airlines": {"carrier": "VARCHAR", "name": "VARCHAR"},
    }
    routes = {
        DatasetId(TENANT, name): DatasetRoute(
            dataset_id=DatasetId(TENANT, name),
            epoch=EPOCH,
            snapshot_id=None,
            columns=tuple(Column(name=key, type=kind) for key, kind in found.items()),
            shards=tuple(
                _summary(shard, index)
                for index, shard in enumerate(flights if name == "flights" else [airlines])
            ),
            executors=executors,
        )
        for name, found in columns.items()
    }
    return PlanContext(tenant=TENANT, routing=RoutingTable(1, routes, {}, {}, b""))


def _summary(shard: ShardId, index: int) -> ShardSummary:
    day = f"2013-{index % 12 + 1:02}"
    stats = ColumnStats(name="day", null_count=0, lower=f"{day}-01", upper=f"{day}-28")
    return ShardSummary(shard_id=shard, rows=10_000, source_bytes=100_000, stats=(stats,))


def median_ms(work: Callable[[int], object], runs: int) -> float:
    times = []
    for number in range(runs):
        started = time.perf_counter()
        work(number)
        times.append((time.perf_counter() - started) * 1000)
    return statistics.median(times)


def main() -> int:
    warm_up()
    small, spread, many = context(12, 1), context(12, 3), context(500, 4)
    cache = PlanCache()
    cold = median_ms(lambda n: plan_query(f"{AGGREGATE} OFFSET {n}", small), 300)
    cached = median_ms(lambda _: cache.plan(AGGREGATE, small), 2_000)
    figures = {
        "cold, one table, one executor": cold,
        "cached, one table, one executor": cached,
        "cached, one table, 3 executors": median_ms(lambda _: cache.plan(AGGREGATE, spread), 2_000),
        "cold, one table, 3 executors": median_ms(
            lambda n: plan_query(f"{AGGREGATE} OFFSET {n}", spread), 300
        ),
        "cold, one table, 500 shards on 4 executors": median_ms(
            lambda n: plan_query(f"{AGGREGATE} OFFSET {n}", many), 100
        ),
        "cold, CTE and join, one executor": median_ms(
            lambda n: plan_query(f"{JOIN} LIMIT {n}", small), 300
        ),
        "cold, CTE and join, 3 executors": median_ms(
            lambda n: plan_query(f"{JOIN} LIMIT {n}", spread), 300
        ),
    }
    for name, value in figures.items():
        print(f"{name:<45} {value:8.3f} ms")
    is_good = cold <= COLD_LIMIT_MS and cached <= CACHED_LIMIT_MS
    kept = "kept" if is_good else "BROKEN"
    print(f"limits: cold {COLD_LIMIT_MS} ms, cached {CACHED_LIMIT_MS} ms: {kept}")
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
