"""A part asked of an executor by a ticket in a frame; see `ticket_stream`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import pyarrow as pa

from accel_dask.errors import AccelError, ExecutorUnavailable, QueryCancelled
from accel_dask.model.ids import TenantId
from accel_dask.model.ticket import Source
from accel_dask.ticket_calls import TicketCall
from accel_dask.ticket_stream import Frame, FrameKind, read_batch, read_error, read_schema
from accel_dask.worker_plugin.executor.part_call import PartCall
from accel_dask.worker_plugin.executor.peers import PeerClients

log = logging.getLogger(__name__)

T = TypeVar("T")

_FRAMES_AT_ONCE: Final = 64
"""Others have come meanwhile, and may be waiting."""


class FrameCall(PartCall):
    """Used by one thread, which blocks in nothing; only `ask` blocks, and may be called on
    another one."""

    def __init__(self, clients: PeerClients, source: Source, tenant: TenantId, key: bytes) -> None:
        """
        Raises:
            InvariantViolated: as `PartCall`.
        """
        super().__init__(clients, source, tenant, key)
        self.has_more = False
        """There may be more here already than `advance` has taken."""
        self._lock = threading.Lock()
        self._call: TicketCall | None = None
        self._is_asking = False
        self._is_closed = False
        self._schema: pa.Schema | None = None
        self._wants_rows = False
        self._measured = b""

    def ask_now(self) -> bool:
        """Send the ticket if that takes no time; False: `ask` has to be called."""
        call = self.clients.connections.idle(self.source)
        if call is None:
            self._is_asking = True
            return False
        self._call = call
        try:
            is_sent = call.send_now(FrameKind.PART, self.source.ticket)
        except ExecutorUnavailable:  # it has ended in this moment
            self._call, is_sent = None, False
        self._is_asking = not is_sent
        return is_sent

    def ask(self) -> None:
        """Connect if need be, and send the ticket or what is left of it. Blocks up to the time
        that connecting and sending may take.

        Raises:
            ExecutorUnavailable: the peer is not there, or takes nothing.
            QueryCancelled: the call was closed meanwhile.
        """
        try:
            self._connect()
            assert self._call is not None
            self._call.send_rest()
        except ExecutorUnavailable as error:
            log.warning("%s: %s", self, error)
            raise self.unavailable() from error
        finally:
            with self._lock:
                self._is_asking = False
                if self._is_closed and self._call is not None:
                    self._call.close()

    def _connect(self) -> None:
        if self._call is not None:
            return
        call = self.clients.connections.connect(self.source)
        with self._lock:
            if self._is_closed:
                call.close()
                raise QueryCancelled(f"{self} was cancelled")
            self._call = call
        call.send_now(FrameKind.PART, self.source.ticket)

    def fileno(self) -> int:
        assert self._call is not None
        return self._call.fileno()

    def admit_by(self, admit: Callable[[int], None]) -> None:
        """See `TicketCall`. Once it was asked."""
        assert self._call is not None
        self._call.admit_by(admit)

    @property
    def is_unheard(self) -> bool:
        """Whether nothing of an answer has come."""
        return self._call is None or not self._call.has_begun

    def advance(
        self,
        on_schema: Callable[[pa.Schema], bool],
        on_batch: Callable[[pa.RecordBatch], None],
    ) -> bool:
        """Hand on what is here: the schema (whose taker says whether the rows are wanted) and
        batches. Whether that was all of the answer.

        Raises:
            AccelError: the peer did not give all of it, or a taker raised it.
            MemoryError: there is no room for it.
        """
        for _ in range(_FRAMES_AT_ONCE):
            found = self._next()
            if found is None:
                self.has_more = False
                return False
            if found.kind is FrameKind.ERROR:
                raise self.translated(self._read(read_error, found.payload))
            if found.kind is FrameKind.SCHEMA and self._schema is None:
                self._schema = self._read(read_schema, found.payload)
                self._wants_rows = on_schema(self._schema)
            elif found.kind is FrameKind.BATCH and self._schema is not None:
                if self._wants_rows:
                    on_batch(self._read(read_batch, found.payload, self._schema))
            elif found.kind is FrameKind.END and self._schema is not None:
                self._measured = bytes(found.payload)
                return True
            else:
                raise self._lost(f"{found.kind.name} came out of turn")
        self.has_more = True
        return False

    def _next(self) -> Frame | None:
        assert self._call is not None
        try:
            return self._call.poll()
        except ExecutorUnavailable as error:
            raise self._lost(error) from error

    def _read(self, read: Callable[..., T], *payload: Any) -> T:
        try:
            return read(*payload)
        except ExecutorUnavailable as error:
            raise self._lost(error) from error

    def _lost(self, why: object) -> AccelError:
        """The connection is of no use any more."""
        assert self._call is not None
        self._call.cancel()
        log.warning("%s: %s", self, why)
        return self.unavailable()

    def _measured_text(self) -> bytes:
        return self._measured

    def close(self) -> None:
        """The peer stops, if it has not answered in full."""
        with self._lock:
            self._is_closed = True
            if self._call is None:
                return
            if self._is_asking:  # on another thread, which closes it
                self._call.cancel()
            else:
                self._call.close()
