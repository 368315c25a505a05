"""The Parquet connector and the loader together, against the engine's own reading."""

from __future__ import annotations

import os
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cold_reading import assert_cold_reads_like_hot

from accel_dask.connectors import parquet
from accel_dask.connectors.registry import open_source
from accel_dask.errors import (
    ConfigError,
    NotAcceleratable,
    SchemaUnsupported,
    SnapshotGone,
)
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import EpochNumber, TenantId
from accel_dask.model.load_plan import LoadOrder
from accel_dask.model.snapshot import SourceSnapshot
from accel_dask.scheduler_plugin.sharding import cut_shards
from accel_dask.worker_plugin.loader import load_shard


def dataset(path: Path | str, **changes: Any) -> Dataset:
    options = [("path", str(path))]
    if "hive" in changes:
        options.insert(0, ("hive", changes.pop("hive")))
    return Dataset(
        tenant=TenantId("acme"),
        name="trips",
        source=SourceSpec(connector="parquet", options=tuple(options)),
        **changes,
    )


def plan(declared: Dataset, snapshot: str | None = None) -> SourceSnapshot:
    return open_source(declared).plan(snapshot)


def load(declared: Dataset, tmp_path: Path) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = []
    for task in cut_shards(declared, plan(declared)):
        order = LoadOrder(
            tenant=declared.tenant,
            dataset=declared.name,
            epoch=EpochNumber(1),
            task=task,
            shard_dir=str(tmp_path / "shards"),
            spill_dir=str(tmp_path / "spill"),
            memory_bytes=256 * 1024 * 1024,
            threads=2,
            max_file_bytes=64 * 1024 * 1024,
        )
        load_shard(order)
        with duckdb.connect(tmp_path / "shards" / f"{task.shard_id}.duckdb", read_only=True) as e:
            e.execute("SET TimeZone = 'UTC'")
            rows += rows_of(e.sql("FROM data").to_arrow_table())
        assert_cold_reads_like_hot([task], tmp_path / "shards")
    return rows


def rows_of(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    """Three files of two regions, in directories with keys."""
    root = tmp_path / "lake"
    for number, (region, name) in enumerate([("eu", "a"), ("eu", "b"), ("us%2Fwest", "a")]):
        folder = root / f"region={region}"
        folder.mkdir(parents=True, exist_ok=True)
        columns = {"n": [number * 10, number * 10 + 1, None], "s": ["é", "a\\b", ""]}
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return root


def test_a_directory_is_read_whole(lake: Path, tmp_path: Path) -> None:
    found = load(dataset(lake, sort_by=("n", "s")), tmp_path)
    with duckdb.connect() as engine:
        expected = engine.execute(
            f"SELECT * FROM read_parquet('{lake}/**/*.parquet', hive_partitioning=false)"
        ).fetchall()
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def test_keys_in_directory_names_are_partitions_and_on_demand_columns(
    lake: Path, tmp_path: Path
) -> None:
    assert [file.partition for file in plan(dataset(lake)).files] == [
        "region=eu",
        "region=eu",
        "region=us%2Fwest",
    ]
    declared = dataset(lake, hive="true", columns=("region", "n"))
    assert plan(declared).sort_by == ("region",)
    expected = [("eu", n) for n in (0, 1, None, 10, 11, None)]
    expected += [("us/west", n) for n in (20, 21, None)]
    assert sorted(load(declared, tmp_path), key=repr) == sorted(expected, key=repr)


def test_a_pattern_chooses_files(lake: Path, tmp_path: Path) -> None:
    assert len(load(dataset(f"{lake}/*/a.parquet"), tmp_path)) == 6
    assert len(load(dataset(lake / "region=eu" / "a.parquet"), tmp_path)) == 3


def test_what_writers_have_not_finished_is_not_read(lake: Path) -> None:
    for name in ("_temporary/x.parquet", "region=eu/.hidden.parquet", "region=eu/_x.parquet"):
        (lake / name).parent.mkdir(exist_ok=True)
        (lake / name).write_bytes(b"half a file")
    assert len(plan(dataset(lake)).files) == 3


def test_the_snapshot_is_the_list_of_files(lake: Path) -> None:
    source = open_source(dataset(lake))
    first = source.plan(None)
    assert source.current_version() == first.snapshot_id.snapshot
    assert source.plan(first.snapshot_id.snapshot) == first
    pq.write_table(pa.table({"n": [7], "s": ["new"]}), lake / "region=eu" / "c.parquet")
    second = source.plan(None)
    (lake / "region=eu" / "c.parquet").unlink()
    third = source.plan(None)
    assert second.snapshot_id != first.snapshot_id
    assert third.files == first.files
    assert first.sequence < second.sequence < third.sequence
    with pytest.raises(SnapshotGone, match=r"acme.trips.*not kept"):
        source.plan(second.snapshot_id.snapshot)


def test_a_file_rewritten_in_place_is_another_file_even_with_the_same_size(lake: Path) -> None:
    path = lake / "region=eu" / "a.parquet"
    before = cut_shards(dataset(lake), plan(dataset(lake)))
    content, then = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(then + 1, then + 1))
    after = cut_shards(dataset(lake), plan(dataset(lake)))
    assert {task.shard_id for task in before}.isdisjoint(task.shard_id for task in after)


