"""Aggregates in two steps: what each executor computes, and how the results are put together.

Where DuckDB can say no simpler way, an executor gives the aggregate's own state, and the states
are combined as DuckDB combines those of its threads.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sqlglot import exp

from accel_dask.query_planner.functions import AGGREGATES

_SAME_LIST: Final = "any_value bit_and bit_or bit_xor bool_and bool_or max min product sum"
_SAME: Final = frozenset(_SAME_LIST.split())
"""The aggregate of the parts' results is the result."""

_EXTREMES: Final = {
    **dict.fromkeys(["arg_max", "argmax", "max_by"], "max"),
    **dict.fromkeys(["arg_min", "argmin", "min_by"], "min"),
}
"""Of the parts' values, the one whose part has the largest or smallest of what they go by."""

_OF_DOUBLES: Final = {
    "corr": 2,
    "covar_pop": 2,
    "covar_samp": 2,
    "favg": 1,
    "fsum": 1,
    "kahan_sum": 1,
    "kurtosis": 1,
    "kurtosis_pop": 1,
    "regr_avgx": 2,
    "regr_avgy": 2,
    "regr_intercept": 2,
    "regr_r2": 2,
    "regr_slope": 2,
    "regr_sxx": 2,
    "regr_sxy": 2,
    "regr_syy": 2,
    "sem": 1,
    "skewness": 1,
    "stddev": 1,
    "stddev_pop": 1,
    "stddev_samp": 1,
    "sumkahan": 1,
    "var_pop": 1,
    "var_samp": 1,
    "variance": 1,
}
"""These take DOUBLEs whatever the type of their arguments, of which there are so many."""

NUMBER: Final = "a number"
"""The type of an argument of which no more is known."""

_HASHED_LIST: Final = "TINYINT SMALLINT INTEGER BIGINT HUGEINT DATE TIMESTAMP VARCHAR"
_HASHED: Final = frozenset(_HASHED_LIST.split())
_AVG_TYPES: Final = re.compile(r"SMALLINT|INTEGER|BIGINT|DOUBLE|DECIMAL\(\d+,\d+\)")
_CALL: Final = re.compile(r"(\w+)\s*\(")


_COUNT: Final = "coalesce(CAST(sum({0}) AS BIGINT), 0)"
_COUNTS: Final = {
    ("count_if", 1): "sum({0})",
    ("countif", 1): "sum({0})",
    ("regr_count", 2): "CAST(coalesce(sum({0}), 0) AS UINTEGER)",
}
"""By name and number of arguments."""
_DISTINCT_LIST: Final = """
avg bit_and bit_or bit_xor bool_and bool_or count max median min product stddev stddev_pop
stddev_samp sum var_pop var_samp variance
"""
_DISTINCT: Final = frozenset(_DISTINCT_LIST.split())
"""With DISTINCT, these are computed over the distinct values of all parts."""
_LAYERS: Final = (exp.Filter, exp.IgnoreNulls, exp.RespectNulls, exp.WithinGroup)
"""What may be around a function."""
_LIKE: Final = "{call}"


@dataclass(frozen=True, slots=True)
class Aggregate:
    """How one aggregate of a query is computed."""

    final: str
    """With `{0}`, `{1}` for the parts' results."""
    parts: tuple[str, ...] = (_LIKE,)
    """What a part computes. `{call}` is the aggregate's own text, `{rest}` what is behind its
    name, `{0}` and `{1}` its arguments and `{and}` its FILTER's condition behind an AND."""
    state: str = ""
    """What makes a peer's result of what arrives, with `{}` for it; empty: it is that."""


def call_name(text: str) -> str:
    """The function that an expression's text calls first, in lower case."""
    match = _CALL.match(text)
    return match[1].lower() if match else ""


def function_of(call: exp.Expr) -> exp.Expr:
    """The function that is called, without FILTER and the like around it."""
    while isinstance(call, _LAYERS):
        call = call.this
    return call


def arguments_of(function: exp.Expr) -> list[exp.Expr]:
    """What stands in its parentheses."""
    return list(function.iter_expressions())


