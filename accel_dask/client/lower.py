"""Frames to one SQL text: nodes are folded into as few SELECTs as keep their meaning.

Each node becomes a `Select`, into which those above it fold their clauses; where a clause would
come too early (a filter behind a limit, a group over groups) the SELECT becomes a subquery of the
next one. Only columns that something above uses are selected.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlglot import exp

from accel_dask.client import sql
from accel_dask.client.dtypes import NULL, DType
from accel_dask.client.expressions import Column, Expr, InRows, Key, Literal, Window, call, clean
from accel_dask.client.lower_values import Binding, Bound, Reference, Scope, ScopeKey, Values
from accel_dask.client.nodes import (
    Aggregate,
    Derived,
    Filter,
    Join,
    JoinKind,
    Limit,
    Node,
    Scan,
    Side,
    Sort,
    Text,
    Union,
)

_RESERVED_PREFIXES: Final = ("duckdb_", "pragma_", "pg_", "sqlite_", "s_", "information_schema")


@dataclass(slots=True)
class Select:
    """A SELECT under construction, without its projections."""

    from_: exp.Expr
    scope: dict[ScopeKey, Binding]
    joins: list[exp.Join] = field(default_factory=list)
    where: list[exp.Expr] = field(default_factory=list)
    group: list[exp.Expr] | None = None
    having: list[exp.Expr] = field(default_factory=list)
    order: list[Key] = field(default_factory=list)
    limit: int | None = None
    offset: int = 0

    @property
    def is_cut(self) -> bool:
        return self.limit is not None or self.offset > 0

    @property
    def is_closed(self) -> bool:
        """Whether nothing that works on its rows can be folded in."""
        return self.is_cut or self.group is not None


@dataclass(frozen=True, slots=True)
class Output:
    """A column of the answer, in order."""

    sql_name: str
    dtype: DType


@dataclass(frozen=True, slots=True)
class Compiled:
    """A frame's SQL, and what its columns are."""

    sql: str
    outputs: tuple[Output, ...]
    tables: tuple[str, ...]
    """Datasets that are read, each once, in order."""
    is_single_row: bool
    columns: tuple[tuple[str, str], ...]
    """Table and column of everything that is read."""
    sources: tuple[Scan | Text, ...]
    """Whose columns' types the SQL rests on."""
    pins: tuple[tuple[str, int], ...] = ()
    """Datasets and epochs that it holds for."""


def compile_rows(
    rows: Node, columns: Sequence[tuple[str, Expr]], cap: int | None = None
) -> Compiled:
    """The SQL of `columns`, each with the name it would like, over `rows`.

    `cap`: the most rows that may come; one more is asked for, so that more is noticed.
    """
    return _Lowering().compile(rows, columns, cap)


