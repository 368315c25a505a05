"""Which statistics of its shards an epoch's record carries for pruning. Pure.

The record is written whole at each of its steps, so all shards together have a fixed share of
what one transaction may hold. Columns that the shards are sorted by come first, then those whose
bounds differ most from shard to shard.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from accel_dask.model.load_plan import LoadTask
from accel_dask.model.snapshot import ColumnStats

MAX_EPOCH_BYTES: Final = 600_000
"""Of an epoch with its placement. The switch writes two epochs in one transaction, which holds
1,500,000 bytes."""
MAX_STATS_BYTES: Final = 300_000
"""Of all shards of an epoch."""
_SHARD_BYTES: Final = 200
"""Of a shard in the epoch and in its placement, without statistics."""
ROLLUP_BYTES: Final = 12
"""Of one rollup's rows in one shard."""
MAX_BOUND_CHARACTERS: Final = 48
_FIXED_BYTES: Final = 75
"""Of one column of one shard, apart from its name and bounds."""


def summary_stats(tasks: Sequence[LoadTask]) -> tuple[tuple[ColumnStats, ...], ...]:
    """For each of `tasks` the statistics to keep, the same columns for all."""
    by_task = [
        {stats.name: _shortened(stats) for stats in task.stats if _says_anything(stats)}
        for task in tasks
    ]
    names = dict.fromkeys(name for stats in by_task for name in stats)
    chosen: set[str] = set()
    left = min(MAX_STATS_BYTES, MAX_EPOCH_BYTES - fixed_bytes(tasks))
    for name in sorted(names, key=lambda name: _rank(name, tasks, by_task)):
        size = sum(_size(stats[name]) for stats in by_task if name in stats)
        if size <= left:
            chosen.add(name)
            left -= size
    return tuple(
        tuple(found for name, found in stats.items() if name in chosen) for stats in by_task
    )


def fixed_bytes(tasks: Sequence[LoadTask]) -> int:
    """Of the shards in the records once their rollups are counted, without statistics."""
    rollups = len(tasks[0].rollups) if tasks else 0
    return (_SHARD_BYTES + ROLLUP_BYTES * rollups) * len(tasks)


def _says_anything(stats: ColumnStats) -> bool:
    return (stats.lower, stats.upper, stats.null_count) != (None, None, None)


def _rank(
    name: str, tasks: Sequence[LoadTask], by_task: Sequence[dict[str, ColumnStats]]
) -> tuple[int, int]:
    """Sort columns in their order, then by how many different lower bounds there are."""
    sort_by = tasks[0].sort_by
    place = sort_by.index(name) if name in sort_by else len(sort_by)
    lowers = {stats[name].lower for stats in by_task if name in stats}
    return place, -len(lowers)


def _size(stats: ColumnStats) -> int:
    texts = (stats.name, stats.lower or "", stats.upper or "")
    return _FIXED_BYTES + sum(len(text.encode()) for text in texts)


def _shortened(stats: ColumnStats) -> ColumnStats:
    """Long bounds, which only texts have: a beginning is below its text, but not above it."""
    lower, upper = stats.lower, stats.upper
    if max(len(lower or ""), len(upper or "")) <= MAX_BOUND_CHARACTERS:
        return stats
    return replace(
        stats,
        lower=lower[:MAX_BOUND_CHARACTERS] if lower is not None else None,
        upper=_above(upper) if upper is not None else None,
        exact=False,
    )


def _above(text: str) -> str | None:
    """A short text that is above `text` and all that begin like it; None: there is none."""
    if len(text) <= MAX_BOUND_CHARACTERS:
        return text
    beginning = text[:MAX_BOUND_CHARACTERS]
    while beginning and ord(beginning[-1]) >= 0xD7FF:  # next are no characters, or the end
        beginning = beginning[:-1]
    return beginning[:-1] + chr(ord(beginning[-1]) + 1) if beginning else None
