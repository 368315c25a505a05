"""Plans kept by the form of their statements: new values mostly give a plan that was made before.

Values decide which shards may match. All else of a plan follows from those, from the form and from
what is routed where; so where other values of a form leave the same shards, their plan is this one
with their text put in. Plans over rollups are not kept so: values decide in more ways which of
them answers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

from sqlglot import exp

from accel_dask.literals import Form
from accel_dask.model.ids import TenantId
from accel_dask.model.routing import DatasetRoute, ExecutorRoute, RoutingTable
from accel_dask.model.tenant import Quota
from accel_dask.query_planner.bound import limits_of
from accel_dask.query_planner.month_starts import cheapen_truncations
from accel_dask.query_planner.plan import (
    Fragment,
    PlanContext,
    QueryDraft,
    QueryLimits,
    QueryPlan,
)
from accel_dask.query_planner.pruning import is_kept, value_filters_of
from accel_dask.query_planner.pruning_values import Kept, ValueFilters, Values
from accel_dask.query_planner.recently_used import RecentlyUsed
from accel_dask.query_planner.route import executors_of, in_order
from accel_dask.query_planner.split import split
from accel_dask.query_planner.templates import Place, Template, template_of

log = logging.getLogger(__name__)

_MAX_FORMS: Final = 300
_MAX_VARIANTS: Final = 4
"""Of one form, for other fixed literals or limits."""
_MAX_SQL: Final = 16 * 1024
"""Characters of a fragment that is kept so."""

_FIRST_MARK: Final = 0xE000
_MAX_MARKS: Final = 0xF900 - _FIRST_MARK
_MARKED: Final = re.compile(r"([\ue000-\uf8ff])\1*")
"""Characters that stand for nothing, each for one value for as long as this is: no statement that
has a form holds them."""


class _Text(NamedTuple):
    """SQL without its values."""

    pieces: tuple[str, ...]
    """Pieces of text and, between them, values."""
    holes: tuple[tuple[int, int], ...]
    """Index into `pieces` of each value, and its number."""

    def filled(self, values: Values) -> str:
        pieces = list(self.pieces)
        for at, number in self.holes:
            pieces[at] = values[number]
        return "".join(pieces)


class _Pattern(NamedTuple):
    """A plan without its values."""

    plan: QueryPlan
    """For some values."""
    fragment: Fragment
    """Its own, of marks in place of values."""
    text: _Text
    """Of the fragment."""
    parts: tuple[tuple[_Text, ...], ...]
    """Of the parts of each of its inputs."""
    hot: tuple[ExecutorRoute, ...]
    """Candidates, as `cold`, which come after them."""
    cold: tuple[ExecutorRoute, ...]

    def filled(self, sql: str, values: Values, seed: str) -> QueryPlan:
        """The plan of `sql`, which has `values`."""
        plan, fragment = self.plan, self.fragment
        candidates = fragment.candidates
        if len(candidates) > 1:
            candidates = (*in_order(self.hot, seed), *in_order(self.cold, seed))
        inputs = tuple(
            replace(
                one,
                parts=tuple(
                    replace(part, sql=text.filled(values))
                    for part, text in zip(one.parts, texts, strict=True)
                ),
            )
            for one, texts in zip(fragment.inputs, self.parts, strict=True)
        )
        return QueryPlan(
            tenant=plan.tenant,
            sql=sql,
            datasets=plan.datasets,
            fragments=(
                Fragment(
                    kind=fragment.kind,
                    sql=self.text.filled(values),
                    tokens=fragment.tokens,
                    candidates=candidates,
                    inputs=inputs,
                    parameters=fragment.parameters,
                ),
            ),
            limits=plan.limits,
            parameters=0,
            parameter_columns=(),
            verdict=plan.verdict,
            reasons=plan.reasons,
            routes=plan.routes,
        )


class _Spread(NamedTuple):
    """In place of a pattern where no executor has everything: who reads what depends on the order
    of executors, and inputs that are equal are one."""

    executors: tuple[ExecutorRoute, ...]
    """All of the tenant's."""

    def key(self, values: Values, seed: str) -> _Case:
        order = tuple(one.address for one in in_order(self.executors, seed))
        return order, tuple(map(values.index, values))


_Case = tuple[tuple[str, ...], tuple[int, ...]]
"""The order of executors, and of each value the first one that equals it."""


