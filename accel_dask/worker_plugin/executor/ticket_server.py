"""Where an executor takes tickets, of gateways and of other executors; `ticket_stream` says how."""

from __future__ import annotations

import logging
import socket
import threading
import time
from typing import Final

from accel_dask.errors import ExecutorUnavailable, InvariantViolated
from accel_dask.ticket_stream import end, prepare
from accel_dask.worker_plugin.executor.conversation import (
    Answer,
    AskerGone,
    Conversation,
    Threads,
)

log = logging.getLogger(__name__)

MAX_CONNECTIONS: Final = 192
"""Each has a thread. Gateways keep one for each query that they have here at once, and other
executors one for each part."""
_SPARE_SECONDS: Final = 1.0
_BACKLOG: Final = 128


class TicketServer:
    """Listens from its construction on. A thread for each connection, and one that accepts."""

    def __init__(self, host: str, answer: Answer, threads: Threads) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._answer = answer
        self._threads = threads
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
        """End the connection that has waited longest: what others keep for later, or strangers
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

    def is_taken_up(self, connection: socket.socket) -> bool:
        """From here on it is in use; False: it was ended before."""
        with self._lock:
            return self._idle.pop(connection, connection) is None

    def keep(self, connection: socket.socket) -> None:
        """It is idle from here on."""
        with self._lock:
            if connection in self._open:
                self._idle[connection] = None

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                prepare(connection)
                Conversation(connection, self._answer, self._threads, self).run()
        except ExecutorUnavailable as error:
            log.debug("a connection ended: %s", error)
        except (AskerGone, OSError, InvariantViolated) as error:
            log.info("a connection is closed: %s", error)
        finally:
            self._ended(connection)
