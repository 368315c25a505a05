"""What every kind of engine must do under limits, cancels, faults and lies."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pyarrow as pa
import pytest
from freezing import frozen
from olap_world import (
    KINDS,
    LIMITS,
    EngineWorld,
    Worlds,
    busy_seconds,
    compile_sql,
    schema_of,
    start_world,
    started,
)

from accel_dask.connectors.olap.base import EngineStream
from accel_dask.connectors.olap.registry import open_engine
from accel_dask.connectors.olap.servers.processes import NotInstalled, free_port
from accel_dask.connectors.olap.settings import EngineSettings
from accel_dask.errors import (
    AccelError,
    DeadlineExceeded,
    EngineDisagrees,
    EngineFailed,
    EngineUnavailable,
    QueryCancelled,
    RowLimit,
)

SLOW = (
    "select count(*) as n from fact a, fact b, fact c, fact d where a.n + b.n + c.n + d.n = 7 "
    "and a.m < b.m + c.m"
)
MANY = "select a.id as i, b.id as j, a.s as s from fact a, fact b, dim d"
ENDS_WITHIN_SECONDS = 45.0


def check_idle(world: EngineWorld) -> None:
    """The server comes to rest: what it was asked is not going on behind our back."""
    deadline = time.monotonic() + ENDS_WITHIN_SECONDS
    while True:
        before = busy_seconds(world)
        threading.Event().wait(0.4)
        if busy_seconds(world) - before < 0.04:  # others may want the processor too
            return
        assert time.monotonic() < deadline, f"{world.name} goes on computing"


def read_all(stream: EngineStream) -> None:
    while stream.read() is not None:
        pass


def test_a_deadline_is_kept_and_the_engine_stops(engine_world: EngineWorld, worlds: Worlds) -> None:
    query = compile_sql(SLOW, worlds.tables)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="fallback_deadline_ms"):
        engine_world.ask(query, replace(LIMITS, seconds=1.0))
    assert time.monotonic() - began < 5.0
    check_idle(engine_world)


def test_a_cancel_reaches_the_engine(engine_world: EngineWorld, worlds: Worlds) -> None:
    query = compile_sql(SLOW, worlds.tables)
    stream = engine_world.engine.run(engine_world.sql(query), schema_of(query), LIMITS)
    ended: list[BaseException] = []

    def read() -> None:
        try:
            stream.read()
        except AccelError as error:
            ended.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    before = busy_seconds(engine_world)
    deadline = time.monotonic() + 10
    while busy_seconds(engine_world) - before < 0.3:
        assert time.monotonic() < deadline, "it did not begin"
        threading.Event().wait(0.05)
    stream.cancel()
    reader.join(10)
    stream.close()
    assert not reader.is_alive()
    assert [type(error) for error in ended] == [QueryCancelled]
    check_idle(engine_world)
    assert engine_world.ask(compile_sql("select count(*) as n from dim", worlds.tables)).rows


@pytest.mark.parametrize("limits", [{"max_rows": 5000}, {"max_bytes": 50_000}])
def test_more_than_the_limit_is_an_error(
    limits: dict[str, int], engine_world: EngineWorld, worlds: Worlds
) -> None:
    query = compile_sql(MANY, worlds.tables)
    with pytest.raises(RowLimit, match="the limit of its fallback"):
        engine_world.ask(query, replace(LIMITS, **limits))
    assert engine_world.ask(compile_sql("select count(*) as n from dim", worlds.tables)).rows


def test_more_rows_than_promised_are_no_answer(engine_world: EngineWorld, worlds: Worlds) -> None:
    limited = compile_sql("select id from fact order by id limit 3", worlds.tables)
    all_rows = compile_sql("select id from fact order by id", worlds.tables)
    with pytest.raises(EngineDisagrees, match="at most 3"):
        engine_world.ask_sql(
            engine_world.sql(all_rows), schema_of(limited), promised=limited.max_rows
        )


WRONG_TYPES = (
    ("select s as c from fact", pa.int64()),
    ("select x as c from fact", pa.int64()),
    ("select x as c from fact", pa.decimal128(9, 2)),
    ("select g as c from fact", pa.int32()),
    ("select m as c from fact", pa.decimal128(9, 1)),
    ("select m as c from fact", pa.float64()),
    ("select n as c from fact", pa.float64()),
    ("select n as c from fact", pa.string()),
    ("select n as c from fact", pa.bool_()),
    ("select d as c from fact", pa.timestamp("us")),
    ("select ts as c from fact", pa.date32()),
    ("select s as c from fact", pa.date32()),
    ("select id as c, n as e from fact", pa.int64()),
)


@pytest.mark.parametrize(("sql", "wanted"), WRONG_TYPES)
def test_another_type_than_promised_is_no_answer(
    sql: str, wanted: pa.DataType, engine_world: EngineWorld, worlds: Worlds
) -> None:
    query = compile_sql(sql, worlds.tables)
    with pytest.raises(EngineDisagrees):
        engine_world.ask_sql(engine_world.sql(query), pa.schema([pa.field("c", wanted)]))


def test_what_it_cannot_read_is_an_error_and_the_next_query_is_answered(
    engine_world: EngineWorld, worlds: Worlds
) -> None:
    with pytest.raises(EngineFailed):
        engine_world.ask_sql("SELEKT 1", pa.schema([pa.field("c", pa.int32())]))
    assert engine_world.ask(compile_sql("select count(*) as n from dim", worlds.tables)).rows


def test_connections_are_bounded(engine_world: EngineWorld, worlds: Worlds) -> None:
    settings = EngineSettings(
        kind=engine_world.server.kind,
        uri=engine_world.server.uri,
        user={"mariadb": "root", "postgresql": "accel"}.get(engine_world.name, ""),
        pool_size=1,
    )
    query = compile_sql(MANY, worlds.tables)
    engine = open_engine(settings, engine_world.server.dialect)
    sql, schema = engine_world.sql(query), schema_of(query)
    with (
        closing(engine),
        closing(engine.run(sql, schema, LIMITS)),
        pytest.raises(EngineUnavailable, match="all 1 connections"),
    ):
        engine.run(sql, schema, replace(LIMITS, seconds=0.2))


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_is_down_is_unavailable(kind: str, worlds: Worlds) -> None:
    uri = {"sail": "grpc", "mariadb": "mysql", "postgresql": "postgresql"}[kind]
    wire, dialect = {
        "sail": ("flightsql", "spark"),
        "mariadb": ("mysql", "mariadb"),
        "postgresql": ("postgresql", "postgres"),
    }[kind]
    settings = EngineSettings(kind=wire, uri=f"{uri}://127.0.0.1:{free_port()}", user="nobody")
    engine = open_engine(settings, dialect)
    with closing(engine):
        with pytest.raises(EngineUnavailable):
            engine.run("SELECT 1", pa.schema([pa.field("c", pa.int32())]), LIMITS).read()
        with pytest.raises(EngineUnavailable):
            engine.ping()


@pytest.fixture(params=KINDS)
def mortal(request: pytest.FixtureRequest, worlds: Worlds, tmp_path: Path) -> Iterator[EngineWorld]:
    """A server of its own, to be killed."""
    started(worlds, request.param)
    try:
        world = start_world(request.param, {"fact": worlds.rows["fact"]}, tmp_path / "mortal")
    except NotInstalled as error:
        pytest.skip(str(error))
    yield world
    world.close()


def test_death_in_the_middle_of_an_answer_is_an_error(mortal: EngineWorld, worlds: Worlds) -> None:
    query = compile_sql(
        "select a.id as i, b.id as j, c.id as k, a.s as s from fact a, fact b, fact c",
        worlds.tables,
    )
    limits = replace(LIMITS, max_rows=1 << 40, max_bytes=1 << 50)
    with closing(mortal.engine.run(mortal.sql(query), schema_of(query), limits)) as stream:
        assert stream.read() is not None
        for process in psutil.Process(mortal.server.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # PostgreSQL ends them all with one
                process.send_signal(signal.SIGKILL)
        mortal.server.process.send(signal.SIGKILL)
        with pytest.raises((EngineUnavailable, EngineFailed)):
            read_all(stream)
    with pytest.raises(EngineUnavailable):
        mortal.engine.ping()


def test_silence_ends_at_the_deadline(mortal: EngineWorld, worlds: Worlds) -> None:
    if mortal.name == "postgresql":
        pytest.skip("libpq waits for a stopped server; the governor does not")
    query = compile_sql("select count(*) as n from fact", worlds.tables)
    assert mortal.ask(query).rows == ((400,),)
    with frozen(mortal.server.process.pid):
        began = time.monotonic()
        with pytest.raises((DeadlineExceeded, EngineUnavailable)):
            mortal.ask(query, replace(LIMITS, seconds=1.0))
        assert time.monotonic() - began < 6.0
