"""Groups: aggregates of them, and windows within them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NoReturn

from accel_dask.client import dtypes, frequencies, moving
from accel_dask.client.aggregates import aggregate, count_rows, function_name, result_type
from accel_dask.client.arguments import explained
from accel_dask.client.expressions import Expr, Key, call, literal
from accel_dask.client.frequencies import Frequency
from accel_dask.client.group_aggregates import GroupAggregates
from accel_dask.client.moving import Moving, MovingFrame, Reach, expanding_reach, rolling_reach
from accel_dask.client.nodes import Aggregate, Filter, Node, aggregate_columns, order_of
from accel_dask.client.unsupported import refuse, rewrite
from accel_dask.client.view import Finish, Item, View, key_expr, meeting, not_aligned
from accel_dask.client.windows import Over, WindowMethods
from accel_dask.errors import UnsupportedOperation

if TYPE_CHECKING:
    from accel_dask.client.frame import DataFrame
    from accel_dask.client.series import Series
    from accel_dask.client.session import Session


_ROW_BY_ROW: Final = frozenset(["cumsum", "cummax", "cummin", "cumprod", "diff", "pct_change",
                                "rank", "shift"])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Grouper:
    """Times cut into bins: `Grouper(key="ts", freq="D")`."""

    key: Hashable = None
    freq: Any = None


@dataclass(frozen=True, slots=True)
class NamedAgg:
    """A column and its aggregate, for `agg(name=NamedAgg(column, aggfunc))`."""

    column: Hashable
    aggfunc: Any


@dataclass(frozen=True, slots=True)
class GroupKeys:
    """What is grouped by."""

    items: tuple[Item, ...]
    frequency: Frequency | None = None
    """Of the only key: empty bins in between are shown, too."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """One aggregate to compute."""

    label: Hashable
    func: str
    expr: Expr | None
    """None: the rows themselves are counted."""
    options: tuple[tuple[str, Any], ...] = ()


def keys_of(frame: DataFrame, by: Any) -> GroupKeys:
    """The keys that `by`, a label, a column, a Grouper or a list of them, means.

    Raises:
        UnknownColumn, AlignmentError, UnsupportedOperation: there is none such.
    """
    is_local = hasattr(by, "__array__") and not hasattr(by, "_view")
    is_labels = is_local and type(by).__name__ in {"Index", "ndarray"}
    listed = list(by) if isinstance(by, list) or is_labels else [by]
    if not listed:
        raise UnsupportedOperation("groupby needs a key")
    items = [_key(frame, one) for one in listed]
    frequency = None
    if len(listed) == 1 and _is_grouper(listed[0]) and listed[0].freq is not None:
        frequency = frequencies.parse(_freq_text(listed[0].freq))
    return GroupKeys(tuple(items), frequency)


def _key(frame: DataFrame, by: Any) -> Item:
    from accel_dask.client.datetimes import local
    from accel_dask.client.series import Series

    view = frame._view
    if isinstance(by, Series):
        if meeting(view.rows, by._view.rows, by._expr) is not view.rows:
            raise not_aligned("groupby")
        return Item(by.name, key_expr(by._expr, "groupby"))
    if _is_grouper(by):
        if by.key is None and len(view.index) != 1:
            raise refuse("a Grouper without a key", "name the time: Grouper(key='ts', freq='D')")
        item = view.index[0] if by.key is None else _found(view, by.key)
        if by.freq is None:
            return item
        if not item.expr.dtype.is_time:
            raise refuse(f"Grouper(freq=...) on a {item.expr.dtype.kind} column", "use a time")
        frequency = frequencies.parse(_freq_text(by.freq))
        is_zoned = item.expr.dtype.kind is dtypes.Kind.TIMESTAMPTZ
        zone = frequencies.zone_of_bins(frequency, item.expr.dtype.zone) if is_zoned else ""
        clock = local(item.expr, zone)
        if clock.dtype.kind is dtypes.Kind.DATE:
            clock = call("cast", dtypes.TIMESTAMP, clock)
        label = frequencies.bin_label(clock, frequency)
        if is_zoned:
            label = call("timezone", item.expr.dtype, label, options=(zone,))
        return Item(item.label, label)
    if callable(by) or isinstance(by, Mapping) or hasattr(by, "__array__"):
        raise refuse(
            "groupby by a function, dict or local values", "compute the key as a column first"
        )
    item = _found(view, by)
    return Item(item.label, key_expr(item.expr, "groupby"))


def _is_grouper(by: Any) -> bool:
    return isinstance(by, Grouper) or type(by).__name__ in {"Grouper", "TimeGrouper"}


def _found(view: View, label: Hashable) -> Item:
    """A column, or else a part of the index."""
    return view.find(label) or view.find_in_index(label) or view.get(label)


def _freq_text(freq: Any) -> str:
    return str(getattr(freq, "freqstr", freq))


class Groups(GroupAggregates):
    """What groups of frames and of columns share."""

    def __init__(
        self, session: Session, rows: Node, keys: GroupKeys, *, sort: bool, dropna: bool,
        as_index: bool = True,
    ) -> None:  # fmt: skip
        self._session = session
        self._rows = rows
        self._keys = keys
        self._sort = sort
        self._dropna = dropna
        self._as_index = as_index

    def __iter__(self) -> NoReturn:
        raise refuse("iterating groups", "aggregate them, or filter one key and compute")

    def __len__(self) -> int:
        return self.ngroups

    @property
    def ngroups(self) -> int:
        """How many groups there are: runs a query."""
        return len(self._aggregated_rows())

    def apply(self, *_: object, **__: object) -> NoReturn:
        """Refused."""
        raise refuse("groupby.apply", "use agg, transform, or columns and agg")

    def filter(self, *_: object, **__: object) -> NoReturn:
        """Refused."""
        raise refuse(
            "groupby.filter", "filter by a transform: df[df.groupby(key)[x].transform('size') > 2]"
        )

    def get_group(self, *_: object, **__: object) -> NoReturn:
        """Refused."""
        raise refuse("get_group", "filter by the key: df[df.key == value]")

    def pipe(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`func` of this and the arguments."""
        return func(self, *args, **kwargs)

    def _aggregated_rows(self) -> Any:
        return _size(self, None)

    def _over_rows(self) -> Over:
        return Over(self._rows, self._partition(), keeps_missing=not self._dropna)

    def _partition(self) -> tuple[Expr, ...]:
        return tuple(item.expr for item in self._keys.items)

    def _grouped_rows(self) -> Node:
        rows = self._rows
        if self._dropna:
            for item in self._keys.items:
                if item.expr.may_null or item.expr.may_nan:
                    rows = Filter(rows, call("notna", dtypes.BOOL, item.expr))
        return rows

    def _aggregated(self, wanted: Sequence[Wanted]) -> View:
        rows = self._grouped_rows()
        taken: list[str] = []
        for label in (*(item.label for item in self._keys.items), *(one.label for one in wanted)):
            name = "_".join(map(str, label)) if isinstance(label, tuple) else str(label)
            taken.append(name if name not in taken else f"{name}_{len(taken)}")
        count = len(self._keys.items)
        source = Aggregate(
            rows,
            tuple(
                (name, item.expr)
                for name, item in zip(taken[:count], self._keys.items, strict=True)
            ),
            tuple(
                (name, _expression(one, rows))
                for name, one in zip(taken[count:], wanted, strict=True)
            ),
        )
        columns = aggregate_columns(source)
        index = tuple(
            Item(item.label, columns[name])
            for name, item in zip(taken[:count], self._keys.items, strict=True)
        )
        values = tuple(
            Item(one.label, columns[name]) for name, one in zip(taken[count:], wanted, strict=True)
        )
        view = View(source, values, index)
        if self._sort:
            view = view.sorted([Key(item.expr) for item in index])
        if self._keys.frequency is not None:
            view = replace(view, finish=self._filling(wanted))
        if not self._as_index:
            view = view.flat()
        return view

    def _filling(self, wanted: Sequence[Wanted]) -> Finish:
        from accel_dask.client.finishing import with_empty_bins

        frequency = self._keys.frequency
        assert frequency is not None
        fills = [_of_nothing(one.func) for one in wanted]
        cap = self._session.options.max_rows

        def fill(frame: Any) -> Any:
            return with_empty_bins(frame, frequency.text, fills, cap)

        return Finish("binning by time", fill)


