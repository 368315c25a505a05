"""Build a shard's DuckDB file from its source files and validate it; used by the loader."""

# ruff: noqa: S608 - SQL is built from quoted names and literals; predicates are the operator's own
from __future__ import annotations

import logging
import math
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import duckdb

from accel_dask.errors import (
    LoaderCrashed,
    NotAcceleratable,
    QuotaExceeded,
    SchemaUnsupported,
    SnapshotGone,
    ValidationFailed,
)
from accel_dask.model import row_filter
from accel_dask.model.ids import DatasetId
from accel_dask.model.load_plan import LoadOrder, LoadTask
from accel_dask.model.rollup import RollupTable, rollup_table
from accel_dask.model.snapshot import Column
from accel_dask.worker_plugin.rollup_build import build_rollup, check_rollup
from accel_dask.worker_plugin.source_files import (
    collect_deletes,
    filtered,
    quote,
    read_footers,
    select_rows,
)
from accel_dask.worker_plugin.validate import Loaded, is_not_null, validate

logger = logging.getLogger(__name__)

_WATCH_SECONDS = 0.2
_LEAST_MEMORY_BYTES = 128 * 1024 * 1024
_MEMORY_PER_SOURCE_BYTE = 3.75
_SORT_OVERHEAD = 1.35
_MOST_SLICES = 32
_SAMPLE_ROWS = 20_000
_VALUE_BYTES: Final = {
    "BOOLEAN": 1,
    "TINYINT": 1,
    "SMALLINT": 2,
    "INTEGER": 4,
    "FLOAT": 4,
    "DATE": 4,
    "HUGEINT": 16,
    "UUID": 16,
    "VARCHAR": 24,
    "BLOB": 24,
}
"""Uncompressed, texts by a guess; 8 where it is not here."""
_SMALL_SOURCE_BYTES = 512 * 1024
"""Below this a shard file has small blocks: with the usual ones even one row takes half a MiB."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """How much memory the engine gets, and in how many slices of the sort order it loads."""

    memory_bytes: int
    slices: int = 1


def build(order: LoadOrder, file: Path, spill: Path) -> Loaded:
    """Make `file`, validated and closed; the caller removes it when this fails.

    Raises:
        LoadError, QuotaExceeded: as `load_shard`.
    """
    *attempts, last = _attempts(order)
    for attempt in attempts:
        try:
            return _build(order, attempt, file, spill)
        except duckdb.OutOfMemoryException:
            logger.info("shard %s needs more than %s", order.task.shard_id, attempt)
            unlink_database(file)
    try:
        return _build(order, last, file, spill)
    except duckdb.OutOfMemoryException as error:
        raise QuotaExceeded(
            f"{_name(order)}: the loader's memory of {order.memory_bytes:,} bytes does not do; "
            "raise [host] loader_memory_bytes or lower the dataset's shard_target_bytes: "
            f"{str(error).splitlines()[0]}"
        ) from error


def _attempts(order: LoadOrder) -> tuple[_Attempt, ...]:
    """First a few times the memory of the result, in as many slices as fit into it: that costs
    less than a sort that spills. Then all that is allowed; then, as sorting wide rows takes many
    times their size however much may spill, in ever smaller slices."""
    tight = max(_LEAST_MEMORY_BYTES, int(_MEMORY_PER_SOURCE_BYTE * order.task.source_bytes))
    slices = _slices_within(order.task, min(tight, order.memory_bytes))
    attempts = [_Attempt(tight, slices)] if tight < order.memory_bytes else []
    attempts.append(_Attempt(order.memory_bytes, slices))
    if order.task.sort_by:
        attempts += [_Attempt(order.memory_bytes, factor * slices) for factor in (8, 64)]
    return tuple(attempts)


def _slices_within(task: LoadTask, memory_bytes: int) -> int:
    """Into how many slices to cut the rows so that each is sorted in memory, by a guess."""
    if not task.sort_by:
        return 1
    rows = sum(file.record_count for file in task.files)
    row_bytes = sum(_value_bytes(column.type) for column in task.columns)
    wanted = math.ceil(_SORT_OVERHEAD * rows * row_bytes / (memory_bytes * 2 / 3))
    return min(max(1, wanted), _MOST_SLICES)


def _value_bytes(column_type: str) -> int:
    decimal = re.fullmatch(r"DECIMAL\((\d+),\d+\)", column_type)
    if decimal:
        width = int(decimal[1])
        return 4 if width <= 9 else 8 if width <= 18 else 16
    return _VALUE_BYTES.get(column_type, 8)


def unlink_database(file: Path) -> None:
    """Remove a database file and its log."""
    file.unlink(missing_ok=True)
    file.with_name(file.name + ".wal").unlink(missing_ok=True)


def _name(order: LoadOrder) -> str:
    return f"{order.tenant}.{order.dataset}@{order.epoch}, shard {order.task.shard_id}"


def _build(order: LoadOrder, attempt: _Attempt, file: Path, spill: Path) -> Loaded:
    task = order.task
    why_not = row_filter.refusal(_name(order), task.row_filter)
    if why_not is not None:
        raise NotAcceleratable(why_not)
    with (
        _translated(order),
        _open_database(order, attempt, file, spill) as connection,
        _size_watch(order, file, connection),
    ):
        footers = read_footers(connection, task.files)
        gone = collect_deletes(connection, task.files)
        connection.execute(f"CREATE TABLE main.data ({_column_list(task.columns)})")
        rows = filtered(task, select_rows(task, footers))
        for slice_of_rows in _slices(connection, task, rows, attempt.slices):
            connection.execute(f"INSERT INTO main.data {slice_of_rows}{_order_by(task)}")
        connection.execute("DROP TABLE IF EXISTS temp.gone_rows")
        tables = _rollup_tables(order)
        for table in tables:
            build_rollup(connection, table)
        connection.execute("CHECKPOINT")
        promised = None
        if task.row_filter is None:
            promised = sum(f.record_count for f in task.files) - gone
        loaded = validate(connection, task, promised)
        counts = tuple(check_rollup(connection, task.shard_id, table) for table in tables)
        return replace(loaded, rollup_rows=counts)


def _open_database(
    order: LoadOrder, attempt: _Attempt, file: Path, spill: Path
) -> duckdb.DuckDBPyConnection:
    is_small = order.task.source_bytes < _SMALL_SOURCE_BYTES
    connection = duckdb.connect(
        file,
        config={
            "memory_limit": f"{attempt.memory_bytes}B",
            "threads": order.threads,
            "temp_directory": str(spill),
            "default_block_size": 16 * 1024 if is_small else 256 * 1024,
            "enable_external_file_cache": False,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
        },
    )
    connection.execute("SET TimeZone = 'UTC'")
    connection.execute("SET parquet_metadata_cache = true")  # footers are read twice
    connection.execute("SET enable_progress_bar = false")  # it writes to standard output
    return connection


def _column_list(columns: tuple[Column, ...]) -> str:
    return ", ".join(
        f"{quote(c.name)} {c.type}{' NOT NULL' if is_not_null(c) else ''}" for c in columns
    )


def _order_by(task: LoadTask) -> str:
    return " ORDER BY " + ", ".join(map(quote, task.sort_by)) if task.sort_by else ""


def _slices(
    connection: duckdb.DuckDBPyConnection, task: LoadTask, rows: str, count: int
) -> Iterator[str]:
    """`rows` in `count` selects of about equal size, one after the other in sort order."""
    if count == 1:
        yield rows
        return
    key = quote(task.sort_by[0])
    fractions = [number / count for number in range(1, count)]
    connection.execute(
        "CREATE TEMP TABLE bounds AS SELECT row_number() OVER (ORDER BY bound) AS n, bound FROM "
        f"(SELECT unnest(list_distinct(quantile_disc({key}, {fractions}))) AS bound FROM "
        f"(SELECT {key} FROM ({rows}) USING SAMPLE reservoir({_SAMPLE_ROWS} ROWS)))"
    )
    counted = connection.execute("SELECT count(*) FROM temp.bounds").fetchone()
    last = int(counted[0]) if counted else 0
    for number in range(last + 1):
        # Ascending, NULLs last, as the sort itself.
        least = f"{key} >= (SELECT bound FROM temp.bounds WHERE n = {number})" if number else "true"
        below = f"{key} < (SELECT bound FROM temp.bounds WHERE n = {number + 1})"
        if number == last:
            below = "true"
            least = f"({least} OR {key} IS NULL)"
        yield f"SELECT * FROM ({rows}) WHERE {least} AND {below}"
    connection.execute("DROP TABLE temp.bounds")


def _rollup_tables(order: LoadOrder) -> tuple[RollupTable, ...]:
    dataset = DatasetId(order.tenant, order.dataset)
    return tuple(rollup_table(dataset, one, order.task.columns) for one in order.task.rollups)


def check_size(order: LoadOrder, file_bytes: int) -> None:
    """Raise `QuotaExceeded` when a file of this size is over the order's budget."""
    if file_bytes > order.max_file_bytes:
        raise QuotaExceeded(
            f"tenant {order.tenant}: a shard of {order.dataset} takes {file_bytes:,} bytes and "
            f"{order.max_file_bytes:,} are left of the budget; raise memory_bytes_per_host, "
            "or hold fewer columns or rows"
        )


