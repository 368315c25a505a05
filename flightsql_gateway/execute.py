"""Runs a plan's fragment on an executor, and on others until the first batch is here.

Up to the first batch any failure of an executor is retried, on another one or by a newer plan,
and an executor that hangs is overtaken by another; after it a failure is the client's to see,
because answers are never spliced.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from accel_dask.errors import (
    AccelError,
    AuthError,
    ColdReadFailed,
    ExecutorUnavailable,
    NotResident,
    ResourceExhausted,
    StaleEpoch,
)
from accel_dask.model.routing import ExecutorRoute, RoutingTable
from accel_dask.query_planner.plan import QueryPlan
from flightsql_gateway.attempts import Attempt, Race
from flightsql_gateway.call_threads import CallThreads
from flightsql_gateway.calls import Call
from flightsql_gateway.executor_client import ExecutorClients
from flightsql_gateway.routing_cache import RoutingCache
from flightsql_gateway.streams import LOST_SECONDS, PATIENCE_SECONDS, Stream, StreamWatch
from flightsql_gateway.tickets import TicketContext, ticket_of

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5.0
"""How long a query waits for an executor to come (back), within its deadline."""
MAX_LOST: Final = 3
"""A query whose executors end while they work on it is not given to more than these."""
_FIRST_PAUSE_SECONDS: Final = 0.01
_MAX_PAUSE_SECONDS: Final = 0.1
_TURN_SECONDS: Final = 0.1

_ELSEWHERE: Final = (StaleEpoch, ExecutorUnavailable, ResourceExhausted, ColdReadFailed)
"""What another executor with the same data may do better."""
_Candidate = tuple[QueryPlan, ExecutorRoute]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One query on its way to an executor."""

    query_id: str
    parameters: bytes
    describe_only: bool
    replan: Callable[[RoutingTable, frozenset[str]], QueryPlan]
    """The query's plan on a routing table, without executors at some addresses if it can be."""


class Execution:
    """Sends orders to executors. Safe to use from several threads."""

    def __init__(
        self,
        routing: RoutingCache,
        clients: ExecutorClients,
        is_blind: Callable[[], bool] = lambda: False,
    ) -> None:
        """`is_blind`: see `Ticket.is_blind`."""
        self._is_blind = is_blind
        self._routing = routing
        self._clients = clients
        self._threads = CallThreads()
        self._watch = StreamWatch(clients, self._threads)

    def close(self) -> None:
        self._watch.close()
        self._threads.close()

    def start(self, order: Order, call: Call) -> Stream:
        """The stream of `order`, with its first batch computed.

        Raises:
            QueryError: the query's own fault; not tried again.
            NotResident, StaleEpoch, ExecutorUnavailable, ResourceExhausted: nobody could run it
                within `RETRY_SECONDS` and the call's deadline.
            DeadlineExceeded, QueryCancelled: the call ended.
        """
        context = TicketContext(
            query_id=order.query_id,
            parameters=order.parameters,
            describe_only=order.describe_only,
            key=self._routing.ticket_key(),
            is_blind=self._is_blind(),
        )
        run = _Run(context, self._clients, self._watch, order, call)
        give_up_at = min(time.monotonic() + RETRY_SECONDS, call.deadline)
        pause = _FIRST_PAUSE_SECONDS
        while True:
            call.remaining()
            table = self._routing.current()
            try:
                return run.attempt(table)
            except (NotResident, StaleEpoch, ExecutorUnavailable) as error:
                if time.monotonic() + pause >= give_up_at or run.lost >= MAX_LOST:
                    raise
                log.info("query %s waits for an executor: %s", order.query_id, error)
                waits_for = error
            self._routing.wait_newer(table, pause)
            if time.monotonic() >= give_up_at:  # woken late: this says more than the deadline
                raise waits_for
            pause = min(2 * pause, _MAX_PAUSE_SECONDS)


