"""Flight connections to executors: one shared client per address.

Never thread-local: Flight's handler threads are transient, and a client that dies with one takes
the process along.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from pyarrow import flight

log = logging.getLogger(__name__)

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

    def client(self, address: str) -> flight.FlightClient:
        """The shared client of `address`; connects at its first call."""
        with self._lock:
            client = self._clients.get(address)
            if client is None:
                while len(self._clients) >= _MAX_CLIENTS:  # executors that are long gone
                    self._clients.pop(next(iter(self._clients)))
                client = flight.FlightClient(address, generic_options=_OPTIONS)
                self._clients[address] = client
            return client

    def drop(self, address: str, client: flight.FlightClient) -> None:
        """Forget a client whose executor does not answer; the next call connects afresh. Calls
        that still use it keep it alive."""
        with self._lock:
            if self._clients.get(address) is client:
                del self._clients[address]

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
        for client in clients:
            client.close()
