"""Which SELECTs of a query can be answered part by part, and what stands in the way.

A block reads one table that is spread over executors; everything else that it reads, each of them
has. Every row of the result of its FROM and WHERE comes from one row of the spread table, so that
the rows of all executors together are the block's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from sqlglot import exp

from accel_dask.query_planner.aggregates import (
    NUMBER,
    Aggregate,
    aggregate_of,
    call_name,
    distinct_argument,
    is_aggregate,
    may_average,
)
from accel_dask.query_planner.functions import AGGREGATES, UNREPEATABLE
from accel_dask.query_planner.physical import SplicedText
from accel_dask.query_planner.plan import Scan
from accel_dask.query_planner.scopes import Key, Scope, is_closed

_CLAUSES: Final = frozenset(
    ["expressions", "from_", "joins", "where", "group", "having", "order", "limit", "offset"]
)
_WORDS: Final = re.compile(r"[^\W\d][\w$]*")
_MAX_DISTINCT: Final = 2
_NUMBERS: Final = re.compile(
    r"U?(?:TINY|SMALL|BIG|HUGE)?INT|U?INTEGER|DOUBLE|DECIMAL\(\d+,\d+\)|a number"
)
_ONE_ANSWER: Final = frozenset(
    ["avg", "bit_and", "bit_or", "bool_and", "bool_or", "count", "max", "median", "min", "sum"]
)
"""Aggregates whose value does not depend on the order of the rows."""
_NOT_BY_PART: Final = (
    exp.Window,
    exp.Unnest,
    exp.Explode,
    exp.WithinGroup,
    exp.IgnoreNulls,
    exp.RespectNulls,
)


class NotMergeable(Exception):
    """Why a SELECT cannot be answered part by part."""


@dataclass(frozen=True, slots=True)
class Call:
    """An aggregate in the block."""

    node: exp.Expr
    how: Aggregate | None
    """None: its distinct values are keys, and it is computed over them."""
    argument: int = -1
    """Which key its distinct values are."""


@dataclass(slots=True)
class Block:
    """A SELECT that can be answered part by part."""

    select: exp.Select
    scope: Scope
    spread: Scan
    others: tuple[Scan, ...]
    """The other tables of the rows."""
    keys: list[exp.Expr] = field(default_factory=list)
    """What the rows are grouped by."""
    hidden: int = 0
    """So many of the last keys are there for DISTINCT aggregates only."""
    calls: list[Call] = field(default_factory=list)
    is_grouped: bool = False
    """False: its rows are the result's."""
    limit: int | None = None
    """Rows that are needed of each part at most, OFFSET included."""


