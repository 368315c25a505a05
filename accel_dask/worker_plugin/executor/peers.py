"""Calls to the tenant's other executors: one connection per address, one call per part."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import pyarrow as pa
from pyarrow import flight

from accel_dask.codec import decode, encode
from accel_dask.errors import (
    AccelError,
    DeadlineExceeded,
    ExecutorUnavailable,
    InvariantViolated,
    NotResident,
    QueryCancelled,
    QueryError,
    ResourceExhausted,
    StaleEpoch,
)
from accel_dask.flight_errors import from_flight
from accel_dask.flight_trailers import TrailerReader, Trailers
from accel_dask.model.ids import TenantId
from accel_dask.model.measured import MEASURED_TRAILER, Measured
from accel_dask.model.ticket import (
    Cancellation,
    Source,
    Ticket,
    check_inputs,
    sign,
    signature_of,
    verify,
)

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
_CANCEL_SECONDS: Final = 1.0
_CANCEL_PAUSE_SECONDS: Final = 0.02
_MAX_CANCEL_PAUSE_SECONDS: Final = 0.5
_SPARE_SECONDS: Final = 0.25
"""Beyond the query's deadline: the watchdog, which says why, comes first."""

# What Flight calls raise. Arrow's own exceptions derive from built-in ones.
_CALL_ERRORS: Final = (flight.FlightError, pa.ArrowException, OSError, ValueError, KeyError)


