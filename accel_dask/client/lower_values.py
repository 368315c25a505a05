"""Value expressions to sqlglot nodes: one small function for each operation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlglot import exp

from accel_dask.client import dtypes, sql
from accel_dask.client.dtypes import Kind
from accel_dask.client.expressions import (
    Aggregation,
    Call,
    Column,
    Expr,
    Frame,
    InRows,
    Key,
    Literal,
    Window,
    clean,
)
from accel_dask.client.lower_aggregates import lower_aggregation
from accel_dask.client.nodes import Node
from accel_dask.errors import EpochRetired


class Reference(NamedTuple):
    """A column of a table of the FROM clause."""

    table: str
    column: str


class Bound(NamedTuple):
    """An expression, and what its columns are."""

    expr: Expr
    scope: Scope


Binding = Reference | Bound
ScopeKey = tuple[Node, str] | Window
Scope = Mapping[ScopeKey, Binding]
"""What columns and windows that were computed before are in the SELECT at hand."""


class Values:
    """Lowers expressions of one SELECT."""

    def __init__(
        self, scope: Scope, subquery: Callable[[InRows, bool], exp.Expr], pins: dict[str, int]
    ) -> None:
        self.scope = scope
        self.pins = pins
        """Datasets and epochs that what is lowered holds for; filled while lowering."""
        self._subquery = subquery

    def of(self, expr: Expr) -> exp.Expr:
        """The SQL of `expr`'s value."""
        match expr:
            case Column():
                return self._column(expr)
            case Literal():
                return sql.literal(expr.value, expr.dtype)
            case Call() if expr.op in _TESTS or (
                expr.dtype.kind is Kind.BOOL and expr.op in _LOGIC
            ):
                found = self.when(expr)
                return found if self._is_certain(expr) else sql.coalesce(found, sql.boolean(False))
            case Call():
                return _OPERATIONS[expr.op](self, expr)
            case Aggregation():
                return lower_aggregation(self, expr)
            case Window():
                return self._window(expr)
            case InRows():
                return sql.coalesce(self.when(expr), sql.boolean(False))
            case _:
                raise AssertionError(f"no value: {type(expr).__name__}")

    def cleaned(self, expr: Expr) -> exp.Expr:
        """As `of`, with NaN as NULL."""
        return self.of(clean(expr))

    def when(self, expr: Expr, wanted: bool = True) -> exp.Expr:
        """SQL that is true exactly where pandas has `expr` as `wanted`. It may be NULL elsewhere:
        raw, so that the engine and the planner can prune by it."""
        match expr:
            case Column():
                binding = self.scope[expr.source, expr.name]
                if isinstance(binding, Bound):
                    return self.inner(binding.scope).when(binding.expr, wanted)
            case Literal():
                return sql.boolean(bool(expr.value) is wanted)
            case InRows():
                return self._in_rows(expr, wanted)
            case Call() if expr.op in _LOGIC:
                return self._logic(expr, wanted)
            case Call() if expr.op in _TESTS:
                return _TESTS[expr.op](self, expr, wanted)
            case _:
                pass
        found = self.of(expr)
        if wanted:
            return found
        negated = sql.negation(found)
        return sql.coalesce(negated, sql.boolean(True)) if expr.may_null else negated

    def inner(self, scope: Scope) -> Values:
        return Values(scope, self._subquery, self.pins)

    def keys(self, keys: Sequence[Key]) -> list[exp.Expr]:
        """The ORDER BY of `keys`. NaN counts as missing: for the engine it is the greatest value,
        which makes no difference for an ascending key that none follows."""
        last = len(keys) - 1
        return [
            sql.ordered(
                self.of(key.expr)
                if index == last and key.is_ascending and not key.nulls_first
                else self.cleaned(key.expr),
                is_ascending=key.is_ascending,
                nulls_first=key.nulls_first,
            )
            for index, key in enumerate(keys)
        ]

    def _column(self, expr: Column) -> exp.Expr:
        binding = self.scope[expr.source, expr.name]
        if isinstance(binding, Reference):
            return sql.column(binding.table, binding.column)
        return self.inner(binding.scope).of(binding.expr)

    def _logic(self, expr: Call, wanted: bool) -> exp.Expr:
        if expr.op == "not":
            return self.when(expr.operands[0], not wanted)
        kind = exp.And if (expr.op == "and") is wanted else exp.Or
        return sql.connect(kind, [self.when(one, wanted) for one in expr.operands])

    def _is_certain(self, expr: Expr) -> bool:
        """Whether the SQL of `when(expr)` is never NULL."""
        if isinstance(expr, Call):
            if expr.op in {"isna", "notna"}:
                return True
            if expr.op in _LOGIC or expr.op in _TESTS:
                return all(self._is_certain(one) for one in expr.operands)
        return not expr.may_null

    def _window(self, expr: Window) -> exp.Expr:
        known = self.scope.get(expr)
        if isinstance(known, Reference):
            return sql.column(known.table, known.column)
        order = exp.Order(expressions=self.keys(expr.order)) if expr.order else None

        def over(call: exp.Expr) -> exp.Expr:
            return exp.Window(
                this=call,
                partition_by=[self.cleaned(one) for one in expr.partition],
                order=order.copy() if order is not None else None,
                spec=self._spec(expr.frame),
                over="OVER",
            )

        return lower_aggregation(self, expr.call, over)

    def _spec(self, frame: Frame | None) -> exp.WindowSpec | None:
        if frame is None:
            return None
        start, start_side = self._bound(frame.preceding, "PRECEDING")
        end, end_side = self._bound(frame.following, "FOLLOWING")
        kind = "RANGE" if frame.is_range else "ROWS"
        return exp.WindowSpec(
            kind=kind, start=start, start_side=start_side, end=end, end_side=end_side
        )

    def _bound(self, distance: int | Expr | None, side: str) -> tuple[Any, str | None]:
        if distance is None:
            return "UNBOUNDED", side
        if isinstance(distance, Expr):
            return sql.paren(self.of(distance)), side
        return ("CURRENT ROW", None) if distance == 0 else (sql.number(distance), side)

    def _in_rows(self, expr: InRows, wanted: bool) -> exp.Expr:
        found: exp.Expr = exp.In(
            this=sql.paren(self.cleaned(expr.value)), query=self._subquery(expr, False)
        )
        if _may_miss(expr.value) and _may_miss(expr.column):
            # A missing value is found where the others have one.
            missing = sql.is_null(self.cleaned(expr.value))
            there = sql.binary(exp.GT, self._subquery(expr, True), sql.number(0))
            found = sql.connect(exp.Or, [found, sql.connect(exp.And, [missing, there])])
        if wanted:
            return found
        return sql.coalesce(sql.negation(found), sql.boolean(True))


