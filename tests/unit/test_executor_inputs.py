"""Inputs of a query: fetched whole from peers or not at all. Peers are doubles in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pytest
from executor_builders import make_input, make_source, make_ticket, signed
from peer_doubles import ALL, WAIT, PeerWorld, batch

from accel_dask.codec import decode, encode
from accel_dask.errors import (
    AccelError,
    DeadlineExceeded,
    ExecutorUnavailable,
    InvalidQuery,
    InvariantViolated,
    MemoryLimit,
    QueryCancelled,
    ResourceExhausted,
    RowLimit,
    StaleEpoch,
    Unauthenticated,
    UnsupportedQuery,
)
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import MIB
from accel_dask.model.ticket import (
    Cancellation,
    Input,
    Source,
    Ticket,
    check_inputs,
    sign,
    signature_of,
)
from accel_dask.worker_plugin.executor import inputs as inputs_module
from accel_dask.worker_plugin.executor.engine_threads import EngineThreads
from accel_dask.worker_plugin.executor.gathered import InputMemory
from accel_dask.worker_plugin.executor.part_types import types_to_cast, with_types
from accel_dask.worker_plugin.executor.peers import PeerClients

World = PeerWorld


@pytest.fixture(params=[True, False], ids=["frames", "Flight"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[World]:
    built = PeerWorld(tmp_path, frames=request.param)
    yield built
    built.close()


# What arrives.


def test_an_input_is_its_pieces_one_after_the_other(world: World) -> None:
    slow = world.peer(WAIT, batch(1), batch(2, 3))
    empty = world.peer()
    quick = world.peer(batch(4), batch(), slow.go_on.set, batch(5))
    rows = world.rows(slow.source(), empty.source(), quick.source())
    assert rows == [{"x": n} for n in (1, 2, 3, 4, 5)]


def test_an_input_without_rows_still_has_its_columns(world: World) -> None:
    assert world.rows(world.peer().source(), world.peer().source()) == []


def test_an_input_may_be_read_twice_in_one_statement(world: World) -> None:
    sql = 'SELECT count(*) AS n FROM "input_0" a JOIN input_0 b USING (x)'
    assert world.rows(world.peer(batch(1, 2, 3)).source(), sql=sql) == [{"n": 3}]


def test_a_query_may_have_several_inputs(world: World) -> None:
    one, two = world.peer(batch(1)), world.peer(batch(2), batch(3))
    inputs = (make_input(one.source()), make_input(two.source(), name="input_1"))
    sql = 'SELECT a.x + b.x AS x FROM "input_0" a, "input_1" b ORDER BY 1'
    assert world.table(make_ticket(sql, inputs=inputs)).to_pylist() == [{"x": 3}, {"x": 4}]


def test_what_was_fetched_is_counted(world: World) -> None:
    one, two = world.peer(batch(1, 2)), world.peer(batch(3))
    query = world.engine.run(make_ticket(ALL, inputs=(make_input(one.source(), two.source()),)))
    assert list(query)
    assert query.input_stats is not None
    assert (query.input_stats.rows, query.input_stats.bytes, query.input_stats.peers) == (3, 24, 2)


def test_inputs_are_seen_by_their_own_query_only(world: World) -> None:
    inputs = [(make_input(world.peer(batch(n)).source()),) for n in range(2)]
    running = [world.engine.run(make_ticket(ALL, inputs=each)) for each in inputs]
    with pytest.raises(InvalidQuery):
        world.engine.run(make_ticket(ALL, is_part=True))
    assert [b.to_pylist() for query in running for b in query] == [[{"x": 0}], [{"x": 1}]]
    with pytest.raises(InvalidQuery):
        world.engine.run(make_ticket(ALL))


@pytest.mark.parametrize("sql", ["DELETE FROM input_0", "DROP VIEW input_0", "SELECT 1; SELECT 2"])
def test_a_statement_with_inputs_is_checked_like_any_other(world: World, sql: str) -> None:
    with pytest.raises(AccelError):
        world.rows(world.peer(batch(1)).source(), sql=sql)


def test_describing_needs_the_form_of_the_first_piece_only(world: World) -> None:
    first, second = world.peer(batch(1), batch(2)), world.peer()
    sql = "SELECT sum(x) AS s, 'a' AS t FROM \"input_0\""
    ticket = make_ticket(
        sql, inputs=(make_input(first.source(), second.source()),), describe_only=True
    )
    assert world.table(ticket).schema.names == ["s", "t"]
    assert (first.asked, second.asked) == (1, 0)


# Who is asked when something fails.

AWAY = [
    ExecutorUnavailable("gone"),
    StaleEpoch("old"),
    ResourceExhausted("full"),
    ValueError("odd"),
]


@pytest.mark.parametrize("failure", AWAY, ids=lambda e: type(e).__name__)
def test_another_executor_gives_the_whole_piece_when_one_fails(
    world: World, failure: Exception
) -> None:
    broken = world.peer(batch(1), batch(2), failure)
    whole = world.peer(batch(1), batch(2), batch(3))
    assert world.rows((broken.source(), whole.source())) == [{"x": n} for n in (1, 2, 3)]
    assert (broken.asked, whole.asked) == (1, 1)


def test_nobody_listens_where_the_first_was(world: World) -> None:
    dead = world.peer()
    dead.shutdown()
    assert world.rows((dead.source(), world.peer(batch(7)).source())) == [{"x": 7}]
    assert dead.address not in world.engine.peers.clients._clients


def test_an_address_that_is_none_is_an_executor_that_is_not_there(world: World) -> None:
    odd = make_source("nonsense", "SELECT 1")
    assert world.rows((odd, world.peer(batch(7)).source())) == [{"x": 7}]
    with pytest.raises(ExecutorUnavailable):
        world.rows(odd)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (StaleEpoch("epoch 4 of acme.sales is not served here"), StaleEpoch),
        (ResourceExhausted("full"), ResourceExhausted),
        (ExecutorUnavailable("connect to 10.1.2.3:77 failed"), ExecutorUnavailable),
        (QueryCancelled("why?"), ExecutorUnavailable),
        (Unauthenticated("no"), ExecutorUnavailable),
        (ZeroDivisionError("a bug at /srv/x.py"), ExecutorUnavailable),
    ],
    ids=lambda e: e.__name__ if isinstance(e, type) else type(e).__name__,
)
def test_when_nobody_can_give_a_piece_the_query_fails_as_one_to_plan_again(
    world: World, failure: Exception, expected: type[AccelError]
) -> None:
    with pytest.raises(expected) as caught:
        world.rows(
            world.peer(batch(1)).source(),
            (world.peer(batch(1), failure).source(), world.peer(failure).source()),
        )
    assert type(caught.value) is expected
    for inside in ("10.1.2.3", "127.0.0.1", "/srv", "bug"):
        assert inside not in str(caught.value)


@pytest.mark.parametrize(
    "failure",
    [InvalidQuery("not a number"), UnsupportedQuery("no"), RowLimit("rows"), MemoryLimit("memory")],
    ids=lambda e: type(e).__name__,
)
def test_a_fault_of_the_query_is_told_at_once_and_asked_of_nobody_else(
    world: World, failure: AccelError
) -> None:
    other = world.peer(batch(1))
    endless = world.peer(WAIT)
    with pytest.raises(type(failure), match=str(failure)):
        world.rows((world.peer().refuse(failure).source(), other.source()), endless.source())
    assert other.asked == 0
    assert not endless.asked or endless.is_cancelled.wait(5)


@pytest.mark.parametrize("after", [0, 1], ids=["before the first batch", "in the middle"])
def test_a_peer_that_answers_nothing_any_more_is_given_up_for_another(
    world: World, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    monkeypatch.setattr(inputs_module, "SILENT_SECONDS", 0.1)
    hung = world.peer(*[batch(9)] * after, WAIT, batch(9))
    hung.answers_pings = False
    other = world.peer(batch(1))
    started = time.monotonic()
    assert world.rows((hung.source(), other.source())) == [{"x": 1}]
    assert time.monotonic() - started < 2.5
    assert hung.pings == 1
    assert world.rows((hung.source(), other.source())) == [{"x": 1}]
    assert (hung.asked, other.asked) == (1, 2), "for a while it is asked last"


def test_a_slow_peer_that_answers_pings_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inputs_module, "SILENT_SECONDS", 0.05)
    other = world.peer(batch(2))
    slow = world.peer(lambda: time.sleep(1.2), batch(1))
    assert world.rows((slow.source(), other.source())) == [{"x": 1}]
    assert slow.pings > 1
    assert other.asked == 0


# Stopping.


def test_the_deadline_ends_the_fetch_and_cancels_what_was_asked(world: World) -> None:
    peer = world.peer()
    peer.first = peer.wait
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="longer than the 200 ms"):
        world.rows(peer.source(), timeout_ms=200)
    assert time.monotonic() - started < 2
    assert peer.is_cancelled.wait(2)
    assert world.frames or peer.cancelled[0].signature


def test_a_stopped_query_cancels_its_parts_at_once(world: World) -> None:
    waiting, streaming = world.peer(), world.peer(batch(1), WAIT, batch(2))
    waiting.first = waiting.wait
    gone = threading.Event()
    inputs = (make_input(waiting.source(), streaming.source()),)
    failed: list[BaseException] = []

    def run() -> None:
        try:
            world.engine.run(make_ticket(ALL, inputs=inputs), is_cancelled=gone.is_set)
        except AccelError as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    assert waiting.is_asked.wait(5)
    assert streaming.is_asked.wait(5)
    stopped_at = time.monotonic()
    gone.set()
    thread.join(5)
    assert time.monotonic() - stopped_at < 2
    assert type(failed[0]) is QueryCancelled
    assert waiting.is_cancelled.wait(2)


def test_a_query_that_waits_for_its_parts_holds_a_place_of_queries_only(world: World) -> None:
    gone = threading.Event()

    def run() -> None:
        peer = world.peer()
        peer.first = peer.wait
        inputs = (make_input(peer.source()),)
        with pytest.raises(QueryCancelled):
            world.engine.run(make_ticket(ALL, inputs=inputs), is_cancelled=gone.is_set)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 10
    while world.engine.threads.free_count:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    part = world.engine.run(make_ticket("SELECT 1 AS x", is_part=True))
    assert [b.to_pylist() for b in part] == [[{"x": 1}]]
    with pytest.raises(ResourceExhausted):
        world.engine.run(make_ticket("SELECT 1", timeout_ms=50))
    gone.set()
    for thread in threads:
        thread.join()


# Limits.


def test_more_rows_than_an_input_may_have_are_an_error(world: World) -> None:
    endless = world.peer(*[batch(*range(100))] * 1000)
    with pytest.raises(RowLimit, match=r"more than 5000 rows from several executors.*acme"):
        world.rows(world.peer(batch(1)).source(), endless.source(), max_rows=5_000)
    assert len(world.rows(world.peer(batch(1, 2)).source(), max_rows=2)) == 2


def test_more_bytes_than_an_input_may_have_are_an_error(world: World) -> None:
    with pytest.raises(MemoryLimit, match=r"more than 50000 bytes from several executors.*acme"):
        world.rows(*[world.peer(*[batch(*range(1000))] * 4).source()] * 2, max_bytes=50_000)
    assert len(world.rows(world.peer(batch(1, 2)).source(), max_bytes=16)) == 2


@pytest.mark.parametrize("limits", [{"max_rows": 5}, {"max_bytes": 8 * 5}])
def test_the_limits_hold_for_all_inputs_of_a_query_together(
    world: World, limits: dict[str, int]
) -> None:
    def ticket(rows: int) -> Ticket:
        inputs = [
            make_input(world.peer(batch(*range(rows))).source(), name=f"input_{n}", **limits)
            for n in range(2)
        ]
        sql = 'SELECT a.x FROM "input_0" a JOIN "input_1" b USING (x)'
        return make_ticket(sql, inputs=tuple(inputs))

    assert world.table(ticket(2)).num_rows == 2
    with pytest.raises((RowLimit, MemoryLimit)):
        world.table(ticket(3))


def test_the_inputs_of_all_queries_share_one_bound(world: World) -> None:
    world.engine.peers.memory._max_bytes = 20_000
    held = world.engine.run(
        make_ticket(ALL, inputs=(make_input(world.peer(batch(*range(1000))).source()),))
    )
    assert world.engine.peers.memory.used_bytes == 0, "all of the answer is here"
    world.engine.peers.memory.reserve(15_000)
    with pytest.raises(MemoryLimit, match="gather more than"):
        world.rows(world.peer(batch(*range(1000))).source())
    world.engine.peers.memory.give_back(15_000)
    assert len(world.rows(world.peer(batch(*range(1000))).source())) == 1000
    held.close()


def test_an_answer_that_streams_keeps_its_inputs_until_it_ends(world: World) -> None:
    sql = 'SELECT a.x FROM "input_0" a, "input_0" b'
    source = world.peer(batch(*range(2000))).source()
    query = world.engine.run(
        make_ticket(sql, inputs=(make_input(source),), max_result_rows=10_000_000)
    )
    next(query)
    assert world.engine.peers.memory.used_bytes == 16_000
    query.close()
    assert world.engine.peers.memory.used_bytes == 0


def test_no_room_for_what_a_peer_sends_is_a_limit_and_not_a_peer_that_is_gone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(size: int) -> None:
        raise pa.ArrowMemoryError("malloc of size 5 failed")

    monkeypatch.setattr(world.engine.peers.memory, "reserve", full)
    other = world.peer(batch(1))
    with pytest.raises(MemoryLimit):
        world.rows((world.peer(batch(1)).source(), other.source()))
    assert other.asked == 0


# What is refused.


def test_pieces_of_different_forms_are_never_cast(world: World) -> None:
    other = pa.schema({"x": pa.int32()})
    for peers in (
        [world.peer(batch(1)), world.peer(schema=other)],
        [world.peer(schema=other), world.peer(batch(1))],
    ):
        with pytest.raises(InvariantViolated, match=r"different forms \(column x as int"):
            world.rows(*[peer.source() for peer in peers])
    renamed = world.peer(schema=pa.schema({"y": pa.int64()}))
    with pytest.raises(InvariantViolated, match=r"columns x and y|columns y and x"):
        world.rows(world.peer().source(), renamed.source())


def test_types_that_only_the_engine_tells_apart_are_different_forms(world: World) -> None:
    schema = pa.schema({"x": pa.decimal128(38, 0)})
    plain, huge = (with_types(schema, [kind]) for kind in ("DECIMAL(38,0)", "HUGEINT"))
    with pytest.raises(InvariantViolated, match="different forms"):
        world.rows(world.peer(schema=plain).source(), world.peer(schema=huge).source())


@pytest.mark.parametrize(
    "source",
    [
        make_source("grpc://127.0.0.1:9", "SELECT 1", tenant=TenantId("rival")),
        make_source("grpc://127.0.0.1:9", "SELECT 1", is_part=False),
        Source(
            address="grpc://127.0.0.1:9",
            ticket=sign(encode(make_ticket("SELECT 1", is_part=True)), b"another key"),
        ),
        Source(address="grpc://127.0.0.1:9", ticket=b""),
        make_source(
            "grpc://127.0.0.1:9",
            "SELECT 1",
            inputs=(make_input(make_source("grpc://127.0.0.1:9", "SELECT 1")),),
        ),
    ],
    ids=["another tenant's", "no part", "another key", "empty", "a part with inputs"],
)
def test_a_source_that_is_not_a_part_of_the_tenant_is_never_asked(
    world: World, source: Source
) -> None:
    with pytest.raises(InvariantViolated, match="not a part of it"):
        world.rows(source)
    assert world.engine.peers.clients.count == 0


def _input(**overrides: Any) -> Input:
    return make_input(make_source("grpc://127.0.0.1:9", "SELECT 1"), **overrides)


@pytest.mark.parametrize(
    "fields",
    [
        {"inputs": (_input(),), "is_part": True},
        {"inputs": (_input(), _input())},
        {"inputs": (_input(name="sales"),)},
        {"inputs": (_input(name='input_0" '),)},
        {"inputs": (_input(pieces=()),)},
        {"inputs": (make_input(()),)},
    ],
    ids=["part with inputs", "twice", "odd name", "quote", "no piece", "no alternative"],
)
def test_inputs_of_a_wrong_form_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InvariantViolated):
        check_inputs(make_ticket("SELECT 1", **fields))


def test_a_ticket_of_an_earlier_version_has_no_inputs() -> None:
    ticket = make_ticket("SELECT 1")
    fields = msgspec.json.decode(encode(ticket))
    assert (fields.pop("inputs"), fields.pop("is_part")) == ([], False)
    assert decode(encode(fields), Ticket) == ticket
    with_inputs = make_ticket("SELECT 1", inputs=(_input(),))
    assert decode(encode(with_inputs), Ticket) == with_inputs


# Types.

TYPES = {
    "HUGEINT": "170141183460469231731687303715884105727::HUGEINT",
    "DECIMAL(38,0)": "1::DECIMAL(38,0)",
    "UUID": "'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::UUID",
    "JSON": "'{\"a\": 1}'::JSON",
    "ENUM('HUGEINT', 'it''s')": "'it''s'::ENUM('HUGEINT', 'it''s')",
    "HUGEINT[]": "[1::HUGEINT, NULL]",
    'STRUCT(u UUID, "a b" VARCHAR)': "{'u': 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::UUID, "
    "'a b': 'x'}",
    "MAP(VARCHAR, HUGEINT)": "MAP {'a': 1::HUGEINT}",
    "UBIGINT": "18446744073709551615::UBIGINT",
    "DOUBLE": "'nan'::DOUBLE",
    "VARCHAR": "'a' || chr(0) || 'é'",
    "DATE": "'infinity'::DATE",
    "TIMESTAMP_NS": "'2024-01-01 01:02:03.123456789'::TIMESTAMP_NS",
    "TIMESTAMP_S": "'2024-01-01 01:02:03'::TIMESTAMP_S",
    "TIMESTAMP WITH TIME ZONE": "TIMESTAMPTZ '2024-01-01 01:02:03+02'",
    "INTERVAL": "INTERVAL '1 month 2 days 3 microseconds'",
    "BLOB": "'\\x00\\xFF'::BLOB",
    "BIGNUM": "'123456789012345678901234567890123456789012'::BIGNUM",
}


@pytest.mark.parametrize("kind", TYPES)
def test_a_value_of_a_part_has_the_type_and_text_that_it_has_at_home(
    world: World, kind: str
) -> None:
    home = f"SELECT typeof(v) AS t, v::VARCHAR AS text FROM (SELECT {TYPES[kind]} AS v)"
    part = world.engine.run(make_ticket(f"SELECT {TYPES[kind]} AS v", is_part=True))
    peer = world.peer(*part, schema=part.schema)
    [found] = world.rows(
        peer.source(), sql="SELECT typeof(v) AS t, v::VARCHAR AS text FROM input_0"
    )
    [wanted] = world.table(make_ticket(home)).to_pylist()
    assert found == wanted
    assert found["t"] == kind


@pytest.mark.parametrize(
    "value", ["1::UHUGEINT", "'0101'::BIT", "['12:00:00+02'::TIMETZ]"], ids=lambda v: v
)
def test_a_type_that_would_arrive_wrong_is_refused(world: World, value: str) -> None:
    with pytest.raises(UnsupportedQuery, match=r"column v of type .* cannot be gathered"):
        world.engine.run(make_ticket(f"SELECT {value} AS v", is_part=True))


def test_a_name_of_a_type_in_a_name_is_no_type() -> None:
    schema = pa.schema({"v": pa.struct({"BIT": pa.int32()})})
    assert with_types(schema, ['STRUCT("BIT" INTEGER, "UUID" INTEGER)']) is schema
    assert types_to_cast(schema) is None


# Small parts.


def test_places_are_given_in_the_order_of_arrival() -> None:
    class Query:
        deadline = time.monotonic() + 20

        def check_stopped(self) -> None:
            pass

    threads = EngineThreads("acme", "queries", 1, None)
    first = threads.acquire(Query())
    order: list[int] = []

    def wait(number: int) -> None:
        thread = threads.acquire(Query())
        order.append(number)
        threads.release(thread)

    waiting = []
    for number in range(8):
        waiting.append(threading.Thread(target=wait, args=(number,)))
        waiting[-1].start()
        while len(threads._line) <= number:
            time.sleep(0.001)
    threads.release(first)
    for each in waiting:
        each.join(5)
    assert order == list(range(8))
    assert threads.free_count == 1
    threads.close()


def test_who_leaves_the_line_passes_his_place_on() -> None:
    class Query:
        def __init__(self, seconds: float) -> None:
            self.deadline = time.monotonic() + seconds

        def check_stopped(self) -> None:
            pass

    threads = EngineThreads("acme", "queries", 1, 1)
    taken = threads.acquire(Query(1))
    with pytest.raises(ResourceExhausted, match="none ended in this query's time"):
        threads.acquire(Query(0.03))
    assert len(threads._line) == 0
    threads.release(taken)
    assert threads.acquire(Query(1)) is taken
    threads.release(taken)
    threads.close()


def test_a_cancellation_may_name_one_ticket() -> None:
    one, two = (signed(make_ticket("SELECT 1", query_id=q)).ticket for q in ("a", "b"))
    assert signature_of(one) != signature_of(two)
    old = encode({"tenant": "acme", "query_id": "a"})
    assert decode(old, Cancellation).signature == ""


def test_no_more_connections_are_kept_than_a_tenant_may_have_peers() -> None:
    clients = PeerClients()
    first = clients.client("grpc://127.0.0.1:1")
    assert clients.client("grpc://127.0.0.1:1") is first
    for port in range(2, 80):
        clients.client(f"grpc://127.0.0.1:{port}")
    assert clients.count == 64
    assert clients.client("grpc://127.0.0.1:1") is not first
    clients.close()
    assert clients.count == 0


def test_memory_given_back_can_be_had_again() -> None:
    memory = InputMemory("acme", 2 * MIB)
    memory.reserve(2 * MIB)
    with pytest.raises(MemoryLimit, match="2 MiB"):
        memory.reserve(1)
    memory.give_back(2 * MIB)
    memory.reserve(1)
