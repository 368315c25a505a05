"""Executors as a gateway knows them: connections for tickets, pings, and who is silent or busy.

A Flight client for pings is shared by all threads, never thread-local: Flight's handler threads
are transient, and a client that dies with one takes the process along.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from pyarrow import flight

from accel_dask.flight_errors import FLIGHT_FAILURES
from accel_dask.model.routing import ExecutorRoute
from accel_dask.ticket_calls import Connections

log = logging.getLogger(__name__)

PING_SECONDS: Final = 0.5
"""An executor that leaves a ping unanswered for so long is taken for hung."""
_SILENT_SECONDS: Final = 5.0
"""How long an executor that left a ping unanswered is asked last."""
_PING: Final = "ping"
_OPTIONS: Final = [
    ("grpc.use_local_subchannel_pool", 1),  # a new client is a new connection
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 500),
]
_MAX_CLIENTS: Final = 512


class ExecutorClients:
    """Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[str, flight.FlightClient] = {}
        self._in_flight: dict[str, int] = {}
        self._silent_until: dict[str, float] = {}
        self._heard_at: dict[str, float] = {}
        self.connections: Final = Connections()

    def _client(self, address: str) -> flight.FlightClient:
        """The shared client of `address`; connects at its first call."""
        with self._lock:
            client = self._clients.get(address)
            if client is None:
                while len(self._clients) >= _MAX_CLIENTS:  # executors that are long gone
                    gone = next(iter(self._clients))
                    del self._clients[gone]
                    self._heard_at.pop(gone, None)
                client = flight.FlightClient(address, generic_options=_OPTIONS)
                self._clients[address] = client
            return client

    def drop(self, route: ExecutorRoute) -> None:
        """Forget the connections to an executor that does not answer."""
        self.connections.forget(route)
        with self._lock:
            self._clients.pop(route.address, None)
            self._heard_at.pop(route.address, None)

    def _drop(self, address: str, client: flight.FlightClient) -> None:
        """The next ping connects afresh."""
        with self._lock:
            if self._clients.get(address) is client:
                del self._clients[address]
                self._heard_at.pop(address, None)

    def is_answering(self, address: str) -> bool:
        """Ask the executor at `address` whether it is there. Blocks up to `PING_SECONDS`."""
        client = self._client(address)
        asked_at = time.monotonic()
        try:
            list(client.do_action(_PING, flight.FlightCallOptions(timeout=PING_SECONDS)))
        except (flight.FlightTimedOutError, flight.FlightUnavailableError) as error:
            log.warning("the executor at %s left a ping unanswered: %s", address, error)
            self._drop(address, client)
            with self._lock:
                now = time.monotonic()
                known = {a: until for a, until in self._silent_until.items() if until > now}
                self._silent_until = {**known, address: now + _SILENT_SECONDS}
            return False
        except FLIGHT_FAILURES as error:  # a refusal is an answer too
            log.debug("ping of %s: %s", address, error)
        with self._lock:
            self._silent_until.pop(address, None)
            if self._clients.get(address) is client:
                self._heard_at[address] = asked_at
        return True

    def heard_at(self, address: str) -> float:
        """Monotonic seconds at which the last ping that it answered was sent; 0: none was."""
        return self._heard_at.get(address, 0.0)

    def was_silent(self, address: str) -> bool:
        """Whether a ping of it went unanswered a moment ago."""
        return time.monotonic() < self._silent_until.get(address, 0.0)

    def began(self, address: str) -> None:
        with self._lock:
            self._in_flight[address] = self._in_flight.get(address, 0) + 1

    def ended(self, address: str) -> None:
        with self._lock:
            left = self._in_flight.get(address, 1) - 1
            if left:
                self._in_flight[address] = left
            else:
                self._in_flight.pop(address, None)

    def in_flight(self, address: str) -> int:
        """Queries of this gateway that the executor at `address` is answering."""
        with self._lock:
            return self._in_flight.get(address, 0)

    def close(self) -> None:
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        self.connections.close()
        for client in clients:
            client.close()