class PeerClients:
    """The Flight clients of an executor. Safe to use from several threads.

    Shared, never thread-local: Flight's handler threads are transient, and a client that dies
    with one takes the process along.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._clients: dict[str, flight.FlightClient] = {}
        self._silent_until: dict[str, float] = {}
        self._trailer_reader = TrailerReader()
        self.reading: Final = self._trailer_reader.reading
        """The trailers of a call of one of the clients; see `TrailerReader`."""

    def client(self, address: str) -> flight.FlightClient:
        """The shared client of `address`; connects at its first call."""
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

    def was_silent(self, address: str) -> bool:
        """Whether a ping of it went unanswered a moment ago."""
        with self._lock:
            return time.monotonic() < self._silent_until.get(address, 0.0)

    def mark_silent(self, address: str) -> None:
        now = time.monotonic()
        with self._lock:
            silent = {a: until for a, until in self._silent_until.items() if until > now}
            self._silent_until = {**silent, address: now + _SILENT_SECONDS}

    @property
    def count(self) -> int:
        return len(self._clients)

    def close(self) -> None:
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()


def _connect(address: str, trailer_reader: TrailerReader) -> flight.FlightClient:
    try:
        return flight.FlightClient(address, generic_options=_OPTIONS, middleware=[trailer_reader])
    except _CALL_ERRORS as error:
        log.error("no connection to %s: %s", address, error)
        raise ExecutorUnavailable("another executor has an address of no known form") from error


class PeerCall:
    """One part, asked of one peer. `read` blocks, on a thread of its own; all else comes from
    other threads and does not."""

    def __init__(
        self, clients: PeerClients, source: Source, tenant: TenantId, key: bytes, deadline: float
    ) -> None:
        """`deadline`: monotonic seconds.

        Raises:
            InvariantViolated: the source's ticket is not a part of a query of `tenant`.
            ExecutorUnavailable: the source's address is not one.
        """
        self.address: Final = source.address
        self.part: Final = _checked(source, tenant, key)
        self.last_sign = time.monotonic()
        """When the peer was last heard of."""
        self._clients: Final = clients
        self._client: Final = clients.client(source.address)
        self._signed: Final = source.ticket
        self._key: Final = key
        self._deadline: Final = deadline
        self._lock = threading.Lock()
        self._reader: flight.FlightStreamReader | None = None
        self._trailers = Trailers()
        self._is_cancelled = False
        self._has_ended = threading.Event()

    def __str__(self) -> str:
        return f"part {self.part.query_id} at {self.address}"

    def read(
        self,
        on_schema: Callable[[pa.Schema], bool],
        on_batch: Callable[[pa.RecordBatch], None],
    ) -> None:
        """Hand on the schema (whose taker says whether the rows are wanted) and every batch.

        Raises:
            AccelError: the peer did not give all of it, or a taker raised it.
            MemoryError: there is no room for it.
        """
        try:
            self._read(on_schema, on_batch)
        except MemoryError:  # Arrow's is one of the call's errors as well
            raise
        except _CALL_ERRORS as error:
            if self._is_cancelled:
                raise QueryCancelled(f"{self} was cancelled") from error
            raise self._translated(error) from error
        finally:
            self._has_ended.set()
            self._reader = None

    def _read(
        self,
        on_schema: Callable[[pa.Schema], bool],
        on_batch: Callable[[pa.RecordBatch], None],
    ) -> None:
        remaining = max(self._deadline - time.monotonic(), 0.0) + _SPARE_SECONDS
        options = flight.FlightCallOptions(timeout=remaining)
        with self._clients.reading() as self._trailers:
            reader = self._client.do_get(flight.Ticket(self._signed), options)
        with self._lock:
            self._reader = reader
        try:
            self._check_cancelled()
            self.last_sign = time.monotonic()
            is_done = not on_schema(reader.schema)
            while not is_done:
                batch = _next_batch(reader)
                self._check_cancelled()
                self.last_sign = time.monotonic()
                if batch is None:
                    return
                on_batch(batch)
        except (AccelError, MemoryError):  # ours, not the stream's: the peer must hear of it
            reader.cancel()
            raise

    def measured(self) -> Measured | None:
        """What the peer measured, once everything has been read; None: it did not tell."""
        told = self._trailers.get(MEASURED_TRAILER)
        try:
            return decode(told.encode(), Measured) if told else None
        except InvariantViolated as error:
            log.warning("%s told something unknown of its cost: %s", self, error)
            return None

    def cancel(self) -> bool:
        """End the stream; False: there is none yet, so that `send_cancellation` has to follow."""
        with self._lock:
            self._is_cancelled = True
            reader = self._reader
        if reader is not None:
            reader.cancel()
        return reader is not None

    def send_cancellation(self) -> None:
        """Stop a part whose first batch is still being computed: there is no stream to cancel
        yet. Blocks until the call has ended."""
        order = Cancellation(
            tenant=self.part.tenant,
            query_id=self.part.query_id,
            signature=signature_of(self._signed),
        )
        action = flight.Action(CANCEL, sign(encode(order), self._key))
        pause = _CANCEL_PAUSE_SECONDS
        while not self._has_ended.is_set() and time.monotonic() < self._deadline + _SPARE_SECONDS:
            try:
                list(
                    self._client.do_action(
                        action, flight.FlightCallOptions(timeout=_CANCEL_SECONDS)
                    )
                )
            except _CALL_ERRORS as error:
                log.info("%s could not be cancelled: %s", self, from_flight(error))
            # The part itself may not have reached the peer yet: once may not be enough.
            self._has_ended.wait(pause)
            pause = min(2 * pause, _MAX_CANCEL_PAUSE_SECONDS)

    def is_answering(self) -> bool:
        """Whether the peer's process answers anything at all. Blocks up to a second."""
        try:
            list(self._client.do_action(PING, flight.FlightCallOptions(timeout=_PING_SECONDS)))
        except _CALL_ERRORS as error:
            log.warning("%s: no answer to a ping: %s", self, from_flight(error))
            self._clients.mark_silent(self.address)
            self._clients.drop(self.address, self._client)
            return False
        self.last_sign = time.monotonic()
        return True

    def _check_cancelled(self) -> None:
        if self._is_cancelled:
            raise QueryCancelled(f"{self} was cancelled")

    def _translated(self, error: BaseException) -> AccelError:
        """Without addresses. What the query itself is at fault for keeps its class."""
        found = from_flight(error)
        tenant = self.part.tenant
        if isinstance(found, DeadlineExceeded) and "call's deadline passed" in str(found):
            return DeadlineExceeded(
                f"another executor of tenant {tenant} did not answer within the query's deadline"
            )
        if isinstance(found, QueryError | StaleEpoch | ResourceExhausted | NotResident):
            return found
        if isinstance(found, ExecutorUnavailable):
            self._clients.drop(self.address, self._client)
        log.warning("%s: %s", self, found)
        return self.unavailable()

    def unavailable(self) -> ExecutorUnavailable:
        """What the query's client hears when the peer gives nothing."""
        return ExecutorUnavailable(
            f"another executor of tenant {self.part.tenant}, which has a part of the data, does "
            "not answer at the moment; send the query again"
        )


def _next_batch(reader: flight.FlightStreamReader) -> pa.RecordBatch | None:
    while True:
        try:
            batch = reader.read_chunk().data
        except StopIteration:
            return None
        if batch is not None:
            return batch


def _checked(source: Source, tenant: TenantId, key: bytes) -> Ticket:
    try:
        part = decode(verify(source.ticket, key), Ticket)
        check_inputs(part)
    except AccelError as error:
        raise _no_part(tenant) from error
    if not part.is_part or part.tenant != tenant:
        raise _no_part(tenant)
    return part


def _no_part(tenant: TenantId) -> InvariantViolated:
    return InvariantViolated(
        f"a query of tenant {tenant} asks for something that is not a part of it"
    )
