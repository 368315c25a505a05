"""Latency of a one-row query: straight from an executor, through a gateway, through ADBC.

    python benchmarks/gateway.py [--queries 2000]

Everything runs for real on this machine: etcd, one executor, one gateway process. Prints p50 and
p99 in milliseconds, and what the gateway adds. Compare rows of one run only: the machine decides
the rest.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

from adbc_driver_flightsql import dbapi
from executor_builders import EPOCH, TENANT, make_shard, make_spec, make_ticket, signed
from pyarrow import flight

from accel_dask.config import StoreSettings
from accel_dask.model.epoch import Epoch, EpochState, ShardSummary
from accel_dask.model.executor import Executor, ExecutorPlan, ExecutorState
from accel_dask.model.ids import ShardId
from accel_dask.model.placement import Serving
from accel_dask.model.snapshot import Column
from accel_dask.model.tenant import Tenant, User, hash_token
from accel_dask.model.ticket import shard_relation
from accel_dask.store.connect import open_store
from accel_dask.store.etcd_server import EmbeddedEtcd
from accel_dask.store.records import ensure_meta, put_record
from accel_dask.worker_plugin.executors import ExecutorHost
from accel_dask.worker_plugin.running_executor import RunningExecutor
from flightsql_gateway.flight_sql import messages

SQL = "SELECT id, store, amount FROM sales WHERE id = 77"
TOKEN = "benchmark"


@contextmanager
def processes(directory: Path) -> Iterator[tuple[RunningExecutor, ShardId, bytes, str]]:
    """An executor with one shard, the key of its tickets, and a gateway's URL."""
    shard_dir = directory / "shards"
    shard_dir.mkdir()
    shard = make_shard(shard_dir)
    with EmbeddedEtcd(directory / "etcd", 1, allow_faulty=True) as etcd:
        settings = StoreSettings(endpoints=etcd.endpoints, prefix="/accel/benchmark/v1")
        with open_store(settings) as store:
            key = ensure_meta(store, "benchmark").ticket_key
            host = ExecutorHost(directory / "run")
            host.start()
            try:
                spec = make_spec(shard_dir, shard, ticket_key=key)
                executor = host.launch(spec)
                for record in (
                    Tenant(tenant=TENANT),
                    User(name="ann", tenant=TENANT, token_sha256=hash_token(TOKEN)),
                    Epoch(
                        tenant=TENANT,
                        dataset="sales",
                        number=EPOCH,
                        snapshot_id=None,
                        sequence=1,
                        state=EpochState.READY,
                        replicas=1,
                        columns=(Column(name="id", type="BIGINT"),),
                        shards=(ShardSummary(shard_id=shard, rows=None, source_bytes=0),),
                    ),
                    Serving(tenant=TENANT, dataset="sales", epoch=EPOCH, since_ns=0),
                    ExecutorPlan(
                        worker=spec.worker,
                        tenant=TENANT,
                        generation=1,
                        attachments=spec.attachments,
                        quota=spec.quota,
                    ),
                    Executor(
                        worker=spec.worker,
                        tenant=TENANT,
                        generation=1,
                        incarnation=executor.incarnation,
                        state=ExecutorState.READY,
                        address=executor.address,
                        ticket_port=executor.ticket_port,
                    ),
                ):
                    put_record(store, record)
                with gateway(settings) as url:
                    yield executor, shard, bytes.fromhex(key), url
            finally:
                host.close()


@contextmanager
def gateway(settings: StoreSettings) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "flightsql_gateway", "--port", "0", "--log-level", "WARNING"],
        stdout=subprocess.PIPE,
        text=True,
        env={
            **os.environ,
            "ACCEL_STORE_ENDPOINTS": ",".join(settings.endpoints),
            "ACCEL_STORE_PREFIX": settings.prefix,
        },
    )
    assert process.stdout is not None
    try:
        yield process.stdout.readline().split()[1]
    finally:
        process.terminate()
        process.wait(20)


def measure(name: str, ask: Callable[[], int], count: int) -> float:
    """Ask one after the other; the p50 in milliseconds."""
    for _ in range(max(count // 20, 5)):
        assert ask() == 1
    times = []
    for _ in range(count):
        started = time.perf_counter()
        rows = ask()
        times.append((time.perf_counter() - started) * 1000)
        assert rows == 1
    times.sort()
    p50, p99 = times[len(times) // 2], times[int(len(times) * 0.99)]
    print(f"{name:46} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms   ({count} queries)", flush=True)
    return p50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--queries", type=int, default=2000)
    count = parser.parse_args().queries
    with (
        tempfile.TemporaryDirectory(prefix="accel-benchmark-", dir="/dev/shm") as directory,
        processes(Path(directory)) as (executor, shard, key, url),
    ):
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        sql = SQL.replace("sales", f"{shard_relation(shard)} AS sales")
        with flight.connect(executor.address) as direct:
            straight = measure(
                "executor, Flight, 1 call",
                lambda: direct.do_get(signed(make_ticket(sql, shard), key)).read_all().num_rows,
                count,
            )
        with flight.connect(url) as client:
            options = flight.FlightCallOptions(
                headers=[client.authenticate_basic_token("ann", TOKEN)]
            )
            command = messages.wrap(messages.new("CommandStatementQuery", query=SQL))
            through = measure(
                "gateway, Flight, 1 call",
                lambda: client.do_get(flight.Ticket(command), options).read_all().num_rows,
                count,
            )
            descriptor = flight.FlightDescriptor.for_command(command)

            def info_and_get() -> int:
                info = client.get_flight_info(descriptor, options)
                return int(client.do_get(info.endpoints[0].ticket, options).read_all().num_rows)

            measure("gateway, Flight SQL, 2 calls", info_and_get, count)
        with dbapi.connect(
            url, db_kwargs={"username": "ann", "password": TOKEN}, autocommit=True
        ) as connection:
            with connection.cursor() as kept:

                def same_cursor() -> int:
                    kept.execute(SQL)
                    return int(kept.fetch_arrow_table().num_rows)

                measure("gateway, ADBC, same cursor", same_cursor, count // 2)

            def new_cursor() -> int:
                with connection.cursor() as cursor:
                    cursor.execute(SQL)
                    return int(cursor.fetch_arrow_table().num_rows)

            measure("gateway, ADBC, new cursor (4 calls)", new_cursor, count // 2)
        print(f"the gateway adds {through - straight:.2f} ms at p50 to a call")


if __name__ == "__main__":
    main()
