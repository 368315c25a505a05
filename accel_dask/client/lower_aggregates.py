"""Aggregates to SQL with pandas' meaning: of groups and, wrapped in OVER, of windows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from sqlglot import exp

from accel_dask.client import dtypes, sql
from accel_dask.client.dtypes import DType, Kind
from accel_dask.client.expressions import Aggregation, Expr, clean

if TYPE_CHECKING:
    from accel_dask.client.lower_values import Values

Over = Callable[[exp.Expr], exp.Expr]


def lower_aggregation(values: Values, call: Aggregation, over: Over | None = None) -> exp.Expr:
    """The SQL of `call`; `over` puts a window behind each aggregate of it."""
    return _FUNCTIONS[call.func](values, call, over or (lambda found: found))


def _operand(values: Values, call: Aggregation, index: int = 0) -> exp.Expr:
    operand = call.operands[index]
    found = values.cleaned(operand)
    return sql.cast(found, "INTEGER") if operand.dtype.kind is Kind.BOOL else found


def _double(values: Values, call: Aggregation, index: int = 0) -> exp.Expr:
    found = _operand(values, call, index)
    return sql.cast(found, "DOUBLE") if call.operands[index].dtype.kind is Kind.DECIMAL else found


def _option(call: Aggregation, name: str, default: int | float) -> int | float:
    found: int | float = dict(call.options).get(name, default)
    return found


def _sum(values: Values, call: Aggregation, over: Over) -> exp.Expr:
    found = over(sql.func("sum", _operand(values, call)))
    least = int(_option(call, "min_count", 0))
    if least == 0:
        found = sql.coalesce(found, sql.number(0))
    if call.dtype.kind in {Kind.INT, Kind.DURATION}:
        # The engine's own sum of integers is wider than pandas has.
        found = sql.cast(found, "BIGINT")
    return found if least < 2 else _if_enough(values, call, over, found, least)


def _if_enough(
    values: Values, call: Aggregation, over: Over, found: exp.Expr, least: int
) -> exp.Expr:
    """`found` where at least so many values are not missing."""
    count = over(sql.func("count", values.cleaned(call.operands[0])))
    return sql.case([(sql.binary(exp.GTE, count, sql.number(least)), found)], None)


def _mean(values: Values, call: Aggregation, over: Over) -> exp.Expr:
    operand = call.operands[0].dtype
    if operand.is_time:
        return _instant(over(sql.func("avg", _epoch(values, call))), operand)
    # Decimals as they are: the engine adds them up exactly, and divides once instead of per row.
    found = over(sql.func("avg", _operand(values, call)))
    return sql.cast(sql.func("trunc", found), "BIGINT") if operand.kind is Kind.DURATION else found


def _epoch(values: Values, call: Aggregation) -> exp.Expr:
    return sql.func("epoch_us", sql.cast(values.of(call.operands[0]), "TIMESTAMP"))


def _instant(microseconds: exp.Expr, dtype: DType) -> exp.Expr:
    made = sql.func("make_timestamp", sql.cast(sql.func("trunc", microseconds), "BIGINT"))
    if dtype.kind is not Kind.TIMESTAMPTZ:
        return made
    return sql.func("timezone", sql.text("UTC"), made)


def _plain(name: str) -> Callable[[Values, Aggregation, Over], exp.Expr]:
    def lower(values: Values, call: Aggregation, over: Over) -> exp.Expr:
        return over(sql.func(name, *(_double(values, call, i) for i in range(len(call.operands)))))

    return lower


def _extreme(name: str) -> Callable[[Values, Aggregation, Over], exp.Expr]:
    def lower(values: Values, call: Aggregation, over: Over) -> exp.Expr:
        return over(sql.func(name, values.cleaned(call.operands[0])))

    return lower


def _count(values: Values, call: Aggregation, over: Over) -> exp.Expr:
    return over(sql.func("count", values.cleaned(call.operands[0])))


def _size(values: Values, call: Aggregation, over: Over) -> exp.Expr:  # noqa: ARG001
    return over(sql.func("count", exp.Star()))


def _nunique(values: Values, call: Aggregation, over: Over) -> exp.Expr:
    distinct = exp.Distinct(expressions=[values.cleaned(call.operands[0])])
    counted = over(sql.func("count", distinct))
    if not dict(call.options).get("with_missing"):
        return counted
    missing = sql.is_null(values.cleaned(call.operands[0]))
    has_missing = over(sql.func("bool_or", missing))
    one = sql.cast(sql.coalesce(has_missing, sql.boolean(False)), "BIGINT")
    return sql.binary(exp.Add, counted, one)


def _spread(sample: str, population: str) -> Callable[[Values, Aggregation, Over], exp.Expr]:
    def lower(values: Values, call: Aggregation, over: Over) -> exp.Expr:
        name = sample if _option(call, "ddof", 1) == 1 else population
        return over(sql.func(name, _double(values, call)))

    return lower


def _error_of_mean(values: Values, call: Aggregation, over: Over) -> exp.Expr:
    spread = over(sql.func("stddev_samp", _double(values, call)))
    count = over(sql.func("count", _double(values, call)))
    return sql.binary(exp.Div, spread, sql.func("sqrt", count))


def _quantile(values: Values, call: Aggregation, over: Over) -> exp.Expr:
    where = sql.literal(float(_option(call, "q", 0.5)), dtypes.FLOAT)
    operand = call.operands[0].dtype
    if operand.is_time:
        epoch = sql.cast(_epoch(values, call), "DOUBLE")
        return _instant(over(sql.func("quantile_cont", epoch, where)), operand)
    found = over(sql.func("quantile_cont", sql.cast(_operand(values, call), "DOUBLE"), where))
    return sql.cast(sql.func("trunc", found), "BIGINT") if operand.kind is Kind.DURATION else found


def _truth(name: str, empty: bool) -> Callable[[Values, Aggregation, Over], exp.Expr]:
    def lower(values: Values, call: Aggregation, over: Over) -> exp.Expr:
        found = over(sql.func(name, _as_bool(values, call.operands[0])))
        return sql.coalesce(found, sql.boolean(empty))

    return lower


def _as_bool(values: Values, operand: Expr) -> exp.Expr:
    """Missing values stay so, and do not count."""
    found = values.of(clean(operand))
    match operand.dtype.kind:
        case Kind.BOOL:
            return found
        case Kind.STRING:
            return sql.binary(exp.NEQ, found, sql.text(""))
        case _:
            return sql.binary(exp.NEQ, found, sql.number(0))


def _edge(name: str) -> Callable[[Values, Aggregation, Over], exp.Expr]:
    """The first or last value in an order that is not missing."""

    def lower(values: Values, call: Aggregation, over: Over) -> exp.Expr:
        found = values.cleaned(call.operands[0])
        by = exp.Order(this=found, expressions=values.keys(call.order))
        present = exp.Where(this=sql.is_not_null(found.copy()))
        return over(exp.Filter(this=sql.func(name, by), expression=present))

    return lower


def _product(values: Values, call: Aggregation, over: Over) -> exp.Expr:
    return sql.coalesce(
        over(sql.func("product", _double(values, call))), sql.literal(1.0, call.dtype)
    )


def _of_rows(name: str) -> Callable[[Values, Aggregation, Over], exp.Expr]:
    """A function of windows only, of values as they are, missing ones too."""

    def lower(values: Values, call: Aggregation, over: Over) -> exp.Expr:
        return over(sql.func(name, *map(values.of, call.operands)))

    return lower


_FUNCTIONS: Final[dict[str, Callable[[Values, Aggregation, Over], exp.Expr]]] = {
    "sum": _sum,
    "mean": _mean,
    "min": _extreme("min"),
    "max": _extreme("max"),
    "count": _count,
    "size": _size,
    "nunique": _nunique,
    "std": _spread("stddev_samp", "stddev_pop"),
    "var": _spread("var_samp", "var_pop"),
    "sem": _error_of_mean,
    "skew": _plain("skewness"),
    "kurt": _plain("kurtosis"),
    "corr": _plain("corr"),
    "cov": _plain("covar_samp"),
    "quantile": _quantile,
    "any": _truth("bool_or", empty=False),
    "all": _truth("bool_and", empty=True),
    "first": _edge("first"),
    "last": _edge("last"),
    "prod": _product,
    "row_number": _of_rows("row_number"),
    "rank": _of_rows("rank"),
    "dense_rank": _of_rows("dense_rank"),
    "lag": _of_rows("lag"),
    "lead": _of_rows("lead"),
    "first_value": _of_rows("first_value"),
    "last_value": _of_rows("last_value"),
}
