"""Aggregates in two steps: what each executor computes, and how the results are put together.

Where DuckDB can say no simpler way, an executor gives the aggregate's own state, and the states
are combined as DuckDB combines those of its threads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from sqlglot import exp

_SAME: Final = frozenset(
    ["any_value", "bit_and", "bit_or", "bit_xor", "bool_and", "bool_or", "max", "min", "sum"]
)
"""The aggregate of the parts' results is the result."""

_OF_DOUBLES: Final = {
    "corr": 2,
    "covar_pop": 2,
    "covar_samp": 2,
    "kurtosis": 1,
    "regr_avgx": 2,
    "regr_avgy": 2,
    "regr_intercept": 2,
    "regr_r2": 2,
    "regr_slope": 2,
    "regr_sxx": 2,
    "regr_sxy": 2,
    "regr_syy": 2,
    "skewness": 1,
    "stddev": 1,
    "stddev_pop": 1,
    "stddev_samp": 1,
    "var_pop": 1,
    "var_samp": 1,
    "variance": 1,
}
"""These take DOUBLEs whatever the type of their arguments, of which there are so many."""

NUMBER: Final = "a number"
"""The type of an argument of which no more is known."""

_AVG_TYPES: Final = re.compile(r"SMALLINT|INTEGER|BIGINT|DOUBLE|DECIMAL\(\d+,\d+\)")
_CALL: Final = re.compile(r"(\w+)\s*\(")


@dataclass(frozen=True, slots=True)
class Aggregate:
    """How one aggregate of a query is computed."""

    final: str
    """With `{0}`, `{1}` for the parts' results."""
    behind: str = ""
    """Put behind the aggregate's own text in a part."""
    state: str = ""
    """What makes a peer's result of what arrives, with `{}` for it; empty: it is that."""
    instead: tuple[str, ...] = ()
    """Functions that a part calls in place of the aggregate's own; empty: that one."""


def call_name(text: str) -> str:
    """The function that an expression's text calls first, in lower case."""
    match = _CALL.match(text)
    return match[1].lower() if match else ""


def aggregate_of(call: exp.Expr, text: str, argument_type: str) -> Aggregate | None:
    """How to compute `call`, whose text is `text`, in two steps; None: that is not known here.
    `argument_type` is empty where it is not known."""
    function = call.this if isinstance(call, exp.Filter) else call
    name = call_name(text)
    arguments = _arguments(function)
    if arguments is None or not _is_plain(function):
        return None
    if name == "count":
        return Aggregate("coalesce(CAST(sum({0}) AS BIGINT), 0)")
    if name in _SAME and len(arguments) == 1:
        return Aggregate(name + "({0})")
    kinds: list[str] = []
    if name == "avg" and len(arguments) == 1 and _AVG_TYPES.fullmatch(argument_type):
        kinds = [argument_type]
    elif _OF_DOUBLES.get(name) == len(arguments):
        kinds = ["DOUBLE"] * len(arguments)
    elif name == "avg" and argument_type == NUMBER:
        # As DuckDB itself does where it knows that no sum overflows.
        return Aggregate(
            "CAST(sum({0}) AS DOUBLE) / nullif(CAST(sum({1}) AS DOUBLE), 0)",
            instead=("sum", "count"),
        )
    if not kinds:
        return None
    signature = ", ".join(f"'{kind}'" for kind in kinds)
    return Aggregate(
        "finalize(combine_aggr({0}))",
        behind=" EXPORT_STATE",
        state=f"to_aggregate_state({{}}, '{name}', [{signature}])",
    )


def may_average(kind: str) -> bool:
    """Whether the state of an average of this type is known."""
    return bool(_AVG_TYPES.fullmatch(kind))


def distinct_argument(call: exp.Expr, text: str) -> exp.Expr | None:
    """x of `count(DISTINCT x)` and the like: where a value counts once, it does so over all
    parts."""
    argument = getattr(call, "this", None)
    if not isinstance(argument, exp.Distinct) or argument.args.get("on"):
        return None
    is_known = call_name(text) in {"count", "sum", "avg", "min", "max"}
    return argument.expressions[0] if is_known and len(argument.expressions) == 1 else None


def is_aggregate(node: exp.Expr) -> bool:
    return isinstance(node, exp.AggFunc) or (
        isinstance(node, exp.Filter) and isinstance(node.this, exp.AggFunc)
    )


def _arguments(function: exp.Expr) -> list[exp.Expr] | None:
    """Its arguments, if it has them in a plain list."""
    arguments = []
    for child in function.iter_expressions():
        if isinstance(child, exp.Distinct | exp.Order | exp.Limit | exp.HavingMax):
            return None
        arguments.append(child)
    return arguments


def _is_plain(function: exp.Expr) -> bool:
    known = {"this", "expression", "expressions", "big_int"}
    return all(key in known or not value for key, value in function.args.items())
