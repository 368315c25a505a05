"""The pure parts of the drill: when it sends, how it counts, what it is held to."""

from __future__ import annotations

import os
import random
import time
from io import StringIO
from itertools import pairwise
from pathlib import Path

import pytest
from rich.console import Console

from accel_dask.drill.arrivals import arrivals, filled, percentile
from accel_dask.drill.loads import Seen
from accel_dask.drill.plot import plot
from accel_dask.drill.report import as_data, table
from accel_dask.drill.run_delay import (
    CpuWait,
    RunDelay,
    Waits,
    descendants,
    parse_schedstat,
    role_of,
)
from accel_dask.drill.verdicts import Attack, Limits, Measured, verdicts
from accel_dask.drill.workload import DASHBOARD, HEAVY, HOGS, LOOKUPS
from accel_dask.errors import ConfigError


def test_arrivals_are_those_of_independent_users() -> None:
    times = list(arrivals(30.0, 100.0, random.Random(7)))
    gaps = sorted(later - earlier for earlier, later in pairwise(times))
    assert times[0] == 0.0
    assert times[-1] < 100.0
    assert len(times) == pytest.approx(3000, rel=0.1)
    # Of an exponential distribution: median ln 2 / rate, and one gap in twenty above 3 / rate.
    assert gaps[len(gaps) // 2] == pytest.approx(0.693 / 30, rel=0.1)
    assert gaps[len(gaps) * 95 // 100] == pytest.approx(3.0 / 30, rel=0.15)


def test_arrivals_do_not_depend_on_the_answers() -> None:
    assert list(arrivals(5.0, 3.0, random.Random(1))) == list(arrivals(5.0, 3.0, random.Random(1)))


def test_every_statement_has_its_turn_and_all_its_values() -> None:
    for statements in (DASHBOARD, HEAVY, HOGS, LOOKUPS):
        asked = [filled(statements, number, random.Random(number)) for number in range(8)]
        assert not [sql for sql in asked if "{" in sql]
        assert asked[0].split()[:3] == asked[len(statements) % 8].split()[:3]


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([], 0.99, 0.0),
        ([5.0], 0.5, 5.0),
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        (list(range(100)), 0.99, 99),
        (list(range(1000)), 0.99, 990),
        (list(range(100)), 1.0, 99),
    ],
)
def test_percentiles_are_values_that_were_seen(
    values: list[float], share: float, expected: float
) -> None:
    assert percentile(values, share) == expected


def seen(p99: float, *, answered: int = 100, **fields: object) -> Seen:
    times = [float(i) / 10 for i in range(answered)]
    return Seen(seconds=10.0, latencies_ms=[p99] * answered, sent_at=times, **fields)  # type: ignore[arg-type]


def beside(attack: Attack, p99: float, **fields: object) -> Measured:
    return Measured(attack=attack, victim=seen(p99), alone=seen(10.0), **fields)  # type: ignore[arg-type]


def test_the_victims_p99_is_held_against_alone() -> None:
    (held,) = verdicts([beside(Attack.FLOOD, 12.9)], Limits())
    (missed,) = verdicts([beside(Attack.FLOOD, 13.1)], Limits())
    assert held.has_held
    assert not missed.has_held
    assert str(missed) == "NOT HELD: beside flood the victim's p99 is 1.31 x alone (<= 1.3 x)"


def test_alone_is_held_to_nothing() -> None:
    alone = Measured(attack=None, victim=seen(99.0), alone=seen(99.0))
    assert list(verdicts([alone], Limits())) == []


def test_the_noisy_tenant_must_keep_its_throughput() -> None:
    noisy = seen(900.0, answered=79), seen(900.0, answered=100)
    found = list(
        verdicts([beside(Attack.HEAVY, 10.0, noisy=noisy[0], noisy_alone=noisy[1])], Limits())
    )
    assert [v.has_held for v in found] == [True, False]
    assert "keeps 79%" in found[1].text


