"""Queries that memory does not answer, through a real gateway to real engines, with equal rows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from answers import Answer, difference, to_answer
from freezing import frozen
from gateway_world import World, flights, wait_until
from olap_world import EngineWorld, Worlds, busy_seconds, start_world, started

from accel_dask.connectors.olap.servers.processes import NotInstalled, free_port
from accel_dask.errors import (
    AccelError,
    ByteLimit,
    ColdReadFailed,
    CpuLimit,
    DeadlineExceeded,
    ExecutorUnavailable,
    MemoryLimit,
    ResourceExhausted,
    RowLimit,
    ScanLimit,
    StaleEpoch,
)
from accel_dask.flight_errors import from_flight
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.epoch import Epoch, EpochState
from accel_dask.model.fallback import FallbackPolicy, FallbackSpec
from accel_dask.model.ids import DatasetId, EpochNumber, TenantId
from accel_dask.model.snapshot import SnapshotId
from accel_dask.model.tenant import Quota
from accel_dask.scheduler_plugin.page import render_tables
from accel_dask.scheduler_plugin.summary import summarize
from accel_dask.status import status_tables
from accel_dask.store.records import delete_record, put_record, read_view
from flightsql_gateway import execute
from flightsql_gateway.auth import Identity
from flightsql_gateway.query import Query
from flightsql_gateway.receipts import Receipt

SQL = (
    "select carrier, count(*) as n, sum(delay) as total, min(id) as first from flights "
    "group by carrier having count(*) > 1 order by carrier"
)
SLOW = (
    f"select count(*) as n from {', '.join(f'flights f{i}' for i in range(5))} "
    "where f0.id + f1.id + f2.id + f3.id + f4.id = 7"
)
TENANT = TenantId("acme")


@pytest.fixture(scope="module", params=("sail", "mariadb", "postgresql"))
def engine(
    request: pytest.FixtureRequest, worlds: Worlds, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineWorld]:
    """An engine of its own with `flights`."""
    started(worlds, request.param)
    try:
        found = start_world(
            request.param, {"flights": flights()}, tmp_path_factory.mktemp("flights")
        )
    except NotInstalled as error:
        pytest.skip(str(error))
    yield found
    found.close()


def fallback_to(engine: EngineWorld, policy: FallbackPolicy, **options: str) -> FallbackSpec:
    server = engine.server
    found = {
        "uri": server.uri,
        "dialect": server.dialect,
        "table": ".".join(engine.names["flights"]),
    }
    if engine.name != "sail":
        found["user"] = {"mariadb": "root", "postgresql": "accel"}[engine.name]
    else:
        found["time_travel"] = "iceberg"
    return FallbackSpec(
        engine=server.kind, policy=policy, options=tuple(sorted({**found, **options}.items()))
    )


def statements(engine: EngineWorld) -> list[str]:
    """What the server itself says it is running for us, but for the question. Sail keeps no such
    list: it is at work while it uses the processor."""
    if engine.name == "mariadb":
        sql = "select info from information_schema.processlist where info like '%flights%'"
        return [row[0] for row in engine.raw(sql) if "processlist" not in row[0]]
    if engine.name == "postgresql":
        sql = (
            "select query::text from pg_stat_activity where state = 'active' "
            "and query like '%flights%' and query not like '%pg_stat_activity%'"
        )
        return [row[0] for row in engine.raw(sql)]
    before = busy_seconds(engine)
    threading.Event().wait(0.4)
    # Little, for others may want the processor too: a join that has the rest of it is still there.
    return ["busy"] if busy_seconds(engine) - before > 0.04 else []


def wait_at_work(engine: EngineWorld) -> None:
    before = busy_seconds(engine)
    deadline = time.monotonic() + 20
    while not (
        busy_seconds(engine) - before > 0.1 if engine.name == "sail" else statements(engine)
    ):
        assert time.monotonic() < deadline, "it did not begin"
        time.sleep(0.02)


class FallbackWorld(World):
    """A gateway whose dataset `flights` has an engine behind it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.is_over = threading.Event()
        self._asides = ThreadPoolExecutor(1)

    def close(self) -> None:
        self.is_over.set()
        self._asides.shutdown()
        super().close()

    def hang(self) -> None:
        """As an executor that does not come to an end."""
        self.is_over.wait(20)

    def ask_aside(self, sql: str) -> None:
        """Ask, on a thread of its own, and return when it is with the executor."""
        before = len(self.executors[0].tickets)
        self._asides.submit(self.ask, sql)
        deadline = time.monotonic() + 10
        while len(self.executors[0].tickets) == before:
            assert time.monotonic() < deadline
            time.sleep(0.005)

    def declare_fallback(
        self,
        spec: FallbackSpec,
        name: str = "flights",
        tenant: TenantId = TENANT,
        **changes: Any,
    ) -> None:
        put_record(
            self.store,
            replace(
                Dataset(
                    tenant=tenant,
                    name=name,
                    source=SourceSpec(connector="iceberg"),
                    fallback=spec,
                ),
                **changes,
            ),
        )
        self.wait_applied()

    def lose_serving(self) -> None:
        """The epoch is planned, but serves nothing."""
        delete_record(self.store, ("serving", TENANT, "flights"))
        self.change_epoch(state=EpochState.LOADING)

    def change_epoch(self, **changes: Any) -> None:
        epoch = read_view(self.store).epoch(DatasetId(TENANT, "flights"), EpochNumber(1))
        assert isinstance(epoch, Epoch)
        put_record(self.store, replace(epoch, **changes))
        self.wait_applied()

    def ask(self, sql: str = SQL, **options: str) -> Answer:
        with (
            self.connect("acme", "secret-of-acme", **options) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql)
            return to_answer(cursor.fetch_arrow_table())

    def refusal(self, sql: str = SQL) -> AccelError:
        try:
            self.ask(sql)
        except Exception as error:  # noqa: BLE001 - whatever the driver makes of it
            return from_flight(error)
        raise AssertionError("it was answered")

    def receipt(self) -> Receipt:
        deadline = time.monotonic() + 5
        while True:
            found = self.app._receipts.last(TENANT, 1)
            if found:
                return found[0]
            assert time.monotonic() < deadline
            time.sleep(0.01)

    @property
    def source_queries(self) -> int:
        return self.app._fallback.source_queries


