"""The loader: what lands in a shard file, what is refused, and what is left behind (nothing)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from accel_dask.codec import decode, encode
from accel_dask.errors import (
    LoaderCrashed,
    NotAcceleratable,
    QuotaExceeded,
    SchemaUnsupported,
    SnapshotGone,
    ValidationFailed,
)
from accel_dask.model.ids import EpochNumber, ShardId, TenantId
from accel_dask.model.load_plan import LoadOrder, LoadTask, ShardManifest
from accel_dask.model.snapshot import Column, ColumnStats, DataFile, DeleteFile, Matching
from accel_dask.worker_plugin import shard_build
from accel_dask.worker_plugin.load import clean_spill, run_loader
from accel_dask.worker_plugin.loader import load_shard
from accel_dask.worker_plugin.loader_result import LoaderResult
from accel_dask.worker_plugin.shard_dir import ShardDir

SHARD = ShardId("5" * 32)
COLUMNS = (Column(name="n", type="BIGINT"), Column(name="s", type="VARCHAR"))


@pytest.fixture
def memory_dir() -> Iterator[Path]:
    """A directory on the memory file system, as in production."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as found:
        yield Path(found)


def write(path: Path, columns: dict[str, Any], **changes: Any) -> DataFile:
    table = pa.table(columns)
    pq.write_table(table, path)
    found = DataFile(path=str(path), size_bytes=path.stat().st_size, record_count=table.num_rows)
    return replace(found, **changes)


def order_for(tmp_path: Path, *files: DataFile, **changes: Any) -> LoadOrder:
    task = LoadTask(
        shard_id=SHARD,
        columns=changes.pop("columns", COLUMNS),
        files=files,
        source_bytes=sum(file.size_bytes for file in files),
        **changes,
    )
    return LoadOrder(
        tenant=TenantId("acme"),
        dataset="trips",
        epoch=EpochNumber(7),
        task=task,
        shard_dir=str(tmp_path / "shards"),
        spill_dir=str(tmp_path / "spill"),
        memory_bytes=256 * 1024 * 1024,
        threads=2,
        max_file_bytes=64 * 1024 * 1024,
    )


def loaded(order: LoadOrder, query: str = "FROM data") -> list[tuple[Any, ...]]:
    file = ShardDir(Path(order.shard_dir)).shard_file(order.task.shard_id)
    with duckdb.connect(file, read_only=True) as engine:
        return engine.execute(query).fetchall()


def left_in(order: LoadOrder) -> list[str]:
    found: list[str] = []
    for directory in (order.shard_dir, order.spill_dir):
        if Path(directory).exists():
            found += sorted(file.name for file in Path(directory).iterdir())
    return found


def big_order(tmp_path: Path, rows: int = 2_000_000) -> LoadOrder:
    """A load that takes a while."""
    path = tmp_path / "big.parquet"
    with duckdb.connect() as engine:
        engine.execute(
            f"COPY (SELECT range AS n, md5(range::VARCHAR) AS s FROM range({rows})) TO '{path}'"
        )
    file = DataFile(path=str(path), size_bytes=path.stat().st_size, record_count=rows)
    return order_for(tmp_path, file, sort_by=("s",))


async def until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


def temporaries(order: LoadOrder) -> list[Path]:
    return list(Path(order.shard_dir).glob("*.tmp.duckdb"))


# --- what lands ------------------------------------------------------------------------------


