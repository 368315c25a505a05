"""Where an executor takes the tickets of gateways; `ticket_stream` says how."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final, Protocol

import pyarrow as pa

from accel_dask.errors import AccelError, ExecutorUnavailable, InvariantViolated
from accel_dask.ticket_stream import (
    MAX_TICKET_BYTES,
    FrameKind,
    FrameReader,
    Payload,
    batch_frame,
    end,
    end_frame,
    error_frame,
    has_ended,
    prepare,
    schema_frame,
    send,
    set_send_seconds,
)

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 192
"""Each has a thread. Gateways keep one for each query that they have here at once."""
_SPARE_SECONDS: Final = 1.0
_BACKLOG: Final = 128


class _Gone(Exception):
    """The gateway takes nothing of its answer any more."""


class Answering(Protocol):
    """An answer as it is sent; iterating gives its batches."""

    @property
    def schema(self) -> pa.Schema: ...

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


Answer = Callable[[bytes, Callable[[], bool], float], AbstractContextManager[Answering]]
"""Of a signed ticket, whether its sender is gone, and the monotonic seconds at which it came."""


class TicketServer:
    """Listens from its construction on. A thread for each connection, and one that accepts."""

    def __init__(self, host: str, answer: Answer) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._answer = answer
        self._listener = socket.create_server((host, 0), family=family, backlog=_BACKLOG)
        self.port: Final[int] = self._listener.getsockname()[1]
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._idle: dict[socket.socket, None] = {}
        """Those of `_open` that wait for a ticket, the longest first."""
        threading.Thread(target=self._accept, name="tickets", daemon=True).start()

    def close(self) -> None:
        """Take no more connections, and end those that are open."""
        end(self._listener)  # wakes whoever accepts
        self._listener.close()
        self.end_all()

    def end_all(self) -> None:
        """End the connections that are open; answers that are not out are cut off."""
        with self._lock:
            for connection in self._open:
                end(connection)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                if self._listener.fileno() < 0:
                    return
                log.exception("a connection could not be accepted")
                time.sleep(_SPARE_SECONDS)
                continue
            if not self._start(connection):
                connection.close()

    def _start(self, connection: socket.socket) -> bool:
        with self._lock:
            if len(self._open) >= MAX_CONNECTIONS and not self._end_one_idle():
                log.warning("%d connections are in use; one more is refused", len(self._open))
                return False
            self._open.add(connection)
            self._idle[connection] = None
        try:
            threading.Thread(
                target=self._serve, args=(connection,), name="ticket", daemon=True
            ).start()
        except RuntimeError:  # no room for a thread
            log.exception("a connection is refused")
            self._ended(connection)
            return False
        return True

    def _end_one_idle(self) -> bool:
        """End the connection that has waited longest: what gateways keep for later, or strangers
        hold, is in nobody's way. False: all are in use. The lock is held."""
        longest = next(iter(self._idle), None)
        if longest is None:
            return False
        del self._idle[longest]
        self._open.discard(longest)
        end(longest)
        return True

    def _ended(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)
            self._idle.pop(connection, None)

    def _is_taken_up(self, connection: socket.socket) -> bool:
        """From here on it is in use; False: it was ended before."""
        with self._lock:
            return self._idle.pop(connection, connection) is None

    def _keep(self, connection: socket.socket) -> None:
        with self._lock:
            if connection in self._open:
                self._idle[connection] = None

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                prepare(connection)
                reader = FrameReader(connection, MAX_TICKET_BYTES)
                while True:
                    frame = reader.read()
                    if frame.kind is not FrameKind.TICKET:
                        raise InvariantViolated(f"{frame.kind.name} is not for executors")
                    if not self._is_taken_up(connection):
                        raise _Gone("it was ended for another one")
                    self._answer_one(connection, bytes(frame.payload), time.monotonic())
                    del frame
                    self._keep(connection)
        except ExecutorUnavailable as error:
            log.debug("a connection ended: %s", error)
        except (_Gone, OSError, InvariantViolated) as error:
            log.info("a connection is closed: %s", error)
        finally:
            self._ended(connection)

    def _answer_one(self, connection: socket.socket, signed: bytes, started_at: float) -> None:
        try:
            with self._answer(signed, lambda: has_ended(connection), started_at) as answering:
                self._send_batches(connection, answering)
            return
        except _Gone:
            raise
        except AccelError as error:
            log.info("%s: %s (%.500r)", error.code, error, error.__cause__)
            told = error
        except Exception:
            log.exception("a query failed unexpectedly")
            told = AccelError("internal error; see the server's log")
        _send_until(connection, error_frame(told), started_at)

    def _send_batches(self, connection: socket.socket, answering: Answering) -> None:
        """What is computed already goes out in one piece; after it each batch by itself."""
        pending: list[Payload] = schema_frame(answering.schema)
        for batch in answering:
            pending += batch_frame(batch)
            if not answering.is_complete:
                _send_until(connection, pending, answering.deadline)
                pending = []
        _send_until(connection, pending + end_frame(answering.measured_text()), answering.deadline)


def _send_until(connection: socket.socket, buffers: list[Payload], deadline: float) -> None:
    """A gateway that takes nothing any more does not keep the thread beyond the query's time."""
    try:
        set_send_seconds(connection, max(deadline - time.monotonic(), 0.0) + _SPARE_SECONDS)
        send(connection, buffers)
    except OSError as error:
        raise _Gone(error.strerror or "the gateway takes nothing") from error
