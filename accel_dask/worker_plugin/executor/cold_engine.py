"""A cold executor's DuckDB: each shard is a view over the files of its source.

The view has the name that a shard file's table has in other executors, and selects just what the
loader puts there, so that one SQL text runs on both. DuckDB is locked down to the files of the
shards. A view is made when a query first needs it.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import duckdb

from accel_dask.errors import (
    AccelError,
    ColdReadFailed,
    LoadError,
    MemoryLimit,
    SnapshotGone,
    UnsupportedQuery,
)
from accel_dask.model.ids import ShardId
from accel_dask.model.load_plan import LoadTask
from accel_dask.model.tenant import MIB
from accel_dask.model.ticket import Ticket, shard_database, shard_relation
from accel_dask.worker_plugin.executor.engine import Engine
from accel_dask.worker_plugin.executor.engine_errors import clean_text, kind_of
from accel_dask.worker_plugin.source_files import (
    as_pattern,
    check_files,
    collect_deletes,
    filtered,
    literal,
    local_path,
    read_footers,
    select_rows,
)

log = logging.getLogger(__name__)

_LOCK_POLL_SECONDS: Final = 0.02
_REHEARSAL_SECONDS: Final = 10.0
"""For reading footers before READY; an executor that is not READY in 30 s is given up."""
_MAY_BE_FILE: Final = re.compile(
    r"""(?:\b(?:FROM|JOIN|TABLE|DESC|DESCRIBE|SHOW|SUMMARIZE|PIVOT|UNPIVOT)|,|\()\s*"""
    r"""(?:'((?:[^']|'')*)'|"((?:[^"]|"")*)")""",
    re.IGNORECASE,
)
"""Where a file's name may stand. There are no comments in what `check_select` lets through."""
_FILE_SCHEME: Final = re.compile(r"^file:(//(localhost)?)?(?=/)")


