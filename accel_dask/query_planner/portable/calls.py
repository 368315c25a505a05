"""Functions of the subset: parts of dates, truncation, intervals, texts, abs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from sqlglot import exp

from accel_dask.query_planner.portable.refusals import check_arguments, refuse, told
from accel_dask.query_planner.portable.tree import Node, signed
from accel_dask.query_planner.portable.types import (
    BIGINT,
    BOOL,
    DATE,
    TEXT,
    TIMESTAMP,
    Kind,
)

Read = Callable[[exp.Expr], Node]

_TRUNCATIONS: Final = frozenset({"YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE"})
_DATE_PARTS: Final = frozenset({"YEAR", "QUARTER", "MONTH", "DAY", "DOW", "ISODOW", "DOY", "WEEK"})
_TIME_PARTS: Final = frozenset({"HOUR", "MINUTE", "SECOND"})
_PART_NAMES: Final = {
    "YEARS": "YEAR", "MONTHS": "MONTH", "DAYS": "DAY", "DAYOFWEEK": "DOW", "WEEKDAY": "DOW",
    "DAYOFYEAR": "DOY", "HOURS": "HOUR", "MINUTES": "MINUTE", "SECONDS": "SECOND",
}  # fmt: skip
_SHIFTS: Final = frozenset({"YEAR", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND"})
_COUNT: Final = re.compile(r"-?\d{1,6}")
_COUNT_AND_UNIT: Final = re.compile(r"(-?\d{1,6}) +([A-Za-z]+)")


def _moment(node: exp.Expr, read: Read) -> Node:
    value = read(node)
    if value.type not in {DATE, TIMESTAMP}:
        refuse(told(node), "it is no date or timestamp")
    return value


def _truncated(node: exp.Expr, read: Read) -> Node:
    check_arguments(node, "this", "unit")
    unit = node.args["unit"].name.upper()
    if unit not in _TRUNCATIONS:
        refuse(f"date_trunc of {unit}")
    value = _moment(node.this, read)
    if value.type == DATE:
        value = Node("cast", TIMESTAMP, (value,))
    return Node("trunc", TIMESTAMP, (value,), text=unit)


def _extracted(node: exp.Expr, read: Read) -> Node:
    check_arguments(node, "this", "expression")
    return date_parts(node.this.name, node.expression, read)


def date_parts(part: str, of: exp.Expr, read: Read) -> Node:
    """`part` of a date or timestamp, as a BIGINT."""
    name = _PART_NAMES.get(part.upper(), part.upper())
    value = _moment(of, read)
    if name not in _DATE_PARTS | _TIME_PARTS:
        refuse(f"the part {part} of a date")
    if name in _TIME_PARTS and value.type == DATE:
        refuse(f"the part {part} of a date", "a date has no time of day")
    return Node("part", BIGINT, (value,), text=name, size=14)


def _part(name: str) -> Callable[[exp.Expr, Read], Node]:
    def read_part(node: exp.Expr, read: Read) -> Node:
        check_arguments(node, "this")
        return date_parts(name, node.this, read)

    return read_part


def _anonymous(node: exp.Expr, read: Read) -> Node:
    name = str(node.this).lower()
    if name in {"date_part", "datepart"} and len(node.expressions) == 2:
        part = node.expressions[0]
        if isinstance(part, exp.Literal) and part.is_string:
            return date_parts(part.this, node.expressions[1], read)
    return refuse(f"{name}()")


def shift(value: Node, interval: exp.Interval, sign: str) -> Node:
    """`value` moved by an interval that is written out. Always a TIMESTAMP."""
    check_arguments(interval, "this", "unit")
    if value.type not in {DATE, TIMESTAMP}:
        refuse(f"{value.type} {sign} an interval")
    written = interval.this
    text = str(written.this) if isinstance(written, exp.Literal) else ""
    unit_node = interval.args.get("unit")
    unit = unit_node.name.upper() if unit_node is not None else ""
    both = _COUNT_AND_UNIT.fullmatch(text)
    if both and not unit:
        text, unit = both[1], both[2].upper()
    unit = unit.removesuffix("S") if unit not in _SHIFTS else unit
    if not _COUNT.fullmatch(text) or unit not in _SHIFTS:
        refuse(told(interval), "write it as INTERVAL 3 DAY, with a whole number")
    if value.type == DATE:
        value = Node("cast", TIMESTAMP, (value,))
    count = int(text) * (-1 if sign == "-" else 1)
    return Node("shift", TIMESTAMP, (value,), text=f"{count} {unit}")


def _abs(node: exp.Expr, read: Read) -> Node:
    check_arguments(node, "this")
    value = read(node.this)
    if not value.type.is_number:
        refuse(told(node))
    return signed(value, "abs")


def _length(node: exp.Expr, read: Read) -> Node:
    check_arguments(node, "this")
    value = read(node.this)
    if value.type != TEXT:
        refuse(told(node))
    return Node("length", BIGINT, (value,), size=40)


def _substring(node: exp.Expr, read: Read) -> Node:
    check_arguments(node, "this", "start", "length")
    value, start = read(node.this), read(node.args["start"])
    length = read(node.args["length"]) if node.args.get("length") is not None else None
    return _slice(value, start, length, told(node))


def _left(node: exp.Expr, read: Read) -> Node:
    check_arguments(node, "this", "expression")
    one = Node("literal", BIGINT, text="1")
    return _slice(read(node.this), one, read(node.expression), told(node))


def _slice(value: Node, start: Node, length: Node | None, what: str) -> Node:
    numbers = [start] if length is None else [start, length]
    if value.type != TEXT or any(
        one.op != "literal" or one.type.kind is not Kind.INT for one in numbers
    ):
        refuse(what, "it takes a text, and positions that are written out")
    if int(start.text) < 1 or (length is not None and int(length.text) < 0):
        refuse(what, "engines count backwards in ways of their own")
    text = start.text if length is None else f"{start.text},{length.text}"
    return Node("substring", TEXT, (value,), text=text)


def _concatenated(node: exp.Expr, read: Read) -> Node:
    check_arguments(node, "this", "expression", "safe")
    left, right = read(node.this), read(node.expression)
    if left.type != TEXT or right.type != TEXT:
        refuse(told(node), "|| joins texts only; cast to VARCHAR")
    return Node("concat", TEXT, (left, right))


def _holds(before: str, after: str) -> Callable[[exp.Expr, Read], Node]:
    """Whether a text begins, ends with or holds another that is written out: a LIKE."""

    def read_test(node: exp.Expr, read: Read) -> Node:
        check_arguments(node, "this", "expression")
        value, part = read(node.this), read(node.expression)
        if value.type != TEXT or part.type != TEXT or part.op != "literal":
            refuse(told(node), "it takes a text, and one that is written out")
        plain = "".join("\\" + one if one in "%_\\" else one for one in part.text)
        return Node("like", BOOL, (value,), text=before + plain + after)

    return read_test


CALLS: Final[Mapping[type[exp.Expr], Callable[[exp.Expr, Read], Node]]] = MappingProxyType(
    {
        exp.TimestampTrunc: _truncated,
        exp.DateTrunc: _truncated,
        exp.Extract: _extracted,
        exp.Year: _part("YEAR"),
        exp.Quarter: _part("QUARTER"),
        exp.Month: _part("MONTH"),
        exp.Week: _part("WEEK"),
        exp.WeekOfYear: _part("WEEK"),
        exp.Day: _part("DAY"),
        exp.DayOfMonth: _part("DAY"),
        exp.DayOfWeek: _part("DOW"),
        exp.DayOfWeekIso: _part("ISODOW"),
        exp.DayOfYear: _part("DOY"),
        exp.Hour: _part("HOUR"),
        exp.Minute: _part("MINUTE"),
        exp.Second: _part("SECOND"),
        exp.Anonymous: _anonymous,
        exp.Abs: _abs,
        exp.Length: _length,
        exp.Substring: _substring,
        exp.Left: _left,
        exp.DPipe: _concatenated,
        exp.StartsWith: _holds("", "%"),
        exp.EndsWith: _holds("%", ""),
        exp.Contains: _holds("%", "%"),
    }
)