def test_rows_are_sorted_compressed_and_described(tmp_path: Path) -> None:
    first = write(tmp_path / "1.parquet", {"n": [3, 1, None], "s": ["c", "a", "x"]})
    second = write(tmp_path / "2.parquet", {"s": ["b", None], "n": [2, 0]})
    order = order_for(tmp_path, first, second, sort_by=("n",))
    manifest = load_shard(order)
    assert loaded(order) == [(0, None), (1, "a"), (2, "b"), (3, "c"), (None, "x")]
    assert manifest.rows == 5
    assert manifest.stats == (
        ColumnStats(name="n", null_count=1, lower="0", upper="3", exact=True),
        ColumnStats(name="s", null_count=1, lower="a", upper="x", exact=True),
    )
    assert manifest == ShardDir(Path(order.shard_dir)).verify(SHARD)
    assert left_in(order) == [f"{SHARD}.duckdb", f"{SHARD}.json"]
    assert manifest.file_bytes < 100_000
    # Here the loader is this very process, which may have taken any amount before.
    assert 0 < manifest.peak_memory_bytes <= getrusage(RUSAGE_SELF).ru_maxrss * 1024


def test_the_row_checksum_tells_contents_apart_and_not_orders(tmp_path: Path) -> None:
    def checksum(columns: dict[str, Any], **changes: Any) -> str:
        order = order_for(tmp_path, write(tmp_path / "1.parquet", columns), **changes)
        ShardDir(Path(order.shard_dir)).create()
        ShardDir(Path(order.shard_dir)).remove(SHARD)
        return load_shard(order).row_checksum

    known = checksum({"n": [1, 2, 2], "s": ["a", "b", "b"]})
    assert checksum({"n": [2, 2, 1], "s": ["b", "b", "a"]}) == known
    assert checksum({"n": [1, 2, 2], "s": ["a", "b", "b"]}, sort_by=("s",)) == known
    for other in (
        {"n": [1], "s": ["a"]},
        {"n": [1, 3, 3], "s": ["a", "b", "b"]},
        {"n": [2, 1, 1], "s": ["a", "b", "b"]},
    ):
        assert checksum(other) != known


def test_nan_becomes_null_even_where_nulls_are_not_allowed(tmp_path: Path) -> None:
    nan = float("nan")
    file = write(
        tmp_path / "1.parquet",
        {"f": pa.array([1.5, nan, None], pa.float32()), "d": pa.array([nan, 2.5, nan])},
    )
    columns = (Column(name="f", type="FLOAT"), Column(name="d", type="DOUBLE", nullable=False))
    order = order_for(tmp_path, file, columns=columns)
    manifest = load_shard(order)
    assert loaded(order) == [(1.5, None), (None, 2.5), (None, None)]
    assert [stats.null_count for stats in manifest.stats] == [2, 2]


def test_required_columns_are_declared_and_enforced(tmp_path: Path) -> None:
    columns = (Column(name="n", type="BIGINT", nullable=False),)
    order = order_for(tmp_path, write(tmp_path / "1.parquet", {"n": [1, 2]}), columns=columns)
    load_shard(order)
    assert loaded(order, "SELECT \"notnull\" FROM pragma_table_info('data')") == [(True,)]
    ShardDir(Path(order.shard_dir)).remove(SHARD)
    order = order_for(tmp_path, write(tmp_path / "2.parquet", {"n": [1, None]}), columns=columns)
    with pytest.raises(ValidationFailed, match="required column"):
        load_shard(order)
    assert left_in(order) == []


def test_paths_are_no_patterns_and_directories_no_columns(tmp_path: Path) -> None:
    odd = tmp_path / "n=9" / "we*ird [1]?"
    odd.mkdir(parents=True)
    files = [write(odd / f"it's {i}*.parquet", {"n": [i], "s": ["a"]}) for i in range(2)]
    files[1] = replace(files[1], path="file://" + files[1].path)
    order = order_for(tmp_path, *files, sort_by=("n",))
    load_shard(order)
    assert loaded(order) == [(0, "a"), (1, "a")]