def _may_miss(expr: Expr) -> bool:
    return expr.may_null or expr.may_nan


# Tests: true, false, and never missing to pandas.

_COMPARISONS: Final[dict[str, type[exp.Binary]]] = {
    "lt": exp.LT,
    "le": exp.LTE,
    "gt": exp.GT,
    "ge": exp.GTE,
    "eq": exp.EQ,
    "ne": exp.NEQ,
}
_OPPOSITES: Final = {"lt": "ge", "le": "gt", "gt": "le", "ge": "lt", "eq": "ne", "ne": "eq"}


def _comparison(values: Values, expr: Call, wanted: bool) -> exp.Expr:
    op = expr.op
    if not wanted and op in {"eq", "ne"}:
        op, wanted = _OPPOSITES[op], True
    left, right = expr.operands
    if left.may_nan and right.may_nan:
        left, right = clean(left), clean(right)
    guarded = _guarded(op, left, right)
    may_null = left.may_null or right.may_null
    if wanted:
        return _compared(values, op, left, right, guarded, may_null=may_null)
    if not may_null and guarded is None:
        return sql.binary(_COMPARISONS[_OPPOSITES[op]], values.of(left), values.of(right))
    sides = [one for one in (left, right) if one.may_null]
    if guarded is None and not (left.may_nan or right.may_nan) and all(map(_is_plain, sides)):
        # Raw, so that shards are pruned by it.
        opposite = sql.binary(_COMPARISONS[_OPPOSITES[op]], values.of(left), values.of(right))
        return sql.connect(exp.Or, [opposite, *(sql.is_null(values.of(one)) for one in sides)])
    found = _compared(values, op, left, right, guarded, may_null=may_null)
    return sql.coalesce(sql.negation(found), sql.boolean(True))


def _is_plain(expr: Expr) -> bool:
    """Whether it costs nothing to name it twice."""
    return isinstance(expr, Column | Literal)