class ColdEngine(Engine):
    """As `Engine`, over files that others may change: every query checks them before and after."""

    def _attach_all(self) -> None:
        assert self.spec.cold is not None
        self._tasks: dict[ShardId, LoadTask] = {
            shard.task.shard_id: shard.task for shard in self.spec.cold
        }
        self._paths = frozenset(_paths(self._tasks.values()))
        self._locks = {shard_id: threading.Lock() for shard_id in self._tasks}
        self._prepared: set[ShardId] = set()
        # A path is looked at twice: as the pattern that stands in the SQL, and as what it matched.
        allowed = sorted(self._paths | {as_pattern(path) for path in self._paths})
        listed = ", ".join(map(literal, allowed))
        self._database.execute(f"SET GLOBAL allowed_paths=[{listed}]")
        self._database.execute("SET GLOBAL enable_external_file_cache=false")
        self._database.execute("SET GLOBAL parquet_metadata_cache=false")

    def rehearse(self) -> int:
        """Read the footers of shards that must be readable; the rows of their files.

        Raises:
            ColdReadFailed: one cannot be read.
        """
        assert self.spec.cold is not None
        tasks = [shard.task for shard in self.spec.cold if shard.is_needed]
        until = time.monotonic() + _REHEARSAL_SECONDS
        with self.cursor() as cursor:
            for task in tasks:
                try:
                    if time.monotonic() < until:
                        self._make_view(task, cursor)
                        self._prepared.add(task.shard_id)
                    else:  # footers are read when a query wants them
                        check_files(task.files)
                except (LoadError, duckdb.Error) as error:
                    raise ColdReadFailed(f"{self._owners(task)}: {error}") from error
        return sum(file.record_count for task in tasks for file in task.files)

    def prepare(
        self, ticket: Ticket, cursor: duckdb.DuckDBPyConnection, check_stopped: Callable[[], None]
    ) -> None:
        """Check the files of all shards of `ticket`, and make the views that are missing.

        Raises:
            ColdReadFailed: a file is gone, was replaced or cannot be read.
            UnsupportedQuery: the SQL names a file.
        """
        self._refuse_files(ticket.sql)
        for task in self._tasks_of(ticket):
            check_stopped()
            if task.shard_id in self._prepared:
                self._check(task)
            else:
                self._prepare(task, cursor, check_stopped)

    def verify(self, ticket: Ticket) -> None:
        """Check that the files are still those that were checked before.

        Raises:
            ColdReadFailed: one was replaced or removed meanwhile.
        """
        for task in self._tasks_of(ticket):
            self._check(task)

    def translate(self, error: BaseException) -> AccelError:
        if self._is_of_file(error):
            text = kind_of(error)[1]
            log.error("a file of tenant %s cannot be read: %s", self.spec.tenant, error)
            return ColdReadFailed(
                f"a file of the snapshot could not be read for tenant {self.spec.tenant}: "
                f"{clean_text(text)}; publish the newest snapshot"
            )
        translated = super().translate(error)
        if isinstance(translated, MemoryLimit):
            return MemoryLimit(
                f"the query needs more memory than tenant {self.spec.tenant}'s cold executor has "
                f"({self.spec.quota.executor_memory_bytes // MIB} MiB); filter or aggregate more, "
                "hold more shards in memory, or ask for a larger cold_memory_bytes"
            )
        return translated

    def _is_of_file(self, error: BaseException) -> bool:
        """Whether it was a file that could not be read, and not the query that is wrong."""
        kind, text = kind_of(error)
        if kind == "":  # the Parquet reader's own, of bytes that are not what it expects
            return isinstance(error, duckdb.Error | OSError) and "bad_alloc" not in text
        if kind == "invalid input":  # of a query too, which may quote anything
            return "Parquet" in text or any(path in text for path in self._paths)
        return kind in {"io", "serialization"}

    def _tasks_of(self, ticket: Ticket) -> Iterator[LoadTask]:
        for token in ticket.tokens:
            for shard_id in token.shards:
                yield self._tasks[shard_id]

    def _check(self, task: LoadTask) -> None:
        try:
            check_files(task.files)
        except SnapshotGone as error:
            raise self._failed(task, error) from error

    def _prepare(
        self,
        task: LoadTask,
        cursor: duckdb.DuckDBPyConnection,
        check_stopped: Callable[[], None],
    ) -> None:
        lock = self._locks[task.shard_id]
        while not lock.acquire(timeout=_LOCK_POLL_SECONDS):
            check_stopped()
        try:
            if task.shard_id in self._prepared:
                self._check(task)
                return
            self._make_view(task, cursor)
            self._prepared.add(task.shard_id)
        except LoadError as error:
            raise self._failed(task, error) from error
        finally:
            lock.release()

    def _make_view(self, task: LoadTask, cursor: duckdb.DuckDBPyConnection) -> None:
        """What an earlier attempt has left, interrupted, is made again."""
        footers = read_footers(cursor, task.files)
        cursor.execute(f"ATTACH IF NOT EXISTS ':memory:' AS \"{shard_database(task.shard_id)}\"")
        gone_rows = shard_relation(task.shard_id, "gone_rows")
        collect_deletes(cursor, task.files, gone_rows)
        rows = filtered(task, select_rows(task, footers, gone_rows))
        cursor.execute(f"CREATE OR REPLACE VIEW {shard_relation(task.shard_id)} AS {rows}")

    def _failed(self, task: LoadTask, error: LoadError) -> ColdReadFailed:
        """Which file it is, is for the operator's eyes alone."""
        owners = self._owners(task)
        log.error("shard %s of %s: %s", task.shard_id, owners, error)
        is_gone = isinstance(error, SnapshotGone)
        why = "is gone or was replaced" if is_gone else f"cannot be read right ({error.code})"
        return ColdReadFailed(
            f"a file of {owners}, of which shards are read from the source, {why} since the "
            "snapshot was planned; publish the newest snapshot"
        )

    def _owners(self, task: LoadTask) -> str:
        return ", ".join(
            sorted(
                f"{self.spec.tenant}.{a.dataset}@{a.epoch}"
                for a in self.spec.attachments
                if a.shard_id == task.shard_id
            )
        )

    def _refuse_files(self, sql: str) -> None:
        """The door is open for the files of the shards, which hold more than the shards do. The
        gateway lets no query name a file; this is the second lock."""
        for match in _MAY_BE_FILE.finditer(sql):
            quoted = match[1] if match[1] is not None else match[2]
            name = quoted.replace("''", "'") if match[1] is not None else quoted
            name = _FILE_SCHEME.sub("", name.replace('""', '"'))
            path = os.path.abspath(name)  # noqa: PTH100 - links are not followed
            if path in self._paths or re.sub(r"\[([*?\[])\]", r"\1", path) in self._paths:
                raise UnsupportedQuery("files are not available here")


def _paths(tasks: Iterable[LoadTask]) -> Iterator[str]:
    for task in tasks:
        for file in task.files:
            yield local_path(file.path)
            for delete in file.deletes:
                yield local_path(delete.path)
