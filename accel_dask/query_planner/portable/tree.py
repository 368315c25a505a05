"""The portable query: what every dialect writes, with every choice already made.

Names are our own (`t0`, `c1`), all types are known, stars and USING are gone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from accel_dask.model.ids import DatasetId
from accel_dask.query_planner.portable.types import Kind, SqlType

AGGREGATES: Final = frozenset({"count_star", "count", "sum", "min", "max"})
NARROW_BITS: Final = 63
"""Integers of at most so many bits are computed as 64-bit ones, others as decimals."""


@dataclass(frozen=True, slots=True)
class Node:
    """An expression. What `op` may be is told by `write.py`, where each is written."""

    op: str
    type: SqlType
    args: tuple[Node, ...] = ()
    text: str = ""
    """A literal's value, a column's name, a unit."""
    size: int = 0
    """Of INT the most bits that a value has, of DECIMAL the most digits."""
    is_exact: bool = True
    """False: a double that depends on the order in which it was summed up."""
    is_adaptable: bool = False
    """An integer literal, which takes the type of what it is computed with."""
    query: Query | None = None
    is_constant: bool = False
    """A column of a subquery that has one value in all rows, whatever they are."""

    @property
    def is_wide(self) -> bool:
        """An integer that engines must compute as a decimal."""
        return self.type.kind is Kind.INT and self.size > NARROW_BITS

    @property
    def digits(self) -> int:
        """Of a number other than DOUBLE: the most decimal digits."""
        return digits_of_bits(self.size) if self.type.kind is Kind.INT else self.size


def signed(value: Node, op: str) -> Node:
    """`neg` or `abs` of a number."""
    size = value.size
    if value.type.kind is Kind.INT and size >= NARROW_BITS:
        size += 1  # of the least integer there is no opposite
    return replace(value, op=op, args=(value,), text="", query=None, size=size, is_adaptable=False)


def digits_of_bits(bits: int) -> int:
    return bits * 30103 // 100000 + 1


@dataclass(frozen=True, slots=True)
class Output:
    """A column of an answer."""

    name: str
    type: SqlType


@dataclass(frozen=True, slots=True)
class ScannedColumn:
    alias: str
    name: str
    """In the source, and so in the engine's table."""
    type: SqlType


@dataclass(frozen=True, slots=True)
class Scan:
    """A dataset's rows as memory would hold them: its columns, its row filter."""

    alias: str
    dataset: DatasetId
    columns: tuple[ScannedColumn, ...]
    """Those that are used; never none."""
    row_filter: Node | None


@dataclass(frozen=True, slots=True)
class Derived:
    alias: str
    query: Query


@dataclass(frozen=True, slots=True)
class Join:
    kind: str
    """`INNER`, `LEFT` or `CROSS`."""
    relation: Scan | Derived
    on: Node | None


@dataclass(frozen=True, slots=True)
class Item:
    alias: str
    node: Node


@dataclass(frozen=True, slots=True)
class OrderKey:
    node: Node
    is_descending: bool
    nulls_first: bool


@dataclass(frozen=True, slots=True)
class Grouping:
    """What is computed before the items, whose expressions then read `alias`."""

    alias: str
    keys: tuple[Item, ...]
    aggregates: tuple[Item, ...]
    having: Node | None


@dataclass(frozen=True, slots=True)
class Block:
    """One SELECT."""

    relation: Scan | Derived
    joins: tuple[Join, ...]
    where: Node | None
    grouping: Grouping | None
    items: tuple[Item, ...]
    outputs: tuple[Output, ...]
    is_distinct: bool = False
    order: tuple[OrderKey, ...] = ()
    limit: int | None = None
    offset: int = 0

    @property
    def max_rows(self) -> int | None:
        """More rows than this no right answer has."""
        if self.grouping is not None and not self.grouping.keys:
            return 1 if self.limit is None else min(self.limit, 1)
        return self.limit


@dataclass(frozen=True, slots=True)
class UnionBlock:
    """`branches` one after the other; their columns are cast to `outputs`."""

    branches: tuple[Query, ...]
    outputs: tuple[Output, ...]
    is_distinct: bool
    order: tuple[OrderKey, ...] = ()
    limit: int | None = None
    offset: int = 0

    @property
    def max_rows(self) -> int | None:
        return self.limit


Query = Block | UnionBlock
