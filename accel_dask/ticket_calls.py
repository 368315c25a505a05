"""Tickets on their way to executors, from gateways and from other executors; `ticket_stream` says
how. Connections are kept for reuse."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Final, Protocol
from urllib.parse import urlsplit

from accel_dask.errors import ExecutorUnavailable, InvariantViolated
from accel_dask.ticket_stream import (
    Frame,
    FrameKind,
    FrameReader,
    Payload,
    end,
    frame,
    is_quiet,
    prepare,
    send,
    send_now,
    set_send_seconds,
)

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 0.5
"""Executors are near."""
_SEND_SECONDS: Final = 1.0
_MAX_IDLE: Final = 32
"""Connections kept to one executor."""
_MAX_EXECUTORS: Final = 512

_Key = tuple[str, int]


class Addressee(Protocol):
    """An executor that takes tickets."""

    @property
    def address(self) -> str:
        """Of its Flight server, on the same host."""
        ...

    @property
    def ticket_port(self) -> int: ...


class TicketCall:
    """One ticket and its answer, on a connection that is its own until it is closed. Used by one
    thread at a time; `cancel` may be called by any, at any time."""

    def __init__(self, pool: Connections, key: _Key, sock: socket.socket) -> None:
        self._pool = pool
        self._key = key
        self._socket = sock
        self._reader = FrameReader(sock)
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_whole = False
        self._unsent: Sequence[Payload] = ()

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def has_begun(self) -> bool:
        """Whether anything of the answer has come."""
        return self._reader.count > 0

    def admit_by(self, admit: Callable[[int], None]) -> None:
        """Have `admit` called with the bytes of each large frame before there is room made for
        it; what it raises is raised by `poll` and `read`."""
        self._reader.admit = admit

    def send(self, ticket: bytes) -> None:
        """Have the executor begin its work on `ticket`.

        Raises:
            ExecutorUnavailable: it takes nothing; the call is closed.
        """
        self._unsent = frame(FrameKind.TICKET, ticket)
        self.send_rest()

    def send_now(self, kind: FrameKind, ticket: bytes) -> bool:
        """As `send`, without waiting; False: `send_rest` has to follow."""
        try:
            self._unsent = send_now(self._socket, frame(kind, ticket))
        except OSError as error:
            raise self._unsendable(error) from error
        return not self._unsent

    def send_rest(self) -> None:
        """Raises as `send`."""
        try:
            send(self._socket, self._unsent)
        except OSError as error:
            raise self._unsendable(error) from error
        self._unsent = ()

    def _unsendable(self, error: OSError) -> ExecutorUnavailable:
        self.close()
        return ExecutorUnavailable(f"no ticket can be sent: {error.strerror}")

    def poll(self) -> Frame | None:
        """The next frame if it is here.

        Raises:
            ExecutorUnavailable: the connection ended, or what came makes no sense.
        """
        return self._next(wait=False)

    def read(self) -> Frame:
        """The next frame; waits for it. Raises as `poll`."""
        found = self._next(wait=True)
        assert found is not None
        return found

    def _next(self, *, wait: bool) -> Frame | None:
        try:
            found = self._reader.read() if wait else self._reader.poll()
        except InvariantViolated as error:
            raise ExecutorUnavailable(f"the executor's answer cannot be read: {error}") from error
        if found is not None and found.kind in (FrameKind.END, FrameKind.ERROR):
            self._is_whole = self._reader.is_between_frames
        return found

    def cancel(self) -> None:
        """End it: whoever waits for it is woken, and the executor stops its work."""
        with self._lock:
            if not self._is_closed:
                self._is_whole = False
                end(self._socket)

    def close(self) -> None:
        """Have the executor stop, if it has not answered in full."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        if self._is_whole:
            self._pool.give_back(self._key, self._socket)
        else:
            end(self._socket)
            self._socket.close()


class Connections:
    """Connections to executors that no query uses. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[_Key, list[socket.socket]] = {}
        self._is_closed = False

    def send(self, to: Addressee, ticket: bytes) -> TicketCall:
        """Have `to` begin its work on `ticket`.

        Raises:
            ExecutorUnavailable: it is not there, or takes nothing.
        """
        call = self.idle(to) or self.connect(to)
        call.send(ticket)
        return call

    def idle(self, to: Addressee) -> TicketCall | None:
        """A call on a connection that is there already; None: there is none."""
        key = _key_of(to)
        while (sock := self._taken(key)) is not None:
            # What has something to tell before it was asked has ended, or is out of step.
            if is_quiet(sock):
                return TicketCall(self, key, sock)
            sock.close()
        return None

    def connect(self, to: Addressee) -> TicketCall:
        """A call on a new connection. Blocks up to `CONNECT_SECONDS`.

        Raises:
            ExecutorUnavailable: `to` is not there.
        """
        key = _key_of(to)
        try:
            sock = socket.create_connection(key, timeout=CONNECT_SECONDS)
        except OSError as error:
            raise ExecutorUnavailable(f"no connection: {error}") from error
        sock.settimeout(None)
        prepare(sock)
        set_send_seconds(sock, _SEND_SECONDS)
        return TicketCall(self, key, sock)

    def give_back(self, key: _Key, sock: socket.socket) -> None:
        with self._lock:
            idle = self._idle.setdefault(key, [])
            if len(idle) < _MAX_IDLE and not self._is_closed:
                idle.append(sock)
                return
        sock.close()

    def forget(self, to: Addressee) -> None:
        """Close what is idle to an executor that does not answer."""
        with self._lock:
            idle = self._idle.pop(_key_of(to), [])
        for sock in idle:
            sock.close()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, {}
        for socks in idle.values():
            for sock in socks:
                sock.close()

    def _taken(self, key: _Key) -> socket.socket | None:
        with self._lock:
            idle = self._idle.get(key)
            if idle:
                return idle.pop()
            while len(self._idle) >= _MAX_EXECUTORS:  # executors that are long gone
                for sock in self._idle.pop(next(iter(self._idle))):
                    with contextlib.suppress(OSError):
                        sock.close()
        return None


def _key_of(to: Addressee) -> _Key:
    return urlsplit(to.address).hostname or "", to.ticket_port
