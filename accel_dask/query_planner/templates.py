"""Statements that differ in the values of their conditions are parsed once.

A template is a parsed statement and the literals of it that are values in a WHERE, where neither
the gate nor the parser looks at their digits. Another statement of the same form is that template
with its own digits put in; every later pass sees it as if it had been parsed itself. All other
literals must be the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

from sqlglot import exp

from accel_dask.literals import Form, form_of
from accel_dask.model.ids import TenantId
from accel_dask.query_planner.plan import ParsedQuery
from accel_dask.query_planner.recently_used import RecentlyUsed

_MAX_TEXT: Final = 8 * 1024
_MAX_FORMS: Final = 300
_MAX_COPIES: Final = 4
"""A template is in the hands of one query at a time; this many may be planned at once."""

_CONDITIONS: Final = (
    exp.And, exp.Or, exp.Not, exp.Paren, exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE,
    exp.Between, exp.In, exp.Add, exp.Sub, exp.Where,
)  # fmt: skip
_AROUND_SELECTS: Final = (exp.Subquery, exp.From, exp.Join, exp.CTE, exp.With)
_CLAUSES: Final = frozenset(["where", "from_", "joins", "with_"])
"""Of a SELECT. What stands elsewhere may name a column, or be read by the gate."""
_DATES: Final = frozenset([exp.DType.DATE, exp.DType.TIMESTAMP, exp.DType.TIMESTAMPNTZ])


@dataclass(frozen=True, slots=True)
class Place:
    """A literal that may change."""

    number: int
    """Among the literals of the form."""
    start: int
    end: int
    """In the parsed text."""
    node: exp.Literal


@dataclass(frozen=True, slots=True, eq=False)
class Template:
    parsed: ParsedQuery
    places: tuple[Place, ...]
    fixed: tuple[tuple[int, str], ...]
    """Literals that must be the same, by their number."""

    def fits(self, sql: str, form: Form) -> bool:
        return all(
            sql[form.literals[number][0] : form.literals[number][1]] == text
            for number, text in self.fixed
        )

    def filled(self, sql: str, form: Form) -> ParsedQuery:
        """`sql`, parsed. Shares its tree with the template: one statement at a time."""
        text, at = self.parsed.text, 0
        pieces: list[str] = []
        for place in self.places:
            start, end = form.literals[place.number]
            value = sql[start:end]
            pieces += (text[at : place.start], value)
            at = place.end
            place.node.set("this", value[1:-1] if place.node.is_string else value)
        pieces.append(text[at:])
        return replace(self.parsed, text="".join(pieces))


def plain_form(sql: str) -> Form | None:
    """The form of `sql`; None: no template is made of it."""
    return form_of(sql) if len(sql) <= _MAX_TEXT else None


class Templates:
    """Templates used last. Safe to use from several threads: each step on the copies of one is
    atomic, and a template that two threads make is only wasted work."""

    def __init__(self) -> None:
        self._kept: RecentlyUsed[tuple[TenantId, str], list[Template]] = RecentlyUsed(_MAX_FORMS)

    @contextmanager
    def filled(self, sql: str, tenant: TenantId) -> Iterator[ParsedQuery | None]:
        """`sql`, parsed, for as long as the context lasts; None: there is no template."""
        form = plain_form(sql)
        template = self._take(sql, tenant, form) if form is not None else None
        if form is None or template is None:
            yield None
            return
        try:
            yield template.filled(sql, form)
        finally:
            self._put(tenant, form, template)

    def learn(self, sql: str, tenant: TenantId, parsed: ParsedQuery) -> bool:
        """Make a template of a statement that nobody else uses from then on; False: it cannot be
        one."""
        form = plain_form(sql)
        template = _template(sql, form, parsed) if form is not None else None
        if form is None or template is None:
            return False
        self._put(tenant, form, template)
        return True

    def _take(self, sql: str, tenant: TenantId, form: Form) -> Template | None:
        copies = self._kept.get((tenant, form.text)) or []
        for template in tuple(copies):
            if template.fits(sql, form):
                try:
                    copies.remove(template)
                except ValueError:  # another thread was faster
                    continue
                return template
        return None

    def _put(self, tenant: TenantId, form: Form, template: Template) -> None:
        key = (tenant, form.text)
        copies = self._kept.get(key) or []
        copies.append(template)
        del copies[:-_MAX_COPIES]
        self._kept.keep(key, copies)


def _template(sql: str, form: Form, parsed: ParsedQuery) -> Template | None:
    """None: no literal may change."""
    nodes = {
        node.meta["start"]: node
        for node in parsed.tree.find_all(exp.Literal)
        if "start" in node.meta and _is_value(node)
    }
    places: list[Place] = []
    fixed: list[tuple[int, str]] = []
    for number, (start, end) in enumerate(form.literals):
        place = _place(sql, number, (start, end), nodes.get(start), parsed)
        if place is not None:
            places.append(place)
        else:
            fixed.append((number, sql[start:end]))
    if not places:
        return None
    template = Template(parsed, tuple(places), tuple(fixed))
    parsed.facts[Template] = template
    return template


def template_of(parsed: ParsedQuery) -> Template | None:
    """The template that `parsed` is filled from, or has become."""
    found: Template | None = parsed.facts.get(Template)
    return found


def _place(
    sql: str, number: int, span: tuple[int, int], node: exp.Literal | None, parsed: ParsedQuery
) -> Place | None:
    start, end = span
    written = sql[start:end]
    if node is None or node.name != (written[1:-1] if node.is_string else written):
        return None
    token = bisect_left(parsed.token_starts, start)
    if token >= len(parsed.token_spans) or parsed.token_starts[token] != start:
        return None
    first, last = parsed.token_spans[token]
    if parsed.text[first:last] != written:
        return None
    return Place(number, first, last, node)


def _is_value(literal: exp.Literal) -> bool:
    """Whether `literal` is a value in conditions of a WHERE, and nothing above it reads it."""
    node: exp.Expr = literal
    has_condition = False
    while (parent := node.parent) is not None:
        if isinstance(parent, exp.Select):
            if node.arg_key not in _CLAUSES:
                return False
        elif isinstance(parent, exp.Cast):
            if node is not literal or parent.to.this not in _DATES:
                return False
        elif isinstance(parent, _CONDITIONS):
            has_condition = True
        elif not isinstance(parent, _AROUND_SELECTS) or not has_condition:
            return False
        node = parent
    return has_condition
