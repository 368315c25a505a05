"""Rollups on a real cluster of several hosts: declared, built, read, changed, suggested."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pytest
from answers import Answer, GatewayClient, difference, gateway_client, hosts_of, plain_answer
from sqllogic_runner import Layout, lay_out
from typer.testing import CliRunner

from accel_dask import admin
from accel_dask.cli.main import app
from accel_dask.errors import ConfigError, LoadError
from accel_dask.flight_client import FlightSession
from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.rollup import parse_rollup
from accel_dask.model.tenant import MIB, Quota

pytestmark = pytest.mark.cluster

SALES = DatasetId(TenantId("acme"), "sales")
DAILY = parse_rollup("daily: date_trunc('day', ts), store; count(*), sum(amount), avg(n), max(tag)")
ROWS = """
SELECT i AS id, TIMESTAMP '2024-01-01' + to_minutes(i) AS ts, i % 5 AS store,
    (i % 997)::DECIMAL(9, 2) / 1 AS price, ((i * 7) % 1000)::DECIMAL(9, 2) AS amount,
    CASE WHEN i % 7 > 0 THEN i % 100 END AS n, 't' || (i % 11) AS tag
FROM range(30000) t(i)
"""
QUERY = (
    "SELECT date_trunc('month', ts) AS month, store, count(*) AS sold, sum(amount), avg(n), "
    "max(tag) FROM sales WHERE ts < '2024-01-20' GROUP BY ALL ORDER BY 1, 2"
)


@dataclass
class Shop:
    cluster: LocalAccelCluster
    plain: duckdb.DuckDBPyConnection
    client: GatewayClient
    session: FlightSession
    token: str
    asked: int = field(default=0)

    def check(self, sql: str) -> tuple[Answer, dict[str, Any]]:
        """The answer, which must be plain DuckDB's, and its receipt."""
        found = self.client.ask(sql)
        told = difference(plain_answer(self.plain, sql), found)
        assert not told, told
        receipt = self.session.receipt()
        assert receipt is not None
        assert receipt["sql"] == sql
        return found, receipt

    def publish(self) -> None:
        self.cluster.publish("acme", "sales")
        self.cluster.wait_routed()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    with duckdb.connect() as plain, LocalAccelCluster(LocalOptions(workers=3)) as cluster:
        plain.execute(f"CREATE TABLE sales AS {ROWS}")
        quota = Quota(executor_memory_bytes=192 * MIB, memory_bytes_per_host=512 * MIB)
        token = cluster.create_tenant("acme", quota)
        layout = Layout(table="sales", split_by="date_trunc('week', ts)", sort_by="ts")
        directory = tmp_path_factory.mktemp("lake") / "sales"
        cluster.create_dataset(lay_out(plain, "acme", layout, directory))
        url = cluster.gateway_urls[0]
        cluster.publish("acme", "sales")
        cluster.wait_routed()
        assert len(hosts_of(cluster, "acme", "sales")) == 3
        with (
            gateway_client(cluster, "acme", token) as client,
            FlightSession(url, "acme", token) as session,
        ):
            yield Shop(cluster, plain, client, session, token)


def test_a_rollup_comes_and_goes_with_epochs(shop: Shop) -> None:
    _, receipt = shop.check(QUERY)
    assert receipt["datasets"][0]["rollup"] == ""
    before = receipt["datasets"][0]["epoch"]

    admin.change_rollups(shop.cluster.store, SALES, [DAILY])
    shop.publish()
    _, receipt = shop.check(QUERY)
    assert receipt["datasets"][0]["rollup"] == "daily"
    assert receipt["datasets"][0]["epoch"] > before
    assert "rollup daily of acme.sales (" in receipt["reason"]
    assert receipt["executors"] == 3
    epoch = shop.cluster.view.serving_epoch(SALES)
    assert epoch is not None
    assert sum(rows for (rows,) in epoch.rollup_rows) == 5 * 21  # of 21 days
    explained = shop.session.explain(QUERY)
    assert "rollup: daily of acme.sales (105 rows)" in explained
    assert '"main"."rollup_daily"' in explained
    assert "rollup: none of acme.sales: daily: id is not one of its dimensions" in (
        shop.session.explain("SELECT count(DISTINCT id) FROM sales")
    )

    other = parse_rollup("daily: date_trunc('week', ts), store; count(*)")
    admin.change_rollups(shop.cluster.store, SALES, [other])
    shop.publish()
    _, receipt = shop.check(QUERY)
    assert receipt["datasets"][0]["rollup"] == ""
    _, receipt = shop.check("SELECT store, count(*) FROM sales GROUP BY store")
    assert receipt["datasets"][0]["rollup"] == "daily"

    admin.change_rollups(shop.cluster.store, SALES, [], ["daily"])
    shop.publish()
    _, receipt = shop.check("SELECT store, count(*) FROM sales GROUP BY store")
    assert receipt["datasets"][0]["rollup"] == ""


