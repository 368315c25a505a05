"""Constants of a query as the engine reads them, and how a column is compared with them.

Only what is surely understood becomes a constant; all else is None. Pure; used by shard pruning.
"""

from __future__ import annotations

import calendar
import math
import re
from collections.abc import Sequence
from datetime import date
from decimal import Decimal
from typing import Final, NamedTuple

from sqlglot import exp

from accel_dask.query_planner.predicates import Range, Value

DAY_MICROSECONDS: Final = 86_400_000_000
_EPOCH_DAY: Final = date(1970, 1, 1).toordinal()

_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIMESTAMP: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[ T]([01]\d|2[0-3]):([0-5]\d):([0-5]\d)(?:\.(\d{1,6}))?", re.ASCII
)
_INTEGER: Final = re.compile(r"\d+", re.ASCII)
_SIGNED_NUMBER: Final = re.compile(r"-?\d+(?:\.(\d+))?", re.ASCII)
_DECIMAL: Final = re.compile(r"(\d*)\.(\d*)", re.ASCII)
_DOUBLE: Final = re.compile(r"\d+(?:\.\d*)?[eE][+-]?\d+", re.ASCII)
_MAX_INTEGER: Final = 2**63
_MAX_DECIMAL_DIGITS: Final = 18
"""Beyond it a comparison may need more digits than a DECIMAL has."""
_DOUBLE_SLACK: Final = 1e-12
_FLOAT_SLACK: Final = 1e-6


class Constant(NamedTuple):
    """`kind` is `integer`, `decimal`, `double`, `string` (a literal without a type yet), `text`,
    `boolean`, `date`, `timestamp` or `null`. Dates and timestamps are microseconds since 1970."""

    kind: str
    value: Value


def has_only(node: exp.Expr, *names: str) -> bool:
    """Whether `node` says nothing beyond `names`: what we do not know may change its meaning."""
    return all(name in names for name, value in node.args.items() if value)


def day_start(text: str) -> int | None:
    """Microseconds since 1970 of an ISO date."""
    if not _DATE.fullmatch(text):
        return None
    try:
        return (date.fromisoformat(text).toordinal() - _EPOCH_DAY) * DAY_MICROSECONDS
    except ValueError:
        return None


def instant(text: str) -> int | None:
    """Microseconds since 1970 of an ISO timestamp without time zone, or date."""
    found = _TIMESTAMP.fullmatch(text)
    if found is None:
        return day_start(text)
    start = day_start(found[1])
    if start is None:
        return None
    seconds = (int(found[2]) * 60 + int(found[3])) * 60 + int(found[4])
    return start + seconds * 1_000_000 + int((found[5] or "").ljust(6, "0"))


