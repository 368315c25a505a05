"""Tickets and answers on real sockets: whole, cut off, garbled, given up, and reused."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from peer_doubles import schema_frame

from accel_dask.errors import ExecutorUnavailable, InvariantViolated, RowLimit, StaleEpoch
from accel_dask.model.ids import TenantId, WorkerId
from accel_dask.model.routing import ExecutorRoute
from accel_dask.ticket_calls import Connections, TicketCall
from accel_dask.ticket_stream import (
    Frame,
    FrameKind,
    FrameReader,
    batch_frame,
    end_frame,
    error_frame,
    frame,
    read_batch,
    read_error,
    read_schema,
    send,
)
from accel_dask.worker_plugin.executor import conversation, ticket_server
from accel_dask.worker_plugin.executor.engine_threads import EngineThreads
from accel_dask.worker_plugin.executor.ticket_server import TicketServer

DEADLINE = 10.0
ROWS = pa.record_batch(
    {
        "n": pa.array([1, None, 3], pa.int64()),
        "s": ["a", "", None],
        "d": pa.array([Decimal("1.50"), None, Decimal("-2.25")], pa.decimal128(38, 2)),
        "t": pa.array([datetime(2026, 1, 2, 3, tzinfo=UTC), None, None], pa.timestamp("us", "UTC")),
        "l": [[1, None], [], None],
        "m": [{"x": 1.5}, {"x": None}, None],
    }
)


@dataclass
class Answering:
    batches: list[pa.RecordBatch]
    is_complete: bool = True
    before: Callable[[int], None] = lambda _: None
    deadline: float = field(default_factory=lambda: time.monotonic() + DEADLINE)

    @property
    def schema_message(self) -> pa.Buffer:
        return self.batches[0].schema.serialize()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for index, batch in enumerate(self.batches):
            self.before(index)
            yield batch

    def measured_text(self) -> bytes:
        return b'{"rows": 3}'


@dataclass
class Site:
    """A server that answers with whatever a test wants."""

    answer: Callable[[bytes], Answering]
    is_gone: list[Callable[[], bool]] = field(default_factory=list)
    asked: threading.Event = field(default_factory=threading.Event)
    closed: threading.Event = field(default_factory=threading.Event)
    """What an answer holds was given back."""
    threads: set[int] = field(default_factory=set)

    engine: EngineThreads = field(default_factory=lambda: EngineThreads("t", "queries", 2, None))

    def __post_init__(self) -> None:
        self.server = TicketServer("127.0.0.1", self._answer, {FrameKind.TICKET: self.engine})
        self.pool = Connections()
        self.route = ExecutorRoute(
            worker=WorkerId("w"),
            tenant=TenantId("t"),
            generation=1,
            incarnation="",
            address="grpc://127.0.0.1:1",
            attachments=frozenset(),
            ticket_port=self.server.port,
        )

    def _answer(
        self, signed: bytes, is_gone: Callable[[], bool], started_at: float
    ) -> tuple[Answering, Callable[[], None]]:
        self.is_gone.append(is_gone)
        self.threads.add(threading.get_ident())
        self.asked.set()
        return self.answer(signed), self.closed.set

    def send(self, ticket: bytes = b"ticket") -> TicketCall:
        return self.pool.send(self.route, ticket)


@contextmanager
def site(answer: Callable[[bytes], Answering]) -> Iterator[Site]:
    found = Site(answer)
    try:
        yield found
    finally:
        found.pool.close()
        found.server.close()
        found.engine.close()


def frames(call: TicketCall) -> list[Frame]:
    found = [call.read()]
    while found[-1].kind not in (FrameKind.END, FrameKind.ERROR):
        found.append(call.read())
    return found


def rows_of(found: list[Frame]) -> pa.Table:
    assert found[0].kind is FrameKind.SCHEMA
    schema = read_schema(found[0].payload)
    return pa.Table.from_batches([read_batch(one.payload, schema) for one in found[1:-1]], schema)


def test_an_answer_arrives_as_it_was_sent_on_one_connection_after_the_other() -> None:
    with site(lambda signed: Answering([ROWS] * len(signed))) as here:
        for count in (1, 3, 1, 7):
            call = here.send(b"x" * count)
            found = frames(call)
            call.close()
            assert rows_of(found).equals(pa.Table.from_batches([ROWS] * count))
            assert bytes(found[-1].payload).rstrip() == b'{"rows": 3}'
        assert len(here.threads) == 1


def test_an_answer_larger_than_any_buffer_arrives_whole() -> None:
    large = pa.record_batch({"n": pa.array(range(1_000_000), pa.int64())})
    with site(lambda _: Answering([large, large.slice(0, 5), large], is_complete=False)) as here:
        found = rows_of(frames(here.send()))
    assert found.equals(pa.Table.from_batches([large, large.slice(0, 5), large]))


def test_sliced_batches_and_batches_without_rows_arrive_as_they_are() -> None:
    sent = [ROWS.slice(1, 2), ROWS.slice(0, 0), ROWS.slice(2)]
    with site(lambda _: Answering(sent)) as here:
        assert rows_of(frames(here.send())).equals(pa.Table.from_batches(sent))


def test_an_error_has_its_class_and_its_text_and_leaves_the_connection_in_use() -> None:
    def answer(signed: bytes) -> Answering:
        if signed == b"bad":
            raise RowLimit("die Grenze ist 5 Zeilen für »flights«")
        return Answering([ROWS])

    with site(answer) as here:
        call = here.send(b"bad")
        error = read_error(call.read().payload)
        call.close()
        assert isinstance(error, RowLimit)
        assert str(error) == "die Grenze ist 5 Zeilen für »flights«"
        call = here.send()
        assert rows_of(frames(call)).num_rows == 3
        assert len(here.threads) == 1


def test_an_unexpected_failure_says_nothing_of_the_inside() -> None:
    def answer(_: bytes) -> Answering:
        raise ZeroDivisionError("/secret/path")

    with site(answer) as here:
        text = str(read_error(here.send().read().payload))
    assert "secret" not in text
    assert "internal error" in text


@pytest.mark.parametrize("batches", [0, 2])
def test_an_error_in_the_middle_comes_after_whole_batches(batches: int) -> None:
    def fail(index: int) -> None:
        if index == batches:
            raise StaleEpoch("in the middle")

    with site(lambda _: Answering([ROWS] * 5, is_complete=False, before=fail)) as here:
        found = frames(here.send())
        assert here.closed.wait(DEADLINE)
    kinds = [one.kind for one in found]
    whole = [FrameKind.SCHEMA, FrameKind.BATCH, FrameKind.BATCH] if batches else []
    assert kinds == [*whole, FrameKind.ERROR]


def test_a_call_that_is_cancelled_wakes_its_reader_and_is_noticed_by_the_executor() -> None:
    release = threading.Event()

    def wait(index: int) -> None:
        if index == 1:
            assert release.wait(DEADLINE)

    with site(lambda _: Answering([ROWS] * 3, is_complete=False, before=wait)) as here:
        call = here.send()
        assert [call.read().kind, call.read().kind] == [FrameKind.SCHEMA, FrameKind.BATCH]
        threading.Timer(0.05, call.cancel).start()
        with pytest.raises(ExecutorUnavailable):
            call.read()
        assert here.is_gone[0]()
        call.close()
        release.set()
        assert rows_of(frames(here.send())).num_rows == 9


def test_a_cancellation_that_comes_late_does_not_touch_the_next_query_on_the_connection() -> None:
    with site(lambda _: Answering([ROWS])) as here:
        first = here.send()
        frames(first)
        first.close()
        second = here.send()
        assert second.fileno() > 0
        first.cancel()
        first.close()
        assert rows_of(frames(second)).num_rows == 3
        assert len(here.threads) == 1


def test_a_call_closed_before_its_end_does_not_leave_its_rest_to_the_next() -> None:
    with site(lambda signed: Answering([ROWS] * len(signed))) as here:
        call = here.send(b"xxxxx")
        call.read()
        call.close()
        assert rows_of(frames(here.send(b"x"))).num_rows == 3


def test_an_executor_that_is_gone_and_back_gets_a_new_connection() -> None:
    with site(lambda _: Answering([ROWS])) as here:
        call = here.send()
        frames(call)
        call.close()
        here.server.end_all()
        deadline = time.monotonic() + DEADLINE
        while True:  # the end is on its way
            with suppress(ExecutorUnavailable):
                assert rows_of(frames(here.send())).num_rows == 3
                break
            assert time.monotonic() < deadline
        here.server.close()
        here.pool.forget(here.route)
        with pytest.raises(ExecutorUnavailable, match="no connection"):
            here.send()


@pytest.mark.parametrize("cut", [1, 7, 9, 40, 200, 400, 1000])
def test_an_answer_that_is_cut_off_is_lost_and_never_short(cut: int) -> None:
    whole = b"".join(
        bytes(part) for part in [*schema_frame(ROWS.schema), *batch_frame(ROWS), *batch_frame(ROWS)]
    )
    assert cut < len(whole)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(whole[:cut])
        theirs.close()
        reader = FrameReader(ours)
        with pytest.raises(ExecutorUnavailable):
            _ = [reader.read() for _ in range(4)]


@given(
    sizes=st.lists(st.integers(0, 200_000), min_size=1, max_size=6),
    pieces=st.lists(st.integers(1, 90_000), min_size=1, max_size=8),
    buffer_bytes=st.sampled_from([0, 1, 50, 8192]),
)
@settings(max_examples=100, deadline=None)
def test_frames_are_the_same_however_they_are_torn(
    sizes: list[int], pieces: list[int], buffer_bytes: int
) -> None:
    sent = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    data = b"".join(bytes(part) for one in sent for part in frame(FrameKind.BATCH, one)) + b"".join(
        bytes(part) for part in end_frame(b"{}")
    )
    ours, theirs = socket.socketpair()

    def write() -> None:
        offset = turn = 0
        while offset < len(data):
            step = pieces[turn % len(pieces)]
            theirs.sendall(data[offset : offset + step])
            offset, turn = offset + step, turn + 1

    with ours, theirs:
        writer = threading.Thread(target=write)
        writer.start()
        reader = FrameReader(ours, buffer_bytes=buffer_bytes)
        got = [bytes(reader.read().payload) for _ in sent]
        assert reader.read().kind is FrameKind.END
        assert reader.is_between_frames
        writer.join(DEADLINE)
    assert got == sent


@pytest.mark.parametrize("head", [(9, 4), (0, 4), (3, 2**32 - 1)])
def test_what_is_no_frame_is_refused_before_memory_is_taken(head: tuple[int, int]) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack("<II", *head))
        with pytest.raises(InvariantViolated):
            FrameReader(ours, 2**31 - 1).read()


def test_an_executor_closes_on_garbage_and_goes_on_for_others() -> None:
    with site(lambda _: Answering([ROWS])) as here:
        for garbage in (b"GET / HTTP/1.1\r\n\r\n", struct.pack("<II", 1, 2**31 - 1) + b"x" * 99):
            with socket.create_connection(("127.0.0.1", here.server.port), DEADLINE) as stranger:
                stranger.sendall(garbage)
                assert stranger.recv(100) == b""
        assert rows_of(frames(here.send())).num_rows == 3
        assert len(here.is_gone) == 1


def test_connections_beyond_their_number_are_refused_while_all_are_in_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ticket_server, "MAX_CONNECTIONS", 2)
    answered = threading.Event()
    answering = Answering([ROWS], before=lambda _: answered.wait(DEADLINE) and None)
    with site(lambda _: answering) as here:
        calls = []
        for _ in range(2):
            here.asked.clear()
            calls.append(here.send())
            assert here.asked.wait(DEADLINE)
        third = here.send()
        with pytest.raises(ExecutorUnavailable):
            third.read()
        third.close()
        answered.set()
        for call in calls:
            assert rows_of(frames(call)).num_rows == 3
            call.close()
        assert rows_of(frames(here.send())).num_rows == 3


def test_idle_connections_of_others_are_in_nobodys_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ticket_server, "MAX_CONNECTIONS", 2)
    with site(lambda _: Answering([ROWS])) as here:
        strangers = [socket.create_connection(("127.0.0.1", here.server.port)) for _ in range(9)]
        for number in range(3):
            others = Connections()
            call = others.send(here.route, b"ticket")
            assert rows_of(frames(call)).num_rows == 3, number
            call.close()
        for stranger in strangers:
            stranger.close()


def test_a_gateway_that_reads_nothing_holds_its_thread_no_longer_than_the_query_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(conversation, "_SPARE_SECONDS", 0.05)
    large = pa.record_batch({"n": pa.array(range(4_000_000), pa.int64())})
    ended = threading.Event()

    def answer(
        signed: bytes, is_gone: Callable[[], bool], started_at: float
    ) -> tuple[Answering, Callable[[], None]]:
        return Answering([large], is_complete=True, deadline=started_at + 0.1), ended.set

    threads = EngineThreads("t", "queries", 2, None)
    server = TicketServer("127.0.0.1", answer, {FrameKind.TICKET: threads})
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE) as idle:
        send(idle, frame(FrameKind.TICKET, b"x"))
        assert ended.wait(DEADLINE)
    server.close()


def test_error_frames_keep_what_follows_aligned() -> None:
    for length in range(20):
        _, payload = error_frame(StaleEpoch("x" * length))
        assert len(payload) % 8 == 0
        assert str(read_error(memoryview(payload))) == "x" * length
