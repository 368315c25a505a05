"""The Iceberg connector and the loader together, against pyiceberg's own reading as the oracle."""

from __future__ import annotations

import datetime as dt
import json
import math
import socket
import threading
import uuid
from collections.abc import Callable
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cold_reading import assert_cold_reads_like_hot
from iceberg_deletes import add_file, add_position_deletes
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import EqualTo, GreaterThanOrEqual
from pyiceberg.manifest import (
    DataFileContent,
    FileFormat,
    clear_manifest_cache,
)
from pyiceberg.partitioning import PartitionField, PartitionSpec
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.transforms import DayTransform, IdentityTransform
from pyiceberg.typedef import Record
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FixedType,
    FloatType,
    IntegerType,
    LongType,
    NestedField,
    StringType,
    StructType,
    TimestampType,
    TimestamptzType,
    TimeType,
    UUIDType,
)

from accel_dask.connectors import iceberg
from accel_dask.connectors.registry import open_source
from accel_dask.errors import (
    ConfigError,
    LoadError,
    NotAcceleratable,
    SchemaUnsupported,
    SnapshotGone,
    SourceUnavailable,
    ValidationFailed,
)
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import EpochNumber, TenantId
from accel_dask.model.load_plan import LoadOrder
from accel_dask.model.snapshot import SourceSnapshot
from accel_dask.scheduler_plugin.sharding import cut_shards
from accel_dask.worker_plugin.loader import load_shard

DAY = dt.date(2024, 3, 1)