def _expression(wanted: Wanted, rows: Node) -> Expr:
    if wanted.expr is None:
        return count_rows()
    return aggregate(wanted.func, wanted.expr, rows, **dict(wanted.options))


def _of_nothing(func: str) -> Any:
    """The aggregate of an empty bin; None: missing."""
    return _OF_NOTHING.get(func)


_OF_NOTHING: Final = {
    "sum": 0, "count": 0, "size": 0, "nunique": 0, "prod": 1, "any": False, "all": True,
}  # fmt: skip


@explained("SeriesGroupBy")
class SeriesGroupBy(WindowMethods, Groups):
    """One column of groups."""

    def __init__(
        self, session: Session, rows: Node, keys: GroupKeys, item: Item, *, sort: bool = True,
        dropna: bool = True, as_index: bool = True, index: tuple[Item, ...] = (),
    ) -> None:  # fmt: skip
        super().__init__(session, rows, keys, sort=sort, dropna=dropna, as_index=as_index)
        self._item = item
        self._index = index
        """Of the rows that are grouped."""

    def _over(self, what: str) -> tuple[Over, Expr]:
        return self._over_rows(), self._item.expr

    def _windowed(self, expr: Expr) -> Series:
        from accel_dask.client.series import Series

        return Series._of(self._session, self._rows, self._item.label, expr)

    def _named(self, label: Hashable) -> SeriesGroupBy:
        item = Item(label, self._item.expr)
        return SeriesGroupBy(
            self._session, self._rows, self._keys, item, sort=self._sort, dropna=self._dropna,
            as_index=self._as_index, index=self._index,
        )  # fmt: skip

    def __getattr__(self, name: str) -> NoReturn:
        if not name.startswith("_"):
            error = rewrite(name, "SeriesGroupBy", "Resampler")
            if error is not None:
                raise error
        raise AttributeError(f"a column of groups has no {name!r}")

    def _reduced(self, func: str, *, numeric_only: bool = False, **options: Any) -> Any:
        from accel_dask.client.frame import DataFrame
        from accel_dask.client.series import Series

        wanted = Wanted(self._item.label, func, self._item.expr, tuple(options.items()))
        view = self._aggregated([wanted])
        if not self._as_index:
            return DataFrame(self._session, view)
        return Series(self._session, view)

    def agg(self, func: Any = None, **named: Any) -> Any:
        """One aggregate; or several as a frame, from a list or `name="mean"`."""
        from accel_dask.client.frame import DataFrame

        if named:
            pairs = [(name, function_name(one)) for name, one in named.items()]
        elif isinstance(func, list | tuple):
            pairs = [(function_name(one), function_name(one)) for one in func]
        else:
            return self._reduced(function_name(func))
        wanted = [Wanted(label, one, self._item.expr) for label, one in pairs]
        return DataFrame(self._session, self._aggregated(wanted))

    aggregate = agg

    def transform(self, func: Any) -> Series:
        """The aggregate of its group in every row."""
        over = self._over_rows()
        if func in {"first", "last"}:
            return self._windowed(over.grouped(over.edge(self._item.expr, func)))
        if func in _ROW_BY_ROW:
            found: Series = getattr(self, func)()
            return found
        name = function_name(func)
        return self._windowed(over.grouped(over.of(aggregate(name, self._item.expr, self._rows))))

    def size(self) -> Any:
        """Rows of each group."""
        return _size(self, self._item.label)

    def cumcount(self, ascending: bool = True) -> Series:
        """The number of rows of its group before each row."""
        return _cumcount(self, ascending=ascending)

    def head(self, n: int = 5) -> Series:
        """The first rows of each group."""
        from accel_dask.client.series import Series

        rows = _first_of_groups(self, n)
        return Series._of(self._session, rows, self._item.label, self._item.expr)

    def tail(self, n: int = 5) -> Series:
        """The last rows of each group."""
        from accel_dask.client.series import Series

        rows = _first_of_groups(self, n, from_end=True)
        return Series._of(self._session, rows, self._item.label, self._item.expr)

    def nlargest(self, n: int = 5) -> Series:
        """The `n` largest values of each group, in descending order."""
        return self._extremes(n, ascending=False)

    def nsmallest(self, n: int = 5) -> Series:
        """The `n` smallest values of each group, in order."""
        return self._extremes(n, ascending=True)

    def _extremes(self, n: int, *, ascending: bool) -> Series:
        """With the keys as the index, without pandas' number of the row."""
        from accel_dask.client.series import Series

        order = (Key(self._item.expr, ascending), *order_of(self._rows))
        number = self._over_rows().window("row_number", dtypes.INT, order=order)
        rows = Filter(self._grouped_rows(), call("le", dtypes.BOOL, number, literal(n)))
        view = View(rows, (self._item,), self._keys.items)
        keys = [Key(item.expr) for item in self._keys.items]
        return Series(self._session, view.sorted([*keys, *order]))

    def value_counts(self, *, dropna: bool = True) -> Any:
        """How often each value comes in each group."""
        keys = GroupKeys((*self._keys.items, self._item))
        inner = SeriesGroupBy(self._session, self._rows, keys, self._item, dropna=dropna)
        return inner.size().rename("count")

    def rolling(self, window: Any, min_periods: int | None = None, center: bool = False,
                closed: str | None = None) -> Moving:  # fmt: skip
        """A window of the last rows, or of a time by the index, within each group."""
        return self._moving(rolling_reach(window, min_periods, center=center, closed=closed))

    def expanding(self, min_periods: int = 1) -> Moving:
        """A window of all rows of its group up to each."""
        return self._moving(expanding_reach(min_periods))

    def _moving(self, reach: Reach) -> Moving:
        found = moving.of_groups(self, [self._item], self._index, reach, None)[self._item.label]
        assert isinstance(found, Moving)
        return found