def _guarded(op: str, left: Expr, right: Expr) -> Expr | None:
    """The side whose NaN the engine would find greater than everything."""
    if op in {"gt", "ge"} and left.may_nan:
        return left
    return right if op in {"lt", "le"} and right.may_nan else None


def _compared(
    values: Values, op: str, left: Expr, right: Expr, guarded: Expr | None, *, may_null: bool
) -> exp.Expr:
    sides = values.of(left), values.of(right)
    if op == "ne" and may_null:
        if isinstance(left, Literal) or isinstance(right, Literal):
            return exp.NullSafeNEQ(this=sql.paren(sides[0]), expression=sql.paren(sides[1]))
        return sql.coalesce(sql.binary(exp.NEQ, *sides), sql.boolean(True))
    found = sql.binary(_COMPARISONS[op], *sides)
    if guarded is None:
        return found
    return sql.connect(exp.And, [found, sql.negation(sql.func("isnan", values.of(guarded)))])


def _missing(values: Values, expr: Call, wanted: bool) -> exp.Expr:
    found = values.cleaned(expr.operands[0])
    return sql.is_null(found) if (expr.op == "isna") is wanted else sql.is_not_null(found)


def _is_in(values: Values, expr: Call, wanted: bool) -> exp.Expr:
    operand, *members = expr.operands
    (with_null,) = expr.options
    parts: list[exp.Expr] = []
    if members:
        listed = [values.of(one) for one in members]
        parts.append(exp.In(this=sql.paren(values.of(operand)), expressions=listed))
    if with_null:
        parts.append(sql.is_null(values.cleaned(operand)))
    if not parts:
        return sql.boolean(not wanted)
    found = sql.connect(exp.Or, parts)
    if wanted:
        return found
    negated = sql.negation(found)
    return sql.coalesce(negated, sql.boolean(True)) if operand.may_null else negated


def _matches(values: Values, expr: Call, wanted: bool) -> exp.Expr:
    (function,) = expr.options
    found = sql.func(function, *map(values.of, expr.operands))
    if wanted:
        return found
    negated = sql.negation(found)
    return sql.coalesce(negated, sql.boolean(True)) if expr.operands[0].may_null else negated


_LOGIC: Final = frozenset(["and", "or", "not"])
_TESTS: Final[dict[str, Callable[[Values, Call, bool], exp.Expr]]] = {
    **dict.fromkeys(_COMPARISONS, _comparison),
    "isna": _missing,
    "notna": _missing,
    "isin": _is_in,
    "matches": _matches,
}


# Operations


def _whole(values: Values, operand: Expr) -> exp.Expr:
    """An integer operand, wide enough not to wrap."""
    found = values.of(operand)
    if isinstance(operand, Literal):
        return sql.number(int(operand.value)) if isinstance(operand.value, bool) else found
    if operand.dtype.kind is Kind.BOOL:
        return sql.cast(found, "BIGINT")
    if operand.dtype.kind is Kind.INT and operand.dtype.sql not in {"BIGINT", "HUGEINT"}:
        return sql.cast(found, "BIGINT")
    if operand.dtype.sql == "FLOAT":
        return sql.cast(found, "DOUBLE")
    return found


def _arithmetic(kind: type[exp.Binary]) -> Callable[[Values, Call], exp.Expr]:
    def lower(values: Values, expr: Call) -> exp.Expr:
        left, right = (_whole(values, one) for one in expr.operands)
        return sql.binary(kind, left, right)

    return lower


def _double(values: Values, operand: Expr) -> exp.Expr:
    if operand.dtype.sql == "DOUBLE":
        return values.of(operand)
    if isinstance(operand, Literal) and isinstance(operand.value, int | float):
        return sql.literal(float(operand.value), dtypes.FLOAT)
    return sql.cast(values.of(operand), "DOUBLE")


def _divide(values: Values, expr: Call) -> exp.Expr:
    left, right = expr.operands
    return sql.binary(exp.Div, _double(values, left), _double(values, right))