class Lake:
    """A catalog in a directory, and what a test does with it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.uri = f"sqlite:///{path}/catalog.db"
        self.catalog = SqlCatalog("lake", uri=self.uri, warehouse=f"file://{path}")
        self.catalog.create_namespace("ns")

    def dataset(self, name: str = "ns.t", **changes: Any) -> Dataset:
        options = (("catalog_uri", self.uri), ("table", name))
        return Dataset(
            tenant=TenantId("acme"),
            name="trips",
            source=SourceSpec(connector="iceberg", options=options),
            **changes,
        )

    def plan(self, snapshot: str | None = None, **changes: Any) -> SourceSnapshot:
        source = open_source(self.dataset(**changes))
        try:
            return source.plan(snapshot)
        finally:
            source.close()

    def load(self, planned: SourceSnapshot, **changes: Any) -> pa.Table:
        """All rows of `planned`, through real shard files."""
        tasks = cut_shards(self.dataset(**changes), planned)
        for task in tasks:
            order = LoadOrder(
                tenant=TenantId("acme"),
                dataset="trips",
                epoch=EpochNumber(1),
                task=task,
                shard_dir=str(self.path / "shards"),
                spill_dir=str(self.path / "spill"),
                memory_bytes=256 * 1024 * 1024,
                threads=2,
                max_file_bytes=256 * 1024 * 1024,
            )
            manifest = load_shard(order)
            assert task.rows in {None, manifest.rows}
        assert_cold_reads_like_hot(tasks, self.path / "shards")
        with duckdb.connect() as engine:
            engine.execute("SET TimeZone = 'UTC'")
            for number, task in enumerate(tasks):
                file = self.path / "shards" / f"{task.shard_id}.duckdb"
                engine.execute(f"ATTACH '{file}' AS s{number} (READ_ONLY)")
            union = " UNION ALL ".join(f"FROM s{n}.main.data" for n in range(len(tasks)))
            return engine.sql(union).to_arrow_table()


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(tmp_path)


def rows_of(table: pa.Table) -> list[tuple[Any, ...]]:
    """Rows as plain values in a fixed order, NaN as None (which is what we hold for it)."""

    def plain(value: Any) -> Any:
        if isinstance(value, float) and math.isnan(value):
            return None
        if isinstance(value, bytes) and len(value) == 16:
            return str(uuid.UUID(bytes=value))
        if isinstance(value, uuid.UUID):
            return str(value)
        return value

    columns = [table.column(name).to_pylist() for name in table.column_names]
    return sorted((tuple(map(plain, row)) for row in zip(*columns, strict=True)), key=repr)


def assert_reads_like_the_oracle(lake: Lake, table: Table) -> None:
    """Every snapshot, pinned, and the newest state, have the rows that pyiceberg reads."""
    table = lake.catalog.load_table(table.name())
    newest = lake.plan()
    assert rows_of(lake.load(newest)) == rows_of(table.scan().to_arrow())
    assert [c.name for c in newest.columns] == [f.name for f in table.schema().fields]
    for snapshot in table.snapshots():
        planned = lake.plan(str(snapshot.snapshot_id))
        expected = table.scan(snapshot_id=snapshot.snapshot_id).to_arrow()
        if snapshot.snapshot_id == table.current_snapshot().snapshot_id:
            expected = table.scan().to_arrow()
        loaded = lake.load(planned)
        assert loaded.column_names == expected.column_names
        assert rows_of(loaded) == rows_of(expected)


def simple_rows(first: int, count: int, **types: pa.DataType) -> pa.Table:
    numbers = list(range(first, first + count))
    return pa.table(
        {
            "x": pa.array(numbers, types.get("x", pa.int32())),
            "y": pa.array([n * 10 for n in numbers], types.get("y", pa.int32())),
            "f": pa.array([n / 4 for n in numbers], types.get("f", pa.float32())),
            "m": pa.array([Decimal(n).scaleb(-2) for n in numbers], pa.decimal128(9, 2)),
            "day": pa.array([DAY + dt.timedelta(days=n % 3) for n in numbers]),
        }
    )


def simple_table(lake: Lake, *, is_partitioned: bool = True) -> Table:
    table = lake.catalog.create_table("ns.t", schema=simple_rows(0, 1).schema)
    if is_partitioned:
        with table.update_spec() as update:
            update.add_field("day", DayTransform(), "day_day")
    table.append(simple_rows(0, 10))
    return table


def rename(table: Table) -> None:
    with table.update_schema() as update:
        update.rename_column("x", "renamed")
    table.append(simple_rows(100, 5).rename_columns(["renamed", "y", "f", "m", "day"]))


def swap_names(table: Table) -> None:
    for old, new in (("x", "tmp"), ("y", "x"), ("tmp", "y")):
        with table.update_schema() as update:
            update.rename_column(old, new)
    table.append(simple_rows(100, 5).rename_columns(["y", "x", "f", "m", "day"]))


def drop_and_add_again(table: Table) -> None:
    with table.update_schema() as update:
        update.delete_column("y")
    with table.update_schema() as update:
        update.add_column("y", IntegerType())
    table.append(simple_rows(100, 5).select(["x", "f", "m", "day", "y"]))


def add_column(table: Table) -> None:
    with table.update_schema() as update:
        update.add_column("note", StringType())
    extra = pa.array(["a", None, "c", "", "e"])
    table.append(simple_rows(100, 5).append_column("note", extra))


def promote(table: Table) -> None:
    with table.update_schema() as update:
        update.update_column("x", LongType())
        update.update_column("f", DoubleType())
        update.update_column("m", DecimalType(18, 2))
    wide = simple_rows(100, 4, x=pa.int64(), f=pa.float64())
    amounts = pa.array([Decimal("1234567890123456.78")] * 4, pa.decimal128(18, 2))
    wide = wide.set_column(3, "m", amounts).set_column(
        0, "x", pa.array([2**40 + n for n in range(4)], pa.int64())
    )
    table.append(wide)


def change_spec(table: Table) -> None:
    with table.update_spec() as update:
        update.remove_field("day_day")
        update.add_identity("x")
    table.append(simple_rows(100, 5))


def drop_partition_column(table: Table) -> None:
    with table.update_spec() as update:
        update.remove_field("day_day")
    with table.update_schema() as update:
        update.delete_column("day")
    table.append(simple_rows(100, 5).drop(["day"]))


def delete_some(table: Table) -> None:
    table.delete(GreaterThanOrEqual("x", 7))


def delete_all(table: Table) -> None:
    table.delete(GreaterThanOrEqual("x", 0))


def overwrite_some(table: Table) -> None:
    table.overwrite(simple_rows(3, 1), overwrite_filter=EqualTo("x", 3))


def schema_only(table: Table) -> None:
    with table.update_schema() as update:
        update.add_column("later", StringType())
        update.rename_column("x", "z")


def position_deletes(table: Table) -> None:
    add_position_deletes(table, lambda n: n % 3 == 0)
    table.append(simple_rows(200, 3))  # newer than the deletes
    add_position_deletes(table, lambda n: n == 1)


def position_deletes_then_rename(table: Table) -> None:
    add_position_deletes(table, lambda n: n == 0)
    rename(table)
    add_position_deletes(table, lambda n: n == 1)


CHANGES: tuple[Callable[[Table], None], ...] = (
    rename,
    swap_names,
    drop_and_add_again,
    add_column,
    promote,
    change_spec,
    drop_partition_column,
    delete_some,
    delete_all,
    overwrite_some,
    schema_only,
    position_deletes,
    position_deletes_then_rename,
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_every_snapshot_of_an_evolving_table_reads_as_pyiceberg_reads_it(
    lake: Lake, change: Callable[[Table], None]
) -> None:
    table = simple_table(lake)
    change(table)
    assert_reads_like_the_oracle(lake, table)


def test_changes_in_a_row_read_as_pyiceberg_reads_them(lake: Lake) -> None:
    table = simple_table(lake)
    for change in (promote, swap_names, delete_some):
        change(table)
    with table.update_schema() as update:
        update.add_column("note", StringType())
    add_position_deletes(table, lambda n: n == 0)
    assert_reads_like_the_oracle(lake, table)


# --- files without field ids -----------------------------------------------------------------


def plain_file(lake: Lake, name: str, columns: dict[str, Any]) -> str:
    path = lake.path / f"{name}.parquet"
    pq.write_table(pa.table(columns), path)
    return f"file://{path}"


def test_a_file_without_field_ids_is_read_through_the_name_mapping(lake: Lake) -> None:
    schema = Schema(NestedField(1, "a", LongType()), NestedField(2, "b", StringType()))
    table = lake.catalog.create_table("ns.t", schema=schema)
    table.append(pa.table({"a": [1, 2], "b": ["x", "y"]}))
    table.add_files([plain_file(lake, "one", {"b": ["p", "q"], "a": [3, 4]})])
    assert_reads_like_the_oracle(lake, table)
    with table.update_schema() as update:
        update.rename_column("a", "renamed")
    table.add_files([plain_file(lake, "two", {"renamed": [5], "b": ["r"]})])
    assert_reads_like_the_oracle(lake, table)


def test_a_snapshot_whose_name_mapping_was_taken_away_is_refused(lake: Lake) -> None:
    schema = Schema(NestedField(1, "a", LongType()), NestedField(2, "b", StringType()))
    table = lake.catalog.create_table("ns.t", schema=schema)
    table.add_files([plain_file(lake, "one", {"b": ["p", "q"], "a": [3, 4]})])
    before = table.current_snapshot()
    assert before is not None
    with table.update_schema() as update:
        update.delete_column("b")
    with table.update_schema() as update:
        update.add_column("b", StringType())  # the mapping's "b" is this one from now on
    newest = table.scan().to_arrow()
    assert rows_of(lake.load(lake.plan())) == rows_of(newest)
    table.append(pa.table({"a": [7], "b": ["new"]}))
    with pytest.raises(ValidationFailed, match="column b: expected 0 NULLs, found 2"):
        lake.load(lake.plan(str(before.snapshot_id)))


def test_a_file_without_field_ids_and_without_mapping_is_refused(lake: Lake) -> None:
    schema = Schema(NestedField(1, "a", LongType()), NestedField(2, "b", StringType()))
    table = lake.catalog.create_table("ns.t", schema=schema)
    table.add_files([plain_file(lake, "one", {"a": [3, 4], "b": ["p", "q"]})])
    with table.transaction() as transaction:
        transaction.remove_properties("schema.name-mapping.default")
    with pytest.raises(NotAcceleratable, match=r"field ids.*name-mapping"):
        lake.load(lake.plan())


def test_a_partition_value_that_its_file_lacks_comes_from_the_partition(lake: Lake) -> None:
    schema = Schema(NestedField(1, "a", LongType()), NestedField(2, "region", StringType()))
    spec = PartitionSpec(PartitionField(2, 1000, IdentityTransform(), "region"))
    table = lake.catalog.create_table("ns.t", schema=schema, partition_spec=spec)
    table.append(pa.table({"a": [1, 2], "region": ["eu", "us"]}))
    path = lake.path / "hive.parquet"
    with_ids = pa.schema([pa.field("a", pa.int64(), metadata={"PARQUET:field_id": "1"})])
    pq.write_table(pa.table({"a": [3, 4]}, schema=with_ids), path)
    add_file(table, DataFileContent.DATA, path, rows=2, partition=Record("asia"))
    assert_reads_like_the_oracle(lake, table)
    loaded = lake.load(lake.plan())
    assert sorted(loaded.column("region").to_pylist()) == ["asia", "asia", "eu", "us"]


def test_nan_as_a_partition_value_is_missing_as_it_is_in_files(lake: Lake) -> None:
    schema = Schema(NestedField(1, "a", LongType()), NestedField(2, "x", DoubleType()))
    spec = PartitionSpec(PartitionField(2, 1000, IdentityTransform(), "x"))
    table = lake.catalog.create_table("ns.t", schema=schema, partition_spec=spec)
    with_ids = pa.schema([pa.field("a", pa.int64(), metadata={"PARQUET:field_id": "1"})])
    table.append(pa.table({"a": [1], "x": [2.0]}))
    for name, value in (("nan", math.nan), ("one", 1.0), ("inf", math.inf)):
        path = lake.path / f"{name}.parquet"
        pq.write_table(pa.table({"a": [3, 4]}, schema=with_ids), path)
        add_file(table, DataFileContent.DATA, path, rows=2, partition=Record(value))
    loaded = lake.load(lake.plan())
    found = sorted(map(repr, loaded.column("x").to_pylist()))
    assert found == ["1.0", "1.0", "2.0", "None", "None", "inf", "inf"]


# --- types and values ------------------------------------------------------------------------

ALL_TYPES = Schema(
    NestedField(1, "flag", BooleanType()),
    NestedField(2, "small", IntegerType(), required=True),
    NestedField(3, "large", LongType()),
    NestedField(4, "single", FloatType()),
    NestedField(5, "twice", DoubleType()),
    NestedField(6, "money", DecimalType(38, 9)),
    NestedField(7, "day", DateType()),
    NestedField(8, "at", TimeType()),
    NestedField(9, "local", TimestampType()),
    NestedField(10, "instant", TimestamptzType()),
    NestedField(11, "text", StringType()),
    NestedField(12, "id", UUIDType()),
    NestedField(13, "raw", BinaryType()),
    NestedField(14, "fixed", FixedType(4)),
    NestedField(15, 'odd "name" \' filename', StringType()),
    NestedField(16, "file_row_number", LongType()),
    NestedField(17, "filename", StringType()),
)


def all_types_rows() -> pa.Table:
    utc = dt.UTC
    values: list[dict[str, Any]] = [
        {
            "flag": True,
            "small": -(2**31),
            "large": 2**63 - 1,
            "single": 1.1,
            "twice": float("nan"),
            "money": Decimal("12345678901234567890123456789.123456789"),
            "day": dt.date(1, 1, 1),
            "at": dt.time(23, 59, 59, 999999),
            "local": dt.datetime.fromisoformat("1969-12-31 23:59:59.999999"),
            "instant": dt.datetime(2024, 3, 31, 1, 30, tzinfo=utc),
            "text": "é\U0001f600 'quoted' \\x41",
            "id": uuid.UUID("ffffffff-0000-4000-8000-000000000001").bytes,
            "raw": b"\x00\xff'\\",
            "fixed": b"\x00\x01\x02\x03",
            'odd "name" \' filename': "odd",
            "file_row_number": 77,
            "filename": "not a file",
        },
        {"small": 0, "single": float("nan"), "twice": float("-inf")},
        {"small": 7, "single": -0.0, "twice": 5e-324, "text": "", "raw": b"", "large": -(2**63)},
        {"small": 8, "money": Decimal("-0.000000001"), "day": dt.date(9999, 12, 31)},
    ]
    return pa.Table.from_pylist(values, schema=ALL_TYPES.as_arrow())


def test_every_type_lands_exactly(lake: Lake) -> None:
    table = lake.catalog.create_table("ns.t", schema=ALL_TYPES)
    table.append(all_types_rows())
    assert_reads_like_the_oracle(lake, table)
    loaded = lake.load(lake.plan())
    assert loaded.schema.field("money").type == pa.decimal128(38, 9)
    assert loaded.schema.field("instant").type == pa.timestamp("us", tz="UTC")


def test_position_deletes_with_columns_named_like_the_engines_own(lake: Lake) -> None:
    table = lake.catalog.create_table("ns.t", schema=ALL_TYPES)
    table.append(all_types_rows())
    add_position_deletes(table, lambda n: n in {1, 2})
    assert_reads_like_the_oracle(lake, table)
    assert lake.load(lake.plan()).num_rows == 2


def test_an_empty_table_and_an_emptied_one_load_as_one_empty_shard(lake: Lake) -> None:
    table = lake.catalog.create_table("ns.t", schema=simple_rows(0, 1).schema)
    planned = lake.plan()
    assert planned.files == ()
    assert planned.snapshot_id.snapshot == "none"
    assert lake.load(planned).num_rows == 0
    table.append(simple_rows(0, 3))
    delete_all(table)
    emptied = lake.plan()
    assert len(cut_shards(lake.dataset(), emptied)) == 1
    assert lake.load(emptied).num_rows == 0
    assert emptied.sequence > planned.sequence


def test_only_the_chosen_columns_and_rows_are_held_in_the_chosen_order(lake: Lake) -> None:
    simple_table(lake)
    changes: dict[str, Any] = {"columns": ("m", "x"), "row_filter": "x % 2 = 0", "sort_by": ("x",)}
    loaded = lake.load(lake.plan(**changes), **changes)
    assert loaded.column_names == ["m", "x"]
    assert loaded.column("x").to_pylist() == [0, 2, 4, 6, 8]


# --- identity and order ----------------------------------------------------------------------


def test_a_change_of_the_schema_alone_is_another_newer_snapshot_for_us(lake: Lake) -> None:
    table = simple_table(lake)
    source = open_source(lake.dataset())
    before, version = source.plan(None), source.current_version()
    schema_only(table)
    after = source.plan(None)
    assert after.snapshot_id.snapshot == before.snapshot_id.snapshot
    assert after.snapshot_id != before.snapshot_id
    assert after.sequence > before.sequence
    assert source.current_version() != version
    source.close()


def test_sequence_grows_with_every_commit(lake: Lake) -> None:
    table = simple_table(lake)
    found = [lake.plan().sequence]
    for change in (add_column, delete_some, schema_only):
        change(table)
        found.append(lake.plan().sequence)
    assert found == sorted(set(found))


def test_a_pinned_snapshot_survives_expiry_and_its_tag_goes_with_unpin(lake: Lake) -> None:
    table = simple_table(lake)
    source = open_source(lake.dataset())
    planned = source.plan(None)
    source.pin(planned, "trips-1")
    source.pin(planned, "trips-1")  # again, as after a lost answer
    assert source.pinned_labels("accel-trips-") == ("accel-trips-1",)
    assert source.pinned_labels("accel-tri-") == ()
    delete_some(table)
    table.refresh()
    version = source.current_version()
    far = dt.datetime.now(dt.UTC).replace(tzinfo=None) + dt.timedelta(days=1)
    table.maintenance.expire_snapshots().older_than(far).commit()
    again = source.plan(planned.snapshot_id.snapshot)
    assert lake.load(again).num_rows == 10
    assert again.files == planned.files
    source.unpin("trips-1")
    assert "accel-trips-1" not in lake.catalog.load_table("ns.t").metadata.refs
    assert source.current_version() == version  # our tags are no news
    source.close()


def test_a_metadata_file_alone_is_a_source(lake: Lake) -> None:
    table = simple_table(lake)
    spec = SourceSpec(
        connector="iceberg", options=(("metadata_location", table.metadata_location),)
    )
    source = open_source(Dataset(tenant=TenantId("acme"), name="trips", source=spec))
    planned = source.plan(None)
    source.pin(planned, "ignored")
    source.unpin("ignored")
    assert planned.files == lake.plan().files
    source.close()


class RestStub:
    """The four calls of Iceberg's REST catalog that reading takes, over another catalog."""

    def __init__(self, lake: Lake, *, status: int = 200) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urlparse(self.path).path
                answer: dict[str, Any] = {"defaults": {}, "overrides": {}}
                if path.endswith("/namespaces/ns/tables/t"):
                    table = lake.catalog.load_table("ns.t")
                    answer = {
                        "metadata-location": table.metadata_location,
                        "metadata": json.loads(table.metadata.model_dump_json()),
                    }
                code = 404 if "/tables/" in path and "metadata" not in answer else status
                self.send_response(code)
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(json.dumps(answer).encode())

            def log_message(self, *args: Any) -> None:
                """Quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))

    def __enter__(self) -> Dataset:
        self.thread.start()
        return rest_dataset(self.server.server_port)

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def rest_dataset(port: int, table: str = "ns.t") -> Dataset:
    options = (
        ("catalog_type", "rest"),
        ("catalog_uri", f"http://127.0.0.1:{port}"),
        ("table", table),
    )
    spec = SourceSpec(connector="iceberg", options=options)
    return Dataset(tenant=TenantId("acme"), name="trips", source=spec)


def test_a_rest_catalog_is_a_source(lake: Lake) -> None:
    simple_table(lake)
    with RestStub(lake) as dataset:
        source = open_source(dataset)
        planned = source.plan(None)
        source.pin(planned, "refused")  # the stub cannot write: left alone
        source.close()
        assert planned == lake.plan()
        with pytest.raises(ConfigError, match=r"no table 'ns\.none'"):
            open_source(
                rest_dataset(int(dataset.source.options[1][1].rpartition(":")[2]), "ns.none")
            )
    with RestStub(lake, status=401) as dataset, pytest.raises(ConfigError, match="credentials"):
        open_source(dataset)


def test_a_rest_catalog_that_never_answers_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iceberg, "_REST_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(SourceUnavailable, match=rf"acme\.trips.*127\.0\.0\.1:{port}"):
            open_source(rest_dataset(port))


def test_a_tag_is_set_although_others_write_to_the_table(
    lake: Lake, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = simple_table(lake)
    source = open_source(lake.dataset())
    planned = source.plan(None)
    load_table, interruptions = source._load_table, iter([True, True])  # type: ignore[attr-defined]

    def load_then_lose() -> Table:
        found: Table = load_table()
        if next(interruptions, False):
            table.append(simple_rows(50, 1))
        return found

    monkeypatch.setattr(source, "_load_table", load_then_lose)
    source.pin(planned, "trips-1")
    found = lake.catalog.load_table("ns.t").metadata.refs["accel-trips-1"].snapshot_id
    assert str(found) == planned.snapshot_id.snapshot
    source.close()


# --- refusals --------------------------------------------------------------------------------


def test_equality_deletes_are_refused_with_a_way_out(lake: Lake) -> None:
    table = simple_table(lake)
    path = lake.path / "eq.parquet"
    pq.write_table(pa.table({"x": pa.array([1], pa.int32())}), path)
    file = next(iter(table.scan().plan_files())).file
    add_file(table, DataFileContent.EQUALITY_DELETES, path, rows=1, partition=file.partition)
    with pytest.raises(NotAcceleratable, match=r"equality deletes.*compact"):
        lake.plan()


def test_deletion_vectors_are_refused(lake: Lake) -> None:
    table = simple_table(lake)
    path = lake.path / "dv.puffin"
    path.write_bytes(b"PFA1")
    file = next(iter(table.scan().plan_files())).file
    add_file(
        table,
        DataFileContent.POSITION_DELETES,
        path,
        rows=1,
        partition=file.partition,
        file_format=FileFormat.PUFFIN,
    )
    with pytest.raises(NotAcceleratable, match="deletion vectors"):
        lake.plan()


def test_files_that_are_not_parquet_are_refused(lake: Lake) -> None:
    table = simple_table(lake, is_partitioned=False)
    path = lake.path / "data.orc"
    path.write_bytes(b"ORC")
    add_file(
        table, DataFileContent.DATA, path, rows=1, partition=Record(), file_format=FileFormat.ORC
    )
    with pytest.raises(NotAcceleratable, match=r"ORC.*only Parquet"):
        lake.plan()


def test_a_nested_column_is_refused_by_name_unless_left_out(lake: Lake) -> None:
    nested = StructType(NestedField(3, "inner", LongType()))
    schema = Schema(NestedField(1, "a", LongType()), NestedField(2, "deep", nested))
    table = lake.catalog.create_table("ns.t", schema=schema)
    table.append(pa.Table.from_pylist([{"a": 1, "deep": {"inner": 2}}], schema=schema.as_arrow()))
    with pytest.raises(SchemaUnsupported, match=r"'deep'.*struct"):
        lake.plan()
    planned = lake.plan(columns=("a",))
    assert rows_of(lake.load(planned, columns=("a",))) == [(1,)]


def test_a_missing_column_is_named_with_the_nearest_one(lake: Lake) -> None:
    simple_table(lake)
    with pytest.raises(SchemaUnsupported, match="no column 'dayy'; did you mean 'day'"):
        lake.plan(columns=("x", "dayy"))


def test_columns_that_differ_only_in_case_are_refused(lake: Lake) -> None:
    schema = Schema(NestedField(1, "a", LongType()), NestedField(2, "A", LongType()))
    lake.catalog.create_table("ns.t", schema=schema)
    with pytest.raises(SchemaUnsupported, match="only in case"):
        lake.plan()
    assert [c.field_id for c in lake.plan(columns=("A",)).columns] == [2]


def test_a_snapshot_that_is_gone_is_named(lake: Lake) -> None:
    simple_table(lake)
    for wanted in ("123456789", "main", ""):
        with pytest.raises(SnapshotGone, match=r"acme.trips.*no snapshot"):
            lake.plan(wanted)


def test_a_vanished_data_file_and_a_vanished_manifest_are_snapshot_gone(lake: Lake) -> None:
    simple_table(lake)
    planned = lake.plan()
    Path(planned.files[0].path.removeprefix("file://")).unlink()
    with pytest.raises(SnapshotGone, match="not there any more"):
        lake.load(planned)
    for manifest in (lake.path / "ns" / "t" / "metadata").glob("*-m0.avro"):
        manifest.unlink()
    clear_manifest_cache()
    with pytest.raises(SnapshotGone):
        lake.plan()


@pytest.fixture
def wrong_sources(tmp_path: Path) -> dict[str, tuple[tuple[str, str], ...]]:
    (tmp_path / "not_sqlite.db").write_text("this is not a database")
    return {
        "no such file": (("catalog_uri", f"sqlite:///{tmp_path}/none.db"), ("table", "ns.t")),
        "not a database": (
            ("catalog_uri", f"sqlite:///{tmp_path}/not_sqlite.db"),
            ("table", "ns.t"),
        ),
        "no such driver": (("catalog_uri", "nosuch://user:secret@h/db"), ("table", "ns.t")),
        "nobody listens": (
            ("catalog_type", "rest"),
            ("catalog_uri", "http://127.0.0.1:1/"),
            ("table", "ns.t"),
        ),
        "no metadata": (("metadata_location", f"file://{tmp_path}/v1.metadata.json"),),
    }


@pytest.mark.parametrize(
    "case",
    ["no such file", "not a database", "no such driver", "nobody listens", "no metadata"],
)
def test_a_wrong_catalog_is_named_and_nothing_is_created(
    case: str, wrong_sources: dict[str, tuple[tuple[str, str], ...]], tmp_path: Path
) -> None:
    options = wrong_sources[case]
    before = sorted(tmp_path.iterdir())
    spec = SourceSpec(connector="iceberg", options=options)
    with pytest.raises((ConfigError, SourceUnavailable)) as caught:
        open_source(Dataset(tenant=TenantId("acme"), name="trips", source=spec))
    message = str(caught.value)
    assert "acme.trips" in message
    assert "secret" not in message
    location = dict(options).get("metadata_location") or dict(options)["catalog_uri"]
    assert location.rpartition("/")[2] in message
    assert sorted(tmp_path.iterdir()) == before


def test_wrong_options_and_tables_are_config_errors(lake: Lake) -> None:
    def source(**options: str) -> None:
        spec = SourceSpec(connector="iceberg", options=tuple(sorted(options.items())))
        open_source(Dataset(tenant=TenantId("acme"), name="trips", source=spec)).close()

    with pytest.raises(ConfigError, match=r"no table 'ns.none'"):
        source(catalog_uri=lake.uri, table="ns.none")
    with pytest.raises(ConfigError, match=r"'namespace\.name'"):
        source(catalog_uri=lake.uri, table="t")
    with pytest.raises(ConfigError, match="did you mean 'table'"):
        source(catalog_uri=lake.uri, tabel="ns.t")
    with pytest.raises(ConfigError, match="needs 'catalog_uri'"):
        source(table="ns.t")
    spec = SourceSpec(connector="icebrg")
    with pytest.raises(ConfigError, match="unknown connector 'icebrg'; there are iceberg, parquet"):
        open_source(Dataset(tenant=TenantId("acme"), name="trips", source=spec))


def test_a_corrupt_data_file_is_refused(lake: Lake) -> None:
    simple_table(lake)
    planned = lake.plan()
    path = Path(planned.files[0].path.removeprefix("file://"))
    content = bytearray(path.read_bytes())
    path.write_bytes(bytes(len(content)))  # the same size, all zeros
    with pytest.raises(LoadError, match="Parquet"):
        lake.load(planned)
    content[4:200] = bytes(196)  # sound footer, broken pages
    path.write_bytes(bytes(content))
    with pytest.raises(LoadError):
        lake.load(planned)
    assert not list((lake.path / "shards").iterdir())


# --- writing what pyiceberg does not write ---------------------------------------------------
