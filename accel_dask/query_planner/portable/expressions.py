"""Expressions of DuckDB's dialect as portable ones, with DuckDB's types.

Only what is written here is let through, with the arguments that are read here. Whatever an
engine could understand otherwise is spelled out or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from sqlglot import exp

from accel_dask.query_planner.portable import literals
from accel_dask.query_planner.portable.calls import CALLS, shift
from accel_dask.query_planner.portable.coerce import adapted, cast, coerced, compared, unified
from accel_dask.query_planner.portable.names_in_scope import Scope
from accel_dask.query_planner.portable.refusals import check_arguments, refuse, told
from accel_dask.query_planner.portable.tree import AGGREGATES, Node, Query, digits_of_bits, signed
from accel_dask.query_planner.portable.types import (
    BIGINT,
    BOOL,
    DATE,
    DOUBLE,
    MAX_DIGITS,
    NULL,
    TEXT,
    Kind,
    SqlType,
    arithmetic_type,
    decimal,
    sum_type,
    type_named,
)

_COMPARISONS: Final[dict[type[exp.Expr], tuple[str, str]]] = {
    exp.EQ: ("eq", "="),
    exp.NEQ: ("ne", "<>"),
    exp.LT: ("lt", "<"),
    exp.LTE: ("le", "<="),
    exp.GT: ("gt", ">"),
    exp.GTE: ("ge", ">="),
}
_ARITHMETIC: Final[dict[type[exp.Expr], tuple[str, str]]] = {
    exp.Add: ("add", "+"),
    exp.Sub: ("sub", "-"),
    exp.Mul: ("mul", "*"),
}
_AGGREGATES: Final = frozenset({exp.Count, exp.Sum, exp.Avg, exp.Min, exp.Max})
_TRUTHS: Final = frozenset({exp.LogicalOr, exp.LogicalAnd})
_KNOWN: Final = _AGGREGATES | {
    exp.Column, exp.Literal, exp.Boolean, exp.Null, exp.Paren, exp.Placeholder, exp.And, exp.Or,
    exp.Not, exp.Is, exp.Between, exp.In, exp.NullSafeEQ, exp.NullSafeNEQ, exp.Neg, exp.Div,
    exp.IntDiv, exp.Mod, exp.Cast, exp.Case, exp.If, exp.Coalesce, exp.Nullif, exp.Like,
    exp.Escape, exp.Filter, exp.Subquery,
}  # fmt: skip
_SUM_BITS: Final = 34
"""A sum of at most 17 billion rows has so many bits more than its values."""
_SUM_DIGITS: Final = 10


@dataclass(frozen=True, slots=True)
class Reader:
    """Reads expressions in one scope."""

    scope: Scope
    query_of: Callable[[exp.Expr], Query]
    """Reads a subquery that sees nothing of this scope."""
    parameters: Mapping[int, Node] = field(default_factory=dict)
    """By the id of their placeholder."""
    aliases: Mapping[str, exp.Expr] = field(default_factory=dict)
    """Of the SELECT's items: names that DuckDB resolves where no column has them."""
    is_grouped: bool = False
    """Where `count(*)` is never 0."""

    def read(self, node: exp.Expr) -> Node:  # noqa: C901, PLR0911, PLR0912 - a table of nodes
        """
        Raises:
            NotPortable: it is not in the subset.
        """
        if type(node) in _COMPARISONS:
            return self._comparison(node)
        if type(node) in _ARITHMETIC:
            return self._arithmetic(node)
        if isinstance(node, exp.Anonymous) and str(node.this).lower() == "divide":
            return self._divided("intdiv", node, *node.expressions)
        if type(node) in CALLS:
            return CALLS[type(node)](node, self.read)
        if type(node) in _TRUTHS:
            return self._truth(node)
        if type(node) not in _KNOWN:  # not a kind of one of these either
            return refuse(told(node))
        match node:
            case exp.Column():
                return self._column(node)
            case exp.Literal():
                return literals.text(node.this) if node.is_string else literals.number(node.this)
            case exp.Boolean():
                return literals.boolean(bool(node.this))
            case exp.Null():
                return literals.null()
            case exp.Paren():
                return self.read(node.this)
            case exp.Placeholder():
                return self.parameters.get(id(node)) or refuse("a parameter without a value")
            case exp.And() | exp.Or() | exp.Not():
                return self._logic(node)
            case exp.Is():
                return self._is(node)
            case exp.Between():
                return self._between(node)
            case exp.In():
                return self._in(node)
            case exp.NullSafeEQ() | exp.NullSafeNEQ():
                return self._null_safe(node)
            case exp.Neg():
                return self._negated(node)
            case exp.Div():
                return self._division(node)
            case exp.IntDiv() | exp.Mod():
                return self._whole_division(node)
            case exp.Cast():
                return self._cast(node)
            case exp.Case():
                return self._case(node)
            case exp.If():
                return self._if(node)
            case exp.Coalesce():
                check_arguments(node, "this", "expressions")
                values = [self.read(one) for one in (node.this, *node.expressions)]
                kind, values = unified(values, "coalesce")
                return _joined("coalesce", kind, values, values)
            case exp.Nullif():
                return self._nullif(node)
            case exp.Like() | exp.Escape():
                return self._like(node)
            case exp.Filter():
                return self._filtered(node)
            case exp.Count() | exp.Sum() | exp.Avg() | exp.Min() | exp.Max():
                return self._aggregate(node, None)
            case exp.Subquery():
                return self._scalar(node)
            case _:
                return refuse(told(node))

    def condition(self, node: exp.Expr) -> Node:
        """A WHERE, HAVING or ON."""
        found = self.read(node)
        if found.type == NULL:
            return literals.null(BOOL)
        return found if found.type == BOOL else refuse(told(node), "it is no truth value")

    def _column(self, node: exp.Column) -> Node:
        found = self.scope.column(node)
        if found is not None and found.op == "unread":
            refuse(f"the column {found.text}", "engines keep this type in ways of their own")
        if found is not None:
            return found
        alias = self.aliases.get(node.name.lower()) if not node.table else None
        if alias is None:
            return refuse(f"the column {told(node)}", "no table in this SELECT has it")
        if any(source.name == node.name.lower() for source in self.scope.sources):
            refuse(f"the column {told(node)}", "it is a table too, whose row it would be")
        left = {name: item for name, item in self.aliases.items() if item is not alias}
        return replace(self, aliases=left).read(alias)

    def _comparison(self, node: exp.Expr) -> Node:
        check_arguments(node, "this", "expression")
        op, sign = _COMPARISONS[type(node)]
        left, right = compared(self.read(node.this), self.read(node.expression), sign)
        if op in {"eq", "ne"}:
            _check_equality(left, right)
        return Node(op, BOOL, (left, right))

    def _logic(self, node: exp.Expr) -> Node:
        check_arguments(node, "this", "expression")
        parts = [node.this] if isinstance(node, exp.Not) else [node.this, node.expression]
        args = tuple(self.condition(part) for part in parts)
        return Node(type(node).__name__.lower(), BOOL, args)

    def _is(self, node: exp.Is) -> Node:
        check_arguments(node, "this", "expression")
        if not isinstance(node.expression, exp.Null):
            refuse(told(node), "write x = true or x = false")
        return Node("is_null", BOOL, (self.read(node.this),))

    def _between(self, node: exp.Between) -> Node:
        check_arguments(node, "this", "low", "high")
        value = self.read(node.this)
        low = compared(value, self.read(node.args["low"]), "BETWEEN")
        high = compared(value, self.read(node.args["high"]), "BETWEEN")
        return Node("and", BOOL, (Node("ge", BOOL, low), Node("le", BOOL, high)))

    def _in(self, node: exp.In) -> Node:
        check_arguments(node, "this", "expressions", "query")
        value = self.read(node.this)
        query = node.args.get("query")
        if query is not None:
            return self._in_query(value, query)
        # One comparison each: some engines bring the whole list to one type.
        pairs = [compared(value, self.read(one), "IN") for one in node.expressions]
        for left, right in pairs:
            _check_equality(left, right)
        if all(left == pairs[0][0] for left, _ in pairs):
            return Node("in", BOOL, (pairs[0][0], *(right for _, right in pairs)))
        return Node("or", BOOL, tuple(Node("eq", BOOL, pair) for pair in pairs))

    def _in_query(self, value: Node, query: exp.Expr) -> Node:
        found = self.query_of(query)
        if len(found.outputs) != 1 or found.limit is not None:
            refuse(told(query), "IN takes a subquery of one column and no LIMIT")
        kind = found.outputs[0].type
        if kind != value.type:
            refuse(f"{value.type} IN (SELECT {kind})", "cast them to one type")
        _check_equality(value, value)
        return Node("in_query", BOOL, (value,), query=found)

    def _scalar(self, node: exp.Subquery) -> Node:
        check_arguments(node, "this")
        found = self.query_of(node)
        if len(found.outputs) != 1 or found.max_rows != 1:
            refuse(told(node), "a subquery as a value must be one aggregate without GROUP BY")
        kind = found.outputs[0].type
        return Node("scalar", kind, size=_full_size(kind), is_exact=kind != DOUBLE, query=found)

    def _null_safe(self, node: exp.Expr) -> Node:
        check_arguments(node, "this", "expression")
        left, right = compared(self.read(node.this), self.read(node.expression), "IS DISTINCT")
        _check_equality(left, right)
        same = Node("same", BOOL, (left, right))
        return same if isinstance(node, exp.NullSafeEQ) else Node("not", BOOL, (same,))

    def _negated(self, node: exp.Neg) -> Node:
        value = self.read(node.this)
        if value.op == "literal" and value.type.is_number:
            return literals.negated(value)
        if not value.type.is_number:
            refuse(told(node))
        return signed(value, "neg")

    def _arithmetic(self, node: exp.Expr) -> Node:
        check_arguments(node, "this", "expression")
        op, sign = _ARITHMETIC[type(node)]
        for one, other in ((node.this, node.expression), (node.expression, node.this)):
            if isinstance(other, exp.Interval):
                if op == "mul" or (op == "sub" and other is node.this):
                    refuse(told(node))
                return shift(self.read(one), other, sign)
        left, right = adapted([self.read(node.this), self.read(node.expression)])
        if DATE in {left.type, right.type}:
            return _day_arithmetic(op, left, right, told(node))
        if not (left.type.is_number and right.type.is_number):
            refuse(told(node), f"{left.type} {sign} {right.type} is not arithmetic of numbers")
        return _number_arithmetic(op, sign, left, right, told(node))

    def _division(self, node: exp.Div) -> Node:
        check_arguments(node, "this", "expression")
        value, divisor = self.read(node.this), self.read(node.expression)
        if not (value.type.is_number and divisor.type.is_number):
            refuse(told(node))
        if not self._is_never_zero(divisor):
            refuse(
                told(node),
                "engines differ on division by zero; write x / nullif(y, 0)",
            )
        left, right = coerced(value, DOUBLE), coerced(divisor, DOUBLE)
        exact = left.is_exact and right.is_exact
        return Node("div", DOUBLE, (left, right), is_exact=exact)

    def _is_never_zero(self, node: Node) -> bool:
        if node.op == "literal":
            return float(node.text) != 0
        if node.op == "nullif":
            return node.args[1].op == "literal" and float(node.args[1].text) == 0
        return node.op == "count_star" and self.is_grouped and not node.args

    def _whole_division(self, node: exp.Expr) -> Node:
        check_arguments(node, "this", "expression")
        op = "mod" if isinstance(node, exp.Mod) else "intdiv"
        return self._divided(op, node, node.this, node.expression)

    def _divided(self, op: str, node: exp.Expr, *sides: exp.Expr) -> Node:
        if len(sides) != 2:
            refuse(told(node))
        value, divisor = adapted([self.read(one) for one in sides])
        is_whole = value.type.kind is Kind.INT and divisor.type.kind is Kind.INT
        if not is_whole or divisor.op != "literal" or int(divisor.text) == 0 or value.is_wide:
            refuse(told(node), "only integers are divided so, by a number other than 0")
        kind = arithmetic_type("+", value.type, divisor.type)
        assert kind is not None
        size = min(value.size, divisor.size) if op == "mod" else value.size
        return Node(op, kind, (value, divisor), size=size)

    def _cast(self, node: exp.Cast) -> Node:
        check_arguments(node, "this", "to")
        if type(node) is not exp.Cast:
            refuse(told(node), "only plain CAST is")
        kind = type_named(node.to.sql(dialect="duckdb").replace(" ", ""))
        if kind is None or node.to.args.get("nested"):
            return refuse(f"CAST to {node.to.sql(dialect='duckdb')}")
        return cast(self.read(node.this), kind)

    def _case(self, node: exp.Case) -> Node:
        check_arguments(node, "this", "ifs", "default")
        conditions = []
        for one in node.args["ifs"]:
            check_arguments(one, "this", "true")
            condition = one.this
            if node.this is not None:
                condition = exp.EQ(this=node.this.copy(), expression=one.this.copy())
                _keep_ids(node.this, condition.this)
            conditions.append(self.condition(condition))
        values = [self.read(one.args["true"]) for one in node.args["ifs"]]
        default = node.args.get("default")
        values.append(literals.null() if default is None else self.read(default))
        return _case_of(conditions, values)

    def _if(self, node: exp.If) -> Node:
        check_arguments(node, "this", "true", "false")
        other = node.args.get("false")
        values = [self.read(node.args["true"])]
        values.append(literals.null() if other is None else self.read(other))
        return _case_of([self.condition(node.this)], values)

    def _nullif(self, node: exp.Nullif) -> Node:
        check_arguments(node, "this", "expression")
        value = self.read(node.this)
        left, right = compared(value, self.read(node.expression), "nullif")
        _check_equality(left, right)
        if left.type != value.type:
            refuse(told(node), "both sides must be of one type")
        return replace(
            left, op="nullif", args=(left, right), text="", query=None, is_adaptable=False
        )

    def _like(self, node: exp.Expr) -> Node:
        escape = ""
        if isinstance(node, exp.Escape):
            check_arguments(node, "this", "expression")
            mark = self.read(node.expression)
            if mark.op != "literal" or len(mark.text) != 1 or not isinstance(node.this, exp.Like):
                refuse(told(node))
            escape, node = mark.text, node.this
        check_arguments(node, "this", "expression", "negate")
        value, pattern = self.read(node.this), self.read(node.expression)
        if value.type != TEXT or pattern.type != TEXT or pattern.op != "literal":
            refuse(told(node), "LIKE takes a text and a pattern that is written out")
        found = Node("like", BOOL, (value,), text=plain_pattern(pattern.text, escape))
        return Node("not", BOOL, (found,)) if node.args.get("negate") else found

    def _filtered(self, node: exp.Filter) -> Node:
        check_arguments(node, "this", "expression")
        if type(node.this) not in _AGGREGATES:
            refuse(told(node))
        return self._aggregate(node.this, self.condition(node.expression.this))

    def _truth(self, node: exp.Expr) -> Node:
        """bool_or and bool_and, by counting; NULL of no values."""
        check_arguments(node, "this")
        value = self.condition(node.this)
        if contains_aggregate(value) or not reads_column(value):
            refuse(told(node))
        deciding = value if isinstance(node, exp.LogicalOr) else Node("not", BOOL, (value,))
        one, zero = literals.integer(1), literals.integer(0)
        found = Node("count", BIGINT, (_case_of([deciding], [one]),), size=63)
        there = Node("count", BIGINT, (value,), size=63)
        op = "gt" if isinstance(node, exp.LogicalOr) else "eq"
        result = Node(op, BOOL, compared(found, zero, "="))
        return _case_of([Node("gt", BOOL, compared(there, zero, ">"))], [result])

    def _aggregate(self, node: exp.Expr, where: Node | None) -> Node:
        check_arguments(node, "this", "big_int")
        inner, argument = self, node.this
        if isinstance(argument, exp.Star) and isinstance(node, exp.Count):
            check_arguments(argument)
            if where is None:
                return Node("count_star", BIGINT, size=63)
            return Node("count", BIGINT, (_case_of([where], [literals.integer(1)]),), size=63)
        is_distinct = isinstance(argument, exp.Distinct)
        if is_distinct:
            check_arguments(argument, "expressions")
            if len(argument.expressions) != 1:
                refuse(told(node), "it takes one value")
            argument = argument.expressions[0]
        if argument is None:
            return refuse(told(node))
        value = replace(inner.read(argument), is_adaptable=False)
        if contains_aggregate(value):
            refuse(told(node), "an aggregate of an aggregate is no SQL")
        if is_distinct:
            _check_equality(value, value)
        if where is not None:
            value = _case_of([where], [value])
        if not reads_column(value) and (is_distinct or not isinstance(node, exp.Count)):
            refuse(told(node), "of a constant in no rows some engine makes a value")
        return _aggregate_of(node, value, is_distinct)


