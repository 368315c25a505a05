"""An executor's Flight server: tickets in, record batches out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import flight

from accel_dask.codec import decode, encode
from accel_dask.errors import (
    AccelError,
    InvariantViolated,
    StaleEpoch,
    StoreUnavailable,
    Unauthenticated,
)
from accel_dask.flight_errors import to_flight
from accel_dask.model.measured import MEASURED_TRAILER
from accel_dask.model.ticket import (
    Cancellation,
    Ticket,
    check_inputs,
    fence,
    signature_of,
    verify,
)
from accel_dask.worker_plugin.executor.engine import Engine
from accel_dask.worker_plugin.executor.limits import resident_bytes
from accel_dask.worker_plugin.executor.peers import CANCEL, PING
from accel_dask.worker_plugin.executor.running import RunningQuery

log = logging.getLogger(__name__)

T = TypeVar("T")

_CALL = "call"


class Standing:
    """Whether this executor may serve: its lease, and whether it drains."""

    def __init__(self, lease_deadline: float, grace_seconds: float) -> None:
        self.lease_deadline = lease_deadline
        """Monotonic seconds, which all processes of a host share."""
        self.is_draining = False
        self._extended_at = lease_deadline
        self._grace_seconds = grace_seconds

    def extend(self, lease_deadline: float) -> None:
        """The host has renewed the lease, until then."""
        if lease_deadline > self.lease_deadline:
            self.lease_deadline = lease_deadline
            self._extended_at = time.monotonic()

    def check_blind(self) -> None:
        """Raise `StoreUnavailable` if this host hears from the store: a lease is renewed well
        before half of its life has passed."""
        if time.monotonic() < (self._extended_at + self.lease_deadline) / 2:
            raise StoreUnavailable(
                "this gateway has lost touch with the state store, and others have not; send the "
                "query to another gateway"
            )

    def check(self) -> None:
        """Raise `StaleEpoch` if no ticket may be taken."""
        if self.is_draining:
            raise StaleEpoch("this executor is being replaced; plan the query again")
        if time.monotonic() > self.lease_deadline + self._grace_seconds:
            raise StaleEpoch("this executor has lost its lease; plan the query again")


class ExecutorService(flight.FlightServerBase):  # type: ignore[misc]
    """Listens from its construction on; there is no need to call `serve`."""

    def __init__(self, engine: Engine, standing: Standing) -> None:
        # Before the base class: it takes calls as soon as it is constructed.
        self._engine = engine
        self._standing = standing
        self._key = bytes.fromhex(engine.spec.ticket_key)
        self._attached = frozenset(engine.spec.attachments)
        self._lock = threading.Lock()
        self._in_flight = 0
        self._queries = 0
        self._cancelled: dict[str, list[tuple[str, threading.Event]]] = {}
        """Of the queries under way, by their ids: the tickets' signatures, and what stops them."""
        host = f"[{engine.spec.host}]" if ":" in engine.spec.host else engine.spec.host
        super().__init__(f"grpc://{host}:0", middleware={_CALL: _Calls()})

    def stats(self) -> dict[str, int]:
        """Queries under way and taken so far, and resident bytes."""
        with self._lock:
            return {
                "in_flight": self._in_flight,
                "queries": self._queries,
                "rss_bytes": resident_bytes(),
            }

    @property
    def in_flight(self) -> int:
        return self._in_flight

    def do_get(
        self, context: flight.ServerCallContext, ticket: flight.Ticket
    ) -> flight.FlightDataStream:
        started_at = time.monotonic()
        return _guarded(lambda: self._answer(context, ticket.ticket, started_at))

    def do_action(
        self,
        context: flight.ServerCallContext,  # noqa: ARG002
        action: flight.Action,
    ) -> Iterator[flight.Result]:
        if action.type == CANCEL:
            _guarded(lambda: self._cancel(action.body.to_pybytes()))
            return iter([])
        if action.type != PING:
            raise flight.FlightUnavailableError("[UNSUPPORTED_QUERY] only ping and cancel")
        return iter([flight.Result(encode(self.stats()))])

    def _cancel(self, signed: bytes) -> None:
        """The watchdog sees it at its next turn. Queries that have ended are no error."""
        order = decode(verify(signed, self._key), Cancellation)
        if order.tenant != self._engine.spec.tenant:
            return
        with self._lock:
            for signature, cancelled in self._cancelled.get(order.query_id, ()):
                if order.signature in ("", signature):
                    cancelled.set()

    def list_actions(self, context: flight.ServerCallContext) -> list[tuple[str, str]]:  # noqa: ARG002
        return [
            (PING, "liveness, and what it is doing"),
            (CANCEL, "stop a query; the body is a signed Cancellation"),
        ]

    def _answer(
        self, context: flight.ServerCallContext, signed: bytes, started_at: float
    ) -> flight.FlightDataStream:
        order = self._checked(signed)
        call = context.get_middleware(_CALL)
        cancelled = threading.Event()
        entry = (signature_of(signed), cancelled)
        with self._lock:
            self._in_flight += 1
            self._queries += 1
            self._cancelled.setdefault(order.query_id, []).append(entry)
        call.on_end = lambda: self._ended(order.query_id, entry)

        def is_cancelled() -> bool:
            return cancelled.is_set() or bool(context.is_cancelled())

        query = call.query = self._engine.run(order, is_cancelled, started_at)
        if query.is_complete:  # the engine is done with it: C++ can stream alone
            _tell_measured(context, query)
            return flight.RecordBatchStream(pa.Table.from_batches(list(query), query.schema))
        return flight.GeneratorStream(query.schema, _Answer(query, context))

    def _checked(self, signed: bytes) -> Ticket:
        self._standing.check()
        try:
            order = decode(verify(signed, self._key), Ticket)
            check_inputs(order)
        except InvariantViolated as error:
            raise Unauthenticated("the ticket is not one that this executor reads") from error
        if order.expires_at_ms < time.time() * 1000:
            raise StaleEpoch("the ticket has expired; plan the query again")
        fence(order, self._engine.spec.tenant, self._attached)
        if order.is_blind:
            self._standing.check_blind()
        return order

    def _ended(self, query_id: str, entry: tuple[str, threading.Event]) -> None:
        with self._lock:
            self._in_flight -= 1
            entries = self._cancelled[query_id]
            entries.remove(entry)
            if not entries:
                del self._cancelled[query_id]


