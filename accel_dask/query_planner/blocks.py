"""Which SELECTs of a query can be answered part by part, and what stands in the way.

A block reads one table that is spread over executors; everything else that it reads, each of them
has. Every row of the result of its FROM and WHERE comes from one row of the spread table, so that
the rows of all executors together are the block's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from sqlglot import exp

from accel_dask.query_planner.aggregates import (
    NUMBER,
    Aggregate,
    aggregate_of,
    call_name,
    calls_in,
    distinct_argument,
    function_of,
    is_aggregate,
    is_grouping,
    may_average,
)
from accel_dask.query_planner.functions import AGGREGATES, UNREPEATABLE
from accel_dask.query_planner.physical import SplicedText
from accel_dask.query_planner.plan import Scan
from accel_dask.query_planner.scopes import Key, Scope, is_closed

_CLAUSE_LIST: Final = """
distinct expressions from_ group having joins limit offset order qualify where
"""
_CLAUSES: Final = frozenset(_CLAUSE_LIST.split())
_SOURCE_CLAUSES: Final = _CLAUSES | {"windows"}
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
    exp.Unnest,
    exp.Explode,
    exp.WithinGroup,
    exp.RespectNulls,
)
_SETS: Final = (exp.Cube, exp.Rollup, exp.GroupingSets, exp.Tuple)


class NotMergeable(Exception):
    """Why a SELECT cannot be answered part by part."""


class BlockKind(Enum):
    """What the parts of a block are, in words."""

    ROWS = "chosen rows"
    """Rows of the result."""
    GROUPS = "partial results"
    """Of each group what the part has of it."""
    COMPLETE = "complete results"
    """Rows of the result; each group and each window's partition is in one part."""
    SOURCE = "rows joined and filtered"
    """What FROM and WHERE give; the rest is done by the coordinator."""


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
    kind: BlockKind = BlockKind.ROWS
    keys: list[exp.Expr] = field(default_factory=list)
    """What the rows are grouped by."""
    hidden: int = 0
    """So many of the last keys are there for DISTINCT aggregates only."""
    calls: list[Call] = field(default_factory=list)
    limit: int | None = None
    """Rows that are needed of each part at most, OFFSET included."""

    @property
    def has_sets(self) -> bool:
        """Whether it groups in several ways at once."""
        group = self.select.args.get("group")
        return group is not None and any(isinstance(one, _SETS) for one in group.expressions)