@pytest.mark.parametrize("few", [0, 99])
def test_every_plan_reads_the_footers_anew(
    lake: Path, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the files are few and the engine is one that stays."""
    monkeypatch.setattr(parquet, "_FEW_FILES", few)
    path = lake / "region=eu" / "a.parquet"
    then = path.stat().st_mtime_ns
    for low in (0, 7):
        pq.write_table(pa.table({"n": [low, low + 1, None], "s": ["é", "a\\b", ""]}), path)
        os.utime(path, ns=(then, then))
        found = {stats.name: stats for stats in plan(dataset(lake)).files[0].stats}
        assert (found["n"].lower, found["n"].upper) == (str(low), str(low + 1))


def test_every_type_keeps_its_values(tmp_path: Path) -> None:
    root = tmp_path / "types"
    root.mkdir()
    with duckdb.connect() as engine:
        engine.execute(
            "COPY (SELECT i::TINYINT AS t, i::UBIGINT AS u, (i / 3)::FLOAT AS f, i / 7 AS d, "
            "(i * 1.01)::DECIMAL(12, 3) AS m, DATE '2024-02-28' + i::INTEGER AS day, "
            "TIMESTAMP '2024-03-31 01:30:00.000001' + INTERVAL (i) HOUR AS at, "
            "TIMESTAMPTZ '2024-03-31 01:30:00+02' + INTERVAL (i) HOUR AS instant, "
            "TIME '23:59:58' + INTERVAL (i) SECOND AS hour, uuid() AS id, i % 2 = 0 AS flag, "
            "('\\x00\\xFF' || i::VARCHAR)::BLOB AS raw, CASE WHEN i > 0 THEN 'x' || i END AS s "
            f"FROM range(3) r(i)) TO '{root}/1.parquet'"
        )
        engine.execute("SET TimeZone = 'UTC'")
        relation = engine.sql(f"FROM '{root}/1.parquet'")
        expected = rows_of(relation.to_arrow_table())
        types = [str(kind) for kind in relation.types]
    assert [column.type for column in plan(dataset(root)).columns] == types
    assert load(dataset(root, sort_by=("t",)), tmp_path) == expected


def test_statistics_come_from_the_footers(lake: Path) -> None:
    stats = {stats.name: stats for stats in plan(dataset(lake)).files[0].stats}
    assert (stats["n"].null_count, stats["n"].lower, stats["n"].upper) == (1, "0", "1")
    # A backslash may be the engine's escape of something else, so there is no bound.
    assert (stats["s"].null_count, stats["s"].upper) == (0, "é")


def test_nan_is_not_taken_for_a_missing_null(tmp_path: Path) -> None:
    root = tmp_path / "nan"
    root.mkdir()
    pq.write_table(pa.table({"f": [1.0, float("nan"), None]}), root / "1.parquet")
    assert load(dataset(root, sort_by=("f",)), tmp_path) == [(1.0,), (None,), (None,)]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"n": [1.5], "s": ["x"]}, "column 'n' is BIGINT in .* and DOUBLE in"),
        ({"n": [1]}, "column 's' is VARCHAR in .* and not there in"),
        ({"n": [1], "s": ["x"], "more": [1]}, "column 'more' is not there in .* and BIGINT in"),
    ],
)
def test_files_that_disagree_are_refused(lake: Path, columns: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(columns), lake / "region=eu" / "z.parquet")
    with pytest.raises(SchemaUnsupported, match=message):
        plan(dataset(lake))


def test_columns_in_another_order_are_the_same_columns(lake: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"s": ["z"], "n": [99]}), lake / "region=eu" / "z.parquet")
    assert (99, "z") in load(dataset(lake), tmp_path)


def test_nested_columns_are_refused_unless_left_out(tmp_path: Path) -> None:
    root = tmp_path / "nested"
    root.mkdir()
    pq.write_table(pa.table({"a": [1], "deep": [[1, 2]]}), root / "1.parquet")
    with pytest.raises(SchemaUnsupported, match=r"'deep' of type BIGINT\[\]"):
        plan(dataset(root))
    assert load(dataset(root, columns=("a",)), tmp_path) == [(1,)]


def test_bad_paths_options_and_files_are_named(lake: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no directory .*nowhere"):
        open_source(dataset(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="needs 'path'"):
        open_source(replace(dataset(lake), source=SourceSpec(connector="parquet")))
    with pytest.raises(ConfigError, match="'true' or 'false'"):
        open_source(dataset(lake, hive="yes"))
    with pytest.raises(SchemaUnsupported, match=r"no column 'nn'; did you mean 'n'"):
        plan(dataset(lake, columns=("nn",)))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SchemaUnsupported, match="no Parquet files"):
        plan(dataset(empty))
    (lake / "region=eu" / "bad.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(NotAcceleratable, match=r"acme.trips.*not Parquet.*bad\.parquet"):
        plan(dataset(lake))


def test_keys_that_only_some_files_have_are_refused_as_columns(lake: Path) -> None:
    pq.write_table(pa.table({"n": [1], "s": ["x"]}), lake / "top.parquet")
    assert len(plan(dataset(lake)).files) == 4
    with pytest.raises(SchemaUnsupported, match="give all the same"):
        plan(dataset(lake, hive="true"))


def test_a_decimal_and_its_bounds_are_exact(tmp_path: Path) -> None:
    root = tmp_path / "decimals"
    root.mkdir()
    values = pa.array([Decimal("-99999999999999999.99"), Decimal("0.01")], pa.decimal128(19, 2))
    pq.write_table(pa.table({"m": values}), root / "1.parquet")
    assert load(dataset(root, sort_by=("m",)), tmp_path) == [
        (Decimal("-99999999999999999.99"),),
        (Decimal("0.01"),),
    ]
