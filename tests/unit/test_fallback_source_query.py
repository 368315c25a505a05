"""One query at an engine and its readers, when the engine lies, dies, hangs or nobody waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pyarrow as pa
import pytest

from accel_dask.errors import (
    AccelError,
    DeadlineExceeded,
    EngineDisagrees,
    EngineFailed,
    EngineUnavailable,
    QueryCancelled,
)
from flightsql_gateway.fallback import source_query
from flightsql_gateway.fallback.source_query import SharedReader, SourceQuery

BATCH = pa.record_batch([pa.array([1, 2, 3])], names=["n"])


class FakeStream:
    """Gives what its script says: batches, errors, or whatever a function does."""

    def __init__(self, *script: object) -> None:
        self.script = list(script)
        self.cancelled = threading.Event()
        self.closed = threading.Event()

    def read(self) -> pa.RecordBatch | None:
        step = self.script.pop(0) if self.script else None
        if isinstance(step, BaseException):
            raise step
        if callable(step):
            return step()  # type: ignore[no-any-return]
        return step  # type: ignore[return-value]

    def cancel(self) -> None:
        self.cancelled.set()

    def close(self) -> None:
        self.closed.set()


class Ends:
    def __init__(self) -> None:
        self.seen: list[AccelError | None] = []

    def __call__(self, error: AccelError | None) -> None:
        self.seen.append(error)


def begin(stream: FakeStream, seconds: float = 30.0) -> tuple[SourceQuery, SharedReader, Ends]:
    ends = Ends()
    query = SourceQuery(lambda: stream, ends, time.monotonic() + seconds)
    reader = query.join()
    assert reader is not None
    query.begin()
    return query, reader, ends


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def read_all(reader: SharedReader) -> int:
    count = 0
    while reader.read() is not None:
        count += 1
    return count


@pytest.mark.parametrize("error", [EngineUnavailable, EngineDisagrees, EngineFailed])
def test_an_answer_that_breaks_in_the_middle_is_never_whole(error: type[AccelError]) -> None:
    _, reader, ends = begin(FakeStream(BATCH, BATCH, error("in the middle")))
    assert reader.read() == BATCH
    assert reader.read() == BATCH
    with pytest.raises(error, match="in the middle"):
        reader.read()
    with pytest.raises(error):
        reader.read()
    assert [type(one) for one in ends.seen] == [error]


def test_a_drivers_own_error_is_an_error_of_the_engine() -> None:
    _, reader, ends = begin(FakeStream(BATCH, RuntimeError("a bug with a /secret/path")))
    reader.read()
    with pytest.raises(EngineFailed) as failed:
        reader.read()
    assert "secret" not in str(failed.value)
    assert len(ends.seen) == 1


def test_who_joins_late_reads_from_the_start() -> None:
    go_on = threading.Event()

    def wait() -> pa.RecordBatch:
        assert go_on.wait(10)
        return BATCH

    query, first, ends = begin(FakeStream(BATCH, BATCH, wait))
    assert first.read() is not None
    assert first.read() is not None
    late = query.join()
    assert late is not None
    go_on.set()
    assert read_all(late) == 3
    assert read_all(first) == 1
    assert query.join() is None  # it is over: ask anew
    assert ends.seen == [None]


def test_the_engine_is_told_when_the_last_reader_has_gone_and_not_before() -> None:
    stopped = threading.Event()

    def hang() -> None:
        stopped.wait(10)
        raise QueryCancelled("stopped")

    stream = FakeStream(BATCH, hang)
    query, first, ends = begin(stream)
    second = query.join()
    assert second is not None
    first.read()
    first.close()
    first.close()
    assert not stream.cancelled.wait(0.2)
    assert second.read() == BATCH
    second.cancel()
    assert stream.cancelled.wait(5)
    with pytest.raises(QueryCancelled):
        second.read()
    stopped.set()
    assert stream.closed.wait(5)
    wait_for(lambda: bool(ends.seen))
    assert query.join() is None


def test_a_driver_that_hangs_for_good_is_waited_for_no_longer_than_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_query, "_GRACE_SECONDS", 0.2)
    forever = threading.Event()
    _, reader, ends = begin(FakeStream(BATCH, lambda: forever.wait(60)), seconds=0.3)
    reader.read()
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match="no sign of life"):
        reader.read()
    assert time.monotonic() - began < 3
    assert [type(one) for one in ends.seen] == [DeadlineExceeded]
    forever.set()
    time.sleep(0.05)
    assert len(ends.seen) == 1, "it ends once"


def test_a_query_that_everybody_gave_up_before_it_began_does_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(source_query, "_GRACE_SECONDS", 0.2)
    stream, ends = FakeStream(BATCH), Ends()
    query = SourceQuery(lambda: stream, ends, time.monotonic() + 5)
    reader = query.join()
    assert reader is not None
    reader.cancel()
    query.begin()
    wait_for(lambda: bool(ends.seen))
    assert isinstance(ends.seen[0], QueryCancelled)
    assert stream.script == [BATCH], "nothing was read"
