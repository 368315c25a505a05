"""The types that the portable subset knows, and how DuckDB joins and computes with them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_DIGITS: Final = 38
_SMALL_DIGITS: Final = 18
"""DuckDB keeps a product in 64 bits where its factors are."""


class Kind(StrEnum):
    NULL = "NULL"
    BOOL = "BOOLEAN"
    INT = "INTEGER"
    DECIMAL = "DECIMAL"
    DOUBLE = "DOUBLE"
    TEXT = "VARCHAR"
    DATE = "DATE"
    TIMESTAMP = "TIMESTAMP"


@dataclass(frozen=True, slots=True)
class SqlType:
    """A DuckDB type. `width` is of INT its bits, of DECIMAL its digits."""

    kind: Kind
    width: int = 0
    scale: int = 0

    def __str__(self) -> str:
        if self.kind is Kind.INT:
            return _INT_NAMES[self.width]
        if self.kind is Kind.DECIMAL:
            return f"DECIMAL({self.width},{self.scale})"
        return '"NULL"' if self.kind is Kind.NULL else self.kind.value

    @property
    def is_number(self) -> bool:
        return self.kind in {Kind.INT, Kind.DECIMAL, Kind.DOUBLE}


_INT_NAMES: Final = {8: "TINYINT", 16: "SMALLINT", 32: "INTEGER", 64: "BIGINT", 128: "HUGEINT"}
_INT_DIGITS: Final = {8: 3, 16: 5, 32: 10, 64: 19, 128: 38}
_ALIASES: Final = {"TEXT": "VARCHAR", "INT": "INTEGER", "BOOL": "BOOLEAN"}
_DECIMAL: Final = re.compile(r"DECIMAL\((\d+),\s*(\d+)\)")

NULL: Final = SqlType(Kind.NULL)
BOOL: Final = SqlType(Kind.BOOL)
INTEGER: Final = SqlType(Kind.INT, 32)
BIGINT: Final = SqlType(Kind.INT, 64)
HUGEINT: Final = SqlType(Kind.INT, 128)
DOUBLE: Final = SqlType(Kind.DOUBLE)
TEXT: Final = SqlType(Kind.TEXT)
DATE: Final = SqlType(Kind.DATE)
TIMESTAMP: Final = SqlType(Kind.TIMESTAMP)


def decimal(width: int, scale: int) -> SqlType:
    return SqlType(Kind.DECIMAL, width, scale)


def type_named(name: str) -> SqlType | None:
    """The type of a column as its epoch declares it; None: it is not in the subset."""
    name = name.strip().upper()
    name = _ALIASES.get(name, name)
    for width, spelling in _INT_NAMES.items():
        if name == spelling:
            return SqlType(Kind.INT, width)
    found = _DECIMAL.fullmatch(name)
    if found:
        return decimal(int(found[1]), int(found[2]))
    plain = {one.value: SqlType(one) for one in Kind if one not in {Kind.NULL, Kind.INT}}
    return plain.get(name) if name != Kind.DECIMAL else None


def int_of_bits(bits: int) -> SqlType:
    """The type of an integer literal of so many bits, without its sign."""
    return SqlType(Kind.INT, 32 if bits <= 31 else 64 if bits <= 63 else 128)


def as_decimal(kind: SqlType) -> SqlType:
    """The decimal that DuckDB makes of an integer or decimal."""
    return decimal(_INT_DIGITS[kind.width], 0) if kind.kind is Kind.INT else kind


def common(left: SqlType, right: SqlType) -> SqlType | None:
    """The type that both are cast to in CASE, COALESCE, UNION and comparisons; None: they are
    not compared without a cast that could mean several things."""
    if left == right or right.kind is Kind.NULL:
        return left
    if left.kind is Kind.NULL:
        return right
    kinds = {left.kind, right.kind}
    if kinds == {Kind.DATE, Kind.TIMESTAMP}:
        return TIMESTAMP
    if not (left.is_number and right.is_number):
        return None
    if Kind.DOUBLE in kinds:
        return DOUBLE
    if kinds == {Kind.INT}:
        return max(left, right, key=lambda one: one.width)
    one, other = as_decimal(left), as_decimal(right)
    scale = max(one.scale, other.scale)
    whole = max(one.width - one.scale, other.width - other.scale)
    # Where they have no room DuckDB rounds the fraction.
    return decimal(whole + scale, scale) if whole + scale <= MAX_DIGITS else None


def common_of(types: Iterable[SqlType]) -> SqlType | None:
    found: SqlType | None = NULL
    for one in types:
        found = None if found is None else common(found, one)
    return found


def sum_type(kind: SqlType) -> SqlType:
    """Of sum(x)."""
    if kind.kind is Kind.INT:
        return HUGEINT
    return decimal(MAX_DIGITS, kind.scale) if kind.kind is Kind.DECIMAL else DOUBLE


def arithmetic_type(sign: str, left: SqlType, right: SqlType) -> SqlType | None:
    """Of `left + right`, `-` or `*`, for numbers; None: more digits than DuckDB has."""
    if Kind.DOUBLE in {left.kind, right.kind}:
        return DOUBLE
    if left.kind is Kind.INT and right.kind is Kind.INT:
        return max(left, right, key=lambda one: one.width)
    one, other = as_decimal(left), as_decimal(right)
    if sign == "*":
        scale, width = one.scale + other.scale, one.width + other.width
    else:
        scale = max(one.scale, other.scale)
        width = scale + max(one.width - one.scale, other.width - other.scale) + 1
    if scale > MAX_DIGITS:
        return None
    if sign == "*" and width > _SMALL_DIGITS and max(one.width, other.width) <= _SMALL_DIGITS:
        width = _SMALL_DIGITS
    return decimal(min(width, MAX_DIGITS), scale)
