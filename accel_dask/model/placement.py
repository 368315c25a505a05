"""Where an epoch's shards belong, and which epoch a dataset serves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from accel_dask.model.ids import (
    DatasetId,
    EpochNumber,
    Path,
    ShardId,
    TenantId,
    WorkerId,
    epoch_segment,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """The hosts that must hold each shard of one epoch. Written by the master alone."""

    KIND: ClassVar[str] = "placement"

    tenant: TenantId
    dataset: str
    epoch: EpochNumber
    hosts: tuple[tuple[ShardId, tuple[WorkerId, ...]], ...]
    """A shard without hosts is cold: it stays at the source for as long as this epoch lives."""
    cold_because: str = ""
    """Why some shards are cold, for people."""

    @property
    def cold_shards(self) -> frozenset[ShardId]:
        return frozenset(shard for shard, workers in self.hosts if not workers)

    @property
    def dataset_id(self) -> DatasetId:
        return DatasetId(self.tenant, self.dataset)

    @property
    def path(self) -> Path:
        return placement_path(self.dataset_id, self.epoch)

    def workers_of(self, shard_id: ShardId) -> tuple[WorkerId, ...]:
        return next((workers for shard, workers in self.hosts if shard == shard_id), ())

    def shards_on(self, worker: WorkerId) -> tuple[ShardId, ...]:
        return tuple(shard for shard, workers in self.hosts if worker in workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """A dataset's serving pointer: the one epoch that answers its queries."""

    KIND: ClassVar[str] = "serving"

    tenant: TenantId
    dataset: str
    epoch: EpochNumber
    since_ns: int

    @property
    def dataset_id(self) -> DatasetId:
        return DatasetId(self.tenant, self.dataset)

    @property
    def path(self) -> Path:
        return serving_path(self.dataset_id)


def placement_path(dataset: DatasetId, epoch: EpochNumber) -> Path:
    return (Placement.KIND, dataset.tenant, dataset.name, epoch_segment(epoch))


def serving_path(dataset: DatasetId) -> Path:
    return (Serving.KIND, dataset.tenant, dataset.name)
