"""Which statistics reach the planner: those of partitions, and not more than a record holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from simulated_world import World, make_dataset

from accel_dask.codec import encode
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import ShardId, TenantId
from accel_dask.model.load_plan import LoadTask
from accel_dask.model.snapshot import Column, ColumnStats, DataFile, SnapshotId, SourceSnapshot
from accel_dask.scheduler_plugin.publish import open_epoch
from accel_dask.scheduler_plugin.shard_stats import MAX_STATS_BYTES, summary_stats
from accel_dask.scheduler_plugin.sharding import cut_shards
from accel_dask.store.base import MAX_REQUEST_BYTES


def task(index: int, stats: Sequence[ColumnStats], sort_by: tuple[str, ...] = ()) -> LoadTask:
    return LoadTask(
        shard_id=ShardId(f"{index:032d}"),
        columns=tuple(Column(name=one.name, type="VARCHAR") for one in stats),
        files=(),
        sort_by=sort_by,
        rows=10,
        source_bytes=1,
        stats=tuple(stats),
    )


def wide(index: int, columns: int) -> list[ColumnStats]:
    """Every second column is different in each shard."""
    return [
        ColumnStats(
            name=f"some_column_{column}",
            null_count=0,
            lower=f"{index if column % 2 else 7:040d}",
            upper=f"{index + 1:040d}",
        )
        for column in range(columns)
    ]


def test_a_narrow_epoch_keeps_the_statistics_of_all_its_columns() -> None:
    tasks = [task(index, wide(index, 8)) for index in range(20)]
    assert summary_stats(tasks) == tuple(one.stats for one in tasks)


def test_a_wide_epoch_keeps_its_sort_columns_and_those_that_differ_most() -> None:
    tasks = [task(i, wide(i, 40), sort_by=("some_column_38", "gone")) for i in range(500)]
    kept = summary_stats(tasks)
    names = {stats.name for stats in kept[0]}
    assert "some_column_38" in names
    assert {name for name in names if int(name.rsplit("_", 1)[1]) % 2 == 0} == {"some_column_38"}
    assert len(names) >= 3
    assert all({stats.name for stats in shard} == names for shard in kept)
    assert len(encode(kept)) < MAX_STATS_BYTES * 1.1


def test_a_wide_epoch_of_many_shards_fits_into_one_transaction() -> None:
    dataset = make_dataset()
    for shards in (500, 4000):
        world = World().begin(hosts=1)
        world.declare(dataset)
        world.request(dataset, "nonce")
        tasks = [task(index, wide(index, 30)) for index in range(shards)]
        commit = open_epoch(world.round(), world.planned(dataset, tasks, 1))
        assert len(encode(commit.changes)) < MAX_REQUEST_BYTES, shards


def test_long_bounds_are_cut_and_still_bound() -> None:
    long = "x" * 500
    cases = [(long, long), ("a", "😀" * 200), ("a", "ab" + "😀" * 200), ("a", "b"), (None, long)]
    tasks = [
        task(i, [ColumnStats(name="s", null_count=0, lower=low, upper=high, exact=True)])
        for i, (low, high) in enumerate(cases)
    ]
    for (stats,), (low, high) in zip(summary_stats(tasks), cases, strict=True):
        assert stats.lower is None or (low is not None and stats.lower <= low)
        assert stats.upper is None or stats.upper >= high
        assert len(stats.lower or "") < 60
        assert len(stats.upper or "") < 60
        assert stats.exact is (low == "a" and high == "b")
    uppers = [stats.upper for (stats,) in summary_stats(tasks)]
    assert uppers == ["x" * 47 + "y", None, "ac", "b", "x" * 47 + "y"]


def test_columns_of_which_nothing_is_known_are_left_out() -> None:
    assert summary_stats([task(0, [ColumnStats(name="s")])]) == ((),)


def test_the_value_of_a_partition_is_the_bound_of_its_column() -> None:
    columns = (
        Column(name="day", type="VARCHAR"),
        Column(name="n", type="BIGINT"),
        Column(name="ratio", type="DOUBLE"),
    )
    known = ColumnStats(name="n", null_count=0, lower="1", upper="5")

    def file(day: str | None) -> DataFile:
        return DataFile(
            path=f"/day={day}/a.parquet",
            size_bytes=100,
            record_count=10,
            partition=f"day={day}",
            stats=(known,),
            constants=(("day", day), ("n", "3"), ("ratio", "nan")),
        )

    snapshot = SourceSnapshot(
        snapshot_id=SnapshotId(table_uuid="u", snapshot="1", schema_id="0"),
        sequence=1,
        columns=columns,
        files=(file("2013-01-01"), file("2013-01-02")),
    )
    dataset = Dataset(
        tenant=TenantId("acme"),
        name="trips",
        source=SourceSpec(connector="parquet"),
        shard_target_bytes=1_000,
    )
    (both,) = cut_shards(dataset, snapshot)
    assert both.stats == (
        ColumnStats(name="day", null_count=0, lower="2013-01-01", upper="2013-01-02", exact=True),
        known,
        ColumnStats(name="ratio", null_count=None),
    )
    (nulls,) = cut_shards(dataset, replace(snapshot, files=(file(None), file("2013-01-02"))))
    assert (nulls.stats[0].lower, nulls.stats[0].null_count) == (None, None)
