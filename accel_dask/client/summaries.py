"""Several aggregates at once: describe, corr, quantiles. One query of one row each."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from accel_dask.client import dtypes, finishing
from accel_dask.client.aggregates import aggregate, count_rows, result_type
from accel_dask.client.expressions import Aggregation, Expr, Key, call
from accel_dask.client.nodes import Aggregate, Node, aggregate_columns, order_of
from accel_dask.client.unsupported import refuse
from accel_dask.client.view import Finish, Item, View, key_expr
from accel_dask.client.windows import Over
from accel_dask.errors import UnsupportedOperation

if TYPE_CHECKING:
    from accel_dask.client.frame import DataFrame
    from accel_dask.client.series import Series

_STATS: Final = ("count", "mean", "std", "min", "25%", "50%", "75%", "max")
_STATS_OF_TIMES: Final = ("count", "mean", "min", "25%", "50%", "75%", "max")


def one_row(rows: Node, values: Sequence[Expr], finish: Finish) -> View:
    """A view of one row of aggregates."""
    named = tuple((f"v{i}", expr) for i, expr in enumerate(values))
    source = Aggregate(rows, (), named)
    columns = aggregate_columns(source)
    return View(source, tuple(Item(name, columns[name]) for name, _ in named), (), finish)


def several(series: Series, funcs: Sequence[str]) -> Series:
    """A series of several aggregates of a column."""
    rows = series._ready("agg").rows
    values = [aggregate(func, series._expr, rows) for func in funcs]
    finish = Finish("agg of a list", finishing.row_as_series(funcs, series.name))
    return type(series)(series._session, one_row(rows, values, finish))


def quantiles(series: Series, at: Sequence[float]) -> Series:
    """A series of several quantiles of a column."""
    rows = series._ready("quantile").rows
    values = [aggregate("quantile", series._expr, rows, q=q) for q in at]
    finish = Finish("quantile of a list", finishing.row_as_series(at, series.name))
    return type(series)(series._session, one_row(rows, values, finish))


_DESCRIBED: Final = dtypes.TIMES | dtypes.NUMBERS - {dtypes.Kind.BOOL}
_DESCRIBED_IN_FRAMES: Final = _DESCRIBED - {dtypes.Kind.TIMESTAMPTZ}
"""As pandas has it: times with a time zone are asked for by name."""


def _stats(expr: Expr, rows: Node, stats: Sequence[str]) -> list[Expr]:
    found = [
        aggregate("quantile", expr, rows, q=float(stat[:-1]) / 100)
        if stat.endswith("%")
        else aggregate(stat, expr, rows)
        for stat in stats
    ]
    return found if expr.dtype.is_time else [call("cast", dtypes.FLOAT, one) for one in found]


def describe_series(series: Series) -> Series:
    """Count, mean, spread and quartiles of a number column."""
    rows = series._ready("describe").rows
    kind = series._expr.dtype.kind
    if kind not in _DESCRIBED:
        raise refuse(f"describe of a {kind} column", "use value_counts")
    stats = _STATS_OF_TIMES if series._expr.dtype.is_time else _STATS
    values = _stats(series._expr, rows, stats)
    finish = Finish("describe", finishing.row_as_series(stats, series.name))
    return type(series)(series._session, one_row(rows, values, finish))


def describe_frame(frame: DataFrame) -> DataFrame:
    """The same of all columns of numbers, and of times without a time zone."""
    view = frame._ready("describe")
    items = [item for item in view.columns if item.expr.dtype.kind in _DESCRIBED_IN_FRAMES]
    if any(item.expr.dtype.kind is dtypes.Kind.DURATION for item in view.columns):
        raise refuse("describe of durations", "make seconds of them: .dt.total_seconds()")
    if not items:
        raise refuse("describe without columns of numbers or times", "use value_counts")
    stats = [_STATS_OF_TIMES if one.expr.dtype.is_time else _STATS for one in items]
    values = [
        one
        for item, wanted in zip(items, stats, strict=True)
        for one in _stats(item.expr, view.rows, wanted)
    ]
    labels = [item.label for item in items]
    finish = Finish("describe", finishing.row_as_table(labels, stats))
    return type(frame)(frame._session, one_row(view.rows, values, finish))


def corr(frame: DataFrame, *, numeric_only: bool) -> DataFrame:
    """Pearson's correlation of all pairs of number columns."""
    view = frame._ready("corr")
    items = _numbers(view)
    if not numeric_only and len(items) < len(view.columns):
        raise UnsupportedOperation(
            "corr of columns that are no numbers; pass numeric_only=True, or select columns"
        )
    values = [
        Aggregation(dtypes.FLOAT, "corr", (a.expr, b.expr))
        for i, a in enumerate(items)
        for b in items[i:]
    ]
    finish = Finish("corr", finishing.row_as_matrix([item.label for item in items]))
    return type(frame)(frame._session, one_row(view.rows, values, finish))


