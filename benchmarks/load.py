"""Load speed, shard size and loader memory, as ratios taken in one run.

    python benchmarks/load.py --rows 6000000

Generates lineitem-like Parquet files, then compares the loader process (start, checks, build,
validation and checksum included) with plain DuckDB building the same sorted, compressed file in
a fresh process with the same threads, and the shard file with snappy Parquet of the same columns
and order. Exits with 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import duckdb

from accel_dask.connectors.registry import open_source
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import EpochNumber, TenantId
from accel_dask.model.load_plan import LoadOrder, ShardManifest
from accel_dask.scheduler_plugin.sharding import cut_shards
from accel_dask.worker_plugin.load import run_loader
from accel_dask.worker_plugin.shard_dir import ShardDir

SPEED_AT_LEAST = 0.7
SIZE_AT_MOST = 0.8
MEMORY_AT_MOST = 4.0
BASE_BYTES = 160 * 1024 * 1024
"""The loader's fixed part: interpreter, engine and the row groups being written."""

ROWS_SQL = """
    SELECT (i // 4) * 8 + (i // 4) % 8 AS orderkey,
           (hash(i) % 200000)::INTEGER AS partkey,
           (hash(i + 1) % 10000)::INTEGER AS suppkey,
           (i % 4 + 1)::INTEGER AS linenumber,
           (hash(i + 2) % 50 + 1)::DECIMAL(12, 2) AS quantity,
           (90000 + hash(i + 3) % 9000000)::DECIMAL(12, 2) / 100 AS extendedprice,
           ((hash(i + 4) % 11)::DECIMAL(12, 2) / 100)::DECIMAL(12, 2) AS discount,
           ((hash(i + 5) % 9)::DECIMAL(12, 2) / 100)::DECIMAL(12, 2) AS tax,
           ['A', 'N', 'R'][1 + (hash(i + 6) % 3)::INTEGER] AS returnflag,
           ['F', 'O'][1 + (hash(i + 7) % 2)::INTEGER] AS linestatus,
           DATE '1992-01-01' + (hash(i + 8) % 2526)::INTEGER AS shipdate,
           ['AIR', 'FOB', 'MAIL', 'RAIL', 'REG AIR', 'SHIP', 'TRUCK'][
               1 + (hash(i + 9) % 7)::INTEGER] AS shipmode
    FROM range({first}, {last}) r(i)
"""

# What anyone would write by hand; its own process, as the loader has one.
PLAIN = """
import duckdb, json, sys, time
order = json.load(sys.stdin)
started = time.perf_counter()
with duckdb.connect(order["file"], config={"threads": order["threads"],
        "memory_limit": order["memory"], "temp_directory": order["spill"]}) as engine:
    engine.execute("SET enable_progress_bar = false")
    engine.execute(f"CREATE TABLE data AS SELECT * FROM read_parquet('{order['files']}') "
                   f"ORDER BY {order['sort']}")
    engine.execute("CHECKPOINT")
print(time.perf_counter() - started)
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One comparison of the two."""

    loader_seconds: float
    plain_seconds: float
    loader_cpu_seconds: float
    plain_cpu_seconds: float
    manifest: ShardManifest


def generate(directory: Path, rows: int, files: int) -> None:
    """Unsorted rows in `files` Parquet files."""
    with duckdb.connect(config={"threads": 2}) as engine:
        for number in range(files):
            first, last = rows * number // files, rows * (number + 1) // files
            engine.execute(
                f"COPY ({ROWS_SQL.format(first=first, last=last)}) "
                f"TO '{directory}/{number:04d}.parquet' (CODEC snappy)"
            )


def make_order(data: Path, work: Path, memory: Path, threads: int, memory_mib: int) -> LoadOrder:
    """The whole data as one shard."""
    dataset = Dataset(
        tenant=TenantId("bench"),
        name="lineitem",
        source=SourceSpec(connector="parquet", options=(("path", str(data)),)),
        sort_by=("shipdate",),
        shard_target_bytes=2**40,
    )
    (task,) = cut_shards(dataset, open_source(dataset).plan(None))
    return LoadOrder(
        tenant=dataset.tenant,
        dataset=dataset.name,
        epoch=EpochNumber(1),
        task=task,
        shard_dir=str(memory / "shards"),
        spill_dir=str(work / "spill"),
        memory_bytes=memory_mib * 1024 * 1024,
        threads=threads,
        max_file_bytes=2**40,
    )


