"""Functions of neighbouring rows: shift, cumulatives, ranks, and what moving windows are made of.

`Over` makes the expressions, for whole columns and within groups; `WindowMethods` are pandas' ways
to ask for them, those of moving windows are in `moving`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from accel_dask.client import dtypes, operations
from accel_dask.client.aggregates import aggregate
from accel_dask.client.arguments import explained
from accel_dask.client.dtypes import DType, Kind
from accel_dask.client.expressions import (
    Aggregation,
    Call,
    Expr,
    Frame,
    Key,
    Literal,
    Window,
    call,
    clean,
    literal,
)
from accel_dask.client.nodes import Node
from accel_dask.client.unsupported import refuse
from accel_dask.client.view import required_order

S = TypeVar("S", bound="WindowMethods")

_PLACES: Final = 1 << 32
"""More rows than any instant has."""
_RANK_METHODS: Final = frozenset(["average", "min", "max", "first", "dense"])


@dataclass(frozen=True, slots=True)
class Extent:
    """An order of rows, and which of them around each one a window takes in."""

    order: tuple[Key, ...]
    frame: Frame


@dataclass(frozen=True, slots=True)
class Over:
    """Rows, and the groups in them that windows stay within."""

    rows: Node
    partition: tuple[Expr, ...] = ()
    keeps_missing: bool = False
    """Whether rows whose group is missing are a group, too."""

    def window(
        self,
        func: str,
        dtype: DType,
        *operands: Expr,
        order: Sequence[Key] = (),
        frame: Frame | None = None,
        options: tuple[tuple[str, Any], ...] = (),
    ) -> Window:
        found = Aggregation(dtype, func, operands, options)
        return Window(dtype, self.rows, found, self.partition, tuple(order), frame)

    def of(self, expr: Expr, order: Sequence[Key] = (), frame: Frame | None = None) -> Expr:
        """`expr`, made of aggregates, with each over a window."""
        if isinstance(expr, Aggregation):
            return Window(expr.dtype, self.rows, expr, self.partition, tuple(order), frame)
        if isinstance(expr, Call):
            inner = [self.of(one, order, frame) for one in expr.operands]
            return call(expr.op, expr.dtype, *inner, options=expr.options)
        return expr

    def grouped(self, expr: Expr) -> Expr:
        """Missing in rows whose group is missing, as pandas has it."""
        if not self.partition or self.keeps_missing:
            return expr
        tests = [call("notna", dtypes.BOOL, one) for one in self.partition]
        test = tests[0] if len(tests) == 1 else call("and", dtypes.BOOL, *tests)
        return call("case", expr.dtype, test, expr, Literal(dtypes.NULL, None))

    def order(self, what: str) -> tuple[Key, ...]:
        return required_order(self.rows, what)

    # What pandas calls them

    def shift(self, expr: Expr, periods: int, fill: Any = None) -> Expr:
        name = "lag" if periods >= 0 else "lead"
        operands: list[Expr] = [expr, literal(abs(periods))]
        if fill is not None:
            beside = operations.common(expr, literal(fill)) if expr.dtype.is_number else expr.dtype
            operands.append(operations.converted(literal(fill), beside))
            expr = operations.converted(expr, beside)
            operands[0] = expr
        found = self.window(name, expr.dtype, *operands, order=self.order("shift"))
        return self.grouped(_plain(found, expr))

    def edge(self, expr: Expr, func: str) -> Expr:
        """The first or last value of all rows that is not missing."""
        keys = self.order(func)
        keys = keys if func == "first" else reversed_keys(keys)
        present = Key(call("isna", dtypes.BOOL, expr))
        everything = Frame(None, None)
        return self.window(
            "first_value", expr.dtype, clean(expr), order=(present, *keys), frame=everything
        )

    def diff(self, expr: Expr, periods: int) -> Expr:
        return operations.arithmetic("sub", expr, self.shift(expr, periods))

    def change(self, expr: Expr, periods: int) -> Expr:
        ratio = operations.arithmetic("div", expr, self.shift(expr, periods))
        return operations.arithmetic("sub", ratio, literal(1))

    def cumulative(self, func: str, expr: Expr) -> Expr:
        if func == "prod" and expr.dtype.kind is Kind.INT:
            raise refuse("cumprod of integers", "use .astype(float) first")
        found = aggregate(func, expr, self.rows)
        everything = self.of(found, self.order(f"cum{func}"), Frame(None, 0))
        return self.grouped(_where_present(expr, everything))

    def count_before(self, *, ascending: bool = True) -> Expr:
        keys = self.order("cumcount")
        keys = keys if ascending else reversed_keys(keys)
        found = self.window("row_number", dtypes.INT, order=keys)
        return operations.arithmetic("sub", found, literal(1))

    def rank(self, expr: Expr, method: str, *, ascending: bool, pct: bool) -> Expr:
        if method not in _RANK_METHODS:
            raise refuse(f"rank(method={method!r})", f"use {', '.join(sorted(_RANK_METHODS))}")
        keys: tuple[Key, ...] = (Key(clean(expr), ascending),)
        if method == "first":
            keys = (*keys, *self.order("rank(method='first')"))
        name = {"dense": "dense_rank", "first": "row_number"}.get(method, "rank")
        found: Expr = self.window(name, dtypes.INT, order=keys)
        if method in {"average", "max"}:
            alike = Over(self.rows, (*self.partition, clean(expr)))
            others = operations.arithmetic(
                "sub", alike.window("size", dtypes.INT), literal(1)
            )  # fmt: skip
            if method == "average":
                others = operations.arithmetic("div", others, literal(2))
            found = operations.arithmetic("add", found, others)
        if pct:
            counted = "nunique" if method == "dense" else "count"
            total = self.window(counted, dtypes.INT, expr)
            found = operations.arithmetic("div", found, total)
        elif found.dtype.kind is not Kind.FLOAT:
            found = call("cast", dtypes.FLOAT, found)
        return self.grouped(_where_present(expr, found))

    def moving(self, func: str, expr: Expr, at: Extent, min_periods: int, **options: Any) -> Expr:
        """The aggregate `func` of the rows of `at`, where at least so many have a value."""
        found = self.of(aggregate(func, expr, self.rows, **options), at.order, at.frame)
        if found.dtype.kind is not Kind.FLOAT:
            found = call("cast", dtypes.FLOAT, found)
        if min_periods < 1:
            return self.grouped(found)
        present = self.window("count", dtypes.INT, expr, order=at.order, frame=at.frame)
        enough = call("ge", dtypes.BOOL, present, literal(min_periods))
        chosen = call("case", found.dtype, enough, found, Literal(dtypes.NULL, None))
        return self.grouped(chosen)

    def back_in_time(self, time: Expr, microseconds: int) -> Extent:
        """The rows of so long a time up to each: those before it, and of those of the same
        instant the ones that stand before it in the order of rows.

        Instant and place are one number, so that no two rows are peers of each other, which a
        RANGE would take in or leave out together.
        """
        alike = Over(self.rows, (*self.partition, time))
        number = alike.window("row_number", dtypes.INT, order=self.order("rolling over time"))
        place = call("cast", dtypes.HUGE, operations.arithmetic("sub", number, literal(1)))
        instant = call("cast", dtypes.HUGE, operations.microseconds(time))
        shifted = call("mul", dtypes.HUGE, instant, literal(_PLACES))
        # A row exactly so long ago is outside, as in pandas.
        reach = call("add", dtypes.HUGE, literal((microseconds - 1) * _PLACES), place)
        key = Key(call("add", dtypes.HUGE, shifted, place))
        return Extent((key,), Frame(reach, 0, is_range=True))


def _plain(found: Expr, expr: Expr) -> Expr:
    """A value brought from another row may be the NaN that it is there."""
    if not expr.may_nan:
        return found
    return call("nan_guarded", found.dtype, found)


def _where_present(expr: Expr, value: Expr) -> Expr:
    present = call("notna", dtypes.BOOL, expr)
    return call("case", value.dtype, present, value, Literal(dtypes.NULL, None))


def reversed_keys(keys: Sequence[Key]) -> tuple[Key, ...]:
    """The opposite order."""
    return tuple(Key(key.expr, not key.is_ascending, not key.nulls_first) for key in keys)


def share_of_all(rows: Node, expr: Expr) -> Expr:
    """`expr` divided by its sum over all `rows`."""
    total = Over(rows).of(aggregate("sum", expr, rows))
    return operations.arithmetic("div", expr, total)


@explained("Series")
class WindowMethods:
    """pandas' window methods, of a column or of one column of groups."""

    def _over(self, what: str) -> tuple[Over, Expr]:
        view = self._ready(what)  # type: ignore[attr-defined]
        return Over(view.rows), view.columns[0].expr

    def _windowed(self, expr: Expr) -> Any:
        return self._with(expr)  # type: ignore[attr-defined]

    def shift(self, periods: int = 1, fill_value: Any = None) -> Any:
        """The value `periods` rows before."""
        over, expr = self._over("shift")
        return self._windowed(over.shift(expr, periods, fill_value))

    def diff(self, periods: int = 1) -> Any:
        """The difference to the value `periods` rows before."""
        over, expr = self._over("diff")
        return self._windowed(over.diff(expr, periods))

    def pct_change(self, periods: int = 1) -> Any:
        """The relative change from the value `periods` rows before."""
        over, expr = self._over("pct_change")
        return self._windowed(over.change(expr, periods))

    def cumsum(self) -> Any:
        """The sum up to each row."""
        over, expr = self._over("cumsum")
        return self._windowed(over.cumulative("sum", expr))

    def cummax(self) -> Any:
        """The greatest value up to each row."""
        over, expr = self._over("cummax")
        return self._windowed(over.cumulative("max", expr))

    def cummin(self) -> Any:
        """The least value up to each row."""
        over, expr = self._over("cummin")
        return self._windowed(over.cumulative("min", expr))

    def cumprod(self) -> Any:
        """The product up to each row."""
        over, expr = self._over("cumprod")
        return self._windowed(over.cumulative("prod", expr))

    def rank(
        self, method: str = "average", *, ascending: bool = True, pct: bool = False
    ) -> Any:  # fmt: skip
        """The rank of each value; missing values have none."""
        over, expr = self._over("rank")
        return self._windowed(over.rank(expr, method, ascending=ascending, pct=pct))