def _keep_ids(original: exp.Expr, copied: exp.Expr) -> None:
    if any(isinstance(one, exp.Placeholder) for one in original.walk()):
        refuse(told(copied), "a parameter is compared several times")


def contains_aggregate(node: Node) -> bool:
    return node.op in AGGREGATES or any(contains_aggregate(one) for one in node.args)


def check_subqueries(condition: Node | None) -> None:
    """Let IN (SELECT ...) stand only where UNKNOWN is as good as FALSE: as one of a WHERE's
    conjuncts. Elsewhere some engine forgets the subquery's NULLs."""
    if condition is None:
        return
    if condition.op == "and":
        for one in condition.args:
            check_subqueries(one)
    elif condition.op == "in_query":
        check_no_subquery(*condition.args)
        if not reads_column(condition.args[0]):
            refuse("a constant IN a subquery", "some engine forgets the subquery's NULLs")
    else:
        check_no_subquery(condition)


def check_no_subquery(*nodes: Node | None) -> None:
    for node in nodes:
        if node is None:
            continue
        if node.op == "in_query":
            refuse(
                "IN a subquery anywhere but as a condition of WHERE by itself, or NOT IN",
                "some engine forgets the subquery's NULLs there",
            )
        check_no_subquery(*node.args)


def reads_column(node: Node) -> bool:
    """Whether its value may differ from row to row."""
    return (node.op == "column" and not node.is_constant) or any(map(reads_column, node.args))


