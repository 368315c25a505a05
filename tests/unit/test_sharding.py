"""Shard cutting: the figures and texts of its load tasks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from accel_dask.errors import SchemaUnsupported
from accel_dask.model.bounds import bound_key, merge_stats
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import TenantId
from accel_dask.model.snapshot import (
    Column,
    ColumnStats,
    DataFile,
    DeleteFile,
    SnapshotId,
    SourceSnapshot,
)
from accel_dask.scheduler_plugin.sharding import cut_shards

COLUMNS = (
    Column(name="day", type="DATE"),
    Column(name="n", type="BIGINT"),
    Column(name="s", type="VARCHAR"),
)
DATASET = Dataset(
    tenant=TenantId("acme"),
    name="trips",
    source=SourceSpec(connector="iceberg"),
    shard_target_bytes=1_000_000,
)


def snapshot(*files: DataFile, sort_by: tuple[str, ...] = ("day", "gone")) -> SourceSnapshot:
    return SourceSnapshot(
        snapshot_id=SnapshotId(table_uuid="u", snapshot="1", schema_id="0"),
        sequence=1,
        columns=COLUMNS,
        files=files,
        sort_by=sort_by,
    )


def day_file(number: int, size: int = 100_000, **changes: object) -> DataFile:
    file = DataFile(
        path=f"/{number}.parquet",
        size_bytes=size,
        record_count=10,
        partition=f"day={number:04d}",
        stats=(ColumnStats(name="n", null_count=number, lower=str(number), upper=str(10**number)),),
    )
    return replace(file, **changes)  # type: ignore[arg-type]


def test_an_empty_snapshot_is_one_empty_shard() -> None:
    (task,) = cut_shards(DATASET, snapshot())
    assert (task.files, task.rows, task.source_bytes) == ((), 0, 0)
    assert task.columns == COLUMNS


def test_a_year_of_small_days_makes_tens_of_shards_around_the_target() -> None:
    tasks = cut_shards(DATASET, snapshot(*(day_file(n) for n in range(365))))
    assert 18 <= len(tasks) <= 60
    assert max(task.source_bytes for task in tasks) <= 2_500_000
    firsts = [task.files[0].partition for task in tasks]
    assert firsts == sorted(firsts)


def test_one_late_day_reloads_one_shard_of_a_year() -> None:
    days = [day_file(n) for n in range(365)]
    before = {task.shard_id for task in cut_shards(DATASET, snapshot(*days))}
    late = day_file(200, path="/200-late.parquet")
    after = cut_shards(DATASET, snapshot(*days, late))
    assert sum(task.shard_id not in before for task in after) == 1


def test_an_appended_day_reloads_few_shards_of_a_year() -> None:
    days = [day_file(n) for n in range(366)]
    before = {task.shard_id for task in cut_shards(DATASET, snapshot(*days[:-1]))}
    after = cut_shards(DATASET, snapshot(*days))
    assert sum(task.shard_id not in before for task in after) <= 3


def test_a_large_partition_is_cut_by_its_files_in_their_order() -> None:
    files = [
        replace(
            day_file(n, size=900_000),
            partition="",
            stats=(ColumnStats(name="day", null_count=0, lower=f"2024-01-{30 - n}", upper="x"),),
        )
        for n in range(12)
    ]
    tasks = cut_shards(DATASET, snapshot(*files))
    assert len(tasks) > 3
    assert all(task.source_bytes <= 2_700_000 for task in tasks)
    order = [file.path for task in tasks for file in task.files]
    assert order == [f"/{n}.parquet" for n in reversed(range(12))]


def test_rows_are_promised_only_where_they_are_known() -> None:
    gone = (DeleteFile(path="/d", size_bytes=1, record_count=2),)
    assert cut_shards(DATASET, snapshot(day_file(1)))[0].rows == 10
    assert cut_shards(DATASET, snapshot(day_file(1, deletes=gone)))[0].rows is None
    filtered = replace(DATASET, row_filter="n > 0")
    assert cut_shards(filtered, snapshot(day_file(1)))[0].rows is None


def test_statistics_are_merged_by_value_and_only_where_every_file_knows() -> None:
    (task,) = cut_shards(DATASET, snapshot(day_file(2), day_file(3)))
    merged = {stats.name: stats for stats in task.stats}
    assert merged["n"] == ColumnStats(name="n", null_count=5, lower="2", upper="1000")
    assert merged["s"] == ColumnStats(name="s")


def test_the_sort_is_the_declared_one_else_what_is_held_of_the_sources() -> None:
    assert cut_shards(DATASET, snapshot(day_file(1)))[0].sort_by == ("day",)
    declared = replace(DATASET, sort_by=("s", "n"))
    assert cut_shards(declared, snapshot(day_file(1)))[0].sort_by == ("s", "n")
    with pytest.raises(SchemaUnsupported, match=r"acme.trips: sort_by.*'dya'.*did you mean 'day'"):
        cut_shards(replace(DATASET, sort_by=("dya",)), snapshot(day_file(1)))


@pytest.mark.parametrize(
    ("kind", "ordered"),
    [
        ("BIGINT", ["-10", "-9", "9", "10"]),
        ("DECIMAL(9,2)", ["-1.50", "0.25", "10.00"]),
        ("DOUBLE", ["-inf", "-1e+20", "0.0", "5e-324", "inf"]),
        ("DATE", ["0001-01-01", "2024-02-29", "9999-12-31"]),
        ("TIMESTAMP", ["2024-01-01 00:00:00", "2024-01-01 00:00:00.000001"]),
        (
            "TIMESTAMP WITH TIME ZONE",
            ["2024-01-01 00:00:00+00", "2024-01-01 00:00:00.5+00"],
        ),
        ("VARCHAR", ["", "A", "a", "é", "\uffee", "\U0001f600"]),
        ("BOOLEAN", ["false", "true"]),
    ],
)
def test_bounds_order_as_the_engine_orders_the_values(kind: str, ordered: list[str]) -> None:
    keys = [bound_key(kind, text) for text in ordered]
    assert None not in keys
    assert keys == sorted(keys)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("BLOB", "x"),
        ("DOUBLE", "nan"),
        ("DATE", "10000-01-01"),
        ("DATE", "0044-03-15 (BC)"),
        ("TIMESTAMP WITH TIME ZONE", "2024-01-01 00:00:00+02"),
        ("BIGINT", "many"),
    ],
)
def test_a_bound_that_we_cannot_order_is_no_bound(kind: str, text: str) -> None:
    assert bound_key(kind, text) is None
    part = (ColumnStats(name="c", null_count=0, lower=text, upper=text), 3)
    assert merge_stats("c", kind, [part]) == ColumnStats(name="c", null_count=0)


def test_files_without_values_do_not_hide_the_bounds_of_others() -> None:
    empty = (ColumnStats(name="c", null_count=4), 4)
    full = (ColumnStats(name="c", null_count=1, lower="3", upper="5", exact=True), 2)
    no_rows = (None, 0)
    assert merge_stats("c", "INTEGER", [empty, full, no_rows]) == ColumnStats(
        name="c", null_count=5, lower="3", upper="5", exact=True
    )
    assert merge_stats("c", "INTEGER", [full, (None, 1)]) == ColumnStats(name="c")


def test_one_time_in_two_spellings_is_one_bound() -> None:
    for kind, zone in (("TIMESTAMP", ""), ("TIMESTAMP WITH TIME ZONE", "+00")):
        texts = ["2024-05-01 10:00:00", "2024-05-01 10:00:00.0", "2024-05-01 10:00:00.000000"]
        assert len({bound_key(kind, text + zone) for text in texts}) == 1
        halves = [bound_key(kind, f"2024-05-01 10:00:00.{part}{zone}") for part in ("5", "500")]
        assert halves[0] == halves[1] != bound_key(kind, texts[0] + zone)
