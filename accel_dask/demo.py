"""`accel-dask demo`: the main job from end to end, on real parts and real data.

Every step checks what it shows against DuckDB reading the same snapshot itself; a step that
does not hold ends the demo with exit code 1.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from accel_dask import admin
from accel_dask.connectors.olap.servers.processes import NotInstalled
from accel_dask.connectors.olap.servers.sail import SailServer
from accel_dask.demo_data import DIMENSIONS, NAMESPACE, Lakehouse, refresh_flights, write_lakehouse
from accel_dask.errors import AccelError, EngineUnavailable
from accel_dask.flight_client import FlightSession
from accel_dask.local import LocalAccelCluster
from accel_dask.model.cluster import ClusterView
from accel_dask.model.epoch import Epoch
from accel_dask.model.fallback import FallbackPolicy, FallbackSpec
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.tenant import MIB, Quota

AIRLINE, WEATHER = "skyways", "stormwatch"

DASHBOARD: tuple[tuple[str, str], ...] = (
    ("flights of a day", "SELECT count(*) AS flights FROM flights WHERE day = DATE '2013-06-12'"),
    (
        "delay by carrier in June",
        (
            "SELECT a.name, count(*) AS flights, round(avg(f.dep_delay), 2) AS avg_delay "
            "FROM flights f JOIN airlines a ON f.carrier = a.carrier "
            "WHERE f.day BETWEEN DATE '2013-06-01' AND DATE '2013-06-30' "
            "GROUP BY a.name ORDER BY flights DESC, a.name"
        ),
    ),
    (
        "top destinations",
        (
            "SELECT p.name, count(*) AS flights, sum(f.distance) AS miles "
            "FROM flights f JOIN airports p ON f.dest = p.faa "
            "GROUP BY p.name ORDER BY flights DESC, p.name LIMIT 5"
        ),
    ),
    (
        "cancelled by month",
        (
            "SELECT month(day) AS month, count(*) AS cancelled FROM flights "
            "WHERE dep_time IS NULL GROUP BY month ORDER BY month"
        ),
    ),
    (
        "oldest planes in the air",
        (
            "SELECT pl.manufacturer, min(pl.year) AS oldest, count(*) AS flights "
            "FROM flights f JOIN planes pl USING (tailnum) WHERE pl.year IS NOT NULL "
            "GROUP BY pl.manufacturer ORDER BY oldest, pl.manufacturer LIMIT 5"
        ),
    ),
)

MEMORY_MIB = {AIRLINE: 768, WEATHER: 512}
"""Of each tenant on a host."""

CHECKSUM = (
    "SELECT count(*) AS n, sum(coalesce(dep_delay, 0)) AS delay, sum(flight) AS s FROM flights"
)

WHOLE_YEAR = (
    "SELECT carrier, month(day) AS month, count(*) AS flights, sum(distance) AS miles "
    "FROM flights GROUP BY carrier, month(day) ORDER BY carrier, month"
)


class StepFailed(AccelError):
    """A step of the demo did not hold."""


@dataclass(slots=True)
class _Watcher:
    """What the queries that ran through the refresh saw."""

    answers: Counter[tuple[Any, ...]] = field(default_factory=Counter)
    errors: list[str] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)


class Demo:
    """The steps, in order; each prints what it did."""

    def __init__(self, cluster: LocalAccelCluster, console: Console) -> None:
        self._cluster = cluster
        self._console = console
        self._tokens: dict[str, str] = {}
        self._started = time.monotonic()
        self._step_number = 0
        self._engine: SailServer | None = None

    def run(self) -> None:
        """All steps.

        Raises:
            AccelError: a step did not hold, or a part failed.
        """
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write_lakehouse, self._cluster.directory / "lakehouse")
            self._step("Start the cluster: etcd, Dask scheduler, worker host, gateway")
            self._cluster.start(lambda text: self._say(f"[dim]{text}[/]"))
            self._step("Write the upstream lakehouse: 336,776 real flights in Iceberg, by day")
            lakehouse = writing.result()
        self._say(f"catalog {lakehouse.catalog_uri}")
        self._create_tenants(lakehouse)
        self._publish_all()
        self._query(lakehouse)
        self._refresh_under_load(lakehouse)
        self._isolation()
        self._fall_back(lakehouse)
        self._summary()

    def close(self) -> None:
        """End the engine, if one was started."""
        if self._engine is not None:
            self._engine.close()

    @property
    def tokens(self) -> dict[str, str]:
        return dict(self._tokens)

    # Steps

    def _create_tenants(self, lakehouse: Lakehouse) -> None:
        self._step("Two tenants, each with its own quota, executor process and token")
        self._tokens = declare(self._cluster, lakehouse)
        for tenant, memory in MEMORY_MIB.items():
            self._say(f"{tenant}: {memory} MiB per host, half of it for its executor")

    def _publish_all(self) -> None:
        self._step("Publish every dataset: plan, load, validate, READY")
        store = self._cluster.store
        requests = [
            admin.publish(store, dataset.dataset_id, by="demo") for dataset in self._datasets()
        ]
        started = time.monotonic()
        self._show_loading(requests)
        seconds = time.monotonic() - started
        for requested in requests:
            result = admin.wait_published(self._cluster.mirror, requested)
            rows = sum(shard.rows or 0 for shard in result.epoch.shards)
            self._say(f"{result.epoch} READY: {len(result.epoch.shards)} shard(s), {rows:,} rows")
        self._cluster.wait_routed()
        self._say(f"[green]all READY after {seconds:.1f} s[/]")

    def _query(self, lakehouse: Lakehouse) -> None:
        self._step("Query over ADBC, as a BI tool would; each answer checked against DuckDB")
        table = Table("query", "rows", "first row", "client ms", "server ms", "epoch", "route")
        first_answer = 0.0
        with self._adbc(AIRLINE) as connection, _oracle(lakehouse) as oracle:
            for title, sql in DASHBOARD:
                rows, client_ms = _fetch(connection, sql)
                first_answer = first_answer or time.monotonic()
                _expect(rows == oracle(sql), f"{title}: the answer differs from DuckDB's")
                receipt = self._receipts(AIRLINE)[0]
                table.add_row(
                    title,
                    str(len(rows)),
                    _short(rows[0]),
                    f"{client_ms:.1f}",
                    f"{receipt['total_ms']:.1f}",
                    _epochs(receipt),
                    str(receipt["route"]),
                )
        self._console.print(table)
        seconds = first_answer - self._started
        self._say(f"first query answered {seconds:.1f} s after the start")

    def _refresh_under_load(self, lakehouse: Lakehouse) -> None:
        self._step("A new snapshot is published while both tenants query")
        flights = DatasetId(TenantId(AIRLINE), "flights")
        before = self._serving(flights)
        with _oracle(lakehouse) as oracle:
            expected = {tuple(oracle(CHECKSUM)[0]): "old"}
        with self._clients() as watchers:
            _wait_until(lambda: all(sum(w.answers.values()) > 20 for w in watchers), 30)
            self._say(f"upstream: {refresh_flights(lakehouse)}")
            with _oracle(lakehouse) as oracle:
                expected[tuple(oracle(CHECKSUM)[0])] = "new"
            started = time.monotonic()
            for tenant in (AIRLINE, WEATHER):
                self._cluster.publish(tenant, "flights")
            self._say(f"both READY {1000 * (time.monotonic() - started):.0f} ms after publishing")
            _wait_until(lambda: self._is_gone(before), 30)
            seen = sum(sum(w.answers.values()) for w in watchers)
            _wait_until(lambda: sum(sum(w.answers.values()) for w in watchers) > seen + 20, 30)
        self._check_watchers(watchers, expected)
        after = self._serving(flights)
        self._say(f"{before} -> {after}; {before} is retired, its memory given back")
        shared = {s.shard_id for s in before.shards} & {s.shard_id for s in after.shards}
        self._say(f"{len(shared)} of {len(after.shards)} shards were taken over, not loaded again")

    def _check_watchers(
        self, watchers: list[_Watcher], expected: dict[tuple[Any, ...], str]
    ) -> None:
        counts = Counter[str]()
        for watcher in watchers:
            _expect(not watcher.errors, f"queries failed: {watcher.errors[:3]}")
            for answer, count in watcher.answers.items():
                _expect(answer in expected, f"{answer} belongs to no snapshot: {expected}")
                counts[expected[answer]] += count
        _expect(counts["old"] > 0 and counts["new"] > 0, f"both epochs must be seen: {counts}")
        latencies = sorted(ms for watcher in watchers for ms in watcher.latencies_ms)
        self._say(
            f"{counts['old']} answers from the old epoch, {counts['new']} from the new one, "
            f"[green]0 failed, 0 mixed[/]; client p50 {_percentile(latencies, 50):.1f} ms, "
            f"p99 {_percentile(latencies, 99):.1f} ms"
        )

    def _isolation(self) -> None:
        self._step("What is another tenant's does not exist")
        with self._adbc(WEATHER) as connection:
            texts = []
            for name in ("planes", "no_such_table"):
                try:
                    _fetch(connection, f"SELECT * FROM {name}")  # noqa: S608
                except connection.Error as error:
                    texts.append(str(error).replace(name, "..."))
            _expect(len(texts) == 2, "a foreign or missing table was answered")
            _expect(texts[0] == texts[1], f"the two errors differ: {texts}")
        self._say(f"planes (of {AIRLINE}) and no_such_table give {WEATHER} the same error")

    def _fall_back(self, lakehouse: Lakehouse) -> None:
        self._step("A query beyond its bounds goes to the OLAP engine behind the dataset: Sail")
        try:
            engine = self._engine = SailServer()
        except (NotInstalled, EngineUnavailable) as error:
            self._say(f"[yellow]left out:[/] {error}")
            return
        engine.register("flights", lakehouse.table("flights").location())
        options = {"uri": engine.uri, "table": "flights", "time_travel": "iceberg"}
        spec = FallbackSpec(
            engine=engine.kind,
            policy=FallbackPolicy.ON_BREACH,
            options=tuple(sorted(options.items())),
        )
        flights = DatasetId(TenantId(AIRLINE), "flights")
        admin.change_fallback(self._cluster.store, flights, spec)
        self._cluster.wait_routed()
        self._say(f"the same Iceberg table behind {flights}, asked when memory must refuse")
        with self._adbc(AIRLINE) as connection:
            expected, memory_ms = _fetch(connection, WHOLE_YEAR)
        with self._adbc(AIRLINE, max_scan_rows=100_000) as connection:
            rows, engine_ms = _fetch(connection, WHOLE_YEAR)
        receipt = self._receipts(AIRLINE)[0]
        _expect(receipt["route"] == "olap", f"the engine was not asked: {receipt['reason']}")
        _expect(rows == expected, "the engine's answer is not memory's")
        _expect(receipt["is_pinned"] is True, "the engine did not read the served snapshot")
        self._say(f"asked of memory: {len(expected)} rows in {memory_ms:.0f} ms")
        self._say("asked again with x-accel-max-scan-rows: 100000")
        self._say(f"why   {receipt['fallback']}: {receipt['reason']}")
        self._say(f"[green]the same rows[/] in {engine_ms:.0f} ms by {receipt['engine']}")

    def _summary(self) -> None:
        self._console.rule("[bold green]every step held[/]")
        gateway = self._cluster.gateway_urls[0]
        self._say(f"Dask dashboard  {self._cluster.dashboard_url}")
        self._say(f"gateway         {gateway}")
        for tenant, token in self._tokens.items():
            self._say(f"tenant {tenant:<10} user {tenant}, token {token}")
        self._say("try             accel-dask query --user skyways 'SELECT count(*) FROM flights'")

    # Parts

    def _datasets(self) -> list[Any]:
        from accel_dask.model.dataset import Dataset

        def declared(view: ClusterView) -> bool:
            return len(list(view.records(Dataset))) >= len(DIMENSIONS) + 2

        return list(self._cluster.mirror.wait_for(declared, 10).records(Dataset))

    def _show_loading(self, requests: list[admin.Requested]) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn())
        with Progress(*columns, MofNCompleteColumn(), console=self._console) as progress:
            tasks = {
                requested: progress.add_task(str(requested.dataset), total=None)
                for requested in requests
            }

            def show(view: ClusterView) -> bool:
                for requested, task in tasks.items():
                    epoch = next(iter(reversed(view.epochs_of(requested.dataset))), None)
                    if epoch is not None:
                        progress.update(
                            task,
                            total=len(epoch.shards),
                            completed=sum(
                                1 for s in epoch.shards if view.ready_replicas(s.shard_id)
                            ),
                            description=f"{requested.dataset} {epoch.state}",
                        )
                return all(admin.publish_result(view, r) is not None for r in requests)

            self._cluster.mirror.wait_for(show, 120, "every dataset's epoch")

    @contextmanager
    def _adbc(self, tenant: str, **limits: int) -> Iterator[Any]:
        """A client's connection, with limits of its own below the tenant's."""
        from adbc_driver_flightsql import dbapi

        headers = {
            f"adbc.flight.sql.rpc.call_header.x-accel-{name.replace('_', '-')}": str(limit)
            for name, limit in limits.items()
        }

        with dbapi.connect(
            self._cluster.gateway_urls[0],
            db_kwargs={"username": tenant, "password": self._tokens[tenant], **headers},
            autocommit=True,
        ) as connection:
            yield connection

    def _receipts(self, tenant: str) -> list[dict[str, Any]]:
        with FlightSession(self._cluster.gateway_urls[0], tenant, self._tokens[tenant]) as session:
            return session.receipts(1)

    @contextmanager
    def _clients(self) -> Iterator[list[_Watcher]]:
        stop = threading.Event()
        watchers = [_Watcher() for _ in range(4)]
        threads = [
            threading.Thread(
                target=self._query_until,
                args=(stop, watcher, (AIRLINE, WEATHER)[index % 2]),
                name=f"demo-client-{index}",
                daemon=True,
            )
            for index, watcher in enumerate(watchers)
        ]
        for thread in threads:
            thread.start()
        try:
            yield watchers
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)

    def _query_until(self, stop: threading.Event, watcher: _Watcher, tenant: str) -> None:
        with self._adbc(tenant) as connection:
            while not stop.is_set():
                try:
                    rows, ms = _fetch(connection, CHECKSUM)
                except connection.Error as error:
                    watcher.errors.append(str(error))
                    return
                watcher.answers[tuple(rows[0])] += 1
                watcher.latencies_ms.append(ms)

    def _serving(self, dataset: DatasetId) -> Epoch:
        epoch = self._cluster.view.serving_epoch(dataset)
        assert epoch is not None
        return epoch

    def _is_gone(self, epoch: Epoch) -> bool:
        return self._cluster.view.epoch(epoch.dataset_id, epoch.number) is None

    def _step(self, title: str) -> None:
        self._step_number += 1
        self._console.print(
            f"\n[bold]{self._step_number}. {title}[/] "
            f"[dim]({time.monotonic() - self._started:.1f} s)[/]"
        )

    def _say(self, text: str) -> None:
        self._console.print(f"   {text}", highlight=False)


def declare(cluster: LocalAccelCluster, lakehouse: Lakehouse) -> dict[str, str]:
    """Create the demo's tenants and declare their datasets; the tenants' tokens."""
    tokens = {}
    for tenant, memory in MEMORY_MIB.items():
        quota = Quota(memory_bytes_per_host=memory * MIB, executor_memory_bytes=(memory // 2) * MIB)
        tokens[tenant] = cluster.create_tenant(tenant, quota)
    for table in ("flights", "airlines", "airports", "planes"):
        cluster.create_dataset(lakehouse.dataset(AIRLINE, table, shard_target_bytes=MIB))
    for table in ("flights", "weather"):
        cluster.create_dataset(lakehouse.dataset(WEATHER, table, shard_target_bytes=MIB))
    return tokens


@contextmanager
def _oracle(lakehouse: Lakehouse) -> Iterator[Callable[[str], list[tuple[Any, ...]]]]:
    """DuckDB over what pyiceberg reads of the current snapshots."""
    import duckdb

    catalog = lakehouse.catalog()
    with duckdb.connect() as connection:
        for table in ("flights", *DIMENSIONS):
            rows = catalog.load_table(f"{NAMESPACE}.{table}").scan().to_arrow()
            connection.register(table, rows)
        yield lambda sql: connection.execute(sql).fetchall()


def _fetch(connection: Any, sql: str) -> tuple[list[tuple[Any, ...]], float]:
    started = time.perf_counter()
    with connection.cursor() as cursor:
        cursor.execute(sql)
        rows = cursor.fetchall()
    return rows, 1000 * (time.perf_counter() - started)


def _expect(held: bool, otherwise: str) -> None:
    if not held:
        raise StepFailed(otherwise)


def _wait_until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise StepFailed(f"a condition did not hold within {seconds:.0f} s")
        time.sleep(0.02)


def _percentile(ordered: list[float], percent: int) -> float:
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)] if ordered else 0.0


def _short(row: tuple[Any, ...]) -> str:
    text = ", ".join(str(value) for value in row)
    return text if len(text) <= 40 else text[:39] + "…"


def _epochs(receipt: dict[str, Any]) -> str:
    return ", ".join(f"{e['dataset']}@{e['epoch']}" for e in receipt["datasets"])