class BlockReader:
    """Looks at the SELECTs of one statement."""

    def __init__(
        self, text: SplicedText, scans: dict[int, Scan], spread: set[int], everywhere: set[int]
    ) -> None:
        """By the ids of their tables' nodes: all scans, those that the coordinator does not have
        whole, and those that every executor has."""
        self._text = text
        self._scans = scans
        self._spread = spread
        self._everywhere = everywhere

    def read(self, select: exp.Select) -> Block:
        """
        Raises:
            NotMergeable: why not.
        """
        block = self._rows_of(select)
        self._check_parts(block)
        self._check_subqueries(block)
        self._check_columns(block)
        self._read_groups(block)
        self._read_limit(block)
        return block

    def _rows_of(self, select: exp.Select) -> Block:
        for clause, value in select.args.items():
            if value and clause not in _CLAUSES and clause != "distinct":
                raise NotMergeable(f"it has {clause.rstrip('_').upper()}")
        distinct = select.args.get("distinct")
        if distinct is not None and distinct.args.get("on"):
            raise NotMergeable("it has DISTINCT ON")
        if self._text.start_of(select) is None or select.args.get("from_") is None:
            raise NotMergeable("it is written in an unusual way")
        scope = Scope(select, self._scans)
        if not scope.is_plain:
            raise NotMergeable("its FROM has more than tables and subqueries joined in a row")
        spread = [
            (index, source.scan)
            for index, source in enumerate(scope.sources)
            if source.scan is not None and id(source.node) in self._spread
        ]
        if len(spread) != 1:
            raise NotMergeable("it joins tables that are spread")
        index, scan = spread[0]
        _check_joins(select.args.get("joins") or [], index)
        others = []
        for part in _row_parts(select):
            for table in part.find_all(exp.Table):
                found = self._scans.get(id(table))
                if found is None:
                    raise NotMergeable(f"it reads the CTE {table.name}")
                if found is not scan and id(table) not in self._everywhere:
                    raise NotMergeable(f"{table.name} is spread as well")
                if found is not scan:
                    others.append(found)
        return Block(select, scope, scan, tuple(others))

    def _check_parts(self, block: Block) -> None:
        """Every clause must be found in the text, and say the same wherever it runs."""
        select = block.select
        clauses = [value for value in select.args.values() if isinstance(value, exp.Expr)]
        nodes = [*select.expressions, *(select.args.get("joins") or ()), *clauses]
        for node in nodes:
            if isinstance(node, exp.Distinct):
                continue
            span = self._text.span(node)
            if span is None:
                raise NotMergeable("it is written in an unusual way")
            words = {word.lower() for word in _WORDS.findall(self._text.text[slice(*span)])}
            if unrepeatable := words & UNREPEATABLE:
                raise NotMergeable(f"{min(unrepeatable)} may differ between executors")
        for node in own_nodes(select):
            if isinstance(node, _NOT_BY_PART):
                raise NotMergeable(f"it has {type(node).__name__.upper()}")
            if isinstance(node, exp.Dot) and not isinstance(node.expression, exp.Identifier):
                raise NotMergeable("it calls a function behind a dot")
            if isinstance(node, exp.Func) and not is_aggregate(node):
                span = self._text.span(node)
                name = call_name(self._text.text[slice(*span)]) if span else ""
                if name in AGGREGATES or (span is None and isinstance(node, exp.Anonymous)):
                    raise NotMergeable(f"{name or 'a function'} is computed over all rows at once")

    def _check_subqueries(self, block: Block) -> None:
        """Each executor runs them for itself, so they must have one answer only."""
        for part in _row_parts(block.select):
            for query in part.find_all(exp.Query):
                distinct = query.args.get("distinct")
                if (
                    query.args.get("limit")
                    or query.args.get("offset")
                    or query.find(exp.Window)
                    or (distinct is not None and distinct.args.get("on"))
                ):
                    raise NotMergeable("a subquery's rows depend on their order")
                for node in query.find_all(exp.Func):
                    span = self._text.span(node)
                    name = call_name(self._text.text[slice(*span)]) if span else ""
                    if (is_aggregate(node) or name in AGGREGATES) and name not in _ONE_ANSWER:
                        raise NotMergeable(f"{name or 'an aggregate'} depends on the rows' order")

    def _check_columns(self, block: Block) -> None:
        """No column may come from outside the block, nor one of its rows from an alias."""
        if not is_closed(block.select, self._scans):
            raise NotMergeable("where one of its columns comes from is not plain to see")
        for part in _row_parts(block.select):
            for node in own_nodes(part):
                is_column = isinstance(node, exp.Column) and not isinstance(node.this, exp.Star)
                if is_column and block.scope.resolve(node) is None:
                    raise NotMergeable(f"{node.name} is not a column of its tables")

    def _read_groups(self, block: Block) -> None:
        select = block.select
        calls = [node for part in _value_parts(select) for node in _calls_in(part)]
        group = select.args.get("group")
        if group is None and not calls and not select.args.get("having"):
            if select.args.get("distinct") is None:
                return
            block.keys = [_bare(item) for item in select.expressions]
        elif group is not None:
            block.keys = self._group_keys(block, group)
        block.is_grouped = True
        if any(key.find(exp.Star) for key in block.keys):
            raise NotMergeable("it has a * beside its groups")
        if any(key.find(exp.Placeholder) for key in block.keys):
            raise NotMergeable("it groups by a parameter")
        for node in calls:
            self._read_call(block, node)

    def _group_keys(self, block: Block, group: exp.Expr) -> list[exp.Expr]:
        items = block.select.expressions
        if any(value for key, value in group.args.items() if key not in {"expressions", "all"}):
            raise NotMergeable("it has several groupings at once")
        if group.args.get("all"):
            if group.expressions:
                raise NotMergeable("it has GROUP BY ALL with more behind it")
            keys = [_bare(item) for item in items if not any(_calls_in(item))]
            if not all(key.find(exp.Column) for key in keys):
                raise NotMergeable("it groups by a constant")
            return keys
        keys = []
        for element in group.expressions:
            if isinstance(element, exp.Cube | exp.Rollup | exp.GroupingSets | exp.Tuple):
                raise NotMergeable("it has several groupings at once")
            keys.append(self._group_key(block, element))
        return keys

    def _group_key(self, block: Block, element: exp.Expr) -> exp.Expr:
        items = block.select.expressions
        if isinstance(element, exp.Literal):
            position = int(element.name) if element.name.isdigit() else 0
            if element.is_string or not 1 <= position <= len(items):
                raise NotMergeable("it groups by a constant")
            return _bare(items[position - 1])
        if isinstance(element, exp.Column) and block.scope.resolve(element) is None:
            named = [i for i in items if i.alias.lower() == element.name.lower()]
            if element.table or len(named) != 1:
                raise NotMergeable(f"{element.name} is not a column of its tables")
            return _bare(named[0])
        return element

    def _read_call(self, block: Block, node: exp.Expr) -> None:
        text = self._text.text[slice(*self._span(node))]
        argument = distinct_argument(node, text)
        if argument is not None:
            if argument not in block.keys[len(block.keys) - block.hidden :]:
                block.keys.append(argument)
                block.hidden += 1
            if block.hidden > _MAX_DISTINCT:
                raise NotMergeable("it counts the distinct values of many expressions")
            hidden = block.keys[len(block.keys) - block.hidden :]
            place = len(block.keys) - block.hidden + hidden.index(argument)
            block.calls.append(Call(node, None, place))
            return
        function = node.this if isinstance(node, exp.Filter) else node
        kind = type_of(function.this, block.scope)
        if kind not in {"", NUMBER} and call_name(text) == "avg":
            kind = kind if may_average(kind) else (NUMBER if _NUMBERS.fullmatch(kind) else "")
        how = aggregate_of(node, text, kind)
        if how is None:
            raise NotMergeable(f"{call_name(text)} is computed over all rows at once")
        block.calls.append(Call(node, how))

    def _read_limit(self, block: Block) -> None:
        total = 0
        for clause in ("limit", "offset"):
            node = block.select.args.get(clause)
            if node is None:
                continue
            value = node.args.get("expression")
            is_number = isinstance(value, exp.Literal) and value.name.isdigit()
            if not is_number or value.is_string or node.args.get("limit_options"):
                raise NotMergeable(f"its {clause.upper()} is not a plain number")
            total += int(value.name)
        if block.select.args.get("limit") is not None:
            block.limit = total

    def _span(self, node: exp.Expr) -> tuple[int, int]:
        span = self._text.span(node)
        if span is None:
            raise NotMergeable("it is written in an unusual way")
        return span


