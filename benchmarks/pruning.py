"""Shard pruning in figures: what it adds to a plan over many shards.

    python benchmarks/pruning.py [--shards 500] [--repeat 200]

Prints the median and the 99th percentile, in milliseconds, of finding the shards to read for
each statement, already parsed: with the epoch's bounds known, and the first time on an epoch.
Exit code 1 if the day range takes longer than its bar. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date, timedelta

import sqlglot
from sqlglot import exp

from accel_dask.model.epoch import ShardSummary
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.routing import DatasetRoute
from accel_dask.model.snapshot import Column, ColumnStats
from accel_dask.query_planner.pruning import kept_shards
from accel_dask.query_planner.pruning_bounds import BoundsCache

BAR_MS = 1.0
BAR_ON = "day range"
FIRST = date(2013, 1, 1)
COLUMNS = {
    "day": "DATE",
    "at": "TIMESTAMP",
    "id": "BIGINT",
    "code": "VARCHAR",
    "price": "DECIMAL(9,2)",
}
STATEMENTS = {
    "no filter": "SELECT count(*) FROM flights",
    "day range": "SELECT code, count(*) FROM flights "
    "WHERE day >= DATE '2013-03-01' AND day < DATE '2013-04-01' GROUP BY code",
    "between": "SELECT count(*) FROM flights WHERE day BETWEEN '2013-03-01' AND '2013-03-31'",
    "one day": "SELECT count(*) FROM flights WHERE day = '2013-03-01'",
    "month of a timestamp": "SELECT 1 FROM flights WHERE date_trunc('month', at) = '2013-03-01'",
    "five conditions": "SELECT 1 FROM flights WHERE day > '2013-03-01' AND price < 5 AND "
    "(code LIKE 'c01%' OR id IN (5, 7, 9)) AND at IS NOT NULL",
    "1,000 in a list": f"SELECT 1 FROM flights WHERE id IN ({', '.join(map(str, range(1000)))})",
    "CTE and join on the key": "WITH f AS (SELECT * FROM flights WHERE price > 2) SELECT 1 FROM f "
    "JOIN flights g ON f.day = g.day WHERE g.day BETWEEN '2013-03-01' AND '2013-03-31'",
}


def flights(shards: int) -> DatasetRoute:
    """A dataset of one shard a day."""

    def summary(index: int) -> ShardSummary:
        day = FIRST + timedelta(days=index)
        bounds = {
            "day": (f"{day}", f"{day}"),
            "at": (f"{day} 00:00:00", f"{day} 23:59:59.999999"),
            "id": (str(index * 1000), str(index * 1000 + 999)),
            "code": (f"c{index:04d}", f"c{index + 50:04d}"),
            "price": ("0.00", "99.50"),
        }
        stats = tuple(
            ColumnStats(name=name, null_count=0, lower=lower, upper=upper)
            for name, (lower, upper) in bounds.items()
        )
        return ShardSummary(
            shard_id=ShardId(f"{index:032d}"), rows=1000, source_bytes=1, stats=stats
        )

    return DatasetRoute(
        dataset_id=DatasetId(TenantId("acme"), "flights"),
        epoch=EpochNumber(1),
        snapshot_id=None,
        columns=tuple(Column(name=name, type=kind) for name, kind in COLUMNS.items()),
        shards=tuple(summary(index) for index in range(shards)),
        executors=(),
    )


def times_ms(repeat: int, run: Callable[[], object]) -> list[float]:
    found = []
    for _ in range(repeat):
        start = time.perf_counter()
        run()
        found.append((time.perf_counter() - start) * 1000)
    return sorted(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=500)
    parser.add_argument("--repeat", type=int, default=200)
    options = parser.parse_args()
    route = flights(options.shards)
    missed = False
    print(f"{options.shards} shards; milliseconds")
    print(f"{'statement':26} {'kept':>5} {'p50':>7} {'p99':>7} {'first time':>11}")
    for name, sql in STATEMENTS.items():
        tree = sqlglot.parse_one(sql, dialect="duckdb")
        tables = [(node, route) for node in tree.find_all(exp.Table) if node.name == "flights"]
        cache = BoundsCache()
        kept = kept_shards(tree, tables, cache)[0].shards
        warm = times_ms(options.repeat, lambda: kept_shards(tree, tables, cache))  # noqa: B023 - run at once
        cold = times_ms(10, lambda: kept_shards(tree, tables, BoundsCache()))  # noqa: B023 - run at once
        p50, p99 = statistics.median(warm), warm[int(len(warm) * 0.99)]
        verdict = ""
        if name == BAR_ON:
            is_missed = p50 > BAR_MS
            missed = missed or is_missed
            verdict = f"  bar {BAR_MS} ms: {'MISSED' if is_missed else 'kept'}"
        first = statistics.median(cold)
        print(f"{name:26} {len(kept):5} {p50:7.3f} {p99:7.3f} {first:11.3f}{verdict}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
