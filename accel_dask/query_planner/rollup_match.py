"""Whether a SELECT can be answered from a rollup instead of a table's rows, and how it reads then.

In a rollup one row stands for all rows with the same dimensions. A SELECT that groups gives the
same over either if it looks at nothing of the rows but the dimensions, which the rollup has under
the same names, and aggregates that are put together from the rollup's. Only these aggregates are
written anew; everything else of the user's text stays.

Tables joined to it are other columns of the same rows: what they are joined by must be dimensions,
and no join may add rows that have none of the rollup's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final

from sqlglot import exp

from accel_dask.model.rollup import Dimension, RollupTable
from accel_dask.model.snapshot import Column
from accel_dask.query_planner.aggregates import call_name, is_aggregate
from accel_dask.query_planner.blocks import own_nodes
from accel_dask.query_planner.functions import AGGREGATES
from accel_dask.query_planner.names import derived_name
from accel_dask.query_planner.physical import SplicedText, quoted
from accel_dask.query_planner.plan import Edit, Scan
from accel_dask.query_planner.rollup_grains import is_aligned_comparison, is_derived
from accel_dask.query_planner.scopes import Scope, is_closed

_CLAUSES: Final = frozenset(
    [
        "expressions", "from_", "joins", "where", "group", "having", "order", "limit", "offset",
        "distinct", "with_",
    ]
)  # fmt: skip
_REFUSED: Final = (
    exp.Unnest,
    exp.Explode,
    exp.WithinGroup,
    exp.IgnoreNulls,
    exp.RespectNulls,
    exp.Columns,
)
_WHATEVER_THE_COUNT: Final = frozenset(["bit_and", "bit_or", "bool_and", "bool_or", "max", "min"])
"""Aggregates whose value is the same however often a row is there."""
_OF_DISTINCT: Final = frozenset(["avg", "count", "max", "min", "sum"])
_MODIFIERS: Final = (exp.Order, exp.Ordered, exp.Limit, exp.HavingMax)
_ARGUMENTS: Final = frozenset(["this", "expressions", "big_int"])
_RANDOM: Final = re.compile(r"\b(random|gen_random_uuid|uuid|uuidv4|uuidv7)\b", re.IGNORECASE)


class NoMatch(Exception):
    """Why a SELECT cannot be answered from a rollup."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A rollup in place of a table's rows."""

    name: str
    """The table's in the SELECT, in lower case."""
    columns: dict[str, Column]
    """Of the rows, by their names in lower case."""
    dimensions: dict[str, Dimension] = field(default_factory=dict)
    measures: dict[tuple[str, str], str] = field(default_factory=dict)
    """Their columns, by function and the column's name in lower case; `count` of all rows has
    the column ``."""


