"""Aggregates as pandas types them, for groups, whole columns and windows."""

from __future__ import annotations

from typing import Any, Final

from accel_dask.client import dtypes
from accel_dask.client.dtypes import DType, Kind
from accel_dask.client.expressions import Aggregation, Expr, Key, aggregation_of
from accel_dask.client.nodes import Node
from accel_dask.client.view import required_order
from accel_dask.errors import UnsupportedOperation

_SAME: Final = frozenset(["min", "max", "first", "last"])
_WHOLE: Final = frozenset(["count", "size", "nunique"])
_TRUTH: Final = frozenset(["any", "all"])
_REAL: Final = frozenset(["std", "var", "sem", "skew", "kurt", "median", "quantile"])
FUNCTIONS: Final = _SAME | _WHOLE | _TRUTH | _REAL | {"sum", "mean", "prod"}
_ALIASES: Final = {
    "average": "mean",
    "product": "prod",
    "amin": "min",
    "amax": "max",
    "len": "size",
}


def function_name(func: Any) -> str:
    """The aggregate that `func`, a name or a well-known function, stands for.

    Raises:
        UnsupportedOperation: it is none that SQL has.
    """
    name = func if isinstance(func, str) else getattr(func, "__name__", "")
    name = _ALIASES.get(name, name)
    if name in FUNCTIONS and (isinstance(func, str) or _is_known(func)):
        return name
    what = repr(func) if isinstance(func, str) else "a Python function"
    raise UnsupportedOperation(
        f"{what} is no aggregate that SQL has; use {', '.join(sorted(FUNCTIONS))}, or compute a "
        "column first (where/mask) and aggregate that"
    )


def _is_known(func: Any) -> bool:
    module = str(getattr(func, "__module__", ""))
    return module.partition(".")[0] in {"numpy", "builtins"}


def aggregate(func: str, expr: Expr, rows: Node, **options: Any) -> Expr:
    """The aggregate `func` of `expr`.

    Raises:
        UnsupportedOperation: pandas or SQL has none for the type.
        OrderRequired: first or last of rows without an order.
    """
    kind = expr.dtype.kind
    if func == "median":
        func, options = "quantile", {**options, "q": 0.5}
    if options.get("ddof", 1) not in {0, 1}:
        raise UnsupportedOperation("ddof must be 0 or 1")
    order: tuple[Key, ...] = ()
    if func in {"first", "last"}:
        order = required_order(rows, func)
    dtype = result_type(func, expr.dtype)
    if dtype is None:
        raise UnsupportedOperation(
            f"{func} of a {kind} column is not served; select the columns to aggregate, or pass "
            "numeric_only=True"
        )
    return aggregation_of(func, dtype, (expr,), order, options)


def result_type(func: str, dtype: DType) -> DType | None:  # noqa: PLR0911 - a table in words
    """The type of the aggregate `func`; None: it has none for these values."""
    kind = dtype.kind
    if func in _WHOLE:
        return dtypes.INT
    if kind is Kind.OTHER:
        return None
    if func in _SAME:
        return dtype
    if func in _TRUTH:
        return dtypes.BOOL if kind in dtypes.NUMBERS | {Kind.STRING} else None
    if func == "sum":
        if kind in {Kind.BOOL, Kind.INT}:
            return dtypes.INT
        return dtype if kind in {Kind.FLOAT, Kind.DECIMAL, Kind.DURATION} else None
    if func in {"mean", "quantile", "median"} and kind is Kind.DATE:
        return dtypes.TIMESTAMP
    if func in {"mean", "quantile", "median"} and (kind in dtypes.TIMES or kind is Kind.DURATION):
        return dtype
    return dtypes.FLOAT if kind in dtypes.NUMBERS else None


def count_rows() -> Aggregation:
    return aggregation_of("size", dtypes.INT, (), (), {})
