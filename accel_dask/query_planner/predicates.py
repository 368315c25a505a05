"""Conditions on one table's columns, and what they can be over the bounds of its shards.

Three-valued: of each shard a condition may be TRUE for some row, FALSE for some, NULL for some.
What is not surely impossible counts as possible, so a shard that cannot be TRUE has no row that
passes. Pure; used by shard pruning.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Final, NamedTuple, Protocol

TRUE: Final = 1
FALSE: Final = 2
NULL: Final = 4
ANY: Final = TRUE | FALSE | NULL


class Extreme:
    """Below (or above) every value of every type."""

    __slots__ = ("_is_highest",)

    def __init__(self, *, is_highest: bool) -> None:
        self._is_highest = is_highest

    def __lt__(self, other: object) -> bool:
        return not self._is_highest and other is not self

    def __le__(self, other: object) -> bool:
        return not self._is_highest or other is self

    def __gt__(self, other: object) -> bool:
        return self._is_highest and other is not self

    def __ge__(self, other: object) -> bool:
        return self._is_highest or other is self

    def __repr__(self) -> str:
        return "HIGHEST" if self._is_highest else "LOWEST"


LOWEST: Final = Extreme(is_highest=False)
HIGHEST: Final = Extreme(is_highest=True)

Value = int | float | Decimal | str
Bound = int | float | Decimal | str | Extreme


class Bounds(NamedTuple):
    """Of each shard: all values that are not NULL lie in `lowers[i] .. uppers[i]`. Where there
    are none, the lower bound is HIGHEST and the upper one LOWEST."""

    lowers: tuple[Bound, ...]
    uppers: tuple[Bound, ...]
    nulls: tuple[int, ...]
    """NULL where one may occur, else 0."""


class Place(NamedTuple):
    """A column of one table that the query reads."""

    table: int
    """The number of the reading: a table that is named twice is two tables."""
    column: int
    """Index into the columns of its dataset."""


Step = tuple[str, ...]
"""A function over a column: `("year",)`, `("trunc", "month")`, `("date",)`."""


class Operand(NamedTuple):
    """A column, or functions of it. Several places: the condition holds for each of them."""

    places: tuple[Place, ...]
    kind: str
    """What its values are; see `operands`."""
    scale: int = 0
    """Of a decimal: digits behind the point."""
    steps: tuple[Step, ...] = ()


class Shards(Protocol):
    """The shards of one table."""

    @property
    def count(self) -> int: ...

    def bounds(self, operand: Operand) -> Bounds | None:
        """None: it is not a column of this table."""


class Range(NamedTuple):
    """A constant as we know it: certainly in `low .. high`, which mostly are the same."""

    low: Value
    high: Value


@dataclass(frozen=True, slots=True)
class Known:
    """The same whatever the row."""

    truth: int

    def truths(self, shards: Shards) -> Sequence[int]:
        return [self.truth] * shards.count


UNKNOWN: Final = Known(ANY)


@dataclass(frozen=True, slots=True)
class Comparison:
    """`operand operator constant`; the operator is one of `= < <= > >=`."""

    operand: Operand
    operator: str
    constant: Range

    def truths(self, shards: Shards) -> Sequence[int]:
        bounds = shards.bounds(self.operand)
        if bounds is None:
            return [ANY] * shards.count
        low, high = self.constant
        rows = zip(*bounds, strict=True)
        # Bounds of one column and the constants it is compared with are of types that compare.
        match self.operator:
            case "<":
                return [n | (lo < high) | (up >= low) << 1 for lo, up, n in rows]  # type: ignore[operator]
            case "<=":
                return [n | (lo <= high) | (up > low) << 1 for lo, up, n in rows]  # type: ignore[operator]
            case ">":
                return [n | (up > low) | (lo <= high) << 1 for lo, up, n in rows]  # type: ignore[operator]
            case ">=":
                return [n | (up >= low) | (lo < high) << 1 for lo, up, n in rows]  # type: ignore[operator]
            case _:
                return [
                    n
                    | (lo <= high and up >= low)  # type: ignore[operator]
                    | (lo <= up and not lo == up == low == high) << 1  # type: ignore[operator]
                    for lo, up, n in rows
                ]


@dataclass(frozen=True, slots=True)
class Membership:
    """`operand IN (constants)`, the constants in ascending order."""

    operand: Operand
    lows: tuple[Value, ...]
    highs: tuple[Value, ...]
    has_null: bool

    def truths(self, shards: Shards) -> Sequence[int]:
        bounds = shards.bounds(self.operand)
        if bounds is None:
            return [ANY] * shards.count
        return [self._truth(lo, up) | nulls for lo, up, nulls in zip(*bounds, strict=True)]

    def _truth(self, lower: Bound, upper: Bound) -> int:
        if lower > upper:  # type: ignore[operator]
            return 0
        at = bisect_left(self.highs, lower)
        may_be_in = at < len(self.lows) and self.lows[at] <= upper  # type: ignore[operator]
        is_in = may_be_in and lower == upper == self.lows[at] == self.highs[at]
        if is_in:
            return TRUE
        return may_be_in * TRUE | (NULL if self.has_null else FALSE)


@dataclass(frozen=True, slots=True)
class Prefix:
    """`operand LIKE 'prefix%'`; with `is_whole` false something follows the `%`."""

    operand: Operand
    prefix: str
    is_whole: bool

    def truths(self, shards: Shards) -> Sequence[int]:
        bounds = shards.bounds(self.operand)
        if bounds is None:
            return [ANY] * shards.count
        return [self._truth(lo, up) | nulls for lo, up, nulls in zip(*bounds, strict=True)]

    def _truth(self, lower: Bound, upper: Bound) -> int:
        if lower > upper:  # type: ignore[operator]
            return 0
        size, prefix = len(self.prefix), self.prefix
        first = lower[:size] if isinstance(lower, str) else lower
        last = upper[:size] if isinstance(upper, str) else upper
        if self.is_whole and first == prefix == last:
            return TRUE
        may_match = first <= prefix <= last  # type: ignore[operator]
        return may_match * TRUE | FALSE


@dataclass(frozen=True, slots=True)
class IsNull:
    """`operand IS NULL`."""

    operand: Operand

    def truths(self, shards: Shards) -> Sequence[int]:
        bounds = shards.bounds(self.operand)
        if bounds is None:
            return [TRUE | FALSE] * shards.count
        return [
            (nulls != 0) | (lo <= up) << 1  # type: ignore[operator]
            for lo, up, nulls in zip(*bounds, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class IsTruth:
    """`part IS TRUE`, or `IS FALSE`."""

    part: Predicate
    truth: int

    def truths(self, shards: Shards) -> Sequence[int]:
        rest = ANY & ~self.truth
        return [
            (truth & self.truth != 0) | (truth & rest != 0) << 1
            for truth in self.part.truths(shards)
        ]


@dataclass(frozen=True, slots=True)
class Not:
    """`NOT part`."""

    part: Predicate

    def truths(self, shards: Shards) -> Sequence[int]:
        return [_NOT[truth] for truth in self.part.truths(shards)]


@dataclass(frozen=True, slots=True)
class And:
    """All of `parts`."""

    parts: tuple[Predicate, ...]

    def truths(self, shards: Shards) -> Sequence[int]:
        return _combined(_AND, [part.truths(shards) for part in self.parts])


@dataclass(frozen=True, slots=True)
class Or:
    """Any of `parts`."""

    parts: tuple[Predicate, ...]

    def truths(self, shards: Shards) -> Sequence[int]:
        return _combined(_OR, [part.truths(shards) for part in self.parts])


Predicate = Known | Comparison | Membership | Prefix | IsNull | IsTruth | Not | And | Or


def operands(predicate: Predicate) -> Iterator[Operand]:
    """All that `predicate` compares."""
    pending = [predicate]
    while pending:
        part = pending.pop()
        match part:
            case And(parts) | Or(parts):
                pending.extend(parts)
            case Not(inner) | IsTruth(inner):
                pending.append(inner)
            case Known():
                pass
            case _:
                yield part.operand


_Table = tuple[tuple[int, ...], ...]


def _combined(table: _Table, lists: list[Sequence[int]]) -> Sequence[int]:
    first, *others = lists
    for other in others:
        first = [table[a][b] for a, b in zip(first, other, strict=True)]
    return first


def _singles(truths: int) -> list[int]:
    return [truth for truth in (TRUE, FALSE, NULL) if truths & truth]


def _all_of(a: int, b: int) -> int:
    if FALSE in {a, b}:
        return FALSE
    return NULL if NULL in {a, b} else TRUE


def _negated(truths: int) -> int:
    return truths & NULL | (truths & TRUE) << 1 | (truths & FALSE) >> 1


def _and_of(a: int, b: int) -> int:
    found = 0
    for one in _singles(a):
        for other in _singles(b):
            found |= _all_of(one, other)
    return found


_NOT: Final = tuple(_negated(truths) for truths in range(8))
_AND: Final[_Table] = tuple(tuple(_and_of(a, b) for b in range(8)) for a in range(8))
_OR: Final[_Table] = tuple(
    tuple(_negated(_and_of(_negated(a), _negated(b))) for b in range(8)) for a in range(8)
)