def test_a_filter_keeps_what_it_is_true_for(tmp_path: Path) -> None:
    file = write(tmp_path / "1.parquet", {"n": [1, 2, None], "s": ["a", "b", "c"]})
    stats = (ColumnStats(name="n", null_count=1, lower="1", upper="2"),)
    order = order_for(tmp_path, file, row_filter="n > 1 OR s = 'a'", sort_by=("n",), stats=stats)
    assert load_shard(order).rows == 2
    bad = order_for(tmp_path, file, row_filter="no_such > 1")
    ShardDir(Path(order.shard_dir)).remove(SHARD)
    with pytest.raises(SchemaUnsupported, match=r"acme.trips@7.*no_such"):
        load_shard(bad)


def test_a_filter_on_truncated_dates_is_not_left_to_the_optimiser(tmp_path: Path) -> None:
    days = [date(2020, 2, 28), date(2020, 2, 29), None]
    file = write(tmp_path / "1.parquet", {"n": [1, 2, 3], "d": days})
    columns = (COLUMNS[0], Column(name="d", type="DATE"))
    row_filter = "date_trunc('hour', d) = DATE '2020-02-29'"
    order = order_for(tmp_path, file, columns=columns, row_filter=row_filter)
    assert load_shard(order).rows == 1
    assert loaded(order, "SELECT n FROM data") == [(2,)]


def test_an_empty_shard_is_a_shard(tmp_path: Path) -> None:
    order = order_for(tmp_path, sort_by=("n",), rows=0)
    manifest = load_shard(order)
    assert (manifest.rows, loaded(order)) == (0, [])


# --- position deletes ------------------------------------------------------------------------


def delete_file(path: Path, rows: list[tuple[str, int]]) -> DeleteFile:
    columns = {"file_path": [file for file, _ in rows], "pos": [position for _, position in rows]}
    pq.write_table(pa.table(columns), path)
    return DeleteFile(path=str(path), size_bytes=path.stat().st_size, record_count=len(rows))


def test_position_deletes_reach_only_the_files_they_are_attached_to(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", {"n": [0, 1, 2, 3], "s": ["a"] * 4})
    b = write(tmp_path / "b.parquet", {"n": [10, 11], "s": ["b"] * 2})
    c = write(tmp_path / "c.parquet", {"n": [20], "s": ["c"]})
    # Twice the same row, a position past the end, another spelling of the path, a foreign file,
    # and a row of c, which is newer: the snapshot does not attach the deletes to it.
    gone = delete_file(
        tmp_path / "d1.parquet",
        [(a.path, 1), (a.path, 1), (a.path, 99), (f"file://{b.path}", 0), ("/x", 0), (c.path, 0)],
    )
    more = delete_file(tmp_path / "d2.parquet", [(a.path, 3), (b.path, 1)])
    files = (replace(a, deletes=(gone, more)), replace(b, deletes=(gone,)), c)
    stats = (ColumnStats(name="n", null_count=0, lower="0", upper="20"),)
    order = order_for(tmp_path, *files, sort_by=("n",), stats=stats)
    load_shard(order)
    assert loaded(order, "SELECT n FROM data") == [(0,), (2,), (11,), (20,)]


def test_a_vanished_or_broken_delete_file_is_no_load(tmp_path: Path) -> None:
    a = write(tmp_path / "a.parquet", {"n": [0], "s": ["a"]})
    gone = delete_file(tmp_path / "d.parquet", [(a.path, 0)])
    order = order_for(tmp_path, replace(a, deletes=(gone,)))
    Path(gone.path).write_bytes(bytes(gone.size_bytes))
    with pytest.raises(ValidationFailed, match="position-delete file"):
        load_shard(order)
    Path(gone.path).unlink()
    with pytest.raises(SnapshotGone, match=r"d\.parquet"):
        load_shard(order)
    assert left_in(order) == []


# --- refusals --------------------------------------------------------------------------------


def test_a_file_without_field_ids_is_never_read_as_nulls(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"n": [0], "s": ["a"]}, matching=Matching.FIELD_ID)
    columns = (Column(name="n", type="BIGINT", field_id=1),)
    with pytest.raises(NotAcceleratable, match="no field ids"):
        load_shard(order_for(tmp_path, file, columns=columns))


