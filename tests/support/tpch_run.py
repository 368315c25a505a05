"""Runs the 22 TPC-H queries on a fresh cluster beside plain DuckDB; for tests and benchmarks."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

import duckdb
from answers import (
    GatewayClient,
    Refused,
    difference,
    gateway_client,
    hosts_of,
    plain_answer,
    publish_all,
)
from tpch_data import FACTS, QUERIES, PlainTpch, tpch_datasets, tpch_quota

from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.dataset import ColdPolicy
from accel_dask.model.tenant import Quota

ORDER_BY: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {
        "q01": (0, 1),
        "q02": (0, 2, 1, 3),
        "q03": (1, 2),
        "q04": (0,),
        "q05": (1,),
        "q07": (0, 1, 2),
        "q08": (0,),
        "q09": (0, 1),
        "q10": (2,),
        "q11": (1,),
        "q12": (0,),
        "q13": (1, 0),
        "q15": (0,),
        "q16": (3, 0, 1, 2),
        "q18": (4, 3),
        "q20": (0,),
        "q21": (1, 0),
        "q22": (0,),
    }
)
"""Columns that a query orders by; rows that tie on them may come in any order."""


@dataclass(frozen=True, slots=True)
class TpchSite:
    """A cluster with all tables, and its tenant `tpch`."""

    hosts: int
    url: str
    token: str
    client: GatewayClient


@dataclass(frozen=True, slots=True)
class Outcome:
    query: str
    hosts: int
    seconds: float
    plain_seconds: float
    refused: str = ""
    wrong: str = ""


@contextmanager
def tpch_cluster(
    hosts: int, scale: float, quota: Quota | None = None, hot_shards: int | None = None
) -> Iterator[TpchSite]:
    """All tables on a fresh cluster. Without a quota, the default one, as far as memory holds the
    data. With `hot_shards` the other shards of facts are cold."""
    with LocalAccelCluster(LocalOptions(workers=hosts)) as cluster:
        token = cluster.create_tenant("tpch", quota or tpch_quota(scale))
        publish_all(
            cluster,
            (
                replace(one, cold=ColdPolicy.ALLOW, hot_shards=hot_shards)
                if hot_shards is not None and one.name in FACTS
                else one
                for one in tpch_datasets("tpch", scale)
            ),
        )
        assert len(hosts_of(cluster, "tpch", "lineitem")) == hosts
        with gateway_client(cluster, "tpch", token) as client:
            yield TpchSite(hosts, cluster.gateway_urls[0], token, client)


def run(
    hosts: int,
    scale: float,
    rounds: int = 1,
    quota: Quota | None = None,
    hot_shards: int | None = None,
) -> list[Outcome]:
    """Every query on a fresh cluster; the best time of some rounds."""
    plain = PlainTpch.open(scale).engine
    try:
        with tpch_cluster(hosts, scale, quota, hot_shards) as site:
            return run_on(site, plain, rounds)
    finally:
        plain.close()


def run_on(site: TpchSite, plain: duckdb.DuckDBPyConnection, rounds: int = 1) -> list[Outcome]:
    """Every query beside `plain`; the best time of some rounds."""
    return [
        min((ask(query, site.hosts, plain, site.client) for _ in range(rounds)), key=_slowness)
        for query in QUERIES
    ]


def ask(query: str, hosts: int, plain: duckdb.DuckDBPyConnection, client: GatewayClient) -> Outcome:
    """One query, of both."""
    sql = QUERIES[query].read_text(encoding="utf-8")
    started = time.perf_counter()
    expected = plain_answer(plain, sql)
    plain_seconds = time.perf_counter() - started
    refused = wrong = ""
    started = time.perf_counter()
    try:
        found = client.ask(sql)
        seconds = time.perf_counter() - started
        wrong = difference(expected, found, ORDER_BY.get(query))
    except Refused as refusal:
        seconds = time.perf_counter() - started
        refused = str(refusal)
        wrong = "" if refusal.is_by_design else refused
    return Outcome(query, hosts, seconds, plain_seconds, refused, wrong)


def _slowness(outcome: Outcome) -> tuple[bool, float]:
    """A wrong answer is never the best."""
    return not outcome.wrong, outcome.seconds


def show(outcomes: list[Outcome]) -> None:
    answered = sum(not one.refused for one in outcomes)
    print(f"\n{outcomes[0].hosts} host(s): {answered} of {len(outcomes)} answered")
    for one in outcomes:
        verdict = one.wrong or one.refused or "equal"
        print(
            f"  {one.query}  {one.seconds * 1000:8.1f} ms  plain {one.plain_seconds * 1000:8.1f} ms"
            f"  {verdict[:160]}"
        )
