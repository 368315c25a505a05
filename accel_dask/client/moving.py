"""Windows that move along the rows, as pandas asks for them: the last rows, the last days, all rows
up to each; of a column, of a frame, and within groups."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NoReturn

from accel_dask.client import dtypes, frequencies
from accel_dask.client.aggregates import function_name
from accel_dask.client.arguments import explained
from accel_dask.client.expressions import Expr, Frame, Key, Literal, call, literal
from accel_dask.client.nodes import order_of
from accel_dask.client.sql import microseconds
from accel_dask.client.unsupported import refuse, rewrite
from accel_dask.client.view import Item, View, unknown_column
from accel_dask.client.windows import Extent, Over
from accel_dask.errors import UnknownColumn

if TYPE_CHECKING:
    from accel_dask.client.groupby import Groups


@dataclass(frozen=True, slots=True)
class Reach:
    """How far a window reaches, and how many values it must have."""

    min_periods: int
    rows: int | None = None
    """None without `microseconds`: all rows up to each."""
    microseconds: int | None = None
    center: bool = False

    def extent(self, over: Over, time: Expr | None) -> Extent:
        """
        Raises:
            OrderRequired: the rows have no order.
        """
        if self.microseconds is not None:
            assert time is not None
            return over.back_in_time(time, self.microseconds)
        order = over.order("a rolling or expanding window")
        if self.rows is None:
            return Extent(order, Frame(None, 0))
        after = (self.rows - 1) // 2 if self.center else 0
        return Extent(order, Frame(self.rows - 1 - after, after))


def rolling_reach(
    window: Any, min_periods: int | None, *, center: bool, closed: str | None = None
) -> Reach:
    """The reach of `rolling(window)`: a number of rows, or a time such as `7D`.

    Raises:
        UnsupportedOperation: it is neither.
    """
    if closed not in {None, "right"}:
        raise refuse(f"rolling(closed={closed!r})", "windows end with each row, inclusive")
    if isinstance(window, int) and not isinstance(window, bool):
        if window < 1:
            raise refuse(f"rolling({window})", "use a window of at least 1 row")
        least = window if min_periods is None else min_periods
        return Reach(least, rows=window, center=center)
    if center:
        raise refuse(f"rolling({window!r}, center=True)", "use a window that ends with each row")
    if isinstance(window, dt.timedelta):
        length = microseconds(window)
    else:
        length = frequencies.fixed_microseconds(window)
    return Reach(1 if min_periods is None else min_periods, microseconds=length)


def expanding_reach(min_periods: int) -> Reach:
    return Reach(min_periods)


def time_column(reach: Reach, on: Item | None, index: Sequence[Item]) -> Item | None:
    """The time that a window goes by: the column `on`, or the index; None: it counts rows.

    Raises:
        UnsupportedOperation: there is none.
    """
    if reach.microseconds is None:
        return on
    found = on or (index[0] if len(index) == 1 else None)
    if found is None or not found.expr.dtype.is_time:
        raise refuse(
            "rolling over time without a time",
            "name the column: df.rolling('7D', on='ts')[...], or set_index it",
        )
    return found


def moved(
    over: Over, expr: Expr, time: Expr | None, reach: Reach, func: str, **options: Any
) -> Expr:
    """The aggregate `func` of `expr` over the window of each row."""
    at = reach.extent(over, time)
    least = reach.min_periods
    if func == "count":
        found = over.moving("count", expr, at, 0)
        if least > 1:
            # Of a count it is rows, not values, that must be enough.
            rows = over.window("size", dtypes.INT, order=at.order, frame=at.frame)
            found = _where(call("ge", dtypes.BOOL, rows, literal(least)), found)
    else:
        found = over.moving(func, expr, at, least if func == "sum" else max(least, 1), **options)
    if reach.microseconds is None or time is None or not time.may_null:
        return found
    return _where(call("notna", dtypes.BOOL, time), found)


def _where(test: Expr, value: Expr) -> Expr:
    return call("case", value.dtype, test, value, Literal(dtypes.NULL, None))


_FUNCTIONS: Final = frozenset(["sum", "mean", "min", "max", "count", "std", "var", "median"])


@explained("Rolling")
class Aggregates:
    """The aggregates of a moving window."""

    def __getattr__(self, name: str) -> Any:
        error = rewrite(name, "Rolling") if not name.startswith("_") else None
        raise error or AttributeError(f"a window has no {name!r}")

    def _apply(self, func: str, **options: Any) -> Any:
        raise NotImplementedError

    def sum(self) -> Any:
        """The sum."""
        return self._apply("sum")

    def mean(self) -> Any:
        """The mean."""
        return self._apply("mean")

    def min(self) -> Any:
        """The least value."""
        return self._apply("min")

    def max(self) -> Any:
        """The greatest value."""
        return self._apply("max")

    def count(self) -> Any:
        """How many values are there."""
        return self._apply("count")

    def std(self, ddof: int = 1) -> Any:
        """The standard deviation."""
        return self._apply("std", ddof=ddof)

    def var(self, ddof: int = 1) -> Any:
        """The variance."""
        return self._apply("var", ddof=ddof)

    def median(self) -> Any:
        """The median."""
        return self._apply("median")

    def quantile(self, q: float) -> Any:
        """The quantile `q`."""
        return self._apply("quantile", q=q)

    def agg(self, func: Any) -> Any:
        """One aggregate, by its name."""
        if isinstance(func, list | tuple | dict):
            raise refuse("several aggregates of a window", "assign one column for each")
        name = function_name(func)
        if name not in _FUNCTIONS:
            raise refuse(f"{name} of a window", f"use {', '.join(sorted(_FUNCTIONS))}")
        return self._apply(name)

    aggregate = agg

    def apply(self, *_: object, **__: object) -> NoReturn:
        raise refuse("rolling.apply", "use sum, mean, min, max, count, std, var or median")


class Moving(Aggregates):
    """A window along one column."""

    def __init__(
        self, over: Over, expr: Expr, time: Expr | None, reach: Reach, made: Callable[[Expr], Any]
    ) -> None:
        self._over, self._expr, self._time, self._reach = over, expr, time, reach
        self._made = made

    def expr(self, func: str, **options: Any) -> Expr:
        """The aggregate `func` over the window of each row."""
        return moved(self._over, self._expr, self._time, self._reach, func, **options)

    def _apply(self, func: str, **options: Any) -> Any:
        return self._made(self.expr(func, **options))


class MovingFrame(Aggregates):
    """A window along the columns of a frame; one column of it by its label."""

    def __init__(
        self,
        items: Sequence[Item],
        moving_of: Callable[[Item], Moving],
        made: Callable[[Sequence[Item]], Any],
        time: Hashable = None,
    ) -> None:
        self._items = items
        self._moving_of = moving_of
        self._made = made
        self._time = time
        """The column that stays as it is."""

    def __getitem__(self, key: Any) -> Any:
        by_label = {item.label: item for item in self._items}
        if not isinstance(key, list):
            return self._moving_of(_named(by_label, key))
        labels = key if self._time is None or self._time in key else [*key, self._time]
        items = [_named(by_label, label) for label in labels]
        return MovingFrame(items, self._moving_of, self._made, self._time)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and any(item.label == name for item in self._items):
            return self[name]
        return super().__getattr__(name)

    def _apply(self, func: str, **options: Any) -> Any:
        found = []
        for item in self._items:
            if item.label == self._time and self._time is not None:
                found.append(item)
                continue
            found.append(Item(item.label, self._moving_of(item).expr(func, **options)))
        return self._made(found)


def _named(items: dict[Hashable, Item], label: Hashable) -> Item:
    if label not in items:
        raise UnknownColumn(unknown_column(label, list(items)))
    return items[label]


# Of groups


def of_groups(
    groups: Groups, items: Sequence[Item], index: Sequence[Item], reach: Reach, on: Item | None
) -> MovingFrame:
    """Windows of the columns `items` that stay within groups."""
    from accel_dask.client.frame import DataFrame

    time = time_column(reach, on, index)
    over = groups._over_rows()

    def moving_of(item: Item) -> Moving:
        return Moving(
            over, item.expr, time.expr if time is not None else None, reach,
            lambda expr: _grouped_series(groups, item.label, expr, time),
        )  # fmt: skip

    def made(found: Sequence[Item]) -> Any:
        return DataFrame(groups._session, _grouped_view(groups, found, time))

    values = [item for item in items if time is None or item.label != time.label]
    return MovingFrame(values, moving_of, made)


def _grouped_view(groups: Groups, columns: Sequence[Item], time: Item | None) -> View:
    """One group after the other, by its keys and, if any, the time; pandas' number of the row,
    which rows do not have here, is not in the index."""
    rows = groups._grouped_rows()
    keys = [Key(item.expr) for item in groups._keys.items]
    by_time = [Key(time.expr)] if time is not None else []
    index = (*groups._keys.items, *([time] if time is not None else []))
    view = View(rows, tuple(columns), index)
    return view.sorted([*keys, *by_time, *order_of(groups._rows)])


def _grouped_series(groups: Groups, label: Hashable, expr: Expr, time: Item | None) -> Any:
    from accel_dask.client.series import Series

    made = Series(groups._session, _grouped_view(groups, [Item(label, expr)], time))
    made._beside = Series._of(groups._session, groups._rows, label, expr)
    return made
