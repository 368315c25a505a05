"""Constants: what a literal of DuckDB's dialect is, as a node."""

from __future__ import annotations

import re
from datetime import date, datetime
from typing import Final

from accel_dask.query_planner.portable.refusals import refuse
from accel_dask.query_planner.portable.tree import Node
from accel_dask.query_planner.portable.types import (
    BOOL,
    DATE,
    DOUBLE,
    MAX_DIGITS,
    NULL,
    TEXT,
    TIMESTAMP,
    Kind,
    SqlType,
    decimal,
    int_of_bits,
)

_MAX_BITS: Final = 63
_INTEGER: Final = re.compile(r"\d+")
_DECIMAL: Final = re.compile(r"\d+\.\d+")
_DOUBLE: Final = re.compile(r"\d+(\.\d+)?[eE][+-]?\d+")
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d")
_TIMESTAMP: Final = re.compile(r"(\d{4}-\d\d-\d\d)(?:[ T](\d\d:\d\d)(:\d\d(?:\.\d{1,6})?)?)?")


def null(kind: SqlType = NULL) -> Node:
    return Node("null", kind, size=_size(kind))


def _size(kind: SqlType) -> int:
    return kind.width


def boolean(value: bool) -> Node:
    return Node("literal", BOOL, text="true" if value else "false")


def text(value: str) -> Node:
    if "\0" in value:
        refuse("a text with a NUL character")
    return Node("literal", TEXT, text=value)


def integer(value: int) -> Node:
    """An integer literal; `value` may be negative."""
    bits = (value if value >= 0 else ~value).bit_length()
    if bits > _MAX_BITS:
        refuse(f"the number {value}", "it does not fit 64 bits")
    kind = int_of_bits(bits)
    return Node("literal", kind, text=str(value), size=max(bits, 1), is_adaptable=True)


def number(spelling: str) -> Node:
    """A literal that the SQL text has; never negative."""
    spelling = spelling.replace("_", "")
    if _INTEGER.fullmatch(spelling):
        return integer(int(spelling))
    if _DECIMAL.fullmatch(spelling):
        whole, fraction = spelling.split(".")
        width = len(whole) + len(fraction)
        if width > MAX_DIGITS:
            refuse(f"the number {spelling}", f"it has more than {MAX_DIGITS} digits")
        return Node("literal", decimal(width, len(fraction)), text=spelling, size=width)
    if _DOUBLE.fullmatch(spelling):
        return double(float(spelling))
    return refuse(f"the number {spelling}")


def double(value: float) -> Node:
    if value - value != 0:
        refuse(f"the number {value}", "not every engine has it")
    return Node("literal", DOUBLE, text=repr(value))


def negated(node: Node) -> Node:
    """`node`, a literal number, with the other sign."""
    opposite = node.text[1:] if node.text.startswith("-") else "-" + node.text
    if node.type.kind is Kind.INT:
        return integer(int(opposite))
    if node.type == DOUBLE:
        return double(float(opposite) + 0.0)  # no engine is asked what it makes of -0.0
    return Node("literal", node.type, text=opposite, size=node.size, is_adaptable=node.is_adaptable)


def date_of(value: str) -> Node:
    """The date that the text `value` certainly is."""
    value = value.strip()
    try:
        if _DATE.fullmatch(value):
            date.fromisoformat(value)
            return Node("literal", DATE, text=value)
    except ValueError:
        pass
    return refuse(f"the date {value!r}", "write dates as 2023-01-31")


def timestamp_of(value: str) -> Node:
    """The timestamp that the text `value` certainly is, with six digits of a second."""
    found = _TIMESTAMP.fullmatch(value.strip())
    try:
        if found:
            day, minute, second = found[1], found[2] or "00:00", found[3] or ":00"
            read = datetime.fromisoformat(f"{day} {minute}{second}")
            return Node("literal", TIMESTAMP, text=read.isoformat(" ", "microseconds"))
    except ValueError:
        pass
    return refuse(f"the timestamp {value!r}", "write timestamps as 2023-01-31 12:00:00")


def of_type(value: Node, kind: SqlType) -> Node | None:
    """A text literal beside something of another type, as DuckDB then reads it; None: this is
    not one of the types for which that is the same everywhere."""
    if kind == DATE:
        return date_of(value.text)
    return timestamp_of(value.text) if kind == TIMESTAMP else None


def fits(value: Node, kind: SqlType) -> bool:
    """Whether an integer literal is a value of `kind`, an integer type."""
    least = -(1 << (kind.width - 1))
    return least <= int(value.text) < -least
