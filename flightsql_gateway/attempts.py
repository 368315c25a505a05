"""Executors asked for the answer to one query. The first that gives its first batch is taken.

One thread waits for all of them at once, so an executor that hangs holds up neither the query,
which is asked of another one meanwhile, nor its deadline.
"""

from __future__ import annotations

import logging
import select
import time
from functools import partial
from typing import Final

import pyarrow as pa

from accel_dask.errors import AccelError, ExecutorUnavailable
from accel_dask.model.routing import ExecutorRoute
from accel_dask.query_planner.plan import QueryPlan
from accel_dask.ticket_calls import TicketCall
from accel_dask.ticket_stream import FrameKind, read_batch, read_error, read_schema
from flightsql_gateway.executor_client import ExecutorClients
from flightsql_gateway.streams import Stream, StreamWatch, measured_in

log = logging.getLogger(__name__)


class Attempt:
    """One executor, asked once. Made by `Race`."""

    def __init__(self, plan: QueryPlan, route: ExecutorRoute) -> None:
        self.plan: Final = plan
        self.route: Final = route
        self.heard_at = time.monotonic()
        """When the executor was last heard of."""
        self.is_asking = False
        """Whether it is there."""
        self.failure: AccelError | None = None
        self.is_lost = False
        """Whether the executor ended, or broke off, while it had the ticket."""
        self.call: TicketCall | None = None
        """None: it could not be asked."""
        self.has_first = False
        self._schema: pa.Schema | None = None
        self._first: pa.RecordBatch | None = None
        self._measured: str | None = None

    @property
    def has_ended(self) -> bool:
        return self.has_first or self.failure is not None

    def advance(self) -> None:
        """Take what is here of the answer, up to its first batch and an end right behind it."""
        assert self.call is not None
        try:
            while self._measured is None and (found := self.call.poll()) is not None:
                if found.kind is FrameKind.SCHEMA:
                    self._schema = read_schema(found.payload)
                elif found.kind is FrameKind.ERROR:
                    self.failure = read_error(found.payload)
                    return
                elif self._schema is None:
                    raise ExecutorUnavailable("the answer began in its middle")
                elif found.kind is FrameKind.BATCH:
                    self._first = read_batch(found.payload, self._schema)
                    self.has_first = True
                    return
                else:
                    self._measured = measured_in(found.payload)
                    self.has_first = True
        except (AccelError, pa.ArrowException, OSError, ValueError) as error:
            self.is_lost = True
            self.failure = (
                error
                if isinstance(error, ExecutorUnavailable)
                else ExecutorUnavailable(f"the executor's answer cannot be read: {error}")
            )

    def stream(self, watch: StreamWatch, clients: ExecutorClients) -> Stream:
        """Of an attempt that has ended well."""
        assert self.call is not None
        address = self.route.address
        return Stream(
            self.plan,
            self.route,
            self.call,
            self._schema,
            self._first,
            self._measured,
            watch,
            lambda: clients.ended(address),
        )

    def close(self) -> None:
        """Nobody wants its answer any more."""
        if self.call is not None:
            self.call.close()


class Race:
    """The attempts of one query. Used by one thread; `wake` by any."""

    def __init__(self, query_id: str, clients: ExecutorClients, watch: StreamWatch) -> None:
        self.query_id: Final = query_id
        self.open: Final[list[Attempt]] = []
        """Attempts that have not ended."""
        self.asked = 0
        self._clients = clients
        self._watch = watch
        self._failed: list[Attempt] = []
        """They could not be asked."""
        self._is_woken = False

    def ask(self, plan: QueryPlan, route: ExecutorRoute, ticket: bytes) -> None:
        """Ask one more executor."""
        attempt = Attempt(plan, route)
        self.asked += 1
        try:
            attempt.call = self._clients.connections.send(route, ticket)
        except ExecutorUnavailable as error:
            attempt.failure = error
            self._failed.append(attempt)
            return
        self._clients.began(route.address)
        self.open.append(attempt)

    def next_ended(self, timeout_seconds: float) -> Attempt | None:
        """The next attempt that ended, well or not; None: none did in time, or `wake`."""
        if self._failed:
            return self._failed.pop()
        if self._is_woken:
            return None
        waited = select.poll()
        by_descriptor = {}
        for attempt in self.open:
            assert attempt.call is not None
            by_descriptor[attempt.call.fileno()] = attempt
            waited.register(attempt.call, select.POLLIN)
        for descriptor, _ in waited.poll(timeout_seconds * 1000):
            attempt = by_descriptor[descriptor]
            attempt.heard_at = time.monotonic()
            attempt.advance()
            if attempt.has_ended:
                self.open.remove(attempt)
                if attempt.failure is not None:
                    self._end(attempt)
                return attempt
        return None

    def taken(self, attempt: Attempt) -> Stream:
        """The stream of an attempt that has ended well."""
        return attempt.stream(self._watch, self._clients)

    def wake(self) -> None:
        """The query is over: have `next_ended` return."""
        self._is_woken = True
        for attempt in tuple(self.open):
            if attempt.call is not None:
                attempt.call.cancel()

    def ask_for_life(self, patience_seconds: float) -> None:
        """Ask executors that have not been heard of for so long whether they are there. What one
        query hears holds for all: an executor with many long queries is not asked for each."""
        now = time.monotonic()
        for attempt in self.open:
            heard_at = self._clients.heard_at(attempt.route.address)
            attempt.heard_at = max(attempt.heard_at, heard_at)
            if not attempt.is_asking and now - attempt.heard_at > patience_seconds:
                attempt.is_asking = True
                try:
                    self._watch.threads.submit(partial(self._ask_for_life, attempt))
                except ExecutorUnavailable as error:
                    attempt.is_asking = False
                    log.warning("query %s: %s", self.query_id, error)

    def _ask_for_life(self, attempt: Attempt) -> None:
        asked_at = time.monotonic()
        if self._clients.is_answering(attempt.route.address):
            attempt.heard_at = max(attempt.heard_at, asked_at)
        attempt.is_asking = False

    def silent(self, seconds: float) -> list[Attempt]:
        """Attempts whose executor has been asked in vain, and not heard of for so long."""
        now = time.monotonic()
        return [
            attempt
            for attempt in self.open
            if now - attempt.heard_at > seconds and self._clients.was_silent(attempt.route.address)
        ]

    def give_up(self, attempt: Attempt) -> None:
        self.open.remove(attempt)
        self._end(attempt)

    def end(self) -> None:
        """Give up all attempts that have not ended."""
        for attempt in tuple(self.open):
            self.give_up(attempt)

    def _end(self, attempt: Attempt) -> None:
        attempt.close()
        self._clients.ended(attempt.route.address)