def test_parameters_reach_a_rollup(shop: Shop) -> None:
    admin.change_rollups(shop.cluster.store, SALES, [DAILY])
    shop.publish()
    sql = (
        "SELECT store + ? AS k, count(*) FILTER (WHERE store > ?) AS n, "
        "max(tag) FILTER (WHERE store > ?) AS t FROM sales WHERE store <> ? GROUP BY ALL ORDER BY 1"
    )
    values = [10, 2, 2, 4]
    found = shop.client.ask(sql, values)
    assert list(found.rows) == shop.plain.execute(sql, values).fetchall()
    receipt = shop.session.receipt()
    assert receipt is not None
    assert receipt["datasets"][0]["rollup"] == "daily"
    admin.change_rollups(shop.cluster.store, SALES, [], ["daily"])
    shop.publish()


def test_a_rollup_that_cannot_be_built_fails_the_publish_and_says_why(shop: Shop) -> None:
    store = shop.cluster.store
    with pytest.raises(ConfigError, match=r"'sum\(x \+ 1\)' is no measure"):
        admin.change_rollups(store, SALES, [parse_rollup("bad: store; sum(x + 1)")])
    with pytest.raises(ConfigError, match=r"has no rollup 'nope' \(it has: none\)"):
        admin.change_rollups(store, SALES, [], ["nope"])
    admin.change_rollups(store, SALES, [parse_rollup("bad: strore; count(*)")])
    try:
        with pytest.raises(
            LoadError, match=r"acme.sales, rollup 'bad' names column 'strore'.*mean 'store'"
        ):
            shop.cluster.publish("acme", "sales")
        shop.check(QUERY)
    finally:
        admin.change_rollups(store, SALES, [], ["bad"])


def test_suggest_proposes_what_was_asked_and_the_proposal_answers_it(
    shop: Shop, tmp_path: Path
) -> None:
    shop.publish()
    for day in range(10, 25):
        shop.check(QUERY.replace("2024-01-20", f"2024-01-{day}"))
    shop.check("SELECT id, price FROM sales WHERE id < 10")
    file = tmp_path / "accel.toml"
    file.write_text((shop.cluster.directory / "accel.toml").read_text())
    arguments = ["--user", "acme", "--token", shop.token, "--config", str(file)]
    told = CliRunner().invoke(app, ["suggest", "acme.sales", *arguments])
    assert told.exit_code == 0, told.output
    lines = told.output.splitlines()
    command = next(line.strip() for line in lines if "accel-dask dataset rollup" in line)
    assert "acme.sales 30,000 rows -> about 1" in told.output.replace("\n", " ")
    assert "date_trunc('\\''day'\\'', ts)" in command

    declared = command.split(" ", 4)[4].strip("'").replace("'\\''", "'")
    done = CliRunner().invoke(
        app, ["dataset", "rollup", "acme.sales", declared, "--config", str(file)]
    )
    assert done.exit_code == 0, done.output
    shop.publish()
    _, receipt = shop.check(QUERY)
    assert receipt["datasets"][0]["rollup"].startswith("by_")
    told = CliRunner().invoke(app, ["suggest", "acme", *arguments])
    assert "nothing to suggest" in told.output
