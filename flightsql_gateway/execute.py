"""Runs a plan's fragment on an executor: sends the ticket, retries until the first batch is here.

Up to the first batch any failure of an executor is retried, on another one or by a newer plan;
after it a failure is the client's to see, because answers are never spliced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import pyarrow as pa
from pyarrow import flight

from accel_dask.codec import encode
from accel_dask.errors import (
    AccelError,
    AuthError,
    DeadlineExceeded,
    ExecutorUnavailable,
    NotResident,
    StaleEpoch,
)
from accel_dask.flight_errors import from_flight
from accel_dask.model.routing import ExecutorRoute, RoutingTable
from accel_dask.model.ticket import Cancellation, Input, Piece, Source, Ticket, sign
from accel_dask.query_planner.plan import Fragment, Part, PartInput, QueryPlan
from flightsql_gateway.calls import Call
from flightsql_gateway.executor_client import ExecutorClients
from flightsql_gateway.routing_cache import RoutingCache

log = logging.getLogger(__name__)

TICKET_VERSION: Final = 1
RETRY_SECONDS: Final = 5.0
"""How long a query waits for an executor to come (back), within its deadline."""
COUNTED_ROWS: Final = 1_000_000
"""The cost of a query that reads as many is counted by the engine."""
_FIRST_PAUSE_SECONDS: Final = 0.01
_MAX_PAUSE_SECONDS: Final = 0.1
_CANCEL_SECONDS: Final = 1.0
_CANCEL_ACTION: Final = "cancel"

# What Flight calls raise. Arrow's own exceptions derive from built-in ones.
_CALL_ERRORS: Final = (flight.FlightError, pa.ArrowException, OSError, ValueError, KeyError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One query on its way to an executor."""

    query_id: str
    parameters: bytes
    describe_only: bool
    replan: Callable[[RoutingTable, frozenset[str]], QueryPlan]
    """The query's plan on a routing table, without executors at some addresses if it can be."""