class _Lowering:
    def __init__(self) -> None:
        self._aliases = 0
        self._read: dict[tuple[str, str], None] = {}
        self._sources: dict[Scan | Text, None] = {}
        self._pins: dict[str, int] = {}

    def compile(self, rows: Node, columns: Sequence[tuple[str, Expr]], cap: int | None) -> Compiled:
        exprs = [expr for _, expr in columns]
        select = self.lower(rows, exprs, is_top=True)
        is_single = select.group == []
        if cap is not None and not is_single:
            select.limit = cap + 1 if select.limit is None else min(select.limit, cap + 1)
        names = unique_names([name for name, _ in columns])
        tree = self._finished(select, list(zip(names, exprs, strict=True)))
        outputs = tuple(
            Output(name, expr.dtype) for name, expr in zip(names, exprs, strict=True)
        )  # fmt: skip
        tables = tuple(dict.fromkeys(table for table, _ in self._read))
        columns_read = tuple(one for one in self._read if one[1])
        return Compiled(
            sql.render(tree),
            outputs,
            tables,
            is_single,
            columns_read,
            tuple(self._sources),
            tuple(self._pins.items()),
        )

    def lower(self, node: Node, above: Sequence[Expr], *, is_top: bool = False) -> Select:
        """The SELECT of `node`, for what `above` needs of it."""
        select = self._lower_node(node, above)
        windows = _windows_at(node, above)
        if not windows:
            return select
        deepest = max(windows.values())
        if is_top and deepest == 1 and not select.is_closed:
            return select
        for depth in range(1, deepest + 1):
            computed = [window for window, level in windows.items() if level == depth]
            if depth > 1 and is_top and depth == deepest:
                break
            if select.is_closed:
                select = self._wrap(select, above)
            select = self._wrap(select, above, computed)
        return select

    def _lower_node(self, node: Node, above: Sequence[Expr]) -> Select:  # noqa: PLR0911
        match node:
            case Scan():
                return self._scan(node, above)
            case Text():
                return self._text(node)
            case Filter():
                return self._filter(node, above)
            case Sort():
                return self._sort(node, above)
            case Limit():
                return self._limit(node, above)
            case Aggregate():
                return self._aggregate(node, above)
            case Join():
                return self._join(node, above)
            case Union():
                return self._union(node, above)
            case Derived():
                return self._derived(node, above)
            case _:
                raise AssertionError(f"no node: {type(node).__name__}")

    # Sources

    def _scan(self, node: Scan, above: Sequence[Expr]) -> Select:
        alias = self._alias()
        self._sources[node] = None
        self._read[node.table, ""] = None
        scope: dict[ScopeKey, Binding] = {}
        for name in _names_of(node, above):
            scope[node, name] = Reference(alias, name)
            self._read[node.table, name] = None
        return Select(_aliased(exp.Table(this=sql.name(node.table)), alias), scope)

    def _text(self, node: Text) -> Select:
        alias = self._alias()
        self._sources[node] = None
        source = _aliased(exp.Subquery(this=exp.Var(this=node.sql)), alias)
        return Select(source, {(node, one.name): Reference(alias, one.name) for one in node.fields})

    def _aggregate(self, node: Aggregate, above: Sequence[Expr]) -> Select:
        wanted = _names_of(node, above)
        values = [(name, expr) for name, expr in node.values if name in wanted]
        inner = [*(expr for _, expr in node.keys), *(expr for _, expr in values)]
        select = self.lower(node.input, inner)
        if select.is_closed:
            select = self._wrap(select, inner)
        select.order = []
        below = dict(select.scope)
        here = self._values(below)
        select.group = [here.cleaned(expr) for _, expr in node.keys]
        select.scope = {
            **{(node, name): Bound(_cleaned(expr), below) for name, expr in node.keys},
            **{(node, name): Bound(expr, below) for name, expr in values},
        }
        return select

    def _derived(self, node: Derived, above: Sequence[Expr]) -> Select:
        wanted = _names_of(node, above) | {name for name, _, _ in node.order}
        columns = [(name, expr) for name, expr in node.columns if name in wanted]
        columns = columns or list(node.columns[:1])
        select = self.lower(node.input, [expr for _, expr in columns], is_top=True)
        keep_order = select.is_cut
        if not keep_order:
            select.order = []
        names = unique_names([name for name, _ in columns])
        inner = self._finished(
            select, [(new, expr) for new, (_, expr) in zip(names, columns, strict=True)]
        )
        alias = self._alias()
        scope: dict[ScopeKey, Binding] = {
            (node, name): Reference(alias, new)
            for new, (name, _) in zip(names, columns, strict=True)
        }
        return Select(_aliased(exp.Subquery(this=inner), alias), scope)

    def _union(self, node: Union, above: Sequence[Expr]) -> Select:
        wanted = [i for i, name in enumerate(node.names) if name in _names_of(node, above)]
        wanted = wanted or [0]
        names = unique_names([node.names[i] for i in wanted])
        parts: list[exp.Expr] = []
        for branch in node.branches:
            exprs = [branch.columns[i] for i in wanted]
            select = self.lower(branch.rows, exprs, is_top=True)
            if not select.is_cut:
                select.order = []
            made = self._finished(select, list(zip(names, exprs, strict=True)))
            parts.append(exp.Subquery(this=made) if select.is_cut else made)
        tree: exp.Expr = parts[0]
        for part in parts[1:]:
            tree = exp.Union(this=tree, expression=part, distinct=False)
        alias = self._alias()
        scope: dict[ScopeKey, Binding] = {
            (node, node.names[i]): Reference(alias, new)
            for new, i in zip(names, wanted, strict=True)
        }
        return Select(_aliased(exp.Subquery(this=tree), alias), scope)

    # What passes rows on

    def _filter(self, node: Filter, above: Sequence[Expr]) -> Select:
        inner = [*above, node.predicate]
        select = self.lower(node.input, inner)
        if select.is_cut:
            select = self._wrap(select, inner)
        condition = self._values(select.scope).when(node.predicate)
        conditions = list(condition.flatten()) if isinstance(condition, exp.And) else [condition]
        (select.where if select.group is None else select.having).extend(conditions)
        return select

    def _sort(self, node: Sort, above: Sequence[Expr]) -> Select:
        inner = [*above, *(key.expr for key in node.keys)]
        select = self.lower(node.input, inner)
        if select.is_cut:
            select = self._wrap(select, inner)
        select.order = [*node.keys, *select.order]
        return select

    def _limit(self, node: Limit, above: Sequence[Expr]) -> Select:
        select = self.lower(node.input, above)
        if select.is_cut:
            select = self._wrap(select, above)
        select.limit, select.offset = node.count, node.offset
        return select

    # Joins

    def _join(self, node: Join, above: Sequence[Expr]) -> Select:
        wanted = [one for one in node.columns if one.name in _names_of(node, above)]
        lefts = [*node.left_keys, *(one.left for one in wanted if one.left is not None)]
        rights = [*node.right_keys, *(one.right for one in wanted if one.right is not None)]
        left = self.lower(node.left, lefts)
        right = self.lower(node.right, rights)
        is_inner = node.kind is JoinKind.INNER
        left_filled = node.kind in {JoinKind.RIGHT, JoinKind.OUTER}
        right_filled = node.kind in {JoinKind.LEFT, JoinKind.OUTER}
        if not self._is_joinable(left, lefts, is_filled=left_filled, may_join=not left_filled):
            left = self._wrap(left, lefts)
        if not self._is_joinable(right, rights, is_filled=right_filled, may_join=is_inner) or (
            node.kind is not JoinKind.INNER and right.where
        ):
            right = self._wrap(right, rights)
        if left_filled and left.where:
            left = self._wrap(left, lefts)
        left_values, right_values = self._values(left.scope), self._values(right.scope)
        condition = sql.connect(
            exp.And,
            [
                _equal(left_values.cleaned(a), right_values.cleaned(b), a, b)
                for a, b in zip(node.left_keys, node.right_keys, strict=True)
            ],
        )
        join = exp.Join(this=right.from_, on=condition, **_JOIN_ARGS[node.kind])
        scope: dict[ScopeKey, Binding] = {}
        for one in wanted:
            if one.side is Side.LEFT and one.left is not None:
                scope[node, one.name] = Bound(one.left, left.scope)
            elif one.side is Side.RIGHT and one.right is not None:
                scope[node, one.name] = Bound(one.right, right.scope)
            elif one.left is not None and one.right is not None:
                scope[node, one.name] = Bound(_Both(one.left, one.right).expr(node), {
                    (node, "left"): Bound(one.left, left.scope),
                    (node, "right"): Bound(one.right, right.scope),
                })  # fmt: skip
        return Select(
            left.from_,
            scope,
            joins=[*left.joins, join, *right.joins],
            where=[*left.where, *right.where],
        )

    def _is_joinable(
        self, select: Select, exprs: Sequence[Expr], *, is_filled: bool, may_join: bool
    ) -> bool:
        if select.is_closed or (select.joins and not may_join):
            return False
        if not is_filled:
            return True
        # A computed value of a row that is not there must be missing, too.
        return all(_is_reference(expr, select.scope) for expr in exprs)

    # SELECTs

    def _wrap(
        self, select: Select, above: Sequence[Expr], windows: Sequence[Window] = ()
    ) -> Select:
        """`select` as a subquery of a new one that offers what `above` needs, and its order."""
        order = list(select.order)
        needed = [*above, *(key.expr for key in order)]
        keys = list(_keys_of(needed, select.scope, frozenset(windows)))
        names = unique_names([key[1] if isinstance(key, tuple) else "w" for key in keys])
        values = self._values(select.scope)
        projections: list[exp.Expr] = []
        for key, name in zip(keys, names, strict=True):
            found = values.of(key) if isinstance(key, Window) else values.of(_column_of(key))
            projections.append(_named(found, name))
        alias = self._alias()
        if not select.is_cut:
            select.order = []
        if not projections:
            projections = [_named(sql.number(1), "one")]
        inner = self._tree(select, projections)
        scope: dict[ScopeKey, Binding] = {
            key: Reference(alias, name) for key, name in zip(keys, names, strict=True)
        }
        return Select(_aliased(exp.Subquery(this=inner), alias), scope, order=order)

    def _finished(self, select: Select, columns: list[tuple[str, Expr]]) -> exp.Select:
        exprs = [expr for _, expr in columns]
        windows = {found for expr in exprs for found in _all_windows(expr)}
        if select.is_closed and not windows <= select.scope.keys():
            select = self._wrap(select, exprs)
        values = self._values(select.scope)
        return self._tree(select, [_named(values.of(expr), name) for name, expr in columns])

    def _tree(self, select: Select, projections: list[exp.Expr]) -> exp.Select:
        tree = exp.Select(expressions=projections, from_=exp.From(this=select.from_))
        if select.joins:
            tree.set("joins", select.joins)
        if select.where:
            tree.set("where", exp.Where(this=sql.connect(exp.And, select.where)))
        if select.group:
            tree.set("group", exp.Group(expressions=select.group))
        if select.having:
            tree.set("having", exp.Having(this=sql.connect(exp.And, select.having)))
        if select.order:
            keys = self._values(select.scope).keys(_distinct(select.order))
            tree.set("order", exp.Order(expressions=keys))
        if select.limit is not None:
            tree.set("limit", exp.Limit(expression=sql.number(select.limit)))
        if select.offset:
            tree.set("offset", exp.Offset(expression=sql.number(select.offset)))
        return tree

    def _values(self, scope: Scope) -> Values:
        return Values(scope, self._subquery, self._pins)

    def _subquery(self, expr: InRows, count_missing: bool) -> exp.Expr:
        """The column's values that are not missing; or how many are."""
        select = self.lower(expr.rows, [expr.column], is_top=True)
        if not select.is_cut:
            select.order = []
        if select.is_closed or expr.column.has_window:
            select = self._wrap(select, [expr.column], list(_all_windows(expr.column)))
            select.order = []
        values = self._values(select.scope)
        found = values.cleaned(expr.column)
        if count_missing:
            select.where.append(sql.is_null(found))
            return exp.Subquery(
                this=self._tree(select, [_named(sql.func("count", exp.Star()), "n")])
            )
        select.where.append(sql.is_not_null(found))
        return exp.Subquery(this=self._tree(select, [_named(values.of(expr.column), "value")]))

    def _alias(self) -> str:
        self._aliases += 1
        return f"t{self._aliases - 1}"