def _remainder(values: Values, expr: Call) -> exp.Expr:
    """Of the divisor's sign, as in Python; missing for a divisor of 0."""
    left, right = expr.operands
    pick = _double if expr.dtype.kind is Kind.FLOAT else _whole
    divisor = pick(values, right)
    if not (isinstance(right, Literal) and right.value):
        divisor = exp.Nullif(this=divisor, expression=sql.number(0))
    first = sql.binary(exp.Mod, pick(values, left), divisor)
    is_other_sign = sql.connect(
        exp.And,
        [
            sql.binary(exp.NEQ, first, sql.number(0)),
            sql.binary(
                exp.NEQ,
                sql.binary(exp.LT, first.copy(), sql.number(0)),
                sql.binary(exp.LT, divisor.copy(), sql.number(0)),
            ),
        ],
    )
    moved = sql.binary(exp.Add, first.copy(), divisor.copy())
    return sql.case([(is_other_sign, moved)], first.copy())


def _floor_divide(values: Values, expr: Call) -> exp.Expr:
    left, right = expr.operands
    pick = _double if expr.dtype.kind is Kind.FLOAT else _whole
    remainder = _remainder(values, expr)
    rest = sql.binary(exp.Sub, pick(values, left), remainder)
    if expr.dtype.kind is not Kind.FLOAT:
        return sql.func("divide", rest, pick(values, right))
    divisor = _double(values, right)
    nonzero = exp.Nullif(this=divisor, expression=sql.number(0))
    whole = sql.func("round", sql.binary(exp.Div, rest, nonzero))
    by_zero = sql.binary(exp.EQ, divisor.copy(), sql.number(0))
    return sql.case(
        [(by_zero, sql.binary(exp.Div, _double(values, left), divisor.copy()))], whole
    )  # fmt: skip


def _round(values: Values, expr: Call) -> exp.Expr:
    (digits,) = expr.options
    found = _double(values, expr.operands[0])
    if digits == 0:
        return sql.func("round_even", found, sql.number(0))
    factor = sql.literal(10.0 ** abs(digits), dtypes.FLOAT)
    up, down = (exp.Mul, exp.Div) if digits > 0 else (exp.Div, exp.Mul)
    scaled = sql.func("round_even", sql.binary(up, found, factor), sql.number(0))
    return sql.binary(down, scaled, factor.copy())


def _function(name: str) -> Callable[[Values, Call], exp.Expr]:
    def lower(values: Values, expr: Call) -> exp.Expr:
        return sql.func(name, *map(values.of, expr.operands))

    return lower


def _named_function(values: Values, expr: Call) -> exp.Expr:
    return sql.func(expr.options[0], *map(values.of, expr.operands))


def _double_function(values: Values, expr: Call) -> exp.Expr:
    return sql.func(expr.options[0], *(_double(values, one) for one in expr.operands))


def _power(values: Values, expr: Call) -> exp.Expr:
    left, right = expr.operands
    if expr.dtype.kind is Kind.INT and isinstance(right, Literal):
        found: exp.Expr = sql.number(1)
        for index in range(right.value):
            base = _whole(values, left)
            found = base if index == 0 else sql.binary(exp.Mul, found, base)
        return found
    found = sql.func("pow", _double(values, left), _double(values, right))
    if isinstance(right, Literal):
        return found
    # What is missing to the power of 0, and 1 to the power of what is missing, is 1.
    one = sql.literal(1.0, dtypes.FLOAT)
    no_power = sql.binary(exp.EQ, _double(values, right), sql.number(0))
    of_one = sql.binary(exp.EQ, _double(values, left), sql.number(1))
    return sql.case([(no_power, one), (of_one, one.copy())], found)


def _cast(values: Values, expr: Call) -> exp.Expr:
    return sql.cast(values.of(expr.operands[0]), expr.dtype.sql)


def _truncated(values: Values, expr: Call) -> exp.Expr:
    return sql.cast(sql.func("trunc", values.cleaned(expr.operands[0])), "BIGINT")


def _bool_text(values: Values, expr: Call) -> exp.Expr:
    found = values.of(expr.operands[0])
    branches = [(found, sql.text("True")), (sql.negation(found.copy()), sql.text("False"))]
    return sql.case(branches, None)


def _case(values: Values, expr: Call) -> exp.Expr:
    *pairs, default = expr.operands
    branches = [
        (values.when(condition), values.of(value))
        for condition, value in zip(pairs[::2], pairs[1::2], strict=True)
    ]
    is_missing = isinstance(default, Literal) and default.value is None
    return sql.case(branches, None if is_missing else values.of(default))


def _coalesce(values: Values, expr: Call) -> exp.Expr:
    *firsts, last = expr.operands
    found = [values.cleaned(one) for one in firsts] + [values.of(last)]
    return sql.coalesce(*found)