@pytest.fixture
def world() -> Iterator[FallbackWorld]:
    world = FallbackWorld()
    world.tenant("acme")
    world.serve("acme", {"flights": (1, [flights()])})
    world.start()
    yield world
    world.close()


@pytest.fixture(autouse=True)
def short_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for executors that do not come back here."""
    monkeypatch.setattr(execute, "RETRY_SECONDS", 0.3)


def with_snapshot(world: FallbackWorld, engine: EngineWorld) -> None:
    """The epoch is of the snapshot that the engine's table has."""
    snapshot = engine.snapshots.get("flights", "1001")
    world.change_epoch(snapshot_id=SnapshotId(table_uuid="u", snapshot=snapshot, schema_id="0"))


def no_epoch(world: FallbackWorld) -> None:
    world.lose_serving()


def small(**limits: int) -> Callable[[FallbackWorld], None]:
    """The tenant may do less than the query takes."""

    def happens(world: FallbackWorld) -> None:
        world.tenant("acme", Quota(**limits))
        world.wait_applied()

    return happens


def large_files(world: FallbackWorld) -> None:
    epoch = read_view(world.store).epoch(DatasetId(TENANT, "flights"), EpochNumber(1))
    assert epoch is not None
    world.change_epoch(shards=tuple(replace(one, source_bytes=5000) for one in epoch.shards))
    small(max_scan_bytes=4999)(world)


def no_executor(world: FallbackWorld) -> None:
    world.executors[0].leave()


def executor_says(error: type[AccelError]) -> Callable[[FallbackWorld], None]:
    """What a real one says before its first batch."""

    def refuse(ticket: object) -> None:
        raise error("the executor's own words")

    def happens(world: FallbackWorld) -> None:
        world.executors[0].before = refuse

    return happens


def executor_hangs(world: FallbackWorld) -> None:
    small(deadline_ms=400)(world)
    world.executors[0].before = lambda ticket: world.hang()


def no_place(world: FallbackWorld) -> None:
    """Another query has the tenant's only place, and nobody may wait for long."""
    small(concurrency=1, queue_wait_ms=50)(world)
    world.executors[0].before = lambda ticket: world.hang()
    world.ask_aside("select count(*) as n from flights where id < 0")


def nothing(world: FallbackWorld) -> None:
    """Memory would answer."""


