"""What must hold of shard cutting for every snapshot."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import TenantId
from accel_dask.model.load_plan import LoadTask
from accel_dask.model.snapshot import (
    Column,
    ColumnStats,
    DataFile,
    DeleteFile,
    SnapshotId,
    SourceSnapshot,
)
from accel_dask.scheduler_plugin.sharding import cut_shards

TARGET = 1_000
DATASET = Dataset(
    tenant=TenantId("acme"),
    name="trips",
    source=SourceSpec(connector="parquet"),
    shard_target_bytes=TARGET,
)

sizes = st.one_of(st.integers(0, 300), st.integers(200, 5 * TARGET))
partitions = st.dictionaries(
    st.integers(0, 200).map(lambda n: f"day={n:03d}"),
    st.lists(st.tuples(sizes, st.integers(0, 50)), min_size=1, max_size=4),
    max_size=40,
)


def files_of(partition: str, sized: list[tuple[int, int]], generation: int = 0) -> list[DataFile]:
    return [
        DataFile(
            path=f"/{partition}/{generation}-{index}.parquet",
            size_bytes=size,
            record_count=rows,
            partition=partition,
            stats=(ColumnStats(name="n", null_count=0, lower=str(index), upper=str(rows + index)),),
        )
        for index, (size, rows) in enumerate(sized)
    ]


def snapshot_of(files: list[DataFile]) -> SourceSnapshot:
    return SourceSnapshot(
        snapshot_id=SnapshotId(table_uuid="u", snapshot="1", schema_id="0"),
        sequence=1,
        columns=(Column(name="n", type="BIGINT"),),
        files=tuple(files),
    )


def cut(files: list[DataFile], dataset: Dataset = DATASET) -> tuple[LoadTask, ...]:
    return cut_shards(dataset, snapshot_of(files))


def all_files(drawn: dict[str, list[tuple[int, int]]]) -> list[DataFile]:
    return [file for name, sized in drawn.items() for file in files_of(name, sized)]


@given(partitions)
def test_every_file_is_in_exactly_one_shard(drawn: dict[str, list[tuple[int, int]]]) -> None:
    files = all_files(drawn)
    tasks = cut(files)
    loaded = [file.path for task in tasks for file in task.files]
    assert sorted(loaded) == sorted(file.path for file in files)
    assert len(tasks) == 1 or all(task.files for task in tasks)
    assert len({task.shard_id for task in tasks}) == len(tasks)
    assert sum(task.rows or 0 for task in tasks) == sum(file.record_count for file in files)


@given(partitions)
def test_shards_are_neither_far_too_large_nor_cut_through_small_partitions(
    drawn: dict[str, list[tuple[int, int]]],
) -> None:
    for task in cut(all_files(drawn)):
        labels = {file.partition for file in task.files}
        for label in labels:
            whole = sum(size for size, _ in drawn[label])
            if whole <= 2 * TARGET:
                held = sum(file.size_bytes for file in task.files if file.partition == label)
                assert held == whole
        # Twice the target, with what a few small neighbours add; a single file may be larger.
        assert task.source_bytes <= 3 * TARGET or len(task.files) == 1


@given(partitions, st.randoms())
def test_the_order_in_which_files_are_listed_does_not_matter(
    drawn: dict[str, list[tuple[int, int]]], random: object
) -> None:
    files = all_files(drawn)
    shuffled = list(files)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert cut(files) == cut(shuffled)


@given(partitions, st.data())
def test_a_change_in_one_partition_changes_only_the_shards_that_hold_or_held_it(
    drawn: dict[str, list[tuple[int, int]]], data: st.DataObject
) -> None:
    if not drawn:
        return
    changed = data.draw(st.sampled_from(sorted(drawn)))
    now = data.draw(st.lists(st.tuples(sizes, st.integers(0, 50)), min_size=1, max_size=4))
    before = cut(all_files(drawn))
    others = [file for file in all_files(drawn) if file.partition != changed]
    after = cut([*others, *files_of(changed, now, generation=1)])
    held_it = {
        file.path
        for task in before
        if any(file.partition == changed for file in task.files)
        for file in task.files
    }
    known = {task.shard_id for task in before}
    for task in after:
        if task.shard_id not in known:
            holds_it = any(file.partition == changed for file in task.files)
            assert holds_it or {file.path for file in task.files} <= held_it


FILE = files_of("day=000", [(10, 5)])[0]


@given(
    st.sampled_from(
        [
            replace(FILE, path="/other.parquet"),
            replace(FILE, size_bytes=11),
            replace(FILE, record_count=6),
            replace(FILE, version="2"),
            replace(FILE, names=(("n", "old"),)),
            replace(FILE, constants=(("n", "1"),)),
            replace(FILE, deletes=(DeleteFile(path="/d", size_bytes=1, record_count=1),)),
        ]
    )
)
def test_the_id_changes_with_what_decides_the_rows(changed: DataFile) -> None:
    assert cut([FILE])[0].shard_id != cut([changed])[0].shard_id


def test_the_id_changes_with_the_dataset_and_not_with_what_is_only_known() -> None:
    known = cut([FILE])[0].shard_id
    for changes in ({"row_filter": "n > 1"}, {"sort_by": ("n",)}):
        assert cut([FILE], replace(DATASET, **changes))[0].shard_id != known  # type: ignore[arg-type]
    assert cut([replace(FILE, stats=())])[0].shard_id == known
    assert cut([FILE], replace(DATASET, name="other", replicas=2))[0].shard_id == known