class BlockReader:
    """Looks at the SELECTs of one statement."""

    def __init__(
        self,
        text: SplicedText,
        scans: dict[int, Scan],
        spread: set[int],
        everywhere: set[int],
        disjoint: Callable[[Scan, AbstractSet[str]], frozenset[str]],
    ) -> None:
        """By the ids of their tables' nodes: all scans, those that the coordinator does not have
        whole, and those that every executor has. `disjoint` says of which of some columns of a
        scan, in lower case, no value is in the shards of two parts."""
        self._text = text
        self._scans = scans
        self._spread = spread
        self._everywhere = everywhere
        self._disjoint = disjoint

    def read(self, select: exp.Select) -> Block:
        """A block whose parts are rows of the result, or partial results.

        Raises:
            NotMergeable: why not.
        """
        block = self._rows_of(select, _CLAUSES, _row_parts(select))
        self._check_words(_clauses(select))
        self._check_functions(select)
        self._check_subqueries(_row_parts(select))
        self._check_columns(block, _row_parts(select))
        self._read_groups(block)
        self._read_limit(block)
        return block

    def read_complete(self, select: exp.Select) -> Block:
        """A block whose groups and windows are each in one part.

        Raises:
            NotMergeable: why not.
        """
        parts = _clauses(select)
        block = self._rows_of(select, _CLAUSES, parts)
        if not self._is_complete(block):
            raise NotMergeable("a group of it has rows on several executors")
        self._check_words(parts)
        self._check_subqueries(parts)
        if not is_closed(select, self._scans):
            raise NotMergeable("where one of its columns comes from is not plain to see")
        if not select.args.get("group") and any(
            call for part in value_parts(select) for call in calls_in(part)
        ):
            raise NotMergeable("it aggregates all rows")
        block.kind = BlockKind.COMPLETE
        self._read_limit(block)
        return block

    def read_source(self, select: exp.Select) -> Block:
        """A block whose FROM and WHERE alone are answered part by part.

        Raises:
            NotMergeable: why not.
        """
        parts = source_parts(select)
        block = self._rows_of(select, _SOURCE_CLAUSES, parts)
        self._check_words(parts)
        self._check_functions(*parts)
        self._check_subqueries(parts)
        self._check_columns(block, parts)
        if any(not _is_keyed(join, block.scope) for join in select.args.get("joins") or ()):
            raise NotMergeable("its join may make more rows than the tables have")
        block.kind = BlockKind.SOURCE
        return block

    def _rows_of(self, select: exp.Select, clauses: frozenset[str], parts: list[exp.Expr]) -> Block:
        """The block, if its clauses are among these, and the tables in `parts` are its own."""
        for clause, value in select.args.items():
            if value and clause not in clauses:
                raise NotMergeable(f"it has {clause.rstrip('_').upper()}")
        distinct = select.args.get("distinct")
        if distinct is not None and distinct.args.get("on") and "windows" not in clauses:
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
        for part in parts:
            for table in part.find_all(exp.Table):
                found = self._scans.get(id(table))
                if found is None:
                    raise NotMergeable(f"it reads the CTE {table.name}")
                if found is not scan and id(table) not in self._everywhere:
                    raise NotMergeable(f"{table.name} is spread as well")
                if found is not scan:
                    others.append(found)
        return Block(select, scope, scan, tuple(others))

    def _is_complete(self, block: Block) -> bool:
        """Whether rows of a group, or of a window's partition, are all in one part."""
        group = block.select.args.get("group")
        windows = [
            node
            for part in value_parts(block.select)
            for node in own_nodes(part)
            if isinstance(node, exp.Window)
        ]
        if (group is None and not windows) or block.has_sets:
            return False
        keys = [self._group_keys(block, group)] if group is not None else []
        keys += [list(window.args.get("partition_by") or ()) for window in windows]
        name = block.spread.reference.node.alias_or_name.lower()
        columns = [
            {
                key[1]
                for key in map(block.scope.resolve, found)
                if key is not None and key[0] == name
            }
            for found in keys
        ]
        if not all(columns):
            return False
        whole = self._disjoint(block.spread, set().union(*columns))
        return all(found & whole for found in columns)

    def _check_words(self, parts: list[exp.Expr]) -> None:
        """Every clause must be found in the text, and say the same wherever it runs."""
        for node in parts:
            if isinstance(node, exp.Distinct):
                continue
            words = {
                word.lower() for word in _WORDS.findall(self._text.text[slice(*self._span(node))])
            }
            if unrepeatable := words & UNREPEATABLE:
                raise NotMergeable(f"{min(unrepeatable)} may differ between executors")

    def _check_functions(self, *parts: exp.Expr) -> None:
        for node in (node for part in parts for node in own_nodes(part)):
            if isinstance(node, _NOT_BY_PART):
                raise NotMergeable(f"it has {type(node).__name__.upper()}")
            if isinstance(node, exp.Dot) and not isinstance(node.expression, exp.Identifier):
                raise NotMergeable("it calls a function behind a dot")
            if isinstance(node, exp.Func) and not is_aggregate(node) and not is_grouping(node):
                span = self._text.span(node)
                name = call_name(self._text.text[slice(*span)]) if span else ""
                if name in AGGREGATES or (span is None and isinstance(node, exp.Anonymous)):
                    raise NotMergeable(f"{name or 'a function'} is computed over all rows at once")

    def _check_subqueries(self, parts: list[exp.Expr]) -> None:
        """Each executor runs them for itself, so they must have one answer only."""
        for part in parts:
            for query in part.find_all(exp.Query):
                distinct = query.args.get("distinct")
                if (
                    query.args.get("limit")
                    or query.args.get("offset")
                    or query.find(exp.Window)
                    or (isinstance(distinct, exp.Distinct) and distinct.args.get("on"))
                ):
                    raise NotMergeable("a subquery's rows depend on their order")
                for node in query.find_all(exp.Func):
                    span = self._text.span(node)
                    name = call_name(self._text.text[slice(*span)]) if span else ""
                    if (is_aggregate(node) or name in AGGREGATES) and name not in _ONE_ANSWER:
                        raise NotMergeable(f"{name or 'an aggregate'} depends on the rows' order")

    def _check_columns(self, block: Block, parts: list[exp.Expr]) -> None:
        """No column may come from outside the block, nor one of its rows from an alias."""
        if not is_closed(block.select, self._scans):
            raise NotMergeable("where one of its columns comes from is not plain to see")
        for part in parts:
            for node in own_nodes(part):
                is_column = isinstance(node, exp.Column) and not isinstance(node.this, exp.Star)
                if is_column and block.scope.resolve(node) is None:
                    raise NotMergeable(f"{node.name} is not a column of its tables")

    def _read_groups(self, block: Block) -> None:
        select = block.select
        values = value_parts(select)
        calls = [node for part in values for node in calls_in(part)]
        windows = any(isinstance(node, exp.Window) for part in values for node in own_nodes(part))
        group = select.args.get("group")
        if group is None and not calls and not select.args.get("having"):
            if windows:
                raise NotMergeable("its windows are computed over all rows at once")
            if select.args.get("distinct") is None:
                return
            block.keys = [_bare(item) for item in select.expressions]
        elif group is not None:
            block.keys = self._group_keys(block, group)
        block.kind = BlockKind.GROUPS
        if any(key.find(exp.Star, exp.Window) for key in block.keys):
            raise NotMergeable("it has a * or a window beside its groups")
        if any(key.find(exp.Placeholder) for key in block.keys):
            raise NotMergeable("it groups by a parameter")
        for node in calls:
            self._read_call(block, node)

    def _group_keys(self, block: Block, group: exp.Expr) -> list[exp.Expr]:
        """What its rows are grouped by; of several groupings, all of it."""
        items = block.select.expressions
        if any(value for key, value in group.args.items() if key not in {"expressions", "all"}):
            raise NotMergeable("its GROUP BY is written in an unusual way")
        if group.args.get("all"):
            if group.expressions or block.select.args.get("qualify"):
                raise NotMergeable("it has GROUP BY ALL with more behind it")
            keys = [_bare(item) for item in items if not any(calls_in(item))]
            if not all(key.find(exp.Column) for key in keys):
                raise NotMergeable("it groups by a constant")
            return keys
        keys = []
        for element in group_elements(group):
            key = group_key(block, element)
            if not block.has_sets or not any(same_column(key, one, block.scope) for one in keys):
                keys.append(key)
        return keys

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
        kind = type_of(function_of(node).this, block.scope)
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