MISS, BREACH, ERROR = FallbackPolicy.ON_MISS, FallbackPolicy.ON_BREACH, FallbackPolicy.ON_ERROR
REASONS: tuple[tuple[FallbackPolicy, str, str, Callable[[FallbackWorld], None]], ...] = (
    (MISS, "miss", "NOT_RESIDENT", no_epoch),
    (BREACH, "breach", "SCAN_LIMIT", small(max_scan_rows=10)),
    (BREACH, "breach", "SCAN_LIMIT", large_files),
    (BREACH, "breach", "DEADLINE_EXCEEDED", executor_hangs),
    *(
        (BREACH, "breach", error.code, executor_says(error))
        for error in (CpuLimit, MemoryLimit, RowLimit, ByteLimit, ScanLimit, DeadlineExceeded)
    ),
    (BREACH, "overload", "RESOURCE_EXHAUSTED", no_place),
    (BREACH, "overload", "RESOURCE_EXHAUSTED", executor_says(ResourceExhausted)),
    (ERROR, "error", "EXECUTOR_UNAVAILABLE", no_executor),
    *(
        (ERROR, "error", error.code, executor_says(error))
        for error in (ExecutorUnavailable, ColdReadFailed, StaleEpoch)
    ),
    (FallbackPolicy.ALWAYS, "policy", "", nothing),
)
"""Policy, reason, the error that memory gave, and how it comes to it."""


@pytest.mark.parametrize(
    ("policy", "reason", "code", "happens"), REASONS, ids=[f"{r[1]}-{r[2]}" for r in REASONS]
)
def test_an_engine_answers_as_memory_does_and_the_receipt_says_why(
    policy: FallbackPolicy,
    reason: str,
    code: str,
    happens: Callable[[FallbackWorld], None],
    world: FallbackWorld,
    engine: EngineWorld,
) -> None:
    expected = world.ask()
    assert world.receipt().route == "hot"
    with_snapshot(world, engine)
    world.declare_fallback(fallback_to(engine, policy))
    happens(world)
    found = world.ask()
    assert not difference(expected, found)
    assert expected.rows == found.rows
    receipt = world.receipt()
    assert (receipt.outcome, receipt.route, receipt.fallback) == ("OK", "olap", reason)
    assert engine.server.kind in receipt.engine
    assert receipt.is_pinned == (engine.name == "sail")
    assert receipt.rows == 3
    assert f"fallback ({reason})" in receipt.reason
    assert code in receipt.reason


def test_a_wait_that_would_be_too_long_is_spared_by_the_engine(
    world: FallbackWorld, engine: EngineWorld
) -> None:
    expected = world.ask()
    with_snapshot(world, engine)
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ON_BREACH))
    world.tenant("acme", Quota(concurrency=1))
    world.wait_applied()
    is_running, release = threading.Event(), threading.Event()

    def block(_: Any) -> None:
        is_running.set()
        release.wait(20)

    world.executors[0].before = block
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(world.ask)
        try:
            assert is_running.wait(10)
            line = world.app._admission._queue.lines[TENANT]
            line.ended, line.mean_seconds = 100, 60.0
            assert not difference(expected, world.ask())
            receipt = world.receipt()
            assert (receipt.route, receipt.fallback) == ("olap", "overload")
            assert "RESOURCE_EXHAUSTED" in receipt.reason
            assert "would wait about 60000 ms" in receipt.reason
        finally:
            release.set()
        assert not difference(expected, running.result(20))


def test_a_lower_policy_does_not_ask_the_engine(world: FallbackWorld, engine: EngineWorld) -> None:
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ON_MISS))
    small(max_scan_rows=10)(world)
    assert world.refusal().code == "SCAN_LIMIT"
    world.declare_fallback(fallback_to(engine, FallbackPolicy.NEVER))
    no_epoch(world)
    assert world.refusal().code == "NOT_RESIDENT"
    assert world.source_queries == 0


def test_row_filter_and_columns_of_the_epoch_hold_at_the_engine(
    world: FallbackWorld, engine: EngineWorld
) -> None:
    with_snapshot(world, engine)
    epoch = read_view(world.store).epoch(DatasetId(TENANT, "flights"), EpochNumber(1))
    assert epoch is not None
    kept = tuple(column for column in epoch.columns if column.name in {"id", "carrier"})
    world.change_epoch(columns=kept, row_filter="id >= 10 and carrier <> 'C1'")
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ALWAYS))
    expected = [(i, f"C{i % 3}") for i in range(10, 100) if i % 3 != 1]
    assert list(world.ask("select * from flights order by id").rows) == expected
    refused = world.refusal("select delay from flights")
    assert "delay" in str(refused)