def aggregate_of(call: exp.Expr, text: str, argument_type: str) -> Aggregate | None:
    """How to compute `call`, whose text is `text`, in two steps; None: that is not known here.
    `argument_type` is empty where it is not known."""
    function, name = function_of(call), call_name(text)
    arguments = _arguments(function)
    if arguments is None or not _is_plain(call):
        return None
    if name in _SAME and len(arguments) == 1:
        return Aggregate(name + "({0})")
    if (name, len(arguments)) in _COUNTS or name == "count":
        return Aggregate(_COUNTS.get((name, len(arguments)), _COUNT))
    if name in _EXTREMES and len(arguments) == 2:
        # Rows whose value is NULL do not count.
        by = _EXTREMES[name] + "({1}) FILTER (WHERE ({0}) IS NOT NULL{and})"
        return Aggregate(name + "({0}, {1})", (_LIKE, by))
    kinds = _state_types(name, len(arguments), argument_type)
    if kinds:
        signature = ", ".join(f"'{kind}'" for kind in kinds)
        return Aggregate(
            "finalize(combine_aggr({0}))",
            (_LIKE + " EXPORT_STATE",),
            f"to_aggregate_state({{}}, '{name}', [{signature}])",
        )
    if name == "avg" and argument_type == NUMBER and len(arguments) == 1:
        # As DuckDB itself does where it knows that no sum overflows.
        return Aggregate(
            "CAST(sum({0}) AS DOUBLE) / nullif(CAST(sum({1}) AS DOUBLE), 0)",
            ("sum{rest}", "count{rest}"),
        )
    return None


def _state_types(name: str, arguments: int, argument_type: str) -> list[str]:
    """The types of the arguments whose state is sent; empty: its state is not known."""
    if name == "avg" and arguments == 1 and _AVG_TYPES.fullmatch(argument_type):
        return [argument_type]
    if name == "approx_count_distinct" and arguments == 1 and argument_type in _HASHED:
        return [argument_type]
    return ["DOUBLE"] * arguments if _OF_DOUBLES.get(name) == arguments else []


def may_average(kind: str) -> bool:
    """Whether the state of an average of this type is known."""
    return bool(_AVG_TYPES.fullmatch(kind))


def distinct_argument(call: exp.Expr, text: str) -> exp.Expr | None:
    """x of `count(DISTINCT x)` and the like: where a value counts once, it does so over all
    parts."""
    argument = getattr(call, "this", None)
    if not isinstance(argument, exp.Distinct) or argument.args.get("on"):
        return None
    is_known = call_name(text) in _DISTINCT
    return argument.expressions[0] if is_known and len(argument.expressions) == 1 else None


def is_aggregate(node: exp.Expr) -> bool:
    """Whether `node` makes one value of many rows, unless it is a window's function."""
    function = function_of(node)
    if isinstance(function, exp.Anonymous):
        return function.name.lower() in AGGREGATES and not is_grouping(function)
    if isinstance(function, exp.CountIf):
        return True
    return isinstance(function, exp.AggFunc) and not is_grouping(function)


def is_grouping(node: exp.Expr) -> bool:
    """Whether it asks which of several groupings a row is of."""
    if isinstance(node, exp.Anonymous):
        return str(node.name).lower() in {"grouping", "grouping_id"}
    return isinstance(node, exp.Grouping)


def below(node: exp.Expr, is_windowed: bool = False) -> Iterator[tuple[exp.Expr, bool]]:
    """What is directly below `node`, and whether it is a window's function, which is no
    aggregate. `is_windowed`: `node` itself is one."""
    is_around = isinstance(node, exp.Window) or (is_windowed and isinstance(node, _LAYERS))
    for child in node.iter_expressions():
        yield child, is_around and child is node.this


def calls_in(part: exp.Expr) -> Iterator[exp.Expr]:
    """The aggregates of `part`, without those in subqueries."""
    pending = [(part, False)]
    while pending:
        node, is_windowed = pending.pop()
        if not is_windowed and is_aggregate(node):
            yield node
            continue
        if not isinstance(node, exp.Query):
            pending += below(node, is_windowed)


def _arguments(function: exp.Expr) -> list[exp.Expr] | None:
    """Its arguments, if it has them in a plain list."""
    arguments = arguments_of(function)
    kinds = exp.Distinct | exp.Order | exp.Limit | exp.HavingMax
    return None if any(isinstance(one, kinds) for one in arguments) else arguments


def _is_plain(call: exp.Expr) -> bool:
    known = {"this", "expression", "expressions", "big_int"}
    while isinstance(call, _LAYERS):
        # DuckDB's any_value leaves out NULLs, and the parser says so of it.
        is_any = isinstance(call, exp.IgnoreNulls) and isinstance(call.this, exp.AnyValue)
        if not isinstance(call, exp.Filter) and not is_any:
            return False
        call = call.this
    return all(key in known or not value for key, value in call.args.items())