def calendar_day(microseconds: int) -> date:
    """The day that an instant is in.

    Raises:
        ValueError, OverflowError: outside the years 1 to 9999.
    """
    return date.fromordinal(_EPOCH_DAY + microseconds // DAY_MICROSECONDS)


def microseconds_of(day: date) -> int:
    return (day.toordinal() - _EPOCH_DAY) * DAY_MICROSECONDS


def constant_of(node: exp.Expr) -> Constant | None:
    """The constant that `node` is."""
    try:
        return _constant_of(node)
    except (ValueError, OverflowError):
        return None


def _constant_of(node: exp.Expr) -> Constant | None:
    match node:
        case exp.Literal():
            return _literal(node)
        case exp.Paren():
            return _constant_of(node.this)
        case exp.Boolean():
            return Constant("boolean", int(bool(node.this)))
        case exp.Null():
            return Constant("null", 0)
        case exp.Neg():
            return _negative(_constant_of(node.this))
        case exp.Cast() if has_only(node, "this", "to", "safe"):  # TRY_CAST, too
            inner = _constant_of(node.this)
            return None if inner is None else cast_constant(inner, node.to)
        case exp.Add() | exp.Sub() if has_only(node, "this", "expression"):
            return _sum(node)
        case _:
            return None


def _literal(node: exp.Literal) -> Constant | None:
    return literal_constant(str(node.this), is_string=node.is_string)


def literal_constant(text: str, *, is_string: bool) -> Constant | None:
    """The constant of a literal: `text` is without its quotes."""
    if is_string:
        return Constant("string", text)
    if _INTEGER.fullmatch(text):
        return _integer(int(text))
    if _DOUBLE.fullmatch(text):
        return _double(float(text))
    found = _DECIMAL.fullmatch(text)
    if found is None or not 0 < len(found[1]) + len(found[2]) <= _MAX_DECIMAL_DIGITS:
        return None
    return Constant("decimal", Decimal(text))


def _integer(value: int) -> Constant | None:
    return Constant("integer", value) if abs(value) < _MAX_INTEGER else None


def _double(value: float) -> Constant | None:
    return Constant("double", value) if math.isfinite(value) else None


def _negative(constant: Constant | None) -> Constant | None:
    if constant is None or isinstance(constant.value, str):
        return None
    if constant.kind not in {"integer", "decimal", "double"}:
        return None
    return Constant(constant.kind, -constant.value)


_INTEGER_TYPES: Final = frozenset(
    [exp.DType.TINYINT, exp.DType.SMALLINT, exp.DType.INT, exp.DType.BIGINT]
)
DATE_TYPES: Final = frozenset([exp.DType.DATE])
TIMESTAMP_TYPES: Final = frozenset([exp.DType.TIMESTAMP, exp.DType.TIMESTAMPNTZ])
_DOUBLE_TYPE: Final = frozenset([exp.DType.DOUBLE])
_TEXT_TYPES: Final = frozenset([exp.DType.VARCHAR, exp.DType.TEXT])


def is_plain_type(to: exp.DataType, kinds: frozenset[exp.DType]) -> bool:
    """Whether `to` is one of `kinds` without length, precision or nesting."""
    return to.this in kinds and not to.expressions and not to.args.get("nested")


def cast_constant(inner: Constant, to: exp.DataType) -> Constant | None:
    """`CAST(inner AS to)`.

    Raises:
        ValueError, OverflowError: it is outside the years 1 to 9999.
    """
    if is_plain_type(to, DATE_TYPES):
        return _cast_to_date(inner)
    if is_plain_type(to, TIMESTAMP_TYPES):
        return _cast_to_timestamp(inner)
    if is_plain_type(to, _TEXT_TYPES) and inner.kind in {"string", "text"}:
        return Constant("text", inner.value)
    if is_plain_type(to, _INTEGER_TYPES) and inner.kind == "integer":
        return inner
    is_number = inner.kind in {"integer", "decimal", "double"}
    return _double(float(inner.value)) if is_number and is_plain_type(to, _DOUBLE_TYPE) else None


def _cast_to_date(inner: Constant) -> Constant | None:
    if isinstance(inner.value, str):
        start = day_start(inner.value)
        return None if start is None else Constant("date", start)
    if inner.kind not in {"date", "timestamp"}:
        return None
    return Constant("date", microseconds_of(calendar_day(int(inner.value))))


def _cast_to_timestamp(inner: Constant) -> Constant | None:
    if isinstance(inner.value, str):
        at = instant(inner.value)
        return None if at is None else Constant("timestamp", at)
    if inner.kind not in {"date", "timestamp"}:
        return None
    return Constant("timestamp", inner.value)


def _sum(node: exp.Add | exp.Sub) -> Constant | None:
    left = _constant_of(node.this)
    is_interval = isinstance(node.expression, exp.Interval)
    right = None if left is None or is_interval else _constant_of(node.expression)
    return sum_constant(node, left, right)


def sum_constant(
    node: exp.Add | exp.Sub, left: Constant | None, right: Constant | None
) -> Constant | None:
    """`left` plus or minus `right`, or the interval that `node` has there.

    Raises:
        ValueError, OverflowError: it is outside the years 1 to 9999.
    """
    if left is None or isinstance(left.value, str):
        return None
    sign = 1 if isinstance(node, exp.Add) else -1
    if isinstance(node.expression, exp.Interval):
        if left.kind not in {"date", "timestamp"}:
            return None
        return _shifted(int(left.value), sign, node.expression)
    if right is None or isinstance(right.value, str):
        return None
    if left.kind == "date" and right.kind == "integer":
        return Constant("date", int(left.value) + sign * int(right.value) * DAY_MICROSECONDS)
    if left.kind == right.kind == "integer":
        return _integer(int(left.value) + sign * int(right.value))
    if {left.kind, right.kind} <= {"integer", "decimal"}:
        total = Decimal(left.value) + sign * Decimal(right.value)
        return Constant("decimal", total) if _digits(total) <= _MAX_DECIMAL_DIGITS else None
    return None


def _digits(value: Decimal) -> int:
    return max(len(value.as_tuple().digits), _scale(value))


def _scale(value: Value) -> int:
    exponent = value.as_tuple().exponent if isinstance(value, Decimal) else 0
    return -exponent if isinstance(exponent, int) else 0


_UNIT_MONTHS: Final = {"MONTH": 1, "QUARTER": 3, "YEAR": 12}
_UNIT_MICROSECONDS: Final = {
    "SECOND": 1_000_000,
    "MINUTE": 60_000_000,
    "HOUR": 3_600_000_000,
    "DAY": DAY_MICROSECONDS,
    "WEEK": 7 * DAY_MICROSECONDS,
}


def _shifted(at: int, sign: int, interval: exp.Interval) -> Constant | None:
    unit = interval.args.get("unit")
    amount = interval.this
    if not has_only(interval, "this", "unit") or not isinstance(unit, exp.Var):
        return None
    if not isinstance(amount, exp.Literal) or not _INTEGER.fullmatch(str(amount.this)):
        return None
    count = sign * int(str(amount.this))
    name = str(unit.this).upper().removesuffix("S")
    if name in _UNIT_MICROSECONDS:
        return Constant("timestamp", at + count * _UNIT_MICROSECONDS[name])
    if name in _UNIT_MONTHS:
        return Constant("timestamp", _months_later(at, count * _UNIT_MONTHS[name]))
    return None


def _months_later(at: int, months: int) -> int:
    """The same day of another month, or its last one."""
    day = calendar_day(at)
    year, month = divmod(day.year * 12 + day.month - 1 + months, 12)
    last = calendar.monthrange(year, month + 1)[1]
    moved = date(year, month + 1, min(day.day, last))
    return microseconds_of(moved) + at % DAY_MICROSECONDS


def ranges_for(kind: str, scale: int, constants: Sequence[Constant]) -> list[Range] | None:
    """What `constants` are where a column of `kind` is compared with all of them at once; None
    where we are not sure how the engine compares them."""
    if not constants:
        return []
    try:
        if kind in {"integer", "wide", "decimal", "float", "double"}:
            return _numbers(kind, scale, constants)
        if kind == "boolean":
            return _plain(constants, {"boolean"})
        if kind == "text":
            return _plain(constants, {"string", "text"})
        return _instants(kind, constants)
    except (ValueError, OverflowError):
        return None


def _plain(constants: Sequence[Constant], kinds: set[str]) -> list[Range] | None:
    if any(constant.kind not in kinds for constant in constants):
        return None
    return [Range(constant.value, constant.value) for constant in constants]


def _numbers(kind: str, scale: int, constants: Sequence[Constant]) -> list[Range] | None:
    kinds = {constant.kind for constant in constants}
    if kinds == {"string"}:
        return _numbers_of_texts(kind, scale, constants)
    if not kinds <= {"integer", "decimal", "double"}:
        return None
    is_inexact = (
        kind == "double"
        or "double" in kinds
        or (kind == "wide" and "decimal" in kinds)
        or (kind == "decimal" and any(_scale(c.value) > scale for c in constants))
    )
    return [_number(kind, c.value, is_inexact=is_inexact) for c in constants]


def _numbers_of_texts(kind: str, scale: int, constants: Sequence[Constant]) -> list[Range] | None:
    """Texts are cast to the column's own type, which may round them: those are left out."""
    ranges = []
    for constant in constants:
        found = _SIGNED_NUMBER.fullmatch(str(constant.value))
        digits = len(found[1] or "") if found else 0
        if found is None or (digits > scale and kind not in {"float", "double"}):
            return None
        if digits and kind in {"integer", "wide"}:
            return None
        value = Decimal(found[0])
        exact: Value = int(value) if kind in {"integer", "wide"} else value
        ranges.append(_number(kind, exact, is_inexact=kind == "double"))
    return ranges


def _number(kind: str, value: Value, *, is_inexact: bool) -> Range:
    if kind != "float" and not is_inexact:
        return Range(value, value)
    number = float(value)
    if not math.isfinite(number):
        raise OverflowError
    slack = abs(number) * (_FLOAT_SLACK if kind == "float" else _DOUBLE_SLACK)
    least = 1e-44 if kind == "float" else 1e-323
    return Range(number - slack - least, number + slack + least)


_INSTANT_SLACK: Final = {
    "date": 0,
    "truncated": 0,
    "timestamp": 0,
    "timestamp_ns": 2,
    "timestamptz": DAY_MICROSECONDS,  # the session's time zone decides
}


def _instants(kind: str, constants: Sequence[Constant]) -> list[Range] | None:
    slack = _INSTANT_SLACK.get(kind)
    if slack is None:
        return None
    ranges = []
    for constant in constants:
        at: int | None = None
        if constant.kind == "string":
            text = str(constant.value)
            at = day_start(text) if kind in {"date", "truncated"} else instant(text)
        elif constant.kind in {"date", "timestamp"}:
            at = int(constant.value)
        if at is None:
            return None
        ranges.append(Range(at - slack, at + slack))
    return ranges