_JOIN_ARGS: Final = {
    JoinKind.INNER: {},
    JoinKind.LEFT: {"side": "LEFT"},
    JoinKind.RIGHT: {"side": "RIGHT"},
    JoinKind.OUTER: {"side": "FULL"},
}


@dataclass(frozen=True, slots=True)
class _Both:
    """The key of an outer join: of whichever side is there."""

    left: Expr
    right: Expr

    def expr(self, node: Join) -> Expr:
        dtype = self.left.dtype
        sides = [
            Column(one.dtype, node, name, one.may_nan, True)
            for name, one in (("left", self.left), ("right", self.right))
        ]
        return call("coalesce", dtype, *sides)


def _equal(left: exp.Expr, right: exp.Expr, a: Expr, b: Expr) -> exp.Expr:
    if (a.may_null or a.may_nan) and (b.may_null or b.may_nan):
        return exp.NullSafeEQ(this=sql.paren(left), expression=sql.paren(right))
    return sql.binary(exp.EQ, left, right)


def _cleaned(expr: Expr) -> Expr:
    return clean(expr)


def _is_reference(expr: Expr, scope: Scope) -> bool:
    if not isinstance(expr, Column):
        return False
    binding = scope[expr.source, expr.name]
    return isinstance(binding, Reference) or _is_reference(binding.expr, binding.scope)


