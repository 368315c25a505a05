"""What is done to every column of a frame on its own: operators, conversions, cumulatives."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import Any, Self

from accel_dask.client.arguments import explained
from accel_dask.client.lazy import Lazy
from accel_dask.client.series import Series
from accel_dask.client.unsupported import no_inplace, refuse
from accel_dask.client.view import Item


@explained("DataFrame")
class ColumnWise(Lazy):
    """Frames as far as their columns do not meet."""

    __hash__ = None  # type: ignore[assignment]

    def _each(self, what: str, change: Callable[[Series, Hashable], Series]) -> Self:
        """Every column changed by `change`, which gets it and its label."""
        view = self._ready(what)
        rows, items = view.rows, []
        for item in view.columns:
            made = change(Series(self._session, view.with_columns((item,))), item.label)
            rows = made._view.rows
            items.append(Item(item.label, made._expr))
        return self._like(replace(view, rows=rows, columns=tuple(items)))

    def _column_of(self, other: Any, label: Hashable, what: str) -> Any:
        """What stands beside the column `label`: the same column of another frame, or a value."""
        if not isinstance(other, ColumnWise):
            return other
        view = other._ready(what)
        if set(view.labels) != set(self._view.labels):
            raise refuse(f"{what} of frames with different columns", "select the same ones of both")
        return Series(other._session, view.with_columns((view.get(label),)))

    def _operate(self, name: str, other: Any, *, flip: bool = False) -> Self:
        if isinstance(other, Series):
            raise refuse(
                f"{name} of a frame and a column, which pandas aligns with the frame's columns",
                "operate on one column after the other: df[name] * other",
            )
        function = getattr(operator, name)

        def change(column: Series, label: Hashable) -> Series:
            beside = self._column_of(other, label, name)
            made: Series = function(beside, column) if flip else function(column, beside)
            return made

        return self._each(name, change)

    def __add__(self, other: Any) -> Self:
        return self._operate("add", other)

    def __radd__(self, other: Any) -> Self:
        return self._operate("add", other, flip=True)

    def __sub__(self, other: Any) -> Self:
        return self._operate("sub", other)

    def __rsub__(self, other: Any) -> Self:
        return self._operate("sub", other, flip=True)

    def __mul__(self, other: Any) -> Self:
        return self._operate("mul", other)

    def __rmul__(self, other: Any) -> Self:
        return self._operate("mul", other, flip=True)

    def __truediv__(self, other: Any) -> Self:
        return self._operate("truediv", other)

    def __rtruediv__(self, other: Any) -> Self:
        return self._operate("truediv", other, flip=True)

    def __floordiv__(self, other: Any) -> Self:
        return self._operate("floordiv", other)

    def __mod__(self, other: Any) -> Self:
        return self._operate("mod", other)

    def __pow__(self, other: Any) -> Self:
        return self._operate("pow", other)

    def __lt__(self, other: Any) -> Self:
        return self._operate("lt", other)

    def __le__(self, other: Any) -> Self:
        return self._operate("le", other)

    def __gt__(self, other: Any) -> Self:
        return self._operate("gt", other)

    def __ge__(self, other: Any) -> Self:
        return self._operate("ge", other)

    def __eq__(self, other: object) -> Self:  # type: ignore[override]
        return self._operate("eq", other)

    def __ne__(self, other: object) -> Self:  # type: ignore[override]
        return self._operate("ne", other)

    def __and__(self, other: Any) -> Self:
        return self._operate("and_", other)

    def __or__(self, other: Any) -> Self:
        return self._operate("or_", other)

    def __invert__(self) -> Self:
        return self._each("~", lambda column, _: ~column)

    def __neg__(self) -> Self:
        return self._each("-", lambda column, _: -column)

    add, sub, mul, div, truediv = __add__, __sub__, __mul__, __truediv__, __truediv__
    floordiv, mod, pow = __floordiv__, __mod__, __pow__
    lt, le, gt, ge, eq, ne = __lt__, __le__, __gt__, __ge__, __eq__, __ne__

    def abs(self) -> Self:
        """Absolute values."""
        return self._each("abs", lambda column, _: column.abs())

    def isna(self) -> Self:
        """Whether each value is missing."""
        return self._each("isna", lambda column, _: column.isna())

    def notna(self) -> Self:
        """Whether each value is there."""
        return self._each("notna", lambda column, _: column.notna())

    isnull, notnull = isna, notna

    def isin(self, values: Any) -> Self:
        """Whether each value is among `values`, a list, or a dict of lists by column."""
        by_label = values if isinstance(values, Mapping) else None
        return self._each(
            "isin",
            lambda column, label: column.isin(
                values if by_label is None else by_label.get(label, [])
            ),
        )

    def round(self, decimals: Any = 0) -> Self:
        """Number columns rounded, by a number or a dict."""

        def change(column: Series, label: Hashable) -> Series:
            digits = decimals.get(label) if isinstance(decimals, Mapping) else decimals
            is_number = column._expr.dtype.is_number
            return column.round(digits) if digits is not None and is_number else column

        return self._each("round", change)

    def clip(self, lower: Any = None, upper: Any = None) -> Self:
        """Values below `lower` or above `upper` replaced by it."""
        return self._each("clip", lambda column, _: column.clip(lower, upper))

    def astype(self, dtype: Any) -> Self:
        """Columns converted, all or by a dict."""
        wanted = dtype if isinstance(dtype, Mapping) else None
        for label in wanted or ():
            self._view.get(label)

        def change(column: Series, label: Hashable) -> Series:
            if wanted is None:
                return column.astype(dtype)
            return column.astype(wanted[label]) if label in wanted else column

        return self._each("astype", change)

    def fillna(self, value: Any, *, inplace: bool = False) -> Self:
        """Missing values replaced, in all columns or by a dict in some."""
        no_inplace(inplace)
        by_label = value if isinstance(value, Mapping) else None

        def change(column: Series, label: Hashable) -> Series:
            if by_label is None:
                return column.fillna(self._column_of(value, label, "fillna"))
            return column.fillna(by_label[label]) if label in by_label else column

        return self._each("fillna", change)

    def replace(self, to_replace: Any, value: Any = None) -> Self:
        """Values replaced, by a dict or by a value (or values) and what replaces it."""
        if isinstance(to_replace, Mapping) and any(
            isinstance(one, Mapping) for one in to_replace.values()
        ):
            raise refuse("replace with a dict by column", "replace in one column after the other")
        return self._each("replace", lambda column, _: column.replace(to_replace, value))

    def where(self, cond: Any, other: Any = None) -> Self:
        """Values where `cond`, a column or a frame, holds, else `other`."""
        return self._each(
            "where",
            lambda column, label: column.where(
                self._column_of(cond, label, "where"), self._column_of(other, label, "where")
            ),
        )

    def mask(self, cond: Any, other: Any = None) -> Self:
        """`other` where `cond`, a column or a frame, holds, else the values."""
        return self._each(
            "mask",
            lambda column, label: column.mask(
                self._column_of(cond, label, "mask"), self._column_of(other, label, "mask")
            ),
        )

    # In the order of rows

    def shift(self, periods: int = 1, fill_value: Any = None) -> Self:
        """The values `periods` rows before."""
        return self._each("shift", lambda column, _: column.shift(periods, fill_value))

    def diff(self, periods: int = 1) -> Self:
        """The differences to the values `periods` rows before."""
        return self._each("diff", lambda column, _: column.diff(periods))

    def pct_change(self, periods: int = 1) -> Self:
        """The relative changes from the values `periods` rows before."""
        return self._each("pct_change", lambda column, _: column.pct_change(periods))

    def cumsum(self) -> Self:
        """The sums up to each row."""
        return self._each("cumsum", lambda column, _: column.cumsum())

    def cummax(self) -> Self:
        """The greatest values up to each row."""
        return self._each("cummax", lambda column, _: column.cummax())

    def cummin(self) -> Self:
        """The least values up to each row."""
        return self._each("cummin", lambda column, _: column.cummin())

    def cumprod(self) -> Self:
        """The products up to each row."""
        return self._each("cumprod", lambda column, _: column.cumprod())

    def rank(self, method: str = "average", *, ascending: bool = True, pct: bool = False) -> Self:
        """The rank of each value in its column; missing values have none."""
        return self._each(
            "rank", lambda column, _: column.rank(method, ascending=ascending, pct=pct)
        )
