"""Executors in figures: how fast they start, answer, stop and come back.

    python benchmarks/executor.py [--rows 2000000] [--repeat 20]

Prints one line per figure: median, 99th percentile and worst of `--repeat` tries or more, against
its bar where one is set. Exit code 1 if a bar is missed. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import pyarrow as pa
from pyarrow import flight

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from executor_builders import (
    make_input,
    make_shard,
    make_source,
    make_spec,
    make_ticket,
    signed,
)

from accel_dask.model.ids import ShardId
from accel_dask.model.tenant import MIB, Quota
from accel_dask.model.ticket import shard_relation
from accel_dask.worker_plugin.executors import ExecutorHost
from accel_dask.worker_plugin.running_executor import RunningExecutor

SALES = (
    "SELECT i AS id, (i % 100)::INTEGER AS store, (i * 7 % 1000) / 10 AS amount, "
    "['ab', 'cd', 'ef'][i % 3 + 1] AS code, DATE '2024-01-01' + (i // {per_day})::INTEGER AS day "
    "FROM range({rows}) t(i) ORDER BY day"
)
ENDLESS = "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range + b.range % 9 = 7"


class Report:
    """Figures, and whether each bar was kept."""

    def __init__(self) -> None:
        self.missed = 0

    def line(
        self,
        name: str,
        values: list[float],
        unit: str = "ms",
        *,
        bar: float = 0.0,
        hard: float = 0.0,
    ) -> None:
        """`bar` is for the median, `hard` for the worst; 0: none."""
        values = sorted(values)
        worst = values[-1]
        p99 = values[min(int(len(values) * 0.99), len(values) - 1)]
        verdict = ""
        for limit, found, of in (
            (bar, statistics.median(values), "median"),
            (hard, worst, "worst"),
        ):
            if limit:
                self.missed += found > limit
                kept = "kept" if found <= limit else "MISSED"
                verdict += f"   {of} <= {limit:g} {unit}: {kept}"
        print(
            f"{name:58} median {statistics.median(values):8.2f}  p99 {p99:8.2f}  "
            f"worst {worst:8.2f} {unit}{verdict}",
            flush=True,
        )


def cpu_ms(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def timed(work: Callable[[], object], times: int) -> list[float]:
    """Milliseconds of each of `times` runs."""
    taken = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        taken.append((time.perf_counter() - started) * 1000)
    return taken


class Bench:
    def __init__(self, directory: Path, rows: int, repeat: int) -> None:
        self.repeat = repeat
        self.report = Report()
        self.shard_dir = directory / "shards"
        self.shard_dir.mkdir()
        self.shard = make_shard(self.shard_dir, SALES.format(rows=rows, per_day=rows // 365))
        self.table = shard_relation(self.shard)
        self.host = ExecutorHost(directory / "run")

    def run(self) -> int:
        self.report.line("zygote started and warm", timed(self.host.start, 1))
        try:
            self.launches()
            executor = self.launch()
            self.queries(executor)
            self.together()
            self.stops(executor)
            self.comebacks(executor)
        finally:
            self.host.close()
        return min(self.report.missed, 1)

    def launch(self, *, empty: bool = False) -> RunningExecutor:
        overrides = {"attachments": ()} if empty else {}
        return self.host.launch(make_spec(self.shard_dir, self.shard, quota=Quota(), **overrides))

    def launches(self) -> None:
        starts, private = [], []
        for _ in range(self.repeat):
            started = time.perf_counter()
            executor = self.launch()
            starts.append((time.perf_counter() - started) * 1000)
            executor.kill()
            executor.wait_ended(5)
            bare = self.launch(empty=True)
            private.append(bare.stats().private_bytes / MIB)
            bare.kill()
        self.report.line("executor READY, forked from the warm zygote", starts, bar=150, hard=500)
        self.report.line("private memory before data", private, "MiB", hard=60)

    def queries(self, executor: RunningExecutor) -> None:
        client = flight.connect(executor.address)
        with duckdb.connect(":memory:", config={"threads": "2"}) as database:
            file = self.shard_dir / f"{self.shard}.duckdb"
            database.execute(f"ATTACH '{file}' AS \"s_{self.shard}\" (READ_ONLY)")
            for name, sql in {
                "1 row": "SELECT 1 AS x",
                "7 days by store": f"SELECT store, count(*), sum(amount) FROM {self.table} WHERE "
                "day BETWEEN '2024-03-01' AND '2024-03-07' GROUP BY store",
                "10 000 rows": f"SELECT * FROM {self.table} LIMIT 10000",
                "1 000 000 rows": f"SELECT * FROM {self.table} LIMIT 1000000",
            }.items():
                times = self.repeat * (1 if name.startswith("1 000 000") else 20)
                ticket = make_ticket(sql, self.shard)

                def ask(ticket: flight.Ticket = ticket) -> pa.Table:  # type: ignore[assignment]
                    return client.do_get(signed(ticket)).read_all()

                def plain(sql: str = sql) -> int:
                    with database.cursor() as cursor:
                        reader = cursor.sql(sql).to_arrow_reader(65536)
                        return sum(batch.num_rows for batch in reader)

                timed(ask, 3)
                self.report.line(f"plain DuckDB: {name}", timed(plain, times))
                self.report.line(f"executor over Flight: {name}", timed(ask, times))
        self.many_clients(executor)

    def many_clients(self, executor: RunningExecutor) -> None:
        sql = f"SELECT store, count(*) FROM {self.table} WHERE day = '2024-03-01' GROUP BY store"
        taken: list[float] = []

        def work() -> None:
            with flight.connect(executor.address) as client:
                taken.extend(
                    timed(
                        lambda: client.do_get(signed(make_ticket(sql, self.shard))).read_all(),
                        self.repeat * 5,
                    )
                )

        threads = [threading.Thread(target=work) for _ in range(4)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.report.line("4 clients at once, 1 day by store", taken)
        print(f"{'':58} {len(taken) / (time.perf_counter() - started):.0f} queries/s")

    def together(self) -> None:
        """A one-row aggregate over four small shards, on one executor and on two and four."""
        small = SALES.format(rows=100_000, per_day=274)
        shards = [
            make_shard(self.shard_dir, f"SELECT * FROM ({small}) WHERE id % 4 = {i}")
            for i in range(4)
        ]
        for hosts in (1, 2, 4):
            self.one_row_on(hosts, shards)

    def one_row_on(self, hosts: int, shards: list[ShardId]) -> None:
        mine = [shards[number::hosts] for number in range(hosts)]
        executors = [
            self.host.launch(make_spec(self.shard_dir, *ids, generation=number, quota=Quota()))
            for number, ids in enumerate(mine)
        ]
        parts = [
            " UNION ALL ".join(f"SELECT sum(amount) AS a FROM {shard_relation(i)}" for i in ids)
            for ids in mine
        ]
        others = ' UNION ALL SELECT * FROM "input_0"' if hosts > 1 else ""
        sql = f"SELECT sum(a) FROM ({parts[0]}{others})"

        def ask() -> pa.Table:
            pieces = [
                make_source(executors[number].address, parts[number], *mine[number])
                for number in range(1, hosts)
            ]
            inputs = (make_input(*pieces),) if pieces else ()
            return client.do_get(signed(make_ticket(sql, *mine[0], inputs=inputs))).read_all()

        with flight.connect(executors[0].address) as client:
            timed(ask, 20)
            cpu = -sum(cpu_ms(executor.pid) for executor in executors)
            taken = timed(ask, self.repeat * 20)
            cpu += sum(cpu_ms(executor.pid) for executor in executors)
        self.report.line(f"one row of 4 shards on {hosts} executor(s)", taken)
        print(f"{'':58} {cpu / len(taken):.1f} ms of CPU a query, of all executors together")
        for executor in executors:
            executor.kill()

    def stops(self, executor: RunningExecutor) -> None:
        client = flight.connect(executor.address)

        def late() -> None:
            try:
                client.do_get(signed(make_ticket(ENDLESS, timeout_ms=100))).read_all()
            except flight.FlightTimedOutError:
                return
            raise AssertionError("the deadline was not kept")

        overshoot = [taken - 100 for taken in timed(late, self.repeat)]
        self.report.line("deadline overshoot of an endless query", overshoot, bar=100)

    def comebacks(self, executor: RunningExecutor) -> None:
        noticed, answering = [], []
        for _ in range(self.repeat):
            started = time.perf_counter()
            os.kill(executor.pid, signal.SIGKILL)
            executor.wait_ended(5)
            noticed.append((time.perf_counter() - started) * 1000)
            executor = self.launch()
            with flight.connect(executor.address) as client:
                ticket = make_ticket(f"SELECT count(*) FROM {self.table}", self.shard)
                client.do_get(signed(ticket)).read_all()
            answering.append((time.perf_counter() - started) * 1000)
        self.report.line("kill -9 of an executor: noticed", noticed)
        self.report.line("kill -9 of an executor: another answers", answering, hard=500)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--repeat", type=int, default=20)
    options = parser.parse_args()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as directory:
        return Bench(Path(directory), options.rows, options.repeat).run()


if __name__ == "__main__":
    sys.exit(main())
