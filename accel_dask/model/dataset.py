"""Datasets as their owner declares them, and the request to publish a new snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, Final

from accel_dask.model.fallback import FallbackSpec
from accel_dask.model.ids import DatasetId, Path, TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSpec:
    """Which connector reads the source, and what it needs to find it."""

    connector: str
    """`iceberg` or `parquet`."""
    options: tuple[tuple[str, str], ...] = ()
    """Sorted key/value pairs; each connector documents its own."""

    def option(self, key: str) -> str | None:
        return dict(self.options).get(key)


class Spread(StrEnum):
    """How a dataset's shards are laid over hosts."""

    TOGETHER = "together"
    """All shards on the same hosts as the tenant's other TOGETHER datasets."""
    SPREAD = "spread"
    """Each shard on its own hosts, balanced by bytes."""
    EVERYWHERE = "everywhere"
    """All shards on every host: for small dimensions that spread facts are joined with."""


class ColdPolicy(StrEnum):
    """What becomes of queries on shards that are in no executor's memory."""

    REFUSE = "refuse"
    """They are refused; a snapshot that does not fit into memory is too."""
    ALLOW = "allow"
    """A cold executor reads the snapshot's own files, within the tenant's cold budget."""


EVERY_HOST: Final = 1_000_000
"""The number of replicas that means one on every host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollup:
    """A pre-aggregate that the loader builds beside the rows; see `model.rollup`."""

    name: str
    dimensions: tuple[str, ...]
    """Columns, or time grains over them: `carrier`, `date_trunc('day', ts)`."""
    measures: tuple[str, ...]
    """Aggregates of columns: `count(*)`, `sum(delay)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A named table of one tenant, fed by one source."""

    KIND: ClassVar[str] = "dataset"

    tenant: TenantId
    name: str
    source: SourceSpec
    columns: tuple[str, ...] = ()
    """Source columns to hold, in this order; empty: all."""
    row_filter: str | None = None
    """A SQL predicate over the held columns; rows that fail it are not loaded."""
    sort_by: tuple[str, ...] = ()
    """Empty: the source's sort order, else its partition columns."""
    replicas: int = 1
    """On how many hosts each shard is held (fewer where there are fewer hosts)."""
    spread: Spread = Spread.TOGETHER
    shard_target_bytes: int = 64 * 1024 * 1024
    """Source bytes that one shard should hold, within a factor of about two."""
    rollups: tuple[Rollup, ...] = ()
    cold: ColdPolicy = ColdPolicy.REFUSE
    hot_shards: int | None = None
    """With `ColdPolicy.ALLOW`: hold only so many shards in memory, the last ones of the sort
    order; None: as many of them as fit."""
    poll_seconds: float = 0.0
    """How often the master looks for a new snapshot by itself; 0: only when told."""
    fallback: FallbackSpec | None = None
    """An engine that answers where memory does not; None: none."""

    @property
    def dataset_id(self) -> DatasetId:
        return DatasetId(self.tenant, self.name)

    @property
    def wanted_replicas(self) -> int:
        """Of each shard; more than there are hosts means one on each."""
        return EVERY_HOST if self.spread is Spread.EVERYWHERE else self.replicas

    @property
    def path(self) -> Path:
        return dataset_path(self.dataset_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishRequest:
    """A hint that a dataset has a new snapshot. The source is always asked again.

    There is one per dataset: a later request replaces one not yet taken up, so bursts
    coalesce.
    """

    KIND: ClassVar[str] = "publish"

    tenant: TenantId
    name: str
    nonce: str
    """Identifies the request to whoever waits for it."""
    requested_by: str
    requested_at_ns: int
    snapshot: str | None = None
    """The source's own snapshot id; None: the newest."""

    @property
    def dataset_id(self) -> DatasetId:
        return DatasetId(self.tenant, self.name)

    @property
    def path(self) -> Path:
        return publish_path(self.dataset_id)


def dataset_path(dataset: DatasetId) -> Path:
    return (Dataset.KIND, dataset.tenant, dataset.name)


def publish_path(dataset: DatasetId) -> Path:
    return (PublishRequest.KIND, dataset.tenant, dataset.name)
