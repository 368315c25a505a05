"""One shard of one epoch, by name: what a call may be narrowed to, and what Dask tasks read."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardRef:
    """Names a shard within a cluster."""

    tenant: str
    dataset: str
    epoch: int
    shard_id: str

    def __str__(self) -> str:
        return f"{self.dataset}@{self.epoch}/{self.shard_id}"
