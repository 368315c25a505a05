"""A query under way in the engine: its schema, then its batches, then nothing left behind."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Final, Protocol

import duckdb
import pyarrow as pa

from accel_dask.codec import encode
from accel_dask.errors import (
    AccelError,
    ByteLimit,
    CpuLimit,
    DeadlineExceeded,
    QueryCancelled,
    RowLimit,
)
from accel_dask.model.measured import Measured
from accel_dask.model.ticket import Ticket
from accel_dask.worker_plugin.executor.batches import (
    READ_ROWS,
    SentSchema,
    SentSchemas,
    read_some,
    slices,
)
from accel_dask.worker_plugin.executor.cores import Cores
from accel_dask.worker_plugin.executor.counting import count_costs, counted_costs
from accel_dask.worker_plugin.executor.cpu_time import CpuAccount, CpuMeter
from accel_dask.worker_plugin.executor.engine_errors import is_of_engine
from accel_dask.worker_plugin.executor.engine_threads import EngineThread, EngineThreads
from accel_dask.worker_plugin.executor.gathered import Inputs, InputStats
from accel_dask.worker_plugin.executor.input_views import InputViews, ShownInputs
from accel_dask.worker_plugin.executor.inputs import Fetch, Peers
from accel_dask.worker_plugin.executor.parameters import bind_values
from accel_dask.worker_plugin.executor.part_types import with_types
from accel_dask.worker_plugin.executor.spec import ExecutorSpec
from accel_dask.worker_plugin.executor.statement import check_select
from accel_dask.worker_plugin.executor.streaming import open_stream
from accel_dask.worker_plugin.executor.watchdog import StopReason, Watchdog


class QueryEngine(Protocol):
    """What a query needs of the engine it runs in."""

    @property
    def spec(self) -> ExecutorSpec: ...

    @property
    def threads(self) -> EngineThreads: ...

    @property
    def part_threads(self) -> EngineThreads: ...

    @property
    def peers(self) -> Peers: ...

    @property
    def input_views(self) -> InputViews: ...

    @property
    def watchdog(self) -> Watchdog: ...

    @property
    def cpu(self) -> CpuMeter: ...

    @property
    def cores(self) -> Cores: ...

    @property
    def sent_schemas(self) -> SentSchemas: ...

    def cursor(self) -> duckdb.DuckDBPyConnection: ...

    def prepare(
        self, ticket: Ticket, cursor: duckdb.DuckDBPyConnection, check_stopped: Callable[[], None]
    ) -> None: ...

    def verify(self, ticket: Ticket) -> None: ...

    def translate(self, error: BaseException) -> AccelError: ...


class RunningQuery:
    """Iterates over record batches. Read by one thread, stopped by the watchdog's."""

    def __init__(
        self,
        engine: QueryEngine,
        ticket: Ticket,
        started_at: float,
        is_cancelled: Callable[[], bool],
    ) -> None:
        """`started_at`: monotonic seconds at which the executor took the ticket."""
        self._engine: Final = engine
        self._ticket: Final = ticket
        self._is_cancelled: Final = is_cancelled
        self.deadline = started_at + ticket.timeout_ms / 1000
        self.stopped_at: float | None = None
        self._stop_reason: StopReason | None = None
        self._lock = threading.Lock()
        """Held while the engine works for this query."""
        self._threads: Final = engine.part_threads if ticket.is_part else engine.threads
        self._thread: EngineThread | None = None
        self._fetch: Fetch | None = None
        self._inputs: Inputs | None = None
        self._shown: ShownInputs | None = None
        self._cursor: duckdb.DuckDBPyConnection | None = None
        self._reader: pa.RecordBatchReader | None = None
        self._pending: deque[pa.RecordBatch] = deque()
        self._rows = self._bytes = 0
        self._max_rows = _max_rows(ticket, engine.spec)
        self._max_bytes = _max_bytes(ticket, engine.spec)
        self._max_cpu_ms = _max_cpu_ms(ticket, engine.spec)
        self._cpu: Final = CpuAccount()
        self._started_at: Final = started_at
        self._queue_seconds = self._gather_seconds = self._engine_seconds = 0.0
        self._counted: tuple[int | None, int | None] = (None, None)
        self._input_stats: InputStats | None = None
        self._sent: SentSchema | None = None
        self.is_complete = False
        """All batches are here; the engine works on it no more."""

    def __str__(self) -> str:
        return f"query {self._ticket.query_id} of tenant {self._ticket.tenant}"

    # The watchdog's side.

    @property
    def is_computing(self) -> bool:
        return self._lock.locked()

    def client_is_gone(self) -> bool:
        return self._is_cancelled()

    def is_over_cpu(self) -> bool:
        return self._cpu.ms > self._max_cpu_ms

    def stop(self, reason: StopReason) -> None:
        """Interrupt the engine, or take everything from a query that waits for its reader."""
        if self._stop_reason is None:
            self._stop_reason = reason
            self.stopped_at = time.monotonic()
        if (fetch := self._fetch) is not None:
            fetch.stop()
        if self._lock.acquire(blocking=False):
            try:
                self._drop()
                self._give_back()
                self._engine.watchdog.remove(self)
            finally:
                self._lock.release()
        elif (cursor := self._cursor) is not None:
            with contextlib.suppress(duckdb.Error):  # closed in this moment
                cursor.interrupt()

    def check_stopped(self) -> None:
        """Raise what the watchdog stopped it for, if it did."""
        if self._stop_reason is not None:
            raise self._stopped_error()

    # The reader's side.

    @property
    def schema(self) -> pa.Schema:
        """Known once it has started."""
        assert self._sent is not None
        return self._sent.schema

    @property
    def schema_message(self) -> pa.Buffer:
        """`schema`, serialized."""
        assert self._sent is not None
        return self._sent.message

    def start(self) -> None:
        """Wait for a thread of the engine, fetch the inputs, bind, run, and compute the first
        batch.

        Raises:
            AccelError: as for `Engine.run`.
        """
        self._engine.watchdog.add(self)
        self._thread = self._threads.acquire(self)
        self._queue_seconds = time.monotonic() - self._started_at
        if self._ticket.inputs:
            self._gather_seconds = self._cpu_of(self._gather, None)
        self._work(self._begin)

    @property
    def input_stats(self) -> InputStats | None:
        """What was fetched of other executors for it."""
        return self._input_stats

    def measured(self) -> Measured:
        """What it has cost so far."""
        inputs = self._input_stats
        scanned_rows, peak_memory_bytes = self._counted
        return Measured(
            queue_ms=_ms(self._queue_seconds),
            gather_ms=_ms(self._gather_seconds),
            engine_ms=_ms(self._engine_seconds),
            cpu_ms=round(self._cpu.ms, 3),
            rows=self._rows,
            bytes=self._bytes,
            scanned_rows=scanned_rows,
            peak_memory_bytes=peak_memory_bytes,
            gathered_rows=inputs.rows if inputs else 0,
            gathered_bytes=inputs.bytes if inputs else 0,
            parts=inputs.parts if inputs else (),
        )

    def measured_text(self) -> bytes:
        """`measured` as JSON."""
        return encode(self.measured())

    def _cpu_of(self, work: Callable[[], None], clock: int | None) -> float:
        """Do `work` on this query's account; the seconds it took."""
        meter, started_at = self._engine.cpu, time.monotonic()
        meter.begin(self._cpu, clock)
        try:
            work()
        finally:
            meter.end(self._cpu)
        return time.monotonic() - started_at

    def _gather(self) -> None:
        """Fetch the inputs. The thread is taken before, so that there are never more inputs in
        memory than queries may run."""
        fetch = self._fetch = Fetch(self._engine.peers, self._ticket, self.deadline)
        try:
            self.check_stopped()  # before the watchdog could see `_fetch`
            inputs = fetch.run()
        except Exception as error:
            self.check_stopped()
            if is_of_engine(error):
                raise self._engine.translate(error) from error
            raise
        finally:
            self._fetch = None
            fetch.close()
        self._input_stats = inputs.stats
        with self._lock:
            self._inputs = inputs
            if self._thread is None:  # stopped in the very moment
                self._drop()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self

    def __next__(self) -> pa.RecordBatch:
        while not self._pending:
            if self.is_complete:
                raise StopIteration
            self._work(self._compute)
        return self._pending.popleft()

    def close(self) -> None:
        """Give back everything. Safe to call twice and from any thread."""
        with self._lock:
            if self._thread is not None:
                self._thread.call(self._drop)
            self._give_back()
        self._engine.watchdog.remove(self)

    def _work(self, step: Callable[[], None]) -> None:
        """Do `step` on the engine's thread; let go of it when that was the last."""
        with self._lock:
            if self._thread is None:  # never an end that looks like a whole answer
                raise self._stopped_error()
            try:
                call = partial(self._thread.call, partial(self._attempt, step))
                self._engine_seconds += self._cpu_of(call, self._thread.cpu_clock)
                if not self.is_complete:
                    return
            except BaseException:
                self._pending.clear()
                self._give_back()
                self._engine.watchdog.remove(self)
                raise
            self._give_back()
        self._engine.watchdog.remove(self)

    def _give_back(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            self._threads.release(thread)

    def _stopped_error(self) -> AccelError:
        if self._stop_reason is StopReason.DEADLINE:
            return DeadlineExceeded(
                f"the query of tenant {self._ticket.tenant} took longer than the "
                f"{self._ticket.timeout_ms} ms it had"
            )
        if self._stop_reason is StopReason.CPU:
            return CpuLimit(
                f"the query of tenant {self._ticket.tenant} used more than the "
                f"{self._max_cpu_ms:,} ms of CPU time it may use (max_cpu_ms); filter or aggregate "
                "more"
            )
        return QueryCancelled(f"the query of tenant {self._ticket.tenant} was cancelled")

    # On the engine's thread; `_lock` is held.

    def _attempt(self, step: Callable[[], None]) -> None:
        try:
            self.check_stopped()
            self._apart(step)
            if self.is_complete:
                self._engine.verify(self._ticket)
        except BaseException as error:
            self._drop()
            if self._stop_reason is not None:
                raise self._stopped_error() from error
            if is_of_engine(error):
                self._engine.verify(self._ticket)
                raise self._engine.translate(error) from error
            raise
        if self.is_complete:
            self._drop(is_well=True)

    def _apart(self, step: Callable[[], None]) -> None:
        thread, cores = self._thread, self._engine.cores
        assert thread is not None
        cores.begin()
        try:
            step()
        except BaseException:
            cores.end()
            raise
        if self.is_complete:
            thread.later(cores.end)  # the answer need not wait for it
        else:
            cores.end()

    def _begin(self) -> None:
        statement = check_select(self._ticket.sql)
        values = bind_values(self._ticket.parameters)
        if self._inputs is not None:
            self._shown = self._engine.input_views.show(self._inputs.take())
            self._cursor = self._shown.cursor
        else:
            self._cursor = self._engine.cursor()
        if self._ticket.measure:
            count_costs(self._cursor)
        self._engine.prepare(self._ticket, self._cursor, self.check_stopped)
        if self._ticket.describe_only:
            if values is None and statement.parameters:
                values = [None] * statement.parameters
            self._describe(self._cursor.sql(self._ticket.sql, params=values))
        else:
            self._execute(self._cursor, values)

    def _describe(self, relation: Any) -> None:
        with relation.limit(0).to_arrow_reader(1) as reader:
            schema = reader.schema
        # A sub-select renames the second of two columns of one name; the query itself does not.
        names = relation.columns
        fields = [field.with_name(name) for field, name in zip(schema, names, strict=True)]
        types = relation.types if self._ticket.is_part else None
        self._sent = self._sent_schema(pa.schema(fields), types)
        self.is_complete = True

    def _execute(self, cursor: duckdb.DuckDBPyConnection, values: list[Any] | None) -> None:
        self._reader, types = open_stream(
            cursor, self._ticket.sql, values, READ_ROWS, wants_types=self._ticket.is_part
        )
        self._sent = self._sent_schema(self._reader.schema, types)
        self._compute()

    def _sent_schema(self, schema: pa.Schema, types: Sequence[object] | None) -> SentSchema:
        """`types`: the engine's, of a part's columns."""
        sent = self._engine.sent_schemas.of(schema)
        if types is None:
            return sent
        typed = with_types(sent.schema, types)
        return SentSchema(typed, typed.serialize(), sent.is_read)

    def _compute(self) -> None:
        """Some more rows of the engine, in slices. It is let go of as soon as it has no more."""
        assert self._reader is not None
        assert self._sent is not None
        batch, size, is_last = read_some(self._reader, self._sent, self._ticket.max_batch_bytes)
        self.check_stopped()
        if batch is not None:
            self._count(batch.num_rows, size)
            if batch.num_rows and size <= self._ticket.max_batch_bytes:
                self._pending.append(batch)
            else:
                self._pending.extend(slices(batch, self._ticket.max_batch_bytes))
        if is_last and self._ticket.measure and self._cursor is not None:
            self._counted = counted_costs(self._cursor)
        self.is_complete = is_last

    def _count(self, rows: int, size: int) -> None:
        self._rows += rows
        self._bytes += size
        if self._rows > self._max_rows:
            raise RowLimit(
                f"the answer has more than {self._max_rows} rows, the limit of this query of "
                f"tenant {self._ticket.tenant} (max_result_rows); add a LIMIT, filter or aggregate"
            )
        if self._bytes > self._max_bytes:
            raise ByteLimit(
                f"the answer has more than {self._max_bytes:,} bytes, the limit of this query of "
                f"tenant {self._ticket.tenant} (max_result_bytes); add a LIMIT, select or "
                "aggregate less"
            )

    def _drop(self, *, is_well: bool = False) -> None:
        """Let the engine forget the result."""
        reader, self._reader = self._reader, None
        cursor, self._cursor = self._cursor, None
        shown, self._shown = self._shown, None
        if reader is not None:
            with contextlib.suppress(pa.ArrowException, OSError):
                reader.close()
        # Who stops a query says so before it looks for the cursor, to interrupt that: what it may
        # have found is for nobody else.
        is_plain = not self._ticket.measure and not self._ticket.describe_only
        if shown is not None and is_well and is_plain and self._stop_reason is None:
            self._engine.input_views.give_back(shown)
        elif cursor is not None:
            with contextlib.suppress(duckdb.Error):
                cursor.abort()
            if is_well and self._thread is not None:
                self._thread.later(partial(_close, cursor))
            else:
                _close(cursor)
        if self._inputs is not None:
            self._inputs.release()


def _close(cursor: duckdb.DuckDBPyConnection) -> None:
    with contextlib.suppress(duckdb.Error):
        cursor.close()


def _max_rows(ticket: Ticket, spec: ExecutorSpec) -> int:
    """The quota is about answers; what may be gathered for one is in the ticket alone."""
    if ticket.is_part:
        return ticket.max_result_rows
    return min(ticket.max_result_rows, spec.quota.max_result_rows)


def _max_bytes(ticket: Ticket, spec: ExecutorSpec) -> int:
    """As `_max_rows`. What parts send is bounded by whoever gathers it."""
    if ticket.is_part and ticket.max_result_bytes:
        return ticket.max_result_bytes
    return _lower(ticket.max_result_bytes, spec.quota.max_result_bytes)


def _max_cpu_ms(ticket: Ticket, spec: ExecutorSpec) -> int:
    return _lower(ticket.max_cpu_ms, spec.quota.max_cpu_ms)


def _lower(asked: int, limit: int) -> int:
    """0: nothing was asked for."""
    return min(asked, limit) if asked else limit


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
