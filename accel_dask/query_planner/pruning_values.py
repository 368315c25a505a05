"""Pruning for statements of one form: their conditions are read once, then only their values are.

The conditions of a form say the same of columns whatever their values, as long as every value is
understood as the first one was; where one is not (it is out of range, or no date), nothing is said
here and the statement is read as any other. Pure; used where plans are kept by form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final, NamedTuple

from sqlglot import exp

from accel_dask.model.routing import DatasetRoute
from accel_dask.query_planner.predicates import (
    HIGHEST,
    LOWEST,
    TRUE,
    UNKNOWN,
    And,
    Bounds,
    Comparison,
    Membership,
    Not,
    Operand,
    Or,
    Predicate,
    Range,
)
from accel_dask.query_planner.pruning_bounds import BoundsCache, TableShards
from accel_dask.query_planner.pruning_conditions import (
    FLIPPED,
    OPAQUE,
    OPERATORS,
    Resolve,
    flat,
    operand_of,
    predicate_of,
    says_something,
)
from accel_dask.query_planner.pruning_constants import (
    DATE_TYPES,
    Constant,
    cast_constant,
    constant_of,
    day_start,
    has_only,
    is_plain_type,
    literal_constant,
    ranges_for,
    sum_constant,
)
from accel_dask.query_planner.pruning_filters import Filters, filtered_by

Values = Sequence[str]
"""Of a form's literals that may change, without quotes."""
Kept = tuple[tuple[int, ...], ...]
"""Of each reading that values filter, the shards that may match."""

_ReadRanges = Callable[[Values], list[Range] | None]
"""None: a value is not understood, as also below."""
_ReadConstant = Callable[[Values], Constant | None]
_Build = Callable[[Values], Predicate | None]
_Test = Callable[[Values, Sequence[int]], Sequence[int] | None]
"""Which of some shards may match."""

_PLAIN_DIGITS: Final = 18
"""An integer of no more digits is certainly one to the engine."""


class _Leaf(NamedTuple):
    """A comparison of an operand with constants, some of which are values."""

    operand: Operand
    operators: tuple[str, ...]
    """One for each constant, all of which must hold; none: it is one of the constants."""
    read: _ReadRanges

    def built(self, values: Values) -> Predicate | None:
        ranges = self.read(values)
        if ranges is None:
            return None
        if not self.operators:
            ranges.sort()
            lows, highs = tuple(low for low, _ in ranges), tuple(high for _, high in ranges)
            return Membership(self.operand, lows, highs, has_null=False)
        parts = tuple(
            Not(Comparison(self.operand, "=", found))
            if operator == "<>"
            else Comparison(self.operand, operator, found)
            for operator, found in zip(self.operators, ranges, strict=True)
        )
        return parts[0] if len(parts) == 1 else And(parts)


class _Unclear(Exception):
    """What a condition says depends on more than is read here."""


class ValueFilters:
    """What the values of a form decide of its pruning, on routes that stay the same."""

    def __init__(self, readings: Mapping[int, tuple[Sequence[int], tuple[_Test, ...]]]) -> None:
        """Of each reading that values filter, by its number: the shards that may match whatever
        they are, and the tests."""
        self.numbers: Final = tuple(readings)
        self._readings: Final = tuple(readings.values())

    def kept(self, values: Values) -> Kept | None:
        """None: a value is not understood."""
        found = []
        for kept, tests in self._readings:
            for test in tests:
                left = test(values, kept)
                if left is None:
                    return None
                kept = left  # noqa: PLW2901 - what is left of them
            found.append(tuple(kept))
        return tuple(found)


def value_filters(
    filters: Filters,
    routes: Mapping[int, DatasetRoute],
    places: Mapping[int, int],
    values: Values,
    cache: BoundsCache,
) -> ValueFilters | None:
    """What values decide of `filters`, which are of a form that holds `values` now; None: that is
    not clear. `routes` are by the table's node, `places` by the literal's node the number of its
    value: keys are ids."""
    fixed: list[list[Predicate]] = [[] for _ in filters.nodes]
    tests: list[list[_Test]] = [[] for _ in filters.nodes]
    shards = [
        TableShards(number, routes[id(node)], cache) for number, node in enumerate(filters.nodes)
    ]
    try:
        for put in filters.puts:
            resolve = put.resolver.operand
            predicate = predicate_of(put.expression, resolve)
            if not _has_value(put.expression, places):
                for table in filtered_by(put, predicate):
                    fixed[table].append(predicate)
                continue
            build, leaf = _builder(put.expression, resolve, places)
            if build(values) != predicate:
                return None
            # Values do not decide which tables: each operand is where it is, and of a row of
            # NULLs no comparison is TRUE, whatever it is with.
            for table in filtered_by(put, predicate):
                tests[table] += _tests(build, leaf, shards[table])
    except _Unclear:
        return None
    readings = {}
    for number, found in enumerate(tests):
        if found:
            kept = [at for at, shard in enumerate(shards[number].route.shards) if shard.rows != 0]
            for predicate in fixed[number]:
                truths = predicate.truths(shards[number])
                kept = [at for at in kept if truths[at] & TRUE]
            readings[number] = kept, tuple(found)
    return ValueFilters(readings)


