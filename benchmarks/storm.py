"""Ten clients who ask for more than there are places for, and what becomes of them.

    python benchmarks/storm.py [--seconds 60] [--rows 2000000] [--clients 10] [--gateways 2]

A whole cluster on this machine. A mix in the manner of ClickBench (aggregations, top-n, groups of
high cardinality, LIKE, heavy scans) over one table of web hits, asked in a closed loop: first by as
many clients as the tenant has places, then by `--clients` at once, then again as at first. Who is
refused comes back when he is told to. Every answer is compared with DuckDB's. Exits with 1 if any
answer is wrong, an error is not a typed refusal for want of a place, a query hangs, or the
throughput afterwards is not what it was before.
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
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import duckdb
from answers import Answer, difference, to_answer
from pyarrow import flight

from accel_dask.errors import AccelError, ResourceExhausted
from accel_dask.flight_errors import FLIGHT_FAILURES, from_flight
from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import MIB, Quota
from flightsql_gateway.flight_sql import messages

TENANT: Final = "storm"
CONCURRENCY: Final = 3
QUOTA: Final = Quota(
    memory_bytes_per_host=1024 * MIB,
    executor_memory_bytes=512 * MIB,
    concurrency=CONCURRENCY,
    queue_length=3,
    queue_wait_ms=1_000,
    deadline_ms=15_000,
    max_cpu_ms=60_000,
)
HANG_SECONDS: Final = QUOTA.deadline_ms / 1000 + 5
AFTER_AT_LEAST: Final = 0.7
"""Of the throughput before. Other work on a shared machine moves it as well."""
MIX: Final = (
    "SELECT count(*) FROM hits WHERE adv <> 0",
    "SELECT sum(adv), count(*), avg(width) FROM hits",
    "SELECT count(DISTINCT user_id) FROM hits",
    "SELECT count(DISTINCT phrase) FROM hits",
    "SELECT adv, count(*) AS n FROM hits WHERE adv <> 0 GROUP BY adv ORDER BY n DESC, adv LIMIT 20",
    (
        "SELECT region, count(DISTINCT user_id) AS u FROM hits GROUP BY region "
        "ORDER BY u DESC, region LIMIT 10"
    ),
    (
        "SELECT phrase, count(*) AS c FROM hits WHERE phrase <> '' GROUP BY phrase "
        "ORDER BY c DESC, phrase LIMIT 10"
    ),
    "SELECT user_id, count(*) AS c FROM hits GROUP BY user_id ORDER BY c DESC, user_id LIMIT 10",
    (
        "SELECT user_id, phrase, count(*) AS c FROM hits GROUP BY user_id, phrase "
        "ORDER BY c DESC, user_id, phrase LIMIT 10"
    ),
    "SELECT user_id FROM hits WHERE user_id = 4242",
    "SELECT count(*) FROM hits WHERE url LIKE '%google%'",
    (
        "SELECT phrase, min(url) AS url, count(*) AS c FROM hits WHERE url LIKE '%google%' "
        "AND phrase <> '' GROUP BY phrase ORDER BY c DESC, phrase LIMIT 10"
    ),
    "SELECT phrase FROM hits WHERE phrase <> '' ORDER BY second, phrase LIMIT 10",
    "SELECT sum(width), sum(width + 1), sum(width + 2), sum(width + 3), sum(width + 4) FROM hits",
    "SELECT url, count(*) AS c FROM hits GROUP BY url ORDER BY c DESC, url LIMIT 10",
    (
        "SELECT second // 3600 AS hour, count(*) AS c FROM hits WHERE region BETWEEN 5 AND 9 "
        "GROUP BY hour ORDER BY hour"
    ),
)


@dataclass
class Seen:
    """What the clients of one phase have seen."""

    served: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    unexplained: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    hangs: int = 0
    elapsed_seconds: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def per_second(self) -> float:
        return self.served / max(self.elapsed_seconds, 0.001)


class Client:
    """Asks one after the other."""

    def __init__(self, url: str, token: str, expected: dict[str, Answer], seen: Seen, seed: int):
        self.asked_at = 0.0
        """Monotonic seconds; 0: nothing is under way."""
        self._client = flight.FlightClient(url)
        header = self._client.authenticate_basic_token(TENANT, token)
        self._options = flight.FlightCallOptions(headers=[header])
        self._expected = expected
        self._seen = seen
        self._random = random.Random(seed)

    def run(self, until: float) -> None:
        while time.monotonic() < until:
            sql = self._random.choice(MIX)
            pause = self._ask(sql)
            if pause:
                time.sleep(min(pause, max(until - time.monotonic(), 0.0)))

    def _ask(self, sql: str) -> float:
        """Seconds after which to come back."""
        seen = self._seen
        self.asked_at = started = time.monotonic()
        command = messages.wrap(messages.new("CommandStatementQuery", query=sql))
        try:
            found = self._client.do_get(flight.Ticket(command), self._options).read_all()
        except FLIGHT_FAILURES as error:
            return self._failed(sql, from_flight(error))
        finally:
            self.asked_at = 0.0
        wrong = difference(self._expected[sql], to_answer(found))
        with seen.lock:
            seen.served += 1
            seen.seconds.append(time.monotonic() - started)
            if wrong:
                seen.wrong.append(f"{sql}: {wrong}")
        return 0.0

    def _failed(self, sql: str, error: AccelError) -> float:
        with self._seen.lock:
            if isinstance(error, ResourceExhausted) and error.retry_after_ms:
                self._seen.refused[error.code] += 1
                return error.retry_after_ms / 1000
            self._seen.unexplained[f"{error.code}: {error} ({sql[:60]})"] += 1
        return 0.1


def phase(
    cluster: LocalAccelCluster,
    token: str,
    expected: dict[str, Answer],
    clients: int,
    seconds: float,
) -> Seen:
    seen = Seen()
    urls = cluster.gateway_urls
    asking = [Client(urls[i % len(urls)], token, expected, seen, i) for i in range(clients)]
    started = time.monotonic()
    until = started + seconds
    threads = [
        threading.Thread(target=one.run, args=(until,), name=f"client-{i}", daemon=True)
        for i, one in enumerate(asking)
    ]
    for thread in threads:
        thread.start()
    give_up_at = until + HANG_SECONDS
    for thread in threads:
        thread.join(max(give_up_at - time.monotonic(), 0.0))
    seen.elapsed_seconds = time.monotonic() - started
    seen.hangs = sum(thread.is_alive() for thread in threads)
    seen.hangs += sum(took > HANG_SECONDS for took in seen.seconds)
    return seen


def write_hits(directory: Path, rows: int) -> None:
    engine = duckdb.connect()
    engine.execute("SELECT setseed(0.42)")
    for part in range(4):
        engine.execute(
            f"""
            COPY (
                SELECT {part} * 25 + (i % 25) AS region, (i * 7919 + {part}) % 300000 AS user_id,
                    CASE WHEN i % 20 = 0 THEN i % 17 ELSE 0 END AS adv,
                    (i * 31) % 2000 AS width, i % 86400 AS second,
                    CASE WHEN i % 3 = 0 THEN 'phrase ' || hash(i) % 40000 ELSE '' END AS phrase,
                    'http://' || CASE WHEN i % 50 = 0 THEN 'google' ELSE 'site' || i % 300 END
                        || '.example/' || hash(i * 3) % 20000 AS url
                FROM range({rows // 4}) t(i)
            ) TO '{directory}/hits-{part}.parquet' (ROW_GROUP_SIZE 100000)
            """
        )
    engine.close()


def answers(directory: Path) -> dict[str, Answer]:
    with duckdb.connect() as engine:
        engine.execute(f"CREATE VIEW hits AS FROM '{directory}/*.parquet'")
        return {sql: to_answer(engine.sql(sql).to_arrow_table()) for sql in MIX}


def show(name: str, seen: Seen) -> None:
    times = sorted(seen.seconds) or [0.0]
    print(
        f"{name:10} {seen.served:7} {seen.per_second:9.1f} "
        f"{statistics.median(times) * 1000:8.0f} {times[int(0.99 * (len(times) - 1))] * 1000:8.0f} "
        f"{seen.refused.total():8} {seen.unexplained.total():11} {len(seen.wrong):6} {seen.hangs:6}"
    )


def judge(before: Seen, storm: Seen, after: Seen) -> list[str]:
    """What is broken."""
    broken = []
    for name, seen in (("before", before), ("storm", storm), ("after", after)):
        broken += [f"{name}: {n} x {text}" for text, n in seen.unexplained.most_common(5)]
        broken += [f"{name}: wrong answer: {text}" for text in seen.wrong[:3]]
        if seen.hangs:
            broken.append(f"{name}: {seen.hangs} queries hang")
    if not storm.refused:
        broken.append("nobody was refused: this was no storm")
    if not storm.served:
        broken.append("nobody was served in the storm")
    if after.per_second < AFTER_AT_LEAST * before.per_second:
        broken.append(
            f"throughput after the storm is {after.per_second / before.per_second:.2f} of that "
            f"before; at least {AFTER_AT_LEAST} is wanted"
        )
    return broken


def run(options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="accel-storm-") as name:
        directory = Path(name)
        write_hits(directory, options.rows)
        expected = answers(directory)
        with LocalAccelCluster(LocalOptions(gateways=options.gateways)) as cluster:
            token = cluster.create_tenant(TENANT, QUOTA)
            source = SourceSpec(connector="parquet", options=(("path", str(directory)),))
            cluster.create_dataset(Dataset(tenant=TenantId(TENANT), name="hits", source=source))
            cluster.publish(TENANT, "hits", timeout_seconds=300)
            cluster.wait_routed()
            calm = max(options.seconds / 4, 5.0)
            phase(cluster, token, expected, 1, 2.0)  # plans are made, memory is touched
            print(
                f"{'':10} {'served':>7} {'per sec':>9} {'p50 ms':>8} {'p99 ms':>8} {'refused':>8} "
                f"{'unexplained':>11} {'wrong':>6} {'hangs':>6}"
            )
            before = phase(cluster, token, expected, CONCURRENCY, calm)
            show("before", before)
            storm = phase(cluster, token, expected, options.clients, options.seconds)
            show("storm", storm)
            after = phase(cluster, token, expected, CONCURRENCY, calm)
            show("after", after)
            print(f"refused in the storm: {dict(storm.refused)}")
    broken = judge(before, storm, after)
    for line in broken:
        print(f"BROKEN  {line}")
    return 1 if broken else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--gateways", type=int, default=2)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"load before: {load:.1f} on {os.cpu_count()} cores")
    return run(options)


if __name__ == "__main__":
    sys.exit(main())
