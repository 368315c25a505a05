"""FROM and JOIN: which relations a SELECT reads, and the names that they give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from sqlglot import exp

from accel_dask.model.ids import DatasetId
from accel_dask.model.snapshot import Column
from accel_dask.query_planner.portable.coerce import compared
from accel_dask.query_planner.portable.expressions import (
    Reader,
    check_no_subquery,
    contains_aggregate,
    reads_column,
)
from accel_dask.query_planner.portable.names_in_scope import Scope, Source
from accel_dask.query_planner.portable.refusals import check_arguments, refuse, told
from accel_dask.query_planner.portable.tree import (
    Derived,
    Join,
    Node,
    Query,
    Scan,
    ScannedColumn,
)
from accel_dask.query_planner.portable.types import BOOL, NULL, Kind, SqlType, type_named

Relation = Scan | Derived
_KINDS: Final = {"": "INNER", "INNER": "INNER", "CROSS": "CROSS", "OUTER": "INNER"}


@dataclass(frozen=True, slots=True)
class FromClause:
    relation: Relation
    joins: tuple[Join, ...]
    scope: Scope


@dataclass(frozen=True, slots=True)
class Table:
    """A dataset as a query sees it."""

    dataset: DatasetId
    columns: tuple[Column, ...]
    row_filter: str | None = None


class Queries(Protocol):
    """What reads a whole query."""

    @property
    def tenant(self) -> str: ...

    def read(self, node: exp.Expr) -> Query: ...

    def cte(self, name: str) -> Query | None: ...

    def table(self, node: exp.Table) -> Table | None: ...

    def row_filter(self, table: Table, source: Source) -> Node | None: ...

    def next_alias(self) -> str: ...


def full_size(kind: SqlType) -> int:
    """Of the values of a column of this type."""
    return kind.width - 1 if kind.kind is Kind.INT else kind.width


class FromReader:
    """Reads the FROM of one SELECT."""

    def __init__(self, queries: Queries, reader_of: Callable[[Scope], Reader]) -> None:
        self._queries = queries
        self._reader_of = reader_of
        self._sources: list[Source] = []
        self._merged: dict[str, Node] = {}

    def read(self, select: exp.Select) -> FromClause:
        from_ = select.args["from_"]
        check_arguments(from_, "this")
        relation = self._relation(from_.this)
        joins = tuple(self._join(one) for one in select.args.get("joins") or ())
        return FromClause(relation, joins, self._scope())

    def _scope(self) -> Scope:
        return Scope(tuple(self._sources), dict(self._merged), self._queries.tenant.lower())

    def _relation(self, node: exp.Expr) -> Relation:
        alias = node.args.get("alias")
        if alias is not None:
            check_arguments(alias, "this")
        if isinstance(node, exp.Subquery):
            check_arguments(node, "this", "alias")
            return self._derived(self._queries.read(node.this), node.alias)
        if not isinstance(node, exp.Table):
            return refuse(told(node))
        check_arguments(node, "this", "db", "catalog", "alias")
        table = self._queries.table(node)
        if table is not None:
            return self._scan(table, node.alias_or_name)
        query = self._queries.cte(node.name.lower())
        if query is None:
            return refuse(f"the table {told(node)}")
        return self._derived(query, node.alias_or_name)

    def _derived(self, query: Query, name: str) -> Derived:
        alias = self._queries.next_alias()
        columns = tuple(
            (
                output.name,
                Node(
                    "column",
                    output.type,
                    text=f"{alias}.c{index}",
                    size=_size(query, index),
                    is_exact=_is_exact(query, index),
                    is_constant=is_constant(query, index),
                ),
            )
            for index, output in enumerate(query.outputs)
        )
        self._sources.append(Source(name.lower(), columns))
        return Derived(alias, query)

    def _scan(self, table: Table, name: str) -> Scan:
        alias = self._queries.next_alias()
        columns, scanned = [], []
        for index, column in enumerate(table.columns):
            kind = type_named(column.type)
            node = Node("unread", NULL, text=f"{column.name} of type {column.type}")
            if kind is not None:
                scanned.append(ScannedColumn(f"c{index}", column.name, kind))
                text = f"{alias}.c{index}"
                node = Node("column", kind, text=text, size=full_size(kind))
            columns.append((column.name, node))
        source = Source(name.lower(), tuple(columns))
        self._sources.append(source)
        row_filter = self._queries.row_filter(table, source)
        return Scan(alias, table.dataset, tuple(scanned), row_filter)

    def _join(self, join: exp.Join) -> Join:
        check_arguments(join, "this", "side", "kind", "on", "using")
        side, kind = join.side.upper(), _KINDS.get(join.kind.upper())
        if kind is None or side not in {"", "LEFT"} or join.this.args.get("joins"):
            refuse(f"{side or join.kind} JOIN", "only inner, left and cross joins are")
        if side == "LEFT":
            kind = "LEFT"
        left = tuple(self._sources)
        relation = self._relation(join.this)
        right = self._sources[-1]
        condition = self._using(join, left, right)
        if join.args.get("on") is not None:
            condition = self._reader_of(self._scope()).condition(join.args["on"])
            if contains_aggregate(condition):
                refuse("an aggregate in ON")
            check_no_subquery(condition)
        if condition is None:
            if kind == "LEFT":
                refuse("a LEFT JOIN without a condition")
            kind = "CROSS"
        assert kind is not None
        return Join(kind, relation, condition)

    def _using(self, join: exp.Join, left: tuple[Source, ...], right: Source) -> Node | None:
        condition: Node | None = None
        before = Scope(left, dict(self._merged), self._queries.tenant.lower())
        for identifier in join.args.get("using") or ():
            name = identifier.name.lower()
            ours = before.column(exp.column(identifier.copy()))
            theirs = right.find(name)
            if ours is None or theirs is None:
                return refuse(f"USING ({name})", "both sides must have the column")
            pair = compared(ours, theirs, "=")
            if not (ours.is_exact and theirs.is_exact) or ours.type != theirs.type:
                refuse(f"USING ({name})", "the columns must be of one type, and no rounded doubles")
            equal = Node("eq", BOOL, pair)
            condition = equal if condition is None else Node("and", BOOL, (condition, equal))
            self._merged[name] = ours
        return condition


def _size(query: Query, index: int) -> int:
    items = getattr(query, "items", None)
    if items is not None:
        return int(items[index].node.size)
    return max(_size(branch, index) for branch in getattr(query, "branches", ())) or full_size(
        query.outputs[index].type
    )


def is_constant(query: Query, index: int) -> bool:
    items = getattr(query, "items", None)
    if items is not None:
        return not reads_column(items[index].node)
    return all(is_constant(branch, index) for branch in getattr(query, "branches", ()))


def _is_exact(query: Query, index: int) -> bool:
    items = getattr(query, "items", None)
    if items is not None:
        return bool(items[index].node.is_exact)
    return all(_is_exact(branch, index) for branch in getattr(query, "branches", ()))
