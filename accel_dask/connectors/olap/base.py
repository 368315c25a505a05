"""What an OLAP engine behind memory offers; one module per way of speaking to one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class RunLimits:
    """Bounds of one query at an engine."""

    seconds: float
    max_rows: int
    max_bytes: int
    promised_rows: int | None = None
    """More rows than this cannot be right; None: nothing is known."""


class EngineStream(Protocol):
    """Batches of one answer, in exactly the schema that was asked for."""

    def read(self) -> pa.RecordBatch | None:
        """The next batch; None: that was all of the answer.

        Raises:
            EngineUnavailable: it went away.
            EngineFailed: it failed on the query.
            EngineDisagrees: it gave something else than was asked.
            RowLimit, DeadlineExceeded: a limit was reached.
        """
        ...

    def cancel(self) -> None:
        """End it at the engine too. From any thread; a blocked `read` fails."""
        ...

    def close(self) -> None: ...


class OlapEngine(Protocol):
    """One engine. Connects when it is first needed; used by several threads."""

    describes_by_arrow: bool
    """Whether `columns` tells types by Arrow's names rather than by the engine's own."""

    def columns(self, table: Sequence[str], quoted: str) -> tuple[tuple[str, str], ...]:
        """Names and types of a table's columns, none if there is no such table. `quoted` is the
        table as its dialect writes it.

        Raises:
            EngineUnavailable, EngineFailed: it did not say.
        """
        ...

    def run(self, sql: str, schema: pa.Schema, limits: RunLimits) -> EngineStream:
        """Start a query. Waits for a connection at most as long as the limits allow.

        Raises:
            EngineUnavailable, EngineFailed, DeadlineExceeded: it did not start.
        """
        ...

    def ping(self) -> None:
        """
        Raises:
            EngineUnavailable: it does not answer.
        """
        ...

    def close(self) -> None: ...