def group_key(block: Block, element: exp.Expr) -> exp.Expr:
    """What an element of GROUP BY stands for: a position, an alias or itself."""
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


def _is_keyed(join: exp.Join, scope: Scope) -> bool:
    """Whether a row finds its partners by a value: then they are few, as a rule."""
    if join.args.get("using") or join.method or join.kind.upper() in {"SEMI", "ANTI"}:
        return True
    on = join.args.get("on")
    if on is not None:
        return on.find(exp.EQ) is not None
    where, name = scope.select.args.get("where"), join.this.alias_or_name.lower()
    for node in own_nodes(where) if where is not None else ():
        if isinstance(node, exp.EQ):
            sides = [scope.resolve(side) for side in (node.this, node.expression)]
            names = {side[0] for side in sides if side is not None}
            if len(names) == 2 and name in names:
                return True
    return False


def source_parts(select: exp.Select) -> list[exp.Expr]:
    """What makes the rows that the rest is about."""
    where = select.args.get("where")
    parts = [select.args["from_"], *(select.args.get("joins") or ())]
    return [*parts, where] if where is not None else parts


def _row_parts(select: exp.Select) -> list[exp.Expr]:
    """What makes the rows, before they are grouped, ordered or cut, and the values of them."""
    return [*source_parts(select), *select.expressions]


def _clauses(select: exp.Select) -> list[exp.Expr]:
    """All of it."""
    clauses = [value for value in select.args.values() if isinstance(value, exp.Expr)]
    return [*select.expressions, *(select.args.get("joins") or ()), *clauses]


def value_parts(select: exp.Select) -> list[exp.Expr]:
    """Where aggregates may stand."""
    names = ("having", "qualify", "order")
    clauses = [select.args[name] for name in names if select.args.get(name)]
    return [*select.expressions, *clauses]


def group_elements(group: exp.Expr) -> Iterator[exp.Expr]:
    """What GROUP BY names, within its groupings too."""
    pending = list(group.expressions)
    while pending:
        element = pending.pop(0)
        if isinstance(element, _SETS):
            pending = [*element.expressions, *pending]
        elif isinstance(element, exp.Paren):
            pending.insert(0, element.this)
        else:
            yield element


def _bare(item: exp.Expr) -> exp.Expr:
    return item.this if isinstance(item, exp.Alias) else item