def _check_equality(left: Node, right: Node) -> None:
    if not (left.is_exact and right.is_exact):
        refuse(
            "equality of doubles that were summed up or rounded",
            "their last digits depend on the engine",
        )


def _joined(op: str, kind: SqlType, values: list[Node], args: list[Node]) -> Node:
    return Node(
        op,
        kind,
        tuple(args),
        size=max(value.size for value in values),
        is_exact=all(value.is_exact for value in values),
    )


def _case_of(conditions: list[Node], values: list[Node]) -> Node:
    """CASE with each condition's value; one more value is that of ELSE."""
    if len(values) == len(conditions):
        values = [*values, literals.null()]
    kind, values = unified(values, "CASE")
    if kind == NULL:
        refuse("a CASE of nothing but NULL")
    args = [part for pair in zip(conditions, values, strict=False) for part in pair]
    return _joined("case", kind, values, [*args, values[-1]])


def _aggregate_of(node: exp.Expr, value: Node, is_distinct: bool) -> Node:
    text = "distinct" if is_distinct else ""
    if value.type == NULL:
        refuse(told(node))
    if isinstance(node, exp.Count):
        return Node("count", BIGINT, (value,), text=text, size=63)
    if isinstance(node, exp.Min | exp.Max):
        if value.type == BOOL:
            refuse(told(node), "not every engine has it of truth values")
        return replace(value, op=type(node).__name__.lower(), args=(value,), text="", query=None)
    if not value.type.is_number:
        refuse(told(node))
    total = _sum(value, text)
    if isinstance(node, exp.Sum):
        return total
    count = Node("count", BIGINT, (value,), text=text, size=63)
    # Every engine has an average of its own type and scale.
    # One divides even NULL by 0 with an error.
    some = replace(count, op="nullif", args=(count, literals.integer(0)), text="")
    parts = (coerced(total, DOUBLE), coerced(some, DOUBLE))
    return Node("div", DOUBLE, parts, is_exact=False)