class _Run:
    """One order, until its first batch is here."""

    def __init__(
        self,
        context: TicketContext,
        clients: ExecutorClients,
        watch: StreamWatch,
        order: Order,
        call: Call,
    ) -> None:
        self.lost = 0
        """Executors that ended while they worked on it."""
        self._clients = clients
        self._order = order
        self._call = call
        self._context = context
        self._race = Race(order.query_id, clients, watch)
        self._avoid: frozenset[str] = frozenset()

    def attempt(self, table: RoutingTable) -> Stream:
        """The first stream that any executor of the plan on `table` gives.

        Raises:
            AccelError: as `Execution.start`, for all that can run it now.
        """
        candidates = self._candidates(table)
        first = next(candidates, None)
        if first is None:
            raise NotResident("the tenant has no executor at the moment")
        self._call.on_end(self._race.wake)
        try:
            return self._first_of(first, candidates)
        except BaseException:
            self._call.on_end(None)
            raise
        finally:
            self._race.end()

    def _first_of(self, first: _Candidate, others: Iterator[_Candidate]) -> Stream:
        race = self._race
        self._ask(first)
        overtaken: set[int] = set()
        while True:
            ended = race.next_ended(_TURN_SECONDS)
            if ended is not None and ended.failure is None:
                return self._taken(ended)
            self._call.check()
            if ended is not None:
                assert ended.failure is not None
                failure = self._failed(ended, ended.failure)
                if not isinstance(failure, _ELSEWHERE):
                    raise failure
                if not self._ask_next(others) and not race.open:
                    raise failure
            race.ask_for_life(PATIENCE_SECONDS)
            for attempt in race.silent(PATIENCE_SECONDS):
                if id(attempt) not in overtaken:
                    overtaken.add(id(attempt))
                    self._ask_next(others)
            self._give_up_silent()

    def _give_up_silent(self) -> None:
        """
        Raises:
            ExecutorUnavailable: nobody else is at work on it.
        """
        race = self._race
        for attempt in race.silent(LOST_SECONDS):
            log.warning("query %s: %s is silent", self._order.query_id, attempt.route.address)
            self._avoid |= {attempt.route.address}
            race.give_up(attempt)
            if not race.open:
                raise _unavailable(attempt.route)

    def _taken(self, ended: Attempt) -> Stream:
        stream = self._race.taken(ended)
        stream.retries = self._race.asked - 1
        self._call.on_end(stream.cancel)
        return stream

    def _candidates(self, table: RoutingTable) -> Iterator[_Candidate]:
        """Who can run the query, best first. The plan of a spread query names one executor to
        ask; after it comes whoever can take its place in another plan."""
        plan = self._order.replan(table, self._avoid)
        seen: set[str] = set()
        while True:
            fragment = plan.fragments[0]
            # Stable: executors that are equally busy are asked in the plan's order.
            routes = sorted(fragment.candidates, key=self._rank)
            new = [route for route in routes if route.address not in seen]
            if not new:
                return
            for route in new:
                seen.add(route.address)
                yield plan, route
            if not fragment.inputs and not any(used.rollup for used in plan.datasets):
                return  # else there is another plan: rollups are on hot executors alone
            try:
                plan = self._order.replan(table, self._avoid | seen)
            except AccelError as error:
                log.info("query %s has no other plan: %s", self._order.query_id, error)
                return

    def _rank(self, route: ExecutorRoute) -> tuple[bool, bool, int]:
        clients, address = self._clients, route.address
        return clients.was_silent(address), route.is_cold, clients.in_flight(address)

    def _ask(self, candidate: _Candidate) -> None:
        plan, route = candidate
        call = self._call
        ticket = ticket_of(plan, plan.fragments[0], self._context, call.remaining())
        self._race.ask(plan, route, ticket)

    def _ask_next(self, others: Iterator[_Candidate]) -> bool:
        candidate = next(others, None) if self.lost < MAX_LOST else None
        if candidate is not None:
            self._ask(candidate)
        return candidate is not None

    def _failed(self, attempt: Attempt, error: AccelError) -> AccelError:
        route = attempt.route
        log.info(
            "query %s of tenant %s: executor %s/%d at %s: %s",
            self._order.query_id, route.tenant, route.worker, route.generation, route.address,
            error,
        )  # fmt: skip
        if isinstance(error, AuthError):
            # Our signature, not the user's: the cluster's key changed, or another listens there.
            log.warning("executor at %s refused our ticket: %s", route.address, error)
            return ExecutorUnavailable("the executor did not accept the ticket")
        if isinstance(error, ExecutorUnavailable):
            self._avoid |= {route.address} if attempt.plan.fragments[0].inputs else set()
            self.lost += attempt.is_lost
            if attempt.is_lost or attempt.call is None:
                self._clients.drop(route)
            return _unavailable(route)
        return error


def _unavailable(route: ExecutorRoute) -> ExecutorUnavailable:
    return ExecutorUnavailable(
        f"the executor of tenant {route.tenant} on {route.worker} does not answer at the "
        "moment; send the query again"
    )
