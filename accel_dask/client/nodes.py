"""Rows and where they come from: frozen relational nodes, lowered to SQL by `lower`.

A *source* (scan, aggregate, join, union, text) has columns of its own. The others pass the rows
of their input on: filtered, sorted, limited; expressions over the input stay valid over them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from accel_dask.client.dtypes import DType, Kind
from accel_dask.client.expressions import Column, Expr, Key


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """Base of all."""


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """A column of a table."""

    name: str
    dtype: DType
    may_nan: bool = True
    may_null: bool = True
    has_missing: bool | None = None
    """In the epoch that served when it was looked at; None: not known."""


@dataclass(frozen=True, slots=True, eq=False)
class Scan(Node):
    """A dataset."""

    table: str
    fields: tuple[Field, ...]
    sort_by: tuple[str, ...] = ()
    """Its declared order; empty: none."""


@dataclass(frozen=True, slots=True, eq=False)
class Text(Node):
    """The rows of a query that the user wrote."""

    sql: str
    fields: tuple[Field, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Filter(Node):
    """The rows for which `predicate` is true, as pandas means it."""

    input: Node
    predicate: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Sort(Node):
    """The rows in an order."""

    input: Node
    keys: tuple[Key, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Limit(Node):
    """The first rows behind `offset`."""

    input: Node
    count: int | None
    offset: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Aggregate(Node):
    """One row per combination of keys; without keys one row."""

    input: Node
    keys: tuple[tuple[str, Expr], ...]
    values: tuple[tuple[str, Expr], ...]
    """Expressions over `Aggregation`s."""


class JoinKind(StrEnum):
    INNER = "inner"
    LEFT = "left"
    RIGHT = "right"
    OUTER = "outer"


class Side(StrEnum):
    """Which rows an output column of a join is of."""

    LEFT = "left"
    RIGHT = "right"
    BOTH = "both"
    """The left one's, where that is missing the right one's."""
    INDICATOR = "indicator"


@dataclass(frozen=True, slots=True, eq=False)
class JoinColumn:
    name: str
    side: Side
    left: Expr | None = None
    right: Expr | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Join(Node):
    """Pairs of rows whose keys are equal; missing keys equal each other."""

    left: Node
    right: Node
    kind: JoinKind
    left_keys: tuple[Expr, ...]
    right_keys: tuple[Expr, ...]
    columns: tuple[JoinColumn, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """The rows that one part of a union gives, and its columns in order."""

    rows: Node
    columns: tuple[Expr, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Union(Node):
    """All rows of several others."""

    names: tuple[str, ...]
    branches: tuple[Branch, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Derived(Node):
    """Named expressions over rows, computed once; their order is kept in hidden columns."""

    input: Node
    columns: tuple[tuple[str, Expr], ...]
    order: tuple[tuple[str, bool, bool], ...] = ()
    """Column, ascending, missing values first."""


def column(source: Node, name: str, dtype: DType, *, may_nan: bool, may_null: bool) -> Column:
    """A reference to a column of `source`."""
    is_float = dtype.kind is Kind.FLOAT
    return Column(dtype, source, name, nan=is_float and may_nan, null=may_null)


def scan_columns(source: Scan | Text) -> tuple[Column, ...]:
    """References to all columns of `source`."""
    return tuple(
        column(source, field.name, field.dtype, may_nan=field.may_nan, may_null=field.may_null)
        for field in source.fields
    )


def input_of(node: Node) -> Node | None:
    """The node whose rows `node` passes on; None for a source."""
    return node.input if isinstance(node, Filter | Sort | Limit) else None


def passes_on(node: Node, ancestor: Node) -> bool:
    """Whether the rows of `node` are rows of `ancestor`."""
    found: Node | None = node
    while found is not None:
        if found is ancestor:
            return True
        found = input_of(found)
    return False


def order_of(node: Node, *, declared: bool = True) -> tuple[Key, ...]:
    """The order that the rows of `node` are in, with `declared` also a dataset's own."""
    found: Node | None = node
    keys: list[Key] = []
    while found is not None:
        if isinstance(found, Sort):
            keys.extend(found.keys)
        elif isinstance(found, Derived):
            by_name = dict(found.columns)
            keys.extend(
                Key(_reference(found, name, by_name[name]), ascending, first)
                for name, ascending, first in found.order
            )
        elif isinstance(found, Scan) and declared:
            by_field = {one.name: one for one in scan_columns(found)}
            keys.extend(Key(by_field[name]) for name in found.sort_by if name in by_field)
        found = input_of(found)
    return tuple(keys)


def _reference(source: Node, name: str, expr: Expr) -> Column:
    return column(source, name, expr.dtype, may_nan=expr.may_nan, may_null=expr.may_null)


def derived_column(source: Derived, name: str) -> Column:
    return _reference(source, name, dict(source.columns)[name])


def aggregate_columns(source: Aggregate) -> dict[str, Column]:
    """References to the keys and values of `source`, by name."""
    named: list[tuple[str, Expr]] = [*source.keys, *source.values]
    return {name: column(source, name, one.dtype, may_nan=one.may_nan,
                         may_null=one.may_null) for name, one in named}  # fmt: skip