def test_parameters_reach_the_engine(world: FallbackWorld, engine: EngineWorld) -> None:
    with_snapshot(world, engine)
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ALWAYS))
    sql = "select id from flights where id > ? and carrier = ? and delay < ? order by id"
    with world.connect("acme", "secret-of-acme") as connection, connection.cursor() as cursor:
        cursor.execute(sql, (90, "C1", 48.0))
        assert cursor.fetch_arrow_table().column(0).to_pylist() == [91, 94]
        cursor.execute(sql, (0, "C' or '1'='1", 48.0))
        assert cursor.fetch_arrow_table().num_rows == 0


def test_a_hundred_equal_misses_make_one_source_query(
    world: FallbackWorld, engine: EngineWorld
) -> None:
    expected = world.ask()
    with_snapshot(world, engine)
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ON_MISS))
    world.lose_serving()
    assert world.ask().rows == expected.rows  # connected from here on
    asked_before, begun = asked_of_server(engine), world.source_queries
    service = world.app.service
    with ThreadPoolExecutor(100) as pool:
        with frozen(engine.server.process.pid):  # none is answered before all have asked
            asked = [pool.submit(run_directly, world) for _ in range(100)]
            deadline = time.monotonic() + 20
            while readers(world) < 100:
                assert time.monotonic() < deadline, readers(world)
                time.sleep(0.02)
        answers = [one.result(30) for one in asked]
    assert all(answer.rows == expected.rows for answer in answers)
    assert world.source_queries == begun + 1
    if asked_before is not None:
        assert asked_of_server(engine) == asked_before + 1
    assert service is world.app.service


def asked_of_server(engine: EngineWorld) -> int | None:
    """Aggregates over `flights` that the server's own log has, from the first call on; None: it
    keeps none (Sail)."""
    if engine.name == "sail":
        return None
    directory = engine.server.process.directory
    if engine.name == "mariadb":
        log = directory / "data" / "asked.log"
        if not log.exists():
            with engine.server.connect() as connection, connection.cursor() as cursor:
                cursor.execute("SET GLOBAL general_log_file = 'asked.log'")
                cursor.execute("SET GLOBAL general_log = ON")
    else:
        log = directory / "server.log"
        if "log_statement" not in log.read_text(errors="replace"):
            engine.server.execute(
                "ALTER SYSTEM SET log_statement = 'all'", "SELECT pg_reload_conf()"
            )
            # A new connection has it once the server has told those that are open already.
            wait_until(lambda: log_statement_of(engine) == "all", 30)
    return sum("SUM(p.a" in line for line in log.read_text(errors="replace").splitlines())


def log_statement_of(engine: EngineWorld) -> str:
    with engine.server.connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('log_statement')")
        return str(cursor.fetchone()[0])


def run_directly(world: FallbackWorld) -> Answer:
    identity = Identity(user="acme", tenant=TENANT)
    with world.app.service.run(Query(sql=SQL, identity=identity), lambda: False) as answer:
        return to_answer(pa.Table.from_batches(list(answer.batches()), answer.schema))


def readers(world: FallbackWorld) -> int:
    return sum(one._readers for one in world.app._fallback._under_way.values())


def test_a_construct_that_is_not_portable_is_refused_with_both_reasons(
    world: FallbackWorld, engine: EngineWorld
) -> None:
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ON_ERROR))
    world.lose_serving()
    refused = world.refusal("select upper(carrier) as c from flights")
    assert refused.code == "NOT_RESIDENT"
    assert "UPPER(carrier) is not sent to the fallback engine" in str(refused)
    assert world.source_queries == 0


def test_another_type_in_the_engines_table_is_no_answer(
    world: FallbackWorld, engine: EngineWorld
) -> None:
    with_snapshot(world, engine)
    epoch = read_view(world.store).epoch(DatasetId(TENANT, "flights"), EpochNumber(1))
    assert epoch is not None
    columns = tuple(
        replace(column, type="VARCHAR") if column.name == "delay" else column
        for column in epoch.columns
    )
    world.change_epoch(columns=columns)
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ALWAYS))
    refused = world.refusal("select min(delay) as d from flights")
    assert refused.code == "ENGINE_DISAGREES"
    assert "delay is VARCHAR here" in str(refused)


def test_limits_of_fallbacks_are_the_tenants_own(world: FallbackWorld, engine: EngineWorld) -> None:
    with_snapshot(world, engine)
    world.tenant("acme", Quota(fallback_max_rows=50))
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ALWAYS))
    refused = world.refusal("select id from flights")
    assert refused.code == "ROW_LIMIT"
    assert "fallback_max_rows" in str(refused)
    assert len(world.ask("select id from flights limit 50").rows) == 50