def reduce_frame(frame: DataFrame, func: str, *, numeric_only: bool, **options: Any) -> Series:
    """A series of one aggregate of every column."""
    from accel_dask.client.series import Series

    view = frame._ready(func)
    items = _numbers(view) if numeric_only else list(view.columns)
    if not items:
        raise UnsupportedOperation(f"{func} of a frame without such columns; select some")
    for item in items:
        if result_type(func, item.expr.dtype) is None:
            raise UnsupportedOperation(
                f"{func} of the {item.expr.dtype.kind} column {item.label!r}; pass "
                "numeric_only=True, or select columns"
            )
    values = [aggregate(func, item.expr, view.rows, **options) for item in items]
    finish = Finish(func, finishing.row_as_series([item.label for item in items]))
    return Series(frame._session, one_row(view.rows, values, finish))


def aggregate_columns_of(frame: DataFrame, spec: dict[Hashable, str]) -> Series:
    """A series of one aggregate for each of some columns."""
    from accel_dask.client.series import Series

    view = frame._ready("agg")
    values = [aggregate(func, view.get(label).expr, view.rows) for label, func in spec.items()]
    finish = Finish("agg", finishing.row_as_series(list(spec)))
    return Series(frame._session, one_row(view.rows, values, finish))


def mode(series: Series) -> Series:
    """The values that come most often, in order."""
    view = series._ready("mode")
    rows = view.filtered(series.notna()._expr).rows
    key = key_expr(series._expr, "mode")
    source = Aggregate(rows, (("key", key),), (("count", count_rows()),))
    columns = aggregate_columns(source)
    most = Over(source).of(aggregate("max", columns["count"], source))
    found = View(source, (Item(series.name, columns["key"]),))
    found = found.filtered(call("eq", dtypes.BOOL, columns["count"], most))
    return type(series)(series._session, found.sorted([Key(columns["key"])]))


def _numbers(view: View) -> list[Item]:
    return [item for item in view.columns if item.expr.dtype.is_number]


def label_of_extreme(series: Series, what: str, *, ascending: bool) -> Any:
    """The label of the row with the greatest or least value, of equal ones the first."""
    view = series._ready(what)
    if len(view.index) != 1:
        raise refuse(f"{what} of rows without labels", "use sort_values(...).head(1)")
    keys = [Key(series._expr, ascending), *order_of(view.rows), Key(view.index[0].expr)]
    found = view.filtered(call("notna", dtypes.BOOL, series._expr)).sorted(keys).limited(1)
    labels = series._like(found).compute().index
    if not len(labels):
        raise ValueError(f"{what} of no values")
    return labels[0]


def unstacked(series: Series, level: Any, fill_value: Any) -> DataFrame:
    """The fetched groups with one of their keys as columns."""
    from accel_dask.client.frame import DataFrame

    view = series._ready("unstack")
    if len(view.index) < 2:
        raise refuse("unstack of fewer than two keys", "group by several keys first")

    def unstack(found: Any) -> Any:
        return found.iloc[:, 0].unstack(level, fill_value=fill_value)

    made = DataFrame(series._session, replace(view, finish=Finish("unstack", unstack)))
    made._max_rows = series._max_rows
    return made
