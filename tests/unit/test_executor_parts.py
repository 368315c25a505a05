"""The executor's small parts: error texts, batches, the watchdog, limits, process records."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, cast

import duckdb
import pyarrow as pa
import pytest
from executor_builders import make_spec

from accel_dask.codec import decode, encode
from accel_dask.errors import (
    AccelError,
    ExecutorUnavailable,
    InvalidQuery,
    MemoryLimit,
    QueryCancelled,
    ReadOnly,
    UnsupportedQuery,
)
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import EpochNumber, ShardId
from accel_dask.model.tenant import Quota
from accel_dask.worker_plugin.executor.batches import (
    SentSchemas,
    plain_schema,
    read_some,
    slices,
)
from accel_dask.worker_plugin.executor.control import LineBuffer, to_line
from accel_dask.worker_plugin.executor.engine_errors import clean_text, translate
from accel_dask.worker_plugin.executor.spec import ExecutorSpec
from accel_dask.worker_plugin.executor.streaming import open_stream
from accel_dask.worker_plugin.executor.watchdog import StopReason, Watchdog
from accel_dask.worker_plugin.process_record import ProcessRecords, start_ticks

SHARD = ShardId("0123456789abcdef" * 2)


def test_a_spec_survives_the_way_to_its_executor(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, SHARD, attachments=(Attachment("a", EpochNumber(1), SHARD),))
    assert decode(encode(spec), ExecutorSpec) == spec


FIRST_DECODES = """
import sys, threading
from dataclasses import make_dataclass
from accel_dask.codec import decode, encode

