"""Random queries over random tables, cut at random over executors, answer as plain DuckDB does.

Executors are simulated (see `planner_spread_world`), so that there can be many queries; the same
writer's queries go through a whole cluster in `test_distributed_queries`.
`ACCEL_RANDOM_SPREAD_QUERIES` says how many, `ACCEL_RANDOM_SEED` which.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import duckdb
import pyarrow as pa
import pytest
from answers import difference, plain_answer, to_answer
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from planner_spread_world import ACME, MAY_ANSWER, SpreadWorld, cooled, world_of
from random_queries import DrawnChoices, QueryWriter, RandomQuery, World, make_world

from accel_dask.errors import QueryError

QUERIES: Final = int(os.environ.get("ACCEL_RANDOM_SPREAD_QUERIES", "2000"))
SEED: Final = int(os.environ.get("ACCEL_RANDOM_SEED", "1"))
BATCHES: Final = 20
"""Each in a world of its own."""
KNOWN: Final = frozenset(["id", "k", "n", "d", "s", "moment", "m"])
"""Columns that have statistics."""
REFUSED: Final = "refused"
ROLLUP: Final = "from a rollup"
ASKED: Final[Counter[str]] = Counter()
"""What all batches needed."""

pytestmark = pytest.mark.timeout(120 + QUERIES // 4)


@pytest.fixture(scope="module")
def plain() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as plain:
        yield plain


def spread(plain: duckdb.DuckDBPyConnection, number: int) -> tuple[SpreadWorld, World]:
    """A random world of its own, on two to four executors; of each second one parts are cold."""
    seed = SEED * 10_000 + number
    draw = random.Random(seed)
    world = make_world(plain, f"w{number}", seed)
    whole = {layout.table for layout in world.layouts if layout.spread == "everywhere"}
    cuts = {layout.table: _cut(plain, layout.table, layout.split_by) for layout in world.layouts}
    if len(cuts[world.table("fact")]) < 3:  # then nothing would be spread
        cuts[world.table("fact")] = _cut(plain, world.table("fact"), "id % 5")
    for layout in world.layouts:
        cuts[layout.table] += [cuts[layout.table][0].slice(0, 0)] * layout.empty
    rollups = {world.table("fact"): world.rollups}
    simulated = world_of(draw, plain, cuts, whole, draw.choice([2, 3, 4]), KNOWN, rollups)
    return cooled(simulated, seed) if number % 2 else simulated, world


def _cut(plain: duckdb.DuckDBPyConnection, table: str, split_by: str) -> list[pa.Table]:
    by = split_by or "0"
    values = plain.sql(f"SELECT DISTINCT {by} FROM {table} ORDER BY 1").fetchall()
    parts = [
        plain.sql(
            f"FROM {table} WHERE {by} IS NOT DISTINCT FROM ?", params=[value]
        ).to_arrow_table()
        for (value,) in values
    ]
    return parts or [plain.sql(f"FROM {table}").to_arrow_table()]


@st.composite
def _queries(draw: st.DrawFn) -> RandomQuery:
    """For a world that is called `WORLD`: all have tables of the same columns."""
    return QueryWriter(DrawnChoices(draw), World("WORLD", (), ())).query()


@pytest.mark.parametrize("batch", range(BATCHES))
def test_random_queries_over_simulated_executors(
    plain: duckdb.DuckDBPyConnection, batch: int
) -> None:
    simulated, world = spread(plain, batch)
    kinds: Counter[str] = Counter()

    @seed(SEED * BATCHES + batch)
    @settings(
        max_examples=QUERIES // BATCHES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(_queries())
    def ask(query: RandomQuery) -> None:
        sql = query.sql.replace("WORLD_", f"{world.prefix}_")
        try:
            kinds.update(check(simulated, replace(query, sql=sql)))
        except AssertionError as error:
            raise AssertionError(f"{sql}\n{error}") from error

    try:
        ask()
    finally:
        simulated.sharded.close()
    print(batch, dict(kinds))
    ASKED.update(kinds)
    assert kinds[REFUSED] <= QUERIES // BATCHES // 10
    routes = simulated.context.routing.datasets_of(ACME)
    shards = {
        attached for route in routes for one in route.executors for attached in one.attachments
    }
    is_whole = any(shards <= one.attachments for route in routes for one in route.executors)
    assert is_whole or sum(kinds.values()) > kinds[REFUSED]


def test_many_of_them_were_answered_from_rollups() -> None:
    assert not ASKED or ASKED[ROLLUP] > QUERIES // 100


def check(simulated: SpreadWorld, query: RandomQuery) -> list[str]:
    """Ask both; what was moved between executors, or `REFUSED`."""
    try:
        expected = plain_answer(simulated.plain, query.sql)
    except MAY_ANSWER:
        return [REFUSED]
    except duckdb.Error:
        # The writer does not know all that DuckDB does not do.
        with pytest.raises((duckdb.Error, QueryError)):
            simulated.relation(simulated.plan(query.sql)).fetchall()
        return [REFUSED]
    try:
        plan = simulated.plan(query.sql)
    except QueryError:
        return [REFUSED]
    assert "of an error" not in str(plan.rollups), plan.rollups
    fragment = plan.fragments[0]
    try:
        found = to_answer(simulated.relation(plan).to_arrow_table())
    except duckdb.Error as error:
        raise AssertionError(f"{error}\n{fragment.sql}") from error
    wrong = difference(expected, found, query.order)
    assert not wrong, f"{wrong}\n{fragment.sql}"
    moved = [one.because.split(": ")[1].split(" of ")[0] for one in fragment.inputs]
    return moved + [ROLLUP for used in plan.datasets if used.rollup]
