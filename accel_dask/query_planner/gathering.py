"""What of a table that is spread is moved: which columns of which rows.

Conditions that hold for every row that the query uses go along. Those over the table alone are
left out of the query's own text then, and with them the columns that only they need. A join with a
table that every executor has, of which only some rows count, leaves rows out as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sqlglot import exp

from accel_dask.query_planner.aggregates import calls_in
from accel_dask.query_planner.blocks import own_nodes
from accel_dask.query_planner.physical import SplicedText, quoted, relation_of, shard_ids
from accel_dask.query_planner.plan import Scan
from accel_dask.query_planner.row_filters import conjuncts, keeps_filters, own_select, row_filters
from accel_dask.query_planner.scopes import Scope

_MAX_DEPTH: Final = 4
_INEXACT: Final = ("FLOAT", "DOUBLE", "INTERVAL")
_AGGREGATED: Final = ("group", "having", "qualify", "limit", "offset")


@dataclass(frozen=True, slots=True)
class Condition:
    """What holds for every row of a table that counts."""

    sql: str
    reads: tuple[Scan, ...] = ()
    """Other tables that it reads."""
    span: tuple[int, int] | None = None
    """Where it stands in the query, which need not check it again; None: it stays."""


class Conditions:
    """Reads one statement; `everywhere` are the ids of the nodes of tables that all have."""

    def __init__(
        self, text: SplicedText, scans: tuple[Scan, ...], everywhere: frozenset[int]
    ) -> None:
        self._text = text
        self._scans = scans
        self._by_node = {id(scan.reference.node): scan for scan in scans}
        self._everywhere = everywhere

    def of(self, scan: Scan) -> list[Condition]:
        """Conditions on the rows of `scan`, for its own columns under its name in the query."""
        return [*self._own(scan), *self._joined(scan, frozenset([id(scan.reference.node)]))]

    def _own(self, scan: Scan) -> Iterator[Condition]:
        for found in row_filters(scan, self._scans):
            span = self._text.span(found)
            if span is not None:
                stays = found.find(exp.Placeholder) is not None
                yield Condition(self._text.cut(*span), span=None if stays else span)

    def _joined(self, scan: Scan, seen: frozenset[int]) -> Iterator[Condition]:
        """That a row has a partner in a table of which only some rows count."""
        select = own_select(scan.reference.node)
        if select is None or len(seen) > _MAX_DEPTH:
            return
        sources = [select.args["from_"].this, *(j.this for j in select.args.get("joins") or ())]
        if not keeps_filters(scan.reference.node, select, sources):
            return
        scopes = [Scope(one, self._by_node) for one in (select, *_outer(select))]
        if not all(scope.is_plain for scope in scopes):
            return
        name = scan.reference.node.alias_or_name
        for left, right in _equal_columns(select):
            for mine, other in ((left, right), (right, left)):
                key = scopes[0].resolve(mine)
                if key is None or key[0] != name.lower():
                    continue
                partner = self._partner(other, scopes)
                if partner is None or id(partner[0].reference.node) in seen:
                    continue
                found = self._condition(scan, key[1], *partner, seen)
                if found is not None:
                    yield found

    def _partner(self, column: exp.Column, scopes: list[Scope]) -> tuple[Scan, str] | None:
        """The table that every executor has, and its column, that `column` is."""
        for scope in scopes:
            key = scope.resolve(column)
            if key is None:
                if not _is_surely_outside(column, scope):
                    return None
                continue
            for source in scope.sources:
                if source.name == key[0] and id(source.node) in self._everywhere:
                    assert source.scan is not None
                    return source.scan, key[1]
            return None
        return None

    def _condition(
        self, scan: Scan, column: str, partner: Scan, other: str, seen: frozenset[int]
    ) -> Condition | None:
        mine, theirs = _column_of(scan, column), _column_of(partner, other)
        if mine is None or theirs is None or mine[1] != theirs[1] or mine[1] in _INEXACT:
            return None
        inner = [
            *self._own(partner),
            *self._joined(partner, seen | {id(partner.reference.node)}),
        ]
        if not inner:
            return None
        name = quoted(partner.reference.node.alias_or_name)
        rows = relation_of(partner.route, shard_ids(partner))
        where = " AND ".join(f"({one.sql})" for one in inner)
        partners = f"SELECT {name}.{quoted(theirs[0])} FROM {rows} AS {name} WHERE {where}"  # noqa: S608 - quoted names
        sql = f"{quoted(scan.reference.node.alias_or_name)}.{quoted(mine[0])} IN ({partners})"
        return Condition(sql, (partner, *(read for one in inner for read in one.reads)))


def is_for_existence(scan: Scan) -> bool:
    """Whether it makes no difference how often a row is there."""
    table = scan.reference.node
    select = own_select(table)
    if select is None:
        return False
    join = table.parent
    if isinstance(join, exp.Join) and join.kind.upper() in {"SEMI", "ANTI"}:
        return True
    body: exp.Expr = select
    while isinstance(body.parent, exp.Subquery) and not body.parent.alias:
        body = body.parent
    is_list = isinstance(body.parent, exp.In) and body.arg_key == "query"
    if not is_list and not isinstance(body.parent, exp.Exists):
        return False
    if any(select.args.get(name) for name in _AGGREGATED):
        return False
    return not any(
        any(calls_in(item)) or any(isinstance(node, exp.Window) for node in own_nodes(item))
        for item in select.expressions
    )


def may_be_distinct(types: Iterator[str]) -> bool:
    """Whether equal values of these types are the same ones."""
    return not any(
        kind in _INEXACT or "[" in kind or ("(" in kind and "DECIMAL" not in kind) for kind in types
    )


def _is_surely_outside(column: exp.Column, scope: Scope) -> bool:
    """Whether what is no column of a scope that is known is certainly one of an outer SELECT."""
    if any(source.columns is None for source in scope.sources) or column.args.get("db") is not None:
        return False
    if not column.table:
        return column.name.lower() not in scope.aliases
    name = column.table.lower()  # or that of a column of which it is a field
    return all(
        name != source.name and name not in (source.columns or ()) for source in scope.sources
    )


def _column_of(scan: Scan, name: str) -> tuple[str, str] | None:
    """Its name as it is spelled, and its type."""
    return next(
        ((one.name, one.type) for one in scan.route.columns if one.name.lower() == name), None
    )


def _equal_columns(select: exp.Select) -> Iterator[tuple[exp.Column, exp.Column]]:
    """Columns that are equal in every row of `select`."""
    where = select.args.get("where")
    conditions = [where.this] if where is not None else []
    for join in select.args.get("joins") or ():
        is_inner = not join.side and not join.method and join.kind.upper() in {"", "INNER"}
        if is_inner and join.args.get("on") is not None:
            conditions.append(join.args["on"])
    for condition in conditions:
        for node in conjuncts(condition):
            if isinstance(node, exp.EQ):
                sides = (node.this, node.expression)
                if all(isinstance(side, exp.Column) for side in sides):
                    yield sides


def _outer(select: exp.Select) -> Iterator[exp.Select]:
    """The SELECTs that `select` is in, as long as a row of them that does not count needs no
    right value from it."""
    node: exp.Expr = select
    while node.parent is not None:
        parent = node.parent
        if isinstance(parent, exp.Join | exp.From | exp.CTE | exp.With | exp.SetOperation):
            return
        if isinstance(parent, exp.Select):
            if node.arg_key not in {"where", "expressions"}:
                return
            yield parent
        node = parent
