"""Bringing operands to one type, always by an explicit cast; and the user's own casts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from accel_dask.query_planner.portable import literals
from accel_dask.query_planner.portable.refusals import refuse
from accel_dask.query_planner.portable.tree import Node
from accel_dask.query_planner.portable.types import (
    DATE,
    DOUBLE,
    MAX_DIGITS,
    NULL,
    TEXT,
    TIMESTAMP,
    Kind,
    SqlType,
    common,
    common_of,
)

_EXACT_DIGITS = 15
"""Decimals of so many digits become doubles by one rounding."""
_EXACT_BITS = 53


def adapted(nodes: Sequence[Node]) -> list[Node]:
    """Integer literals in the types that they take beside the other nodes."""
    others = [node.type for node in nodes if not node.is_adaptable and node.type != NULL]
    if not others or any(kind.kind is not Kind.INT for kind in others):
        return list(nodes)
    widths = {kind.width for kind in others}
    base = SqlType(Kind.INT, max(widths))
    found = []
    for node in nodes:
        if node.is_adaptable and literals.fits(node, SqlType(Kind.INT, min(widths))):
            found.append(replace(node, type=base))
        elif node.is_adaptable and len(widths) > 1:
            refuse(f"the number {node.text} among integers of several sizes")
        else:
            found.append(node)
    return found


def unified(nodes: Sequence[Node], where: str) -> tuple[SqlType, list[Node]]:
    """The common type of values, and all of them cast to it."""
    nodes = adapted(nodes)
    kind = common_of(node.type for node in nodes)
    if kind is None:
        types = ", ".join(dict.fromkeys(str(node.type) for node in nodes))
        return refuse(f"{where} of {types}", "the types are joined only by a guess; add casts")
    return kind, [coerced(node, kind) for node in nodes]


def compared(left: Node, right: Node, sign: str) -> tuple[Node, Node]:
    """Both sides of a comparison, so that each engine compares them alike."""
    left, right = _read_text(left, right), _read_text(right, left)
    left, right = adapted([left, right])
    kind = common(left.type, right.type)
    if kind is None:
        return refuse(
            f"{left.type} {sign} {right.type}", "engines compare these in ways of their own; cast"
        )
    if kind == NULL:
        return refuse(f"NULL {sign} NULL")
    if kind.kind in {Kind.DOUBLE, Kind.TIMESTAMP} or NULL in {left.type, right.type}:
        left, right = coerced(left, kind), coerced(right, kind)
    return left, right


def _read_text(node: Node, other: Node) -> Node:
    if node.op == "literal" and node.type == TEXT and other.type != TEXT:
        return literals.of_type(node, other.type) or node
    return node


def coerced(node: Node, kind: SqlType) -> Node:  # noqa: PLR0911 - a table of types
    """`node` as a value of `kind`, which is wide enough for it."""
    if node.type == kind:
        return node
    if node.op == "null":
        return literals.null(kind)
    if kind == DOUBLE:
        if node.op == "literal" and node.type.is_number:
            return literals.double(float(node.text))
        exact = _EXACT_BITS if node.type.kind is Kind.INT else _EXACT_DIGITS
        return Node("cast", DOUBLE, (node,), is_exact=node.size <= exact)
    if kind.kind is Kind.DECIMAL:
        digits = node.digits - node.type.scale + kind.scale
        if digits > MAX_DIGITS:
            refuse(f"{node.type} as {kind}", f"it may have more than {MAX_DIGITS} digits")
        if node.op == "literal":
            return replace(
                node, type=kind, text=_rescaled(node.text, kind.scale), size=digits,
                is_adaptable=False,
            )  # fmt: skip
        return Node("cast", kind, (node,), size=digits)
    if kind.kind is Kind.INT:
        return replace(node, type=kind, is_adaptable=False)
    if kind == TIMESTAMP and node.type == DATE:
        if node.op == "literal":
            return literals.timestamp_of(node.text)
        return Node("cast", TIMESTAMP, (node,))
    return refuse(f"{node.type} as {kind}")


def _rescaled(number: str, scale: int) -> str:
    whole, _, fraction = number.partition(".")
    return f"{whole}.{fraction.ljust(scale, '0')}" if scale else whole


def cast(node: Node, kind: SqlType) -> Node:  # noqa: PLR0911 - a table of types
    """The user's CAST."""
    node = replace(node, is_adaptable=False)
    if node.op == "literal" and node.type == TEXT and kind != TEXT:
        found = literals.of_type(node, kind)
        return found or refuse(f"a text as {kind}", "engines read texts in ways of their own")
    if node.type == kind:
        return node
    if node.op == "null" or (kind == DOUBLE and node.type.is_number):
        return coerced(node, kind)
    pair = (node.type.kind, kind.kind)
    if pair == (Kind.INT, Kind.INT):
        return coerced(node, kind)
    if pair in {(Kind.INT, Kind.DECIMAL), (Kind.DECIMAL, Kind.DECIMAL)}:
        whole, scale = node.digits - node.type.scale, node.type.scale
        if kind.scale >= scale and kind.width - kind.scale >= whole:
            return coerced(node, kind)
        return refuse(f"{node.type} as {kind}", "engines round it in ways of their own")
    if pair == (Kind.INT, Kind.TEXT) and not node.is_wide:
        return Node("cast", TEXT, (node,))
    if pair == (Kind.DATE, Kind.TIMESTAMP):
        return coerced(node, kind)
    if pair == (Kind.TIMESTAMP, Kind.DATE):
        return Node("cast", DATE, (node,))
    return refuse(f"{node.type} as {kind}", "engines round or spell it in ways of their own")