def _clean(values: Values, expr: Call) -> exp.Expr:
    return sql.without_nan(values.of(expr.operands[0]))


def _negative(values: Values, expr: Call) -> exp.Expr:
    return exp.Neg(this=sql.paren(_whole(values, expr.operands[0])))


def _concat(values: Values, expr: Call) -> exp.Expr:
    left, right = map(values.of, expr.operands)
    is_chain = isinstance(left, exp.DPipe)
    return exp.DPipe(this=left if is_chain else sql.paren(left), expression=sql.paren(right))


def _date_part(values: Values, expr: Call) -> exp.Expr:
    (part,) = expr.options
    return sql.func("date_part", sql.text(part), values.of(expr.operands[0]))


def _date_trunc(values: Values, expr: Call) -> exp.Expr:
    (part,) = expr.options
    (operand,) = expr.operands
    truncated = sql.func("date_trunc", sql.text(part), values.of(operand))
    if operand.dtype.kind is expr.dtype.kind is Kind.TIMESTAMP:
        return truncated
    return sql.cast(truncated, expr.dtype.sql)


def _local(values: Values, expr: Call) -> exp.Expr:
    """A TIMESTAMPTZ as the clock of a zone, or the other way."""
    (zone,) = expr.options
    return sql.func("timezone", sql.text(zone), values.of(expr.operands[0]))


def _add_microseconds(values: Values, expr: Call) -> exp.Expr:
    instant, distance = expr.operands
    found = values.of(instant)
    if instant.dtype.kind is Kind.DATE:
        found = sql.cast(found, "TIMESTAMP")
    return sql.binary(exp.Add, found, sql.func("to_microseconds", values.of(distance)))


def _microseconds(values: Values, expr: Call) -> exp.Expr:
    (operand,) = expr.operands
    found = values.of(operand)
    if operand.dtype.kind is Kind.DATE:
        found = sql.cast(found, "TIMESTAMP")
    return sql.func("epoch_us", found)


def _same(values: Values, expr: Call) -> exp.Expr:
    return values.of(expr.operands[0])


def _pinned(values: Values, expr: Call) -> exp.Expr:
    """What was made with values of an epoch, such as edges of bins, holds for that epoch only."""
    for dataset, epoch in expr.options:
        if values.pins.setdefault(dataset, epoch) != epoch:
            raise EpochRetired(
                f"bins of {dataset} made at its epochs {values.pins[dataset]} and {epoch} in one "
                "frame: make them again, or inside `with session.snapshot():`"
            )
    return values.of(expr.operands[0])


_BIN_ENDS: Final = {
    "week": ("DAY", 6, 0),
    "month": ("MONTH", 1, 1),
    "quarter": ("MONTH", 3, 1),
    "year": ("MONTH", 12, 1),
}


def _bin_end(values: Values, expr: Call) -> exp.Expr:
    """Midnight of the last day of the week, month, quarter or year that begins there."""
    unit, count, days_back = _BIN_ENDS[expr.options[0]]
    start = values.of(expr.operands[0])
    end = sql.binary(exp.Add, start, sql.interval(count, unit))
    if not days_back:
        return end
    return sql.binary(exp.Sub, end, sql.interval(days_back, "DAY"))


_OPERATIONS: Final[dict[str, Callable[[Values, Call], exp.Expr]]] = {
    "add": _arithmetic(exp.Add),
    "sub": _arithmetic(exp.Sub),
    "mul": _arithmetic(exp.Mul),
    "div": _divide,
    "mod": _remainder,
    "floordiv": _floor_divide,
    "pow": _power,
    "neg": _negative,
    "abs": _function("abs"),
    "round": _round,
    "double_function": _double_function,
    "function": _named_function,
    "cast": _cast,
    "truncated": _truncated,
    "bool_text": _bool_text,
    "case": _case,
    "coalesce": _coalesce,
    "clean": _clean,
    "concat": _concat,
    "date_part": _date_part,
    "date_trunc": _date_trunc,
    "timezone": _local,
    "add_us": _add_microseconds,
    "us": _microseconds,
    "timestamp_of": _function("make_timestamp"),
    "bin_end": _bin_end,
    "relabelled": _same,
    "literal_us": _same,
    "nan_guarded": _same,
    "pinned": _pinned,
}
