"""An executor's doors: the ticket server for gateways, and Flight for its peers and for signs of
life."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import pyarrow as pa
from pyarrow import flight

from accel_dask.codec import encode
from accel_dask.errors import AccelError
from accel_dask.flight_errors import to_flight
from accel_dask.model.measured import MEASURED_TRAILER
from accel_dask.worker_plugin.executor.peers import CANCEL, PING
from accel_dask.worker_plugin.executor.running import RunningQuery
from accel_dask.worker_plugin.executor.ticket_desk import Job, TicketDesk

log = logging.getLogger(__name__)

T = TypeVar("T")

_CALL = "call"


class ExecutorService(flight.FlightServerBase):  # type: ignore[misc]
    """Listens from its construction on; there is no need to call `serve`."""

    def __init__(self, desk: TicketDesk, host: str) -> None:
        # Before the base class: it takes calls as soon as it is constructed.
        self._desk = desk
        literal = f"[{host}]" if ":" in host else host
        super().__init__(f"grpc://{literal}:0", middleware={_CALL: _Calls()})

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
            _guarded(lambda: self._desk.cancel(action.body.to_pybytes()))
            return iter([])
        if action.type != PING:
            raise flight.FlightUnavailableError("[UNSUPPORTED_QUERY] only ping and cancel")
        return iter([flight.Result(encode(self._desk.stats()))])

    def list_actions(self, context: flight.ServerCallContext) -> list[tuple[str, str]]:  # noqa: ARG002
        return [
            (PING, "liveness, and what it is doing"),
            (CANCEL, "stop a query; the body is a signed Cancellation"),
        ]

    def _answer(
        self, context: flight.ServerCallContext, signed: bytes, started_at: float
    ) -> flight.FlightDataStream:
        call = context.get_middleware(_CALL)
        job, query = self._desk.take(signed, lambda: bool(context.is_cancelled()), started_at)
        call.job = job
        if query.is_complete:  # the engine is done with it: C++ can stream alone
            _tell_measured(context, query)
            return flight.RecordBatchStream(pa.Table.from_batches(list(query), query.schema))
        return flight.GeneratorStream(query.schema, _Answer(query, context))


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
    context.add_trailer(MEASURED_TRAILER, query.measured_text().decode())


class _Call(flight.ServerMiddleware):  # type: ignore[misc]
    """What must end with a call, however it ends. The watchdog asks the call's context whether
    the client is still there; once `call_completed` has returned, the context is freed memory."""

    def __init__(self) -> None:
        self.job: Job | None = None

    def call_completed(self, exception: flight.FlightError | None) -> None:  # noqa: ARG002
        job, self.job = self.job, None
        if job is not None:
            job.close()


class _Calls(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    def start_call(self, info: flight.CallInfo, headers: object) -> _Call:  # noqa: ARG002
        return _Call()


def answering(
    desk: TicketDesk, signed: bytes, is_gone: Callable[[], bool], started_at: float
) -> tuple[RunningQuery, Callable[[], None]]:
    """The query of a ticket, and what closes it, for `TicketServer`."""
    job, query = desk.take(signed, is_gone, started_at)
    return query, job.close


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
