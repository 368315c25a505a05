"""Queries while epochs flip, executors die and the store is away."""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any

import pyarrow as pa
import pytest
from adbc_driver_flightsql import dbapi
from gateway_world import World, flights, wait_until
from pyarrow import flight

from accel_dask.config import GatewaySettings
from accel_dask.errors import ExecutorUnavailable, NotResident, StoreUnavailable
from accel_dask.flight_errors import from_flight
from accel_dask.model.tenant import Quota
from flightsql_gateway.app import GatewayApp
from flightsql_gateway.flight_sql import messages


def ticket(sql: str) -> flight.Ticket:
    return flight.Ticket(messages.wrap(messages.new("CommandStatementQuery", query=sql)))


class Asking:
    """Threads that ask the same again and again."""

    def __init__(self, world: World, sql: str, threads: int = 3) -> None:
        self.answers: list[tuple[Any, ...]] = []
        self.errors: list[str] = []
        self._stop = threading.Event()
        self._world = world
        self._sql = sql
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        client, options = self._world.client("acme", "secret-of-acme")
        while not self._stop.is_set():
            try:
                table = client.do_get(ticket(self._sql), options).read_all()
                self.answers.append(tuple(column[0].as_py() for column in table.columns))
            except Exception as error:  # noqa: BLE001 - all of them are to be seen
                self.errors.append(repr(from_flight(error)))
                break
        client.close()

    def more(self, count: int = 20) -> None:
        target = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= target or bool(self.errors), 20)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
            assert not thread.is_alive()


def epoch(version: int) -> list[Any]:
    """Shards whose rows and number of rows tell the version."""
    rows = flights(version, rows=100 + version)
    return [rows.slice(0, 50), rows.slice(50)]


def test_no_query_fails_or_mixes_epochs_while_they_flip(world: World) -> None:
    asking = Asking(world, "select count(*), min(version), max(version) from flights")
    asking.more(1)  # of the first epoch
    old = world.executors[0]
    for version in range(2, 12):
        new = world.serve("acme", {"flights": (version, epoch(version))}, generation=version)
        world.retire("acme", "flights", version - 1)
        retired_at = world.store.read().revision
        wait_until(partial(_has_applied, world, retired_at))
        # The promise is given: the old one may refuse everything from here on.
        old.attached = frozenset()
        old = new
        asking.more(5)
    asking.stop()
    assert asking.errors == []
    seen = set(asking.answers)
    assert all(count == 100 + low and low == high for count, low, high in seen if low > 1)
    assert {low for _, low, _ in seen} >= {1, 11}


def _has_applied(world: World, revision: int) -> bool:
    record = world.gateway_record()
    return record is not None and record.applied_revision >= revision


def test_the_promise_covers_queries_that_wait_for_a_place(world: World) -> None:
    """A query planned before a flip and admitted after it must use the new epoch."""
    world.tenant("acme", Quota(concurrency=1, queue_wait_ms=5000))
    world.wait_applied()
    old = world.executors[0]
    blocked, release = threading.Event(), threading.Event()

    def block(_: Any) -> None:
        blocked.set()
        release.wait(10)

    old.before = block
    first = Asking(world, "select min(version) from flights", threads=1)
    assert blocked.wait(10)
    second = Asking(world, "select max(version) from flights", threads=1)
    wait_until(lambda: world.app.service.load("acme") == (1, 1))
    world.serve("acme", {"flights": (2, epoch(2))}, generation=2)
    old.attached = frozenset()
    old.before = lambda _: None
    release.set()
    second.more(1)
    first.stop()
    second.stop()
    assert first.errors == second.errors == []
    assert second.answers[0] == (2,)


def test_a_killed_executor_is_waited_for(world: World) -> None:
    rows = flights(rows=100)
    client, options = world.client("acme", "secret-of-acme")
    world.executors[0].leave()
    world.forget_executor("acme")
    world.wait_applied()
    restarted = threading.Timer(
        0.3,
        lambda: world.serve(
            "acme", {"flights": (1, [rows.slice(0, 60), rows.slice(60)])}, generation=1
        ),
    )
    started = time.monotonic()
    restarted.start()
    table = client.do_get(ticket("select count(*) n from flights"), options).read_all()
    assert table.to_pydict() == {"n": [100]}
    assert 0.25 < time.monotonic() - started < 3
    restarted.join()
    client.close()


def test_a_query_that_ends_its_executors_is_not_given_to_all_of_them(world: World) -> None:
    rows = flights(rows=100)
    epoch = {"flights": (1, [rows.slice(0, 60), rows.slice(60)])}
    for worker in ("w2", "w3", "w4", "w5"):
        world.serve("acme", epoch, worker=worker)

    mine = [executor for executor in world.executors if executor.tenant == "acme"]
    for executor in mine:
        executor.before = lambda _, executor=executor: executor.break_off()
    client, options = world.client("acme", "secret-of-acme")
    started = time.monotonic()
    with pytest.raises(flight.FlightUnavailableError) as failed:
        client.do_get(ticket("select count(*) n from flights"), options).read_all()
    assert isinstance(from_flight(failed.value), ExecutorUnavailable)
    assert time.monotonic() - started < 3
    assert sum(len(executor.tickets) for executor in mine) == 3
    client.close()


