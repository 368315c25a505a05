"""Cut a snapshot into shards: pure, so that one snapshot always gives the same shards.

Partitions are cut at the places where a hash of their text is least, again and again, until each
piece is small enough. The places depend on the partitions' names alone, never on running sums:
when one partition changes, only the shard that held it does, and all others are shared with the
epochs before.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from accel_dask.codec import digest
from accel_dask.errors import SchemaUnsupported
from accel_dask.model.bounds import FLOATS, bound_key, merge_stats
from accel_dask.model.dataset import Dataset, Rollup
from accel_dask.model.ids import ShardId
from accel_dask.model.load_plan import SHARD_FORMAT, LoadTask
from accel_dask.model.rollup import resolve_rollups
from accel_dask.model.snapshot import Column, ColumnStats, DataFile, SourceSnapshot


@dataclass(frozen=True, slots=True)
class _Unit:
    """What stays together: the files of a partition, or one file of a large partition."""

    label: str
    files: tuple[DataFile, ...]
    size_bytes: int

    @property
    def cut_rank(self) -> bytes:
        """The piece is cut before the unit of least rank."""
        return hashlib.sha256(self.label.encode()).digest()


def cut_shards(dataset: Dataset, snapshot: SourceSnapshot) -> tuple[LoadTask, ...]:
    """The load tasks of `snapshot`: every file in exactly one, in partition order.

    A snapshot without files gives one empty shard, so that its dataset can be queried.

    Raises:
        SchemaUnsupported: the dataset sorts by, or has a rollup over, a column that it does not
            hold or that is of a type that does not do.
    """
    sort_by = effective_sort(dataset, snapshot)
    rollups = resolve_rollups(dataset.dataset_id, dataset.rollups, snapshot.columns)
    dataset = replace(dataset, rollups=rollups)
    pieces = _pieces(snapshot, sort_by, max(1, dataset.shard_target_bytes)) or [()]
    return tuple(_task(dataset, snapshot.columns, sort_by, files) for files in pieces)


def effective_sort(dataset: Dataset, snapshot: SourceSnapshot) -> tuple[str, ...]:
    """The declared sort columns, else those of the source that are held.

    Raises:
        SchemaUnsupported: a declared one is not held.
    """
    held = {column.name for column in snapshot.columns}
    for name in dataset.sort_by:
        if name not in held:
            near = difflib.get_close_matches(name, held, n=1)
            raise SchemaUnsupported(
                f"{dataset.dataset_id}: sort_by names {name!r}, which the dataset does not hold"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
    return dataset.sort_by or tuple(name for name in snapshot.sort_by if name in held)


def shard_id_of(
    *,
    files: Sequence[DataFile],
    columns: tuple[Column, ...],
    row_filter: str | None,
    sort_by: tuple[str, ...],
    rollups: tuple[Rollup, ...],
) -> ShardId:
    """The name of a shard: a hash of everything that decides its rows and their order.

    What is only known about the files (statistics, partition) is not part of it.
    """
    content = (
        SHARD_FORMAT,
        tuple(
            (
                file.path,
                file.size_bytes,
                file.record_count,
                file.version,
                file.matching,
                file.names,
                file.constants,
                file.deletes,
            )
            for file in sorted(files, key=lambda file: file.path)
        ),
        columns,
        row_filter,
        sort_by,
        rollups,
    )
    return ShardId(digest(content)[:32])


def _task(
    dataset: Dataset,
    columns: tuple[Column, ...],
    sort_by: tuple[str, ...],
    files: tuple[DataFile, ...],
) -> LoadTask:
    is_exact = dataset.row_filter is None and not any(file.deletes for file in files)
    return LoadTask(
        shard_id=shard_id_of(
            files=files,
            columns=columns,
            row_filter=dataset.row_filter,
            sort_by=sort_by,
            rollups=dataset.rollups,
        ),
        columns=columns,
        files=files,
        row_filter=dataset.row_filter,
        sort_by=sort_by,
        rollups=dataset.rollups,
        rows=sum(file.record_count for file in files) if is_exact else None,
        source_bytes=sum(file.size_bytes for file in files),
        stats=_merge(columns, files),
    )


def _merge(columns: Iterable[Column], files: Sequence[DataFile]) -> tuple[ColumnStats, ...]:
    by_file = [(_file_stats(columns, file), file.record_count) for file in files]
    return tuple(
        merge_stats(
            column.name,
            column.type,
            [(stats.get(column.name), rows) for stats, rows in by_file],
        )
        for column in columns
    )


def _file_stats(columns: Iterable[Column], file: DataFile) -> dict[str, ColumnStats]:
    """What is known of a file's columns, also of those that its partition gives a value."""
    found = {stats.name: stats for stats in file.stats}
    types = {column.name: column.type for column in columns}
    for name, value in file.constants:
        says_nothing = found.get(name, ColumnStats(name=name)) == ColumnStats(name=name)
        if value is not None and says_nothing and types.get(name) not in FLOATS:
            found[name] = ColumnStats(name=name, null_count=0, lower=value, upper=value, exact=True)
    return found


