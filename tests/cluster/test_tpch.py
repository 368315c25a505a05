"""The 22 TPC-H queries through ADBC: each as plain DuckDB answers it, or refused with a reason."""

from __future__ import annotations

from typing import Final

import pytest
from tpch_run import Outcome, run, show

pytestmark = pytest.mark.cluster

AT_LEAST: Final = 18


def check(outcomes: list[Outcome], at_least: int) -> None:
    show(outcomes)
    assert [one for one in outcomes if one.wrong] == []
    assert sum(not one.refused for one in outcomes) >= at_least


def test_one_host_answers_tpch_as_plain_duckdb_does() -> None:
    check(run(hosts=1, scale=0.1), AT_LEAST)


@pytest.mark.parametrize("hosts", [2, 4])
def test_spread_facts_answer_tpch_as_plain_duckdb_does(hosts: int) -> None:
    check(run(hosts, scale=0.1), AT_LEAST)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_facts_that_are_mostly_cold_answer_tpch_as_plain_duckdb_does() -> None:
    check(run(2, scale=0.1, hot_shards=4), AT_LEAST)


@pytest.mark.chaos
@pytest.mark.timeout(900)
@pytest.mark.parametrize("hosts", [1, 2, 4])
def test_tpch_at_scale_one_answers_as_plain_duckdb_does(hosts: int) -> None:
    check(run(hosts, scale=1), AT_LEAST)
