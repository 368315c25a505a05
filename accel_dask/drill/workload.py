"""What the tenants of a drill hold and ask: one synthetic table, dashboards and attacks."""

from __future__ import annotations

from pathlib import Path
from typing import Final

DAYS: Final = 365
STORES: Final = 300
TABLE: Final = "facts"

DASHBOARD: Final = (
    (
        "SELECT channel, sum(amount), count(*) FROM facts "
        "WHERE day BETWEEN {day} AND {day} + 6 GROUP BY channel"
    ),
    "SELECT store, sum(amount) FROM facts WHERE day = {day} GROUP BY store ORDER BY 2 DESC LIMIT 9",
    (
        "SELECT day, sum(amount), sum(quantity) FROM facts "
        "WHERE day BETWEEN {day} AND {day} + 29 GROUP BY day ORDER BY day"
    ),
    (
        "SELECT product, count(*) FROM facts WHERE day BETWEEN {day} AND {day} + 2 "
        "GROUP BY product ORDER BY 2 DESC, 1 LIMIT 10"
    ),
    "SELECT count(*), avg(amount) FROM facts WHERE day = {day} AND store = {store}",
    "SELECT day, quantity, amount FROM facts WHERE day = {day} AND store = {store} LIMIT 100",
)
"""One to twenty milliseconds each."""
HEAVY: Final = (
    (
        "SELECT product, channel, store, sum(amount), count(*) FROM facts "
        "WHERE quantity <> {n} GROUP BY product, channel, store ORDER BY 4 DESC LIMIT 5"
    ),
    "SELECT count(DISTINCT order_id) FROM facts WHERE quantity <> {n}",
    "SELECT count(*) FROM facts a JOIN facts b ON a.order_id = b.order_id WHERE a.quantity <> {n}",
    (
        "SELECT store, median(amount) FROM facts WHERE quantity <> {n} GROUP BY store "
        "ORDER BY 2 LIMIT 3"
    ),
)
"""Scans and joins of everything."""
HOGS: Final = (
    (
        "SELECT max(length(s)) FROM (SELECT string_agg(CAST(order_id * {n} AS VARCHAR), ',') AS s "
        "FROM facts)"
    ),
    (
        "SELECT count(*) FROM (SELECT order_id, list(amount), list(store), list(product) "
        "FROM facts WHERE quantity <> {n} GROUP BY order_id)"
    ),
    (
        "SELECT max(x) FROM (SELECT row_number() OVER (PARTITION BY store, product "
        "ORDER BY amount, order_id + {n}) AS x FROM facts)"
    ),
    (
        "SELECT count(*) FROM facts a JOIN facts b ON a.store = b.store AND a.product = b.product "
        "WHERE a.quantity <> {n} AND a.day < 100 AND b.day < 100"
    ),
)
"""More memory than the tenant has."""
LOOKUPS: Final = ("SELECT count(*) FROM facts WHERE day = {day} AND store = {store}",)


def write_facts(directory: Path, rows: int, seed: int) -> Path:
    """One Parquet file of `rows` rows in `directory`, other values for another seed; its path."""
    import duckdb

    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"facts-{seed}.parquet"
    with duckdb.connect(config={"threads": 2}) as engine:
        engine.execute(
            f"""COPY (
                SELECT CAST(i * {DAYS} // {rows} AS INTEGER) AS day,
                    CAST(hash(i, {seed}) % {STORES} AS INTEGER) AS store,
                    CAST(hash(i, {seed}, 1) % 1000 AS INTEGER) AS product,
                    CAST(hash(i, {seed}, 2) % 4 AS TINYINT) AS channel,
                    i // 4 AS order_id,
                    CAST(hash(i, {seed}, 3) % 50 AS INTEGER) AS quantity,
                    CAST(hash(i, {seed}, 4) % 100000 AS DECIMAL(12, 2)) / 100 AS amount
                FROM range({rows}) t(i)
            ) TO '{file}.tmp' (FORMAT parquet)"""  # noqa: S608 - numbers, and a path of ours
        )
    Path(f"{file}.tmp").rename(file)
    return file
