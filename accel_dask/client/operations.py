"""Operators between expressions, typed as pandas types them; used by series and frames."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any, Final

from accel_dask.client import dtypes
from accel_dask.client.dtypes import DType, Kind
from accel_dask.client.expressions import Expr, Literal, call, literal
from accel_dask.errors import UnsupportedOperation

_WORDS: Final = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "mod": "%", "pow": "**",
    "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!=",
}  # fmt: skip
_DURATION_UNITS: Final = frozenset(["add", "sub"])


def arithmetic(op: str, left: Expr, right: Expr) -> Expr:
    """`left op right`.

    Raises:
        UnsupportedOperation: pandas or SQL has no such operation on these types.
    """
    kinds = {left.dtype.kind, right.dtype.kind}
    if Kind.NULL in kinds:
        other = right if left.dtype.kind is Kind.NULL else left
        return Literal(other.dtype if op != "div" else dtypes.FLOAT, None)
    if kinds == {Kind.STRING} and op == "add":
        return call("concat", dtypes.STRING, left, right)
    if kinds & (dtypes.TIMES | {Kind.DURATION}):
        return _with_time(op, left, right)
    if not kinds <= dtypes.NUMBERS:
        raise _no_operation(op, left, right)
    if kinds == {Kind.BOOL}:
        raise UnsupportedOperation(
            f"{_WORDS[op]} of two booleans means something else in SQL; use & and |, or "
            ".astype(int) first"
        )
    return _numeric(op, left, right)


def _numeric(op: str, left: Expr, right: Expr) -> Expr:
    kinds = {left.dtype.kind, right.dtype.kind}
    if op == "pow" and isinstance(right, Literal) and right.value == 0:
        # Of missing values, too.
        return literal(1.0 if Kind.FLOAT in kinds or left.may_null else 1)
    if op == "div":
        return call("div", dtypes.FLOAT, left, right)
    if Kind.DECIMAL in kinds:
        left, right = as_decimal(left), as_decimal(right)
        if Kind.FLOAT in {left.dtype.kind, right.dtype.kind} or op not in {"add", "sub", "mul"}:
            return call(op, dtypes.FLOAT, left, right)
        return call(op, DType(Kind.DECIMAL, "DECIMAL"), left, right)
    if Kind.FLOAT in kinds:
        return call(op, dtypes.FLOAT, left, right)
    return _integral(op, left, right)


def _integral(op: str, left: Expr, right: Expr) -> Expr:
    is_fixed = isinstance(right, Literal)
    value = right.value if isinstance(right, Literal) else None
    if op == "floordiv" and not (is_fixed and value):
        # By zero it is infinite, which integers cannot say.
        return call("floordiv", dtypes.FLOAT, left, right)
    if op == "pow":
        if is_fixed and isinstance(value, int) and 0 <= value <= 8:
            return call("pow", dtypes.INT, left, right)
        return call("pow", dtypes.FLOAT, left, right)
    return call(op, dtypes.INT, left, right)


def as_decimal(expr: Expr) -> Expr:
    """A literal float beside decimals as the decimal that was written."""
    if isinstance(expr, Literal) and isinstance(expr.value, float):
        written = repr(expr.value)
        if "e" not in written and "n" not in written:
            return Literal(DType(Kind.DECIMAL, "DECIMAL"), Decimal(written))
    return expr


def _with_time(op: str, left: Expr, right: Expr) -> Expr:
    kinds = left.dtype.kind, right.dtype.kind
    if left.dtype.is_time and right.dtype.kind is Kind.STRING:
        right = time_literal(right, left.dtype)
        kinds = left.dtype.kind, right.dtype.kind
    if left.dtype.is_time and right.dtype.is_time and op == "sub":
        if Kind.TIMESTAMPTZ in kinds and kinds[0] is not kinds[1]:
            raise UnsupportedOperation(
                "a time with and one without a time zone; use .dt.tz_localize on one of them"
            )
        return call("sub", dtypes.DURATION, microseconds(left), microseconds(right))
    if left.dtype.is_time and right.dtype.kind is Kind.DURATION and op in _DURATION_UNITS:
        return _shifted(left, right if op == "add" else negative(right))
    if right.dtype.is_time and left.dtype.kind is Kind.DURATION and op == "add":
        return _shifted(right, left)
    if Kind.DURATION in kinds:
        return _with_duration(op, left, right)
    raise _no_operation(op, left, right)


def _with_duration(op: str, left: Expr, right: Expr) -> Expr:
    both = left.dtype.kind is right.dtype.kind
    if both and op in _DURATION_UNITS:
        return call(op, dtypes.DURATION, left, right)
    if both and op == "div":
        return call("div", dtypes.FLOAT, left, right)
    if op == "mul" and {left.dtype.kind, right.dtype.kind} == {Kind.DURATION, Kind.INT}:
        return call("mul", dtypes.DURATION, left, right)
    if op == "div" and right.dtype.is_number:
        quotient = call("div", dtypes.FLOAT, left, right)
        return call("truncated", dtypes.DURATION, quotient)
    raise _no_operation(op, left, right)


def _shifted(instant: Expr, distance: Expr) -> Expr:
    is_date = instant.dtype.kind is Kind.DATE
    return call("add_us", dtypes.TIMESTAMP if is_date else instant.dtype, instant, distance)


def microseconds(expr: Expr) -> Expr:
    """Microseconds since 1970."""
    return call("us", dtypes.INT, expr)


def negative(expr: Expr) -> Expr:
    """`-expr`; of booleans their opposite, as in pandas."""
    if expr.dtype.kind is Kind.BOOL:
        return inverse(expr)
    if expr.dtype.kind not in dtypes.NUMBERS | {Kind.DURATION}:
        raise UnsupportedOperation(f"- is served for numbers only, not for {expr.dtype.kind}")
    if isinstance(expr, Literal) and expr.value is not None:
        return literal(-expr.value)
    return call("neg", dtypes.INT if expr.dtype.kind is Kind.INT else expr.dtype, expr)


def compare(op: str, left: Expr, right: Expr) -> Expr:
    """`left op right`; missing values equal nothing.

    Raises:
        UnsupportedOperation: the types do not compare.
    """
    kinds = {left.dtype.kind, right.dtype.kind}
    if Kind.NULL in kinds:
        return Literal(dtypes.BOOL, op == "ne")
    left, right = (_beside(one, other) for one, other in ((left, right), (right, left)))
    if Kind.CATEGORY in {left.dtype.kind, right.dtype.kind}:
        if left.dtype != right.dtype and op in {"eq", "ne"} and isinstance(right, Literal):
            return Literal(dtypes.BOOL, op == "ne")  # no label of its categories
        check_alike(left, right, f"{_WORDS[op]}")
    kinds = {left.dtype.kind, right.dtype.kind}
    if kinds <= dtypes.NUMBERS:
        if Kind.BOOL in kinds and len(kinds) > 1:
            left, right = _unbool(left), _unbool(right)
        if Kind.DECIMAL in kinds:
            left, right = as_decimal(left), as_decimal(right)
        return call(op, dtypes.BOOL, left, right)
    is_time = kinds <= {Kind.DATE, Kind.TIMESTAMP}
    if len(kinds) == 1 or is_time:
        return call(op, dtypes.BOOL, left, right)
    raise _no_operation(op, left, right)


def _unbool(expr: Expr) -> Expr:
    return call("cast", dtypes.INT, expr) if expr.dtype.kind is Kind.BOOL else expr


def _beside(expr: Expr, other: Expr) -> Expr:
    """A literal as it is meant beside `other`."""
    if other.dtype.kind is Kind.CATEGORY and isinstance(expr, Literal):
        return code_of(expr, other.dtype)
    if other.dtype.is_time and isinstance(expr, Literal):
        return time_literal(expr, other.dtype)
    if other.dtype.kind is Kind.DURATION and isinstance(expr, Literal):
        if not isinstance(expr.value, str):
            return expr
        import pandas as pd

        return literal(pd.Timedelta(expr.value).to_pytimedelta())
    return expr


def code_of(label: Literal, dtype: DType) -> Literal:
    """The code of a label of the categories `dtype`; as it is if it is none of them."""
    if label.value in dtype.categories:
        return Literal(dtype, dtype.categories.index(label.value))
    return label


def check_alike(left: Expr, right: Expr, what: str) -> None:
    """
    Raises:
        UnsupportedOperation: values of the two never are the same ones.
    """
    kinds = left.dtype.kind, right.dtype.kind
    if Kind.NULL in kinds or (_compares(*kinds) and Kind.CATEGORY not in kinds):
        return
    if kinds[0] is not kinds[1] or left.dtype.categories != right.dtype.categories:
        names = " and ".join(
            "other categories" if kind is Kind.CATEGORY and one.categories else str(kind)
            for kind, one in zip(kinds, (left.dtype, right.dtype), strict=True)
        )
        raise UnsupportedOperation(
            f"{what} between {names}: convert one of them with .astype (categories: astype(str))"
        )


def time_literal(expr: Expr, beside: DType) -> Expr:
    """The literal `expr` as a time that compares with `beside`.

    Raises:
        UnsupportedOperation: it is no time.
    """
    value = expr.value if isinstance(expr, Literal) else None
    if isinstance(value, str):
        value = _parsed(value)
    if value is None or not isinstance(value, dt.date):
        return expr
    if beside.kind is Kind.TIMESTAMPTZ:
        if (isinstance(value, dt.datetime) and value.tzinfo is None) or not isinstance(
            value, dt.datetime
        ):
            if isinstance(expr, Literal) and not isinstance(expr.value, str):
                raise UnsupportedOperation(
                    "a time without a time zone beside times with one; write "
                    f"pd.Timestamp({str(value)!r}, tz='UTC')"
                )
            value = _localized(value, beside.zone)
        return Literal(dtypes.TIMESTAMPTZ, value)
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        raise UnsupportedOperation(
            "a time with a time zone beside times without one; use .dt.tz_localize first"
        )
    if beside.kind is Kind.DATE:
        return _day(value)
    if not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day)  # noqa: DTZ001 - has none
    return Literal(dtypes.TIMESTAMP, value)


def _localized(value: dt.date, zone: str) -> dt.datetime:
    from zoneinfo import ZoneInfo

    if not isinstance(value, dt.datetime):
        value = dt.datetime(value.year, value.month, value.day)  # noqa: DTZ001 - gets one here
    return value.replace(tzinfo=ZoneInfo(zone))


def _day(value: dt.date) -> Expr:
    """As a DATE if it is one, so that the planner can prune by it."""
    if isinstance(value, dt.datetime):
        if (value.hour, value.minute, value.second, value.microsecond) != (0, 0, 0, 0):
            return Literal(dtypes.TIMESTAMP, value)
        value = dt.date(value.year, value.month, value.day)
    return Literal(dtypes.DATE, value)


def _parsed(text: str) -> dt.datetime | dt.date:
    try:
        return dt.datetime.fromisoformat(text)
    except ValueError:
        pass
    import pandas as pd

    try:
        parsed: dt.datetime = pd.Timestamp(text).to_pydatetime()
    except ValueError as error:
        raise UnsupportedOperation(f"{text!r} is no time that can be read") from error
    return parsed


def logical(op: str, left: Expr, right: Expr) -> Expr:
    """`left & right`, `left | right` of booleans.

    Raises:
        UnsupportedOperation: one of them is none.
    """
    for one in (left, right):
        if one.dtype.kind not in {Kind.BOOL, Kind.NULL}:
            raise UnsupportedOperation(
                f"& | ^ ~ are served for booleans only, not for {one.dtype.kind}; put comparisons "
                "in parentheses: (df.a > 1) & (df.b < 2)"
            )
    if op == "xor":
        return call("ne", dtypes.BOOL, solid(left), solid(right))
    return call(op, dtypes.BOOL, left, right)


def solid(expr: Expr) -> Expr:
    """A boolean whose missing values are false."""
    if not expr.may_null:
        return expr
    return call("coalesce", dtypes.BOOL, expr, Literal(dtypes.BOOL, False))


def inverse(expr: Expr) -> Expr:
    """`~expr`."""
    if expr.dtype.kind is not Kind.BOOL:
        raise UnsupportedOperation(f"~ is served for booleans only, not for {expr.dtype.kind}")
    return call("not", dtypes.BOOL, expr)


def is_in(expr: Expr, members: list[Any]) -> Expr:
    """Whether `expr` is one of `members`; a missing one finds missing values."""
    literals = [literal(one) for one in members]
    # pandas finds a missing number by NaN, not by None; anything else by either.
    numbers = expr.dtype.is_number
    with_null = any(
        one.value is None and not (numbers and member is None)
        for one, member in zip(literals, members, strict=True)
    )
    beside = [_beside(one, expr) for one in literals if one.value is not None]
    alike = [one for one in beside if _compares(one.dtype.kind, expr.dtype.kind)]
    if expr.dtype.kind is Kind.DECIMAL:
        alike = [as_decimal(one) for one in alike]
    if expr.dtype.kind is Kind.BOOL and any(one.dtype.kind is not Kind.BOOL for one in alike):
        expr = _unbool(expr)
        alike = [_unbool(one) for one in alike]
    return call("isin", dtypes.BOOL, expr, *alike, options=(with_null,))


def _compares(one: Kind, other: Kind) -> bool:
    return one is other or {one, other} <= dtypes.NUMBERS or {one, other} <= dtypes.TIMES


def common(*exprs: Expr) -> DType:
    """The type that holds the values of all `exprs`.

    Raises:
        UnsupportedOperation: there is none.
    """
    kinds = {one.dtype.kind for one in exprs} - {Kind.NULL}
    if not kinds:
        return dtypes.NULL
    if len(kinds) == 1:
        found = next(one.dtype for one in exprs if one.dtype.kind is not Kind.NULL)
        if found.kind is Kind.CATEGORY:
            for one in exprs:
                check_alike(Literal(found, None), one, "one column")
        if found.kind is Kind.INT:
            return found if all(one.dtype == found for one in exprs) else dtypes.INT
        if found.kind is Kind.FLOAT:
            return dtypes.FLOAT
        return found
    if kinds <= {Kind.INT, Kind.FLOAT, Kind.DECIMAL}:
        return dtypes.FLOAT
    if kinds == {Kind.DATE, Kind.TIMESTAMP}:
        return dtypes.TIMESTAMP
    names = " and ".join(sorted(kinds))
    raise UnsupportedOperation(f"{names} values in one column; convert one of them with .astype")


def converted(expr: Expr, dtype: DType) -> Expr:
    """`expr` as `dtype`, which holds its values."""
    if expr.dtype.kind is dtype.kind or expr.dtype.kind is Kind.NULL:
        return expr
    if isinstance(expr, Literal):
        if dtype.kind is Kind.FLOAT:
            return Literal(dtype, float(expr.value))
        if dtype.is_time:
            return time_literal(expr, dtype)
    return call("cast", dtype, expr)


def _no_operation(op: str, left: Expr, right: Expr) -> UnsupportedOperation:
    return UnsupportedOperation(
        f"{left.dtype.kind} {_WORDS[op]} {right.dtype.kind} is not served; convert one of them "
        "with .astype, or compare like with like"
    )
