"""`accel-dask suggest`: rollups that would answer what was asked, and what each would save."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from accel_dask.errors import AccelError, ExecutorUnavailable
from accel_dask.flight_client import FlightSession
from accel_dask.flight_errors import from_flight
from accel_dask.model.cluster import ClusterView
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.member import Gateway
from accel_dask.model.rollup import Dimension, rollup_table, told_rollup
from accel_dask.model.routing import DatasetRoute, RoutingTable, build_routing
from accel_dask.query_planner.physical import quoted
from accel_dask.query_planner.plan import CATALOG, PlanContext
from accel_dask.query_planner.suggestions import AskedShape, Candidate, candidates

log = logging.getLogger(__name__)

Ask = Callable[[str], Any]
"""The one value that a query answers with."""

_GRAIN_SECONDS: Final = {
    "minute": 60,
    "hour": 3600,
    "day": 86_400,
    "week": 604_800,
    "month": 2_629_800,
    "quarter": 7_889_400,
    "year": 31_557_600,
}
_LEAST_FACTOR: Final = 2
"""A rollup with more than this share of the rows is not worth its memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A candidate, measured."""

    candidate: Candidate
    rows: int
    """Of the data."""
    rollup_rows: int
    """An estimate, over all shards."""

    @property
    def saved_ms(self) -> float:
        """Of the time that its queries took: what they scan no more."""
        return self.candidate.total_ms * (1 - self.rollup_rows / max(self.rows, 1))

    @property
    def command(self) -> str:
        told = told_rollup(self.candidate.rollup).replace("'", "'\\''")
        return f"accel-dask dataset rollup {self.candidate.dataset} '{told}'"


def ask_for_suggestions(
    view: ClusterView, tenant: TenantId, credentials: tuple[str, str], dataset: DatasetId | None
) -> tuple[Suggestion, ...]:
    """From the history of all gateways of `view`.

    Raises:
        AccelError: no gateway answers, or the user may not ask.
    """
    user, token = credentials
    with ExitStack() as stack:
        sessions, urls = [], []
        for gateway in view.records(Gateway):
            try:
                session = FlightSession(gateway.address, user, token)
            except ExecutorUnavailable as error:
                log.warning("its history is left out: %s", error)
                continue
            sessions.append(stack.enter_context(session))
            urls.append(gateway.address)
        if not sessions:
            raise ExecutorUnavailable("no gateway answers; see `accel-dask status`")
        shapes = collect_history(sessions)
        ask = stack.enter_context(_asking(urls[0], user, token))
        return suggest(shapes, tenant, build_routing(view), ask, dataset)


@contextmanager
def _asking(url: str, user: str, token: str) -> Iterator[Ask]:
    from adbc_driver_flightsql import dbapi

    def ask(sql: str) -> Any:
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
                return cursor.fetchall()[0][0]
        except dbapi.Error as error:
            raise from_flight(error) from error

    options = {"username": user, "password": token}
    with dbapi.connect(url, db_kwargs=options, autocommit=True) as connection:
        yield ask


def collect_history(sessions: Iterable[FlightSession]) -> tuple[AskedShape, ...]:
    """What all gateways were asked together; answers from rollups are left out."""
    totals: dict[str, AskedShape] = {}
    for session in sessions:
        for told in session.history():
            others = told["queries"] - told["from_rollups"]
            if others <= 0:
                continue
            known = totals.setdefault(
                told["shape"], AskedShape(sql=told["shape"], queries=0, total_ms=0.0)
            )
            totals[told["shape"]] = replace(
                known,
                queries=known.queries + others,
                total_ms=known.total_ms + told["total_ms"] * others / told["queries"],
            )
    return tuple(totals.values())


def suggest(
    shapes: Sequence[AskedShape],
    tenant: TenantId,
    routing: RoutingTable,
    ask: Ask,
    dataset: DatasetId | None = None,
) -> tuple[Suggestion, ...]:
    """The rollups that save most, first. None is there for queries that one before it answers
    at least as well.

    Raises:
        AccelError: the dataset could not be asked for its size.
    """
    context = PlanContext(tenant=tenant, routing=routing)
    measured = []
    for candidate in candidates(shapes, context):
        if dataset is not None and candidate.dataset != dataset:
            continue
        found = _measured(candidate, routing.datasets[candidate.dataset], ask)
        if found is not None and found.rollup_rows * _LEAST_FACTOR <= found.rows:
            measured.append(found)
    return tuple(_chosen(measured))


def _chosen(measured: list[Suggestion]) -> Iterable[Suggestion]:
    answered: set[tuple[DatasetId, str]] = set()
    while measured:
        measured = [
            left
            for one in measured
            if (left := _without(one, answered)).candidate.answers and left.saved_ms > 0
        ]
        best = max(measured, key=lambda one: one.saved_ms, default=None)
        if best is None:
            return
        yield best
        measured.remove(best)
        answered |= {(best.candidate.dataset, shape.sql) for shape in best.candidate.answers}


def _without(one: Suggestion, answered: set[tuple[DatasetId, str]]) -> Suggestion:
    candidate = one.candidate
    left = tuple(s for s in candidate.answers if (candidate.dataset, s.sql) not in answered)
    return replace(one, candidate=replace(candidate, answers=left))


def _measured(candidate: Candidate, route: DatasetRoute, ask: Ask) -> Suggestion | None:
    """None: nothing smaller than the data, or its size cannot be asked for within the limits."""
    table = rollup_table(candidate.dataset, candidate.rollup, route.columns)
    keys = ", ".join(_sql(dimension) for dimension, _ in table.dimensions)
    name = f"{CATALOG}.{candidate.dataset.tenant}.{quoted(candidate.dataset.name)}"
    try:
        rows = int(ask(f"SELECT count(*) FROM {name}"))  # noqa: S608 - quoted names
        groups = int(ask(f"SELECT count(*) FROM (SELECT DISTINCT {keys} FROM {name}) AS groups"))  # noqa: S608
    except AccelError:
        return None
    overlap = min(_overlap(dimension, route) for dimension, _ in table.dimensions)
    return Suggestion(
        candidate=candidate, rows=rows, rollup_rows=min(rows, math.ceil(groups * overlap))
    )


def _sql(dimension: Dimension) -> str:
    name = quoted(dimension.column)
    return f"date_trunc('{dimension.grain}', {name})" if dimension.grain else name


def _overlap(dimension: Dimension, route: DatasetRoute) -> float:
    """In how many shards a group is, at most, by the bounds of this dimension alone."""
    count = max(len(route.shards), 1)
    ranges = []
    for shard in route.shards:
        bounds = next((s for s in shard.stats if s.name == dimension.column), None)
        if bounds is None or bounds.lower is None or bounds.upper is None:
            return count
        try:
            low, high = (datetime.fromisoformat(text) for text in (bounds.lower, bounds.upper))
        except ValueError:
            return count  # of another type than a time
        ranges.append((low.timestamp(), high.timestamp()))
    unit = _GRAIN_SECONDS.get(dimension.grain, 86_400)
    if not ranges:
        return count
    whole = (max(high for _, high in ranges) - min(low for low, _ in ranges)) / unit + 1
    return min(count, max(1.0, sum((high - low) / unit + 1 for low, high in ranges) / whole))
