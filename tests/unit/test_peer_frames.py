"""Parts asked for by frames: whatever a peer sends, an input is whole or its query fails."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from executor_builders import make_input, make_source, make_ticket
from peer_doubles import ALL, SCHEMA, WAIT, FrameListener, PeerWorld, batch, schema_frame

from accel_dask.errors import (
    AccelError,
    DeadlineExceeded,
    ExecutorUnavailable,
    InvalidQuery,
    MemoryLimit,
    QueryCancelled,
)
from accel_dask.model.tenant import MIB
from accel_dask.model.ticket import Source
from accel_dask.ticket_calls import Addressee, Connections, TicketCall
from accel_dask.ticket_stream import (
    FrameKind,
    batch_frame,
    end,
    end_frame,
    error_frame,
    frame,
)


def raw(*frames: Any) -> bytes:
    return b"".join(bytes(memoryview(part)) for one in frames for part in one)


WHOLE = raw(schema_frame(SCHEMA), batch_frame(batch(1, 2)), batch_frame(batch(3)), end_frame(b""))
ROWS = [{"x": 1}, {"x": 2}, {"x": 3}]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[PeerWorld]:
    built = PeerWorld(tmp_path, frames=True)
    yield built
    built.close()


class RawPeer:
    """Sends the same bytes for every part, and no more; then it closes or stays."""

    def __init__(self, data: bytes, *, closes: bool = False) -> None:
        self._data = data
        self._closes = closes
        self.asked = 0
        self.frames = FrameListener(self._answer)

    def _answer(self, connection: socket.socket) -> None:
        self.asked += 1
        connection.sendall(self._data)
        if self._closes:
            end(connection)

    def source(self) -> Source:
        return make_source("grpc://127.0.0.1:9", "SELECT 1", ticket_port=self.frames.port)


@pytest.fixture
def raw_peers() -> Iterator[list[RawPeer]]:
    made: list[RawPeer] = []
    yield made
    for peer in made:
        peer.frames.close()


NONSENSE = {
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a kind that is none": struct.pack("<II", 9, 4) + b"1234",
    "a length that is none": struct.pack("<II", FrameKind.BATCH, 2**32 - 1),
    "a ticket": raw(frame(FrameKind.TICKET, b"x")),
    "a part": raw(frame(FrameKind.PART, b"x")),
    "rows before their form": raw(batch_frame(batch(9)), end_frame(b"")),
    "an end without a form": raw(end_frame(b"")),
    "two forms": raw(schema_frame(SCHEMA), schema_frame(SCHEMA), end_frame(b"")),
    "a form that is none": raw(frame(FrameKind.SCHEMA, b"x" * 64), end_frame(b"")),
    "rows that are none": raw(
        schema_frame(SCHEMA), frame(FrameKind.BATCH, b"x" * 64), end_frame(b"")
    ),
    "no rows": raw(schema_frame(SCHEMA), frame(FrameKind.BATCH, b""), end_frame(b"")),
    "half of the rows": raw(
        schema_frame(SCHEMA),
        frame(FrameKind.BATCH, raw(batch_frame(batch(*range(100))))[8:200]),
        end_frame(b""),
    ),
    "an error that is none": raw(frame(FrameKind.ERROR, b"[1, 2]  ")),
    "an error without text": raw(frame(FrameKind.ERROR, b"")),
}


BEGUN = raw(schema_frame(SCHEMA), batch_frame(batch(9)))
LATER = {
    f"later {what}": BEGUN + data
    for what, data in NONSENSE.items()
    if what not in ("rows before their form", "an end without a form")
}


@pytest.mark.parametrize("data", [*NONSENSE.values(), *LATER.values()], ids=[*NONSENSE, *LATER])
def test_nonsense_is_never_used_and_another_executor_is_asked(
    world: PeerWorld, raw_peers: list[RawPeer], data: bytes
) -> None:
    odd = RawPeer(data)
    raw_peers.append(odd)
    assert world.rows((odd.source(), world.peer(batch(4)).source())) == [{"x": 4}]
    with pytest.raises(ExecutorUnavailable, match="does not answer at the moment") as told:
        world.rows(odd.source())
    assert "127.0.0.1" not in str(told.value)
    assert len(odd.frames.open) == odd.asked == 2, "what is out of step is not used again"


@pytest.mark.parametrize("cut", [*range(0, len(WHOLE), 41), len(WHOLE) - 1])
def test_an_answer_that_is_cut_off_is_never_short(
    world: PeerWorld, raw_peers: list[RawPeer], cut: int
) -> None:
    odd = RawPeer(WHOLE[:cut], closes=True)
    raw_peers.append(odd)
    assert world.rows((odd.source(), world.peer(batch(4)).source())) == [{"x": 4}]
    with pytest.raises(ExecutorUnavailable):
        world.rows(odd.source(), world.peer(batch(5)).source())


def test_half_an_answer_holds_a_query_to_its_deadline_and_no_longer(
    world: PeerWorld, raw_peers: list[RawPeer]
) -> None:
    raw_peers += [RawPeer(WHOLE[:cut]) for cut in (4, 30, len(WHOLE) - 20)]
    for odd in raw_peers:
        good = world.peer(batch(4))
        started = time.monotonic()
        with pytest.raises((DeadlineExceeded, ExecutorUnavailable)):
            world.rows(good.source(), odd.source(), timeout_ms=300)
        assert time.monotonic() - started < 1


def test_who_hangs_up_without_a_word_is_asked_by_flight(world: PeerWorld) -> None:
    peer = world.peer(batch(1), batch(2))
    assert peer.frames is not None
    peer.frames.answer = end
    assert world.rows(peer.source()) == [{"x": 1}, {"x": 2}]
    assert peer.asked == 1
    stats = world.engine.run(make_ticket(ALL, inputs=(make_input(peer.source()),))).input_stats
    assert stats is not None
    assert stats.parts[0].alternatives == 0


def test_one_connection_serves_part_after_part_and_told_errors_leave_it_in_use(
    world: PeerWorld,
) -> None:
    peer = world.peer(batch(1))
    assert peer.frames is not None
    for _ in range(5):
        assert world.rows(peer.source()) == [{"x": 1}]
        peer.first = peer.refuse(InvalidQuery("no")).first
        with pytest.raises(InvalidQuery):
            world.rows(peer.source())
        peer.first = lambda: None
    assert len(peer.frames.open) == 1


@pytest.mark.parametrize("late", [False, True], ids=["with the end", "later"])
def test_what_follows_an_answer_is_not_the_answer_of_the_next(
    world: PeerWorld, raw_peers: list[RawPeer], late: bool
) -> None:
    extra = raw(schema_frame(SCHEMA), batch_frame(batch(666)), end_frame(b""))
    odd = RawPeer(WHOLE if late else WHOLE + extra)
    raw_peers.append(odd)
    for count in (1, 2, 3):
        assert world.rows(odd.source()) == ROWS
        assert len(odd.frames.open) == count
        if late:
            odd.frames.open[-1].sendall(extra)


def test_a_frame_larger_than_may_be_gathered_is_refused_before_there_is_room_made_for_it(
    world: PeerWorld, raw_peers: list[RawPeer]
) -> None:
    head = raw(schema_frame(SCHEMA)) + struct.pack("<II", FrameKind.BATCH, 2**31 - 8)
    odd = RawPeer(head + b"x" * 100_000)
    raw_peers.append(odd)
    other = world.peer(batch(1))
    with pytest.raises(MemoryLimit, match="gathers more than 5000000 bytes"):
        world.rows((odd.source(), other.source()), max_bytes=5_000_000)
    with pytest.raises(MemoryLimit, match="that its executor has for that"):
        world.rows((odd.source(), other.source()), max_bytes=2**40)
    assert other.asked == 0


def test_what_fits_exactly_is_gathered_though_its_frame_is_larger(world: PeerWorld) -> None:
    many = batch(*range(200_000))
    found = world.rows(world.peer(many).source(), max_bytes=many.nbytes)
    assert len(found) == 200_000


def test_an_endless_answer_of_nothing_ends_at_the_deadline(world: PeerWorld) -> None:
    endless = world.peer(*[batch()] * 1_000_000)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        world.rows(endless.source(), world.peer(WAIT).source(), timeout_ms=300)
    assert time.monotonic() - started < 1


# Asking.


def test_a_query_ends_while_it_connects_and_leaves_no_connection(
    world: PeerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    peer = world.peer(batch(1))
    is_connecting, may_go_on = threading.Event(), threading.Event()
    made: list[TicketCall] = []
    connect = Connections.connect

    def slowly(pool: Connections, to: Addressee) -> TicketCall:
        is_connecting.set()
        assert may_go_on.wait(10)
        made.append(connect(pool, to))
        return made[-1]

    monkeypatch.setattr(Connections, "connect", slowly)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        world.rows(peer.source(), world.peer(batch(2)).source(), timeout_ms=200)
    assert time.monotonic() - started < 2
    assert is_connecting.is_set()
    may_go_on.set()
    deadline = time.monotonic() + 5
    while len(made) < 2 or any(call.fileno() >= 0 for call in made):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert peer.asked == 0


def test_an_executor_that_cannot_be_reached_is_replaced(
    world: PeerWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = socket.create_server(("127.0.0.1", 0))
    gone = make_source("grpc://127.0.0.1:9", "SELECT 1", ticket_port=closed.getsockname()[1])
    closed.close()
    assert world.rows((gone, world.peer(batch(7)).source())) == [{"x": 7}]
    with pytest.raises(ExecutorUnavailable, match="does not answer at the moment"):
        world.rows(gone)


class _Deaf:
    """Accepts, and reads nothing."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def close(self) -> None:
        self._listener.close()


