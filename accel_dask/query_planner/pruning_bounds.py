"""The bounds of shards as values that compare, parsed once per epoch and column."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import Final, NamedTuple

from accel_dask.model.epoch import ShardSummary
from accel_dask.model.ids import DatasetId
from accel_dask.model.routing import DatasetRoute
from accel_dask.model.snapshot import ColumnStats
from accel_dask.query_planner.predicates import (
    HIGHEST,
    LOWEST,
    NULL,
    Bound,
    Bounds,
    Operand,
    Step,
    Value,
)
from accel_dask.query_planner.pruning_conditions import kind_of
from accel_dask.query_planner.pruning_constants import calendar_day, instant, microseconds_of
from accel_dask.query_planner.recently_used import RecentlyUsed

_Parse = Callable[[str], tuple[Value, Value] | None]
"""A text to the bounds that it is: lower and upper differ where we hold it less exactly."""

_KEPT: Final = 256
"""Datasets whose bounds are kept; a column takes about 50 KiB for 500 shards."""


class _Entry(NamedTuple):
    shards: tuple[ShardSummary, ...]
    """Of the dataset's latest epoch that was asked for."""
    bounds: dict[tuple[int, tuple[Step, ...]], Bounds]


class BoundsCache:
    """Bounds of columns, of one epoch a dataset. Safe to use from several threads: bounds that are
    parsed twice are only wasted work."""

    def __init__(self, capacity: int = _KEPT) -> None:
        self._entries: RecentlyUsed[DatasetId, _Entry] = RecentlyUsed(capacity)

    def __len__(self) -> int:
        return len(self._entries)

    def bounds(self, route: DatasetRoute, column: int, steps: tuple[Step, ...] = ()) -> Bounds:
        """The bounds of a column of `route`, or of functions of it."""
        known = self._of(route)
        found = known.get((column, steps))
        if found is not None:
            return found
        if steps:
            found = _stepped(self.bounds(route, column, steps[:-1]), steps[-1])
        else:
            found = _column_bounds(route, column)
        if len(steps) <= 1:  # of nested functions there is no end
            known[column, steps] = found
        return found

    def _of(self, route: DatasetRoute) -> dict[tuple[int, tuple[Step, ...]], Bounds]:
        entry = self._entries.get(route.dataset_id)
        if entry is not None and entry.shards is route.shards:
            return entry.bounds
        entry = _Entry(route.shards, {})
        self._entries.keep(route.dataset_id, entry)
        return entry.bounds


class TableShards(NamedTuple):
    """The shards of one reading of a dataset; see `predicates.Shards`."""

    table: int
    route: DatasetRoute
    cache: BoundsCache

    @property
    def count(self) -> int:  # type: ignore[override]
        return len(self.route.shards)

    def bounds(self, operand: Operand) -> Bounds | None:
        for place in operand.places:
            if place.table == self.table:
                return self.cache.bounds(self.route, place.column, operand.steps)
        return None


_ALL_NULL: Final = Bounds((HIGHEST,), (LOWEST,), (NULL,))


class NullRow(NamedTuple):
    """The row that an outer join puts in for a table without a match, as a shard."""

    table: int

    @property
    def count(self) -> int:  # type: ignore[override]
        return 1

    def bounds(self, operand: Operand) -> Bounds | None:
        is_here = any(place.table == self.table for place in operand.places)
        return _ALL_NULL if is_here else None


def _column_bounds(route: DatasetRoute, column: int) -> Bounds:
    name, kind = route.columns[column].name, kind_of(route.columns[column].type)[0]
    parse = _PARSERS.get(kind, _nothing)
    lowers: list[Bound] = []
    uppers: list[Bound] = []
    nulls: list[int] = []
    for shard in route.shards:
        stats = _stats_of(shard, name, column)
        lower, upper, null = _shard_bounds(shard, stats, parse)
        lowers.append(lower)
        uppers.append(upper)
        nulls.append(null)
    return Bounds(tuple(lowers), tuple(uppers), tuple(nulls))


def _stats_of(shard: ShardSummary, name: str, likely: int) -> ColumnStats | None:
    if likely < len(shard.stats) and shard.stats[likely].name == name:
        return shard.stats[likely]
    return next((stats for stats in shard.stats if stats.name == name), None)


def _shard_bounds(
    shard: ShardSummary, stats: ColumnStats | None, parse: _Parse
) -> tuple[Bound, Bound, int]:
    if stats is None:
        return LOWEST, HIGHEST, NULL
    if stats.null_count is not None and shard.rows is not None and stats.null_count == shard.rows:
        return HIGHEST, LOWEST, NULL
    low = parse(stats.lower) if stats.lower is not None else None
    high = parse(stats.upper) if stats.upper is not None else None
    lower: Bound = LOWEST if low is None else low[0]
    upper: Bound = HIGHEST if high is None else high[1]
    if lower > upper:  # type: ignore[operator] # statistics that contradict themselves
        lower, upper = LOWEST, HIGHEST
    return lower, upper, 0 if stats.null_count == 0 else NULL


