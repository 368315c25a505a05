"""Tickets answered on the engine's own threads, which stay with a connection until needed."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest
from store_support import eventually

from accel_dask.errors import AccelError, ExecutorUnavailable, QueryCancelled
from accel_dask.ticket_stream import (
    FrameKind,
    FrameReader,
    end,
    frame,
    read_batch,
    read_error,
    read_schema,
    send,
)
from accel_dask.worker_plugin.executor.conversation import Answering, AskerGone, Conversation
from accel_dask.worker_plugin.executor.engine_threads import EngineThread, EngineThreads

DEADLINE = 20.0
LARGE = pa.record_batch({"n": pa.array(range(4_000_000), pa.int64())})


class Query:
    """Takes a thread as `RunningQuery` does."""

    def __init__(self, threads: EngineThreads) -> None:
        self.deadline = time.monotonic() + DEADLINE
        self.is_complete = False
        self.on: set[int] = set()
        self._threads = threads
        self._thread: EngineThread | None = threads.acquire(self)

    def check_stopped(self) -> None:
        pass

    def compute(self, work: Callable[[], None]) -> None:
        assert self._thread is not None
        self._thread.call(lambda: self.on.add(threading.get_ident()))
        self._thread.call(work)

    def end(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._threads.release(thread)


class Small:
    """An answer that is here in full: one number, the ticket's."""

    is_complete = True

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.deadline = time.monotonic() + DEADLINE
        self.schema_message = batch.schema.serialize()
        self._batch = batch

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return iter([self._batch])

    def measured_text(self) -> bytes:
        return b"{}"


class Site:
    """Conversations over a few threads, each on a thread of its own as the server has it."""

    def __init__(self, count: int) -> None:
        self.threads = EngineThreads("acme", "queries", count, None)
        self.part_threads = EngineThreads("acme", "parts of queries", count, None)
        self.by_kind = {FrameKind.TICKET: self.threads, FrameKind.PART: self.part_threads}
        self.work: Callable[[bytes], None] = lambda signed: None
        """What the engine does for a ticket; may raise or block."""
        self.batch: Callable[[bytes], pa.RecordBatch] = lambda signed: pa.record_batch(
            {"n": pa.array([int(signed)])}
        )
        self.served_on: list[int] = []
        self.own: list[threading.Thread] = []
        self.ends: list[BaseException] = []
        self._open: list[socket.socket] = []

    def _answer(
        self, signed: bytes, is_gone: Callable[[], bool], started_at: float
    ) -> tuple[Answering, Callable[[], None]]:
        self.served_on.append(threading.get_ident())
        if signed == b"refused":
            raise QueryCancelled("not today")
        query = Query(self.part_threads if signed.startswith(b"-") else self.threads)
        try:
            query.compute(lambda: self.work(signed))
        finally:
            query.end()
        return Small(self.batch(signed)), query.end

    def is_taken_up(self, connection: socket.socket) -> bool:
        return True

    def keep(self, connection: socket.socket) -> None:
        pass

    def connect(self) -> Gateway:
        ours, theirs = socket.socketpair()
        self._open += [ours, theirs]

        def run() -> None:
            try:
                Conversation(theirs, self._answer, self.by_kind, self).run()
            except (AccelError, OSError, AskerGone) as error:
                self.ends.append(error)

        self.own.append(threading.Thread(target=run, daemon=True))
        self.own[-1].start()
        return Gateway(ours)

    def close(self) -> None:
        for sock in self._open:
            end(sock)
        for thread in self.own:
            thread.join(DEADLINE)
            assert not thread.is_alive()
        self.threads.close()
        self.part_threads.close()
        for sock in self._open:
            sock.close()


class Gateway:
    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self._reader = FrameReader(sock)

    def send(self, ticket: bytes) -> None:
        """A number; one below zero is a part."""
        kind = FrameKind.PART if ticket.startswith(b"-") else FrameKind.TICKET
        send(self.socket, frame(kind, ticket))

    def read(self) -> pa.RecordBatch:
        """The one batch of an answer; raises the error that is told."""
        found = self._reader.read()
        if found.kind is FrameKind.ERROR:
            raise read_error(found.payload)
        schema = read_schema(found.payload)
        batch = read_batch(self._reader.read().payload, schema)
        assert self._reader.read().kind is FrameKind.END
        return batch

    def ask(self, number: int) -> int:
        self.send(b"%d" % number)
        return int(self.read().column(0)[0].as_py())


@pytest.fixture
def one() -> Iterator[Site]:
    """One engine thread."""
    site = Site(1)
    yield site
    site.close()


def lingers(site: Site) -> bool:
    return any(thread.is_lingering for thread in site.threads._all)


def test_one_thread_of_the_engine_answers_ticket_after_ticket(one: Site) -> None:
    gateway = one.connect()
    assert [gateway.ask(number) for number in range(20)] == list(range(20))
    assert set(one.served_on) == {one.threads._all[0].ident}


def test_parts_have_threads_of_their_own_also_on_a_connection_of_queries(one: Site) -> None:
    asker = one.connect()
    numbers = [1, 2, -1, -2, 3, -3, -4, 4, 5]
    assert [asker.ask(number) for number in numbers] == numbers
    idents = {kind: threads._all[0].ident for kind, threads in one.by_kind.items()}
    assert one.served_on == [
        idents[FrameKind.TICKET if number > 0 else FrameKind.PART] for number in numbers
    ]
    query = Query(one.threads)
    assert one.connect().ask(-5) == -5, "a query that waits for its parts is in no part's way"
    query.end()
    assert (one.threads.free_count, one.part_threads.free_count) == (1, 1)


