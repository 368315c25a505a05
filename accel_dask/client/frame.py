"""The lazy frame, with pandas' operators and methods."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NoReturn

from accel_dask.client import dtypes, nodes
from accel_dask.client.aggregates import count_rows, function_name
from accel_dask.client.arguments import explained
from accel_dask.client.columnwise import ColumnWise
from accel_dask.client.dtypes import Kind
from accel_dask.client.expressions import Expr, Key, Window, call, literal
from accel_dask.client.lazy import Lazy
from accel_dask.client.moving import (
    Moving,
    MovingFrame,
    Reach,
    expanding_reach,
    rolling_reach,
    time_column,
)
from accel_dask.client.nodes import Aggregate, Node, aggregate_columns
from accel_dask.client.selection import Loc, kinds_named, labelled_below, labels_in, row_count
from accel_dask.client.series import Series
from accel_dask.client.unsupported import no_inplace, refuse, rewrite
from accel_dask.client.view import Item, View, key_expr, meeting, not_aligned
from accel_dask.client.windows import Over, reversed_keys
from accel_dask.errors import UnknownColumn, UnsupportedOperation

if TYPE_CHECKING:
    from accel_dask.client.groupby import DataFrameGroupBy


@explained("DataFrame")
class DataFrame(ColumnWise):
    """Columns over some rows. Nothing runs before `compute()` or one of its kind."""

    # What it is

    @property
    def columns(self) -> Any:
        """The labels, as pandas' index of them. Others can be assigned."""
        from accel_dask.client.materialize import labels_index

        return labels_index(self._ready("columns").labels)

    @columns.setter
    def columns(self, labels: Any) -> None:
        given, old = list(labels), self._view.columns
        if len(given) != len(old):
            raise ValueError(f"{len(given)} labels for {len(old)} columns")
        view = self._ready("assigning columns")
        self._view = view.with_columns(
            Item(label, item.expr) for label, item in zip(given, old, strict=True)
        )

    @property
    def dtypes(self) -> Any:
        """The pandas dtypes that columns get. Of a dataset's columns statistics say whether values
        are missing, which makes integers floats; others are taken to have none missing."""
        import pandas as pd

        from accel_dask.client.materialize import expected_dtype

        view = self._ready("dtypes")
        found = {item.label: expected_dtype(item.expr) for item in view.columns}
        return pd.Series(found, dtype=object)

    def __repr__(self) -> str:
        shown = ", ".join(f"{i.label}: {i.expr.dtype.kind}" for i in self._view.columns[:20])
        more = ", ..." if len(self._view.columns) > 20 else ""
        return f"<accel DataFrame [{shown}{more}]; .compute() runs it>"

    def __dir__(self) -> list[str]:
        names = [one for one in self._view.labels if isinstance(one, str) and one.isidentifier()]
        return [*super().__dir__(), *names]

    def _ipython_key_completions_(self) -> list[Hashable]:
        return list(self._view.labels)

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._ready("iterating columns").labels)

    def __contains__(self, label: Hashable) -> bool:
        return self._view.find(label) is not None

    def __len__(self) -> int:
        return int(self._scalar(count_rows()))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns: runs a query."""
        return len(self), len(self._view.columns)

    @property
    def empty(self) -> bool:
        """Whether there are no rows: runs a query."""
        return len(self) == 0

    def __bool__(self) -> NoReturn:
        raise ValueError("a lazy DataFrame has no truth value; use .empty")

    def __array__(self, *_: object, **__: object) -> NoReturn:
        raise refuse("a lazy DataFrame as a NumPy array", ".compute() it first")

    @property
    def size(self) -> int:
        """Rows times columns: runs a query."""
        return len(self) * len(self._view.columns)

    @property
    def ndim(self) -> int:
        """2."""
        return 2

    def keys(self) -> Any:
        """The labels."""
        return self.columns

    def get(self, key: Hashable, default: Any = None) -> Any:
        """The column `key`, or `default` where there is none."""
        return default if self._view.find(key) is None else self[key]

    def __setattr__(self, name: str, value: Any) -> None:
        """As pandas: a column that is there is replaced; a new one is made by `df[name]` only."""
        if not name.startswith("_") and name != "columns":
            if self._view.find(name) is not None:
                self[name] = value
                return
            if isinstance(value, Lazy):
                raise refuse(
                    f"making a column by df.{name} = ...", f"write df[{name!r}] = ..."
                )  # fmt: skip
        object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        if self._view.find(name) is not None:
            return self[name]
        error = rewrite(name, "DataFrame")
        if error is not None:
            raise error
        from accel_dask.client.view import unknown_column

        raise AttributeError(
            f"a lazy DataFrame has no {name!r}: {unknown_column(name, self._view.labels)}"
        )

    # Columns

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, Series):
            return self._filtered(key)
        if isinstance(key, ColumnWise):
            return self.where(key)
        if callable(key):
            return self[key(self)]
        view = self._ready("selecting columns")
        key = labels_in(key)
        if isinstance(key, list):
            return self._like(view.with_columns(view.get(label) for label in key))
        if isinstance(key, slice):
            raise refuse("slices of rows", "use head, tail or nlargest")
        below = labelled_below(view, key)
        if below:
            return self._like(view.with_columns(below))
        try:
            item = view.get(key)
        except TypeError as error:
            raise UnknownColumn(f"{key!r} is no label of a column") from error
        return Series(self._session, view.with_columns((item,)))

    def __setitem__(self, label: Any, value: Any) -> None:
        """As pandas: the name is bound to a frame with the column; others are not changed."""
        if isinstance(label, Lazy | list):
            raise refuse("assigning to a selection", "use df[name] = df[name].where(...)")
        self._view = self.assign(_=value)._renamed_last(label)

    def _renamed_last(self, label: Hashable) -> View:
        *others, last = self._view.columns
        return self._view.with_columns(others).with_column(label, last.expr)

    def __delitem__(self, label: Hashable) -> None:
        self._view = self.drop(columns=[label])._view

    def assign(self, **columns: Any) -> DataFrame:
        """With new columns: series of the same rows, values, or functions of the frame."""
        made = self
        for label, given in columns.items():
            value = given(made) if callable(given) and not isinstance(given, Lazy) else given
            expr, rows = made._column_expr(value, f"column {label!r}")
            view = replace(made._ready("assign"), rows=rows)
            made = made._like(view.with_column(label, expr))
        return made

    def _column_expr(self, value: Any, what: str) -> tuple[Expr, Node]:
        """`value` as a column, and the rows over which it stands beside the others."""
        if isinstance(value, Series):
            value._ready(what)
            rows = meeting(self._view.rows, value._view.rows, value._expr)
            if rows is None:
                raise not_aligned(what)
            return value._expr, rows
        if isinstance(value, Lazy):
            raise refuse(f"{what} from a frame", "name a column of it")
        is_array = hasattr(value, "__array__") and getattr(value, "ndim", 0) > 0
        if is_array or isinstance(value, list | tuple | Mapping):
            raise refuse(f"{what} from local values", "put them into a dataset, and merge")
        return literal(value), self._view.rows

    def insert(self, loc: int, column: Hashable, value: Any) -> None:
        """A new column at the place `loc`."""
        if column in self:
            raise ValueError(f"there is a column {column!r} already")
        *others, last = self.assign(_=value)._renamed_last(column).columns
        self._view = self._view.with_columns([*others[:loc], last, *others[loc:]])

    def pop(self, item: Hashable) -> Series:
        """The column `item`, which is taken out."""
        found: Series = self[item]
        self._view = self.drop(columns=[item])._view
        return found

    def add_prefix(self, prefix: str) -> DataFrame:
        """With `prefix` before each label."""
        return self.rename(columns=lambda label: f"{prefix}{label}")

    def add_suffix(self, suffix: str) -> DataFrame:
        """With `suffix` behind each label."""
        return self.rename(columns=lambda label: f"{label}{suffix}")

    def drop(self, labels: Any = None, *, columns: Any = None, axis: Any = 0,
             inplace: bool = False, errors: str = "raise") -> DataFrame:  # fmt: skip
        """Without some columns."""
        no_inplace(inplace)
        if columns is None and axis in {1, "columns"}:
            columns = labels
        if columns is None:
            raise refuse("drop of rows by label", "filter by a comparison")
        columns = labels_in(columns)
        gone = list(columns) if isinstance(columns, list | tuple) else [columns]
        view = self._ready("drop")
        for label in gone if errors == "raise" else ():
            view.get(label)
        return self._like(view.with_columns(c for c in view.columns if c.label not in gone))

    def rename(self, mapper: Any = None, *, columns: Any = None, axis: Any = 0,
               inplace: bool = False) -> DataFrame:  # fmt: skip
        """With other labels, by a dict or function."""
        no_inplace(inplace)
        if columns is None and axis in {1, "columns"}:
            columns = mapper
        if columns is None:
            raise refuse("rename of the index", "use rename(columns=...)")
        view = self._ready("rename")
        renamed: Callable[[Hashable], Hashable] = (
            columns if callable(columns) else lambda label: columns.get(label, label)
        )
        return self._like(view.with_columns(Item(renamed(c.label), c.expr) for c in view.columns))

    def filter(self, items: Any = None, *, like: str | None = None,
               regex: str | None = None) -> DataFrame:  # fmt: skip
        """The columns of `items`, or those whose label holds `like`, or matches `regex`."""
        view = self._ready("filter")
        if items is not None:
            kept = [view.get(one) for one in items if one in self]
        else:
            pattern = re.escape(like) if like is not None else regex or ""
            kept = [one for one in view.columns if re.search(pattern, str(one.label))]
        return self._like(view.with_columns(kept))

    def select_dtypes(self, include: Any = None, exclude: Any = None) -> DataFrame:
        """The columns of some types: `number`, `bool`, `str`, `datetime`."""
        kinds = kinds_named(include), kinds_named(exclude)
        view = self._ready("select_dtypes")
        kept = [
            item for item in view.columns
            if (include is None or item.expr.dtype.kind in kinds[0])
            and item.expr.dtype.kind not in kinds[1]
        ]  # fmt: skip
        return self._like(view.with_columns(kept))

    def copy(self, deep: bool = True) -> DataFrame:
        """A frame that can be assigned to on its own."""
        return self._like(self._view)

    # Rows

    def _filtered(self, mask: Series) -> DataFrame:
        view = self._ready("a filter")
        mask._ready("a filter")
        if mask._expr.dtype.kind is not Kind.BOOL:
            raise refuse(f"a filter by a {mask._expr.dtype.kind} column", "write a comparison")
        rows = meeting(view.rows, mask._view.rows, mask._expr)
        if rows is None:
            raise not_aligned("a filter")
        return self._like(replace(view, rows=rows).filtered(mask._expr))

    @property
    def loc(self) -> Loc:
        """`df.loc[mask]` and `df.loc[mask, columns]`."""
        return Loc(self)

    def query(self, expr: str, *, inplace: bool = False) -> DataFrame:
        """The rows for which `expr` holds, such as `"delay > 10 and carrier in ['AA', 'UA']"`."""
        import sys

        from accel_dask.client.query_text import evaluate

        no_inplace(inplace)

        caller = sys._getframe(1)
        return self._filtered(evaluate(self, expr, {**caller.f_globals, **caller.f_locals}))

    def dropna(self, *, how: str = "any", subset: Any = None) -> DataFrame:
        """Without rows where any (or all) of the columns are missing."""
        listed = [subset] if isinstance(subset, str) else subset
        view = self._ready("dropna")
        items = view.columns if listed is None else [view.get(label) for label in listed]
        tests = [call("notna", dtypes.BOOL, item.expr) for item in items]
        if not tests:
            return self
        found = tests[0]
        for test in tests[1:]:
            found = call("and" if how == "any" else "or", dtypes.BOOL, found, test)
        return self._like(view.filtered(found))

    def sort_values(self, by: Any, *, ascending: Any = True, na_position: str = "last",
                    ignore_index: bool = True, inplace: bool = False,
                    kind: str | None = None) -> DataFrame:  # fmt: skip
        """In the order of some columns. Ties are in no order."""
        no_inplace(inplace)
        is_label = isinstance(by, tuple) and self._view.find(by) is not None
        labels = list(by) if isinstance(by, list | tuple) and not is_label else [by]
        ups = list(ascending) if isinstance(ascending, list | tuple) else [ascending] * len(labels)
        view = self._ready("sort_values")
        named = {item.label: item for item in view.index}
        keys = [
            Key(
                key_expr((view.find(label) or named.get(label) or view.get(label)).expr, "sort"),
                bool(up), nulls_first=na_position == "first",
            )
            for label, up in zip(labels, ups, strict=True)
        ]  # fmt: skip
        return self._like(view.sorted(keys))

    def sort_index(self, *, ascending: bool = True) -> DataFrame:
        """In the order of the index."""
        view = self._ready("sort_index")
        if not view.index:
            raise refuse("sort_index of rows that have no index", "use sort_values")
        return self._like(view.sorted([Key(item.expr, ascending) for item in view.index]))

    def head(self, n: int = 5) -> DataFrame:
        """The first rows.

        Raises:
            OrderRequired: the rows have no order; see `peek`.
        """
        return self._like(self._ready("head").ordered("head").limited(row_count(n, "head")))

    def tail(self, n: int = 5) -> DataFrame:
        """The last rows."""
        view = self._ready("tail").ordered("tail")
        keys = nodes.order_of(view.rows)
        from_end = view.sorted(reversed_keys(keys)).limited(row_count(n, "tail"))
        return self._like(from_end.sorted(keys))

    def peek(self, n: int = 5) -> DataFrame:
        """Some rows, whichever are found first."""
        return self._like(self._ready("peek").limited(row_count(n, "peek")))

    def nlargest(self, n: int, columns: Any) -> DataFrame:
        """The `n` rows with the largest values, in descending order."""
        return self.sort_values(columns, ascending=False).head(max(n, 0))

    def nsmallest(self, n: int, columns: Any) -> DataFrame:
        """The `n` rows with the smallest values, in order."""
        return self.sort_values(columns).head(max(n, 0))

    def drop_duplicates(self, subset: Any = None, *, keep: Any = "first") -> DataFrame:
        """Each combination of values once: of all columns in no order; of some of them the first
        or last row in the order of rows."""
        view = self._ready("drop_duplicates")
        if subset is None and keep in {"first", "last"}:
            names = [f"{i}:{item.label}" for i, item in enumerate(view.columns)]
            keys = [key_expr(item.expr, "drop_duplicates") for item in view.columns]
            source = Aggregate(view.rows, tuple(zip(names, keys, strict=True)), ())
            found = aggregate_columns(source)
            items = [
                Item(item.label, found[name])
                for name, item in zip(names, view.columns, strict=True)
            ]
            return self._like(View(source, tuple(items)))
        listed = [subset] if isinstance(subset, str) else list(subset or view.labels)
        over = Over(view.rows, tuple(view.get(label).expr for label in listed))
        if keep is False:
            alike: Expr = over.window("size", dtypes.INT)
            return self._like(view.filtered(call("eq", dtypes.BOOL, alike, literal(1))))
        order = over.order("drop_duplicates of some columns")
        order = order if keep == "first" else reversed_keys(order)
        number: Window = over.window("row_number", dtypes.INT, order=order)
        return self._like(view.filtered(call("eq", dtypes.BOOL, number, literal(1))))

    def sample(self, n: int = 1, *, random_state: int | None = None) -> DataFrame:
        """`n` rows by chance: the same for the same data and `random_state`."""
        view = self._ready("sample")
        values = [item.expr for item in view.columns] + [literal(int(random_state or 0))]
        chance = call("function", dtypes.INT, *values, options=("hash",))
        return self._like(view.sorted([Key(chance)]).limited(row_count(n, "sample")))

    def reset_index(self, *, drop: bool = False) -> DataFrame:
        """The index as columns."""
        if self._view.finish is not None:
            return self._without_index(drop=drop)
        view = self._view
        if drop or not view.index:
            return self._like(replace(view, index=()))
        taken = {item.label for item in view.columns}
        for item in view.index:
            if item.label in taken:
                raise UnsupportedOperation(f"reset_index: there is a column {item.label!r} already")
        items = tuple(
            Item("index" if item.label is None else item.label, item.expr) for item in view.index
        )
        return self._like(replace(view, index=items).flat())

    def set_index(self, keys: Any) -> DataFrame:
        """Some columns as the index."""
        labels = list(keys) if isinstance(keys, list | tuple) else [keys]
        view = self._ready("set_index")
        index = tuple(view.get(label) for label in labels)
        rest = tuple(item for item in view.columns if item.label not in labels)
        return self._like(replace(view, columns=rest, index=index))

    # Groups, joins, shapes

    def groupby(self, by: Any, *, as_index: bool = True, sort: bool = True, dropna: bool = True,
                observed: bool = True) -> DataFrameGroupBy:  # fmt: skip
        """Grouped by a column, several, a series of the same rows, or a Grouper."""
        from accel_dask.client.groupby import DataFrameGroupBy, keys_of

        if not observed:
            raise refuse("groupby(observed=False)", "merge with a frame of all categories")
        return DataFrameGroupBy(
            self._session, self._ready("groupby"), keys_of(self, by), sort=sort, dropna=dropna,
            as_index=as_index,
        )  # fmt: skip

    def rolling(self, window: Any, min_periods: int | None = None, center: bool = False,
                on: Hashable = None, closed: str | None = None) -> MovingFrame:  # fmt: skip
        """A window of the last `window` rows, or of a time like `7D` by the column `on`; select
        columns of it: `df.rolling("7D", on="ts")["x"].mean()`."""
        reach = rolling_reach(window, min_periods, center=center, closed=closed)
        return self._moving(reach, self._view.get(on) if on is not None else None)

    def expanding(self, min_periods: int = 1) -> MovingFrame:
        """A window of all rows up to each."""
        return self._moving(expanding_reach(min_periods), None)

    def _moving(self, reach: Reach, on: Item | None) -> MovingFrame:
        view = self._ready("a window")
        time = time_column(reach, on, view.index)

        def moving_of(item: Item) -> Moving:
            shown = Series(self._session, view.with_columns((item,)))
            when = time.expr if time is not None else None
            return Moving(Over(view.rows), item.expr, when, reach, shown._with)

        def made(items: Sequence[Item]) -> DataFrame:
            return self._like(view.with_columns(items))

        return MovingFrame(view.columns, moving_of, made, on.label if on is not None else None)

    def resample(self, rule: Any, *, on: Hashable = None) -> DataFrameGroupBy:
        """Grouped by bins of time, empty ones included."""
        from accel_dask.client.groupby import Grouper

        if on is None:
            if len(self._view.index) != 1:
                raise refuse("resample without on=", "name the time column: resample('D', on='ts')")
            on = self._view.index[0].label
            return self.reset_index().resample(rule, on=on)
        return self.groupby(Grouper(key=on, freq=rule))

    def merge(self, right: DataFrame, how: str = "inner", on: Any = None, *, left_on: Any = None,
              right_on: Any = None, left_index: bool = False, right_index: bool = False,
              suffixes: tuple[str | None, str | None] = ("_x", "_y"), indicator: bool = False,
              validate: str | None = None) -> DataFrame:  # fmt: skip
        """Joined with `right` on keys. The rows are in no order."""
        from accel_dask.client.merging import merge

        if indicator:
            raise refuse("merge with indicator", "test a column of the other frame with isna()")
        if validate:
            raise refuse("merge with validate", "ask for .is_unique of the key first")
        return merge(
            self, right, how, on, left_on=left_on, right_on=right_on, left_index=left_index,
            right_index=right_index, suffixes=suffixes,
        )  # fmt: skip

    def melt(self, id_vars: Any = None, value_vars: Any = None, var_name: Hashable = "variable",
             value_name: Hashable = "value") -> DataFrame:  # fmt: skip
        """From columns to rows."""
        from accel_dask.client.merging import melt

        return melt(self, id_vars, value_vars, var_name, value_name)

    def pivot_table(self, values: Any = None, index: Any = None, columns: Any = None,
                    aggfunc: Any = "mean", *, fill_value: Any = None, dropna: bool = True,
                    margins: bool = False) -> DataFrame:  # fmt: skip
        """Aggregates laid out in rows and columns."""
        from accel_dask.client.merging import pivot_table

        if margins:
            raise refuse("pivot_table with margins", "aggregate the margins with groupby")
        return pivot_table(
            self, values, index, columns, aggfunc, fill_value=fill_value, dropna=dropna
        )

    def value_counts(self, subset: Any = None, *, sort: bool = True, ascending: bool = False,
                     dropna: bool = True) -> Series:  # fmt: skip
        """How often each combination of values comes, most frequent first."""
        labels = [subset] if isinstance(subset, str) else subset or self._view.labels
        found = self.groupby(list(labels), dropna=dropna).size().rename("count")
        if not sort:
            return found  # type: ignore[no-any-return]
        view = found._view
        keys = [Key(view.columns[0].expr, ascending), *(Key(item.expr) for item in view.index)]
        return Series(self._session, view.sorted(keys))

    # Aggregates

    def agg(self, func: Any) -> Any:
        """One aggregate of every column, or of some by a dict, as a series."""
        from accel_dask.client.summaries import aggregate_columns_of, reduce_frame

        if isinstance(func, list | tuple):
            raise refuse("agg with a list", "use describe, or aggregate one column at a time")
        if isinstance(func, Mapping):
            if any(isinstance(one, list | tuple) for one in func.values()):
                raise refuse("agg with lists by column", "aggregate one column at a time")
            return aggregate_columns_of(self, {k: function_name(v) for k, v in func.items()})
        return reduce_frame(self, function_name(func), numeric_only=False)

    aggregate = agg

    def _reduced(self, func: str, *, numeric_only: bool = False, **options: Any) -> Series:
        from accel_dask.client.summaries import reduce_frame

        return reduce_frame(self, func, numeric_only=numeric_only, **options)

    def sum(self, *, numeric_only: bool = False) -> Series:
        """The sum of every column."""
        return self._reduced("sum", numeric_only=numeric_only)

    def mean(self, *, numeric_only: bool = False) -> Series:
        """The mean of every column."""
        return self._reduced("mean", numeric_only=numeric_only)

    def median(self, *, numeric_only: bool = False) -> Series:
        """The median of every column."""
        return self._reduced("median", numeric_only=numeric_only)

    def min(self, *, numeric_only: bool = False) -> Series:
        """The least value of every column."""
        return self._reduced("min", numeric_only=numeric_only)

    def max(self, *, numeric_only: bool = False) -> Series:
        """The greatest value of every column."""
        return self._reduced("max", numeric_only=numeric_only)

    def std(self, ddof: int = 1, *, numeric_only: bool = False) -> Series:
        """The standard deviation of every column."""
        return self._reduced("std", numeric_only=numeric_only, ddof=ddof)

    def var(self, ddof: int = 1, *, numeric_only: bool = False) -> Series:
        """The variance of every column."""
        return self._reduced("var", numeric_only=numeric_only, ddof=ddof)

    def count(self) -> Series:
        """How many values of every column are not missing."""
        return self._reduced("count")

    def nunique(self) -> Series:
        """How many different values every column has."""
        return self._reduced("nunique")

    def any(self) -> Series:
        """Whether any value of every column is true."""
        return self._reduced("any")

    def all(self) -> Series:
        """Whether all values of every column are true."""
        return self._reduced("all")

    def prod(self, *, numeric_only: bool = False) -> Series:
        """The product of every column."""
        return self._reduced("prod", numeric_only=numeric_only)

    def sem(self, *, numeric_only: bool = False) -> Series:
        """The standard error of every column's mean."""
        return self._reduced("sem", numeric_only=numeric_only)

    def skew(self, *, numeric_only: bool = False) -> Series:
        """The skewness of every column."""
        return self._reduced("skew", numeric_only=numeric_only)

    def kurt(self, *, numeric_only: bool = False) -> Series:
        """The excess kurtosis of every column."""
        return self._reduced("kurt", numeric_only=numeric_only)

    def quantile(self, q: float = 0.5, *, numeric_only: bool = False) -> Series:
        """The quantile `q` of every column."""
        if not isinstance(q, float | int):
            raise refuse("several quantiles of a frame", "ask one column: df[name].quantile([...])")
        return self._reduced("quantile", numeric_only=numeric_only, q=float(q)).rename(q)

    def describe(self) -> DataFrame:
        """Count, mean, spread and quartiles of the columns of numbers and times."""
        from accel_dask.client.summaries import describe_frame

        return describe_frame(self)

    def corr(self, *, numeric_only: bool = False) -> DataFrame:
        """Pearson's correlation of the number columns."""
        from accel_dask.client.summaries import corr

        return corr(self, numeric_only=numeric_only)

    # For others

    def __narwhals_dataframe__(self) -> Any:
        """For Altair, Plotly, itables and whoever else takes narwhals: the bounded answer."""
        import narwhals as nw

        return nw.from_native(self.to_arrow(), eager_only=True)._compliant_frame

    @property
    def plot(self) -> Any:
        """pandas' plotting, of the answer."""
        return self.compute().plot