def _has_value(node: exp.Expr, places: Mapping[int, int]) -> bool:
    return any(id(literal) in places for literal in node.find_all(exp.Literal))


# Conditions


def _builder(
    node: exp.Expr, resolve: Resolve, places: Mapping[int, int]
) -> tuple[_Build, _Leaf | None]:
    """What makes the predicate that `node` is, of values. Nodes as in `pruning_conditions`.

    Raises:
        _Unclear: its form alone does not tell.
    """
    if not _has_value(node, places) or not says_something(node):
        return _same(predicate_of(node, resolve)), None
    match node:
        case exp.Paren():
            return _builder(node.this, resolve, places)
        case exp.And() | exp.Or():
            parts = flat(node, type(node))
            if parts == [node]:
                return _same(UNKNOWN), None
            builds = tuple(_builder(part, resolve, places)[0] for part in parts)
            return partial(_connected, And if isinstance(node, exp.And) else Or, builds), None
        case exp.Not() if has_only(node, "this"):
            return partial(_negated, _builder(node.this, resolve, places)[0]), None
    leaf = _leaf(node, resolve, places)
    if leaf is not None:
        return leaf.built, leaf
    # A range with bounds that are known says nothing in two parts.
    both = And((UNKNOWN, UNKNOWN))
    said = predicate_of(node, resolve)
    if said not in (UNKNOWN, both):
        raise _Unclear
    return _same(said), None


def _same(predicate: Predicate) -> _Build:
    return lambda _: predicate


def _connected(
    kind: type[And] | type[Or], builds: Sequence[_Build], values: Values
) -> Predicate | None:
    parts: list[Predicate] = []
    for build in builds:
        part = build(values)
        if part is None:
            return None
        parts.append(part)
    return kind(tuple(parts))


def _negated(build: _Build, values: Values) -> Predicate | None:
    part = build(values)
    return None if part is None else Not(part)


def _leaf(node: exp.Expr, resolve: Resolve, places: Mapping[int, int]) -> _Leaf | None:
    """None: nothing is known of it, whatever its values."""
    found = _parts(node)
    if found is None:
        return None
    subject, operators, constants = found
    if subject.find(exp.Column) is None:  # a value may make it a constant
        raise _Unclear
    if not constants or any(constant.find(exp.Column, exp.Query) for constant in constants):
        return None  # compared with what is no constant
    if _has_value(subject, places):  # no function of a column that is known has one
        return None
    operand = operand_of(subject, resolve)
    if operand is None or operand.kind == OPAQUE:
        return None
    return _Leaf(operand, operators, _ranges_of(operand, constants, places))


def _parts(node: exp.Expr) -> tuple[exp.Expr, tuple[str, ...], list[exp.Expr]] | None:
    """What is compared, how, and with which constants; None: with something else."""
    operator = OPERATORS.get(type(node))
    if operator is not None:
        if not has_only(node, "this", "expression"):
            return None
        left, right = node.this, node.expression
        if left.find(exp.Column) is None:
            return right, (FLIPPED[operator],), [left]
        return left, (operator,), [right]
    if isinstance(node, exp.Between):
        ends = [node.args["low"], node.args["high"]]
        return (node.this, (">=", "<="), ends) if has_only(node, "this", "low", "high") else None
    if isinstance(node, exp.In):
        return (node.this, (), node.expressions) if has_only(node, "this", "expressions") else None
    raise _Unclear


# Constants


def _constant_reader(node: exp.Expr, places: Mapping[int, int]) -> _ReadConstant:
    """What reads the constant that `node` is, of values. Nodes as in `pruning_constants`."""
    if not _has_value(node, places):
        constant = constant_of(node)
        if constant is None or constant.kind == "null":
            raise _Unclear
        return lambda _: constant
    match node:
        case exp.Literal():
            return partial(_literal, places[id(node)], node.is_string)
        case exp.Paren():
            return _constant_reader(node.this, places)
        case exp.Cast() if has_only(node, "this", "to", "safe"):
            return partial(_cast, node.to, _constant_reader(node.this, places))
        case exp.Add() | exp.Sub() if has_only(node, "this", "expression"):
            right = node.expression
            return partial(
                _sum,
                node,
                _constant_reader(node.this, places),
                None if isinstance(right, exp.Interval) else _constant_reader(right, places),
            )
        case _:
            raise _Unclear


def _literal(number: int, is_string: bool, values: Values) -> Constant | None:
    return literal_constant(values[number], is_string=is_string)


