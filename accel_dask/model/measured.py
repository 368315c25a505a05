"""What executors measured of a query: sent with its answer, kept in its receipt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

MEASURED_TRAILER: Final = "accel-measured"
"""Trailing metadata of an executor's answer: `Measured` as JSON."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredPart:
    """One peer's share of a query's inputs."""

    address: str
    """Of the executor that gave it; receipts name its worker and generation instead."""
    rows: int
    bytes: int
    ms: float
    """From asking the first executor to the last row."""
    cpu_ms: float
    scanned_rows: int | None = None
    alternatives: int = 0
    """Executors that were asked for it before and did not give it."""


# Made and written for every query, which takes a dataclass twice as long.
class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One ticket's cost in the executor that ran it. Times in milliseconds."""

    queue_ms: float
    """Waiting for a thread of the engine."""
    gather_ms: float
    """Fetching the inputs; 0: there were none."""
    engine_ms: float
    """Binding and computing, without waiting for whoever reads the answer."""
    cpu_ms: float
    """Of all threads. The engine's are shared: what queries use at once is split evenly."""
    rows: int
    bytes: int
    scanned_rows: int | None = None
    """None: the engine did not count. As `peak_memory_bytes`."""
    peak_memory_bytes: int | None = None
    gathered_rows: int = 0
    gathered_bytes: int = 0
    parts: tuple[MeasuredPart, ...] = ()

    @property
    def total_cpu_ms(self) -> float:
        """With that of the parts."""
        return self.cpu_ms + sum(part.cpu_ms for part in self.parts)
