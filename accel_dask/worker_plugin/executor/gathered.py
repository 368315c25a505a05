"""What inputs of queries hold: their tables, and the memory that all of an executor's share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import pyarrow as pa

from accel_dask.errors import MemoryLimit
from accel_dask.model.measured import MeasuredPart
from accel_dask.model.tenant import MIB, Quota


def input_memory_bytes(quota: Quota) -> int:
    """Arrow bytes that the inputs of all queries of one executor may have at once. The engine's
    own limit does not count them."""
    return quota.executor_memory_bytes // 2


class InputMemory:
    """What the inputs of all queries of an executor share. Safe to use from several threads."""

    def __init__(self, tenant: str, max_bytes: int) -> None:
        self._tenant = tenant
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self.used_bytes = 0

    def check(self, size: int) -> None:
        """
        Raises:
            MemoryLimit: there is not as much left.
        """
        if self.used_bytes + size > self._max_bytes:
            raise MemoryLimit(
                f"the queries of tenant {self._tenant} gather more than the "
                f"{self._max_bytes // MIB} MiB that its executor has for that; filter or "
                "aggregate more, or ask for a larger executor_memory_bytes"
            )

    def reserve(self, size: int) -> None:
        """Raises as `check`."""
        with self._lock:
            self.check(size)
            self.used_bytes += size

    def give_back(self, size: int) -> None:
        with self._lock:
            self.used_bytes -= size


@dataclass(frozen=True, slots=True)
class InputStats:
    """What was fetched for one query."""

    rows: int
    bytes: int
    peers: int
    parts: tuple[MeasuredPart, ...] = ()


class Inputs:
    """The inputs of one query, complete."""

    def __init__(
        self, tables: dict[str, pa.Table], stats: InputStats, release: Callable[[], None]
    ) -> None:
        self.stats: Final = stats
        self._tables = tables
        self._release: Callable[[], None] | None = release

    def take(self) -> dict[str, pa.Table]:
        """The tables by their names; nothing of them is kept here."""
        tables, self._tables = self._tables, {}
        return tables

    def release(self) -> None:
        """The memory is free. Safe to call twice."""
        release, self._release = self._release, None
        self._tables = {}
        if release is not None:
            release()
