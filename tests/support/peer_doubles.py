"""Executors in this process that answer parts as a test wants, and an engine that asks them."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from executor_builders import KEY, make_input, make_source, make_spec, make_ticket
from pyarrow import flight

from accel_dask.codec import decode
from accel_dask.errors import AccelError, ExecutorUnavailable
from accel_dask.flight_errors import to_flight
from accel_dask.model.tenant import Quota
from accel_dask.model.ticket import Cancellation, Source, Ticket, verify
from accel_dask.ticket_stream import (
    FrameKind,
    FrameReader,
    Payload,
    batch_frame,
    end,
    end_frame,
    error_frame,
    frame,
    has_ended,
    send,
)
from accel_dask.worker_plugin.executor.engine import Engine

SCHEMA = pa.schema({"x": pa.int64()})
ALL = 'SELECT x FROM "input_0"'
WAIT = object()
"""A peer's step: nothing more until it is told to go on, or its call was cancelled."""


def schema_frame(schema: pa.Schema) -> list[Payload]:
    return frame(FrameKind.SCHEMA, schema.serialize())


def batch(*values: int) -> pa.RecordBatch:
    return pa.record_batch({"x": pa.array(values, pa.int64())})


class Peer(flight.FlightServerBase):
    """Answers every part as it is told: each step is a batch, an error, or a wait."""

    def __init__(self, *steps: Any, schema: pa.Schema = SCHEMA, takes_frames: bool = False) -> None:
        self.steps = steps
        self.schema = schema
        self.asked = 0
        self.is_asked = threading.Event()
        self.go_on = threading.Event()
        self.cancelled: list[Cancellation] = []
        self.is_cancelled = threading.Event()
        self.answers_pings = True
        self.pings = 0
        self.first: Callable[[], None] = lambda: None
        self._call = threading.local()
        """Of this thread, with `is_gone`: a call's context is freed memory when the call ends."""
        super().__init__("grpc://127.0.0.1:0")
        self.address = f"grpc://127.0.0.1:{self.port}"
        self.frames = FrameListener(self.answer_frames) if takes_frames else None

    def source(self, sql: str = "SELECT 1", **overrides: Any) -> Source:
        port = self.frames.port if self.frames else 0
        return make_source(self.address, sql, ticket_port=port, **overrides)

    def refuse(self, error: AccelError) -> Peer:
        """Fail before the first batch."""

        def fail() -> None:
            raise error

        self.first = fail
        return self

    def wait(self) -> None:
        while not self.go_on.wait(0.005):
            if self._call.is_gone():
                self.is_cancelled.set()
                return

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for step in self.steps:
            if step is WAIT:
                self.wait()
            elif isinstance(step, BaseException):
                raise step
            elif callable(step):
                step()
            else:
                yield step

    def do_get(self, context: Any, ticket: Any) -> Any:
        self.asked += 1
        self.is_asked.set()
        self._call.is_gone = lambda: False  # it is not told before the first batch
        try:
            self.first()
        except AccelError as error:
            raise to_flight(error) from error
        return flight.GeneratorStream(self.schema, self._flight_batches(context))

    def _flight_batches(self, context: Any) -> Iterator[pa.RecordBatch]:
        batches = self._batches()
        while True:
            self._call.is_gone = context.is_cancelled  # each batch may be made on another thread
            try:
                one = next(batches)
            except StopIteration:
                return
            except AccelError as error:
                raise to_flight(error) from error
            yield one

    def answer_frames(self, connection: socket.socket) -> None:
        """One part."""
        self.asked += 1
        self.is_asked.set()
        self._call.is_gone = lambda: has_ended(connection)
        try:
            self.first()
            send(connection, schema_frame(self.schema))
            for one in self._batches():
                send(connection, batch_frame(one))
            send(connection, end_frame(b""))
        except AccelError as error:
            send(connection, error_frame(error))
        except OSError:
            self.is_cancelled.set()
        except Exception:  # noqa: BLE001 - as a real one tells it
            send(connection, error_frame(AccelError("internal error")))

    def do_action(self, context: Any, action: Any) -> Any:
        if action.type == "cancel":
            self.cancelled.append(decode(verify(action.body.to_pybytes(), KEY), Cancellation))
            self.is_cancelled.set()
            self.go_on.set()
        else:
            self.pings += 1
            if not self.answers_pings:
                self.go_on.wait(20)
        return iter([])

    def shutdown(self) -> None:
        if self.frames:
            self.frames.close()
        super().shutdown()


class FrameListener:
    """Takes connections and has each part that comes answered."""

    def __init__(self, answer: Callable[[socket.socket], None]) -> None:
        self.answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.open.append(connection)
            serving = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(serving)
            serving.start()

    def _serve(self, connection: socket.socket) -> None:
        reader = FrameReader(connection)
        try:
            while True:
                assert reader.read().kind is FrameKind.PART
                self.answer(connection)
        except (ExecutorUnavailable, OSError):
            end(connection)

    def close(self) -> None:
        end(self._listener)
        self._listener.close()
        for connection in self.open:
            end(connection)
        for thread in self._threads:
            thread.join(5)
        for connection in self.open:
            connection.close()


class PeerWorld:
    """An engine, and peers that all take parts in the same way."""

    def __init__(self, directory: Path, *, frames: bool) -> None:
        self.frames = frames
        self.engine = Engine(make_spec(directory, quota=Quota(concurrency=2)), pytest.fail)
        self.peers: list[Peer] = []

    def peer(self, *steps: Any, **options: Any) -> Peer:
        self.peers.append(Peer(*steps, takes_frames=self.frames, **options))
        return self.peers[-1]

    def rows(self, *pieces: Any, sql: str = ALL, **overrides: Any) -> list[Any]:
        limits = {k: overrides.pop(k) for k in ("max_rows", "max_bytes") if k in overrides}
        ticket = make_ticket(sql, inputs=(make_input(*pieces, **limits),), **overrides)
        return self.table(ticket).to_pylist()

    def table(self, ticket: Ticket) -> pa.Table:
        query = self.engine.run(ticket)
        return pa.Table.from_batches(list(query), query.schema)

    def close(self) -> None:
        """Check that nothing was left behind."""
        for peer in self.peers:
            peer.go_on.set()
        assert self.engine.threads.free_count == 2
        assert self.engine.part_threads.free_count == 2
        assert self.engine.watchdog._watched == set()
        assert self.engine.peers.memory.used_bytes == 0
        self.engine.close()
        for peer in self.peers:
            peer.shutdown()
