"""Which shards of its datasets a query has to read: those that may hold a row that counts.

From the conditions of the query and the bounds of the shards alone; never drops a shard that
holds a matching row. Pure; the prune pass calls it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlglot import exp

from accel_dask.model.routing import DatasetRoute
from accel_dask.query_planner.predicates import HIGHEST, LOWEST, TRUE, Bound, operands
from accel_dask.query_planner.pruning_bounds import BoundsCache, TableShards
from accel_dask.query_planner.pruning_conditions import kind_of
from accel_dask.query_planner.pruning_filters import Filters, Unreadable, filters_of
from accel_dask.query_planner.pruning_scopes import Link, Reading
from accel_dask.query_planner.pruning_values import ValueFilters, Values, value_filters

logger = logging.getLogger(__name__)

_CACHE: Final = BoundsCache()


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptShards:
    """What is left of one table that a query names."""

    shards: tuple[int, ...]
    """Indexes into the route's shards, ascending."""
    columns: tuple[str, ...] = ()
    """Those whose bounds were looked at."""


def kept_shards(
    tree: exp.Expr,
    tables: Sequence[tuple[exp.Table, DatasetRoute]],
    cache: BoundsCache = _CACHE,
    facts: dict[Any, Any] | None = None,
) -> tuple[KeptShards, ...]:
    """For each of `tables`, which are nodes of `tree` that name a dataset, the shards to read.

    All other tables in `tree` must be CTEs. `facts`: what was found out of the tree's form; see
    `ParsedQuery`.
    """
    try:
        readings = _filters(tree, tables, {} if facts is None else facts).readings(tables)
        kept = [_matching(reading, cache) for reading in readings]
        kept = [
            _linked(reading, readings, kept, cache) if reading.links else kept[reading.number]
            for reading in readings
        ]
    except (Unreadable, RecursionError):
        return tuple(_everything(route) for _, route in tables)
    except Exception:
        logger.exception("shard pruning failed, all shards are read: %s", _datasets(tables))
        return tuple(_everything(route) for _, route in tables)
    found: dict[int, KeptShards] = {}
    for reading, shards in zip(readings, kept, strict=True):
        before = found.get(id(reading.node))
        here = KeptShards(shards=tuple(shards), columns=_columns(reading))
        found[id(reading.node)] = here if before is None else _either(before, here)
    return tuple(found.get(id(node)) or _everything(route) for node, route in tables)


def value_filters_of(
    tree: exp.Expr,
    tables: Sequence[tuple[exp.Table, DatasetRoute]],
    facts: dict[Any, Any],
    places: Mapping[int, int],
    values: Values,
) -> ValueFilters | None:
    """What the values of a form decide of its pruning; the others as in `kept_shards`, which
    has chosen for `values`, and `places` as in `value_filters`. None: that is not clear."""
    if "filters" not in facts:
        return None
    filters = _filters(tree, tables, facts)
    routes = {id(node): route for node, route in tables}
    return value_filters(filters, routes, places, values, _CACHE)


def is_kept(
    known: ValueFilters,
    tree: exp.Expr,
    tables: Sequence[tuple[exp.Table, DatasetRoute]],
    facts: dict[Any, Any],
    values: Values,
) -> bool:
    """Whether `known` tells what the conditions themselves do, which hold `values` now."""
    readings = _filters(tree, tables, facts).readings(tables)
    matching = tuple(tuple(_matching(readings[number], _CACHE)) for number in known.numbers)
    return matching == known.kept(values)


def _filters(
    tree: exp.Expr, tables: Sequence[tuple[exp.Table, DatasetRoute]], facts: dict[Any, Any]
) -> Filters:
    known = facts.get("filters")
    if known is not None and all(
        columns is route.columns for columns, (_, route) in zip(known[0], tables, strict=True)
    ):
        filters: Filters = known[1]
        return filters
    filters = filters_of(tree, tables)
    facts["filters"] = tuple(route.columns for _, route in tables), filters
    return filters


def _datasets(tables: Sequence[tuple[exp.Table, DatasetRoute]]) -> str:
    return ", ".join(sorted({f"{route.dataset_id}@{route.epoch}" for _, route in tables}))


def _everything(route: DatasetRoute) -> KeptShards:
    return KeptShards(shards=tuple(range(len(route.shards))))


def _either(one: KeptShards, other: KeptShards) -> KeptShards:
    """A table in a CTE is read once for all that name the CTE."""
    return KeptShards(
        shards=tuple(sorted({*one.shards, *other.shards})),
        columns=tuple(sorted({*one.columns, *other.columns})),
    )


def _columns(reading: Reading) -> tuple[str, ...]:
    places = {
        place.column
        for condition in reading.conditions
        for operand in operands(condition)
        for place in operand.places
        if place.table == reading.number
    }
    places |= {link.column for link in reading.links}
    return tuple(sorted(reading.route.columns[place].name for place in places))


def _matching(reading: Reading, cache: BoundsCache) -> list[int]:
    """The shards that may hold a row that passes the conditions."""
    shards = reading.route.shards
    kept = [index for index, shard in enumerate(shards) if shard.rows != 0]
    table = TableShards(reading.number, reading.route, cache)
    for condition in reading.conditions:
        truths = condition.truths(table)
        kept = [index for index in kept if truths[index] & TRUE]
    return kept


def _linked(
    reading: Reading, readings: Sequence[Reading], kept: Sequence[list[int]], cache: BoundsCache
) -> list[int]:
    """Of the shards kept, those that overlap what they are joined with."""
    found = kept[reading.number]
    for link in reading.links:
        if kind_of(reading.route.columns[link.column].type)[0] == "float":
            continue  # its bounds may be texts of fewer digits than the values
        least, most = _joined_range(link, readings, kept, cache)
        bounds = cache.bounds(reading.route, link.column)
        lowers, uppers = bounds.lowers, bounds.uppers
        # Bounds of two columns of one type compare.
        found = [i for i in found if lowers[i] <= most and uppers[i] >= least]  # type: ignore[operator]
    return found


def _joined_range(
    link: Link, readings: Sequence[Reading], kept: Sequence[list[int]], cache: BoundsCache
) -> tuple[Bound, Bound]:
    least: Bound = HIGHEST
    most: Bound = LOWEST
    for table, column in link.others:
        bounds = cache.bounds(readings[table].route, column)
        for index in kept[table]:
            lower, upper = bounds.lowers[index], bounds.uppers[index]
            least = min(least, lower)
            most = max(most, upper)
    return least, most
