"""Small builders of sqlglot nodes, so that what is generated is what was meant.

Functions are anonymous: the dialect's generator leaves them as they are.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from functools import cache
from typing import Any, Final

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB

from accel_dask.client.dtypes import DType, Kind

_GENERATOR: Final = DuckDB()
_ATOMS: Final = (exp.Column, exp.Literal, exp.Anonymous, exp.Cast, exp.Paren, exp.Coalesce,
                 exp.Boolean, exp.Null, exp.Subquery, exp.Window, exp.Nullif,
                 exp.Interval)  # fmt: skip


def render(node: exp.Expr) -> str:
    """`node` as SQL text; `node` is used up."""
    return _GENERATOR.generate(node, copy=False)


def name(text: str) -> exp.Identifier:
    return exp.Identifier(this=text, quoted=True)


def column(table: str, text: str) -> exp.Column:
    return exp.Column(this=name(text), table=exp.Identifier(this=table, quoted=False))


def func(text: str, *operands: exp.Expr) -> exp.Anonymous:
    return exp.Anonymous(this=text, expressions=list(operands))


def number(value: int) -> exp.Expr:
    return exp.Neg(this=exp.Literal.number(-value)) if value < 0 else exp.Literal.number(value)


def interval(count: int, unit: str) -> exp.Expr:
    return exp.Interval(this=exp.Literal.string(str(count)), unit=exp.Var(this=unit))


def text(value: str) -> exp.Expr:
    return exp.Literal.string(value)


@cache
def _type(sql: str) -> exp.DataType:
    return exp.DataType.build(sql, dialect="duckdb")


def cast(node: exp.Expr, sql: str) -> exp.Cast:
    return exp.Cast(this=node, to=_type(sql).copy())


def paren(node: exp.Expr) -> exp.Expr:
    """`node`, in parentheses if it is more than one operand."""
    return node if isinstance(node, _ATOMS) else exp.Paren(this=node)


def binary(kind: type[exp.Binary], left: exp.Expr, right: exp.Expr) -> exp.Expr:
    is_chain = kind in (exp.Add, exp.Mul) and type(left) is kind
    return kind(this=left if is_chain else paren(left), expression=paren(right))


def connect(kind: type[exp.Connector], conditions: Sequence[exp.Expr]) -> exp.Expr:
    """AND or OR of all `conditions`."""
    found = _operand_of(kind, conditions[0])
    for condition in conditions[1:]:
        found = kind(this=found, expression=_operand_of(kind, condition))
    return found


def _operand_of(kind: type[exp.Connector], node: exp.Expr) -> exp.Expr:
    is_loose = isinstance(node, exp.Connector) and not isinstance(node, kind)
    return exp.Paren(this=node) if is_loose else node


def negation(node: exp.Expr) -> exp.Expr:
    return exp.Not(this=paren(node))


def coalesce(node: exp.Expr, *others: exp.Expr) -> exp.Expr:
    return exp.Coalesce(this=node, expressions=list(others))


def boolean(value: bool) -> exp.Expr:
    return exp.Boolean(this=value)


def null() -> exp.Expr:
    return exp.Null()


def is_null(node: exp.Expr) -> exp.Expr:
    return exp.Is(this=paren(node), expression=exp.Null())


def is_not_null(node: exp.Expr) -> exp.Expr:
    return exp.Not(this=is_null(node))


def without_nan(node: exp.Expr) -> exp.Expr:
    return exp.Nullif(this=node, expression=cast(text("nan"), "DOUBLE"))


def case(branches: Iterable[tuple[exp.Expr, exp.Expr]], default: exp.Expr | None) -> exp.Expr:
    ifs = [exp.If(this=condition, true=value) for condition, value in branches]
    return exp.Case(ifs=ifs, default=default) if default is not None else exp.Case(ifs=ifs)


def literal(value: Any, dtype: DType) -> exp.Expr:
    """A plain Python value, as SQL of the type `dtype`."""
    for kind, lower in _LITERALS:
        if isinstance(value, kind):
            return lower(value, dtype)
    raise AssertionError(f"no literal of SQL: {value!r}")


def _float(value: float, dtype: DType) -> exp.Expr:
    if not math.isfinite(value):
        return cast(text(repr(value)), "DOUBLE")
    written = repr(value)
    if dtype.kind is Kind.DECIMAL and "e" not in written:
        return _signed(written)
    # With an exponent it is a DOUBLE to the engine, without one a DECIMAL.
    return _signed(written if "e" in written else f"{written}e0")


def _signed(written: str) -> exp.Expr:
    if written.startswith("-"):
        return exp.Neg(this=exp.Literal.number(written[1:]))
    return exp.Literal.number(written)


def _instant(value: dt.datetime) -> str:
    zone = value.tzinfo is not None
    value = value.astimezone(dt.UTC) if zone else value
    # Not isoformat: pandas' own adds nanoseconds.
    written = f"{value.year:04d}-{value.month:02d}-{value.day:02d}"
    written += f" {value.hour:02d}:{value.minute:02d}:{value.second:02d}"
    written += f".{value.microsecond:06d}" if value.microsecond else ""
    return written + ("+00" if zone else "")


def microseconds(value: dt.timedelta) -> int:
    """Also of pandas' subclass, whose nanoseconds are dropped."""
    return (value.days * 86_400 + value.seconds) * 1_000_000 + value.microseconds


def ordered(node: exp.Expr, *, is_ascending: bool, nulls_first: bool) -> exp.Ordered:
    # For the engine missing values are the last in either direction, unless told otherwise.
    return exp.Ordered(this=node, desc=not is_ascending, nulls_first=nulls_first)


# A bool is an int, and a datetime is a date: the order decides.
_LITERALS: Final[tuple[tuple[type, Callable[[Any, DType], exp.Expr]], ...]] = (
    (type(None), lambda _, __: exp.Null()),
    (bool, lambda value, _: boolean(value)),
    (int, lambda value, _: number(value)),
    (float, _float),
    (Decimal, lambda value, _: _signed(format(value, "f"))),
    (str, lambda value, _: text(value)),
    (
        dt.datetime,
        lambda value, _: cast(
            text(_instant(value)), "TIMESTAMPTZ" if value.tzinfo else "TIMESTAMP"
        ),
    ),
    (dt.date, lambda value, _: cast(text(value.isoformat()), "DATE")),
    (dt.timedelta, lambda value, _: number(microseconds(value))),
)