def _pieces(
    snapshot: SourceSnapshot, sort_by: tuple[str, ...], target_bytes: int
) -> list[tuple[DataFile, ...]]:
    order = _file_order(snapshot.columns, sort_by)
    files = sorted(snapshot.files, key=lambda file: (file.partition, *order(file)))
    partitions = [
        _unit(partition, tuple(held))
        for partition, held in groupby(files, key=lambda file: file.partition)
    ]
    shards: list[tuple[DataFile, ...]] = []
    for piece in _cut(partitions, target_bytes):
        units = piece
        if len(piece) == 1 and piece[0].size_bytes > 2 * target_bytes:
            units = [_unit(file.path, (file,)) for file in piece[0].files]
            shards.extend(_files(part) for part in _cut(units, target_bytes))
        else:
            shards.append(_files(units))
    return shards


def _unit(label: str, files: tuple[DataFile, ...]) -> _Unit:
    return _Unit(label, files, sum(file.size_bytes for file in files))


def _files(units: Iterable[_Unit]) -> tuple[DataFile, ...]:
    return tuple(file for unit in units for file in unit.files)


def _file_order(
    columns: Iterable[Column], sort_by: tuple[str, ...]
) -> Callable[[DataFile], tuple[object, ...]]:
    """Files of one partition by where they begin in the first sort column, then by path."""
    types = {column.name: column.type for column in columns}

    def order(file: DataFile) -> tuple[object, ...]:
        for stats in file.stats:
            if sort_by and stats.name == sort_by[0] and stats.lower is not None:
                key = bound_key(types[stats.name], stats.lower)
                if key is not None:
                    return (0, key, file.path)
        return (1, file.path)

    return order


def _cut(units: Sequence[_Unit], target_bytes: int) -> list[list[_Unit]]:
    """Pieces of at most twice the target, or one unit.

    The cuts form a tree that the units' labels alone decide; sizes only decide how deep it is
    followed. A piece far below the target joins its nearest neighbour inside the same node, so
    that this, too, depends on nothing outside; a unit above twice the target stays alone.
    """
    if not units:
        return []
    joined: list[list[_Unit]] = []
    join_next = before_is_large = False
    for piece, leans_right in _leaves(units, target_bytes):
        size = _size(piece)
        is_large, leans = size > 2 * target_bytes, size < target_bytes // 4
        wants = join_next or (leans and not leans_right)
        if joined and wants and not is_large and not before_is_large:
            joined[-1].extend(piece)
        else:
            joined.append(list(piece))
        join_next, before_is_large = leans and leans_right, is_large
    return joined


def _leaves(units: Sequence[_Unit], target_bytes: int) -> list[tuple[Sequence[_Unit], bool]]:
    """The leaves in order, each with whether its sibling in the tree is to its right."""
    leaves: list[tuple[Sequence[_Unit], bool]] = []
    pending: list[tuple[Sequence[_Unit], bool]] = [(units, False)]
    while pending:
        piece, leans_right = pending.pop()
        if len(piece) == 1 or _size(piece) <= 2 * target_bytes:
            leaves.append((piece, leans_right))
            continue
        at = min(range(1, len(piece)), key=lambda i: piece[i].cut_rank)
        pending.append((piece[at:], False))
        pending.append((piece[:at], True))
    return leaves


def _size(units: Iterable[_Unit]) -> int:
    return sum(unit.size_bytes for unit in units)
