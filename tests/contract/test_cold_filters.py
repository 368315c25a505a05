"""Random conditions on cold shards: what the engine skips in files must never be a row it wants.

Types are widened, columns and values come from elsewhere than the file, rows are deleted, and files
have many row groups with bounds of their own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cold_reading import ask_engine, cold_engine, table_of

from accel_dask.model.ids import ShardId
from accel_dask.model.load_plan import LoadTask
from accel_dask.model.snapshot import Column, DataFile, DeleteFile
from accel_dask.worker_plugin.executor.cold_engine import ColdEngine

ROWS = 1200
COLUMNS = {
    "id": "BIGINT",
    "small": "INTEGER",
    "real": "DOUBLE",
    "price": "DECIMAL(12,2)",
    "moment": "TIMESTAMP WITH TIME ZONE",
    "day": "DATE",
    "name": "VARCHAR",
    "gone": "INTEGER",
    "region": "VARCHAR",
}
FILE = """
    SELECT i::INTEGER AS id, (i % 90)::TINYINT AS small,
        CASE i % 50 WHEN 0 THEN 'NaN'::FLOAT WHEN 1 THEN NULL ELSE i / 10 END::FLOAT AS real,
        ((i * 7) % 500 / 4)::DECIMAL(9, 2) AS price,
        TIMESTAMP '2024-01-01' + to_hours(i) AS moment,
        DATE '2024-01-01' + (i // 24)::INTEGER AS day,
        CASE WHEN i % 11 > 0 THEN 'n' || repeat('ü', i % 40) || i END AS name
    FROM range({first}, {last}) t(i) ORDER BY i
"""
TABLE = """
    SELECT id::BIGINT AS id, small::INTEGER AS small,
        CASE WHEN isnan(real) THEN NULL ELSE real END::DOUBLE AS real,
        price::DECIMAL(12, 2) AS price, moment::TIMESTAMPTZ AS moment, day, name,
        NULL::INTEGER AS gone, '{region}' AS region
    FROM ({file}) WHERE id % 13 <> 5
"""


@dataclass
class World:
    engine: ColdEngine
    tasks: tuple[LoadTask, ...]
    plain: duckdb.DuckDBPyConnection


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two shards of two files each; every file has deleted rows."""
    directory = tmp_path_factory.mktemp("filters")
    columns = tuple(Column(name=name, type=kind) for name, kind in COLUMNS.items())
    tasks = []
    with duckdb.connect(config={"threads": 1}) as plain:
        plain.execute("SET TimeZone = 'UTC'")
        tables = []
        for number in range(2):
            files = [_file(plain, directory, 2 * number + half) for half in range(2)]
            tables += [table for _, table in files]
            tasks.append(
                LoadTask(
                    shard_id=ShardId(f"{number:032x}"),
                    columns=columns,
                    files=tuple(file for file, _ in files),
                )
            )
        plain.execute(f"CREATE TABLE facts AS {' UNION ALL '.join(tables)}")
        with cold_engine(tasks) as engine:
            yield World(engine, tuple(tasks), plain)


def _file(plain: duckdb.DuckDBPyConnection, directory: Path, number: int) -> tuple[DataFile, str]:
    first = number * ROWS
    select = FILE.format(first=first, last=first + ROWS)
    path = directory / f"{number}.parquet"
    pq.write_table(plain.sql(select).to_arrow_table(), path, row_group_size=100)
    deleted = [n for n in range(ROWS) if (first + n) % 13 == 5]
    deletes = pa.table({"file_path": [str(path)] * len(deleted), "pos": pa.array(deleted)})
    schema = pa.schema(
        [
            pa.field("file_path", pa.string(), metadata={"PARQUET:field_id": "2147483546"}),
            pa.field("pos", pa.int64(), metadata={"PARQUET:field_id": "2147483545"}),
        ]
    )
    gone = directory / f"{number}-deletes.parquet"
    pq.write_table(deletes.cast(schema), gone)
    there = tuple((name, name) for name in COLUMNS if name not in {"gone", "region"})
    file = DataFile(
        path=str(path),
        size_bytes=path.stat().st_size,
        record_count=ROWS,
        names=there,
        constants=(("region", f"r{number}"),),
        deletes=(
            DeleteFile(path=str(gone), size_bytes=gone.stat().st_size, record_count=len(deleted)),
        ),
    )
    return file, TABLE.format(region=f"r{number}", file=select)


def condition(draw: random.Random, depth: int = 2) -> str:
    if depth and draw.random() < 0.5:
        sides = [condition(draw, depth - 1) for _ in range(2)]
        return f"({sides[0]} {draw.choice(['AND', 'AND', 'OR'])} {sides[1]})"
    number = draw.randrange(-50, 4 * ROWS + 50)
    values = {
        "id": [str(number), str(2**40), f"{number}.5"],
        "small": [str(number % 200 - 20), "1000"],
        "real": [f"{number / 10}::DOUBLE", f"({number / 10}::FLOAT)", "'NaN'::DOUBLE", "1e300"],
        "price": [str(number % 500 / 4), "99999999.99"],
        "moment": [f"TIMESTAMPTZ '2024-01-01 00:00:00+00' + INTERVAL ({number}) HOUR"],
        "day": [f"DATE '2024-01-01' + {number // 24}"],
        "name": [f"'n{'ü' * (number % 40)}{number}'", "'n'", "'zz'", "'nü'"],
        "gone": ["1"],
        "region": ["'r1'", "'r9'"],
    }
    name = draw.choice(list(values))
    one, two = draw.choice(values[name]), draw.choice(values[name])
    options = [f"{name} {op} {one}" for op in ("=", "<", "<=", ">", ">=", "<>")]
    options += [
        f"{name} BETWEEN {one} AND {two}",
        f"{name} IN ({one}, {two})",
        f"{name} IS NULL",
        f"{name} IS NOT NULL",
        f"{name} IS DISTINCT FROM {one}",
        f"NOT ({name} > {one})",
    ]
    if name == "name":
        options += ["name LIKE 'nü%'", f"name LIKE 'n%{number}'", "starts_with(name, 'nüü')"]
    return draw.choice(options)


@pytest.mark.parametrize("seed", range(6))
def test_random_conditions_keep_the_rows_that_they_keep_in_a_table(world: World, seed: int) -> None:
    draw = random.Random(seed)
    union = " UNION ALL ".join(f"SELECT * FROM {table_of(task)}" for task in world.tasks)
    kept = 0
    for _ in range(60):
        where = condition(draw)
        sql = "SELECT count(*) AS n, sum(id)::BIGINT AS s, max(name) AS m FROM {} WHERE {}"
        cold = ask_engine(world.engine, sql.format(f"({union})", where), *world.tasks)
        expected = world.plain.sql(sql.format("facts", where)).to_arrow_table()
        assert cold.to_pylist() == expected.to_pylist(), where
        kept += bool(expected["n"][0].as_py())
    assert kept > 20
