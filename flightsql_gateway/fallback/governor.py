"""Fallback: whether, and how, a query that memory does not answer goes to the engine behind it.

A second budget bounds it (places, time, rows and bytes per tenant; connections and a breaker per
engine), equal queries under way at the same time are one query at the engine, and what comes back
is exactly what memory would give, or an error.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import Final

import pyarrow as pa

from accel_dask.connectors.olap.base import EngineStream, RunLimits
from accel_dask.errors import (
    AccelError,
    ConfigError,
    DeadlineExceeded,
    FallbackForbidden,
    NotPortable,
    QueryCancelled,
    ResourceExhausted,
)
from accel_dask.model.fallback import FallbackReason
from accel_dask.model.measured import Measured
from accel_dask.model.routing import FallbackRoute, RoutingTable
from accel_dask.model.tenant import Quota
from accel_dask.query_planner.bound import limits_of
from accel_dask.query_planner.parse import parse
from accel_dask.query_planner.plan import (
    Fragment,
    FragmentKind,
    ParsedQuery,
    PlanContext,
    QueryDraft,
    QueryPlan,
    UsedDataset,
    Verdict,
)
from flightsql_gateway.calls import Call
from flightsql_gateway.fallback.engines import Engines, TenantEngine
from flightsql_gateway.fallback.places import Places
from flightsql_gateway.fallback.reasons import reason_of
from flightsql_gateway.fallback.source_query import SharedReader, SourceQuery
from flightsql_gateway.fallback.target import (
    Target,
    is_allowed,
    parameter_nodes,
    routes_of,
    target_of,
)
from flightsql_gateway.query import Query
from flightsql_gateway.receipts import FallbackNote
from flightsql_gateway.request_limits import lowered_at_engine

log = logging.getLogger(__name__)

_LATE_SECONDS: Final = 0.25


class FallbackStream:
    """An engine's answer in place of an executor's; see `query.BatchStream`."""

    executor: Final = None
    retries: Final = 0
    measured: Measured | None = None

    def __init__(
        self, plan: QueryPlan, schema: pa.Schema, note: FallbackNote, reader: SharedReader | None
    ) -> None:
        """Without a reader it has no rows: only the schema was asked for."""
        self.plan: Final = plan
        self.schema: Final = schema
        self.note: Final = note
        self._reader = reader
        self._first: pa.RecordBatch | None = None

    def wait_first(self) -> None:
        """
        Raises:
            AccelError: the engine did not give a first batch.
        """
        if self._reader is not None:
            self._first = self._reader.read()
            if self._first is None:
                self._end()

    def read(self) -> pa.RecordBatch | None:
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._reader is None:
            return None
        batch = self._reader.read()
        if batch is None:
            self._end()
        return batch

    def _end(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def cancel(self) -> None:
        reader = self._reader
        if reader is not None:
            reader.cancel()

    def close(self) -> None:
        self._end()


class Fallback:
    """The governor of one gateway. Safe to use from several threads."""

    def __init__(self, engines: Engines | None = None) -> None:
        self._engines = engines or Engines()
        self._places = Places()
        self._lock = threading.Lock()
        self._under_way: dict[tuple[object, ...], SourceQuery] = {}
        self.source_queries = 0
        """Begun since the gateway started."""

    def is_first(self, query: Query, table: RoutingTable) -> bool:
        """Whether the policy is to ask the engine and not memory.

        Raises:
            FallbackForbidden: it is, and the caller will have none of it.
        """
        if query.identity.tenant not in table.always_at_engines or query.pins:
            return False
        found = self._routes(query, table)
        is_first = found is not None and is_allowed(found[1], FallbackReason.POLICY)
        if is_first and not query.may_fall_back:
            raise FallbackForbidden(
                "the policy of the dataset is to ask its OLAP engine, which the call forbids"
            )
        return is_first

    def covers(self, query: Query, table: RoutingTable, error: AccelError) -> bool:
        """Whether the engine would be asked where memory gives `error`."""
        reason = reason_of(error)
        # The engine reads its own snapshot, not the epochs that a query is pinned to.
        if reason is None or not table.fallbacks or query.pins:
            return False
        found = self._routes(query, table)
        return found is not None and is_allowed(found[1], reason)

    def target(self, query: Query, table: RoutingTable) -> Target:
        """
        Raises:
            NotPortable: the engine might answer it otherwise.
            ConfigError: a fallback is declared wrongly.
        """
        found = self._routes(query, table)
        if found is None:
            raise NotPortable("a table of the query has no fallback engine")
        parsed, routes = found
        values = parameter_nodes(
            query.parameters, len(parsed.parameter_columns), describe_only=query.describe_only
        )
        return target_of(parsed, routes, query.identity.tenant, values)

    @staticmethod
    def _routes(
        query: Query, table: RoutingTable
    ) -> tuple[ParsedQuery, list[FallbackRoute]] | None:
        context = PlanContext(tenant=query.identity.tenant, routing=table)
        parsed = parse(QueryDraft(sql=query.sql), context).parsed
        assert parsed is not None
        routes = routes_of(parsed, query.identity.tenant, table)
        return None if routes is None else (parsed, routes)

    def start(
        self, query: Query, table: RoutingTable, quota: Quota, error: AccelError | None, call: Call
    ) -> FallbackStream:
        """The engine's answer, its first batch here. `error` is what memory gave; None: it was
        not asked.

        Raises:
            FallbackError: the engine cannot, or must not, answer it.
            ResourceExhausted: the tenant's places for fallbacks are taken.
            LimitExceeded: it is beyond the tenant's limits for fallbacks.
            DeadlineExceeded, QueryCancelled: the call ended.
        """
        reason = FallbackReason.POLICY if error is None else reason_of(error)
        assert reason is not None
        quota = lowered_at_engine(quota, query.limits)
        target = self.target(query, table)
        because = "" if error is None else f"{error.code}: {error}"
        note = FallbackNote(reason, because, target.told, target.is_pinned)
        plan = _plan_of(query, target, quota, note)
        if query.describe_only:
            return FallbackStream(plan, target.schema, note, None)
        reader = self._join(target, quota)
        stream = FallbackStream(plan, target.schema, note, reader)
        call.on_end(stream.cancel)
        try:
            call.check()
            stream.wait_first()
        except AccelError:
            stream.close()
            call.on_end(None)
            call.check()
            raise
        return stream

    def _join(self, target: Target, quota: Quota) -> SharedReader:
        """A reader of the query under way, or of a new one."""
        key = (*target.key, quota.fallback_max_rows, quota.fallback_max_bytes)
        way = self._engines.engine(target)
        while True:
            with self._lock:
                under_way = self._under_way.get(key)
                reader = under_way.join() if under_way is not None else None
                if reader is not None:
                    return reader
                source = self._new(key, way, target, quota)
                self._under_way[key] = source
                reader = source.join()
                self.source_queries += 1
            assert reader is not None
            source.begin()
            return reader

    def _new(
        self, key: tuple[object, ...], way: TenantEngine, target: Target, quota: Quota
    ) -> SourceQuery:
        # Its own time, not the first reader's: others may join who have more.
        ends_at = time.monotonic() + quota.fallback_deadline_ms / 1000
        source: SourceQuery
        has_place = False
        entered: float | None = None

        def start() -> EngineStream:
            nonlocal entered, has_place
            has_place = self._places.take(
                target.tenant,
                quota.fallback_concurrency,
                min(ends_at, time.monotonic() + quota.queue_wait_ms / 1000),
                source.check_wanted,
            )
            if not has_place:
                raise ResourceExhausted(
                    f"{quota.fallback_concurrency} queries of tenant {target.tenant} are at "
                    "engines, its limit (fallback_concurrency), and none ended within "
                    f"{quota.queue_wait_ms} ms; retry after {quota.queue_wait_ms} ms"
                )
            left = max(ends_at - time.monotonic(), 0.001)
            entered = way.enter(left)
            way.engine.check_tables(target)
            limits = RunLimits(
                seconds=left,
                max_rows=quota.fallback_max_rows,
                max_bytes=quota.fallback_max_bytes,
                promised_rows=target.query.max_rows,
            )
            return way.engine.opened.run(target.sql, target.schema, limits)

        def on_end(error: AccelError | None) -> None:
            with self._lock:
                if self._under_way.get(key) is source:
                    del self._under_way[key]
            if entered is not None:
                way.leave(entered, _as_late(error, ends_at))
            if has_place:
                self._places.give(target.tenant)
            if error is not None:
                log.info("a query of tenant %s at %s: %s", target.tenant, target.settings, error)

        source = SourceQuery(start, on_end, ends_at)
        return source

    def ways(self) -> tuple[TenantEngine, ...]:
        """Each tenant's way to each engine that was ever asked for it."""
        return self._engines.ways()

    def close(self) -> None:
        self._engines.close()


