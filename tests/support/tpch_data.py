"""TPC-H: data from `tpchgen-cli`, cut by date as a lakehouse would have it, its datasets and its
22 queries. For tests and benchmarks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import duckdb

from accel_dask.model.dataset import Dataset, SourceSpec, Spread
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import MIB, Quota

_LAYOUT: Final = 1
"""Counts up when the files are laid out differently, so that older ones are not used."""

FACTS: Final[Mapping[str, str]] = MappingProxyType(
    {"lineitem": "l_shipdate", "orders": "o_orderdate"}
)
"""Tables with a file for each month of a date, which their shards are sorted by."""
DIMENSIONS: Final = ("customer", "nation", "part", "partsupp", "region", "supplier")
TABLES: Final = (*FACTS, *DIMENSIONS)

QUERIES: Final[Mapping[str, Path]] = MappingProxyType(
    {file.stem: file for file in sorted((Path(__file__).parent / "tpch").glob("q*.sql"))}
)
"""The 22 queries with the specification's validation parameters, by name (`q01`, ...)."""


def cache_directory() -> Path:
    """Where generated data stays between runs; `ACCEL_TEST_CACHE` or the user's cache."""
    told = os.environ.get("ACCEL_TEST_CACHE")
    if told:
        return Path(told)
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "accel-dask"


def tpch_directory(scale: float) -> Path:
    """The data at `scale`, generated once per machine: `<table>/**/*.parquet`.

    Two processes may do so at once; the first one to end wins, and nothing half-made is seen.
    """
    directory = cache_directory() / f"tpch-sf{scale:g}-{_LAYOUT}"
    if directory.is_dir():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    making = Path(tempfile.mkdtemp(prefix=f"{directory.name}.", dir=directory.parent))
    try:
        _generate(scale, making / "raw")
        _lay_out(making / "raw", making / "done")
        (making / "done").rename(directory)
    except OSError:
        if not directory.is_dir():
            raise
    finally:
        shutil.rmtree(making, ignore_errors=True)
    return directory


def _generate(scale: float, target: Path) -> None:
    target.mkdir()
    program = Path(sys.executable).parent / "tpchgen-cli"
    command = [str(program), "parquet", "-s", f"{scale:g}", "-o", str(target), "-q"]
    subprocess.run([*command, "--no-progress"], check=True, timeout=600)


def _lay_out(raw: Path, target: Path) -> None:
    for table in TABLES:
        (target / table).mkdir(parents=True)
    with duckdb.connect(config={"threads": 2}) as engine:
        for table in DIMENSIONS:
            # A round through the engine: the generator's own Arrow schema may say string_view.
            file = target / table / f"{table}.parquet"
            engine.execute(f"COPY (FROM '{raw}/{table}.parquet') TO '{file}' (CODEC snappy)")
        for table, day in FACTS.items():
            engine.execute(
                f"CREATE TABLE fact AS FROM '{raw}/{table}.parquet' "
                f"ORDER BY {day}, {table[0]}_orderkey"
            )
            months = engine.execute(
                f"SELECT DISTINCT date_trunc('month', {day})::DATE FROM fact ORDER BY 1"
            ).fetchall()
            for (month,) in months:
                # The directory's name says which files belong together.
                file = target / table / f"month={month:%Y-%m}" / "data.parquet"
                file.parent.mkdir()
                engine.execute(
                    f"COPY (FROM fact WHERE {day} >= DATE '{month}' AND {day} < DATE '{month}' "
                    f"+ INTERVAL 1 MONTH) TO '{file}' (CODEC snappy)"
                )
            engine.execute("DROP TABLE fact")


def tpch_datasets(tenant: str, scale: float, *, shards: int = 16) -> tuple[Dataset, ...]:
    """All eight: facts spread in about `shards` shards (lineitem), dimensions on every host."""
    directory = tpch_directory(scale)
    lineitem = sum(file.stat().st_size for file in (directory / "lineitem").rglob("*.parquet"))
    return tuple(
        Dataset(
            tenant=TenantId(tenant),
            name=table,
            source=SourceSpec(connector="parquet", options=(("path", str(directory / table)),)),
            sort_by=(FACTS[table],) if table in FACTS else (),
            spread=Spread.SPREAD if table in FACTS else Spread.EVERYWHERE,
            # Pieces are up to twice the target.
            shard_target_bytes=max(1, lineitem // shards * 2 // 3),
        )
        for table in TABLES
    )


def tpch_quota(scale: float) -> Quota:
    """The default quota, with as much memory as all tables on one host need."""
    return Quota(
        memory_bytes_per_host=Quota().executor_memory_bytes + int(MIB * (64 + 512 * scale))
    )


def large_tpch_quota(scale: float) -> Quota:
    """Enough for the heaviest of the queries: where facts are spread, some of them join most rows
    of both."""
    executor = int(MIB * (256 + 1792 * scale))
    return Quota(
        executor_memory_bytes=executor,
        memory_bytes_per_host=executor + int(MIB * (64 + 512 * scale)),
        deadline_ms=60_000,
        max_cpu_ms=120_000,
        max_gather_rows=max(4_000_000, int(12_000_000 * scale)),
        max_gather_bytes=max(96 * MIB, int(768 * MIB * scale)),
    )


@dataclass(frozen=True, slots=True)
class PlainTpch:
    """The same files in plain DuckDB."""

    engine: duckdb.DuckDBPyConnection

    @classmethod
    def open(cls, scale: float) -> PlainTpch:
        engine = duckdb.connect(config={"threads": 2})
        directory = tpch_directory(scale)
        for table in TABLES:
            engine.execute(
                f"CREATE TABLE {table} AS FROM "
                f"read_parquet('{directory}/{table}/**/*.parquet', hive_partitioning=false)"
            )
        return cls(engine)