@contextmanager
def _size_watch(
    order: LoadOrder, file: Path, connection: duckdb.DuckDBPyConnection
) -> Iterator[None]:
    """Stop a build whose file is far over its budget before it fills the memory."""
    limit = order.max_file_bytes + max(64 * 1024 * 1024, order.max_file_bytes // 4)
    ended = threading.Event()
    seen = 0

    def watch() -> None:
        nonlocal seen
        while not ended.wait(_WATCH_SECONDS):
            seen = file.stat().st_size if file.exists() else 0
            if seen > limit:
                connection.interrupt()
                return

    watcher = threading.Thread(target=watch, name="size-watch", daemon=True)
    watcher.start()
    try:
        yield
    except duckdb.InterruptException:
        check_size(order, seen)
        raise
    finally:
        ended.set()
        watcher.join()


@contextmanager
def _translated(order: LoadOrder) -> Iterator[None]:
    """The engine's errors as ours."""
    where = _name(order)
    try:
        yield
    except duckdb.OutOfMemoryException:
        raise  # another attempt may do with other means
    except (duckdb.ConversionException, duckdb.OutOfRangeException) as error:
        raise SchemaUnsupported(f"{where}: a value does not fit its column: {error}") from error
    except duckdb.ConstraintException as error:
        raise ValidationFailed(f"{where}: a required column holds NULL: {error}") from error
    except (duckdb.BinderException, duckdb.ParserException, duckdb.CatalogException) as error:
        raise SchemaUnsupported(
            f"{where}: the row filter, a rollup or a column cannot be used: {error}"
        ) from error
    except duckdb.IOException as error:
        _raise_io_error(order, where, error)
    except (duckdb.InvalidInputException, duckdb.SerializationException) as error:
        raise ValidationFailed(f"{where}: a data file cannot be read: {error}") from error
    except duckdb.Error as error:
        raise LoaderCrashed(f"{where}: {type(error).__name__}: {error}") from error


def _raise_io_error(order: LoadOrder, where: str, error: duckdb.IOException) -> None:
    text = str(error)
    if "No space left" in text:
        raise QuotaExceeded(
            f"{where}: {order.shard_dir} or {order.spill_dir} is full: {error}"
        ) from error
    if "No such file" in text or "No files found" in text:
        raise SnapshotGone(f"{where}: a file went away while it was read: {error}") from error
    raise ValidationFailed(f"{where}: a data file cannot be read: {error}") from error