@dataclass(slots=True, eq=False)
class _Known:
    """What is known of a form, with some fixed literals, under one routing table."""

    template: Template
    tenant: TenantId
    routing: RoutingTable
    """The latest that is the same for the tenant."""
    quota: Quota
    limits: QueryLimits
    values: tuple[tuple[int, int], ...]
    """Of each literal that may change: its number, and how many quotes it is in."""
    filters: ValueFilters | None
    """None: values decide more than is read of them."""

    def holds(self, sql: str, form: Form, context: PlanContext) -> bool:
        if self.routing is not context.routing:
            if not _is_same(self.routing, context.routing, self.tenant):
                return False
            self.routing = context.routing
        if self.quota is not context.quota and self.limits != limits_of(context.quota):
            return False
        return self.template.fits(sql, form)

    def values_of(self, sql: str, form: Form) -> list[str]:
        literals = form.literals
        return [
            sql[literals[number][0] + quote : literals[number][1] - quote]
            for number, quote in self.values
        ]


_Key = tuple[_Known, Kept, _Case | None]


class FormPlans:
    """Patterns used last. Safe to use from several threads: a pattern that is made twice is only
    wasted work."""

    def __init__(self, capacity: int) -> None:
        self._forms: RecentlyUsed[tuple[TenantId, str], tuple[_Known, ...]] = RecentlyUsed(
            _MAX_FORMS
        )
        self._patterns: RecentlyUsed[_Key, _Pattern | _Spread | None] = RecentlyUsed(capacity)
        """None: seen once. How a query is cut into parts is only learned where it comes again."""

    def plan(self, sql: str, form: Form, context: PlanContext) -> QueryPlan | None:
        """As `plan_query`; None: it is not known."""
        try:
            known = self._known(sql, form, context)
            if known is None or known.filters is None:
                return None
            values = known.values_of(sql, form)
            kept = known.filters.kept(values)
            if kept is None:
                return None
            seed = context.seed or sql
            key: _Key = (known, kept, None)
            pattern = self._patterns.get(key)
            if isinstance(pattern, _Spread):
                key = (known, kept, pattern.key(values, seed))
                pattern = self._patterns.get(key)
            if not isinstance(pattern, _Pattern):
                return None
            self._patterns.keep(key, pattern)
            return pattern.filled(sql, values, seed)
        except Exception:  # the passes plan it as well: this must not cost the answer
            log.exception("a plan that is kept by its form is not used: %s", sql)
            return None

    def learn(self, form: Form, draft: QueryDraft, plan: QueryPlan, context: PlanContext) -> None:
        """Keep `plan`, which `draft` has become and nobody else fills meanwhile."""
        try:
            self._learn(form, draft, plan, context)
        except Exception:  # as above
            log.exception("a plan is not kept by its form: %s", plan.sql)

    def _learn(self, form: Form, draft: QueryDraft, plan: QueryPlan, context: PlanContext) -> None:
        assert draft.parsed is not None
        template = template_of(draft.parsed)
        if template is None or not _is_kept_so(template, draft, plan):
            return
        known = self._known(plan.sql, form, context)
        if known is None:
            known = _understood(template, form, draft, plan, context)
            self._keep_form(form, known)
        if known.filters is None:
            return
        values = known.values_of(plan.sql, form)
        kept = known.filters.kept(values)
        if kept is None:
            return
        key: _Key = (known, kept, None)
        if draft.spread is not None:
            spread = _Spread(executors_of(context))
            self._patterns.keep(key, spread)
            key = (known, kept, spread.key(values, context.seed or plan.sql))
            if key not in self._patterns:
                self._patterns.keep(key, None)
                return
        parsed = draft.parsed
        if not is_kept(known.filters, parsed.tree, _tables(draft), parsed.facts, values):
            log.error("plans are not kept by their form: values of %s are misread", plan.sql)
            known.filters = None
            return
        pattern = _pattern(template, draft, plan, values, context)
        if pattern is not None:
            self._patterns.keep(key, pattern)

    def _known(self, sql: str, form: Form, context: PlanContext) -> _Known | None:
        for known in self._forms.get((context.tenant, form.text)) or ():
            if known.holds(sql, form, context):
                return known
        return None

    def _keep_form(self, form: Form, known: _Known) -> None:
        key = (known.tenant, form.text)
        others = [one for one in self._forms.get(key) or () if one.routing is known.routing]
        self._forms.keep(key, (known, *others[: _MAX_VARIANTS - 1]))


