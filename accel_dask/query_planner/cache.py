"""Plans by statement. A plan outlives a new routing table if what it uses is the same in it.

A plan is for the very values of its statement, which decide what is pruned. What does not depend on
them is shared between statements that differ in values only; see `templates`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Final, NamedTuple

from accel_dask.model.ids import TenantId
from accel_dask.model.routing import DatasetRoute, RoutingTable
from accel_dask.query_planner.bound import limits_of
from accel_dask.query_planner.form_plans import FormPlans
from accel_dask.query_planner.parse import parse
from accel_dask.query_planner.pipeline import drafted, plan_of
from accel_dask.query_planner.plan import ParsedQuery, PlanContext, QueryDraft, QueryPlan
from accel_dask.query_planner.recently_used import RecentlyUsed
from accel_dask.query_planner.resolve import resolve
from accel_dask.query_planner.templates import Templates, plain_form

_LARGE_TEXT: Final = 16 * 1024
_MAX_LARGE: Final = 20
"""Few of the statements beyond `_LARGE_TEXT` characters are kept: they cost memory."""


class _Entry(NamedTuple):
    draft: QueryDraft | None
    """After the gate; holds whatever the routing table. None: a template has it."""
    routing: RoutingTable | None
    plan: QueryPlan | None


_Key = tuple[TenantId, str, tuple[tuple[str, int], ...]]
_Entries = RecentlyUsed[_Key, _Entry]


class PlanCache:
    """Plans used last. Safe to use from several threads: a plan that is made twice is only wasted
    work."""

    def __init__(self, capacity: int = 1000) -> None:
        self._small: _Entries = RecentlyUsed(capacity)
        self._large: _Entries = RecentlyUsed(_MAX_LARGE)
        self._templates = Templates()
        self._forms = FormPlans(capacity)

    def __len__(self) -> int:
        return len(self._small) + len(self._large)

    def plan(self, sql: str, context: PlanContext) -> QueryPlan:
        """As `plan_query`."""
        key = (context.tenant, sql, context.asked)
        entry = self._entries(sql).get(key)
        plan = _held(entry, context)
        if plan is None:
            plan = self._by_form(sql, context) or self._made(key, context)
            entry = self._entries(sql).get(key)
        self._keep(key, _Entry(entry.draft if entry else None, context.routing, plan))
        return plan

    def check(self, sql: str, context: PlanContext) -> None:
        """The gate, and whether all tables are known and served; nothing about executors.

        Raises:
            QueryError, NotResident: as `plan_query`.
        """
        key = (context.tenant, sql, context.asked)
        entry = self._entries(sql).get(key)
        if _held(entry, context) is not None:
            return
        plan = self._by_form(sql, context)
        if plan is not None:  # the next question mostly is for it
            draft = None if entry is None else entry.draft
            self._keep(key, _Entry(draft, context.routing, plan))
            return
        with self._draft(key, context) as parsed:
            resolve(parsed, context)

    def _by_form(self, sql: str, context: PlanContext) -> QueryPlan | None:
        """The plan, if it follows from one of the same form."""
        if not _is_of_any_executor(context):
            return None
        form = plain_form(sql)
        return None if form is None else self._forms.plan(sql, form, context)

    def _made(self, key: _Key, context: PlanContext) -> QueryPlan:
        with self._draft(key, context) as draft, self._reparsing(context) as able:
            done = drafted(draft, able)
            plan = plan_of(done, able)
            form = plain_form(draft.sql)
            if form is not None and _is_of_any_executor(context):
                self._forms.learn(form, done, plan, context)
        return plan

    @contextmanager
    def _draft(self, key: _Key, context: PlanContext) -> Iterator[QueryDraft]:
        """The statement behind the gate, for as long as the context lasts."""
        sql = key[1]
        entry = self._entries(sql).get(key)
        if entry is not None and entry.draft is not None:
            yield entry.draft
            return
        with self._templates.filled(sql, context.tenant) as parsed:
            if parsed is not None:
                yield QueryDraft(sql=sql, parsed=parsed)
                return
        draft = parse(QueryDraft(sql=sql), context)
        yield draft
        assert draft.parsed is not None
        if not self._templates.learn(sql, context.tenant, draft.parsed):
            self._keep(key, _Entry(draft, None, None))

    @contextmanager
    def _reparsing(self, context: PlanContext) -> Iterator[PlanContext]:
        """`context` with templates for statements that a pass rewrites."""
        learned: list[tuple[str, ParsedQuery]] = []
        with ExitStack() as held:

            def parse_again(sql: str) -> ParsedQuery:
                parsed = held.enter_context(self._templates.filled(sql, context.tenant))
                if parsed is None:
                    parsed = parse(QueryDraft(sql=sql), context).parsed
                    assert parsed is not None
                    learned.append((sql, parsed))
                return parsed

            yield replace(context, parse_again=parse_again)
        for sql, parsed in learned:
            self._templates.learn(sql, context.tenant, parsed)

    def _entries(self, sql: str) -> _Entries:
        return self._small if len(sql) <= _LARGE_TEXT else self._large

    def _keep(self, key: _Key, entry: _Entry) -> None:
        self._entries(key[1]).keep(key, entry)


def _is_of_any_executor(context: PlanContext) -> bool:
    """Whether no executor is ruled out, as in another try of a query."""
    return not context.avoid and context.only is None


def _held(entry: _Entry | None, context: PlanContext) -> QueryPlan | None:
    """The plan that is kept, if it is one for `context`, too."""
    if entry is None or entry.plan is None:
        return None
    return entry.plan if _still_holds(entry.plan, entry.routing, context) else None


def _still_holds(plan: QueryPlan, routing: RoutingTable | None, context: PlanContext) -> bool:
    if routing is context.routing:
        return True
    if not plan.routes:
        return False
    if limits_of(context.quota) != plan.limits:
        return False
    return all(
        _same(route, context.routing.datasets.get(route.dataset_id)) for route in plan.routes
    )


def _same(used: DatasetRoute, now: DatasetRoute | None) -> bool:
    return used is now or (
        now is not None
        and used.epoch == now.epoch
        and used.executors == now.executors
        and used.shards == now.shards
        and used.cold_shards == now.cold_shards
        and used.columns == now.columns
    )