def test_what_is_left_for_later_is_done_after_an_answer_and_before_the_next(one: Site) -> None:
    done: list[bytes] = []
    thread = one.threads._all[0]

    def work(signed: bytes) -> None:
        done.append(signed)
        thread.later(lambda: done.append(b"after " + signed))

    one.work = work
    gateway = one.connect()
    assert [gateway.ask(1), gateway.ask(2)] == [1, 2]
    query = Query(one.threads)
    query.compute(lambda: work(b"3"))
    query.compute(lambda: done.append(b"4"))
    query.end()
    assert done == [b"1", b"after 1", b"2", b"after 2", b"3", b"after 3", b"4"]


def test_a_thread_that_lingers_is_free_for_whoever_asks(one: Site) -> None:
    first, second = one.connect(), one.connect()
    for number in range(10):
        assert first.ask(number) == number
        eventually(lambda: lingers(one))
        assert one.threads.free_count == 1
        assert second.ask(number) == number
    query = Query(one.threads)
    assert one.threads.free_count == 0
    first.send(b"7")
    query.compute(lambda: None)
    query.end()
    assert first.read().column(0)[0].as_py() == 7


def test_while_the_engine_is_at_work_tickets_wait_on_the_connections_own_thread(one: Site) -> None:
    began, may_end = threading.Event(), threading.Event()

    def work(signed: bytes) -> None:
        if signed == b"1":
            began.set()
            assert may_end.wait(DEADLINE)

    one.work = work
    first, second = one.connect(), one.connect()
    first.send(b"1")
    assert began.wait(DEADLINE)
    second.send(b"2")
    eventually(lambda: len(one.threads._line) == 1)
    assert one.served_on[-1] == one.own[1].ident
    may_end.set()
    assert first.read().column(0)[0].as_py() == 1
    assert second.read().column(0)[0].as_py() == 2
    assert second.ask(3) == 3


def test_an_answer_that_is_not_taken_at_once_leaves_the_engine_to_others(one: Site) -> None:
    one.batch = lambda signed: LARGE if signed == b"1" else pa.record_batch({"n": pa.array([2])})
    slow, other = one.connect(), one.connect()
    slow.send(b"1")  # and nobody reads it
    assert [other.ask(2) for _ in range(5)] == [2] * 5
    assert slow.read().equals(LARGE)
    assert slow.ask(2) == 2


def test_refused_tickets_keep_no_thread(one: Site) -> None:
    gateway = one.connect()
    for number in range(5):
        gateway.send(b"refused")
        with pytest.raises(QueryCancelled, match="not today"):
            gateway.read()
        assert gateway.ask(number) == number
    eventually(lambda: one.threads.free_count == 1)


def test_an_error_of_the_engine_is_told_and_the_thread_goes_on(one: Site) -> None:
    def work(signed: bytes) -> None:
        if signed == b"1":
            raise RuntimeError("with something of the inside")

    one.work = work
    gateway = one.connect()
    gateway.send(b"1")
    with pytest.raises(AccelError, match="internal error"):
        gateway.read()
    assert gateway.ask(2) == 2
    assert one.threads.free_count == 1


def test_a_connection_that_ends_frees_the_thread_that_stayed_with_it(one: Site) -> None:
    gateway = one.connect()
    assert gateway.ask(1) == 1
    eventually(lambda: lingers(one))
    end(gateway.socket)
    one.own[0].join(DEADLINE)
    assert isinstance(one.ends[0], ExecutorUnavailable)
    assert one.threads.free_count == 1
    assert one.connect().ask(2) == 2


def test_half_a_ticket_keeps_no_thread(one: Site) -> None:
    first, second = one.connect(), one.connect()
    assert first.ask(1) == 1
    whole = b"".join(bytes(part) for part in frame(FrameKind.TICKET, b"12345"))
    first.socket.sendall(whole[:9])
    assert second.ask(2) == 2
    first.socket.sendall(whole[9:])
    assert first.read().column(0)[0].as_py() == 12345


def test_what_is_no_ticket_ends_a_connection_that_a_thread_stays_with(one: Site) -> None:
    gateway = one.connect()
    assert gateway.ask(1) == 1
    send(gateway.socket, frame(FrameKind.BATCH, b"x"))
    one.own[0].join(DEADLINE)
    assert "BATCH is not for executors" in str(one.ends[0])
    assert one.threads.free_count == 1


def test_closing_wakes_threads_that_linger() -> None:
    site = Site(3)
    gateways = [site.connect() for _ in range(3)]
    for gateway in gateways:
        assert gateway.ask(1) == 1
    ending = threading.Thread(target=site.threads.close, daemon=True)
    ending.start()
    ending.join(DEADLINE)
    assert not ending.is_alive()


def test_every_ticket_has_its_own_answer_however_threads_change_hands() -> None:
    site = Site(3)
    gateways = [site.connect() for _ in range(7)]
    wrong: list[tuple[int, int]] = []

    def hammer(gateway: Gateway, seed: int) -> None:
        chance = random.Random(seed)
        for turn in range(300):
            number = seed * 1000 + turn
            if (found := gateway.ask(number)) != number:
                wrong.append((number, found))
            if chance.random() < 0.1:
                time.sleep(0.002 * chance.random())

    clients = [
        threading.Thread(target=hammer, args=(gateway, seed), daemon=True)
        for seed, gateway in enumerate(gateways)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(3 * DEADLINE)
        assert not client.is_alive()
    assert wrong == []
    eventually(lambda: site.threads.free_count == 3)
    assert sorted(t.ident for t in site.threads._free) == sorted(t.ident for t in site.threads._all)
    site.close()