class RollupMatch:
    """One SELECT, of whose tables `scan` is to be read from a rollup."""

    def __init__(
        self, select: exp.Select, scan: Scan, text: SplicedText, scans: dict[int, Scan]
    ) -> None:
        """
        Raises:
            NoMatch: no rollup can answer it.
        """
        self._select = select
        self._scan = scan
        self._text = text
        self._scans = scans
        self._scope = Scope(select, scans)
        self._joined: frozenset[str] = frozenset()
        """Columns of USING, in lower case."""
        self._check_shape()
        self._calls = [call for part in self._values() for call in _calls_in(part)]
        if not self._calls and select.args.get("group") is None and self._has_window():
            raise NoMatch("it has a window over rows")
        if not (self._calls or any(select.args.get(k) for k in ("group", "having", "distinct"))):
            raise NoMatch("it asks for rows, not for groups")

    def edits(self, rollup: RollupTable) -> list[Edit]:
        """What to change in the text so that it reads `rollup`.

        Raises:
            NoMatch: why that would not be the same.
        """
        fact = self._fact(rollup)
        self._check_columns(fact)
        edits = [edit for call in self._calls if (edit := self._rewritten(call, fact)) is not None]
        return edits + list(self._names(edits))

    def is_answered_by(self, rollup: RollupTable) -> bool:
        """Whether `edits` says how."""
        try:
            self.edits(rollup)
        except NoMatch:
            return False
        return True

    def _whole_fact(self) -> Fact:
        return Fact(
            name=self._scan.reference.node.alias_or_name.lower(),
            columns={column.name.lower(): column for column in self._scan.route.columns},
        )

    def _fact(self, rollup: RollupTable) -> Fact:
        return replace(
            self._whole_fact(),
            dimensions={column.name.lower(): found for found, column in rollup.dimensions},
            measures={
                (measure.function, (measure.column or "").lower()): column.name
                for measure, column in rollup.measures
            },
        )

    # What does not depend on the rollup

    def _check_shape(self) -> None:
        select = self._select
        for clause, value in select.args.items():
            if value and clause not in _CLAUSES:
                raise NoMatch(f"it has {clause.rstrip('_').upper()}")
        distinct = select.args.get("distinct")
        if distinct is not None and distinct.args.get("on"):
            raise NoMatch("it has DISTINCT ON")
        if not self._scope.is_plain or _RANDOM.search(self._text.text):
            raise NoMatch("its FROM or a random function is not understood")
        self._check_joins()
        for node in self._own_nodes():
            self._check_node(node)
        for part in self._parts():
            for node in own_nodes(part):
                for query in node.iter_expressions():
                    if isinstance(query, exp.Query) and not self._is_closed(query):
                        raise NoMatch("where a subquery's columns come from is not plain to see")

    def _is_closed(self, query: exp.Expr) -> bool:
        inner = query.this if isinstance(query, exp.Subquery) else query
        return isinstance(inner, exp.Table) or is_closed(inner, self._scans)

    def _check_joins(self) -> None:
        joins = self._select.args.get("joins") or []
        nodes = [source.node for source in self._scope.sources]
        position = next(n for n, node in enumerate(nodes) if node is self._scan.reference.node)
        using = []
        for index, join in enumerate(joins, 1):
            method, side, kind = join.method.upper(), join.side.upper(), join.kind.upper()
            is_kept = not method
            if index == position:
                is_kept = is_kept and not side and kind in {"", "INNER", "CROSS"}
            elif index > position:
                is_kept = is_kept and side in {"", "LEFT"}
            if not is_kept:
                raise NoMatch("a join of it may add rows or compare all columns")
            using += [column.name.lower() for column in join.args.get("using") or ()]
        self._joined = frozenset(using)

    def _check_node(self, node: exp.Expr) -> None:
        if isinstance(node, _REFUSED):
            raise NoMatch(f"it has {type(node).__name__.upper()}")
        if isinstance(node, exp.Star) and not isinstance(node.parent, exp.Count):
            raise NoMatch("it has a *")
        if isinstance(node, exp.Dot):
            raise NoMatch("it has a name behind a dot that is no column's")
        if isinstance(node, exp.Func) and not is_aggregate(node):
            span = self._text.span(node)
            name = call_name(self._text.text[slice(*span)]) if span else ""
            if name in AGGREGATES or (span is None and isinstance(node, exp.Anonymous)):
                raise NoMatch(f"{name or 'a function'} needs the rows")

    def _parts(self) -> list[exp.Expr]:
        """All that looks at rows or groups, without WITH."""
        args = self._select.args
        parts = [args["from_"], *(args.get("joins") or ()), *self._select.expressions]
        return parts + [args[k] for k in ("where", "group", "having", "order") if args.get(k)]

    def _values(self) -> list[exp.Expr]:
        args = self._select.args
        return [*self._select.expressions, *(args[k] for k in ("having", "order") if args.get(k))]

    def _has_window(self) -> bool:
        return any(isinstance(node, exp.Window) for node in self._own_nodes())

    def _own_nodes(self) -> Iterator[exp.Expr]:
        for part in self._parts():
            yield from own_nodes(part)

    # Columns

    def _check_columns(self, fact: Fact) -> None:
        for name in self._joined & fact.columns.keys():
            dimension = fact.dimensions.get(name)
            if dimension is None or dimension.grain:
                raise NoMatch(f"it is joined by {name}, which is not one of its dimensions")
        bare = self._order_aliases()
        for part in self._parts():
            pending = [part]
            while pending:
                node = pending.pop()
                if id(node) in bare:
                    continue
                if isinstance(node, exp.Window):
                    pending += _in_window(node)
                    continue
                if is_aggregate(node):
                    continue
                if isinstance(node, exp.Column):
                    self._check_column(node, fact)
                    continue
                pending += [c for c in node.iter_expressions() if not isinstance(c, exp.Query)]

    def _order_aliases(self) -> set[int]:
        """Elements of ORDER BY that are an alias: it comes before a column of that name."""
        order = self._select.args.get("order")
        return {
            id(ordered.this)
            for ordered in (order.expressions if order is not None else ())
            if isinstance(ordered.this, exp.Column)
            and not ordered.this.table
            and ordered.this.name.lower() in self._scope.aliases
        }

    def _check_column(self, column: exp.Column, fact: Fact) -> None:
        name = column.name.lower()
        found = self._scope.resolve(column)
        if found is None:
            is_alias = self._scope.is_alias(column)
            if not is_alias or any(source.columns is None for source in self._scope.sources):
                raise NoMatch(f"what {column.name} refers to is not plain to see")
            return
        if not found[0]:
            if name not in self._joined or name not in fact.dimensions:
                raise NoMatch(f"{column.name} is a column of several of its tables")
            return
        if found[0] != fact.name:
            return
        dimension = fact.dimensions.get(name)
        if dimension is None:
            raise NoMatch(f"{column.name} is not one of its dimensions")
        if dimension.grain and not self._is_in_grain(column, dimension.grain):
            raise NoMatch(
                f"{column.name} is used in another way than by {dimension.grain} or coarser"
            )

    def _is_in_grain(self, column: exp.Column, grain: str) -> bool:
        start, end = self._span(column)
        return is_derived(grain, self._text.text, start, end) or is_aligned_comparison(
            grain, column
        )

    # Aggregates

    def _rewritten(self, call: exp.Expr, fact: Fact) -> Edit | None:
        """The aggregate over the rollup; None: it is the same over it."""
        start, end = self._span(call)
        name = call_name(self._text.text[start:end])
        close = _closing(self._text.text, start + len(name))
        if isinstance(call, exp.Filter):
            self._check_inside(call.expression, fact)
        elif close != end:
            raise NoMatch("an aggregate of it is written in an unusual way")
        if call.find(exp.Query) or close is None:
            raise NoMatch("it has a subquery in an aggregate")
        argument = _argument_of(call, name)
        if isinstance(argument, exp.Distinct):
            if name not in _OF_DISTINCT or argument.args.get("on"):
                raise NoMatch(f"{name} of distinct values needs the rows")
            self._check_inside(argument, fact)
            return None
        behind = self._text.cut(close, end)
        new = self._over_measures(name, argument, behind, fact)
        if new is None and name in _WHATEVER_THE_COUNT and argument is not None:
            self._check_inside(argument, fact)
            return None
        if new is None and name == "count" and argument is not None:
            new = self._counted(argument, behind, fact)
        if new is None:
            what = self._text.text[start:close]
            raise NoMatch(f"{what[:60]} is not one of its measures")
        return Edit(start=start, end=end, replacement=new)

    def _over_measures(
        self, name: str, argument: exp.Expr | None, behind: str, fact: Fact
    ) -> str | None:
        """The aggregate of a column, from the rollup's own of it."""
        while isinstance(argument, exp.Paren):
            argument = argument.this
        is_all = argument is None or isinstance(argument, exp.Literal | exp.Star)
        column = "" if is_all else self._own_column(argument, fact)
        if name == "count":
            if column and ("count", column) not in fact.measures:
                known = fact.columns[column]
                if known.nullable or known.type in {"FLOAT", "DOUBLE"}:  # NaN is loaded as NULL
                    return None
                column = ""
            return None if column is None else self._count(column, behind, fact)
        if not column:
            return None
        if name == "avg":
            total, count = fact.measures.get(("sum", column)), fact.measures.get(("count", column))
            if total is None or count is None or fact.columns[column].type == "BOOLEAN":
                return None
            # As DuckDB itself does where it knows that no sum overflows.
            return (
                f"(CAST(sum({self._measure(fact, total)}){behind} AS DOUBLE) / "
                f"nullif(CAST(sum({self._measure(fact, count)}){behind} AS DOUBLE), 0))"
            )
        measure = fact.measures.get((name, column))
        return None if measure is None else f"{name}({self._measure(fact, measure)}){behind}"

    def _own_column(self, node: exp.Expr | None, fact: Fact) -> str | None:
        """The name of the column of the rows that `node` is."""
        found = self._scope.resolve(node) if node is not None else None
        return found[1] if found is not None and found[0] == fact.name else None

    def _count(self, column: str, behind: str, fact: Fact) -> str:
        measure = self._measure(fact, fact.measures["count", column])
        return f"coalesce(CAST(sum({measure}){behind} AS BIGINT), 0)"

    def _counted(self, argument: exp.Expr, behind: str, fact: Fact) -> str:
        """`count` of what is the same for all rows of a group of the rollup."""
        own = self._own_column(argument, fact)
        if own not in fact.dimensions:  # a time is NULL where its grain is
            self._check_inside(argument, fact)
        measure = self._measure(fact, fact.measures["count", ""])
        value = self._text.cut(*self._span(argument))
        return (
            f"coalesce(CAST(sum(CASE WHEN ({value}) IS NOT NULL THEN {measure} END){behind} "
            "AS BIGINT), 0)"
        )

    def _check_inside(self, node: exp.Expr, fact: Fact) -> None:
        for inner in own_nodes(node):
            if isinstance(inner, exp.Column):
                self._check_column(inner, fact)

    @staticmethod
    def _measure(fact: Fact, name: str) -> str:
        return f"{quoted(fact.name)}.{quoted(name)}"

    # Names

    def _names(self, edits: list[Edit]) -> Iterator[Edit]:
        """Keep the names of columns that DuckDB would derive from text that is replaced."""
        for item in self._select.expressions:
            if isinstance(item, exp.Alias | exp.Aliases | exp.Column):
                continue
            start, end = self._span(item)
            if not any(start <= edit.start and edit.end <= end for edit in edits):
                continue
            if any(e.start == e.end == end for e in self._text.parsed.edits):
                continue  # it is given its name already
            name = derived_name(self._text.text[start:end])
            if name is None:
                raise NoMatch("a column of it has a name that only DuckDB knows; name it with AS")
            if name.lower() in self._scope.aliases:
                raise NoMatch("two columns of it have one name")
            yield Edit(start=end, end=end, replacement=f" AS {quoted(name)}")

    def _span(self, node: exp.Expr) -> tuple[int, int]:
        span = self._text.span(node)
        if span is None:
            raise NoMatch("it is written in an unusual way")
        return span


