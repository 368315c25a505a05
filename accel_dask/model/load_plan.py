"""Load plans: what the master orders, and what one loader builds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from accel_dask.model.dataset import Rollup
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.snapshot import Column, ColumnStats, DataFile, SnapshotId

SHARD_FORMAT: Final = 2
"""Version of the shard file's layout. Part of every shard id: a new one reloads everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadTask:
    """One shard: everything that a loader needs, and nothing about where it runs."""

    shard_id: ShardId
    columns: tuple[Column, ...]
    files: tuple[DataFile, ...]
    row_filter: str | None = None
    sort_by: tuple[str, ...] = ()
    rollups: tuple[Rollup, ...] = ()
    rows: int | None = None
    """Rows that the source promises; None where a filter or deletes leave it open."""
    source_bytes: int = 0
    """Sum of the data files' sizes."""
    stats: tuple[ColumnStats, ...] = ()
    """The files' statistics merged: what the loaded rows must lie within."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """The master's order for one epoch; kept as a content-addressed blob."""

    tenant: TenantId
    dataset: str
    epoch: EpochNumber
    snapshot_id: SnapshotId
    columns: tuple[Column, ...]
    tasks: tuple[LoadTask, ...]

    @property
    def dataset_id(self) -> DatasetId:
        return DatasetId(self.tenant, self.dataset)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOrder:
    """One loader's whole input: the shard, and the budget to build it on."""

    tenant: TenantId
    dataset: str
    epoch: EpochNumber
    task: LoadTask
    shard_dir: str
    """Where the shard file goes; usually on a memory file system."""
    spill_dir: str
    """Where a sort may spill: a plain directory, never the shard directory."""
    memory_bytes: int
    threads: int
    max_file_bytes: int
    """A shard file larger than this breaks the tenant's budget and is not kept."""
    join_files: tuple[str, ...] = ()
    """Of the control group that the loader joins before anything else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardManifest:
    """What a shard file is; written beside it as `<shard id>.json`."""

    format_version: int
    shard_id: ShardId
    rows: int
    file_bytes: int
    file_sha256: str
    row_checksum: str
    """Order-independent over all rows, so that replicas can be compared."""
    columns: tuple[Column, ...]
    stats: tuple[ColumnStats, ...]
    """Exact, of every column, as loaded."""
    load_ms: int
    peak_memory_bytes: int
    rollup_rows: tuple[int, ...] = ()
    """Of each of the task's rollups, in their order."""