def _cast(to: exp.DataType, read: _ReadConstant, values: Values) -> Constant | None:
    inner = read(values)
    return None if inner is None else cast_constant(inner, to)


def _sum(
    node: exp.Add | exp.Sub,
    read_left: _ReadConstant,
    read_right: _ReadConstant | None,
    values: Values,
) -> Constant | None:
    return sum_constant(node, read_left(values), read_right and read_right(values))


def _ranges_of(
    operand: Operand, nodes: Sequence[exp.Expr], places: Mapping[int, int]
) -> _ReadRanges:
    readers = [_constant_reader(node, places) for node in nodes]
    general = partial(_ranges, operand.kind, operand.scale, readers)
    if all(_is_plain(node, operand.kind, places) for node in nodes):
        numbers = [places[id(next(node.find_all(exp.Literal)))] for node in nodes]
        read = _integer_ranges if operand.kind in _INTEGERS else _day_ranges
        return partial(read, numbers, general)
    return general


_INTEGERS: Final = frozenset(["integer", "wide"])
_DAYS: Final = frozenset(["date", "truncated", "timestamp"])


def _is_plain(node: exp.Expr, kind: str, places: Mapping[int, int]) -> bool:
    """Whether it is a value that is mostly read in a shorter way."""
    if isinstance(node, exp.Cast) and has_only(node, "this", "to", "safe"):
        is_read = kind in _DAYS and is_plain_type(node.to, DATE_TYPES)
        node = node.this
        is_read = is_read and isinstance(node, exp.Literal) and node.is_string
    else:
        wanted = {False: _INTEGERS, True: _DAYS}
        is_read = isinstance(node, exp.Literal) and kind in wanted[node.is_string]
    return is_read and id(node) in places


def _ranges(
    kind: str, scale: int, readers: Sequence[_ReadConstant], values: Values
) -> list[Range] | None:
    constants: list[Constant] = []
    try:
        for read in readers:
            found = read(values)
            if found is None:
                return None
            constants.append(found)
    except (ValueError, OverflowError):
        return None
    return ranges_for(kind, scale, constants)


def _integer_ranges(
    numbers: Sequence[int], general: _ReadRanges, values: Values
) -> list[Range] | None:
    """As `general`, which is for all values, for those that are plain."""
    found = []
    for number in numbers:
        text = values[number]
        if len(text) > _PLAIN_DIGITS or not text.isdigit():
            return general(values)
        value = int(text)
        found.append(Range(value, value))
    return found


def _day_ranges(numbers: Sequence[int], general: _ReadRanges, values: Values) -> list[Range] | None:
    """As `general`, which is for all values, for those that are plain."""
    found = []
    for number in numbers:
        at = day_start(values[number])
        if at is None:
            return general(values)
        found.append(Range(at, at))
    return found


# Tests


def _tests(build: _Build, leaf: _Leaf | None, shards: TableShards) -> list[_Test]:
    """What `build` makes, as tests of shards."""
    bounds = None if leaf is None else shards.bounds(leaf.operand)
    if leaf is None or bounds is None or not leaf.operators or "<>" in leaf.operators:
        return [partial(_general_test, build, shards)]
    is_known = any(low is not LOWEST for low in bounds.lowers) or any(
        high is not HIGHEST for high in bounds.uppers
    )
    if not is_known:
        return [partial(_unknown_test, leaf.read)]
    return [partial(_compared_test, leaf, bounds)]


def _general_test(
    build: _Build, shards: TableShards, values: Values, kept: Sequence[int]
) -> Sequence[int] | None:
    predicate = build(values)
    if predicate is None:
        return None
    truths = predicate.truths(shards)
    return [at for at in kept if truths[at] & TRUE]


def _unknown_test(read: _ReadRanges, values: Values, kept: Sequence[int]) -> Sequence[int] | None:
    """No shard's bounds are known; a value that is not understood is one here, too."""
    return None if read(values) is None else kept


def _compared_test(
    leaf: _Leaf, bounds: Bounds, values: Values, kept: Sequence[int]
) -> Sequence[int] | None:
    """Where `Comparison.truths` has TRUE."""
    ranges = leaf.read(values)
    if ranges is None:
        return None
    lowers, uppers, _ = bounds
    # Bounds of one column and the constants it is compared with are of types that compare.
    for operator, (low, high) in zip(leaf.operators, ranges, strict=True):
        match operator:
            case "=":
                kept = [at for at in kept if lowers[at] <= high and uppers[at] >= low]  # type: ignore[operator]
            case ">=":
                kept = [at for at in kept if uppers[at] >= low]  # type: ignore[operator]
            case "<=":
                kept = [at for at in kept if lowers[at] <= high]  # type: ignore[operator]
            case ">":
                kept = [at for at in kept if uppers[at] > low]  # type: ignore[operator]
            case _:
                kept = [at for at in kept if lowers[at] < high]  # type: ignore[operator]
    return kept