def _is_same(before: RoutingTable, now: RoutingTable, tenant: TenantId) -> bool:
    """Whether the tenant's statements are planned alike on both."""
    return before.alike == now.alike and before.datasets_of(tenant) == now.datasets_of(tenant)


def _is_kept_so(template: Template, draft: QueryDraft, plan: QueryPlan) -> bool:
    return (
        not plan.rollups
        and not plan.parameters
        and not any(scan.route.rollups for scan in draft.scans)
        and draft.scans != ()
        and len(plan.fragments) == 1
        and sum(map(len, _texts(plan.fragments[0]))) <= _MAX_SQL
        and len(template.places) <= _MAX_MARKS
    )


def _texts(fragment: Fragment) -> Iterator[str]:
    yield fragment.sql
    for one in fragment.inputs:
        yield from (part.sql for part in one.parts)


def _understood(
    template: Template, form: Form, draft: QueryDraft, plan: QueryPlan, context: PlanContext
) -> _Known:
    assert draft.parsed is not None
    literals = [(place.number, int(place.node.is_string)) for place in template.places]
    known = _Known(
        template=template,
        tenant=context.tenant,
        routing=context.routing,
        quota=context.quota,
        limits=plan.limits,
        values=tuple(literals),
        filters=None,
    )
    places = {id(place.node): number for number, place in enumerate(template.places)}
    values = known.values_of(plan.sql, form)
    known.filters = value_filters_of(
        draft.parsed.tree, _tables(draft), draft.parsed.facts, places, values
    )
    return known


def _tables(draft: QueryDraft) -> list[tuple[exp.Table, DatasetRoute]]:
    return [(scan.reference.node, scan.route) for scan in draft.scans]


def _pattern(
    template: Template, draft: QueryDraft, plan: QueryPlan, values: Values, context: PlanContext
) -> _Pattern | None:
    """None: `plan` is not what comes of it."""
    # Where parts are spread, inputs that are equal are one: there equal values have equal marks.
    numbers = range(len(values)) if draft.spread is None else map(values.index, values)
    marks = [
        chr(_FIRST_MARK + number) * len(value)
        for number, value in zip(numbers, values, strict=True)
    ]
    marked = _cut_with(marks, template.places, draft, context, values)
    (fragment,) = marked.fragments
    candidates = plan.fragments[0].candidates
    pattern = _Pattern(
        plan=plan,
        fragment=fragment,
        text=_text(fragment.sql),
        parts=tuple(tuple(_text(part.sql) for part in one.parts) for one in fragment.inputs),
        hot=tuple(one for one in candidates if not one.is_cold),
        cold=tuple(one for one in candidates if one.is_cold),
    )
    texts = (pattern.text, *(text for texts in pattern.parts for text in texts))
    has_values = all(number < len(values) for text in texts for _, number in text.holes)
    has_reasons = plan.reasons[len(plan.reasons) - len(marked.reasons) :] == marked.reasons
    if not (has_values and has_reasons):
        return None
    return pattern if pattern.filled(plan.sql, values, context.seed or plan.sql) == plan else None


def _text(sql: str) -> _Text:
    """`sql`, which has marks."""
    pieces: list[str] = []
    holes: list[tuple[int, int]] = []
    at = 0
    for found in _MARKED.finditer(sql):
        pieces += (sql[at : found.start()], "")
        holes.append((len(pieces) - 1, ord(found[1]) - _FIRST_MARK))
        at = found.end()
    return _Text((*pieces, sql[at:]), tuple(holes))


def _cut_with(
    marks: Sequence[str],
    places: Sequence[Place],
    draft: QueryDraft,
    context: PlanContext,
    values: Values,
) -> QueryDraft:
    """`draft`, which is routed, with fragments of `marks` in place of `values`: nothing in how they
    are cut can come of a value."""
    assert draft.parsed is not None
    text, at = draft.parsed.text, 0
    pieces: list[str] = []
    for place, mark in zip(places, marks, strict=True):
        quote = int(place.node.is_string)
        pieces += (text[at : place.start + quote], mark)
        at = place.end - quote
    parsed = replace(draft.parsed, text="".join((*pieces, text[at:])))
    try:
        for place, mark in zip(places, marks, strict=True):
            place.node.set("this", mark)
        marked = replace(draft, parsed=parsed, reasons=(), fragments=())
        return cheapen_truncations(split(marked, context), context)
    finally:
        for place, value in zip(places, values, strict=True):
            place.node.set("this", value)