def _sum(value: Node, text: str) -> Node:
    kind = sum_type(value.type)
    if kind == DOUBLE:
        return Node("sum", DOUBLE, (value,), text=text, is_exact=False)
    if kind.kind is Kind.DECIMAL and value.size + _SUM_DIGITS > MAX_DIGITS:
        value = _narrowed(value)
    size = value.size + (_SUM_BITS if kind.kind is Kind.INT else _SUM_DIGITS)
    digits = digits_of_bits(size) if kind.kind is Kind.INT else size
    if digits > MAX_DIGITS:
        refuse(f"a sum of {value.type}", f"it may have more than {MAX_DIGITS} digits")
    return Node("sum", kind, (value,), text=text, size=size)


def _number_arithmetic(op: str, sign: str, left: Node, right: Node, what: str) -> Node:
    kind = arithmetic_type(sign, left.type, right.type)
    if kind is None:
        return refuse(what, f"it may have more than {MAX_DIGITS} digits")
    if kind == DOUBLE:
        left, right = coerced(left, DOUBLE), coerced(right, DOUBLE)
        return Node(op, DOUBLE, (left, right), is_exact=left.is_exact and right.is_exact)
    if kind.kind is Kind.INT:
        size = left.size + right.size if op == "mul" else max(left.size, right.size) + 1
        if digits_of_bits(size) > MAX_DIGITS:
            refuse(what, f"it may have more than {MAX_DIGITS} digits")
        return Node(op, kind, (left, right), size=size)
    if _decimal_digits(op, left, right) > MAX_DIGITS:
        left, right = _narrowed(left), _narrowed(right)
    size = _decimal_digits(op, left, right)
    if size > MAX_DIGITS:
        refuse(what, f"an engine may need more than {MAX_DIGITS} digits for it")
    return Node(op, kind, (_decimal_operand(left), _decimal_operand(right)), size=size)