def forbidden(memory: AccelError) -> FallbackForbidden:
    """What to tell a client who will not have the engine's answer."""
    return FallbackForbidden(
        f"memory does not answer ({memory.code}: {memory}), and the call forbids asking the OLAP "
        "engine behind it"
    )


def _as_late(error: AccelError | None, ends_at: float) -> AccelError | None:
    """What the breaker is told: readers whose time is up leave just before the query's own is."""
    if isinstance(error, QueryCancelled) and time.monotonic() >= ends_at - _LATE_SECONDS:
        return DeadlineExceeded("no answer within the tenant's fallback_deadline_ms")
    return error


def both(memory: AccelError | None, engine: BaseException) -> BaseException:
    """What to tell a client whom neither answered."""
    if memory is None or not isinstance(engine, AccelError):
        return engine
    if isinstance(engine, NotPortable | ConfigError):
        return type(memory)(f"{memory}; its fallback was not asked: {engine}")
    return type(engine)(f"{engine}; memory had not answered: {memory}")


def _plan_of(query: Query, target: Target, quota: Quota, note: FallbackNote) -> QueryPlan:
    """The plan that a receipt and a front end see."""
    parts = target.query
    because = f", because {note.because}" if note.because else ""
    return QueryPlan(
        tenant=target.tenant,
        sql=query.sql,
        datasets=tuple(
            UsedDataset(
                dataset_id=route.dataset_id,
                epoch=route.epoch,
                snapshot_id=route.snapshot_id if table.snapshot is not None else None,
                shards=0,
                total_shards=0,
            )
            for route, table, _ in target.tables
        ),
        fragments=(Fragment(kind=FragmentKind.OLAP, sql=target.sql, tokens=(), candidates=()),),
        limits=replace(
            limits_of(quota),
            deadline_ms=quota.fallback_deadline_ms,
            max_result_rows=quota.fallback_max_rows,
            max_result_bytes=quota.fallback_max_bytes,
        ),
        parameters=len(parts.parameter_columns),
        parameter_columns=parts.parameter_columns,
        verdict=Verdict(
            shape="fallback",
            scan_rows=None,
            scan_bytes=0,
            result_rows=parts.max_rows,
            reason="the engine says nothing of what it reads",
            clause="fallback",
        ),
        reasons=(f"fallback ({note.reason}) to {note.engine}{because}",),
        routes=(),
    )
