"""The names that records call each other by; used by every other module."""

from __future__ import annotations

from typing import NamedTuple, NewType

TenantId = NewType("TenantId", str)
EpochNumber = NewType("EpochNumber", int)
"""Counts up from 1 within one dataset; never reused."""
ShardId = NewType("ShardId", str)
"""32 hex digits: a hash of everything that decides the shard's content."""
WorkerId = NewType("WorkerId", str)
"""A worker host: the name of its Dask worker, unique in the cluster."""
GatewayId = NewType("GatewayId", str)
Revision = NewType("Revision", int)
"""A revision of the state store; only ever grows."""

Path = tuple[str, ...]
"""Where a record lives: its kind, then what identifies it."""


class DatasetId(NamedTuple):
    """A dataset's full name."""

    tenant: TenantId
    name: str

    def __str__(self) -> str:
        return f"{self.tenant}.{self.name}"


def epoch_segment(number: int) -> str:
    """`number` as a path segment: 20 digits, so that text order is number order."""
    return f"{number:020d}"