def test_a_failed_query_of_the_victim_is_never_forgiven() -> None:
    victim = seen(1.0, failures={"[TOO_MANY_QUERIES] no": 2})
    measured = Measured(attack=Attack.MEMORY, victim=victim, alone=seen(10.0))
    ratio, failed = verdicts([measured], Limits())
    assert ratio.has_held
    assert not failed.has_held
    assert "2 x [TOO_MANY_QUERIES] no" in failed.text


def test_a_victim_that_got_no_answer_at_all_has_not_held() -> None:
    measured = Measured(attack=Attack.FLOOD, victim=Seen(), alone=seen(10.0))
    assert not next(verdicts([measured], Limits())).has_held


def test_without_a_limit_only_failures_count() -> None:
    unbound = Limits(ratio=None)
    assert list(verdicts([beside(Attack.HEAVY, 500.0)], unbound)) == []


def test_the_kernel_tells_in_nanoseconds_who_ran_and_who_waited() -> None:
    assert parse_schedstat("1500000000 250000000 42\n") == CpuWait(1.5, 0.25)


def test_waits_are_told_longest_first() -> None:
    by_role = {"gateway": CpuWait(2.0, 0.1), "etcd": CpuWait(0.1, 1.0)}
    text = Waits(10.0, by_role, 0.25).text()
    assert text == (
        "waited for a core: etcd 100 ms/s (0.01 cores), gateway 10 ms/s (0.20 cores); "
        "other work 0.25 cores"
    )


def test_time_after_the_end_does_not_count() -> None:
    with RunDelay(lambda: (os.getpid(),), lambda: {os.getpid(): "this"}) as delay:
        sum(i * i for i in range(300_000))
    first = delay.waits()
    time.sleep(0.05)
    assert delay.waits() == first
    assert first.by_role["this"].cpu > 0


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("python -m flightsql_gateway --port 31337", "gateway"),
        ("dask worker --preload-nanny accel_dask.worker_plugin.preload_nanny", "host agent"),
        ("python -m accel_dask.drill.loads", "clients"),
        ("bash", None),
    ],
)
def test_processes_are_known_by_their_command_lines(command: str, role: str | None) -> None:
    assert role_of(command) == role


def test_the_processes_below_others_are_found(tmp_path: Path) -> None:
    for pid, parent in ((10, 1), (11, 10), (12, 11), (20, 1), (21, 20)):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a (b) c) S {parent} 0 0")
    (tmp_path / "30").mkdir()  # it has just ended
    (tmp_path / "self").mkdir()
    assert descendants((10,), tmp_path) == {10, 11, 12}
    assert descendants((11, 20), tmp_path) == {11, 12, 20, 21}


def measured_all() -> list[Measured]:
    alone = Measured(attack=None, victim=seen(10.0), alone=seen(10.0))
    heavy = beside(
        Attack.HEAVY, 12.0, noisy=seen(900.0, answered=30), noisy_alone=seen(900.0, answered=32)
    )
    return [alone, heavy, beside(Attack.FLOOD, 30.0), beside(Attack.REFRESH, 11.0, refreshes=4)]


def test_the_table_says_who_held() -> None:
    console = Console(width=140, record=True, file=StringIO())
    console.print(table(measured_all(), Limits()))
    text = console.export_text()
    assert "1.20 x" in text
    assert "keeps 94%" in text
    assert "4 refreshes" in text


def test_the_figures_are_there_for_machines_too() -> None:
    data = as_data(measured_all(), Limits(), rows=1000)
    assert [one["attack"] for one in data["measured"]] == [None, "heavy", "flood", "refresh"]
    assert [v["has_held"] for v in data["verdicts"]] == [True, True, False, True]
    assert data["measured"][1]["victim"]["p99_ms"] == 12.0


@pytest.mark.parametrize("kind", ["png", "svg"])
def test_a_picture_is_written(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "pictures" / f"drill.{kind}"
    plot(measured_all(), Limits(), file, "a machine")
    start = file.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if kind == "png" else b"<svg" in start or b"<?xml" in start


def test_a_picture_of_an_unknown_kind_is_refused_before_the_drill() -> None:
    with pytest.raises(ConfigError, match=r"must end in \.png"):
        plot(measured_all(), Limits(), Path("drill.txt"))
