"""How much memory the kernel lets each process of a tenant have. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from accel_dask.model.load_plan import LoadOrder
from accel_dask.model.tenant import MIB, Quota

PROCESS_BYTES: Final = 64 * MIB
"""What an executor or a loader needs beside its engine: the interpreter, threads, messages."""
MIN_EXECUTOR_BYTES: Final = 2 * PROCESS_BYTES
"""Below this no executor would come up."""
LOADER_SLACK_BYTES: Final = 2 * PROCESS_BYTES
"""What a loader may take beside its engine's memory and the shard file that it writes."""


def executor_limit_bytes(quota: Quota, shard_bytes: int) -> int:
    """All the memory that one executor may have: what its tenant's shard files on the host leave
    of the budget there. They are not charged to it, but to the loader that wrote them."""
    left = quota.memory_bytes_per_host - shard_bytes
    return max(left, quota.executor_memory_bytes, MIN_EXECUTOR_BYTES)


def cold_limit_bytes(quota: Quota) -> int:
    """All the memory that one cold executor may have."""
    return max(quota.cold_memory_bytes, MIN_EXECUTOR_BYTES)


def engine_quota(quota: Quota, limit_bytes: int) -> Quota:
    """`quota` with as much memory for the engine as fits into `limit_bytes` together with the
    inputs of queries (half as much) and the process itself: so that a query too large gets an
    error before the kernel ends its executor."""
    room = (limit_bytes - PROCESS_BYTES) * 2 // 3
    return replace(quota, executor_memory_bytes=min(quota.executor_memory_bytes, room))


def loader_limit_bytes(order: LoadOrder) -> int:
    """All the memory that one loader may have. What it writes to a memory file system is charged
    to it as long as it lives."""
    return order.memory_bytes + max(order.max_file_bytes, 0) + LOADER_SLACK_BYTES