def _calls_in(part: exp.Expr) -> Iterator[exp.Expr]:
    """The outermost aggregates in `part`, without those of subqueries."""
    pending = [part]
    while pending:
        node = pending.pop()
        if isinstance(node, exp.Window):
            pending += _in_window(node)
            continue
        if is_aggregate(node):
            yield node
            continue
        pending += [child for child in node.iter_expressions() if not isinstance(child, exp.Query)]


def _in_window(window: exp.Window) -> list[exp.Expr]:
    """What a window over groups looks at: its function is of the groups, not of their rows."""
    function = window.this
    parts = [child for child in window.iter_expressions() if child is not function]
    if isinstance(function, exp.Filter):
        parts.append(function.expression)
        function = function.this
    parts += function.iter_expressions()
    return [part for part in parts if not isinstance(part, exp.Query)]


def _argument_of(call: exp.Expr, name: str) -> exp.Expr | None:
    """The one argument of an aggregate; None: it has none.

    Raises:
        NoMatch: it has others, or an order.
    """
    function = call.this if isinstance(call, exp.Filter) else call
    argument = function.args.get("this")
    is_plain = argument is None or isinstance(argument, exp.Expr)
    is_plain = is_plain and not any(
        value for key, value in function.args.items() if key not in _ARGUMENTS
    )
    if argument is not None and is_plain:
        is_plain = not any(
            isinstance(node, _MODIFIERS)
            or (isinstance(node, exp.Distinct) and node is not argument)
            for node in own_nodes(argument)
        )
    if not is_plain or function.args.get("expressions"):
        raise NoMatch(f"{name} is called with more than a column")
    return argument


def _closing(text: str, start: int) -> int | None:
    """Behind the parenthesis that closes the first one from `start` on."""
    depth, quote = 0, ""
    for at in range(start, len(text)):
        letter = text[at]
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "()":
            depth += 1 if letter == "(" else -1
            if depth == 0:
                return at + 1
    return None