class Stream:
    """The batches of one executor, the first of them already here."""

    def __init__(
        self,
        plan: QueryPlan,
        executor: ExecutorRoute,
        reader: flight.FlightStreamReader,
        first: pa.RecordBatch | None,
        on_close: Callable[[], None],
    ) -> None:
        self.plan: Final = plan
        self.executor: Final = executor
        self.schema: Final[pa.Schema] = reader.schema
        self.retries = 0
        self._reader = reader
        self._first = first
        self._is_done = first is None
        self._on_close: Callable[[], None] | None = on_close

    def read(self) -> pa.RecordBatch | None:
        """The next batch; None: that was all.

        Raises:
            AccelError: the executor failed in the middle of its answer.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._is_done:
            return None
        try:
            batch = _next_batch(self._reader)
        except _CALL_ERRORS as error:
            self._is_done = True
            raise _in_the_middle(from_flight(error), self.plan.tenant) from error
        self._is_done = batch is None
        return batch

    def cancel(self) -> None:
        """End it from another thread; a blocked `read` fails."""
        self._reader.cancel()

    def close(self) -> None:
        """Stop the executor if it has not given all."""
        on_close, self._on_close = self._on_close, None
        if on_close is None:
            return
        if not self._is_done:
            self._reader.cancel()
        on_close()


class Execution:
    """Sends orders to executors. Safe to use from several threads."""

    def __init__(self, routing: RoutingCache, clients: ExecutorClients) -> None:
        self._routing = routing
        self._clients = clients

    def start(self, order: Order, call: Call) -> Stream:
        """The stream of `order`, with its first batch computed.

        Raises:
            QueryError: the query's own fault; not tried again.
            NotResident, StaleEpoch, ExecutorUnavailable: nobody could run it within
                `RETRY_SECONDS` and the call's deadline.
            DeadlineExceeded, QueryCancelled: the call ended.
        """
        give_up_at = min(time.monotonic() + RETRY_SECONDS, call.deadline)
        pause = _FIRST_PAUSE_SECONDS
        retries = 0
        plan: QueryPlan | None = None
        silent: frozenset[str] = frozenset()
        while True:
            call.check()
            table = self._routing.current()
            try:
                plan = order.replan(table, silent)
                stream = self._try_candidates(plan, order, call)
            except (NotResident, StaleEpoch, ExecutorUnavailable) as error:
                if time.monotonic() + pause >= give_up_at:
                    raise
                log.info("query %s waits for an executor: %s", order.query_id, error)
                if isinstance(error, ExecutorUnavailable):
                    silent |= _coordinator(plan)
            else:
                stream.retries = retries
                return stream
            retries += 1
            self._routing.wait_newer(table, pause)
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)

    def _try_candidates(self, plan: QueryPlan, order: Order, call: Call) -> Stream:
        fragment = plan.fragments[0]
        # Stable: executors that are equally busy are tried in the plan's order.
        candidates = sorted(
            fragment.candidates, key=lambda route: self._clients.in_flight(route.address)
        )
        failure: AccelError = NotResident(f"tenant {plan.tenant} has no executor at the moment")
        for route in candidates:
            try:
                return self._ask(route, plan, fragment, order, call)
            except (StaleEpoch, ExecutorUnavailable) as error:
                log.info(
                    "query %s of tenant %s: executor %s/%d at %s: %s",
                    order.query_id,
                    plan.tenant,
                    route.worker,
                    route.generation,
                    route.address,
                    error,
                )
                failure = error
        raise failure

    def _ask(
        self, route: ExecutorRoute, plan: QueryPlan, fragment: Fragment, order: Order, call: Call
    ) -> Stream:
        remaining = call.remaining()
        signed = self._ticket(plan, fragment, order, remaining)
        client = self._clients.client(route.address)
        self._clients.began(route.address)
        try:
            cancellation = Cancellation(tenant=plan.tenant, query_id=order.query_id)
            call.on_end(lambda: self._cancel(client, cancellation))
            reader = client.do_get(
                flight.Ticket(signed), flight.FlightCallOptions(timeout=remaining + 0.25)
            )
            call.on_end(reader.cancel)
            first = _next_batch(reader)
        except _CALL_ERRORS as error:
            self._clients.ended(route.address)
            call.on_end(None)
            call.check()
            raise self._translated(error, route, client) from error
        return Stream(plan, route, reader, first, lambda: self._clients.ended(route.address))

    def _ticket(self, plan: QueryPlan, fragment: Fragment, order: Order, remaining: float) -> bytes:
        key = self._routing.ticket_key()
        timeout_ms = max(int(remaining * 1000), 1)
        ticket = Ticket(
            version=TICKET_VERSION,
            query_id=order.query_id,
            tenant=plan.tenant,
            sql=fragment.sql,
            parameters=select_parameters(order.parameters, fragment.parameters),
            tokens=fragment.tokens,
            expires_at_ms=int(time.time() * 1000) + timeout_ms + 1000,
            timeout_ms=timeout_ms,
            max_result_rows=plan.limits.max_result_rows,
            max_result_bytes=plan.limits.max_result_bytes,
            max_cpu_ms=plan.limits.max_cpu_ms,
            measure=is_worth_counting(plan),
            describe_only=order.describe_only,
        )
        inputs = tuple(
            Input(
                name=one.name,
                pieces=tuple(_piece(ticket, one, part, order, key) for part in one.parts),
                max_rows=one.max_rows,
                max_bytes=one.max_bytes,
            )
            for one in fragment.inputs
        )
        return sign(encode(replace(ticket, inputs=inputs)), key)

    def _translated(
        self, error: BaseException, route: ExecutorRoute, client: flight.FlightClient
    ) -> AccelError:
        translated = from_flight(error)
        if isinstance(translated, AuthError):
            # Our signature, not the user's: the cluster's key changed, or another listens there.
            log.warning("executor at %s refused our ticket: %s", route.address, translated)
            translated = ExecutorUnavailable("the executor did not accept the ticket")
        elif isinstance(translated, ExecutorUnavailable):
            self._clients.drop(route.address, client)
            log.info("executor at %s: %s", route.address, translated)
            translated = ExecutorUnavailable(
                f"the executor of tenant {route.tenant} on {route.worker} does not answer at the "
                "moment; send the query again"
            )
        elif isinstance(translated, DeadlineExceeded) and "deadline passed" in str(translated):
            translated = DeadlineExceeded(
                f"the executor of tenant {route.tenant} did not answer within the query's deadline"
            )
        return translated

    def _cancel(self, client: flight.FlightClient, cancellation: Cancellation) -> None:
        """Stop a query whose first batch is still being computed: there is no stream to cancel
        yet. Called on the watching thread, so it must not block for long."""
        signed = sign(encode(cancellation), self._routing.ticket_key())
        action = flight.Action(_CANCEL_ACTION, signed)
        try:
            list(client.do_action(action, flight.FlightCallOptions(timeout=_CANCEL_SECONDS)))
        except _CALL_ERRORS as error:
            log.info(
                "query %s could not be cancelled: %s", cancellation.query_id, from_flight(error)
            )


def is_worth_counting(plan: QueryPlan) -> bool:
    """Whether the engine should count what it reads: not for short queries, which would feel it."""
    rows = plan.verdict.scan_rows
    return rows is None or rows >= COUNTED_ROWS


def _coordinator(plan: QueryPlan | None) -> frozenset[str]:
    """The plan of a spread query names one executor to ask; the next plan is to name another."""
    if plan is None or not plan.fragments[0].inputs:
        return frozenset()
    return frozenset(route.address for route in plan.fragments[0].candidates)


def _piece(ticket: Ticket, of: PartInput, part: Part, order: Order, key: bytes) -> Piece:
    """The order for a peer's share, with the query's own deadline."""
    signed = sign(
        encode(
            replace(
                ticket,
                sql=part.sql,
                parameters=select_parameters(order.parameters, part.parameters),
                tokens=part.tokens,
                max_result_rows=of.max_rows,
                max_result_bytes=of.max_bytes,
                is_part=True,
            )
        ),
        key,
    )
    return Piece(
        alternatives=tuple(Source(address=one.address, ticket=signed) for one in part.candidates)
    )


def select_parameters(parameters: bytes, wanted: tuple[int, ...] | None) -> bytes:
    """The columns `wanted` of `parameters`, an Arrow IPC stream of one row; None: all."""
    if not parameters or wanted is None:
        return parameters
    if not wanted:
        return b""
    row = pa.ipc.open_stream(parameters).read_all()
    selected = pa.Table.from_arrays(
        [row.column(index) for index in wanted], [f"p{n}" for n in range(len(wanted))]
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, selected.schema) as writer:
        writer.write_table(selected)
    data: bytes = sink.getvalue().to_pybytes()
    return data


def _next_batch(reader: flight.FlightStreamReader) -> pa.RecordBatch | None:
    while True:
        try:
            batch = reader.read_chunk().data
        except StopIteration:
            return None
        if batch is not None:
            return batch


def _in_the_middle(error: AccelError, tenant: str) -> AccelError:
    if isinstance(error, ExecutorUnavailable):
        return ExecutorUnavailable(
            f"the executor of tenant {tenant} went away in the middle of the answer; send the "
            "query again"
        )
    return error
