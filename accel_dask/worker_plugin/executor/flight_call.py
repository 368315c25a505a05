"""A part asked of an executor by Flight: of one that takes no tickets in another way."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

import pyarrow as pa
from pyarrow import flight

from accel_dask.codec import encode
from accel_dask.errors import AccelError, ExecutorUnavailable, QueryCancelled
from accel_dask.flight_errors import FLIGHT_FAILURES, from_flight
from accel_dask.flight_trailers import Trailers
from accel_dask.model.ids import TenantId
from accel_dask.model.measured import MEASURED_TRAILER
from accel_dask.model.ticket import Cancellation, Source, sign, signature_of
from accel_dask.worker_plugin.executor.part_call import PartCall
from accel_dask.worker_plugin.executor.peers import CANCEL, PeerClients

log = logging.getLogger(__name__)

_CANCEL_SECONDS: Final = 1.0
_CANCEL_PAUSE_SECONDS: Final = 0.02
_MAX_CANCEL_PAUSE_SECONDS: Final = 0.5
_SPARE_SECONDS: Final = 0.25
"""Beyond the query's deadline: the watchdog, which says why, comes first."""


class FlightCall(PartCall):
    """`read` blocks, on a thread of its own; all else comes from other threads and does not."""

    def __init__(
        self, clients: PeerClients, source: Source, tenant: TenantId, key: bytes, deadline: float
    ) -> None:
        """`deadline`: monotonic seconds.

        Raises:
            InvariantViolated: as `PartCall`.
            ExecutorUnavailable: the source's address is not one.
        """
        super().__init__(clients, source, tenant, key)
        self._client: Final = clients.client(source.address)
        self._key: Final = key
        self._deadline: Final = deadline
        self._lock = threading.Lock()
        self._reader: flight.FlightStreamReader | None = None
        self._trailers = Trailers()
        self._is_cancelled = False
        self._has_ended = threading.Event()

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
        except FLIGHT_FAILURES as error:
            if self._is_cancelled:
                raise QueryCancelled(f"{self} was cancelled") from error
            found = from_flight(error)
            if isinstance(found, ExecutorUnavailable):
                self.clients.drop(self.source.address, self._client)
            raise self.translated(found) from error
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
        with self.clients.reading() as self._trailers:
            reader = self._client.do_get(flight.Ticket(self.source.ticket), options)
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

    def _measured_text(self) -> bytes:
        return (self._trailers.get(MEASURED_TRAILER) or "").encode()

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
            signature=signature_of(self.source.ticket),
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
            except FLIGHT_FAILURES as error:
                log.info("%s could not be cancelled: %s", self, from_flight(error))
            # The part itself may not have reached the peer yet: once may not be enough.
            self._has_ended.wait(pause)
            pause = min(2 * pause, _MAX_CANCEL_PAUSE_SECONDS)

    def _check_cancelled(self) -> None:
        if self._is_cancelled:
            raise QueryCancelled(f"{self} was cancelled")


def _next_batch(reader: flight.FlightStreamReader) -> pa.RecordBatch | None:
    while True:
        try:
            batch = reader.read_chunk().data
        except StopIteration:
            return None
        if batch is not None:
            return batch
