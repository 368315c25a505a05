"""A cold executor's engine: what it may read, and what it does when files change under it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cold_reading import ask_engine, cold_engine, table_of
from executor_builders import make_ticket

from accel_dask.connectors.registry import open_source
from accel_dask.errors import (
    AccelError,
    ColdReadFailed,
    InvalidQuery,
    MemoryLimit,
    QueryCancelled,
    ReadOnly,
    UnsupportedQuery,
)
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import TenantId
from accel_dask.model.load_plan import LoadTask
from accel_dask.scheduler_plugin.sharding import cut_shards
from accel_dask.worker_plugin.executor.cold_engine import ColdEngine

ROWS = 100_000


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Files with names that patterns and SQL could trip over, and one that is nobody's."""
    root = tmp_path / "lake"
    for number, name in enumerate(["p=a/w*.parquet", "p=it's [b]/x?.parquet", "w1.parquet"]):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        ids = pa.array(range(number * ROWS, (number + 1) * ROWS))
        pq.write_table(pa.table({"id": ids, "secret": ids}), file)
    (tmp_path / "other.parquet").write_bytes((root / "w1.parquet").read_bytes())
    return root


def tasks_of(lake: Path) -> tuple[LoadTask, ...]:
    """A shard for each file; one column and the even rows of it."""
    dataset = Dataset(
        tenant=TenantId("acme"),
        name="sales",
        source=SourceSpec(connector="parquet", options=(("path", str(lake)),)),
        columns=("id",),
        row_filter="id % 2 = 0",
        shard_target_bytes=1,
    )
    return cut_shards(dataset, open_source(dataset).plan(None))


@pytest.fixture
def tasks(lake: Path) -> tuple[LoadTask, ...]:
    return tasks_of(lake)


@pytest.fixture
def engine(tasks: tuple[LoadTask, ...]) -> Iterator[ColdEngine]:
    with cold_engine(tasks) as made:
        yield made


def file_of(task: LoadTask) -> Path:
    return Path(task.files[0].path)


def count(engine: ColdEngine, *tasks: LoadTask) -> int:
    union = " UNION ALL ".join(f"SELECT * FROM {table_of(task)}" for task in tasks)
    answer = ask_engine(engine, f"SELECT count(*) AS n FROM ({union})", *tasks)
    found: int = answer["n"][0].as_py()
    return found


