"""Columns by whose values the shards of one part differ from those of all other parts."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

from accel_dask.model.bounds import FLOATS, bound_key
from accel_dask.model.epoch import ShardSummary
from accel_dask.model.ids import ShardId
from accel_dask.model.routing import DatasetRoute
from accel_dask.model.snapshot import Column, ColumnStats
from accel_dask.model.ticket import DATA_TABLE

_MAX_SHARDS: Final = 4096


def disjoint_columns(
    route: DatasetRoute, parts: Sequence[Sequence[ShardId]], names: AbstractSet[str]
) -> frozenset[str]:
    """Those of the columns `names` no value of which, NULL included, is in two of `parts`; names
    are in lower case. What statistics do not say for certain is not so."""
    if route.table != DATA_TABLE:  # statistics are of the data
        return frozenset()
    places = {shard: place for place, part in enumerate(parts) for shard in part}
    if len(places) > _MAX_SHARDS:
        return frozenset()
    shards = [shard for shard in route.shards if shard.shard_id in places and shard.rows != 0]
    found = []
    for column in route.columns:
        if column.name.lower() not in names or column.type in FLOATS:  # NaN is in no bounds
            continue
        stats = [(places[shard.shard_id], _stats_of(shard, column), shard.rows) for shard in shards]
        if _is_disjoint(column, stats):
            found.append(column.name.lower())
    return frozenset(found)


def _stats_of(shard: ShardSummary, column: Column) -> ColumnStats | None:
    return next((stats for stats in shard.stats if stats.name == column.name), None)


def _is_disjoint(
    column: Column, stats: Sequence[tuple[int, ColumnStats | None, int | None]]
) -> bool:
    ranges: list[tuple[Any, Any, int]] = []
    with_nulls: set[int] = set()
    for place, one, rows in stats:
        if one is None or one.null_count is None:
            return False
        if one.null_count:
            with_nulls.add(place)
            if one.null_count == rows:
                continue
        if one.lower is None or one.upper is None:
            return False
        lower, upper = bound_key(column.type, one.lower), bound_key(column.type, one.upper)
        if lower is None or upper is None:
            return False
        ranges.append((lower, upper, place))
    ranges.sort(key=lambda found: (found[0], found[1]))
    return len(with_nulls) <= 1 and _are_apart(ranges)


def _are_apart(ranges: Sequence[tuple[Any, Any, int]]) -> bool:
    """Whether ranges of different places, in order of their lower bounds, never touch."""
    reach: dict[int, Any] = {}
    """By place: the largest upper bound so far."""
    for lower, upper, place in ranges:
        if any(other != place and lower <= bound for other, bound in reach.items()):
            return False
        reach[place] = max(reach.get(place, upper), upper)
    return True