@explained("DataFrameGroupBy")
class DataFrameGroupBy(Groups):
    """Groups of a frame."""

    def __init__(
        self, session: Session, view: View, keys: GroupKeys, *, sort: bool = True,
        dropna: bool = True, as_index: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(session, view.rows, keys, sort=sort, dropna=dropna, as_index=as_index)
        self._view = view

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, list | tuple):
            items = [self._view.get(one) for one in key]
            return DataFrameGroupBy(
                self._session, self._view.with_columns(items), self._keys, sort=self._sort,
                dropna=self._dropna, as_index=self._as_index,
            )  # fmt: skip
        return SeriesGroupBy(
            self._session, self._rows, self._keys, self._view.get(key), sort=self._sort,
            dropna=self._dropna, as_index=self._as_index, index=self._view.index,
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_"):
            if self._view.find(name) is not None:
                return self[name]
            error = rewrite(name, "DataFrameGroupBy", "Resampler")
            if error is not None:
                raise error
        raise AttributeError(f"groups have no {name!r}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *(one for one in self._view.labels if isinstance(one, str))]

    def _values(self) -> list[Item]:
        keys = {item.label for item in self._keys.items}
        return [item for item in self._view.columns if item.label not in keys]

    def _reduced(self, func: str, *, numeric_only: bool = False, **options: Any) -> DataFrame:
        from accel_dask.client.frame import DataFrame

        items = self._values()
        if numeric_only:
            items = [one for one in items if one.expr.dtype.is_number]
        for item in items:
            if result_type(func, item.expr.dtype) is None:
                raise UnsupportedOperation(
                    f"{func} of the {item.expr.dtype.kind} column {item.label!r}; select columns: "
                    "df.groupby(...)[[...]], or pass numeric_only=True"
                )
        wanted = [Wanted(one.label, func, one.expr, tuple(options.items())) for one in items]
        return DataFrame(self._session, self._aggregated(wanted))

    def agg(self, func: Any = None, **named: Any) -> DataFrame:
        """Aggregates: `agg(total=("x", "sum"))`, a dict by column, a list, or one name."""
        from accel_dask.client.frame import DataFrame

        if named:
            wanted = [self._named(label, spec) for label, spec in named.items()]
        elif isinstance(func, Mapping):
            wanted = self._by_column(func)
        elif isinstance(func, list | tuple):
            wanted = self._by_column({item.label: list(func) for item in self._values()})
        else:
            return self._reduced(function_name(func))
        return DataFrame(self._session, self._aggregated(wanted))

    aggregate = agg

    def _named(self, label: str, spec: Any) -> Wanted:
        if hasattr(spec, "aggfunc"):
            column, func = spec.column, spec.aggfunc
        elif isinstance(spec, tuple) and len(spec) == 2:
            column, func = spec
        else:
            raise UnsupportedOperation(f'agg({label}=...): write {label}=("column", "sum")')
        return Wanted(label, function_name(func), self._column(column))

    def _by_column(self, spec: Mapping[Any, Any]) -> list[Wanted]:
        is_nested = any(isinstance(one, list | tuple) for one in spec.values())
        wanted = []
        for label, funcs in spec.items():
            expr = self._column(label)
            for func in funcs if isinstance(funcs, list | tuple) else [funcs]:
                name = function_name(func)
                wanted.append(Wanted((label, name) if is_nested else label, name, expr))
        return wanted

    def _column(self, label: Hashable) -> Expr:
        found = next((item for item in self._keys.items if item.label == label), None)
        return (self._view.find(label) or found or self._view.get(label)).expr

    def transform(self, func: Any) -> DataFrame:
        """The aggregate of its group in every row, of all other columns."""
        from accel_dask.client.frame import DataFrame

        columns = [Item(one.label, self[one.label].transform(func)._expr) for one in self._values()]
        return DataFrame(self._session, View(self._rows, tuple(columns)))

    def shift(self, periods: int = 1, fill_value: Any = None) -> DataFrame:
        """The values `periods` rows before in the same group."""
        return self._each(lambda column: column.shift(periods, fill_value))

    def diff(self, periods: int = 1) -> DataFrame:
        """The differences to the values `periods` rows before in the same group."""
        return self._each(lambda column: column.diff(periods))

    def pct_change(self, periods: int = 1) -> DataFrame:
        """The relative changes from the values `periods` rows before in the same group."""
        return self._each(lambda column: column.pct_change(periods))

    def cumsum(self) -> DataFrame:
        """The sums up to each row of its group."""
        return self._each(lambda column: column.cumsum())

    def cummax(self) -> DataFrame:
        """The greatest values up to each row of its group."""
        return self._each(lambda column: column.cummax())

    def cummin(self) -> DataFrame:
        """The least values up to each row of its group."""
        return self._each(lambda column: column.cummin())

    def cumprod(self) -> DataFrame:
        """The products up to each row of its group."""
        return self._each(lambda column: column.cumprod())

    def rank(
        self, method: str = "average", *, ascending: bool = True, pct: bool = False
    ) -> DataFrame:
        """The ranks of values within their group."""
        return self._each(lambda column: column.rank(method, ascending=ascending, pct=pct))

    def _each(self, change: Callable[[SeriesGroupBy], Series]) -> DataFrame:
        from accel_dask.client.frame import DataFrame

        items = [Item(one.label, change(self[one.label])._expr) for one in self._values()]
        return DataFrame(self._session, View(self._rows, tuple(items)))

    def rolling(self, window: Any, min_periods: int | None = None, center: bool = False,
                on: Hashable = None, closed: str | None = None) -> MovingFrame:  # fmt: skip
        """A window of the last rows of each group, or of a time like `7D` by the column `on`."""
        reach = rolling_reach(window, min_periods, center=center, closed=closed)
        item = self._view.get(on) if on is not None else None
        return moving.of_groups(self, self._values(), self._view.index, reach, item)

    def expanding(self, min_periods: int = 1) -> MovingFrame:
        """A window of all rows of its group up to each."""
        reach = expanding_reach(min_periods)
        return moving.of_groups(self, self._values(), self._view.index, reach, None)

    def size(self) -> Any:
        """Rows of each group."""
        return _size(self, None)

    def cumcount(self, ascending: bool = True) -> Series:
        """The number of rows of its group before each row."""
        return _cumcount(self, ascending=ascending)

    def head(self, n: int = 5) -> DataFrame:
        """The first rows of each group."""
        from accel_dask.client.frame import DataFrame

        return DataFrame(self._session, replace(self._view, rows=_first_of_groups(self, n)))

    def tail(self, n: int = 5) -> DataFrame:
        """The last rows of each group."""
        from accel_dask.client.frame import DataFrame

        rows = _first_of_groups(self, n, from_end=True)
        return DataFrame(self._session, replace(self._view, rows=rows))


def _size(groups: Groups, label: Hashable) -> Any:
    from accel_dask.client.frame import DataFrame
    from accel_dask.client.series import Series

    name = label if groups._as_index else "size"
    view = groups._aggregated([Wanted(name if name is not None else "size", "size", None)])
    if not groups._as_index:
        return DataFrame(groups._session, view)
    view = view.with_columns([Item(label, view.columns[0].expr)])
    return Series(groups._session, view)


def _cumcount(groups: Groups, *, ascending: bool) -> Series:
    from accel_dask.client.series import Series

    over = groups._over_rows()
    expr = over.grouped(over.count_before(ascending=ascending))
    return Series._of(groups._session, groups._rows, None, expr)


def _first_of_groups(groups: Groups, n: int, *, from_end: bool = False) -> Node:
    over = groups._over_rows()
    before = over.count_before(ascending=not from_end)
    rows: Node = Filter(groups._rows, call("lt", dtypes.BOOL, before, literal(n)))
    for expr in groups._partition() if groups._dropna else ():
        rows = Filter(rows, call("notna", dtypes.BOOL, expr))
    return rows