def test_files_with_any_name_are_read_and_each_alone(
    engine: ColdEngine, tasks: tuple[LoadTask, ...], lake: Path
) -> None:
    sibling = lake / "p=a" / "w-.parquet"  # matches the pattern that its neighbour's name is
    sibling.write_bytes((lake / "w1.parquet").read_bytes())
    assert [count(engine, task) for task in tasks] == [ROWS // 2] * 3
    assert count(engine, *tasks) == 3 * ROWS // 2


def attacks(lake: Path) -> dict[str, str]:
    held = str(lake / "w1.parquet")
    return {
        "a file of the shard, which has more columns and rows": f"SELECT * FROM '{held}'",
        "the same by its name in quotes": f'SELECT * FROM "{held}"',
        "the same by another path": f"SELECT * FROM '{lake}/../lake/./w1.parquet'",
        "the same by a URL": f"SELECT * FROM 'file://{held}'",
        "the same in a join": f"SELECT * FROM (SELECT 1) JOIN '{held}' ON true",
        "the same behind a comma": f"SELECT * FROM (SELECT 1), '{held}'",
        "the same behind a comment": f"SELECT * FROM /* x */ '{held}'",
        "the same behind a line's comment": f"SELECT * FROM --\n '{held}'",
        "the same behind a comment in two ways": f"SELECT $$'$$ FROM /* ' */ '{held}'",
        "the same as a table": f"TABLE '{held}'",
        "its columns": f"DESCRIBE '{held}'",
        "its values": f'SUMMARIZE "{held}"',
        "the same as a pattern": f"SELECT * FROM '{lake}/w[1].parquet'",
        "a pattern over it": f"SELECT * FROM '{lake}/*.parquet'",
        "a file of nobody": f"SELECT * FROM '{lake.parent}/other.parquet'",
        "read_parquet": f"SELECT * FROM read_parquet('{held}')",
        "its metadata": f"SELECT * FROM parquet_metadata('{held}')",
        "its bytes": f"SELECT * FROM read_blob('{held}')",
        "a text": "SELECT * FROM read_text('/etc/hostname')",
        "a directory": f"SELECT * FROM glob('{lake}/*')",
        "the views": "SELECT sql FROM duckdb_views()",
        "a copy over it": f"COPY (SELECT 1) TO '{held}' (FORMAT parquet, USE_TMP_FILE false)",
        "a new file": f"COPY (SELECT 1) TO '{lake}/new.parquet'",
        "a database": f"ATTACH '{lake}/new.duckdb'",
        "a setting": "SET allowed_paths = ['/']",
        "an extension": "LOAD httpfs",
    }


@pytest.mark.parametrize("attack", attacks(Path("x")))
def test_nothing_but_the_shards_can_be_read_or_written(
    engine: ColdEngine, tasks: tuple[LoadTask, ...], lake: Path, attack: str
) -> None:
    before = (lake / "w1.parquet").read_bytes()
    with pytest.raises((UnsupportedQuery, InvalidQuery, ReadOnly, ColdReadFailed)):
        ask_engine(engine, attacks(lake)[attack], *tasks)
    assert (lake / "w1.parquet").read_bytes() == before
    assert count(engine, *tasks) == 3 * ROWS // 2


def test_the_engine_itself_refuses_what_is_not_of_the_shards(
    engine: ColdEngine, lake: Path
) -> None:
    """Without any look at the text."""
    (lake / "p=a" / "w0.parquet").write_bytes((lake / "w1.parquet").read_bytes())
    for sql in (
        f"FROM '{lake.parent}/other.parquet'",
        f"FROM read_parquet('{lake}/*.parquet')",
        f"FROM read_parquet('{lake}/p=a/w*.parquet')",
        f"FROM glob('{lake}/*')",
        "FROM read_text('/etc/hostname')",
        f"COPY (SELECT 1 AS x) TO '{lake}/new.parquet' (USE_TMP_FILE false)",
        f"ATTACH '{lake}/new.duckdb' AS y",
        "SET GLOBAL allowed_directories = ['/']",
        "SET GLOBAL enable_external_access = true",
    ):
        with engine.cursor() as cursor, pytest.raises(duckdb.Error):
            cursor.execute(sql).fetchall()


def test_a_file_that_was_replaced_is_an_error_before_and_after_its_first_use(
    engine: ColdEngine, tasks: tuple[LoadTask, ...]
) -> None:
    assert count(engine, *tasks) == 3 * ROWS // 2
    for task in (tasks[0], tasks[1]):
        rewrite(file_of(task))
        with pytest.raises(ColdReadFailed, match=r"acme\.sales@3.*was replaced.*publish"):
            count(engine, task)
    assert count(engine, tasks[2]) == ROWS // 2
    with cold_engine(tasks) as fresh, pytest.raises(ColdReadFailed, match="was replaced"):
        count(fresh, tasks[0])


def test_a_file_that_is_gone_is_an_error_that_falls_back(
    engine: ColdEngine, tasks: tuple[LoadTask, ...]
) -> None:
    file_of(tasks[0]).unlink()
    with pytest.raises(ColdReadFailed, match="is gone") as caught:
        count(engine, *tasks)
    assert caught.value.retryable
    assert caught.value.falls_back
    assert count(engine, tasks[1], tasks[2]) == ROWS


def test_a_file_that_changes_while_it_is_read_never_gives_a_whole_answer(
    engine: ColdEngine, tasks: tuple[LoadTask, ...]
) -> None:
    sql = f"SELECT id FROM {table_of(tasks[0])} ORDER BY id"
    query = engine.run(make_ticket(sql, tasks[0].shard_id, max_batch_bytes=64 * 1024))
    assert next(query).num_rows > 0
    rewrite(file_of(tasks[0]))
    with pytest.raises(ColdReadFailed, match="was replaced"):
        for _ in query:
            pass
    assert engine.threads.free_count == engine.spec.quota.concurrency


def test_a_file_of_which_only_the_content_is_damaged_is_an_error(
    engine: ColdEngine, tasks: tuple[LoadTask, ...]
) -> None:
    """Same size, same modification time: nothing but the format can tell."""
    file = file_of(tasks[0])
    found = file.stat()
    with file.open("r+b") as opened:
        opened.seek(0)
        opened.write(b"\xff" * 4096)
        opened.seek(-64, os.SEEK_END)
        opened.write(b"\xff" * 64)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    with pytest.raises(ColdReadFailed):
        count(engine, tasks[0])


def test_a_page_that_is_damaged_is_no_fault_of_the_query(
    engine: ColdEngine, tasks: tuple[LoadTask, ...]
) -> None:
    assert count(engine, tasks[0]) == ROWS // 2
    file = file_of(tasks[0])
    found = file.stat()
    with file.open("r+b") as opened:
        opened.seek(4)  # behind the magic number is the first page's header
        opened.write(b"\x0f" * 40)
    os.utime(file, ns=(found.st_atime_ns, found.st_mtime_ns))
    with pytest.raises(ColdReadFailed):
        ask_engine(engine, f"SELECT sum(id) FROM {table_of(tasks[0])}", tasks[0])


@pytest.mark.parametrize(
    "select", ["CAST('x.parquet' AS INTEGER)", "parquet", "strptime('parquet', '%Y')", "parquet("]
)
def test_a_mistake_that_mentions_parquet_is_a_mistake_and_no_fault_of_a_file(
    engine: ColdEngine, tasks: tuple[LoadTask, ...], select: str
) -> None:
    """The other would be asked of other executors, and of the engine behind."""
    with pytest.raises(InvalidQuery):
        ask_engine(engine, f"SELECT {select} FROM {table_of(tasks[0])}", tasks[0])


def test_a_needed_shard_that_cannot_be_read_keeps_the_executor_from_starting(
    tasks: tuple[LoadTask, ...],
) -> None:
    file_of(tasks[1]).unlink()
    with cold_engine(tasks, needed=True) as engine, pytest.raises(ColdReadFailed):
        engine.rehearse()
    with cold_engine(tasks) as engine:
        assert engine.rehearse() == 0


def test_a_query_that_is_stopped_while_a_view_is_made_leaves_it_to_the_next(
    engine: ColdEngine, tasks: tuple[LoadTask, ...]
) -> None:
    gone = threading.Event()
    gone.set()
    ticket = make_ticket(f"SELECT count(*) FROM {table_of(tasks[0])}", tasks[0].shard_id)
    lock = engine._locks[tasks[0].shard_id]
    with lock, pytest.raises(QueryCancelled):
        engine.run(ticket, gone.is_set)
    assert count(engine, tasks[0]) == ROWS // 2


def test_many_queries_that_need_the_same_views_at_once_make_each_once(
    engine: ColdEngine, tasks: tuple[LoadTask, ...]
) -> None:
    counts: list[int] = []
    errors: list[AccelError] = []

    def ask() -> None:
        try:
            counts.append(count(engine, *tasks))
        except AccelError as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert errors == []
    assert counts == [3 * ROWS // 2] * 4


def test_too_little_memory_is_named_as_the_cold_budget(
    engine: ColdEngine, tasks: tuple[LoadTask, ...]
) -> None:
    sql = f"SELECT list(id || repeat('x', 9000)) AS l FROM {table_of(tasks[0])}"
    with pytest.raises(MemoryLimit, match="cold_memory_bytes"):
        ask_engine(engine, sql, tasks[0])
    assert count(engine, tasks[0]) == ROWS // 2


def test_a_shard_without_files_has_its_columns_and_no_rows(tasks: tuple[LoadTask, ...]) -> None:
    empty = replace(tasks[0], files=(), shard_id=tasks[1].shard_id)
    with cold_engine([empty]) as engine:
        answer = ask_engine(engine, f"SELECT * FROM {table_of(empty)}", empty)
    assert answer.schema.names == ["id"]
    assert answer.num_rows == 0


def rewrite(file: Path) -> None:
    """Another file of the same size in its place."""
    data = file.read_bytes()
    fresh = file.with_suffix(".new")
    fresh.write_bytes(data)
    fresh.replace(file)
