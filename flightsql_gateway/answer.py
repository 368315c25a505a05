"""A query's answer: batches from the executor, until they end, fail or are given up."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from accel_dask.errors import AccelError, QueryCancelled
from accel_dask.query_planner.plan import QueryPlan
from flightsql_gateway.admission import Slot
from flightsql_gateway.calls import Call
from flightsql_gateway.query import BatchStream, QueryRecord
from flightsql_gateway.receipts import Receipt


class Answer:
    """A query's batches. Closing it frees its place; it is closed at its end by itself."""

    def __init__(
        self, stream: BatchStream, call: Call, slot: Slot | None, record: QueryRecord
    ) -> None:
        self._stream = stream
        self._call = call
        self._slot = slot
        self._record = record
        self._is_closed = False
        # A client that reads too slowly loses its place at the deadline; its stream ends too.
        call.on_end(self._stop)

    @property
    def schema(self) -> pa.Schema:
        return self._stream.schema

    @property
    def plan(self) -> QueryPlan:
        return self._stream.plan

    @property
    def summary(self) -> Receipt | None:
        """Its receipt, as `QueryRecord.summary`, once the answer is complete or has failed."""
        return self._record.summary

    def read(self) -> pa.RecordBatch | None:
        """The next batch; None: the answer is complete.

        Raises:
            AccelError: it will not be complete.
        """
        if self._is_closed:
            return None
        try:
            batch = self._stream.read()
            if batch is None:
                self._close(None)
                return None
        except BaseException as error:
            self._close(self._cause_of(error))
            raise self._record.error or error from error
        self._record.rows += batch.num_rows
        self._record.bytes += batch.nbytes
        return batch

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All batches that are left."""
        while (batch := self.read()) is not None:
            yield batch

    def _cause_of(self, error: BaseException) -> BaseException:
        """Why the stream broke: the call's own end, if it has ended."""
        try:
            self._call.check()
        except AccelError as ended:
            return ended
        return error

    def _stop(self) -> None:
        if self._slot is not None:
            self._slot.release()
        self._stream.cancel()

    def close(self) -> None:
        """Give it up, if it is not complete."""
        if not self._is_closed:
            self._close(
                self._cause_of(QueryCancelled("the client did not read the answer to its end"))
            )

    def _close(self, error: BaseException | None) -> None:
        self._is_closed = True
        self._call.close()
        self._stream.close()
        if self._slot is not None:
            self._slot.release()
        self._record.finish(error)

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
