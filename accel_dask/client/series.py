"""A lazy column, with pandas' operators and methods."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from accel_dask.client import dtypes, operations
from accel_dask.client.aggregates import aggregate, count_rows, function_name
from accel_dask.client.arguments import explained
from accel_dask.client.dtypes import Kind
from accel_dask.client.expressions import Expr, InRows, Key, Literal, call, literal
from accel_dask.client.lazy import Lazy
from accel_dask.client.moving import (
    Moving,
    Reach,
    expanding_reach,
    rolling_reach,
    time_column,
)
from accel_dask.client.nodes import Aggregate, Node, aggregate_columns
from accel_dask.client.unsupported import no_inplace, refuse, rewrite
from accel_dask.client.view import Item, View, key_expr, meeting, not_aligned, walk_columns
from accel_dask.client.windows import WindowMethods
from accel_dask.errors import UnsupportedOperation

if TYPE_CHECKING:
    from accel_dask.client.datetimes import DateTimes
    from accel_dask.client.frame import DataFrame
    from accel_dask.client.session import Session
    from accel_dask.client.strings import Strings


Word = str  # in the class below `str` is the accessor


@explained("Series")
class Series(WindowMethods, Lazy):
    """One column over some rows. Arithmetic with other columns of the same rows, or values."""

    _is_series = True
    _beside: Series | None = None
    """Of a window within groups: the same as a column of the rows that were grouped."""
    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def _of(cls, session: Session, rows: Node, label: Hashable, expr: Expr) -> Series:
        return cls(session, View(rows, (Item(label, expr),)))

    @property
    def name(self) -> Hashable:
        """Its label."""
        return self._view.columns[0].label

    @name.setter
    def name(self, label: Hashable) -> None:
        self._view = self._view.with_columns((Item(label, self._expr),))

    @property
    def _expr(self) -> Expr:
        return self._view.columns[0].expr

    @property
    def dtype(self) -> Any:
        """The pandas dtype that a column without missing values gets."""
        from accel_dask.client.materialize import expected_dtype

        return expected_dtype(self._expr)

    def __repr__(self) -> Word:
        return f"<accel Series {self.name!r}: {self._expr.dtype.kind}; .compute() runs it>"

    def __getattr__(self, name: Word) -> NoReturn:
        if name.startswith("_"):
            raise AttributeError(name)
        error = rewrite(name, "Series")
        if error is not None:
            raise error
        raise AttributeError(f"a lazy Series has no {name!r}")

    def __bool__(self) -> NoReturn:
        raise ValueError(
            "a lazy Series has no single truth value; use &, |, ~ or .any(), .all() on it"
        )

    def __iter__(self) -> NoReturn:
        raise refuse("iterating a lazy Series", ".compute() it first")

    def __len__(self) -> int:
        return int(self._scalar(count_rows()))

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise refuse(
            "a lazy Series as a NumPy array",
            "use its own methods (where, mask, clip, arithmetic), or .compute() it first",
        )

    def __array_ufunc__(self, ufunc: Any, method: Word, *inputs: Any, **_: Any) -> Any:
        """A NumPy scalar beside it is a value; functions of arrays are not served."""
        found = _UFUNCS.get(ufunc.__name__) if method == "__call__" and len(inputs) == 2 else None
        if found is None:
            raise refuse(f"np.{ufunc.__name__} of a lazy Series", ".compute() it first")
        left, right = (dtypes.plain(one) for one in inputs)
        if isinstance(left, Series):
            return getattr(left, f"__{found}__")(right)
        return getattr(right, f"__{_REFLECTED.get(found, f'r{found}')}__")(left)

    def _with(self, expr: Expr, label: Hashable = ...) -> Series:
        shown = self.name if label is ... else label
        return self._like(self._view.with_columns((Item(shown, expr),)))

    def _operand(self, other: Any, what: Word) -> tuple[Expr, Node]:
        """`other` as an expression over the rows of one of the two, and those rows."""
        rows = self._ready(what).rows
        if not isinstance(other, Series):
            if isinstance(other, Lazy):
                raise refuse(f"{what} with a whole frame", "name a column of it")
            return literal(other), rows
        other._ready(what)
        met = meeting(rows, other._view.rows, other._expr)
        if met is None:
            # A column of no rows yet, such as a literal, stands beside any.
            met = None if walk_columns(self._expr) else other._view.rows
        if met is not None:
            return other._expr, met
        raise not_aligned(what)

    def _combine(
        self, other: Any, what: Word, make: Callable[[Expr, Expr], Expr], *, flip: bool = False
    ) -> Series:
        expr, rows = self._operand(other, what)
        made = make(expr, self._expr) if flip else make(self._expr, expr)
        same = not isinstance(other, Series) or other.name == self.name
        view = replace(self._view, rows=rows, columns=(Item(self.name if same else None, made),))
        return self._like(view)

    def _arithmetic(self, op: Word, other: Any, *, flip: bool = False) -> Series:
        return self._combine(
            other, op, lambda a, b: operations.arithmetic(op, a, b), flip=flip
        )  # fmt: skip

    def _compare(self, op: Word, other: Any) -> Series:
        return self._combine(other, "a comparison", lambda a, b: operations.compare(op, a, b))

    def _logical(self, op: Word, other: Any) -> Series:
        return self._combine(other, "& | ^", lambda a, b: operations.logical(op, a, b))

    def __add__(self, other: Any) -> Series:
        return self._arithmetic("add", other)

    def __radd__(self, other: Any) -> Series:
        return self._arithmetic("add", other, flip=True)

    def __sub__(self, other: Any) -> Series:
        return self._arithmetic("sub", other)

    def __rsub__(self, other: Any) -> Series:
        return self._arithmetic("sub", other, flip=True)

    def __mul__(self, other: Any) -> Series:
        return self._arithmetic("mul", other)

    def __rmul__(self, other: Any) -> Series:
        return self._arithmetic("mul", other, flip=True)

    def __truediv__(self, other: Any) -> Series:
        return self._arithmetic("div", other)

    def __rtruediv__(self, other: Any) -> Series:
        return self._arithmetic("div", other, flip=True)

    def __floordiv__(self, other: Any) -> Series:
        return self._arithmetic("floordiv", other)

    def __rfloordiv__(self, other: Any) -> Series:
        return self._arithmetic("floordiv", other, flip=True)

    def __mod__(self, other: Any) -> Series:
        return self._arithmetic("mod", other)

    def __rmod__(self, other: Any) -> Series:
        return self._arithmetic("mod", other, flip=True)

    def __pow__(self, other: Any) -> Series:
        return self._arithmetic("pow", other)

    def __rpow__(self, other: Any) -> Series:
        return self._arithmetic("pow", other, flip=True)

    def __lt__(self, other: Any) -> Series:
        return self._compare("lt", other)

    def __le__(self, other: Any) -> Series:
        return self._compare("le", other)

    def __gt__(self, other: Any) -> Series:
        return self._compare("gt", other)

    def __ge__(self, other: Any) -> Series:
        return self._compare("ge", other)

    def __eq__(self, other: object) -> Series:  # type: ignore[override]
        return self._compare("eq", other)

    def __ne__(self, other: object) -> Series:  # type: ignore[override]
        return self._compare("ne", other)

    def __and__(self, other: Any) -> Series:
        return self._logical("and", other)

    def __rand__(self, other: Any) -> Series:
        return self._logical("and", other)

    def __or__(self, other: Any) -> Series:
        return self._logical("or", other)

    def __ror__(self, other: Any) -> Series:
        return self._logical("or", other)

    def __xor__(self, other: Any) -> Series:
        return self._logical("xor", other)

    def __invert__(self) -> Series:
        return self._with(operations.inverse(self._expr))

    def __neg__(self) -> Series:
        return self._with(operations.negative(self._expr))

    def __abs__(self) -> Series:
        return self.abs()

    def __round__(self, decimals: int = 0) -> Series:
        return self.round(decimals)

    add, sub, mul, div, truediv = __add__, __sub__, __mul__, __truediv__, __truediv__
    radd, rsub, rmul, rdiv, rtruediv = __radd__, __rsub__, __rmul__, __rtruediv__, __rtruediv__
    floordiv, mod, pow, rfloordiv = __floordiv__, __mod__, __pow__, __rfloordiv__
    rmod, rpow, multiply, subtract, divide = __rmod__, __rpow__, __mul__, __sub__, __truediv__
    lt, le, gt, ge, eq, ne = __lt__, __le__, __gt__, __ge__, __eq__, __ne__

    # Values of each row

    def abs(self) -> Series:
        """The absolute value."""
        kind = self._expr.dtype.kind
        if kind not in {Kind.INT, Kind.FLOAT, Kind.DECIMAL, Kind.DURATION}:
            raise refuse(f"abs of a {kind} column", "convert it with .astype")
        return self._with(call("abs", self._expr.dtype, self._expr))

    def round(self, decimals: int = 0) -> Series:
        """Rounded, halves to even."""
        kind = self._expr.dtype.kind
        if kind in {Kind.INT, Kind.BOOL} and decimals >= 0:
            return self
        if kind not in dtypes.NUMBERS:
            raise refuse(f"round of a {kind} column", "convert it with .astype(float)")
        return self._with(call("round", dtypes.FLOAT, self._expr, options=(decimals,)))

    def clip(self, lower: Any = None, upper: Any = None) -> Series:
        """Values below `lower` or above `upper` replaced by it."""
        found = self
        if lower is not None:
            found = found.mask(found < lower, lower)
        if upper is not None:
            found = found.mask(found > upper, upper)
        return found

    def isna(self) -> Series:
        """Whether the value is missing."""
        return self._with(call("isna", dtypes.BOOL, self._expr))

    def notna(self) -> Series:
        """Whether the value is there."""
        return self._with(call("notna", dtypes.BOOL, self._expr))

    isnull, notnull = isna, notna

    def fillna(self, value: Any, *, inplace: bool = False) -> Series:
        """Missing values replaced by `value`, a value or a column of the same rows."""
        no_inplace(inplace)
        return self._combine(value, "fillna", _filled).rename(self.name)

    def combine_first(self, other: Series) -> Series:
        """Missing values replaced by those of `other`."""
        return self.fillna(other)

    def isin(self, values: Any) -> Series:
        """Whether the value is among `values`: a list, or a column of any rows."""
        if isinstance(values, Word):
            raise TypeError("isin takes a list of values, not a text")
        if isinstance(values, Series):
            values._ready("isin")
            self._ready("isin")
            operations.check_alike(self._expr, values._expr, "isin")
            found = InRows(dtypes.BOOL, self._expr, values._view.rows, values._expr)
            return self._with(found)
        return self._with(operations.is_in(self._expr, list(values)))

    def between(self, left: Any, right: Any, inclusive: Word = "both") -> Series:
        """Whether it is between the two."""
        low = self._compare("ge" if inclusive in {"both", "left"} else "gt", left)
        high = self._compare("le" if inclusive in {"both", "right"} else "lt", right)
        return low._logical("and", high)

    def where(self, cond: Series, other: Any = None) -> Series:
        """The value where `cond` holds, else `other`."""
        return self._chosen(cond, other, keep=True)

    def mask(self, cond: Series, other: Any = None) -> Series:
        """`other` where `cond` holds, else the value."""
        return self._chosen(cond, other, keep=False)

    def _chosen(self, cond: Any, other: Any, *, keep: bool) -> Series:
        cond = cond(self) if callable(cond) and not isinstance(cond, Lazy) else cond
        if not isinstance(cond, Series):
            raise refuse("where/mask with a function or array", "pass a comparison of columns")
        condition, rows = self._operand(cond, "where/mask")
        if condition.dtype.kind is not Kind.BOOL:
            raise refuse(f"where/mask by a {condition.dtype.kind} column", "pass a comparison")
        otherwise, other_rows = self._operand(other, "where/mask")
        if other_rows is not self._view.rows:
            met = meeting(rows, other_rows, otherwise)
            if met is None:
                raise not_aligned("where/mask")
            rows = met
        mine = self._expr
        otherwise = _like(otherwise, mine)
        dtype = operations.common(mine, otherwise)
        mine, otherwise = (operations.converted(one, dtype) for one in (mine, otherwise))
        first, second = (mine, otherwise) if keep else (otherwise, mine)
        made = call("case", dtype, condition, first, second)
        return self._like(replace(self._view, rows=rows, columns=(Item(self.name, made),)))

    def case_when(self, caselist: list[tuple[Series, Any]]) -> Series:
        """The value of the first pair whose condition holds, else this one."""
        found = self
        for condition, value in reversed(caselist):
            found = found.mask(condition, value)
        return found

    def replace(self, to_replace: Any, value: Any = None) -> Series:
        """Values replaced, by a dict or by a value (or values) and what replaces it."""
        pairs = _pairs(to_replace, value)
        found = self
        for old, new in reversed(pairs):
            test = self.isna() if dtypes.plain(old) is None else self == old
            found = found.mask(test, new)
        return found

    def map(self, arg: Any) -> Series:
        """Values looked up in the dict `arg`; those not in it become missing."""
        if not isinstance(arg, Mapping):
            raise refuse(
                "map with a function",
                "map a dict, or write where/mask/case_when, str. and dt., or bring a bounded part "
                "to pandas: .head(n).compute().map(...)",
            )
        if not arg:
            return self._with(Literal(dtypes.NULL, None))
        values = [literal(value) for value in arg.values()]
        dtype = operations.common(*values)
        operands: list[Expr] = []
        for key, value in zip(arg, values, strict=True):
            test = self.isna() if dtypes.plain(key) is None else self == key
            operands += (test._expr, operations.converted(value, dtype))
        return self._with(call("case", dtype, *operands, Literal(dtypes.NULL, None)))

    def astype(self, dtype: Any) -> Series:
        """Converted to bool, int, float, str, a datetime or a category."""
        from accel_dask.client.conversions import astype

        return self._with(astype(self._expr, dtype))

    @property
    def str(self) -> Strings:
        """Operations on texts."""
        from accel_dask.client.strings import Strings

        return Strings(self)

    @property
    def dt(self) -> DateTimes:
        """Operations on times and durations."""
        from accel_dask.client.datetimes import DateTimes

        return DateTimes(self)

    def rename(self, index: Hashable = None) -> Series:
        """With another name."""
        if callable(index) or isinstance(index, Mapping | list):
            raise refuse("rename of labels of rows", 'give a name: rename("total")')
        return self._with(self._expr, index)

    def to_frame(self, name: Hashable = None) -> DataFrame:
        """A frame with this as its only column."""
        from accel_dask.client.frame import DataFrame

        label = self.name if name is None else name
        label = 0 if label is None else label
        view = self._view.with_columns((Item(label, self._expr),))
        return DataFrame(self._session, view)

    def reset_index(self, level: Any = None, *, drop: bool = False, name: Hashable = None) -> Any:
        """The index as columns. Of windows within groups, `reset_index(level=0, drop=True)` gives
        the column that stands beside those it was made of."""
        if level is not None:
            if drop and self._beside is not None:
                return self._beside
            raise refuse("reset_index(level=...)", "use reset_index(), then drop columns")
        if drop and self._view.finish is not None:
            return self._without_index(drop=True)
        if drop:
            return self._like(replace(self._view, index=()))
        label = name if name is not None else self.name if self.name is not None else 0
        return self.to_frame(label).reset_index()

    def droplevel(self, level: Any = 0) -> Series:
        """As `reset_index(level=level, drop=True)`."""
        return self.reset_index(level, drop=True)  # type: ignore[no-any-return]

    def copy(self, deep: bool = True) -> Series:
        """Itself: it is immutable."""
        return self

    # Rows

    def __getitem__(self, key: Any) -> Series:
        key = key(self) if callable(key) and not isinstance(key, Lazy) else key
        if not isinstance(key, Series):
            raise refuse("a Series by position or label", "filter it by a comparison")
        return self._of_frame(lambda df: df._filtered(key))

    @property
    def loc(self) -> Series:
        """`s.loc[mask]`."""
        return self

    def dropna(self) -> Series:
        """Without missing values."""
        return self._like(self._view.filtered(self.notna()._expr))

    def sort_values(self, ascending: bool = True, *, na_position: Word = "last") -> Series:
        """In order."""
        return self._of_frame(lambda df: df.sort_values(
            _VALUE, ascending=ascending, na_position=na_position))  # fmt: skip

    def sort_index(self, ascending: bool = True) -> Series:
        """In the order of its index."""
        return self._of_frame(lambda df: df.sort_index(ascending=ascending))

    def head(self, n: int = 5) -> Series:
        """The first rows."""
        return self._of_frame(lambda df: df.head(n))

    def tail(self, n: int = 5) -> Series:
        """The last rows."""
        return self._of_frame(lambda df: df.tail(n))

    def nlargest(self, n: int = 5) -> Series:
        """The largest values, in descending order."""
        return self._of_frame(lambda df: df.nlargest(n, _VALUE))

    def nsmallest(self, n: int = 5) -> Series:
        """The smallest values, in order."""
        return self._of_frame(lambda df: df.nsmallest(n, _VALUE))

    def _of_frame(self, change: Callable[[DataFrame], DataFrame]) -> Series:
        changed = change(self.to_frame(_VALUE))._view
        return self._like(changed.with_columns((Item(self.name, changed.columns[0].expr),)))

    def sample(self, n: int = 1, *, random_state: int | None = None) -> Series:
        """`n` values by chance: the same for the same data and `random_state`."""
        return self._of_frame(lambda df: df.sample(n, random_state=random_state))

    def drop_duplicates(self) -> Series:
        """Each value once, in no order."""
        return self._of_frame(lambda df: df.drop_duplicates())

    def unique(self) -> Any:
        """Each value once, in no order: runs a query and gives an array."""
        return self.drop_duplicates().compute().array

    # Aggregates

    def agg(self, func: Any) -> Any:
        """One aggregate, or several as a series."""
        if isinstance(func, list | tuple):
            from accel_dask.client.summaries import several

            return several(self, [function_name(one) for one in func])
        return self._reduce(function_name(func))

    aggregate = agg

    def _reduce(self, func: Word, **options: Any) -> Any:
        rows = self._ready(func).rows
        return self._scalar(aggregate(func, self._expr, rows, **options))

    def sum(self, *, min_count: int = 0) -> Any:
        """The sum; 0 of nothing."""
        return self._reduce("sum", min_count=min_count)

    def mean(self) -> Any:
        """The mean."""
        return self._reduce("mean")

    def min(self) -> Any:
        """The least value."""
        return self._reduce("min")

    def max(self) -> Any:
        """The greatest value."""
        return self._reduce("max")

    def count(self) -> Any:
        """How many values are not missing."""
        return self._reduce("count")

    def nunique(self, dropna: bool = True) -> Any:
        """How many different values there are."""
        return self._reduce("nunique", **({} if dropna else {"with_missing": True}))

    def std(self, ddof: int = 1) -> Any:
        """The standard deviation."""
        return self._reduce("std", ddof=ddof)

    def var(self, ddof: int = 1) -> Any:
        """The variance."""
        return self._reduce("var", ddof=ddof)

    def sem(self) -> Any:
        """The standard error of the mean."""
        return self._reduce("sem")

    def skew(self) -> Any:
        """The skewness."""
        return self._reduce("skew")

    def kurt(self) -> Any:
        """The excess kurtosis."""
        return self._reduce("kurt")

    kurtosis = kurt

    def median(self) -> Any:
        """The median."""
        return self._reduce("median")

    def prod(self) -> Any:
        """The product; 1 of nothing."""
        return self._reduce("prod")

    def any(self) -> Any:
        """Whether any value is true."""
        return self._reduce("any")

    def all(self) -> Any:
        """Whether all values are true."""
        return self._reduce("all")

    def quantile(self, q: Any = 0.5) -> Any:
        """The quantile `q`, or several as a series."""
        if isinstance(q, float | int):
            return self._reduce("quantile", q=float(q))
        from accel_dask.client.summaries import quantiles

        return quantiles(self, [float(one) for one in q])

    def corr(self, other: Series) -> Any:
        """Pearson's correlation with `other`."""
        return self._paired("corr", other)

    def cov(self, other: Series) -> Any:
        """The covariance with `other`."""
        return self._paired("cov", other)

    def _paired(self, func: Word, other: Series) -> Any:
        from accel_dask.client.expressions import Aggregation

        expr, rows = self._operand(other, func)
        return self._scalar(Aggregation(dtypes.FLOAT, func, (self._expr, expr)), rows)

    @property
    def is_unique(self) -> bool:
        """Whether no value comes twice."""
        return bool(self.nunique(dropna=False) == len(self))

    @property
    def size(self) -> int:
        """How many rows there are: runs a query."""
        return len(self)

    @property
    def empty(self) -> bool:
        """Whether there are no rows: runs a query."""
        return len(self) == 0

    @property
    def shape(self) -> tuple[int]:
        """Its length: runs a query."""
        return (len(self),)

    def describe(self) -> Any:
        """Count, mean, spread and quartiles, as a series."""
        from accel_dask.client.summaries import describe_series

        return describe_series(self)

    def mode(self) -> Series:
        """The most frequent values, in order."""
        from accel_dask.client.summaries import mode

        return mode(self)

    def idxmax(self) -> Any:
        """The label of the index (such as the group) with the greatest value: runs a query."""
        from accel_dask.client.summaries import label_of_extreme

        return label_of_extreme(self, "idxmax", ascending=False)

    def idxmin(self) -> Any:
        """The label of the index (such as the group) with the least value: runs a query."""
        from accel_dask.client.summaries import label_of_extreme

        return label_of_extreme(self, "idxmin", ascending=True)

    def unstack(self, level: Any = -1, fill_value: Any = None) -> DataFrame:
        """The labels of one level of the index as columns."""
        from accel_dask.client.summaries import unstacked

        return unstacked(self, level, fill_value)

    def value_counts(
        self, *, normalize: bool = False, sort: bool = True, ascending: bool = False,
        dropna: bool = True,
    ) -> Series:  # fmt: skip
        """How often each value comes, most frequent first; ties in the order of values."""
        view = self._ready("value_counts")
        expr = key_expr(self._expr, "value_counts")
        rows = view.filtered(self.notna()._expr).rows if dropna else view.rows
        source = Aggregate(rows, (("key", expr),), (("count", count_rows()),))
        columns = aggregate_columns(source)
        counted: Expr = columns["count"]
        found = View(source, (Item("count", counted),), (Item(self.name, columns["key"]),))
        if sort:
            found = found.sorted([Key(counted, ascending), Key(columns["key"])])
        if normalize:
            from accel_dask.client.windows import share_of_all

            found = found.with_columns((Item("proportion", share_of_all(found.rows, counted)),))
        return Series(self._session, found)

    def groupby(self, by: Any, *, sort: bool = True, dropna: bool = True) -> Any:
        """Grouped by other columns of the same rows."""
        from accel_dask.client.groupby import SeriesGroupBy, keys_of

        keys = keys_of(self.to_frame(_VALUE), by)
        return SeriesGroupBy(
            self._session, self._view.rows, keys, Item(self.name, self._expr),
            sort=sort, dropna=dropna,
        )  # fmt: skip

    def resample(self, rule: Any) -> Any:
        """Grouped by bins of the time that is its index, empty ones included."""
        return self.to_frame(_VALUE).resample(rule)[_VALUE]._named(self.name)

    def rolling(self, window: Any, min_periods: int | None = None, center: bool = False,
                closed: Word | None = None) -> Moving:  # fmt: skip
        """A window of the last `window` rows; or, with times as the index, of a time like `7D`."""
        return self._moving(rolling_reach(window, min_periods, center=center, closed=closed))

    def expanding(self, min_periods: int = 1) -> Moving:
        """A window of all rows up to each."""
        return self._moving(expanding_reach(min_periods))

    def _moving(self, reach: Reach) -> Moving:
        over, expr = self._over("a window")
        time = time_column(reach, None, self._view.index)
        return Moving(over, expr, time.expr if time is not None else None, reach, self._windowed)

    @property
    def plot(self) -> Any:
        """pandas' plotting, of the answer."""
        return self.compute().plot


