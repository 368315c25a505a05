"""Tickets on their way to executors; `ticket_stream` says how. Connections are kept for reuse."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from typing import Final
from urllib.parse import urlsplit

from accel_dask.errors import ExecutorUnavailable, InvariantViolated
from accel_dask.model.routing import ExecutorRoute
from accel_dask.ticket_stream import (
    Frame,
    FrameKind,
    FrameReader,
    end,
    frame,
    has_ended,
    prepare,
    send,
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


class TicketCall:
    """One ticket and its answer, on a connection that is its own until it is closed. Read by one
    thread; `cancel` may be called by any, at any time."""

    def __init__(self, pool: Connections, key: _Key, sock: socket.socket) -> None:
        self._pool = pool
        self._key = key
        self._socket = sock
        self._reader = FrameReader(sock)
        self._lock = threading.Lock()
        self._is_closed = False
        self._is_whole = False

    def fileno(self) -> int:
        return self._socket.fileno()

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

    def send(self, route: ExecutorRoute, ticket: bytes) -> TicketCall:
        """Have the executor of `route` begin its work on `ticket`.

        Raises:
            ExecutorUnavailable: it is not there, or takes nothing.
        """
        key = _key_of(route)
        sock = self._connection(key)
        try:
            send(sock, frame(FrameKind.TICKET, ticket))
        except OSError as error:
            sock.close()
            raise ExecutorUnavailable(f"no ticket can be sent: {error.strerror}") from error
        return TicketCall(self, key, sock)

    def give_back(self, key: _Key, sock: socket.socket) -> None:
        with self._lock:
            idle = self._idle.setdefault(key, [])
            if len(idle) < _MAX_IDLE and not self._is_closed:
                idle.append(sock)
                return
        sock.close()

    def forget(self, route: ExecutorRoute) -> None:
        """Close what is idle to an executor that does not answer."""
        with self._lock:
            idle = self._idle.pop(_key_of(route), [])
        for sock in idle:
            sock.close()

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            idle, self._idle = self._idle, {}
        for socks in idle.values():
            for sock in socks:
                sock.close()

    def _connection(self, key: _Key) -> socket.socket:
        while (sock := self._taken(key)) is not None:
            if not has_ended(sock):
                return sock
            sock.close()
        try:
            sock = socket.create_connection(key, timeout=CONNECT_SECONDS)
        except OSError as error:
            raise ExecutorUnavailable(f"no connection: {error}") from error
        sock.settimeout(None)
        prepare(sock)
        set_send_seconds(sock, _SEND_SECONDS)
        return sock

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


def _key_of(route: ExecutorRoute) -> _Key:
    return urlsplit(route.address).hostname or "", route.ticket_port