def _column_of(key: tuple[Node, str]) -> Column:
    return Column(NULL, key[0], key[1])


def _names_of(source: Node, above: Iterable[Expr]) -> set[str]:
    """Columns of `source` in `above`."""
    found: set[str] = set()
    pending = list(above)
    seen: set[Expr] = set()
    while pending:
        expr = pending.pop()
        if expr in seen:
            continue
        seen.add(expr)
        if isinstance(expr, Column) and expr.source is source:
            found.add(expr.name)
        pending.extend(expr.args)
    return found


def _keys_of(
    exprs: Iterable[Expr], scope: Scope, windows: frozenset[Window]
) -> dict[ScopeKey, None]:
    """What `exprs` need of `scope`; `windows` are needed as a whole."""
    found: dict[ScopeKey, None] = {}
    pending = list(exprs)[::-1]
    seen: set[Expr] = set()
    while pending:
        expr = pending.pop()
        if expr in seen or isinstance(expr, Literal):
            continue
        seen.add(expr)
        if isinstance(expr, Window) and (expr in windows or expr in scope):
            found[expr] = None
            continue
        if isinstance(expr, Column) and (expr.source, expr.name) in scope:
            found[expr.source, expr.name] = None
        pending.extend(reversed(expr.args))
    return found


def _all_windows(expr: Expr) -> Iterable[Window]:
    if not expr.has_window:
        return
    pending = [expr]
    while pending:
        found = pending.pop()
        if isinstance(found, Window):
            yield found
        pending.extend(one for one in found.args if one.has_window)