def test_a_clients_own_limits_hold_at_the_engine_too(
    world: FallbackWorld, engine: EngineWorld
) -> None:
    with_snapshot(world, engine)
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ALWAYS))
    header = "adbc.flight.sql.rpc.call_header.x-accel-max-result-"
    sql = "select id from flights order by id"
    for limit in ("rows", "bytes"):
        with pytest.raises(Exception, match=f"max_result_{limit}"):
            world.ask(sql, **{header + limit: "50"})
    assert len(world.ask(f"{sql} limit 50", **{f"{header}rows": "50"}).rows) == 50


def test_an_engine_that_is_down_is_left_alone_after_some_failures(world: FallbackWorld) -> None:
    spec = FallbackSpec(
        engine="flightsql",
        policy=FallbackPolicy.ON_MISS,
        options=(("uri", f"grpc://127.0.0.1:{free_port()}"),),
    )
    world.declare_fallback(spec)
    world.lose_serving()
    codes = set()
    for _ in range(6):
        refused = world.refusal()
        codes.add(refused.code)
    assert codes == {"ENGINE_UNAVAILABLE"}
    assert "is left alone; retry after" in str(refused)
    assert "memory had not answered" in str(refused)


def test_an_engine_that_is_silent_costs_no_more_than_the_deadline(
    world: FallbackWorld, engine: EngineWorld
) -> None:
    with_snapshot(world, engine)
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ALWAYS))
    assert world.ask().rows
    world.tenant("acme", Quota(fallback_deadline_ms=1500))
    world.wait_applied()
    with frozen(engine.server.process.pid):
        began = time.monotonic()
        assert world.refusal().code in {"DEADLINE_EXCEEDED", "ENGINE_UNAVAILABLE"}
        assert time.monotonic() - began < 6.0
    deadline = time.monotonic() + 15
    while world.app._fallback._places.running(TENANT):
        assert time.monotonic() < deadline, "its place is never given back"
        threading.Event().wait(0.05)
    world.tenant("acme", Quota())
    world.wait_applied()
    assert world.ask().rows


@pytest.mark.parametrize(
    ("policy", "is_cancelled_by_name"),
    [(FallbackPolicy.ON_MISS, False), (FallbackPolicy.ALWAYS, True)],
)
def test_a_client_that_goes_away_or_cancels_ends_the_source_query(
    policy: FallbackPolicy,
    world: FallbackWorld,
    engine: EngineWorld,
    *,
    is_cancelled_by_name: bool,
) -> None:
    with_snapshot(world, engine)
    world.declare_fallback(fallback_to(engine, policy))
    world.lose_serving()
    gone = threading.Event()
    identity, service = Identity(user="acme", tenant=TENANT), world.app.service
    # Sail, though told, goes on with a join to its end: a shorter one here, for some seconds, which
    # are waited for so that the next test finds it idle. The others stop.
    is_sail = engine.name == "sail"
    sql = SLOW + (" and f4.id < 30" if is_sail else "")
    query = Query(sql=sql, identity=identity, name="slow-query")

    def ask() -> str:
        try:
            with service.run(query, gone.is_set):
                return "answered"
        except AccelError as error:
            return error.code

    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask)
        wait_at_work(engine)
        if is_cancelled_by_name:
            assert service.cancel(identity, "slow-query")
        else:
            gone.set()
        assert asked.result(10) == "QUERY_CANCELLED"
    wait_until(lambda: not world.app._fallback._places.running(TENANT), 5)
    deadline = time.monotonic() + (45 if is_sail else 5)
    while statements(engine):
        assert time.monotonic() < deadline, f"the source query goes on: {statements(engine)}"
        time.sleep(0.05)


def test_prepared_statements_of_a_dataset_that_is_not_in_memory_have_their_schema(
    world: FallbackWorld, engine: EngineWorld
) -> None:
    with_snapshot(world, engine)
    expected = world.ask()
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ON_MISS))
    world.lose_serving()
    with world.connect("acme", "secret-of-acme") as connection, connection.cursor() as cursor:
        schema = cursor.adbc_execute_schema(SQL)
    assert tuple(schema.names) == expected.names
    assert tuple(str(field.type) for field in schema) == expected.types
    assert world.source_queries == 0


