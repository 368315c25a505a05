"""The loader's rollups: exact, sorted, counted; what cannot be built fails the load."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from accel_dask.errors import ConfigError, QuotaExceeded, SchemaUnsupported, ValidationFailed
from accel_dask.model.dataset import Rollup
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId
from accel_dask.model.load_plan import LoadOrder, LoadTask
from accel_dask.model.rollup import check_rollups, parse_rollup, resolve_rollups, rollup_table
from accel_dask.model.snapshot import Column, DataFile
from accel_dask.worker_plugin import rollup_build
from accel_dask.worker_plugin.loader import load_shard
from accel_dask.worker_plugin.shard_dir import ShardDir

TRIPS = DatasetId(TenantId("acme"), "trips")


def at(*parts: int) -> datetime:
    return datetime(*parts)  # type: ignore[arg-type] # noqa: DTZ001 - a TIMESTAMP has no zone


COLUMNS = (
    Column(name="at", type="TIMESTAMP"),
    Column(name="Day", type="DATE"),
    Column(name="s", type="VARCHAR"),
    Column(name="n", type="BIGINT"),
    Column(name="m", type="DECIMAL(9,2)"),
    Column(name="x", type="DOUBLE"),
    Column(name="wide", type="DECIMAL(30,2)"),
    Column(name="tags", type="VARCHAR[]"),
)
AT = [at(2024, 1, 1, 5), at(2024, 1, 1, 23, 59), at(2024, 2, 1), None]


def order_for(tmp_path: Path, *rollups: Rollup, rows: bool = True) -> LoadOrder:
    path = tmp_path / "1.parquet"
    table = pa.table(
        {
            "at": pa.array(AT, pa.timestamp("us")),
            "Day": [date(2024, 1, 1), date(2024, 1, 7), date(2024, 1, 8), None],
            "s": ["b", "b", "a", None],
            "n": [1, 2**62, 2**62, None],
            "m": pa.array([Decimal("1.50"), None, Decimal("-3.25"), None], pa.decimal128(9, 2)),
            "x": [1.5, float("nan"), 2.0, None],
        }
    )
    pq.write_table(table if rows else table.slice(0, 0), path)
    file = DataFile(
        path=str(path), size_bytes=path.stat().st_size, record_count=table.num_rows if rows else 0
    )
    columns = COLUMNS[:6]
    task = LoadTask(
        shard_id=ShardId("5" * 32),
        columns=columns,
        files=(file,),
        source_bytes=file.size_bytes,
        rollups=resolve_rollups(TRIPS, rollups, columns),
    )
    return LoadOrder(
        tenant=TRIPS.tenant,
        dataset=TRIPS.name,
        epoch=EpochNumber(7),
        task=task,
        shard_dir=str(tmp_path / "shards"),
        spill_dir=str(tmp_path / "spill"),
        memory_bytes=256 * 1024 * 1024,
        threads=2,
        max_file_bytes=64 * 1024 * 1024,
    )


def loaded(order: LoadOrder, query: str) -> list[tuple[Any, ...]]:
    file = ShardDir(Path(order.shard_dir)).shard_file(order.task.shard_id)
    with duckdb.connect(file, read_only=True) as engine:
        return engine.execute(query).fetchall()


def test_a_rollup_is_built_beside_the_rows_and_counted(tmp_path: Path) -> None:
    order = order_for(
        tmp_path,
        parse_rollup("daily: date_trunc('day', AT), S; avg(n), sum(m), max(x), count(*), sum(x)"),
        parse_rollup("by_s: s; min(at)"),
    )
    manifest = load_shard(order)
    assert manifest.rollup_rows == (3, 3)
    day = at(2024, 1, 1)
    assert loaded(order, "FROM rollup_daily") == [
        (day, "b", 2, 2**62 + 1, 2, Decimal("1.50"), 1.5, 1.5),
        (at(2024, 2, 1), "a", 1, 2**62, 1, Decimal("-3.25"), 2.0, 2.0),
        (None, None, 1, None, 0, None, None, None),
    ]
    columns = "SELECT name, type, \"notnull\" FROM pragma_table_info('rollup_daily')"
    assert loaded(order, columns) == [
        ("at", "TIMESTAMP", False),
        ("s", "VARCHAR", False),
        ("rollup:count(*)", "BIGINT", True),
        ("rollup:sum(n)", "HUGEINT", False),
        ("rollup:count(n)", "BIGINT", True),
        ("rollup:sum(m)", "DECIMAL(38,2)", False),
        ("rollup:max(x)", "DOUBLE", False),
        ("rollup:sum(x)", "DOUBLE", False),
    ]
    assert loaded(order, 'SELECT s, "rollup:min(at)" FROM rollup_by_s') == [
        ("a", AT[2]), ("b", AT[0]), (None, None)
    ]  # fmt: skip


def test_grains_of_dates_keep_the_type(tmp_path: Path) -> None:
    order = order_for(tmp_path, parse_rollup("weekly: date_trunc('week', day); count(*)"))
    assert load_shard(order).rollup_rows == (3,)
    assert loaded(order, "FROM rollup_weekly") == [
        (date(2024, 1, 1), 2), (date(2024, 1, 8), 1), (None, 1)
    ]  # fmt: skip


def test_a_rollup_of_no_rows_is_empty(tmp_path: Path) -> None:
    order = order_for(tmp_path, parse_rollup("by_s: s; count(*), sum(n), max(m)"), rows=False)
    assert load_shard(order).rollup_rows == (0,)


def test_a_rollup_counts_in_the_shard_s_budget(tmp_path: Path) -> None:
    order = order_for(tmp_path, parse_rollup("by_s: s; count(*)"))
    with pytest.raises(QuotaExceeded):
        load_shard(replace(order, max_file_bytes=1000))


def test_a_rollup_that_does_not_add_up_fails_the_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = order_for(tmp_path, parse_rollup("by_s: s; count(*), sum(n)"))
    whole = rollup_build._value
    monkeypatch.setattr(
        rollup_build, "_value", lambda m: whole(m) + " + 1" if m.column else whole(m)
    )
    monkeypatch.setattr(rollup_build, "_again", lambda _m, c: f'sum("{c.name}")')
    with pytest.raises(ValidationFailed, match=r"rollup by_s does not add up: .*, sum"):
        load_shard(order)
    assert list(Path(order.shard_dir).iterdir()) == []


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("r: nope; count(*)", "names column 'nope', which the dataset does not hold"),
        ("r: Dya; count(*)", "did you mean 'Day'"),
        ("r: x; count(*)", "column x is of type DOUBLE: numbers that are not exact"),
        ("r: tags; count(*)", "column tags is of type VARCHAR\\[\\]"),
        ("r: date_trunc('day', s); count(*)", "its grains are: none"),
        ("r: date_trunc('hour', day); count(*)", "its grains are: week, month, quarter, year"),
        ("r: s; sum(s)", "sum\\(s\\) cannot be used, column s is of type VARCHAR"),
        ("r: s; sum(wide)", "its sums may overflow"),
        ("r: s; avg(day)", "it is no number"),
        ("r: s; min(tags)", "column tags is of type VARCHAR\\[\\]"),
    ],
)
def test_what_columns_do_not_allow_is_said_by_name(text: str, why: str) -> None:
    with pytest.raises(SchemaUnsupported, match=why) as failed:
        rollup_table(TRIPS, parse_rollup(text), COLUMNS)
    assert "acme.trips" in str(failed.value)
    assert "'r'" in str(failed.value)


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["r s; count(*)"], "is not of the form"),
        (["r: s, count(*)"], "is not of the form"),
        (["a b: s; count(*)"], "name cannot be used"),
        (["r: s;"], "at least one dimension and one measure"),
        (["r: ; count(*)"], "at least one dimension and one measure"),
        (["r: lower(s); count(*)"], "is no dimension"),
        (["r: date_trunc('decade', at); count(*)"], "is no grain"),
        (["r: at, date_trunc('day', AT); count(*)"], "is in two dimensions"),
        (["r: s; stddev(n)"], "is no measure"),
        (["r: s; sum(n + 1)"], "is no measure"),
        (["r: s; sum(*)"], "only count takes"),
        (["r: s; count(*)", "R: at; count(*)"], "two rollups of that name"),
        ([f"r{i}: s; count(*)" for i in range(9)], "limit is 8"),
    ],
)
def test_what_cannot_be_declared_is_refused(texts: list[str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        check_rollups(TRIPS, [parse_rollup(text) for text in texts])


def test_spelling_makes_no_other_rollup() -> None:
    one, other = (
        resolve_rollups(TRIPS, [parse_rollup(text)], COLUMNS)
        for text in (
            "r: DATE_TRUNC( 'Day' ,AT ), \"S\"; AVG(N)",
            "r: date_trunc('day',at),s;avg(n)",
        )
    )
    assert one == other
    assert one[0].dimensions == ("date_trunc('day', at)", "s")
    assert one[0].measures == ("count(*)", "sum(n)", "count(n)")
    assert resolve_rollups(TRIPS, one, COLUMNS) == one