def _decimal_digits(op: str, left: Node, right: Node) -> int:
    """That an engine may need for the result."""
    if op == "mul":
        return left.digits + right.digits + 1
    scales = left.type.scale, right.type.scale
    whole = max(left.digits - scales[0], right.digits - scales[1])
    return whole + max(scales) + 1


def _narrowed(node: Node) -> Node:
    """A decimal with no more digits than DuckDB gives it: it fails on larger values, so that the
    engine may, but must not answer."""
    if node.type.kind is not Kind.DECIMAL or node.size <= node.type.width:
        return node
    return Node("narrow", node.type, (node,), size=node.type.width)


def _decimal_operand(node: Node) -> Node:
    if node.type.kind is Kind.DECIMAL:
        return node
    return coerced(node, decimal(min(max(node.digits, 1), MAX_DIGITS), 0))


def _day_arithmetic(op: str, left: Node, right: Node, what: str) -> Node:
    if op == "sub" and left.type == right.type == DATE:
        return Node("days_between", BIGINT, (left, right), size=32)
    day, days = (left, right) if left.type == DATE else (right, left)
    is_plain = days.op == "literal" and days.type.kind is Kind.INT and abs(int(days.text)) < 10**6
    if op == "mul" or not is_plain or (op == "sub" and day is right):
        refuse(what)
    count = int(days.text) * (-1 if op == "sub" else 1)
    return Node("add_days", DATE, (day,), text=str(count))


def _full_size(kind: SqlType) -> int:
    if kind.kind is Kind.INT:
        return min(kind.width - 1, 120)
    return kind.width


def plain_pattern(pattern: str, escape: str) -> str:
    """A LIKE pattern in which a backslash makes the next character plain."""
    found = []
    characters = iter(pattern)
    for character in characters:
        if escape and character == escape:
            following = next(characters, "")
            if following not in {"%", "_", escape}:
                refuse(f"the pattern {pattern!r}", "its escape character escapes nothing")
            found.append("\\" + following)
        elif character == "\\":
            found.append("\\\\")
        else:
            found.append(character)
    return "".join(found)