def test_an_engine_reads_the_snapshot_that_memory_serves_and_not_a_newer_one(
    world: FallbackWorld, worlds: Worlds, tmp_path: Path
) -> None:
    started(worlds, "sail")
    sail = start_world("sail", {"flights": flights()}, tmp_path / "pinned")
    try:
        expected = world.ask()
        with_snapshot(world, sail)
        sail.iceberg["flights"].append(flights(version=2))
        world.declare_fallback(fallback_to(sail, FallbackPolicy.ALWAYS))
        assert world.ask().rows == expected.rows
        assert world.receipt().is_pinned
        world.declare_fallback(fallback_to(sail, FallbackPolicy.ALWAYS, time_travel="never"))
        assert [row[1] for row in world.ask().rows] == [2 * row[1] for row in expected.rows]
        assert world.receipt().is_pinned is False
        assert "not pinned" in world.receipt().engine
        world.change_epoch(snapshot_id=SnapshotId(table_uuid="u", snapshot="12345", schema_id="0"))
        world.declare_fallback(fallback_to(sail, FallbackPolicy.ALWAYS))
        assert world.refusal().code == "ENGINE_FAILED"
    finally:
        sail.close()


def metric(world: FallbackWorld, name: str, **labels: str) -> float:
    found = world.app._metrics.registry.get_sample_value(
        f"accel_gateway_engine_{name}", {"tenant": "acme", "engine": told(world), **labels}
    )
    return found or 0.0


def told(world: FallbackWorld) -> str:
    return next((way.load().engine for way in world.app._fallback.ways()), "")


def test_what_each_engine_is_asked_is_counted_and_shown(
    world: FallbackWorld, engine: EngineWorld
) -> None:
    with_snapshot(world, engine)
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ALWAYS))
    for _ in range(3):
        world.ask()
    world.tenant("acme", Quota(fallback_max_rows=5))
    world.wait_applied()
    assert world.refusal("select id from flights").code == "ROW_LIMIT"
    assert engine.server.dialect in told(world)
    assert metric(world, "queries_total", outcome="OK") == 3
    assert metric(world, "queries_total", outcome="ROW_LIMIT") == 1
    assert metric(world, "seconds_count") == 4
    assert metric(world, "seconds_bucket", le="60.0") == 4
    assert metric(world, "running") == metric(world, "breaker_open") == 0
    deadline = time.monotonic() + 10
    while not (record := world.gateway_record()) or not record.engines:
        assert time.monotonic() < deadline, "the gateway's record tells nothing of its engine"
        time.sleep(0.05)
    (load,) = record.engines
    assert (load.tenant, load.queries, load.failed, load.breaker) == (TENANT, 4, 1, "closed")
    assert load.p99_ms >= load.p50_ms > 0
    view = read_view(world.store)
    assert any(table.title == "Fallback engines" for table in status_tables(view))
    assert load.engine in render_tables({**PAGE, "engines": summarize(view, 0)["engines"]})


PAGE: dict[str, list[Any]] = {
    name: []
    for name in (
        "datasets",
        "requests",
        "epochs",
        "executors",
        "hosts",
        "gateways",
        "shares",
        "story",
    )
}


def test_a_breaker_that_one_tenant_opened_is_open_for_nobody_else(
    world: FallbackWorld, engine: EngineWorld
) -> None:
    with_snapshot(world, engine)
    world.tenant("other")
    world.tenant("acme", Quota(fallback_deadline_ms=1))
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ALWAYS))
    world.declare_fallback(
        fallback_to(engine, FallbackPolicy.ALWAYS, time_travel="never"), tenant=TenantId("other")
    )
    epoch = read_view(world.store).epoch(DatasetId(TENANT, "flights"), EpochNumber(1))
    assert epoch is not None
    put_record(world.store, replace(epoch, tenant=TenantId("other")))
    world.wait_applied()
    deadline = time.monotonic() + 20
    while metric(world, "breaker_open") == 0:  # it never answers acme in time
        assert world.refusal().code in {"DEADLINE_EXCEEDED", "ENGINE_UNAVAILABLE"}
        assert time.monotonic() < deadline
    with world.connect("other", "secret-of-other") as connection, connection.cursor() as cursor:
        cursor.execute(SQL)
        assert cursor.fetch_arrow_table().num_rows == 3
    open_of = {way.tenant: way.load().breaker for way in world.app._fallback.ways()}
    assert open_of.pop("acme") in {"open", "probing"}, "by now it may try again"
    assert open_of == {"other": "closed"}
