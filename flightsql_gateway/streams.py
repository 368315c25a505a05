"""The stream of an answer after its first batch, and who notices that it has gone silent."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

import pyarrow as pa

from accel_dask.codec import decode
from accel_dask.errors import AccelError, ExecutorUnavailable, InvariantViolated
from accel_dask.model.measured import Measured
from accel_dask.model.routing import ExecutorRoute
from accel_dask.query_planner.plan import QueryPlan
from accel_dask.ticket_calls import TicketCall
from accel_dask.ticket_stream import Frame, FrameKind, read_batch, read_error
from flightsql_gateway.call_threads import CallThreads
from flightsql_gateway.executor_client import ExecutorClients

log = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 0.25
"""A stream that gives nothing for so long has its executor asked whether it is there."""
LOST_SECONDS: Final = 2.0
"""A stream whose executor has answered nothing for so long is given up."""
_TURN_SECONDS: Final = 0.1


class Stream:
    """The batches of one executor, the first of them already here."""

    def __init__(
        self,
        plan: QueryPlan,
        executor: ExecutorRoute,
        call: TicketCall,
        schema: pa.Schema,
        first: pa.RecordBatch | None,
        measured: str | None,
        watch: StreamWatch,
        on_close: Callable[[], None],
    ) -> None:
        """`measured`: what its executor has told of its cost, if that was all."""
        self.plan: Final = plan
        self.executor: Final = executor
        self.schema: Final = schema
        self.retries = 0
        self.heard_at = 0.0
        """Monotonic seconds at which the executor was last heard of, while it is waited for."""
        self._call = call
        self._first = first
        self._measured = measured
        self._watch = watch
        self._is_lost = False
        self._is_done = measured is not None
        self._on_close: Callable[[], None] | None = on_close

    def read(self) -> pa.RecordBatch | None:
        """The next batch; None: that was all.

        Raises:
            AccelError: the executor failed in the middle of its answer.
        """
        if self._first is not None:
            first, self._first = self._first, None
            return first
        if self._is_done:
            return None
        try:
            found = self._call.poll() or self._waited()
            if found.kind is FrameKind.BATCH:
                return read_batch(found.payload, self.schema)
            if found.kind is FrameKind.ERROR:
                raise read_error(found.payload)
            if found.kind is not FrameKind.END:
                raise ExecutorUnavailable(f"{found.kind.name} came in the middle of the answer")
        except (AccelError, pa.ArrowException) as error:
            self._is_done = True
            raise self._in_the_middle(error) from error
        self._measured = measured_in(found.payload)
        self._is_done = True
        return None

    def _waited(self) -> Frame:
        self.heard_at = time.monotonic()
        self._watch.waiting.add(self)
        try:
            return self._call.read()
        finally:
            self._watch.waiting.discard(self)

    @property
    def measured(self) -> Measured | None:
        """What the executor measured, once all has been read; None: it did not tell."""
        try:
            return decode(self._measured.encode(), Measured) if self._measured else None
        except InvariantViolated as error:
            log.warning("%s told something unknown of its cost: %s", self.executor.address, error)
            return None

    def cancel(self) -> None:
        """End it from another thread; a blocked `read` fails."""
        self._call.cancel()

    def lose(self) -> None:
        """As `cancel`: its executor answers nothing any more."""
        self._is_lost = True
        self.cancel()

    def close(self) -> None:
        """Stop the executor if it has not given all."""
        on_close, self._on_close = self._on_close, None
        if on_close is None:
            return
        self._call.close()
        on_close()

    def _in_the_middle(self, error: AccelError | pa.ArrowException) -> AccelError:
        if isinstance(error, AccelError) and not isinstance(error, ExecutorUnavailable):
            return error
        happened = "stopped answering" if self._is_lost else "went away"
        return ExecutorUnavailable(
            f"the executor of tenant {self.plan.tenant} {happened} in the middle of the "
            "answer; send the query again"
        )


class StreamWatch:
    """Asks the executors of streams that are waited for whether they are still there."""

    def __init__(self, clients: ExecutorClients, threads: CallThreads) -> None:
        self.waiting: Final[set[Stream]] = set()
        """Streams whose next batch somebody waits for."""
        self.threads: Final = threads
        """For asking."""
        self._clients = clients
        self._asking: set[str] = set()
        self._closing = threading.Event()
        threading.Thread(target=self._run, name="stream-watch", daemon=True).start()

    def close(self) -> None:
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(_TURN_SECONDS):
            try:
                self._look()
            except Exception:  # the thread must go on for the other streams
                log.exception("watching the streams failed")

    def _look(self) -> None:
        now = time.monotonic()
        for stream in self.waiting.copy():
            address = stream.executor.address
            stream.heard_at = max(stream.heard_at, self._clients.heard_at(address))
            silent = now - stream.heard_at
            if silent > LOST_SECONDS:
                log.warning("the executor at %s is silent for %.1f s", address, silent)
                stream.lose()
            elif silent > PATIENCE_SECONDS and address not in self._asking:
                self._asking.add(address)
                self.threads.submit(partial(self._ask, address))

    def _ask(self, address: str) -> None:
        asked_at = time.monotonic()
        try:
            if not self._clients.is_answering(address):
                return
            for stream in self.waiting.copy():
                if stream.executor.address == address:
                    stream.heard_at = max(stream.heard_at, asked_at)
        finally:
            self._asking.discard(address)


def measured_in(payload: memoryview) -> str:
    """The text of an END frame."""
    return bytes(payload).decode()
