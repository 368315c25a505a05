"""A tenant's DuckDB: shard files attached READ_ONLY, settings locked, queries run on tickets."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import duckdb

from accel_dask.errors import AccelError, ShardDamaged, ValidationFailed
from accel_dask.model.ids import ShardId
from accel_dask.model.tenant import MIB
from accel_dask.model.ticket import Ticket, shard_database, shard_relation
from accel_dask.worker_plugin.executor.batches import SentSchemas
from accel_dask.worker_plugin.executor.cores import Cores, new_threads
from accel_dask.worker_plugin.executor.cpu_time import CpuMeter
from accel_dask.worker_plugin.executor.engine_errors import (
    clean_text,
    kind_of,
    may_be_broken,
    translate,
)
from accel_dask.worker_plugin.executor.engine_threads import EngineThreads
from accel_dask.worker_plugin.executor.input_views import InputViews
from accel_dask.worker_plugin.executor.inputs import Peers
from accel_dask.worker_plugin.executor.running import RunningQuery
from accel_dask.worker_plugin.executor.spec import ExecutorSpec
from accel_dask.worker_plugin.executor.watchdog import Watchdog

log = logging.getLogger(__name__)

# Before the attaches; what follows them closes the door. Order matters: without external access
# some settings cannot be set any more.
_SETTINGS: Final = (
    "autoinstall_known_extensions=false",
    "autoload_known_extensions=false",
    "allow_community_extensions=false",
    "allow_persistent_secrets=false",
    "python_enable_replacements=false",
    "temp_directory=''",
    "allocator_background_threads=true",
    "TimeZone='UTC'",
)
_LOCK: Final = (
    "enable_external_access=false",
    # Ours to set on a cursor of a query whose cost is to be counted; queries are SELECTs only.
    "allowed_configs=['enable_profiling', 'tracked_metrics']",
    "lock_configuration=true",
)


class Engine:
    """One in-memory DuckDB with a spec's shard files. Safe to use from several threads."""

    def __init__(
        self,
        spec: ExecutorSpec,
        on_stuck: Callable[[str], None],
        *,
        die_frozen: bool = False,
    ) -> None:
        """Attach and lock. `on_stuck`, `die_frozen`: as for `Watchdog`.

        Raises:
            ShardDamaged: a shard file is not there or cannot be attached.
        """
        self.spec: Final = spec
        with new_threads() as workers:
            self._database = duckdb.connect(
                ":memory:",
                config={
                    "threads": str(spec.quota.threads),
                    "async_threads": "1",
                    "memory_limit": f"{max(spec.quota.executor_memory_bytes // MIB, 1)}MiB",
                },
            )
        self.cores: Final = Cores(frozenset(workers if spec.quota.threads > 1 else ()))
        for setting in _SETTINGS:
            self._database.execute(f"SET GLOBAL {setting}")
        self.shard_ids: tuple[ShardId, ...] = tuple(sorted({a.shard_id for a in spec.attachments}))
        self._attach_all()
        for setting in _LOCK:
            self._database.execute(f"SET GLOBAL {setting}")
        self._cursor_lock = threading.Lock()
        self._spare: duckdb.DuckDBPyConnection | None = None
        quota = spec.quota
        self.threads: Final = EngineThreads(
            spec.tenant, "queries", quota.concurrency, quota.queue_length
        )
        # Parts have their own: a query that waits for a peer's part never stands in the way of
        # a part that the peer waits for.
        self.part_threads: Final = EngineThreads(
            spec.tenant, "parts of queries", quota.concurrency, None
        )
        self.peers: Final = Peers(spec.tenant, quota, bytes.fromhex(spec.ticket_key))
        self.input_views: Final = InputViews(self.cursor)
        self.sent_schemas: Final = SentSchemas()
        self.cpu: Final = CpuMeter()
        self.watchdog: Final = Watchdog(
            spec.stuck_seconds, on_stuck, cpu=self.cpu, cores=self.cores, die_frozen=die_frozen
        )
        self._on_stuck = on_stuck

    def _attach_all(self) -> None:
        for shard_id in self.shard_ids:
            self._attach(shard_id)

    def _attach(self, shard_id: ShardId) -> None:
        file = Path(self.spec.shard_dir) / f"{shard_id}.duckdb"
        quoted = str(file).replace("'", "''")
        try:
            self._database.execute(
                f"ATTACH '{quoted}' AS \"{shard_database(shard_id)}\" (READ_ONLY)"
            )
        except duckdb.Error as error:
            raise self._damaged(shard_id, error) from error

    def prepare(
        self, ticket: Ticket, cursor: duckdb.DuckDBPyConnection, check_stopped: Callable[[], None]
    ) -> None:
        """Called before `ticket` is run on `cursor`: shard files need nothing."""

    def verify(self, ticket: Ticket) -> None:
        """Called after it was read to its end: shard files never change."""

    def rehearse(self) -> int:
        """Read every attached table once, as a query would; the rows of all shards.

        Raises:
            ShardDamaged: a shard's table is not there or cannot be read.
        """
        rows = 0
        for shard_id in self.shard_ids:
            with self.cursor() as cursor:
                try:
                    relation = cursor.sql(f"FROM {shard_relation(shard_id)}")
                    column = str(relation.columns[0]).replace('"', '""')
                    row = cursor.execute(
                        f'SELECT count(*), count("{column}") '  # noqa: S608 - our own names
                        f"FROM {shard_relation(shard_id)}"
                    ).fetchone()
                except duckdb.Error as error:
                    raise self._damaged(shard_id, error) from error
                if row is None:
                    raise ValidationFailed(f"shard {shard_id} gives no count")
                rows += int(row[0])
        return rows

    def _damaged(self, shard_id: ShardId, error: duckdb.Error) -> ShardDamaged:
        owners = sorted({f"{a.dataset}@{a.epoch}" for a in self.spec.attachments
                         if a.shard_id == shard_id})  # fmt: skip
        log.error("shard %s of tenant %s: %s", shard_id, self.spec.tenant, error)
        return ShardDamaged(
            f"shard {shard_id} of tenant {self.spec.tenant} ({', '.join(owners)}) cannot be "
            f"read: {clean_text(kind_of(error)[1])}"
        )

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A fresh connection: no macro, variable or schema of an earlier query is in it."""
        with self._cursor_lock:
            spare, self._spare = self._spare, None
            return spare if spare is not None else self._database.cursor()

    def make_spare(self) -> None:
        """Make the next query's cursor, which takes as long as much of a small query."""
        with self._cursor_lock, contextlib.suppress(duckdb.Error):  # the query will tell
            if self._spare is None:
                self._spare = self._database.cursor()

    def run(
        self,
        ticket: Ticket,
        is_cancelled: Callable[[], bool] = lambda: False,
        started_at: float | None = None,
    ) -> RunningQuery:
        """The answer to `ticket`, with its schema and first batch computed.

        Whoever calls closes it or reads it to its end. `is_cancelled` is called from another
        thread until then.

        Raises:
            AccelError: of the QueryError family, `ResourceExhausted`, `QueryCancelled`; of a query
                with inputs also `ExecutorUnavailable` and `StaleEpoch` of its peers.
        """
        started_at = time.monotonic() if started_at is None else started_at
        query = RunningQuery(self, ticket, started_at, is_cancelled)
        try:
            query.start()
        except BaseException:
            query.close()
            raise
        return query

    def translate(self, error: BaseException) -> AccelError:
        """Our error for `error` of the engine; ends the executor if the engine is broken."""
        if may_be_broken(error) and not self._works():
            self._on_stuck(f"the engine of tenant {self.spec.tenant} is broken: {error}")
        return translate(error, self.spec.tenant, self.spec.quota)

    def _works(self) -> bool:
        try:
            with self.cursor() as cursor:
                return cursor.execute("SELECT 1").fetchone() == (1,)
        except duckdb.Error:
            log.exception("the engine of tenant %s fails its check", self.spec.tenant)
            return False

    def close(self) -> None:
        self.watchdog.close()
        self.threads.close()
        self.part_threads.close()
        self.peers.close()
        self.input_views.close()
        self._database.close()