def _nothing(text: str) -> tuple[Value, Value] | None:  # noqa: ARG001 - a parser
    return None


def _text(text: str) -> tuple[Value, Value] | None:
    return text, text  # code point order is UTF-8 byte order


def _boolean(text: str) -> tuple[Value, Value] | None:
    value = {"false": 0, "true": 1}.get(text)
    return None if value is None else (value, value)


_INTEGER: Final = re.compile(r"-?\d+", re.ASCII)
_DECIMAL: Final = re.compile(r"-?\d+(\.\d*)?", re.ASCII)


def _integer(text: str) -> tuple[Value, Value] | None:
    return (int(text), int(text)) if _INTEGER.fullmatch(text) else None


def _decimal(text: str) -> tuple[Value, Value] | None:
    if not _DECIMAL.fullmatch(text):
        return None
    try:
        return Decimal(text), Decimal(text)
    except InvalidOperation:
        return None


def _float(text: str) -> tuple[Value, Value] | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return None if math.isnan(number) else (number, number)


def _instant(text: str) -> tuple[Value, Value] | None:
    at = instant(text)
    return None if at is None else (at, at)


def _instant_utc(text: str) -> tuple[Value, Value] | None:
    return _instant(text.removesuffix("+00")) if text.endswith("+00") else None


_NANOSECONDS: Final = re.compile(r"(.*\.\d{6})\d{1,3}", re.ASCII)


def _instant_ns(text: str) -> tuple[Value, Value] | None:
    found = _NANOSECONDS.fullmatch(text)
    at = instant(found[1] if found else text)
    return None if at is None else (at, at + 1 if found else at)


_PARSERS: Final[dict[str, _Parse]] = {
    "integer": _integer,
    "wide": _integer,
    "decimal": _decimal,
    "float": _float,
    "double": _float,
    "boolean": _boolean,
    "text": _text,
    "date": _instant,
    "timestamp": _instant,
    "timestamp_ns": _instant_ns,
    "timestamptz": _instant_utc,
}


def _stepped(bounds: Bounds, step: Step) -> Bounds:
    """The bounds of a function of what `bounds` are of."""
    pairs = [
        (lower, upper)
        if lower is HIGHEST  # no values
        else _step_range(step, lower, upper)
        for lower, upper in zip(bounds.lowers, bounds.uppers, strict=True)
    ]
    # Parts of an infinite date are NULL, and only unknown bounds may hide one.
    nulls = tuple(
        NULL if lower is LOWEST or upper is HIGHEST else null
        for lower, upper, null in zip(*bounds, strict=True)
    )
    return Bounds(tuple(lo for lo, _ in pairs), tuple(up for _, up in pairs), nulls)


def _step_range(step: Step, lower: Bound, upper: Bound) -> tuple[Bound, Bound]:
    match step:
        case ("same",):
            return lower, upper
        case ("trunc", unit):
            return _mapped(lower, lambda at: _truncated(at, unit)), _mapped(
                upper, lambda at: _truncated(at, unit)
            )
        case ("year",):
            return _mapped(lower, _year), _mapped(upper, _year)
        case (part,):
            return _cyclic(part, lower, upper)
        case _:
            return LOWEST, HIGHEST


def _mapped(bound: Bound, function: Callable[[int], int]) -> Bound:
    return function(bound) if isinstance(bound, int) else bound


def _year(at: int) -> int:
    return calendar_day(at).year


_UNIT_MICROSECONDS: Final = {
    "second": 1_000_000,
    "minute": 60_000_000,
    "hour": 3_600_000_000,
    "day": 86_400_000_000,
}


def _truncated(at: int, unit: str) -> int:
    size = _UNIT_MICROSECONDS.get(unit)
    if size is not None:
        return at - at % size
    day = calendar_day(at)
    match unit:
        case "week":
            return microseconds_of(day) - day.weekday() * _UNIT_MICROSECONDS["day"]
        case "month":
            return microseconds_of(day.replace(day=1))
        case "quarter":
            return microseconds_of(day.replace(month=(day.month - 1) // 3 * 3 + 1, day=1))
        case _:
            return microseconds_of(day.replace(month=1, day=1))


_CYCLES: Final = {"quarter": (1, 4), "month": (1, 12), "day": (1, 31)}


def _cyclic(part: str, lower: Bound, upper: Bound) -> tuple[Bound, Bound]:
    """Parts of a date that begin again: bounded only within one cycle."""
    if not isinstance(lower, int) or not isinstance(upper, int):
        return _CYCLES[part]
    first, last = calendar_day(lower), calendar_day(upper)
    if part == "day":
        is_one = (first.year, first.month) == (last.year, last.month)
        return (first.day, last.day) if is_one else _CYCLES[part]
    if first.year != last.year:
        return _CYCLES[part]
    if part == "month":
        return first.month, last.month
    return (first.month + 2) // 3, (last.month + 2) // 3
