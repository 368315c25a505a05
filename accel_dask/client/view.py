"""What a frame or series stands on: rows, and labelled expressions over them. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from accel_dask.client import nodes
from accel_dask.client.dtypes import Kind
from accel_dask.client.expressions import Column, Expr, Key, walk
from accel_dask.client.nodes import Derived, Filter, Limit, Node, Sort
from accel_dask.errors import (
    AlignmentError,
    OrderRequired,
    UnknownColumn,
    UnsupportedOperation,
)

MAX_SIZE: Final = 150
"""Nodes of an expression from which on it is computed in a subquery of its own, so that
expressions that use one another several times do not grow without end."""


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """A column of a frame."""

    label: Hashable
    expr: Expr


@dataclass(frozen=True, slots=True, eq=False)
class Finish:
    """A last step on the fetched, bounded answer, such as pivoting it."""

    what: str
    """For messages, such as `pivot_table`."""
    apply: Callable[[Any], Any]
    """Takes and gives a pandas frame or series."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """Rows and what is shown of them."""

    rows: Node
    columns: tuple[Item, ...]
    index: tuple[Item, ...] = ()
    finish: Finish | None = None

    @property
    def items(self) -> tuple[Item, ...]:
        return (*self.index, *self.columns)

    @property
    def labels(self) -> tuple[Hashable, ...]:
        return tuple(item.label for item in self.columns)

    def flat(self) -> View:
        """With its index as the first columns."""
        depth = {len(one) if isinstance(one, tuple) else 1 for one in self.labels}
        levels = depth.pop() if len(depth) == 1 else 1
        taken = [
            Item((one.label, *[""] * (levels - 1)) if levels > 1 else one.label, one.expr)
            for one in self.index
        ]
        return replace(self, columns=(*taken, *self.columns), index=())

    def find(self, label: Hashable) -> Item | None:
        return next((item for item in self.columns if item.label == label), None)

    def find_in_index(self, label: Hashable) -> Item | None:
        return next((item for item in self.index if item.label == label), None)

    def get(self, label: Hashable) -> Item:
        """The column `label`.

        Raises:
            UnknownColumn: there is none; similar ones are named.
        """
        found = self.find(label)
        if found is None:
            raise UnknownColumn(unknown_column(label, self.labels))
        return found

    def with_columns(self, columns: Iterable[Item]) -> View:
        return replace(self, columns=tuple(columns))

    def with_column(self, label: Hashable, expr: Expr) -> View:
        """With `label` replaced in its place, or added at the end."""
        item = Item(label, expr)
        if self.find(label) is None:
            made = self.with_columns((*self.columns, item))
        else:
            made = self.with_columns(item if c.label == label else c for c in self.columns)
        return settled(made) if expr.size > MAX_SIZE else made

    def filtered(self, predicate: Expr) -> View:
        return replace(self, rows=Filter(self.rows, predicate))

    def sorted(self, keys: Sequence[Key]) -> View:
        return replace(self, rows=Sort(self.rows, tuple(keys)))

    def limited(self, count: int | None, offset: int = 0) -> View:
        return replace(self, rows=Limit(self.rows, count, offset))

    def ordered(self, what: str) -> View:
        """With its order, if it is a dataset's own, made explicit.

        Raises:
            OrderRequired: it has none.
        """
        if nodes.order_of(self.rows, declared=False):
            return self
        return self.sorted(required_order(self.rows, what))


def required_order(rows: Node, what: str) -> tuple[Key, ...]:
    """The order of `rows`.

    Raises:
        OrderRequired: they have none.
    """
    keys = nodes.order_of(rows)
    if not keys:
        raise OrderRequired(
            f"{what} depends on the order of rows, and these have none: call "
            ".sort_values(...) first, or declare the dataset's sort_by"
        )
    return keys


def settled(view: View) -> View:
    """The same view with every column computed once, in a subquery."""
    columns: list[tuple[str, Expr]] = [
        (f"{i}", item.expr) for i, item in enumerate(view.items)
    ]  # fmt: skip
    order = []
    for i, key in enumerate(nodes.order_of(view.rows)):
        columns.append((f"order{i}", key.expr))
        order.append((f"order{i}", key.is_ascending, key.nulls_first))
    source = Derived(view.rows, tuple(columns), tuple(order))
    items = [
        Item(item.label, nodes.derived_column(source, f"{i}")) for i, item in enumerate(view.items)
    ]
    # The explicit order of the rows goes on; a dataset's own stays what it was: implied.
    made = View(source, tuple(items[len(view.index) :]), tuple(items[: len(view.index)]))
    if nodes.order_of(view.rows, declared=False):
        return made.sorted(nodes.order_of(source))
    return made


def meeting(rows: Node, other: Node, expr: Expr) -> Node | None:
    """The rows over which `expr`, a value of each row of `other`, stands beside values of `rows`,
    in the order of `rows`; None: they are not the same rows."""
    if other is rows or nodes.passes_on(rows, other) or not walk_columns(expr):
        return rows
    found: Node | None = other
    while isinstance(found, Sort):
        found = found.input
        if found is rows:
            # `df["x"] = df.sort_values("t").y.shift()`: pandas puts values back by index.
            order = nodes.order_of(rows, declared=False)
            return Sort(other, order) if order else other
    return None


def walk_columns(expr: Expr) -> bool:
    """Whether any column is in `expr`."""
    return any(isinstance(one, Column) for one in walk(expr))


def not_aligned(what: str) -> AlignmentError:
    return AlignmentError(
        f"{what}: the two are not of the same rows. pandas would align them by index; here rows "
        "have no index. Filter or sort after combining them, or use merge on a key"
    )


def unknown_column(label: Hashable, labels: Sequence[Hashable]) -> str:
    """`no column 'dely'; did you mean 'delay'?`"""
    known = [str(one) for one in labels]
    close = difflib.get_close_matches(str(label), known, n=3, cutoff=0.6)
    if not close:
        low = {one.lower(): one for one in known}
        close = [low[str(label).lower()]] if str(label).lower() in low else []
    if close:
        hint = f"did you mean {' or '.join(repr(one) for one in close)}?"
    else:
        hint = f"there are {', '.join(repr(one) for one in known[:20])}"
    return f"no column {label!r}; {hint}"


def refuse_finished(view: View, what: str) -> None:
    """Raise if `view` is finished on the client, so that nothing can follow in SQL."""
    if view.finish is not None:
        raise UnsupportedOperation(
            f"{what} after {view.finish.what}: its last step is made on the fetched answer; call "
            ".compute() first and go on in pandas"
        )


def key_expr(expr: Expr, what: str) -> Expr:
    """Checks that `expr` can be grouped, joined or sorted by."""
    if expr.dtype.kind is Kind.OTHER:
        raise UnsupportedOperation(f"{what} by a {expr.dtype.sql} column is not served")
    return expr
