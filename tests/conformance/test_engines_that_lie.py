"""An engine that is a fake on the wire: it speaks Flight SQL, and lies, dawdles, sends too much or
dies. The client sees an error and never a wrong answer, and the breaker learns of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from gateway_world import World, flights
from pyarrow import flight

from accel_dask.errors import AccelError
from accel_dask.flight_errors import from_flight
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.fallback import FallbackPolicy, FallbackSpec
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import Quota
from accel_dask.store.records import put_record

SQL = "select id, carrier from flights order by id limit 3"
RIGHT = pa.table({"c0": pa.array([0, 1, 2], pa.int64()), "c1": ["C0", "C1", "C2"]})
Answer = Callable[[], Iterator[pa.RecordBatch]]


class FakeEngine(flight.FlightServerBase):  # type: ignore[misc]
    """Answers every query with `schema` and `answer`; its tables are as they should be."""

    def __init__(self) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self.asked = 0
        self.ended = threading.Event()
        """An answer is no longer being sent."""
        self.over = threading.Event()
        self.says(RIGHT)

    def says(self, table: pa.Table, answer: Answer | None = None) -> None:
        self.schema = table.schema
        self.answer = answer or (lambda: iter(table.to_batches()))

    def get_flight_info(self, context: Any, descriptor: Any) -> Any:
        if b"CommandGetSqlInfo" in descriptor.command:
            # Lies about this one end the Go driver, and with it all of its engines in a process.
            raise flight.FlightServerError("unimplemented")
        is_of_table = b"LIMIT 0" in descriptor.command
        self.asked += not is_of_table
        schema = flights().schema if is_of_table else self.schema
        ticket = flight.Ticket(b"table" if is_of_table else b"query")
        return flight.FlightInfo(schema, descriptor, [flight.FlightEndpoint(ticket, [])], -1, -1)

    def do_get(self, context: Any, ticket: Any) -> Any:
        if ticket.ticket == b"table":
            return flight.RecordBatchStream(flights().slice(0, 0))

        def told() -> Iterator[pa.RecordBatch]:
            try:
                yield from self.answer()
            finally:
                self.ended.set()

        return flight.GeneratorStream(self.schema, told())


class LiarWorld(World):
    """A gateway with the fake behind its dataset, which is always asked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.engine = FakeEngine()

    def begin(self) -> None:
        self.tenant("acme", Quota(fallback_deadline_ms=2000, fallback_max_rows=1000))
        self.serve("acme", {"flights": (1, [flights()])})
        options = (("table", "flights"), ("uri", f"grpc://127.0.0.1:{self.engine.port}"))
        spec = FallbackSpec(engine="flightsql", policy=FallbackPolicy.ALWAYS, options=options)
        source = SourceSpec(connector="parquet")
        put_record(
            self.store,
            Dataset(tenant=TenantId("acme"), name="flights", source=source, fallback=spec),
        )
        self.start()

    def ask(self, sql: str = SQL) -> list[dict[str, Any]]:
        with self.connect("acme", "secret-of-acme") as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            rows: list[dict[str, Any]] = cursor.fetch_arrow_table().to_pylist()
            return rows

    def refusal(self, sql: str = SQL) -> AccelError:
        try:
            rows = self.ask(sql)
        except Exception as error:  # noqa: BLE001 - whatever the driver makes of it
            return from_flight(error)
        raise AssertionError(f"it was answered: {rows}")


@pytest.fixture
def world() -> Iterator[LiarWorld]:
    found = LiarWorld()
    found.begin()
    yield found
    found.engine.over.set()
    found.close()
    threading.Thread(target=found.engine.shutdown, daemon=True).start()


def test_an_honest_fake_is_believed(world: LiarWorld) -> None:
    expected = [{"id": n, "carrier": f"C{n}"} for n in range(3)]
    assert world.ask() == expected


def batch(*ids: int) -> pa.RecordBatch:
    return pa.record_batch({"c0": pa.array(ids, pa.int64()), "c1": [f"C{n % 3}" for n in ids]})


LIES = (
    ("a text as a number", pa.table({"c0": [0], "c1": pa.array([1], pa.int64())})),
    ("a number as a text", pa.table({"c0": ["0"], "c1": ["C0"]})),
    ("a number too large", pa.table({"c0": pa.array([2**63], pa.uint64()), "c1": ["C0"]})),
    ("a fraction", pa.table({"c0": [0.5], "c1": ["C0"]})),
    ("too few columns", pa.table({"c0": [0]})),
    ("too many columns", pa.table({"c0": [0], "c1": ["C0"], "c2": [1]})),
    ("more rows than the LIMIT", pa.Table.from_batches([batch(0, 1, 2, 3)])),
)


