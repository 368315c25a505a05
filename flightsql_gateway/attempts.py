"""Executors asked for the answer to one query. The first that gives its first batch is taken.

Each is asked on a thread of its own, so that an executor that hangs holds up neither the query,
which is asked of another one meanwhile, nor its deadline.
"""

from __future__ import annotations

import logging
import threading
import time
from functools import partial
from queue import Empty, SimpleQueue
from typing import Final

import pyarrow as pa
from pyarrow import flight

from accel_dask.codec import encode
from accel_dask.errors import ExecutorUnavailable
from accel_dask.flight_errors import from_flight
from accel_dask.flight_trailers import Trailers
from accel_dask.model.routing import ExecutorRoute
from accel_dask.model.ticket import Cancellation, sign, signature_of
from accel_dask.query_planner.plan import QueryPlan
from flightsql_gateway.call_threads import CallThreads
from flightsql_gateway.executor_client import CALL_ERRORS, ExecutorClients
from flightsql_gateway.streams import Stream, StreamWatch, next_batch

log = logging.getLogger(__name__)

_SPARE_SECONDS: Final = 0.25
"""Beyond the deadline: the executor, which says why, comes first."""
_CANCEL_SECONDS: Final = 1.0
_CANCEL_ACTION: Final = "cancel"
_CANCEL_PAUSE_SECONDS: Final = 0.02
_MAX_CANCEL_PAUSE_SECONDS: Final = 0.5


class Attempt:
    """One executor, asked once. Made by `Race`."""

    def __init__(
        self, race: Race, plan: QueryPlan, route: ExecutorRoute, ticket: bytes, deadline: float
    ) -> None:
        self.plan: Final = plan
        self.route: Final = route
        self.heard_at = time.monotonic()
        """When the executor was last heard of."""
        self.is_asking = False
        """Whether it is there."""
        self.failure: BaseException | None = None
        self._race = race
        self._ticket = ticket
        self._deadline = deadline
        self._lock = threading.Lock()
        self._is_given_up = False
        self._has_ended = threading.Event()
        self._reader: flight.FlightStreamReader | None = None
        self._first: pa.RecordBatch | None = None
        self._trailers = Trailers()
        self.client: Final = race.clients.client(route.address)

    def run(self) -> None:
        """Ask, and wait for the first batch."""
        try:
            self._ask()
        except CALL_ERRORS as error:
            self.failure = error
        except BaseException as error:
            self.failure = error
            raise
        finally:
            with self._lock:
                self._has_ended.set()
                is_wanted = self.failure is None and not self._is_given_up
            if not is_wanted:
                self._race.clients.ended(self.route.address)
            self._race.events.put(self)

    def _ask(self) -> None:
        clients = self._race.clients
        clients.began(self.route.address)
        timeout = max(self._deadline - time.monotonic(), 0.0) + _SPARE_SECONDS
        with clients.reading() as self._trailers:
            reader = self.client.do_get(
                flight.Ticket(self._ticket), flight.FlightCallOptions(timeout=timeout)
            )
        with self._lock:
            self._reader = reader
            if self._is_given_up:
                reader.cancel()
        self._first = next_batch(reader)

    def stream(self) -> Stream:
        """Of an attempt that has ended well."""
        assert self._reader is not None
        clients, address = self._race.clients, self.route.address
        return Stream(
            self.plan,
            self.route,
            self._reader,
            self._first,
            self._trailers,
            self._race.watch,
            lambda: clients.ended(address),
        )

    def give_up(self) -> None:
        """Nobody wants its answer any more. Does not block."""
        with self._lock:
            if self._is_given_up:
                return
            self._is_given_up = True
            reader, has_ended = self._reader, self._has_ended.is_set()
        if reader is not None:
            reader.cancel()
            if has_ended and self.failure is None:
                self._race.clients.ended(self.route.address)
        elif not has_ended:
            try:
                self._race.threads.submit(self._send_cancellation)
            except ExecutorUnavailable as error:
                log.warning("query %s is not cancelled: %s", self._race.query_id, error)

    def _send_cancellation(self) -> None:
        """Stop a query whose first batch is still being computed: there is no stream to cancel
        yet."""
        order = Cancellation(
            tenant=self.plan.tenant,
            query_id=self._race.query_id,
            signature=signature_of(self._ticket),
        )
        action = flight.Action(_CANCEL_ACTION, sign(encode(order), self._race.key))
        pause = _CANCEL_PAUSE_SECONDS
        until = self._deadline + _SPARE_SECONDS
        while True:
            try:
                list(
                    self.client.do_action(action, flight.FlightCallOptions(timeout=_CANCEL_SECONDS))
                )
            except CALL_ERRORS as error:
                log.info(
                    "query %s could not be cancelled: %s", self._race.query_id, from_flight(error)
                )
            # The query itself may not have reached the executor yet: once may not be enough.
            if self._has_ended.wait(pause) or time.monotonic() > until:
                return
            pause = min(2 * pause, _MAX_CANCEL_PAUSE_SECONDS)


class Race:
    """The attempts of one query. Used by one thread; `wake` by any."""

    def __init__(
        self,
        query_id: str,
        key: bytes,
        clients: ExecutorClients,
        threads: CallThreads,
        watch: StreamWatch,
    ) -> None:
        """`key` signs cancellations."""
        self.query_id: Final = query_id
        self.key: Final = key
        self.clients: Final = clients
        self.threads: Final = threads
        self.watch: Final = watch
        self.events: Final[SimpleQueue[Attempt | None]] = SimpleQueue()
        self.open: Final[list[Attempt]] = []
        """Attempts that have not ended."""
        self.asked = 0

    def ask(self, plan: QueryPlan, route: ExecutorRoute, ticket: bytes, deadline: float) -> None:
        """Ask one more executor.

        Raises:
            ExecutorUnavailable: too many calls hang already.
        """
        attempt = Attempt(self, plan, route, ticket, deadline)
        self.threads.submit(attempt.run)
        self.open.append(attempt)
        self.asked += 1

    def next_ended(self, timeout_seconds: float) -> Attempt | None:
        """The next attempt that ended, well or not; None: none did in time, or `wake`."""
        try:
            attempt = self.events.get(timeout=timeout_seconds)
        except Empty:
            return None
        if attempt is not None and attempt in self.open:
            self.open.remove(attempt)
            return attempt
        return None

    def wake(self) -> None:
        """Have `next_ended` return."""
        self.events.put(None)

    def ask_for_life(self, patience_seconds: float) -> None:
        """Ask executors that have not been heard of for so long whether they are there."""
        now = time.monotonic()
        for attempt in self.open:
            if not attempt.is_asking and now - attempt.heard_at > patience_seconds:
                attempt.is_asking = True
                self.threads.submit(partial(self._ask_for_life, attempt))

    def _ask_for_life(self, attempt: Attempt) -> None:
        asked_at = time.monotonic()
        if self.clients.is_answering(attempt.route.address):
            attempt.heard_at = max(attempt.heard_at, asked_at)
        attempt.is_asking = False
        self.wake()

    def silent(self, seconds: float) -> list[Attempt]:
        """Attempts whose executor has been asked in vain, and not heard of for so long."""
        now = time.monotonic()
        return [
            attempt
            for attempt in self.open
            if now - attempt.heard_at > seconds and self.clients.was_silent(attempt.route.address)
        ]

    def give_up(self, attempt: Attempt) -> None:
        self.open.remove(attempt)
        attempt.give_up()

    def end(self) -> None:
        """Give up all attempts that have not ended."""
        for attempt in tuple(self.open):
            self.give_up(attempt)
