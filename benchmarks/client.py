"""The notebook client: what compiling and importing cost, and a dashboard's group-by from a frame
to pandas against pandas, Dask and (if there) Polars on the same 6 million rows.

ACCEL_BENCH_SCALE=0.1 takes a tenth of the rows.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "support"))

import pandas as pd
from answers import publish_all
from client_world import local_session
from tpch_data import tpch_datasets, tpch_directory, tpch_quota

from accel_dask.client import connect
from accel_dask.local import LocalAccelCluster, LocalOptions

COLUMNS = ["l_shipmode", "l_quantity", "l_extendedprice", "l_shipdate"]


def cpu_ms(work: Callable[[], object], rounds: int = 300) -> float:
    work()
    started = time.process_time()
    for _ in range(rounds):
        work()
    return (time.process_time() - started) * 1000 / rounds


def compile_cost() -> None:
    session, transport = local_session()
    columns = {f"c{i}": pd.Series([1.0]) for i in range(10)}
    import pyarrow as pa

    frame = pd.DataFrame({"k": pd.Series(["a"]), "day": pd.Timestamp("2024-01-01"), **columns})
    transport.put("wide", pa.Table.from_pandas(frame))
    df = session.table("wide")

    def one() -> str:
        out = df[(df.day >= "2024-01-01") & (df.c1 > 0)]
        out = out.groupby("k").agg(a=("c2", "sum"), b=("c3", "mean"), n=("c4", "count"))
        return out.sort_values("a", ascending=False).head(10).sql

    ours = cpu_ms(one)
    print(f"compile filter+groupby+sort+limit of 12 columns: {ours:.2f} ms CPU (limit 1)")
    try:
        import ibis
    except ImportError:
        print("Ibis is not installed: no ratio")
        return
    table = ibis.table(
        ibis.schema({"k": "string", "day": "timestamp"} | dict.fromkeys(columns, "float64")),
        name="wide",
    )

    def other() -> str:
        out = table.filter((table.day >= "2024-01-01") & (table.c1 > 0)).group_by("k")
        out = out.agg(a=table.c2.sum(), b=table.c3.mean(), n=table.c4.count())
        return str(ibis.to_sql(out.order_by(ibis.desc("a")).limit(10), dialect="duckdb"))

    theirs = cpu_ms(other, 50)
    print(f"the same by Ibis: {theirs:.2f} ms CPU, {theirs / ours:.1f} times ours (limit 5)")


def import_cost() -> None:
    code = (
        "import time; t = time.process_time(); import accel_dask.client; "
        "print((time.process_time() - t) * 1000)"
    )
    costs = [
        float(
            subprocess.run(
                [sys.executable, "-c", code], check=True, capture_output=True, text=True
            ).stdout
        )
        for _ in range(5)
    ]
    print(f"import accel_dask.client: {min(costs):.0f} ms CPU (limit 350)")


def group(df: Any) -> Any:
    out = df.groupby("l_shipmode").agg(
        quantity=("l_quantity", "sum"), price=("l_extendedprice", "mean")
    )
    return out.compute() if hasattr(out, "compute") else out


def end_to_end(scale: float) -> None:
    files = f"{tpch_directory(scale)}/lineitem"
    import pyarrow.dataset as ds

    table = ds.dataset(files, format="parquet").to_table(columns=COLUMNS)
    local = table.to_pandas()
    local = local.assign(
        l_quantity=local.l_quantity.astype(float),
        l_extendedprice=local.l_extendedprice.astype(float),
    )
    print(f"{len(local):,} rows of lineitem; groupby(l_shipmode): sum and mean; in turn, ms")
    works: dict[str, Callable[[], object]] = {"pandas, in memory": lambda: group(local)}
    import dask.dataframe as dd

    parts = dd.from_pandas(local, npartitions=8)
    works["dask.dataframe, in memory"] = lambda: group(parts)
    try:
        import polars as pl
    except ImportError:
        print("Polars is not installed: not measured")
    else:
        numbers = [pl.col(name).cast(pl.Float64) for name in ("l_quantity", "l_extendedprice")]
        frame = pl.from_arrow(table).with_columns(numbers)
        aggregates = [pl.col("l_quantity").sum(), pl.col("l_extendedprice").mean()]
        works["polars, in memory"] = lambda: frame.group_by("l_shipmode").agg(aggregates)
    with LocalAccelCluster(LocalOptions()) as cluster:
        token = cluster.create_tenant("tpch", tpch_quota(scale))
        publish_all(
            cluster, [one for one in tpch_datasets("tpch", scale) if one.name == "lineitem"]
        )
        with connect(cluster.gateway_urls[0], user="tpch", token=token) as session:
            lineitem = session.table("lineitem")
            works["client, on the cluster"] = lambda: group(lineitem)
            in_turn(works, 20)


def in_turn(works: dict[str, Callable[[], object]], rounds: int) -> None:
    """Each once per round, the slow ones in every fifth, so that all meet the same machine."""
    times: dict[str, list[float]] = {}
    for number in range(rounds):
        for what, work in works.items():
            if number % 5 and "dask" in what:
                continue
            started = time.perf_counter()
            work()
            times.setdefault(what, []).append((time.perf_counter() - started) * 1000)
    for what, found in times.items():
        print(f"{what:28} best {min(found):8.1f} median {statistics.median(found):8.1f}")


if __name__ == "__main__":
    compile_cost()
    import_cost()
    end_to_end(float(os.environ.get("ACCEL_BENCH_SCALE", "1")))
