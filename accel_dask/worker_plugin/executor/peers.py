"""The tenant's other executors as one of them knows them: connections, and who is silent."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from pyarrow import flight

from accel_dask.errors import ExecutorUnavailable
from accel_dask.flight_errors import FLIGHT_FAILURES, from_flight
from accel_dask.flight_trailers import TrailerReader
from accel_dask.ticket_calls import Addressee, Connections

log = logging.getLogger(__name__)

PING: Final = "ping"
CANCEL: Final = "cancel"

_OPTIONS: Final = [
    ("grpc.use_local_subchannel_pool", 1),  # a new client is a new connection
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 1000),  # also: how long connecting may take
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_MAX_CLIENTS: Final = 64
_PING_SECONDS: Final = 0.5
"""A peer that leaves a ping unanswered for this long is taken for dead."""
_SILENT_SECONDS: Final = 5.0
"""How long a peer that left a ping unanswered is asked last."""


class PeerClients:
    """The connections of an executor to others. Safe to use from several threads.

    Flight clients are shared, never thread-local: Flight's handler threads are transient, and a
    client that dies with one takes the process along.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[str, flight.FlightClient] = {}
        self._silent_until: dict[str, float] = {}
        self._trailer_reader = TrailerReader()
        self.reading: Final = self._trailer_reader.reading
        """The trailers of a call of one of the clients; see `TrailerReader`."""
        self.connections: Final = Connections()
        """For tickets."""

    def client(self, address: str) -> flight.FlightClient:
        """The shared Flight client of `address`; connects at its first call."""
        with self._lock:
            client = self._clients.pop(address, None)
            if client is None:
                client = _connect(address, self._trailer_reader)
            self._clients[address] = client  # last used, last in order
            while len(self._clients) > _MAX_CLIENTS:  # peers that are long gone
                del self._clients[next(iter(self._clients))]
            return client

    def drop(self, address: str, client: flight.FlightClient) -> None:
        """Forget the client of a peer that is gone; the connection closes when no call uses it."""
        with self._lock:
            if self._clients.get(address) is client:
                del self._clients[address]

    def is_answering(self, peer: Addressee) -> bool:
        """Ask `peer` whether it is there. Blocks up to `_PING_SECONDS`."""
        client = self.client(peer.address)
        try:
            list(client.do_action(PING, flight.FlightCallOptions(timeout=_PING_SECONDS)))
        except FLIGHT_FAILURES as error:
            log.warning("%s left a ping unanswered: %s", peer.address, from_flight(error))
            self._mark_silent(peer.address)
            self.drop(peer.address, client)
            self.connections.forget(peer)
            return False
        return True

    def was_silent(self, address: str) -> bool:
        """Whether a ping of it went unanswered a moment ago."""
        return time.monotonic() < self._silent_until.get(address, 0.0)

    def _mark_silent(self, address: str) -> None:
        now = time.monotonic()
        with self._lock:
            silent = {a: until for a, until in self._silent_until.items() if until > now}
            self._silent_until = {**silent, address: now + _SILENT_SECONDS}

    @property
    def count(self) -> int:
        """Of Flight clients."""
        return len(self._clients)

    def close(self) -> None:
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        self.connections.close()
        for client in clients:
            client.close()


def _connect(address: str, trailer_reader: TrailerReader) -> flight.FlightClient:
    try:
        return flight.FlightClient(address, generic_options=_OPTIONS, middleware=[trailer_reader])
    except FLIGHT_FAILURES as error:
        log.error("no connection to %s: %s", address, error)
        raise ExecutorUnavailable("another executor has an address of no known form") from error