def test_an_executor_that_comes_back_at_the_same_address_is_found_again(world: World) -> None:
    """The table does not change: the store is away, and so is whoever would write to it."""
    executor = world.executors[0]
    calls = []

    def fail_twice(_: Any) -> None:
        calls.append(time.monotonic())
        if len(calls) < 3:
            raise ExecutorUnavailable("restarting")

    executor.before = fail_twice
    client, options = world.client("acme", "secret-of-acme")
    table = client.do_get(ticket("select count(*) n from flights"), options).read_all()
    assert table.to_pydict() == {"n": [100]}
    assert len(calls) == 3
    client.close()


def test_another_replica_answers_for_one_that_is_gone(world: World) -> None:
    rows = flights()
    world.serve("acme", {"flights": (1, [rows.slice(0, 60), rows.slice(60)])}, worker="w2")
    world.executors[0].leave()
    client, options = world.client("acme", "secret-of-acme")
    for number in range(10):
        sql = f"select count(*) n from flights where id >= 0 and {number} = {number}"
        started = time.monotonic()
        assert client.do_get(ticket(sql), options).read_all().to_pydict() == {"n": [100]}
        assert time.monotonic() - started < 1
    client.close()


def test_an_executor_that_stays_away_is_an_error_in_bounded_time(world: World) -> None:
    world.tenant("acme", Quota(deadline_ms=700))
    world.forget_executor("acme")
    world.wait_applied()
    client, options = world.client("acme", "secret-of-acme")
    started = time.monotonic()
    with pytest.raises(flight.FlightUnavailableError) as raised:
        client.do_get(ticket("select count(*) from flights"), options).read_all()
    assert isinstance(from_flight(raised.value), NotResident)
    assert 0.5 < time.monotonic() - started < 2
    client.close()


def test_an_executor_that_dies_in_mid_stream_is_an_error_and_no_shorter_answer(
    world: World,
) -> None:
    executor = world.executors[0]

    def die(index: int) -> None:
        if index == 2:
            executor.break_off()

    rows = flights(rows=10_000)
    executor = world.serve("acme", {"big": (1, [rows])}, worker="w5")
    executor.between = die
    client, options = world.client("acme", "secret-of-acme")
    reader = client.do_get(ticket("select * from big"), options)
    with pytest.raises(flight.FlightUnavailableError, match="middle of the answer"):
        reader.read_all()
    client.close()


def test_queries_go_on_while_the_store_is_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> Any:
        raise StoreUnavailable("no member answers")

    monkeypatch.setattr(world.store, "read", away)
    monkeypatch.setattr(world.store, "watch", away)
    monkeypatch.setattr(world.store, "commit", away)
    client, options = world.client("acme", "secret-of-acme")
    for _ in range(20):
        table = client.do_get(ticket("select count(*) n from flights"), options).read_all()
        assert table.to_pydict() == {"n": [100]}
    client.close()


def test_a_hung_executor_costs_no_more_than_the_deadline(world: World) -> None:
    world.tenant("acme", Quota(deadline_ms=400))
    world.wait_applied()
    release = threading.Event()
    world.executors[0].before = lambda _: release.wait(10) and None
    client, options = world.client("acme", "secret-of-acme")
    started = time.monotonic()
    with pytest.raises(flight.FlightTimedOutError, match=r"400 ms|deadline"):
        client.do_get(ticket("select count(*) from flights"), options).read_all()
    assert time.monotonic() - started < 2
    release.set()
    wait_until(lambda: world.app.service.load("acme") == (0, 0))
    client.close()


def test_a_slow_reader_loses_its_place_at_the_deadline(world: World) -> None:
    # More than gRPC and the system ever hold for a client that does not read.
    rows = pa.table({"id": range(200_000), "text": ["x" * 400] * 200_000})
    world.serve("acme", {"wide": (1, [rows])}, worker="w2")
    world.tenant("acme", Quota(deadline_ms=3000))
    world.wait_applied()
    client, options = world.client("acme", "secret-of-acme")
    started = time.monotonic()
    reader = client.do_get(ticket("select * from wide"), options)
    reader.read_chunk()
    assert world.app.service.load("acme") == (1, 0)
    wait_until(lambda: world.app.service.load("acme") == (0, 0))
    assert 2 < time.monotonic() - started < 8
    with pytest.raises(flight.FlightTimedOutError, match="3000 ms"):
        reader.read_all()
    client.close()


