"""What the engine counts of a statement, if it is asked to: rows scanned and peak memory."""

from __future__ import annotations

import json
import logging

import duckdb

log = logging.getLogger(__name__)

_SETTINGS = (
    "SET enable_profiling = 'no_output'",
    "SET tracked_metrics = ['query.total_rows_scanned', 'system.peak_buffer_memory']",
)


def count_costs(cursor: duckdb.DuckDBPyConnection) -> None:
    """Have the statements of `cursor` counted from now on."""
    for setting in _SETTINGS:
        cursor.execute(setting)


def counted_costs(cursor: duckdb.DuckDBPyConnection) -> tuple[int | None, int | None]:
    """Rows scanned by the last statement, and its peak memory in bytes; None: not counted."""
    try:
        told = json.loads(cursor.get_profiling_information())
        return int(told["query"]["total_rows_scanned"]), int(told["system"]["peak_buffer_memory"])
    except (duckdb.Error, ValueError, KeyError, TypeError) as error:
        log.warning("the engine did not tell what a query cost: %s", error)
        return None, None