def test_an_executor_that_takes_nothing_of_a_ticket_holds_nobody_up(world: PeerWorld) -> None:
    deaf = _Deaf()
    large = "SELECT 1" + " " * (32 * MIB)
    source = make_source("grpc://127.0.0.1:9", large, ticket_port=deaf.port)
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        world.rows(source, timeout_ms=300)
    assert time.monotonic() - started < 1
    assert world.rows((source, world.peer(batch(1)).source())) == [{"x": 1}]
    assert time.monotonic() - started < 4
    deaf.close()


def test_a_query_that_is_stopped_in_the_middle_ends_at_once_and_its_peers_hear_of_it(
    world: PeerWorld,
) -> None:
    waiting, streaming = world.peer(), world.peer(batch(1), WAIT, batch(2))
    waiting.first = waiting.wait
    gone = threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        inputs = (make_input(waiting.source(), streaming.source()),)
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
    assert isinstance(failed[0], QueryCancelled)
    for peer in (waiting, streaming):
        assert peer.is_cancelled.wait(2)
        assert peer.cancelled == [], "the end of the connection says it"


def test_figures_and_told_errors_that_cannot_be_read_are_none(
    world: PeerWorld, raw_peers: list[RawPeer]
) -> None:
    whole = raw(schema_frame(SCHEMA), batch_frame(batch(1)), end_frame(b"\xff{nonsense"))
    raw_peers.append(RawPeer(whole))
    query = world.engine.run(make_ticket(ALL, inputs=(make_input(raw_peers[0].source()),)))
    assert [one.to_pylist() for one in query] == [[{"x": 1}]]
    assert query.input_stats is not None
    assert query.input_stats.parts[0].cpu_ms == 0
    raw_peers.append(RawPeer(raw(error_frame(AccelError("of no class")))))
    with pytest.raises(ExecutorUnavailable):
        world.rows(raw_peers[1].source())