_VALUE = "value"
_UFUNCS = {
    "add": "add", "subtract": "sub", "multiply": "mul", "divide": "truediv",
    "true_divide": "truediv", "floor_divide": "floordiv", "remainder": "mod", "power": "pow",
    "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq",
    "not_equal": "ne", "bitwise_and": "and", "bitwise_or": "or", "logical_and": "and",
    "logical_or": "or",
}  # fmt: skip
_REFLECTED = {"lt": "gt", "le": "ge", "gt": "lt", "ge": "le", "eq": "eq", "ne": "ne"}


def _filled(expr: Expr, value: Expr) -> Expr:
    value = _like(value, expr)
    dtype = operations.common(expr, value)
    return call(
        "coalesce", dtype, operations.converted(expr, dtype), operations.converted(value, dtype)
    )


def _like(value: Expr, beside: Expr) -> Expr:
    """A literal in the type of the column that it is put into."""
    if not isinstance(value, Literal) or value.value is None:
        return value
    if beside.dtype.kind is Kind.CATEGORY:
        return operations.code_of(value, beside.dtype)
    if beside.dtype.is_time:
        return operations.time_literal(value, beside.dtype)
    if beside.dtype.kind is Kind.DECIMAL:
        return operations.as_decimal(value)
    is_whole = isinstance(value.value, float) and value.value.is_integer()
    if beside.dtype.kind is Kind.INT and is_whole:
        return literal(int(value.value))
    return value


def _pairs(to_replace: Any, value: Any) -> list[tuple[Any, Any]]:
    if isinstance(to_replace, Mapping):
        return list(to_replace.items())
    if isinstance(to_replace, list | tuple):
        new = value if isinstance(value, list | tuple) else [value] * len(to_replace)
        if len(new) != len(to_replace):
            raise UnsupportedOperation("replace: the two lists are not equally long")
        return list(zip(to_replace, new, strict=True))
    return [(to_replace, value)]
