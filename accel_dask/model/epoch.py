"""Epochs and their state machine; the master moves them, everyone else only reads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import ClassVar, Final

from accel_dask.errors import IllegalTransition
from accel_dask.model.dataset import ColdPolicy, Rollup
from accel_dask.model.ids import (
    DatasetId,
    EpochNumber,
    Path,
    ShardId,
    TenantId,
    epoch_segment,
)
from accel_dask.model.snapshot import Column, ColumnStats, SnapshotId


class EpochState(StrEnum):
    LOADING = "LOADING"
    """Shards are being built; nothing of it is visible."""
    VALIDATING = "VALIDATING"
    """All shards are on their hosts; executors that hold them are being rehearsed."""
    READY = "READY"
    """The dataset's serving pointer names it."""
    RETIRING = "RETIRING"
    """Replaced; kept until every gateway has moved on. Then the record is deleted."""
    FAILED = "FAILED"
    """Never served. Kept for its reason; holds no memory."""


EPOCH_EDGES: Final[dict[EpochState, frozenset[EpochState]]] = {
    EpochState.LOADING: frozenset({EpochState.VALIDATING, EpochState.FAILED}),
    EpochState.VALIDATING: frozenset({EpochState.READY, EpochState.FAILED, EpochState.LOADING}),
    EpochState.READY: frozenset({EpochState.RETIRING}),
    EpochState.RETIRING: frozenset(),
    EpochState.FAILED: frozenset(),
}
"""VALIDATING may go back to LOADING: a host that held a shard was lost meanwhile."""

OPEN_STATES: Final = frozenset({EpochState.LOADING, EpochState.VALIDATING})
"""An epoch on its way; a dataset has at most one."""
HOLDING_STATES: Final = frozenset(
    {EpochState.LOADING, EpochState.VALIDATING, EpochState.READY, EpochState.RETIRING}
)
"""An epoch whose shards hosts must hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryLine:
    """One step of an epoch's life and why it was taken."""

    at_ns: int
    state: EpochState
    because: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSummary:
    """What planning and routing need to know of one shard of an epoch."""

    shard_id: ShardId
    rows: int | None
    source_bytes: int
    stats: tuple[ColumnStats, ...] = ()
    """For pruning: of all columns or, where that is too much, of those that prune most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """Our activation of one snapshot of one dataset."""

    KIND: ClassVar[str] = "epoch"

    tenant: TenantId
    dataset: str
    number: EpochNumber
    snapshot_id: SnapshotId | None
    """None only where planning failed before the snapshot was known."""
    sequence: int
    """The source's history order; see `SourceSnapshot.sequence`."""
    state: EpochState
    replicas: int
    columns: tuple[Column, ...] = ()
    shards: tuple[ShardSummary, ...] = ()
    rollups: tuple[Rollup, ...] = ()
    """That every shard has."""
    rollup_rows: tuple[tuple[int, ...], ...] = ()
    """Of each of `shards` the rows of its rollups; empty before it is READY."""
    row_filter: str | None = None
    """As the dataset was declared when it was opened."""
    plan_digest: str = ""
    """SHA-256 of the load plan's blob."""
    cold: ColdPolicy = ColdPolicy.REFUSE
    """As the dataset was declared when it was opened, as `hot_shards`."""
    hot_shards: int | None = None
    source_version: str = ""
    """What the last poll of the source before it gave; empty: it was not polled."""
    publish_nonce: str = ""
    """The publish request that it answers."""
    story: tuple[StoryLine, ...] = ()

    @property
    def dataset_id(self) -> DatasetId:
        return DatasetId(self.tenant, self.dataset)

    @property
    def path(self) -> Path:
        return epoch_path(self.dataset_id, self.number)

    @property
    def reason(self) -> str:
        """Why it is in the state it is in."""
        return self.story[-1].because if self.story else ""

    @property
    def since_ns(self) -> int:
        """When it entered its state."""
        return self.story[-1].at_ns if self.story else 0

    def __str__(self) -> str:
        return f"{self.tenant}.{self.dataset}@{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LastEpoch:
    """The highest epoch number of a dataset that was deleted: if it is declared again, its
    numbers go on from there. Tickets and people know an epoch by its number."""

    KIND: ClassVar[str] = "last_epoch"

    tenant: TenantId
    dataset: str
    number: EpochNumber

    @property
    def path(self) -> Path:
        return last_epoch_path(DatasetId(self.tenant, self.dataset))


def last_epoch_path(dataset: DatasetId) -> Path:
    return (LastEpoch.KIND, dataset.tenant, dataset.name)


def epoch_path(dataset: DatasetId, number: EpochNumber) -> Path:
    return (Epoch.KIND, dataset.tenant, dataset.name, epoch_segment(number))


def advance(epoch: Epoch, to: EpochState, *, because: str, at_ns: int) -> Epoch:
    """`epoch` in state `to`.

    Raises:
        IllegalTransition: its state does not lead there; the message tells its story.
    """
    if to not in EPOCH_EDGES[epoch.state]:
        told = "; ".join(f"{line.state}: {line.because}" for line in epoch.story)
        raise IllegalTransition(
            f"epoch {epoch} cannot go from {epoch.state} to {to} ({because}). "
            f"Its story: {told or 'none'}"
        )
    line = StoryLine(at_ns=at_ns, state=to, because=because)
    return replace(epoch, state=to, story=(*epoch.story[-15:], line))