def test_a_prepared_statement_has_one_deadline_for_queue_and_run(world: World) -> None:
    world.tenant("acme", Quota(concurrency=1, deadline_ms=3000, queue_wait_ms=5000))
    world.wait_applied()
    turns = threading.Semaphore(0)
    with world.connect("acme", "secret-of-acme") as connection, connection.cursor() as cursor:
        cursor.adbc_prepare("select count(*) from flights where id > ?")
        world.executors[0].before = lambda _: turns.acquire(timeout=10) and None
        first = Asking(world, "select 1 from flights limit 1", threads=1)
        wait_until(lambda: world.app.service.load("acme") == (1, 0))
        threading.Timer(1.5, turns.release).start()
        started = time.monotonic()
        with pytest.raises(dbapi.Error, match="3000 ms"):
            cursor.execute("select count(*) from flights where id > ?", (1,))
        assert time.monotonic() - started < 4, "1.5 s in the queue are part of them"
    for _ in range(20):
        turns.release()
    first.stop()


def test_too_many_queries_are_told_to_come_back(world: World) -> None:
    world.tenant("acme", Quota(concurrency=1, queue_length=0))
    world.wait_applied()
    blocked, release = threading.Event(), threading.Event()

    def block(_: Any) -> None:
        blocked.set()
        release.wait(10)

    world.executors[0].before = block
    asking = Asking(world, "select 1 from flights limit 1", threads=1)
    assert blocked.wait(10)
    client, options = world.client("acme", "secret-of-acme")
    with pytest.raises(flight.FlightUnavailableError, match=r"EXHAUSTED\].*retry after 1000 ms"):
        client.do_get(ticket("select 2 from flights"), options).read_all()
    with world.connect("acme", "secret-of-acme") as connection, connection.cursor() as cursor:
        with pytest.raises(dbapi.Error) as told:
            cursor.execute("select 3 from flights")
        details = dict(told.value.details)
        assert details[b"x-accel-code"] == b"RESOURCE_EXHAUSTED"
        assert details[b"x-accel-retry-after-ms"] == b"1000"
    release.set()
    asking.stop()
    client.close()


def test_the_gateways_record_is_kept_and_taken_back(world: World) -> None:
    wait_until(lambda: world.gateway_record() is not None)
    record = world.gateway_record()
    assert record is not None
    assert record.address == world.url
    world.app.close(5)
    assert world.gateway_record() is None


def test_any_gateway_takes_tokens_tickets_and_handles_of_another(world: World) -> None:
    other = GatewayApp(GatewaySettings(port=0), world.store)
    url = other.start(10)
    try:
        client, options = world.client("acme", "secret-of-acme")
        query = messages.wrap(messages.new("CommandStatementQuery", query="select 7 as n"))
        info = client.get_flight_info(flight.FlightDescriptor.for_command(query), options)
        prepared = messages.new("ActionCreatePreparedStatementRequest", query="select 8 as n")
        (result,) = client.do_action(
            flight.Action("CreatePreparedStatement", messages.wrap(prepared)), options
        )
        _, created = messages.unwrap(result.body.to_pybytes())
        client.close()
        elsewhere = flight.FlightClient(url)
        table = elsewhere.do_get(info.endpoints[0].ticket, options).read_all()
        assert table.to_pydict() == {"n": [7]}
        command = messages.new(
            "CommandPreparedStatementQuery",
            prepared_statement_handle=created.prepared_statement_handle,
        )
        info = elsewhere.get_flight_info(
            flight.FlightDescriptor.for_command(messages.wrap(command)), options
        )
        table = elsewhere.do_get(info.endpoints[0].ticket, options).read_all()
        assert table.to_pydict() == {"n": [8]}
        elsewhere.close()
    finally:
        other.close(5)


def test_a_gateway_cut_off_for_too_long_stops_serving(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, options = world.client("acme", "secret-of-acme")
    monkeypatch.setattr(world.app.routing, "_frozen_serving_seconds", -1.0)
    with pytest.raises(flight.FlightUnavailableError, match="has not heard from the state store"):
        client.do_get(ticket("select 1"), options).read_all()
    client.close()


def test_a_schema_is_described_once_and_anew_for_a_new_epoch(world: World) -> None:
    sql = "select * from flights"
    with world.connect("acme", "secret-of-acme") as connection:

        def described() -> list[str]:
            with connection.cursor() as cursor:
                names: list[str] = cursor.adbc_execute_schema(sql).names
                return names

        for _ in range(3):
            assert described() == ["id", "carrier", "delay", "version"]
        assert len([t for t in world.executors[0].tickets if t.describe_only]) == 1
        kept = connection.cursor()
        assert len(kept.execute(sql).fetchall()) == 100
        wider = flights(2).append_column("extra", [[1] * 100])
        world.serve("acme", {"flights": (2, [wider])}, generation=2)
        assert described() == ["id", "carrier", "delay", "version", "extra"]
        # A statement prepared before the switch answers from the epoch of its run.
        assert kept.execute(sql).fetch_arrow_table().num_columns == 5
        kept.close()