@pytest.mark.parametrize(("lie", "table"), LIES, ids=[name for name, _ in LIES])
def test_a_lie_is_an_error_and_then_the_engine_is_left_alone(
    lie: str, table: pa.Table, world: LiarWorld
) -> None:
    world.engine.says(table)
    for _ in range(5):
        assert world.refusal().code == "ENGINE_DISAGREES", lie
    refused = world.refusal()
    assert refused.code == "ENGINE_UNAVAILABLE"
    assert "is left alone; retry after" in str(refused)
    assert world.engine.asked == 5


def test_two_rows_of_one_aggregate_are_no_answer(world: LiarWorld) -> None:
    world.engine.says(pa.table({"c0": pa.array([1, 2], pa.int64())}))
    assert world.refusal("select count(*) as n from flights").code == "ENGINE_DISAGREES"


def test_an_answer_without_end_ends_at_the_tenants_limit_there_too(world: LiarWorld) -> None:
    def endless() -> Iterator[pa.RecordBatch]:
        while not world.engine.over.is_set():
            yield batch(*range(100))

    world.engine.says(RIGHT, endless)
    assert world.refusal("select id, carrier from flights").code == "ROW_LIMIT"
    assert world.engine.ended.wait(10), "the engine goes on sending"


def test_half_an_answer_is_no_answer(world: LiarWorld) -> None:
    def dying() -> Iterator[pa.RecordBatch]:
        yield batch(0, 1)
        raise flight.FlightServerError("out of memory")

    world.engine.says(RIGHT, dying)
    assert world.refusal().code in {"ENGINE_FAILED", "ENGINE_UNAVAILABLE"}


@pytest.mark.parametrize("before_dawdling", [0, 1])
def test_a_slow_engine_costs_the_deadline_and_is_then_left_alone(
    before_dawdling: int, world: LiarWorld
) -> None:
    def dawdling() -> Iterator[pa.RecordBatch]:
        yield from [batch(0)] * before_dawdling
        world.engine.over.wait(20)

    world.tenant("acme", Quota(fallback_deadline_ms=300))
    world.wait_applied()
    world.engine.says(RIGHT, dawdling)
    began, refused = time.monotonic(), ""
    while "is left alone" not in refused:
        error = world.refusal()
        refused = str(error)
        assert error.code in {"DEADLINE_EXCEEDED", "ENGINE_UNAVAILABLE"}
        assert time.monotonic() - began < 20, "the breaker stays closed"


def test_a_hundred_equal_queries_are_one_at_the_engine(world: LiarWorld) -> None:
    everybody = threading.Event()

    def late() -> Iterator[pa.RecordBatch]:
        everybody.wait(20)
        yield from RIGHT.to_batches()

    world.tenant("acme", Quota(fallback_deadline_ms=30_000))
    world.wait_applied()
    world.engine.says(RIGHT, late)
    under_way = world.app._fallback._under_way
    with ThreadPoolExecutor(100) as pool:
        asked = [pool.submit(world.ask) for _ in range(100)]
        deadline = time.monotonic() + 25
        while sum(one._readers for one in tuple(under_way.values())) < 100:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        everybody.set()
        answers = [one.result(30) for one in asked]
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]) == 3
    assert world.engine.asked == 1


BROKEN = """
from gateway_world import flights
from pyarrow import flight
from test_engines_that_lie import FakeEngine
from accel_dask.connectors.olap.registry import open_engine
from accel_dask.connectors.olap.settings import EngineSettings
from accel_dask.errors import EngineUnavailable

class Nonsense(FakeEngine):
    def get_flight_info(self, context, descriptor):
        ends = [flight.FlightEndpoint(flight.Ticket(b"query"), [])]
        return flight.FlightInfo(self.schema, descriptor, ends, -1, -1)

engine = Nonsense()
asked = open_engine(EngineSettings(kind="flightsql", uri=f"grpc://127.0.0.1:{engine.port}"), "")
for _ in range(2):
    try:
        asked.ping()
    except EngineUnavailable as error:
        print(error, flush=True)
import os
os._exit(0)
"""


def test_nonsense_that_breaks_the_driver_is_told_with_the_way_out() -> None:
    folders = [str(Path(__file__).parent), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", BROKEN],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout.count("restart the gateway") == 2, done.stdout + done.stderr[-2000:]
