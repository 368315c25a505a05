"""The connection of a gateway or of another executor: a ticket, its answer, the next ticket.

A ticket that finds a thread of the engine free is answered on that thread, from its first byte to
its last, and the thread stays for the next one until somebody else needs it: two threads that tell
each other of every step cost as much as a small query. The connection's own thread, which is small,
waits meanwhile. It does what may take long and needs no engine: waiting for a thread, and sending
what whoever asked does not take at once.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import pyarrow as pa

from accel_dask.errors import AccelError, InvariantViolated
from accel_dask.ticket_stream import (
    MAX_TICKET_BYTES,
    Frame,
    FrameKind,
    FrameReader,
    Payload,
    batch_frame,
    end_frame,
    error_frame,
    frame,
    has_ended,
    send,
    send_now,
    set_send_seconds,
)
from accel_dask.worker_plugin.executor.engine_threads import EngineThread, EngineThreads, Loan

log = logging.getLogger(__name__)

_SPARE_SECONDS: Final = 1.0
_BUFFER_BYTES: Final = 8 * 1024
"""Tickets are seldom larger. Each connection has one."""


class AskerGone(Exception):
    """Whoever asked takes nothing of the answer any more."""


class Answering(Protocol):
    """An answer as it is sent; iterating gives its batches."""

    @property
    def schema_message(self) -> pa.Buffer:
        """Its schema, serialized."""
        ...

    @property
    def deadline(self) -> float: ...

    @property
    def is_complete(self) -> bool:
        """Whether iterating computes nothing any more."""
        ...

    def __iter__(self) -> Iterator[pa.RecordBatch]: ...

    def measured_text(self) -> bytes:
        """What it has cost, as JSON."""
        ...


Answer = Callable[[bytes, Callable[[], bool], float], tuple[Answering, Callable[[], None]]]
"""Of a signed ticket, whether its sender is gone, and the monotonic seconds at which it came: the
answer, and what gives back all that it holds."""


class Door(Protocol):
    """Keeps account of who uses connections."""

    def is_taken_up(self, connection: socket.socket) -> bool: ...

    def keep(self, connection: socket.socket) -> None: ...


@dataclass(slots=True)
class _Reply:
    """What is to be sent for a ticket."""

    pending: Sequence[Payload]
    answering: Answering | None
    """None: an error is told."""
    rest: Iterator[pa.RecordBatch] | None
    """What follows `pending`, yet to be computed."""
    close: Callable[[], None]
    """Gives back what the answer holds, when all is sent."""


Threads = Mapping[FrameKind, EngineThreads]
"""Of the engine, by what is answered on them."""


class Conversation:
    """Used by one thread at a time."""

    def __init__(
        self, connection: socket.socket, answer: Answer, threads: Threads, door: Door
    ) -> None:
        self._connection = connection
        self._answer = answer
        self._threads = threads
        self._door = door
        self._reader = FrameReader(connection, MAX_TICKET_BYTES, _BUFFER_BYTES)
        self._unread: Frame | None = None
        self._unsent: _Reply | None = None

    def run(self) -> None:
        """On the connection's own thread.

        Raises:
            ExecutorUnavailable, OSError: the connection ended.
            AskerGone: it is of no use any more.
            InvariantViolated: what came is no ticket.
        """
        while True:
            came, self._unread = self._unread or self._reader.read(), None
            threads = self._threads.get(came.kind)
            if threads is None:
                raise InvariantViolated(f"{came.kind.name} is not for executors")
            if not self._door.is_taken_up(self._connection):
                raise AskerGone("it was ended for another one")
            kind, ticket = came.kind, bytes(came.payload)
            del came
            loan = threads.lend()
            if loan is None:
                self._finish(self._begin(ticket))
            else:
                loan.thread.call(partial(self._stay, kind, loan, ticket))
                if self._unsent is not None:
                    unsent, self._unsent = self._unsent, None
                    self._finish(unsent)

    # On a thread of the engine

    def _stay(self, kind: FrameKind, loan: Loan, ticket: bytes) -> None:
        """Answer `ticket` and those of its kind that follow, while answers go out at once and
        nobody else needs the thread."""
        threads = self._threads[kind]
        following: tuple[Loan, bytes] | None = (loan, ticket)
        while following is not None:
            loan, ticket = following
            try:
                reply = self._begin(ticket)
            finally:
                threads.unlend(loan)  # no query came of it
            if not self._is_sent_now(reply):
                self._unsent = reply
                return
            loan.thread.do_later()
            reply.close()
            del reply
            self._door.keep(self._connection)
            following = self._following(kind, loan.thread)

    def _is_sent_now(self, reply: _Reply) -> bool:
        try:
            reply.pending = send_now(self._connection, reply.pending)
        except OSError:
            return False  # whoever sends the rest of it will see
        return reply.rest is None and not reply.pending

    def _following(self, kind: FrameKind, thread: EngineThread) -> tuple[Loan, bytes] | None:
        """The next ticket of this kind; None: the connection's own thread goes on."""
        threads = self._threads[kind]
        loan = threads.linger(thread, self._connection)
        if loan is None:
            return None
        try:
            came = self._reader.poll()
        except AccelError:
            came = None  # it comes up again where the connection is closed for it
        if came is not None and came.kind is not kind:
            self._unread, came = came, None
        if came is None or not self._door.is_taken_up(self._connection):
            threads.unlend(loan)
            return None
        return loan, bytes(came.payload)

    # On either

    def _begin(self, signed: bytes) -> _Reply:
        """The answer as far as it is computed, or what it failed with."""
        try:
            answering, close = self._answer(signed, self._has_ended, time.monotonic())
            try:
                return _computed(answering, close)
            except BaseException:
                close()
                raise
        except Exception as error:  # noqa: BLE001 - told and logged
            return _Reply(error_frame(_told(error)), None, None, _nothing)

    def _has_ended(self) -> bool:
        return has_ended(self._connection)

    def _finish(self, reply: _Reply) -> None:
        """Send all that is left of `reply`, however long whoever asked takes."""
        answering = reply.answering
        deadline = answering.deadline if answering is not None else time.monotonic()
        with closing(reply):
            try:
                self._send(reply.pending, deadline)
                if reply.rest is not None and answering is not None:
                    for batch in reply.rest:
                        self._send(batch_frame(batch), deadline)
                    self._send(end_frame(answering.measured_text()), deadline)
            except AskerGone:
                raise
            except Exception as error:  # noqa: BLE001 - told and logged
                self._send(error_frame(_told(error)), deadline)
        self._door.keep(self._connection)

    def _send(self, buffers: Sequence[Payload], deadline: float) -> None:
        """Who takes nothing any more does not keep the thread beyond the query's time."""
        try:
            left = max(deadline - time.monotonic(), 0.0)
            set_send_seconds(self._connection, left + _SPARE_SECONDS)
            send(self._connection, buffers)
        except OSError as error:
            raise AskerGone(error.strerror or "nothing is taken") from error


def _computed(answering: Answering, close: Callable[[], None]) -> _Reply:
    """`answering` as far as it is here."""
    rest = iter(answering)
    pending = frame(FrameKind.SCHEMA, answering.schema_message)
    for batch in rest:
        pending += batch_frame(batch)
        if not answering.is_complete:
            return _Reply(pending, answering, rest, close)
    pending += end_frame(answering.measured_text())
    return _Reply(pending, answering, None, close)


def _nothing() -> None:
    """An error holds nothing."""


def _told(error: Exception) -> AccelError:
    """The error for whoever asked, with nothing of the inside in it; logged."""
    if isinstance(error, AccelError):
        log.info("%s: %s (%.500r)", error.code, error, error.__cause__)
        return error
    log.error("a query failed unexpectedly", exc_info=error)
    return AccelError("internal error; see the server's log")