def run_plain(order: LoadOrder, data: Path, memory: Path, work: Path) -> float:
    """Seconds of plain DuckDB's process, without its start (which flatters it)."""
    file = memory / "plain.duckdb"
    file.unlink(missing_ok=True)
    told = subprocess.run(
        [sys.executable, "-c", PLAIN],
        input=json.dumps(
            {
                "file": str(file),
                "files": f"{data}/*.parquet",
                "sort": ", ".join(order.task.sort_by),
                "threads": order.threads,
                "memory": f"{order.memory_bytes}B",
                "spill": str(work / "plain_spill"),
            }
        ),
        capture_output=True,
        text=True,
        check=True,
    )
    file.unlink()
    return float(told.stdout)


def run_once(order: LoadOrder, data: Path, memory: Path, work: Path) -> Run:
    cpu_before = children_cpu_seconds()
    plain = run_plain(order, data, memory, work)
    cpu_between = children_cpu_seconds()
    ShardDir(Path(order.shard_dir)).create()
    ShardDir(Path(order.shard_dir)).remove(order.task.shard_id)
    started = time.perf_counter()
    manifest = asyncio.run(run_loader(order))
    seconds = time.perf_counter() - started
    cpu_after = children_cpu_seconds()
    return Run(seconds, plain, cpu_after - cpu_between, cpu_between - cpu_before, manifest)


def children_cpu_seconds() -> float:
    """Of all processes we started and saw end; unlike wall time it stays true on a busy machine."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def parquet_bytes(order: LoadOrder, work: Path) -> int:
    """Size of snappy Parquet with the shard's columns and order."""
    shard = ShardDir(Path(order.shard_dir)).shard_file(order.task.shard_id)
    target = work / "same_order.parquet"
    with duckdb.connect(shard, read_only=True) as engine:
        engine.execute(f"COPY (FROM data) TO '{target}' (FORMAT parquet, CODEC snappy)")
    return target.stat().st_size


def report(order: LoadOrder, runs: list[Run], parquet: int, rows: int) -> bool:
    """Print the ratios; whether all limits hold."""
    best = min(runs, key=lambda run: run.loader_seconds)
    # Best of each: what else runs on the machine only ever adds.
    speed = min(run.plain_seconds for run in runs) / best.loader_seconds
    cpu = min(r.plain_cpu_seconds for r in runs) / min(r.loader_cpu_seconds for r in runs)
    shard = best.manifest.file_bytes
    peak = max(run.manifest.peak_memory_bytes for run in runs)
    size = shard / parquet
    memory = (peak - BASE_BYTES) / shard
    lines = [
        ("load speed / plain DuckDB", speed, f">= {SPEED_AT_LEAST}", speed >= SPEED_AT_LEAST),
        ("shard bytes / snappy Parquet", size, f"<= {SIZE_AT_MOST}", size <= SIZE_AT_MOST),
        ("(peak - base) / shard bytes", memory, f"<= {MEMORY_AT_MOST}", memory <= MEMORY_AT_MOST),
    ]
    source = order.task.source_bytes
    print(
        f"{rows:,} rows, {len(order.task.files)} files, {source / 1e6:.0f} MB of Parquet, "
        f"{order.threads} threads, memory limit {order.memory_bytes / 2**20:.0f} MiB"
    )
    for run in runs:
        print(
            f"  loader {run.loader_seconds:.2f} s ({run.loader_cpu_seconds:.2f} s of CPU), "
            f"plain {run.plain_seconds:.2f} s ({run.plain_cpu_seconds:.2f} s of CPU), "
            f"peak {run.manifest.peak_memory_bytes / 1e6:.0f} MB"
        )
    print(
        f"  shard {shard / 1e6:.1f} MB, Parquet in the same order {parquet / 1e6:.1f} MB, "
        f"{rows / best.loader_seconds / 1e6:.1f} M rows/s"
    )
    for name, ratio, limit, holds in lines:
        print(f"  {name:32} {ratio:6.2f}  {limit:8} {'ok' if holds else 'MISSED'}")
    print(f"  {'CPU of plain DuckDB / loader':32} {cpu:6.2f}")
    return all(holds for *_, holds in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=6_000_000)
    parser.add_argument("--files", type=int, default=24)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-mib", type=int, default=1024)
    parser.add_argument("--repeat", type=int, default=3)
    chosen = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as plain_dir,
        tempfile.TemporaryDirectory(dir="/dev/shm") as memory_dir,
    ):
        work, memory = Path(plain_dir), Path(memory_dir)
        data = work / "data"
        data.mkdir()
        generate(data, chosen.rows, chosen.files)
        order = make_order(data, work, memory, chosen.threads, chosen.memory_mib)
        runs = [run_once(order, data, memory, work) for _ in range(chosen.repeat)]
        held = report(order, runs, parquet_bytes(order, work), chosen.rows)
    return 0 if held else 1


if __name__ == "__main__":
    raise SystemExit(main())
