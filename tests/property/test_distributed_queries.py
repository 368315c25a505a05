"""Random queries over random tables, spread at random over executors, some of their shards in no
executor's memory, answer as plain DuckDB does.

`ACCEL_RANDOM_QUERIES` says how many (make test: few), `ACCEL_RANDOM_SEED` which, and
`ACCEL_RANDOM_HOSTS` on how many hosts.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import duckdb
import pytest
from answers import (
    Answer,
    Refused,
    difference,
    gateway_client,
    hosts_of,
    plain_answer,
    publish_all,
)
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from random_queries import (
    Choices,
    DrawnChoices,
    QueryWriter,
    RandomQuery,
    World,
    as_loaded,
    make_world,
)
from sqllogic_runner import lay_out

from accel_dask.flight_client import FlightSession
from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.dataset import ColdPolicy
from accel_dask.model.rollup import parse_rollup
from accel_dask.model.tenant import MIB, Quota

QUERIES: Final = int(os.environ.get("ACCEL_RANDOM_QUERIES", "300"))
SEED: Final = int(os.environ.get("ACCEL_RANDOM_SEED", "1"))
HOSTS: Final = int(os.environ.get("ACCEL_RANDOM_HOSTS", "3"))
WORLDS: Final = 4
MAY_REFUSE: Final = 0.1
"""Share of the queries."""

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120 + QUERIES // 4)]

Run = Callable[[str], Answer]


@dataclass
class Subject:
    """Where queries go, what is right, and how it went."""

    run: Run
    plain: duckdb.DuckDBPyConnection
    worlds: tuple[World, ...]
    receipts: Callable[[], list[dict[str, Any]]]
    answered: int = 0
    with_rows: int = 0
    refused: Counter[str] = field(default_factory=Counter)

    def check(self, query: RandomQuery) -> None:
        """Ask both; raise if the answers differ."""
        try:
            found = self.run(query.sql)
        except Refused as refusal:
            if not refusal.is_by_design and self._is_answered_by_plain(query):
                raise AssertionError(f"plain DuckDB answers this: {query.sql}") from refusal
            self.refused[str(refusal)[:120]] += 1
            return
        expected = plain_answer(self.plain, query.sql)
        told = difference(expected, found, query.order)
        assert not told, f"{told}\n{query.sql}"
        self.answered += 1
        self.with_rows += bool(expected.rows)

    def _is_answered_by_plain(self, query: RandomQuery) -> bool:
        try:
            plain_answer(self.plain, query.sql)
        except duckdb.Error:
            return False
        return True

    def from_rollups(self) -> int:
        """Of the newest thousand queries, how many were answered from a rollup."""
        return sum(any(one["rollup"] for one in r["datasets"]) for r in self.receipts())

    def from_files(self) -> int:
        """Of the newest thousand queries, how many read shards cold."""
        return sum("cold" in r["route"] for r in self.receipts())

    def show(self) -> None:
        refused = sum(self.refused.values())
        print(
            f"\n{HOSTS} host(s), seed {SEED}: {self.answered} answered as plain DuckDB does "
            f"({self.with_rows} with rows), {refused} refused; of the last thousand "
            f"{self.from_rollups()} from rollups, {self.from_files()} read shards cold"
        )
        for reason, count in self.refused.most_common(20):
            print(f"  {count:5} {reason}")


def residency(table: str) -> dict[str, Any]:
    """Which part of a table is in memory: fields of its dataset."""
    draw = random.Random(f"{SEED} {table}")
    if draw.random() < 0.3:
        return {}
    return {"cold": ColdPolicy.ALLOW, "hot_shards": draw.choice([None, 0, 1, 2, 4])}


@contextmanager
def on_a_cluster(directory: Path) -> Iterator[Subject]:
    """Random worlds, published to one tenant of a real cluster."""
    with (
        duckdb.connect(config={"threads": 1}) as plain,
        LocalAccelCluster(LocalOptions(workers=HOSTS)) as cluster,
    ):
        quota = Quota(executor_memory_bytes=256 * MIB, memory_bytes_per_host=512 * MIB)
        token = cluster.create_tenant("random", quota)
        worlds = tuple(make_world(plain, f"w{i}", SEED * 1000 + i) for i in range(WORLDS))
        publish_all(
            cluster,
            (
                replace(
                    lay_out(plain, "random", layout, directory / layout.table),
                    **(residency(layout.table) if number else {}),
                    replicas=replicas,
                    rollups=tuple(map(parse_rollup, world.rollups))
                    if layout.table == world.table("fact")
                    else (),
                )
                for number, world in enumerate(worlds)
                for layout, replicas in zip(world.layouts, world.replicas, strict=True)
            ),
        )
        facts = [world.table("fact") for world in worlds]
        used = max(len(hosts_of(cluster, "random", fact)) for fact in facts)
        assert used == HOSTS, f"all facts are on {used} of {HOSTS} hosts: nothing is distributed"
        for world in worlds:
            as_loaded(plain, world)
        with (
            gateway_client(cluster, "random", token) as client,
            FlightSession(cluster.gateway_urls[0], "random", token) as session,
        ):
            yield Subject(client.ask, plain, worlds, lambda: session.receipts(1000))


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    with on_a_cluster(tmp_path_factory.mktemp("random")) as subject:
        yield subject


@st.composite
def _queries(draw: st.DrawFn) -> Callable[[tuple[World, ...]], RandomQuery]:
    """Written once the worlds are known, by the choices made here."""
    choose: Choices = DrawnChoices(draw)
    number = draw(st.integers(0, WORLDS - 1))
    # All worlds have tables of the same columns: the query is written for a name only.
    query = QueryWriter(choose, World("WORLD", (), ())).query()
    return lambda worlds: replace(
        query, sql=query.sql.replace("WORLD_", f"{worlds[number].prefix}_")
    )


def test_random_queries_answer_as_plain_duckdb_does(subject: Subject) -> None:
    @seed(SEED)
    @settings(
        max_examples=QUERIES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(_queries())
    def ask(write: Callable[[tuple[World, ...]], RandomQuery]) -> None:
        subject.check(write(subject.worlds))

    try:
        ask()
    finally:
        subject.show()
    total = subject.answered + sum(subject.refused.values())
    assert subject.answered >= (1 - MAY_REFUSE) * total
    assert subject.from_rollups() > min(total, 1000) // 100
    assert subject.from_files() > min(total, 1000) // 100
