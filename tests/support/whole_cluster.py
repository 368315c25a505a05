"""What tests of a whole cluster share: a small lakehouse, and clients that query all the time."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
from adbc_driver_flightsql import dbapi
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.exceptions import CommitFailedException

from accel_dask.local import LocalAccelCluster
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import TenantId


@dataclass
class Lakehouse:
    """An Iceberg catalog with tables whose every row names the snapshot that wrote it."""

    directory: Path

    def __post_init__(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.catalog_uri = f"sqlite:///{self.directory}/catalog.db"
        self.warehouse = f"file://{self.directory}"
        self.catalog = SqlCatalog("test", uri=self.catalog_uri, warehouse=self.warehouse)
        self.catalog.create_namespace_if_not_exists("ns")

    def write(self, table: str, version: int, rows: int = 1000) -> tuple[int, int, int, int]:
        """Replace `table` by `rows` rows of `version`; the answer to CHECK on it."""
        data = pa.table(
            {
                "version": pa.array([version] * rows, pa.int64()),
                "value": pa.array([(i * 7919 + version) % 10007 for i in range(rows)], pa.int64()),
                "part": pa.array([i % 4 for i in range(rows)], pa.int64()),
            }
        )
        name = f"ns.{table}"
        if not self.catalog.table_exists(name):
            self.catalog.create_table(name, schema=data.schema).append(data)
        else:
            self._overwrite(name, data)
        return (rows, sum(data["value"].to_pylist()), version, version)

    def _overwrite(self, name: str, data: pa.Table) -> None:
        """Tries again when the master's tag on the table came in between."""
        for _ in range(20):
            try:
                self.catalog.load_table(name).overwrite(data)
            except CommitFailedException:
                continue
            return
        raise AssertionError(f"{name} is too busy to commit to")

    def dataset(self, tenant: str, table: str, **fields: Any) -> Dataset:
        options = {
            "catalog_uri": self.catalog_uri,
            "warehouse": self.warehouse,
            "table": f"ns.{table}",
        }
        source = SourceSpec(connector="iceberg", options=tuple(sorted(options.items())))
        return Dataset(tenant=TenantId(tenant), name=table, source=source, **fields)


CHECK = "SELECT count(*), CAST(sum(value) AS BIGINT), min(version), max(version) FROM {table}"


@dataclass
class Load:
    """What clients that query all the time have seen."""

    answers: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    slowest_seconds: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def total(self) -> int:
        return sum(self.answers.values())

    def wait_more(self, count: int = 20, seconds: float = 30.0) -> None:
        """Wait until `count` further answers have come."""
        target = self.total + count
        wait_until(lambda: self.total >= target or bool(self.errors), seconds)
        assert self.errors == []


@contextmanager
def adbc(url: str, user: str, token: str) -> Iterator[Any]:
    with dbapi.connect(
        url, db_kwargs={"username": user, "password": token}, autocommit=True
    ) as connection:
        yield connection


def ask(url: str, user: str, token: str, sql: str) -> list[tuple[Any, ...]]:
    with adbc(url, user, token) as connection, connection.cursor() as cursor:
        cursor.execute(sql)
        rows: list[tuple[Any, ...]] = cursor.fetchall()
        return rows


@contextmanager
def querying(
    cluster: LocalAccelCluster, user: str, token: str, sql: str, clients: int = 2
) -> Iterator[Load]:
    """Clients that ask `sql` one after the other, on connections they keep."""
    load = Load()
    lock = threading.Lock()

    def run() -> None:
        with adbc(cluster.gateway_urls[0], user, token) as connection:
            while not load.stop.is_set():
                started = time.monotonic()
                try:
                    with connection.cursor() as cursor:
                        cursor.execute(sql)
                        rows = cursor.fetchall()
                except dbapi.Error as error:
                    with lock:
                        load.errors.append(str(error))
                    return
                with lock:
                    load.answers[tuple(rows[0])] += 1
                    load.slowest_seconds = max(load.slowest_seconds, time.monotonic() - started)

    threads = [threading.Thread(target=run, name=f"client-{i}") for i in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield load
    finally:
        load.stop.set()
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive(), "a client hangs"


def is_alive(process: psutil.Process) -> bool:
    """Whether it still runs: a zombie does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait for something outside the store (a process, a file, a port)."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "a condition did not hold in time"
        time.sleep(0.01)