sys.setswitchinterval(1e-6)
for number in range(40):
    inner = make_dataclass("Inner", [(f"x{i}", int) for i in range(20)])
    outer = make_dataclass("Outer", [("many", tuple[inner, ...]), ("one", inner)])
    value = outer((inner(*range(20)),), inner(*range(20)))
    data, start = encode(value), threading.Barrier(6)

    def work():
        start.wait()
        assert decode(data, outer) == value

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
"""


def test_many_threads_may_decode_a_type_for_the_first_time() -> None:
    subprocess.run([sys.executable, "-c", FIRST_DECODES], check=True, timeout=60)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f'Table "s_{SHARD}"."main"."data" is gone', "Table the table is gone"),
        (f"no column x in s_{SHARD}.main.data!", "no column x in the table!"),
        (f'database "s_{SHARD}" is odd', "database the table is odd"),
        ('cannot open "/dev/shm/a-b/x.duckdb.wal": no', 'cannot open "<...>": no'),
        ("open /etc/passwd failed", "open <...> failed"),
        (f"file {SHARD}.duckdb", "file <...>"),
        ("bad cast\n\nLINE 1: SELECT secret FROM y\n          ^", "bad cast"),
        ("(1 / 0) and a/b", "(1 / 0) and a/b"),
        ("x" * 1000, "x" * 397 + "..."),
    ],
)
def test_nothing_of_the_inside_is_in_a_text(text: str, clean: str) -> None:
    assert clean_text(text) == clean


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Binder Error: no column", InvalidQuery),
        ("Parser Error: syntax", InvalidQuery),
        ("Catalog Error: no table", InvalidQuery),
        ("Conversion Error: not a number", InvalidQuery),
        ("Out of Range Error: overflow", InvalidQuery),
        ("Permission Error: no files", UnsupportedQuery),
        ("Not implemented Error: later", UnsupportedQuery),
        ("INTERNAL Error: bug", UnsupportedQuery),
        ("Out of Memory Error: no more", MemoryLimit),
        ("std::bad_alloc", MemoryLimit),
        ("INTERRUPT Error: Interrupted!", QueryCancelled),
        ("IO Error: checksum", ExecutorUnavailable),
        ('Invalid Input Error: "x" is attached in read-only mode!', ReadOnly),
        ("whatever", InvalidQuery),
    ],
)
@pytest.mark.parametrize("raised", [duckdb.Error, OSError, pa.ArrowInvalid])
def test_the_kind_of_an_engine_error_decides_its_class(
    text: str, expected: type[AccelError], raised: type[Exception]
) -> None:
    assert type(translate(raised(text), "acme", Quota())) is expected


def test_slices_are_bounded_whole_and_in_order() -> None:
    lengths = [10, 50_000, 3, 0, 20_000, 5] * 5
    batch = pa.record_batch({"x": ["v" * n for n in lengths], "i": range(30)})
    parts = list(slices(batch, 30_000))
    assert pa.Table.from_batches(parts).to_pylist() == batch.to_pylist()
    assert all(part.nbytes <= 30_000 or part.num_rows == 1 for part in parts)
    assert list(slices(batch.slice(0, 0), 10)) == []


def test_what_the_engine_gives_in_small_pieces_is_sent_in_large_ones_and_bounded() -> None:
    schema = pa.schema({"n": pa.int64(), "code": pa.string()})
    raw = pa.schema({"n": pa.int64(), "code": pa.dictionary(pa.int8(), pa.string())})
    pieces = [
        pa.record_batch(
            [pa.array(range(i, i + 1000)), pa.array(["code"] * 1000).dictionary_encode()],
            names=["n", "code"],
        ).cast(raw)
        for i in range(0, 10_000, 1000)
    ]
    reader = pa.RecordBatchReader.from_batches(raw, pieces)
    taken, is_last = [], False
    while not is_last:
        batch, size, is_last = read_some(reader, SentSchemas().of(raw), 50_000)
        assert size == (batch.nbytes if batch is not None else 0)
        taken += [batch] if batch is not None else []
    assert all(batch.schema.equals(schema) for batch in taken)
    assert [batch.num_rows for batch in taken] == [4000, 4000, 2000]
    assert pa.Table.from_batches(taken)["n"].to_pylist() == list(range(10_000))


def test_an_answer_without_rows_is_known_to_be_whole() -> None:
    schema = pa.schema({"n": pa.int64()})
    reader = pa.RecordBatchReader.from_batches(schema, [])
    assert read_some(reader, SentSchemas().of(schema), 100) == (None, 0, True)


def test_a_stream_without_the_engines_own_way_to_it_has_the_same_rows_and_types() -> None:
    sql = "SELECT $1::HUGEINT AS a, 'x' AS a, $2 AS b"

    class Public:
        """As a client of the engine that has nothing but what is documented."""

        def __init__(self, cursor: duckdb.DuckDBPyConnection) -> None:
            self.sql = cursor.sql

    with duckdb.connect() as database:
        found = []
        for cursor in (database.cursor(), Public(database.cursor())):
            reader, types = open_stream(cast("Any", cursor), sql, [7, 1.5], 10, wants_types=True)
            assert types is not None
            found.append((reader.read_all(), [str(kind) for kind in types]))
    assert found[0] == found[1]
    assert found[0][1] == ["HUGEINT", "VARCHAR", found[1][1][2]]


def test_a_schema_without_dictionaries_is_left_alone() -> None:
    schema = pa.schema({"a": pa.int32(), "b": pa.list_(pa.string())})
    assert plain_schema(schema) is schema
    nested = pa.schema({"m": pa.map_(pa.string(), pa.dictionary(pa.int8(), pa.string()))})
    assert plain_schema(nested).field("m").type == pa.map_(pa.string(), pa.string())


def test_messages_come_whole_however_they_are_cut() -> None:
    messages = [{"lease": 1.5}, {"drain": 3}, {"text": "a\nb"}]
    stream = b"".join(to_line(message) for message in messages)
    buffer = LineBuffer()
    assert [m for i in range(len(stream)) for m in buffer.feed(stream[i : i + 1])] == messages


class _Query:
    """A query that does not stop until it is told to."""

    def __init__(self, deadline: float, *, computing: bool = True) -> None:
        self.deadline = deadline
        self.stopped_at: float | None = None
        self.is_computing = computing
        self.gone = self.over_cpu = False
        self.reasons: list[StopReason] = []
        self.stopped = threading.Event()

    def is_over_cpu(self) -> bool:
        return self.over_cpu

    def client_is_gone(self) -> bool:
        return self.gone

    def stop(self, reason: StopReason) -> None:
        self.reasons.append(reason)
        self.stopped_at = self.stopped_at or time.monotonic()
        self.stopped.set()


def test_the_watchdog_stops_at_the_deadline_and_when_the_client_is_gone() -> None:
    watchdog = Watchdog(60.0, pytest.fail)
    late, lonely = _Query(time.monotonic() + 0.05), _Query(time.monotonic() + 60)
    hungry = _Query(time.monotonic() + 60)
    for query in (late, lonely, hungry):
        watchdog.add(query)
    assert late.stopped.wait(5)
    assert not lonely.stopped.is_set()
    lonely.gone = True
    assert lonely.stopped.wait(5)
    assert late.reasons[0] is StopReason.DEADLINE
    assert lonely.reasons[0] is StopReason.CANCELLED
    hungry.over_cpu = True
    assert hungry.stopped.wait(5)
    assert hungry.reasons[0] is StopReason.CPU
    watchdog.close()


def test_a_query_that_runs_on_after_its_interruption_is_reported_stuck() -> None:
    stuck: list[str] = []
    reported = threading.Event()
    watchdog = Watchdog(0.05, lambda text: (stuck.append(text), reported.set()))
    waiting = _Query(time.monotonic(), computing=False)
    watchdog.add(waiting)
    assert waiting.stopped.wait(5)
    assert not reported.wait(0.2), "a query that only waits for its reader is not stuck"
    watchdog.remove(waiting)
    watchdog.add(_Query(time.monotonic()))
    assert reported.wait(5)
    assert "did not stop within 0.05 s" in stuck[0]
    watchdog.close()


def test_a_removed_query_is_never_touched_again() -> None:
    watchdog = Watchdog(60.0, pytest.fail)
    query = _Query(time.monotonic() + 60)
    watchdog.add(query)
    watchdog.remove(query)
    query.gone = True
    other = _Query(time.monotonic())
    watchdog.add(other)
    assert other.stopped.wait(5)
    assert query.reasons == []
    watchdog.close()


def test_a_process_that_gives_its_watchdog_no_turn_is_ended_by_the_kernel() -> None:
    code = (
        "import re, sys; sys.path.insert(0, sys.argv[1]); "
        "from accel_dask.worker_plugin.executor import watchdog; "
        "from test_executor_parts import _Query; "
        "watchdog.FROZEN_SECONDS = 0.3; "
        "watchdog.Watchdog(60.0, print, die_frozen=True).add(_Query(1e12)); "
        "re.match('(a+)+b', 'a' * 60)"  # holds the interpreter lock for years
    )
    support = Path(__file__).parents[1] / "support"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent)],
        env=os.environ | {"PYTHONPATH": str(support)},
    )
    try:
        assert process.wait(20) == -signal.SIGALRM
    finally:
        process.kill()
        process.wait()


def test_a_process_left_from_an_earlier_life_is_ended_and_another_is_not(tmp_path: Path) -> None:
    left, other = (
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) for _ in range(2)
    )
    try:
        records = ProcessRecords(tmp_path / "processes")
        records.write(left.pid, "the one")
        records.write(other.pid, "the other")
        forged = tmp_path / "processes" / f"{other.pid}.json"
        ticks = start_ticks(other.pid)
        forged.write_text(forged.read_text().replace(str(ticks), str(int(ticks or 0) - 1)))
        (tmp_path / "processes" / "7.json").write_text("nonsense")
        assert ProcessRecords(tmp_path / "processes").kill_all(5.0) == 1
        assert left.wait(5) == -9
        assert other.poll() is None
        assert list((tmp_path / "processes").iterdir()) == []
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


def test_importing_what_the_zygote_needs_starts_no_thread() -> None:
    code = (
        "from accel_dask.worker_plugin.executor import zygote; "
        "from accel_dask.worker_plugin.executor.zygote import thread_count; print(thread_count())"
    )
    from accel_dask.worker_plugin import zygote_process

    environment = {"PATH": os.environ["PATH"], **zygote_process._SET}
    shown = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "1"
