"""A query's whole walk through the gateway: plan, admit, execute, stream, receipt.

Front ends call `QueryService.run` and send on what it yields. They hold no logic of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import pyarrow as pa

from accel_dask.errors import (
    AccelError,
    InvalidQuery,
    NotResident,
    QueryError,
    ResourceExhausted,
    UnsupportedQuery,
)
from accel_dask.model.ids import TenantId
from accel_dask.model.routing import RoutingTable
from accel_dask.model.tenant import Quota
from accel_dask.query_planner.cache import PlanCache
from accel_dask.query_planner.engine_faults import NAN_REFUSED
from accel_dask.query_planner.pipeline import explain, plan_query, shards_to_read
from accel_dask.query_planner.plan import PlanContext, QueryPlan, Scan
from flightsql_gateway.admission import Admission, Slot
from flightsql_gateway.answer import Answer
from flightsql_gateway.auth import Identity
from flightsql_gateway.calls import Call, CallWatch
from flightsql_gateway.execute import Execution, Order
from flightsql_gateway.explain import SCHEMA, ExplainStream, explained
from flightsql_gateway.fallback.governor import Fallback, both, forbidden
from flightsql_gateway.observations import Observations
from flightsql_gateway.query import Query, QueryRecord
from flightsql_gateway.request_limits import AskedLimits, lowered, whose
from flightsql_gateway.request_pins import NamedCalls, check_pins
from flightsql_gateway.routing_cache import RoutingCache
from flightsql_gateway.tickets import TicketContext, has_nan, ticket_of

log = logging.getLogger(__name__)

_MAX_SCHEMAS: Final = 1000
_LARGE_TEXT: Final = 8 * 1024
"""Characters of a statement whose parsing takes long enough to be felt by other queries."""


class QueryService:
    """Answers queries. Safe to use from several threads."""

    def __init__(
        self,
        routing: RoutingCache,
        execution: Execution,
        watch: CallWatch,
        observations: Observations | None = None,
        fallback: Fallback | None = None,
        admission: Admission | None = None,
    ) -> None:
        """`observations`: of every query that ended."""
        self.admission: Final = admission or Admission()
        self._fallback = fallback or Fallback()
        self._routing = routing
        self._execution = execution
        self._watch = watch
        self._observations = observations or Observations(())
        self._plans = PlanCache()
        self._parsing_large = threading.Lock()
        self._named = NamedCalls()
        self._schemas: OrderedDict[tuple[TenantId, str], pa.Schema] = OrderedDict()

    def run(self, query: Query, is_cancelled: Callable[[], bool]) -> Answer:
        """The answer to `query`, its first batch computed. Whoever calls closes it.

        `is_cancelled` tells whether the client is gone; it is not called after the close.

        Raises:
            AccelError: it cannot be answered; the class says whether to try again.
        """
        record = QueryRecord(query, self._observations)
        try:
            quota = self._routing.current().quota_of(query.identity.tenant)
            watched = self._named.watched(query.identity, query.name, is_cancelled)
            call = self._open_call(query, quota, watched)
        except AccelError as error:
            record.finish(error)
            raise
        slot: Slot | None = None
        is_engines = False
        try:
            inner = explained(query.sql)
            if inner is not None:
                record.stream = self._explain(replace(query, sql=inner), record)
                return Answer(record.stream, call, None, record)
            is_engines = self._fallback.is_first(query, self._routing.current())
            if is_engines:
                call.close()
                asked = self._open_fallback_call(query, quota, watched, call)
                return self._at_engine(query, record, asked, None)
            self._check(query, record)
            slot = self.admission.admit(query.identity.tenant, quota, call)
            record.queue_ms = slot.queue_ms
            order = Order(
                query_id=record.query_id,
                parameters=query.parameters,
                describe_only=query.describe_only,
                replan=lambda table, avoid: self._plan(query, table, record, avoid),
            )
            started = time.monotonic()
            stream = self._execution.start(order, call)
            record.run_ms = (time.monotonic() - started) * 1000
            record.stream = stream
        except BaseException as error:
            call.close()
            if slot is not None:
                slot.release()
            if is_engines:
                raise
            if isinstance(error, AccelError) and self._falls_back(query, error):
                if not query.may_fall_back:
                    told = forbidden(error)
                    record.finish(told)
                    raise told from error
                asked = self._open_fallback_call(query, quota, watched, call)
                return self._at_engine(query, record, asked, error)
            record.finish(error)
            raise
        return Answer(stream, call, slot, record)

    def _falls_back(self, query: Query, error: AccelError) -> bool:
        return self._fallback.covers(query, self._routing.current(), error)

    def _at_engine(
        self, query: Query, record: QueryRecord, call: Call, error: AccelError | None
    ) -> Answer:
        """The answer of the engine behind memory, which gave `error`."""
        started = time.monotonic()
        try:
            table = self._routing.current()
            stream = self._fallback.start(
                query, table, table.quota_of(query.identity.tenant), error, call
            )
        except BaseException as failure:
            call.close()
            told = both(error, failure)
            record.finish(told)
            if told is failure:
                raise
            raise told from failure
        record.run_ms = (time.monotonic() - started) * 1000
        record.stream, record.fallback = stream, stream.note
        return Answer(stream, call, None, record)

    def _open_fallback_call(
        self, query: Query, quota: Quota, is_cancelled: Callable[[], bool], was: Call
    ) -> Call:
        """The engine's time begins when memory has failed; a client's own limit is for both."""
        deadline = time.monotonic() + quota.fallback_deadline_ms / 1000
        if "deadline_ms" in dict(query.limits):
            deadline = min(deadline, was.deadline)
        return self._watch.open(
            is_cancelled,
            deadline,
            f"the query's fallback took longer than {quota.fallback_deadline_ms} ms, tenant "
            f"{query.identity.tenant}'s limit, or than the client's own",
        )

    def describe(
        self,
        sql: str,
        identity: Identity,
        is_cancelled: Callable[[], bool],
        limits: AskedLimits = (),
    ) -> tuple[QueryPlan, pa.Schema]:
        """The plan of `sql` and the schema of its answer, kept for as long as the plan holds.

        Raises:
            AccelError: as `run`.
        """
        query = Query(sql=sql, identity=identity, limits=limits, describe_only=True)
        self.check(sql, identity)
        inner = explained(sql)
        if inner is not None:
            return self._plan(replace(query, sql=inner), self._routing.current()), SCHEMA
        try:
            plan = self._plan(query, self._routing.current())
            schema = self._schemas.get(_schema_key(plan))
            if schema is not None:
                return plan, schema
        except AccelError as error:
            log.debug("no plan to describe yet: %s", error)
        with self.run(query, is_cancelled) as answer:
            for _ in answer.batches():
                pass
        self._schemas[_schema_key(answer.plan)] = answer.schema
        while len(self._schemas) > _MAX_SCHEMAS:
            self._schemas.popitem(last=False)
        return answer.plan, answer.schema

    def check(self, sql: str, identity: Identity) -> None:
        """Check what can be checked without running it.

        Raises:
            QueryError: the gate refuses it, or it names an unknown table.
            NotResident: a dataset of it has never been loaded.
        """
        inner = explained(sql)
        query = Query(sql=sql if inner is None else inner, identity=identity)
        try:
            self._check_resident(query)
        except NotResident as error:
            if inner is not None or not self._falls_back(query, error):
                raise

    def _check_resident(self, query: Query) -> None:
        context = self._context(self._routing.current(), query.identity)
        with self._turn_to_parse(query.sql, context.quota.deadline_ms / 1000):
            self._plans.check(query.sql, context)

    def explain(self, sql: str, identity: Identity) -> str:
        """How `sql` would be answered now, for people."""
        query = Query(sql=sql, identity=identity)
        return explain(self._plan(query, self._routing.current()))

    def shards(self, sql: str, identity: Identity) -> tuple[Scan, ...]:
        """What of each dataset `sql` reads.

        Raises:
            AccelError: it cannot be planned.
        """
        context = self._context(self._routing.current(), identity)
        with self._turn_to_parse(sql, context.quota.deadline_ms / 1000):
            return shards_to_read(sql, context)

    def hand_out(self, query: Query) -> tuple[QueryPlan, bytes]:
        """The plan of `query`, and a signed ticket for whoever is near an executor of it. The
        executor bounds it as any other; its slots, not the gateway's, are the places for it.

        Raises:
            AccelError: it cannot be planned.
        """
        record = QueryRecord(query, self._observations)
        try:
            table = self._routing.current()
            plan = self._plan(query, table, record)
            context = TicketContext(
                query_id=record.query_id, parameters=b"", describe_only=False,
                key=self._routing.ticket_key(),
            )  # fmt: skip
            signed = ticket_of(plan, plan.fragments[0], context, plan.limits.deadline_ms / 1000)
        except BaseException as error:
            record.finish(error)
            raise
        record.note = "handed out as a ticket, to be redeemed at an executor"
        record.finish(None)
        return plan, signed

    def cancel(self, identity: Identity, name: str) -> bool:
        """End the call that the user gave this name; False: there is none (any more)."""
        return self._named.cancel(identity, name)

    def load(self, tenant: str) -> tuple[int, int]:
        """Queries of `tenant` that run and that wait for a place."""
        return self.admission.load(TenantId(tenant))

    def _open_call(self, query: Query, quota: Quota, is_cancelled: Callable[[], bool]) -> Call:
        limit_ms = lowered(quota, query.limits).deadline_ms
        set_by = whose(quota, query.limits, "deadline_ms", query.identity.tenant)
        return self._watch.open(
            is_cancelled,
            time.monotonic() + limit_ms / 1000,
            f"the query took longer than {limit_ms} ms, {set_by}",
        )

    def _check(self, query: Query, record: QueryRecord) -> None:
        """Refuse, before it waits for a place, what has no answer however long it waits."""
        try:
            self._plan(query, self._routing.current(), record)  # kept for when it is its turn
        except QueryError:
            raise
        except AccelError:  # an executor may come back meanwhile
            started = time.monotonic()
            self._check_resident(query)
            record.plan_ms += (time.monotonic() - started) * 1000

    def _explain(self, query: Query, record: QueryRecord) -> ExplainStream:
        """The plan as it is now, with any parameters that the statement has."""
        plan = self._plan(query, self._routing.current())
        record.plan = plan
        return ExplainStream(plan)

    def _plan(
        self,
        query: Query,
        table: RoutingTable,
        record: QueryRecord | None = None,
        avoid: frozenset[str] = frozenset(),
    ) -> QueryPlan:
        started = time.monotonic()
        context = self._context(table, query.identity, query.limits)
        with self._turn_to_parse(query.sql, context.quota.deadline_ms / 1000):
            if avoid or query.shard is not None:
                plan = plan_query(query.sql, replace(context, avoid=avoid, only=query.shard))
            else:
                plan = self._plans.plan(query.sql, context)
        if record is not None:
            record.plan_ms += (time.monotonic() - started) * 1000
            record.plan = plan
        check_pins(plan, query.pins)
        if not query.describe_only and record and plan.parameters != query.parameter_count:
            raise InvalidQuery(
                f"the query has {plan.parameters} parameters; {query.parameter_count} were given"
            )
        if plan.minds_nan and has_nan(query.parameters):
            raise UnsupportedQuery(NAN_REFUSED)
        return plan

    @contextmanager
    def _turn_to_parse(self, sql: str, seconds: float) -> Iterator[None]:
        """Large statements are parsed one at a time: parsing holds the interpreter.

        Raises:
            ResourceExhausted: it was not this one's turn within `seconds`.
        """
        if len(sql) <= _LARGE_TEXT:
            yield
            return
        if not self._parsing_large.acquire(timeout=seconds):
            raise ResourceExhausted(
                f"statements of more than {_LARGE_TEXT:,} characters are parsed one at a time, and "
                f"others took all of this one's {seconds:g} s; retry after 1000 ms"
            )
        try:
            yield
        finally:
            self._parsing_large.release()

    def _context(
        self, table: RoutingTable, identity: Identity, limits: AskedLimits = ()
    ) -> PlanContext:
        quota = lowered(table.quota_of(identity.tenant), limits)
        return PlanContext(tenant=identity.tenant, routing=table, quota=quota, asked=limits)


def _schema_key(plan: QueryPlan) -> tuple[TenantId, str]:
    """The physical SQL names shards by their content, so it decides the schema."""
    fragment = plan.fragments[0]
    parts = (part.sql for one in fragment.inputs for part in one.parts)
    return plan.tenant, "\0".join((fragment.sql, *parts))
