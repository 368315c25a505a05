"""Expressions of a query to predicates over columns; what is not surely understood is UNKNOWN.

Pure; used by shard pruning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from sqlglot import exp

from accel_dask.query_planner.predicates import (
    FALSE,
    NULL,
    TRUE,
    UNKNOWN,
    And,
    Comparison,
    IsNull,
    IsTruth,
    Known,
    Membership,
    Not,
    Operand,
    Or,
    Predicate,
    Prefix,
    Range,
    Step,
)
from accel_dask.query_planner.pruning_constants import (
    DATE_TYPES,
    TIMESTAMP_TYPES,
    Constant,
    constant_of,
    has_only,
    is_plain_type,
    ranges_for,
)

Resolve = Callable[[exp.Column], Operand | None]
"""Where a column's values come from; None: not surely known."""

OPERATORS: Final[dict[type[exp.Expr], str]] = {
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
}
FLIPPED: Final = {"=": "=", "<>": "<>", "<": ">", "<=": ">=", ">": "<", ">=": "<="}

_INTEGERS: Final = frozenset(
    {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT"}
)
_KINDS: Final = {
    "HUGEINT": "wide",
    "UHUGEINT": "wide",
    "FLOAT": "float",
    "DOUBLE": "double",
    "BOOLEAN": "boolean",
    "VARCHAR": "text",
    "DATE": "date",
    "TIMESTAMP": "timestamp",
    "TIMESTAMP_NS": "timestamp_ns",
    "TIMESTAMP WITH TIME ZONE": "timestamptz",
}
OPAQUE: Final = "opaque"
"""The kind of columns whose values we do not compare; only their NULLs count."""


def kind_of(column_type: str) -> tuple[str, int]:
    """The kind of a column's values, and of decimals the digits behind the point."""
    if column_type in _INTEGERS:
        return "integer", 0
    if column_type.startswith("DECIMAL("):
        return "decimal", int(column_type.removesuffix(")").rpartition(",")[2])
    return _KINDS.get(column_type, OPAQUE), 0


def conjuncts_of(node: exp.Expr) -> list[exp.Expr]:
    """The parts of a condition that all must be TRUE."""
    return flat(node, exp.And)


def predicate_of(node: exp.Expr, resolve: Resolve) -> Predicate:
    """What `node` says of columns."""
    convert = _CONVERSIONS.get(type(node))
    return UNKNOWN if convert is None else convert(node, resolve)


def says_something(node: exp.Expr) -> bool:
    """Whether a node of its type may say anything of columns."""
    return type(node) in _CONVERSIONS


def flat(node: exp.Expr, connector: type[exp.Connector]) -> list[exp.Expr]:
    """The operands of a chain of one connector, which may be long, in order."""
    found: list[exp.Expr] = []
    pending = [node]
    while pending:
        part = pending.pop()
        if isinstance(part, exp.Paren):
            pending.append(part.this)
        elif type(part) is connector and has_only(part, "this", "expression"):
            pending += (part.expression, part.this)
        else:
            found.append(part)
    return found


def _and(node: exp.Expr, resolve: Resolve) -> Predicate:
    parts = flat(node, exp.And)
    return UNKNOWN if parts == [node] else And(tuple(predicate_of(p, resolve) for p in parts))


def _or(node: exp.Expr, resolve: Resolve) -> Predicate:
    parts = flat(node, exp.Or)
    return UNKNOWN if parts == [node] else Or(tuple(predicate_of(p, resolve) for p in parts))


def _paren(node: exp.Expr, resolve: Resolve) -> Predicate:
    return predicate_of(node.this, resolve)


def _not(node: exp.Expr, resolve: Resolve) -> Predicate:
    return Not(predicate_of(node.this, resolve)) if has_only(node, "this") else UNKNOWN


def _boolean(node: exp.Expr, resolve: Resolve) -> Predicate:  # noqa: ARG001 - a conversion
    return Known(TRUE if node.this else FALSE)


def _null(node: exp.Expr, resolve: Resolve) -> Predicate:  # noqa: ARG001 - a conversion
    return Known(NULL)


def _column(node: exp.Expr, resolve: Resolve) -> Predicate:
    assert isinstance(node, exp.Column)
    operand = resolve(node)
    if operand is None or operand.kind != "boolean":
        return UNKNOWN
    return Comparison(operand, "=", Range(1, 1))


def _comparison(node: exp.Expr, resolve: Resolve) -> Predicate:
    if not has_only(node, "this", "expression"):
        return UNKNOWN
    operator = OPERATORS[type(node)]
    left, right = constant_of(node.this), constant_of(node.expression)
    if left is not None and right is not None:
        return _constants_compared(operator, left, right)
    if right is not None:
        return _compared(operand_of(node.this, resolve), operator, [right])
    if left is not None:
        return _compared(operand_of(node.expression, resolve), FLIPPED[operator], [left])
    return UNKNOWN


def _constants_compared(operator: str, left: Constant, right: Constant) -> Predicate:
    """Such as `1 = 0`, which tools send to learn a table's columns."""
    if left.kind != "integer" or right.kind != "integer" or operator not in {"=", "<>"}:
        return UNKNOWN
    return Known(TRUE if (left.value == right.value) is (operator == "=") else FALSE)


def _compared(operand: Operand | None, operator: str, constants: list[Constant]) -> Predicate:
    """`operand operator constant`; further constants only matter for how they are compared."""
    if operand is None:
        return UNKNOWN
    if constants[0].kind == "null":
        return Known(NULL)
    ranges = ranges_for(operand.kind, operand.scale, [c for c in constants if c.kind != "null"])
    if ranges is None:
        return UNKNOWN
    if operator == "<>":
        return Not(Comparison(operand, "=", ranges[0]))
    return Comparison(operand, operator, ranges[0])


def _between(node: exp.Expr, resolve: Resolve) -> Predicate:
    if not has_only(node, "this", "low", "high"):
        return UNKNOWN
    # All three are compared as one type, so none of them may be unknown.
    low, high = constant_of(node.args["low"]), constant_of(node.args["high"])
    subject = constant_of(node.this)
    if subject is not None:  # DATE '...' BETWEEN first_day AND last_day
        if low is not None or high is not None:
            return UNKNOWN
        first, last = (operand_of(node.args[name], resolve) for name in ("low", "high"))
        if first is None or last is None or first.kind != last.kind:
            return UNKNOWN
        return And((_compared(first, "<=", [subject]), _compared(last, ">=", [subject])))
    operand = operand_of(node.this, resolve)
    if low is None or high is None:
        return UNKNOWN
    return And((_compared(operand, ">=", [low, high]), _compared(operand, "<=", [high, low])))


def _in(node: exp.Expr, resolve: Resolve) -> Predicate:
    if not has_only(node, "this", "expressions"):
        return UNKNOWN
    operand = operand_of(node.this, resolve)
    if operand is None:
        return UNKNOWN
    constants: list[Constant] = []
    for element in node.expressions:
        constant = constant_of(element)
        if constant is None:
            return UNKNOWN
        constants.append(constant)
    values = [constant for constant in constants if constant.kind != "null"]
    ranges = ranges_for(operand.kind, operand.scale, values)
    if ranges is None:
        return UNKNOWN
    ranges.sort()
    return Membership(
        operand,
        tuple(low for low, _ in ranges),
        tuple(high for _, high in ranges),
        has_null=len(values) < len(constants),
    )


def _is(node: exp.Expr, resolve: Resolve) -> Predicate:
    if not has_only(node, "this", "expression"):
        return UNKNOWN
    match node.expression:
        case exp.Null():
            operand = operand_of(node.this, resolve)
            return Known(TRUE | FALSE) if operand is None else IsNull(operand)
        case exp.Boolean():
            truth = TRUE if node.expression.this else FALSE
            return IsTruth(predicate_of(node.this, resolve), truth)
        case _:
            return UNKNOWN


def _like(node: exp.Expr, resolve: Resolve) -> Predicate:
    if not has_only(node, "this", "expression", "negate"):
        return UNKNOWN
    operand = operand_of(node.this, resolve)
    pattern = constant_of(node.expression)
    if operand is None or operand.kind != "text" or pattern is None or pattern.kind != "string":
        return UNKNOWN
    text = str(pattern.value)
    if "\\" in text:
        return UNKNOWN
    found: Predicate
    wild = min((text.index(sign) for sign in "%_" if sign in text), default=None)
    if wild is None:
        found = Comparison(operand, "=", Range(text, text))
    else:
        found = Prefix(operand, text[:wild], is_whole=text[wild:].strip("%") == "")
    return Not(found) if node.args.get("negate") else found


def _starts_with(node: exp.Expr, resolve: Resolve) -> Predicate:
    if not has_only(node, "this", "expression"):
        return UNKNOWN
    operand = operand_of(node.this, resolve)
    start = constant_of(node.expression)
    if operand is None or operand.kind != "text" or start is None or start.kind != "string":
        return UNKNOWN
    return Prefix(operand, str(start.value), is_whole=True)


_CONVERSIONS: Final[dict[type[exp.Expr], Callable[[exp.Expr, Resolve], Predicate]]] = {
    exp.And: _and,
    exp.Or: _or,
    exp.Not: _not,
    exp.Paren: _paren,
    exp.Boolean: _boolean,
    exp.Null: _null,
    exp.Column: _column,
    exp.Between: _between,
    exp.In: _in,
    exp.Is: _is,
    exp.Like: _like,
    exp.StartsWith: _starts_with,
    **dict.fromkeys(OPERATORS, _comparison),
}

_PARTS: Final = frozenset(["year", "quarter", "month", "day"])
_UNITS: Final = frozenset(["year", "quarter", "month", "week", "day", "hour", "minute", "second"])
_PART_NODES: Final[dict[type[exp.Expr], str]] = {
    exp.Year: "year",
    exp.Quarter: "quarter",
    exp.Month: "month",
    exp.Day: "day",
    exp.DayOfMonth: "day",
}
_WITH_CALENDAR: Final = frozenset(["date", "truncated", "timestamp"])


def operand_of(node: exp.Expr, resolve: Resolve) -> Operand | None:
    """The column, or the function of a column, that `node` is."""
    if isinstance(node, exp.Paren):
        return operand_of(node.this, resolve)
    if isinstance(node, exp.Column):
        return resolve(node)
    found = _step_of(node)
    if found is None:
        return None
    step, kind, inner_node = found
    inner = operand_of(inner_node, resolve)
    if inner is None or inner.kind not in _WITH_CALENDAR:
        return None
    return Operand(inner.places, kind, 0, (*inner.steps, step))


def _step_of(node: exp.Expr) -> tuple[Step, str, exp.Expr] | None:
    """The function that `node` is, the kind of what it gives, and its argument."""
    match node:
        case exp.Cast() if has_only(node, "this", "to", "safe"):
            if is_plain_type(node.to, DATE_TYPES):
                return ("trunc", "day"), "date", node.this
            if is_plain_type(node.to, TIMESTAMP_TYPES):
                return ("same",), "timestamp", node.this
        case exp.TimestampTrunc() | exp.DateTrunc() if has_only(node, "this", "unit"):
            unit = _word(node.args.get("unit"))
            if unit in _UNITS:
                return ("trunc", unit), "truncated", node.this
        case exp.Extract() if has_only(node, "this", "expression"):
            part = _word(node.this)
            if part in _PARTS:
                return (part,), "integer", node.expression
        case exp.Anonymous() if str(node.this).lower() in {"date_part", "datepart"}:
            arguments = node.expressions
            part = _word(arguments[0]) if len(arguments) == 2 else ""
            if part in _PARTS:
                return (part,), "integer", arguments[1]
        case _ if type(node) in _PART_NODES and has_only(node, "this"):
            return (_PART_NODES[type(node)],), "integer", node.this
    return None


def _word(node: object) -> str:
    """The name of a unit, however it is written."""
    if isinstance(node, exp.Var | exp.Literal) and isinstance(node.this, str):
        return node.this.lower()
    return ""
