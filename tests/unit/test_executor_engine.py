"""The engine in this process: answers, bounds, stops, and the second line of defence."""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import threading
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
from executor_builders import ROWS, make_shard, make_spec, make_ticket, parameters

from accel_dask.errors import (
    AccelError,
    ByteLimit,
    CpuLimit,
    DeadlineExceeded,
    InvalidQuery,
    MemoryLimit,
    QueryCancelled,
    ReadOnly,
    ResourceExhausted,
    RowLimit,
    ShardDamaged,
    TextLimit,
    UnsupportedQuery,
)
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import EpochNumber, ShardId
from accel_dask.model.tenant import Quota
from accel_dask.model.ticket import shard_relation
from accel_dask.worker_plugin.executor.cpu_time import CpuAccount
from accel_dask.worker_plugin.executor.engine import Engine

ENDLESS = "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range + b.range % 9 = 7"
EPOCH_1 = EpochNumber(1)


class World:
    """A shard directory with one shard, and an engine on it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.shard = make_shard(directory)
        self.table = shard_relation(self.shard)
        self.stuck: list[str] = []
        self.engine = Engine(make_spec(directory, self.shard), self.stuck.append)

    def rows(self, sql: str, **overrides: object) -> list[dict[str, object]]:
        query = self.engine.run(make_ticket(sql, self.shard, **overrides))
        return pa.Table.from_batches(list(query), query.schema).to_pylist()

    def assert_idle(self) -> None:
        """Every thread of the engine is free and nothing is watched."""
        assert self.engine.watchdog._watched == set()
        assert self.engine.threads.free_count == 2


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    built = World(tmp_path_factory.mktemp("shards"))
    yield built
    built.engine.close()


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(world: World) -> Iterator[None]:
    yield
    world.assert_idle()
    assert world.stuck == []


def test_a_spare_cursor_is_for_one_query_and_sees_nothing_of_the_last(world: World) -> None:
    engine = world.engine
    with engine.cursor() as first:
        engine.make_spare()
        first.execute("SET VARIABLE x = 1")
        first.execute("CREATE TEMP MACRO one() AS 1")
        with engine.cursor() as second, engine.cursor() as third:
            assert second is not third
            assert second.execute("SELECT getvariable('x')").fetchone() == (None,)
            with pytest.raises(duckdb.CatalogException):
                second.execute("SELECT one()")


def test_an_answer_has_the_rows_and_types_of_the_shard(world: World) -> None:
    rows = world.rows(f"SELECT count(*) AS n, min(day) AS d, sum(id) AS s FROM {world.table}")
    assert rows == [{"n": ROWS, "d": dt.date(2024, 1, 1), "s": Decimal(ROWS * (ROWS - 1) // 2)}]


def test_an_answer_without_rows_still_has_its_schema(world: World) -> None:
    query = world.engine.run(make_ticket(f"SELECT id, code FROM {world.table} WHERE id < 0"))
    assert query.schema.names == ["id", "code"]
    assert list(query) == []


def test_a_small_answer_lets_go_of_the_engine_before_it_is_read(world: World) -> None:
    query = world.engine.run(make_ticket("SELECT 1 AS one"))
    assert query.is_complete
    world.assert_idle()
    assert [batch.to_pylist() for batch in query] == [[{"one": 1}]]


def test_threads_of_the_engine_are_bound_to_no_core_between_queries(world: World) -> None:
    seen: list[set[int]] = []
    for sql in ("SELECT 1", "SELECT * FROM range(50000)", "SELECT error('x')"):
        with contextlib.suppress(AccelError):
            query = world.engine.run(make_ticket(sql))
            list(query)
            query.close()
        for thread in world.engine.threads._all:
            thread.call(lambda: seen.append(os.sched_getaffinity(0)))
        assert world.engine.cores._driving == 0
    assert seen == [os.sched_getaffinity(0)] * len(seen)


def test_a_large_answer_streams_in_bounded_batches_and_in_order(world: World) -> None:
    query = world.engine.run(
        make_ticket(f"SELECT id, code FROM {world.table} ORDER BY id", max_batch_bytes=64 * 1024)
    )
    assert not query.is_complete
    ids: list[int] = []
    for batch in query:
        assert batch.nbytes <= 64 * 1024
        ids.extend(batch.column(0).to_pylist())
    assert ids == list(range(ROWS))


def test_a_shard_of_two_epochs_is_attached_once(world: World) -> None:
    spec = make_spec(
        world.directory,
        attachments=(
            Attachment("sales", EPOCH_1, world.shard),
            Attachment("sales_old", EpochNumber(2), world.shard),
        ),
    )
    engine = Engine(spec, world.stuck.append)
    try:
        assert engine.shard_ids == (world.shard,)
        assert engine.rehearse() == ROWS
    finally:
        engine.close()


@pytest.mark.parametrize("damage", ["absent", "cut", "garbage", "empty"])
def test_a_shard_file_that_cannot_be_read_is_named_without_its_path(
    world: World, tmp_path: Path, damage: str
) -> None:
    shard = ShardId("0" * 32)
    file = tmp_path / f"{shard}.duckdb"
    whole = (world.directory / f"{world.shard}.duckdb").read_bytes()
    if damage != "absent":
        file.write_bytes(
            {"cut": whole[: len(whole) // 3], "garbage": b"x" * 20_000, "empty": b""}[damage]
        )
    with pytest.raises(ShardDamaged, match=f"shard {shard} of tenant acme") as caught:
        Engine(make_spec(tmp_path, shard), world.stuck.append).rehearse()
    assert str(tmp_path) not in str(caught.value)


def test_parameters_keep_their_type_and_precision(world: World) -> None:
    instant = "2024-02-29 12:34:56.123456789"
    bound = parameters(
        a=pa.array([2**40], pa.int64()),
        b=pa.array(["it's"], pa.string()),
        c=pa.array([dt.date(2024, 2, 29)], pa.date32()),
        d=pa.array([Decimal("1.230")], pa.decimal128(10, 3)),
        e=pa.array([None], pa.int32()),
        f=pa.array([1709210096123456789], pa.timestamp("ns")),
        g=pa.array([b"\x00\xff"], pa.binary()),
        h=pa.array([dt.datetime(2024, 2, 29, tzinfo=dt.UTC)], pa.timestamp("us", "UTC")),
    )
    [row] = world.rows(
        "SELECT ? = 1099511627776 AS a, ? = 'it''s' AS b, ? = DATE '2024-02-29' AS c, "
        f"? = 1.230 AS d, ?::INTEGER IS NULL AS e, ? = TIMESTAMP_NS '{instant}' AS f, "
        "? = '\\x00\\xFF'::BLOB AS g, ? = TIMESTAMPTZ '2024-02-29 00:00:00+00' AS h",
        parameters=bound,
    )
    assert row == dict.fromkeys("abcdefgh", True)


def test_a_parameter_is_a_value_and_never_sql(world: World) -> None:
    bound = parameters(x=pa.array(["ab' OR '1'='1"], pa.string()))
    assert world.rows(
        f"SELECT count(*) AS n FROM {world.table} WHERE code = ?", parameters=bound
    ) == [{"n": 0}]


@pytest.mark.parametrize(
    "ipc",
    [b"no arrow", parameters(x=pa.array([1, 2])), parameters(x=pa.array([1]), y=pa.array([2]))],
    ids=["not a stream", "two rows", "too many"],
)
def test_bad_parameters_are_an_invalid_query(world: World, ipc: bytes) -> None:
    with pytest.raises(InvalidQuery):
        world.rows("SELECT ?::INTEGER", parameters=ipc)


def test_describing_gives_the_schema_of_the_answer_without_running(world: World) -> None:
    sql = f"SELECT 1 AS a, 'x' AS a, sum(id) AS s, ?::DATE AS d FROM {world.table} WHERE id > ?"
    described = world.engine.run(make_ticket(sql, describe_only=True))
    bound = parameters(d=pa.array(["2024-01-01"]), i=pa.array([5]))
    run = world.engine.run(make_ticket(sql, parameters=bound))
    assert list(described) == []
    assert described.schema == run.schema
    assert described.schema.names == ["a", "a", "s", "d"]
    with pytest.raises(InvalidQuery):
        world.engine.run(make_ticket("SELECT nope", describe_only=True))


def test_enums_are_sent_as_plain_values(world: World) -> None:
    query = world.engine.run(
        make_ticket("SELECT 'a'::ENUM('a', 'b') AS e, ['b'::ENUM('a', 'b')] AS l, {'k': 1} AS s")
    )
    assert query.schema.field("e").type == pa.string()
    assert [batch.to_pylist() for batch in query] == [[{"e": "a", "l": ["b"], "s": {"k": 1}}]]


def test_more_rows_than_the_limit_are_an_error_before_any_row(world: World) -> None:
    with pytest.raises(RowLimit, match="more than 10 rows, the limit of this query of tenant acme"):
        world.engine.run(make_ticket(f"SELECT id FROM {world.table}", max_result_rows=10))
    assert len(world.rows(f"SELECT id FROM {world.table} LIMIT 10", max_result_rows=10)) == 10


def test_more_rows_than_the_limit_in_a_later_batch_end_the_stream_with_an_error(
    world: World,
) -> None:
    query = world.engine.run(make_ticket(f"SELECT * FROM {world.table}", max_result_rows=90_000))
    with pytest.raises(RowLimit):
        list(query)
    with pytest.raises(AccelError):  # asking again never looks like an end
        next(query)


def test_the_quota_bounds_a_ticket_that_asks_for_more(world: World, tmp_path: Path) -> None:
    spec = world.engine.spec
    engine = Engine(
        make_spec(
            world.directory, world.shard, quota=type(spec.quota)(max_result_rows=5, threads=1)
        ),
        world.stuck.append,
    )
    try:
        with pytest.raises(RowLimit, match="more than 5 rows"):
            engine.run(make_ticket("FROM range(6)"))
    finally:
        engine.close()


@pytest.mark.parametrize(
    "sql",
    [
        ENDLESS,
        "WITH RECURSIVE t(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM t) SELECT count(*) FROM t",
        "SELECT sum(length(repeat(a.range::VARCHAR, 9))) FROM range(1000000) a, range(1000000) b",
    ],
    ids=["cross join", "recursion", "functions over text"],
)
def test_the_deadline_is_kept(world: World, sql: str) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="longer than the 200 ms"):
        world.engine.run(make_ticket(sql, timeout_ms=200))
    assert time.monotonic() - started < 1


def test_a_query_may_use_so_much_cpu_time(world: World) -> None:
    before = time.process_time()
    with pytest.raises(CpuLimit, match=r"more than the 150 ms of CPU time .*max_cpu_ms"):
        world.engine.run(make_ticket(ENDLESS, max_cpu_ms=150))
    assert 0.14 < time.process_time() - before < 1


def test_the_quota_bounds_the_cpu_time_of_a_ticket_that_asks_for_more(world: World) -> None:
    quota = Quota(max_cpu_ms=100, threads=1)
    engine = Engine(make_spec(world.directory, world.shard, quota=quota), world.stuck.append)
    try:
        with pytest.raises(CpuLimit, match="the 100 ms"):
            engine.run(make_ticket(ENDLESS, max_cpu_ms=60_000))
    finally:
        engine.close()


def test_more_bytes_than_the_limit_are_an_error(world: World) -> None:
    with pytest.raises(ByteLimit, match=r"more than 10,000 bytes.*max_result_bytes"):
        list(world.engine.run(make_ticket(f"FROM {world.table}", max_result_bytes=10_000)))


def test_the_cost_of_a_query_is_measured(world: World) -> None:
    sql = f"SELECT a.store, sum(a.amount) AS s FROM {world.table} a, range(60) GROUP BY 1"
    before = time.process_time()
    query = world.engine.run(make_ticket(sql, world.shard, measure=True))
    rows = sum(batch.num_rows for batch in query)
    used_ms = (time.process_time() - before) * 1000
    measured = query.measured()
    assert measured.rows == rows == 100
    assert measured.bytes > 0
    assert measured.scanned_rows == ROWS
    assert measured.peak_memory_bytes
    assert measured.engine_ms > 1
    # The only query gets all that the process used.
    assert 0.5 * used_ms < measured.cpu_ms < 1.1 * used_ms


def test_a_cost_that_nobody_asked_for_is_not_counted(world: World) -> None:
    query = world.engine.run(make_ticket("SELECT 1 AS x"))
    assert query.measured().scanned_rows is None
    assert query.measured().rows == 1


def test_queries_at_once_share_what_the_engine_uses(world: World) -> None:
    def run() -> None:
        with pytest.raises(DeadlineExceeded):
            world.engine.run(make_ticket(ENDLESS, timeout_ms=400, query_id="both"))

    meter, accounts = world.engine.cpu, []
    begin = meter.begin

    def noting(account: CpuAccount, clock: int | None) -> None:
        accounts.append(account)
        begin(account, clock)

    meter.begin = noting  # type: ignore[method-assign]
    before = time.process_time()
    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    used_ms = (time.process_time() - before) * 1000
    meter.begin = begin  # type: ignore[method-assign]
    costs = [account.ms for account in accounts]
    assert 0.8 * used_ms < sum(costs) < 1.1 * used_ms
    assert min(costs) > 0.1 * max(costs)


def test_a_client_that_goes_away_cancels_its_query(world: World) -> None:
    gone = threading.Event()
    timer = threading.Timer(0.1, gone.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(QueryCancelled):
        world.engine.run(make_ticket(ENDLESS), is_cancelled=gone.is_set)
    assert time.monotonic() - started < 1
    timer.join()


def test_an_answer_that_nobody_reads_gives_its_place_back_at_the_deadline(world: World) -> None:
    query = world.engine.run(make_ticket(f"SELECT * FROM {world.table}", timeout_ms=300))
    deadline = time.monotonic() + 3
    while query._thread is not None:
        assert time.monotonic() < deadline
        threading.Event().wait(0.01)
    with pytest.raises(DeadlineExceeded):
        list(query)


def test_a_query_that_finds_no_place_is_refused_when_its_time_is_over(world: World) -> None:
    holders = [world.engine.run(make_ticket(f"SELECT * FROM {world.table}")) for _ in range(2)]
    started = time.monotonic()
    with pytest.raises(ResourceExhausted, match="2 queries of tenant acme run here"):
        world.engine.run(make_ticket("SELECT 1", timeout_ms=150))
    assert 0.1 < time.monotonic() - started < 1
    for holder in holders:
        holder.close()
    assert world.rows("SELECT 1 AS x") == [{"x": 1}]


def test_a_query_waits_for_a_place_and_then_runs(world: World) -> None:
    holders = [world.engine.run(make_ticket(f"SELECT * FROM {world.table}")) for _ in range(2)]
    timer = threading.Timer(0.1, holders[0].close)
    timer.start()
    assert world.rows("SELECT 1 AS x") == [{"x": 1}]
    timer.join()
    holders[1].close()


def test_closing_twice_and_from_another_thread_is_harmless(world: World) -> None:
    query = world.engine.run(make_ticket(f"SELECT * FROM {world.table}"))
    closer = threading.Thread(target=query.close)
    closer.start()
    closer.join()
    query.close()
    with pytest.raises(AccelError):
        list(query)


def test_more_memory_than_the_limit_is_an_error_and_the_engine_goes_on(world: World) -> None:
    with pytest.raises(MemoryLimit, match="192 MiB"):
        world.rows("SELECT list(a.range || '-' || b.range) FROM range(10000) a, range(2000) b")
    assert world.rows("SELECT 1 AS x") == [{"x": 1}]


REFUSED = {
    "SELECT 1; SELECT 2": InvalidQuery,
    "": InvalidQuery,
    "SELEC 1": InvalidQuery,
    "SELECT 1 --" + "x" * 5_000_000: TextLimit,
    "SELECT nope FROM {t}": InvalidQuery,
    "SELECT * FROM nope": InvalidQuery,
    "SELECT 'x'::INTEGER": InvalidQuery,
    "SELECT no_such_function(1)": InvalidQuery,
    "DELETE FROM {t}": ReadOnly,
    "INSERT INTO {t} SELECT * FROM {t}": ReadOnly,
    "UPDATE {t} SET id = 1": ReadOnly,
    "DROP TABLE {t}": ReadOnly,
    "CREATE TABLE x AS SELECT 1": ReadOnly,
    "CREATE TEMP MACRO sum(x) AS 0": ReadOnly,
    "COPY {t} TO '/tmp/x.csv'": ReadOnly,
    "EXPORT DATABASE '/tmp/x'": ReadOnly,
    "WITH d AS (DELETE FROM {t} RETURNING id) SELECT * FROM d": ReadOnly,
    "WITH d AS (INSERT INTO {t} SELECT * FROM {t} RETURNING id) SELECT * FROM d": ReadOnly,
    "ATTACH ':memory:' AS m": UnsupportedQuery,
    "DETACH memory": UnsupportedQuery,
    "SET threads = 8": UnsupportedQuery,
    "SET lock_configuration = false": UnsupportedQuery,
    "RESET memory_limit": UnsupportedQuery,
    "PRAGMA enable_profiling": UnsupportedQuery,
    "INSTALL httpfs": UnsupportedQuery,
    "LOAD '/tmp/x.so'": UnsupportedQuery,
    "BEGIN": UnsupportedQuery,
    "USE memory": UnsupportedQuery,
    "CALL duckdb_settings()": UnsupportedQuery,
    "EXPLAIN ANALYZE SELECT 1": UnsupportedQuery,
    "SET VARIABLE x = 1": UnsupportedQuery,
    "PREPARE p AS SELECT 1": UnsupportedQuery,
    "VACUUM": UnsupportedQuery,
    "CHECKPOINT": UnsupportedQuery,
    "PIVOT {t} ON code USING count(*)": UnsupportedQuery,
    "SELECT * FROM read_csv('/etc/passwd')": UnsupportedQuery,
    "SELECT * FROM \"read_text\"('/etc/passwd')": UnsupportedQuery,
    "SELECT * FROM read_blob('{f}')": UnsupportedQuery,
    "SELECT * FROM glob('/*')": UnsupportedQuery,
    "SELECT * FROM duckdb_databases()": UnsupportedQuery,
    "SELECT path FROM duckdb_databases": UnsupportedQuery,
    'SELECT path FROM "duckdb_databases"': UnsupportedQuery,
    "SELECT * FROM duckdb_settings ( )": UnsupportedQuery,
    "SELECT current_setting('secret_directory')": UnsupportedQuery,
    "SELECT * FROM query('SELECT 1')": UnsupportedQuery,
    "FROM checkpoint()": UnsupportedQuery,
    "SELECT * FROM '/etc/passwd'": InvalidQuery,
    "SELECT * FROM '/etc/passwd.csv'": UnsupportedQuery,
    "SELECT * FROM '{f}'": UnsupportedQuery,
    'SELECT * FROM {t} JOIN "{f}" USING (id)': UnsupportedQuery,
    "SELECT * FROM {t}, '{f}'": UnsupportedQuery,
    "SELECT " + "(" * 20_000 + "1" + ")" * 20_000: InvalidQuery,
    "SELECT " + "NOT " * 20_000 + "true": InvalidQuery,
}


@pytest.mark.parametrize("sql", REFUSED, ids=[sql[:40] for sql in REFUSED])
def test_what_is_not_a_harmless_select_is_refused(world: World, sql: str) -> None:
    file = world.directory / f"{world.shard}.duckdb"
    before = file.read_bytes()
    with pytest.raises(REFUSED[sql]) as caught:
        world.rows(sql.format(t=world.table, f=file))
    assert str(world.directory) not in str(caught.value)
    assert world.shard not in str(caught.value)
    assert file.read_bytes() == before
    assert world.rows(f"SELECT count(*) AS n FROM {world.table}") == [{"n": ROWS}]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT 'read_csv(''/etc/passwd'')' AS x",
        "SELECT 'it is in duckdb_settings' AS x",
        "SELECT 1 AS summary",
        "SHOW TABLES",
        "DESCRIBE {t}",
        "SELECT * FROM {t} LIMIT 1",
        "VALUES (1)",
        "FROM {t} LIMIT 1",
    ],
)
def test_harmless_selects_are_not_refused_for_their_words(world: World, sql: str) -> None:
    world.rows(sql.format(t=world.table))


def test_a_function_shadowed_by_an_earlier_statement_cannot_exist(world: World) -> None:
    with pytest.raises(ReadOnly):
        world.rows("CREATE MACRO memory.main.sum(x) AS 0")
    assert world.rows("SELECT sum(range) AS s FROM range(4)") == [{"s": Decimal(6)}]
