"""Frames of accel-dask beside Dask: `dask.compute`, `client.compute`, `delayed`, and a Dask
DataFrame whose partitions are read where their shards live.

In another terminal: `make demo`; then `python examples/dask_collections.py`.
"""

from __future__ import annotations

import dask
import pandas as pd
from dask.distributed import Client

from accel_dask.client import connect
from accel_dask.current import require_current


def main() -> None:
    session = connect(user="skyways")
    flights = session.table("flights")

    # Several frames at once: each is one query, asked side by side.
    by_origin = flights.groupby("origin").agg(n=("flight", "count"), delay=("dep_delay", "mean"))
    worst = flights.nlargest(3, "dep_delay")[["day", "carrier", "flight", "dep_delay"]]
    origins, delayed = dask.compute(by_origin, worst)
    print(origins, delayed, sep="\n\n")

    # Functions of one's own on bounded answers.
    @dask.delayed
    def share(counts: pd.DataFrame, origin: str) -> str:
        return f"{origin}: {counts.n[origin] / counts.n.sum():.1%} of all flights"

    print(*dask.compute(*(share(by_origin, one) for one in ("EWR", "JFK", "LGA"))), sep="\n")

    # On the cluster's own Dask workers. Answers stay there until they are fetched.
    with Client(require_current().scheduler) as client:
        future = client.compute(flights.dep_delay.describe())
        print("\n", future.result().round(1), sep="")

        # More than an answer: a partition per shard, each read by the executor of its own host. The
        # filter and the columns go along; what pandas has and SQL has not is Dask's to do.
        late = flights[flights.dep_delay > 60][["day", "dest", "dep_delay", "arr_delay"]]
        partitions = late.set_index("day").to_dask_dataframe()
        print(f"\n{partitions.npartitions} partitions, from {partitions.divisions[0]:%d %B %Y}")
        made_up = (partitions.dep_delay - partitions.arr_delay).clip(lower=0)
        print(f"late flights made up {made_up.mean().compute():.1f} minutes in the air")
        weekdays = partitions.map_partitions(
            lambda rows: rows.groupby(rows.index.day_name()).dep_delay.agg(["count", "sum"]),
            meta={"count": "int64", "sum": "float64"},
        )
        totals = weekdays.compute().groupby(level=0).sum()
        print((totals["sum"] / totals["count"]).round(1).sort_values().to_string())


if __name__ == "__main__":
    main()