class _Answer:
    """Batches for Flight, with our errors as Flight's."""

    def __init__(self, query: RunningQuery, context: flight.ServerCallContext) -> None:
        self._query = query
        self._context = context

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        try:
            return _guarded(self._query.__next__)
        except StopIteration:
            _tell_measured(self._context, self._query)
            raise


def _tell_measured(context: flight.ServerCallContext, query: RunningQuery) -> None:
    context.add_trailer(MEASURED_TRAILER, encode(query.measured()).decode())


class _Call(flight.ServerMiddleware):  # type: ignore[misc]
    """What must end with a call, however it ends. The watchdog asks the call's context whether
    the client is still there; once `call_completed` has returned, the context is freed memory."""

    def __init__(self) -> None:
        self.query: RunningQuery | None = None
        self.on_end: Callable[[], None] | None = None

    def call_completed(self, exception: flight.FlightError | None) -> None:  # noqa: ARG002
        query, self.query = self.query, None
        on_end, self.on_end = self.on_end, None
        if query is not None:
            query.close()
        if on_end is not None:
            on_end()


class _Calls(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    def start_call(self, info: flight.CallInfo, headers: object) -> _Call:  # noqa: ARG002
        return _Call()


def _guarded(work: Callable[[], T]) -> T:
    """`work`'s result; its errors as Flight errors with nothing of the inside in them."""
    try:
        return work()
    except StopIteration:
        raise
    except AccelError as error:
        log.info("%s: %s (%.500r)", error.code, error, error.__cause__)
        raised: Any = to_flight(error)
    except Exception as error:
        log.exception("a query failed unexpectedly")
        raised = to_flight(error)
    raise raised