def type_of(node: exp.Expr | None, scope: Scope) -> str:
    """The DuckDB type of a column or cast, or that it is a number; empty: not known."""
    if isinstance(node, exp.Add | exp.Sub | exp.Mul | exp.Div | exp.Neg):
        return NUMBER if _is_number(node, scope) else ""
    while isinstance(node, exp.Paren):
        node = node.this
    if isinstance(node, exp.Cast) and type(node) is exp.Cast:
        name = node.to.sql("duckdb").upper().replace(" ", "")
        return {"INT": "INTEGER"}.get(name, name)
    found = scope.resolve(node) if node is not None else None
    source = next((s for s in scope.sources if found and s.name == found[0]), None)
    if found is None or source is None or source.scan is None:
        return ""
    columns = source.scan.route.columns
    kind = next((c.type for c in columns if c.name.lower() == found[1]), "").replace(" ", "")
    return {"FLOAT": "DOUBLE"}.get(kind, kind)


def _is_number(node: exp.Expr, scope: Scope) -> bool:
    if isinstance(node, exp.Add | exp.Sub | exp.Mul | exp.Div):
        return _is_number(node.this, scope) and _is_number(node.expression, scope)
    if isinstance(node, exp.Paren | exp.Neg):
        return _is_number(node.this, scope)
    if isinstance(node, exp.Literal):
        return not node.is_string
    return bool(_NUMBERS.fullmatch(type_of(node, scope)))


def own_nodes(node: exp.Expr) -> Iterator[exp.Expr]:
    """`node` and what is below it, without subqueries."""
    pending = [node]
    while pending:
        found = pending.pop()
        yield found
        pending += [child for child in found.iter_expressions() if not isinstance(child, exp.Query)]


def same_column(node: exp.Expr, key: exp.Expr, scope: Scope) -> bool:
    """Whether both are the same column or expression of the block's rows."""
    if isinstance(node, exp.Column) and isinstance(key, exp.Column):
        found: Key | None = scope.resolve(node)
        return found is not None and found == scope.resolve(key)
    return node == key


def _check_joins(joins: list[exp.Join], position: int) -> None:
    for index, join in enumerate(joins, 1):
        method, side, kind = join.method.upper(), join.side.upper(), join.kind.upper()
        is_kept = True
        if index == position:
            is_kept = side in {"", "RIGHT"} and kind in {"", "INNER", "CROSS", "OUTER"}
            is_kept = is_kept and method in {"", "NATURAL"}
        elif index > position:
            is_kept = side in {"", "LEFT"} and method in {"", "NATURAL", "ASOF"}
        if not is_kept or method == "POSITIONAL":
            raise NotMergeable("its join needs all rows of the spread table at once")


def _row_parts(select: exp.Select) -> list[exp.Expr]:
    """What makes the rows, before they are grouped, ordered or cut."""
    parts = [select.args["from_"], *(select.args.get("joins") or ()), *select.expressions]
    parts += [select.args[name] for name in ("where",) if select.args.get(name)]
    return parts


def _value_parts(select: exp.Select) -> list[exp.Expr]:
    """Where aggregates may stand."""
    clauses = [select.args[name] for name in ("having", "order") if select.args.get(name)]
    return [*select.expressions, *clauses]


def _calls_in(part: exp.Expr) -> Iterator[exp.Expr]:
    pending = [part]
    while pending:
        node = pending.pop()
        if is_aggregate(node):
            yield node
            continue
        pending += [child for child in node.iter_expressions() if not isinstance(child, exp.Query)]


def _bare(item: exp.Expr) -> exp.Expr:
    return item.this if isinstance(item, exp.Alias) else item
