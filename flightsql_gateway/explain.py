"""`EXPLAIN SELECT ...`: how a query would be answered now, as rows of text. It runs nothing."""

from __future__ import annotations

import re
from typing import Final

import pyarrow as pa

from accel_dask.errors import UnsupportedQuery
from accel_dask.query_planner.pipeline import explain
from accel_dask.query_planner.plan import QueryPlan

SCHEMA: Final = pa.schema([pa.field("plan", pa.string())])

_SPACE: Final = r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)"
_EXPLAIN: Final = re.compile(rf"{_SPACE}*EXPLAIN\b{_SPACE}*(ANALYZE\b)?", re.IGNORECASE | re.DOTALL)


def explained(sql: str) -> str | None:
    """The statement that `sql` asks to explain; None: it asks for nothing of the kind.

    Raises:
        UnsupportedQuery: EXPLAIN ANALYZE.
    """
    found = _EXPLAIN.match(sql)
    if found is None:
        return None
    if found[1]:
        raise UnsupportedQuery(
            "EXPLAIN ANALYZE is not served here; run the query and ask for its receipt with the "
            "action accel.receipts"
        )
    return sql[found.end() :]


class ExplainStream:
    """A plan in place of its answer; see `answer.BatchStream`."""

    executor: Final = None
    retries: Final = 0
    measured: Final = None
    schema: Final = SCHEMA

    def __init__(self, plan: QueryPlan) -> None:
        self.plan: Final = plan
        lines = explain(plan).splitlines()
        self._batch: pa.RecordBatch | None = pa.record_batch([pa.array(lines)], schema=SCHEMA)

    def read(self) -> pa.RecordBatch | None:
        batch, self._batch = self._batch, None
        return batch

    def cancel(self) -> None:
        """Nothing runs."""

    def close(self) -> None:
        """Nothing is open."""