def test_a_column_that_its_file_lacks_is_an_error_unless_the_plan_says_so(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", {"n": [0]})
    with pytest.raises(SchemaUnsupported, match="no column 's'"):
        load_shard(order_for(tmp_path, file))
    known = replace(file, names=(("n", "n"),), constants=(("s", "it's"),))
    order = order_for(tmp_path, known)
    load_shard(order)
    assert loaded(order) == [(0, "it's")]


@pytest.mark.parametrize(
    ("values", "held"),
    [
        (pa.array([1.5]), "BIGINT"),
        (pa.array(["7"]), "BIGINT"),
        (pa.array([2**40]), "INTEGER"),
        (pa.array([b"\xff"]), "VARCHAR"),
        (pa.array(["\\xFF"]), "BLOB"),
        (pa.array([1], pa.timestamp("ns")), "TIMESTAMP"),
        (pa.array([b"1234"], pa.binary(4)), "UUID"),
        (pa.array([[1]]), "BIGINT"),
    ],
)
def test_a_lossy_cast_is_refused(tmp_path: Path, values: pa.Array, held: str) -> None:
    file = write(tmp_path / "a.parquet", {"c": values})
    order = order_for(tmp_path, file, columns=(Column(name="c", type=held),))
    with pytest.raises(SchemaUnsupported, match="column 'c' is"):
        load_shard(order)
    assert left_in(order) == []


@pytest.mark.parametrize(
    ("stats", "message"),
    [
        (ColumnStats(name="n", null_count=0), "column n: expected 0 NULLs, found 1"),
        (ColumnStats(name="n", null_count=3), "column n: expected 3 NULLs, found 1"),
        (ColumnStats(name="n", lower="2", upper="9"), "column n: expected nothing below 2, found"),
        (ColumnStats(name="n", lower="0", upper="1"), "column n: expected nothing above 1, found"),
        (ColumnStats(name="m", lower="0"), "column m: expected values from 0 on, found only NULLs"),
    ],
)
def test_rows_that_contradict_the_sources_statistics_are_not_served(
    tmp_path: Path, stats: ColumnStats, message: str
) -> None:
    nothing = pa.array([None] * 3, pa.int64())
    file = write(tmp_path / "1.parquet", {"n": [1, None, 2], "m": nothing})
    columns = (Column(name="n", type="BIGINT"), Column(name="m", type="BIGINT"))
    order = order_for(tmp_path, file, columns=columns, stats=(stats,))
    with pytest.raises(ValidationFailed, match=message):
        load_shard(order)
    assert left_in(order) == []


def test_a_file_that_is_not_the_planned_one_is_snapshot_gone(tmp_path: Path) -> None:
    file = write(tmp_path / "1.parquet", {"n": [1], "s": ["a"]})
    for wrong in (
        replace(file, path=str(tmp_path / "2.parquet")),
        replace(file, size_bytes=file.size_bytes + 1),
        replace(file, version="123"),
    ):
        with pytest.raises(SnapshotGone, match="publish the newest snapshot"):
            load_shard(order_for(tmp_path, wrong))
    with pytest.raises(ValidationFailed, match="has 1 rows, the snapshot says 2"):
        load_shard(order_for(tmp_path, replace(file, record_count=2)))
    with pytest.raises(NotAcceleratable, match="s3://"):
        load_shard(order_for(tmp_path, replace(file, path="s3://bucket/1.parquet")))


def test_a_shard_above_the_budget_is_not_kept(tmp_path: Path) -> None:
    order = replace(big_order(tmp_path, 100_000), max_file_bytes=1_000_000)
    with pytest.raises(
        QuotaExceeded, match=r"tenant acme.*trips.*1,000,000.*memory_bytes_per_host"
    ):
        load_shard(order)
    assert left_in(order) == []


def test_a_load_far_above_the_budget_is_stopped_on_its_way(tmp_path: Path) -> None:
    order = replace(big_order(tmp_path, 2_500_000), max_file_bytes=1_000)
    order = replace(order, task=replace(order.task, sort_by=()))
    with pytest.raises(QuotaExceeded, match="budget"):
        load_shard(order)
    assert left_in(order) == []


def test_too_little_memory_spills_and_far_too_little_is_an_error(tmp_path: Path) -> None:
    order = replace(big_order(tmp_path, 1_000_000), memory_bytes=56 * 1024 * 1024)
    assert load_shard(order).rows == 1_000_000
    ShardDir(Path(order.shard_dir)).remove(SHARD)
    with pytest.raises(QuotaExceeded, match="loader_memory_bytes"):
        load_shard(replace(order, memory_bytes=4 * 1024 * 1024))
    assert left_in(order) == []


@pytest.mark.parametrize("slices", [2, 5, 64])
def test_rows_loaded_in_slices_are_all_there_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slices: int
) -> None:
    numbers = [None if n % 11 == 0 else n * 7 % 40 for n in range(500)]
    texts = [f"{n * 13 % 500:03d}" for n in range(500)]
    file = write(tmp_path / "1.parquet", {"n": numbers, "s": texts})
    order = order_for(tmp_path, file, sort_by=("n", "s"), row_filter="s <> '007'")
    in_slices = (shard_build._Attempt(order.memory_bytes, slices),)
    monkeypatch.setattr(shard_build, "_attempts", lambda order: in_slices)
    assert load_shard(order).rows == 499
    expected = [row for row in zip(numbers, texts, strict=True) if row[1] != "007"]
    expected.sort(key=lambda row: (row[0] is None, row[0] or 0, row[1]))
    assert loaded(order) == expected