def _windows_at(node: Node, above: Iterable[Expr]) -> dict[Window, int]:
    """Windows over the rows of `node` in `above`, each with how deep others are in it."""
    found: dict[Window, int] = {}

    def depth(expr: Expr) -> int:
        if not expr.has_window:
            return 0
        if isinstance(expr, Window) and expr in found:
            return found[expr]
        inner = max((depth(one) for one in expr.args), default=0)
        if isinstance(expr, Window) and expr.rows is node:
            inner += 1
            found[expr] = inner
        return inner

    for expr in above:
        depth(expr)
    return found


def _distinct(keys: Sequence[Key]) -> tuple[Key, ...]:
    """Without keys of columns that decided before."""
    seen: set[object] = set()
    kept = []
    for key in keys:
        expr = key.expr
        what: object = (expr.source, expr.name) if isinstance(expr, Column) else expr
        if what not in seen:
            seen.add(what)
            kept.append(key)
    return tuple(kept)


def _named(node: exp.Expr, name: str) -> exp.Expr:
    if isinstance(node, exp.Column) and node.name == name:
        return node
    return exp.Alias(this=node, alias=sql.name(name))


def _aliased(node: exp.Expr, alias: str) -> exp.Expr:
    node.set("alias", exp.TableAlias(this=exp.Identifier(this=alias, quoted=False)))
    return node


def unique_names(wanted: Sequence[str]) -> list[str]:
    """A name for each of `wanted` that is its own where the engine, to which case means nothing,
    can tell it from the others; else one by position."""
    taken: set[str] = set()
    folded = [one.lower() for one in wanted]
    names = []
    for index, (one, low) in enumerate(zip(wanted, folded, strict=True)):
        is_fine = (
            one
            and folded.count(low) == 1
            and one.isprintable()
            and not low.startswith(_RESERVED_PREFIXES)
        )
        name = one if is_fine else f"c{index}"
        while name.lower() in taken or (not is_fine and name in folded):
            name += "_"
        taken.add(name.lower())
        names.append(name)
    return names