# --- what is there already -------------------------------------------------------------------


def test_a_sound_shard_is_returned_without_its_source(tmp_path: Path) -> None:
    file = write(tmp_path / "1.parquet", {"n": [1], "s": ["a"]})
    order = order_for(tmp_path, file)
    manifest = load_shard(order)
    Path(file.path).unlink()
    assert load_shard(order) == manifest


def test_a_damaged_shard_is_built_again(tmp_path: Path) -> None:
    order = order_for(tmp_path, write(tmp_path / "1.parquet", {"n": [1], "s": ["a"]}))
    manifest = load_shard(order)
    shard = ShardDir(Path(order.shard_dir)).shard_file(SHARD)
    content = bytearray(shard.read_bytes())
    content[-100] ^= 1
    shard.write_bytes(content)
    again = load_shard(order)
    assert again.row_checksum == manifest.row_checksum
    assert ShardDir(Path(order.shard_dir)).verify(SHARD) == again
    assert loaded(order) == [(1, "a")]


# --- the process -----------------------------------------------------------------------------


def test_the_process_hands_back_the_manifest_and_the_errors(tmp_path: Path) -> None:
    file = write(tmp_path / "1.parquet", {"n": [1], "s": ["a"]})
    order = order_for(tmp_path, file)
    manifest = asyncio.run(run_loader(order))
    assert manifest == ShardDir(Path(order.shard_dir)).verify(SHARD)
    Path(file.path).unlink()
    ShardDir(Path(order.shard_dir)).remove(SHARD)
    with pytest.raises(SnapshotGone, match=r"1\.parquet"):
        asyncio.run(run_loader(order))


def test_a_loader_killed_mid_way_leaves_nothing(tmp_path: Path, memory_dir: Path) -> None:
    order = replace(big_order(tmp_path), shard_dir=str(memory_dir / "shards"))
    shards = ShardDir(Path(order.shard_dir))

    async def kill_it() -> None:
        load = asyncio.ensure_future(run_loader(order))
        await until(lambda: any(file.stat().st_size > 100_000 for file in temporaries(order)))
        assert shards.list_ids() == ()
        os.kill(int(temporaries(order)[0].name.split(".")[1]), signal.SIGKILL)
        with pytest.raises(LoaderCrashed, match=r"acme.trips@7.*killed by SIGKILL"):
            await load

    asyncio.run(kill_it())
    assert left_in(order) == []


def test_a_cancelled_load_ends_its_process(tmp_path: Path) -> None:
    order = big_order(tmp_path)

    async def cancel_it(*, by_event: bool) -> int:
        cancelled = asyncio.Event()
        load = asyncio.ensure_future(run_loader(order, cancelled))
        await until(lambda: bool(temporaries(order)))
        pid = int(temporaries(order)[0].name.split(".")[1])
        if by_event:
            cancelled.set()
            with pytest.raises(LoaderCrashed, match="cancelled"):
                await load
        else:
            load.cancel()
            with pytest.raises(asyncio.CancelledError):
                await load
        return pid

    for by_event in (True, False):
        pid = asyncio.run(cancel_it(by_event=by_event))
        assert not Path(f"/proc/{pid}").exists()
        assert left_in(order) == []


_RUN_ORDER = """
import asyncio, sys
from accel_dask.codec import decode
from accel_dask.model.load_plan import LoadOrder
from accel_dask.worker_plugin import shard_build
from accel_dask.worker_plugin.load import run_loader
asyncio.run(run_loader(decode(sys.stdin.buffer.read(), LoadOrder)))
"""


def test_a_loader_ends_with_its_parent(tmp_path: Path) -> None:
    order = big_order(tmp_path)
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _RUN_ORDER,
        ],
        stdin=subprocess.PIPE,
    )
    assert parent.stdin is not None
    parent.stdin.write(encode(order))
    parent.stdin.close()
    asyncio.run(until(lambda: bool(temporaries(order))))
    pid = int(temporaries(order)[0].name.split(".")[1])
    parent.kill()
    parent.wait()

    def is_gone() -> bool:
        with contextlib.suppress(OSError):
            return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
        return True

    asyncio.run(until(is_gone, 5))
    shards = ShardDir(Path(order.shard_dir))
    assert shards.list_ids() == ()
    shards.clean_temporary()
    clean_spill(Path(order.spill_dir))
    assert left_in(order) == []


def test_two_loaders_of_one_shard_agree(tmp_path: Path) -> None:
    order = order_for(tmp_path, write(tmp_path / "1.parquet", {"n": [1], "s": ["a"]}))

    async def both() -> list[ShardManifest]:
        return await asyncio.gather(*(run_loader(order) for _ in range(3)))

    manifests = asyncio.run(both())
    assert len({manifest.file_sha256 for manifest in manifests}) == 1
    assert ShardDir(Path(order.shard_dir)).verify(SHARD) in manifests
    assert left_in(order) == [f"{SHARD}.duckdb", f"{SHARD}.json"]


def test_a_malformed_order_is_a_crash_with_its_reason() -> None:
    process = subprocess.run(
        [sys.executable, "-m", "accel_dask.worker_plugin.loader"],
        input=b'{"tenant": 1}',
        capture_output=True,
        check=False,
    )
    assert process.returncode != 0
    assert process.stdout == b""
    assert b"not a LoadOrder" in process.stderr


def test_the_answer_is_one_line_that_decodes(tmp_path: Path) -> None:
    order = order_for(tmp_path, write(tmp_path / "1.parquet", {"n": [1], "s": ["é\n"]}))
    process = subprocess.run(
        [sys.executable, "-m", "accel_dask.worker_plugin.loader"],
        input=encode(order),
        capture_output=True,
        check=True,
    )
    assert process.stdout.count(b"\n") == 1
    result = decode(process.stdout, LoaderResult)
    assert result.ok is not None
    assert result.ok.stats[1].lower == "é\n"
    assert process.stderr == b""
