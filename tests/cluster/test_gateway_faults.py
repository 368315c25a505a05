"""Executors that are killed or hang while a gateway's queries run on them."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from freezing import frozen
from pyarrow import flight
from spread_site import SALES, SpreadSite

from accel_dask.errors import AccelError, DeadlineExceeded, ExecutorUnavailable
from accel_dask.flight_errors import FLIGHT_FAILURES, from_flight
from accel_dask.model.tenant import MIB, Quota
from accel_dask.worker_plugin.running_executor import RunningExecutor
from flightsql_gateway.flight_sql import messages

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

DEADLINE_SECONDS = 20.0
WELL_BEFORE_SECONDS = 6.0
WHOLE = "select count(*) as n, max(id) as last from sales where id >= 21000 and store >= {n}"
SPREAD = "select count(*) as n, max(id) as last, min(id) as first from sales where store >= {n}"
PAIRS = (
    "select count(*) as n from sales a, sales b where a.id >= 21000 and b.id >= 21000 "
    "and a.ratio + b.ratio > 1 and a.code <> b.code and a.store >= {n}"
)
"""Some hundred milliseconds, on one executor."""
SPREAD_PAIRS = (
    "select count(*) as n from sales a, sales b where a.store = 1 and b.store < 5 "
    "and a.ratio + b.ratio > 1 and a.code <> b.code and a.id % 5 <> {n}"
)
"""As `PAIRS`, gathered from all."""
LONG = (
    "select a.id, b.label, c.store as other, a.code, a.tag "
    "from sales a, stores b, stores c where a.id >= 21000"
)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SpreadSite]:
    quota = Quota(
        executor_memory_bytes=192 * MIB,
        threads=1,
        deadline_ms=int(DEADLINE_SECONDS * 1000),
        max_cpu_ms=60_000,
    )
    site = SpreadSite(tmp_path, quota)
    yield site
    site.close()


def hung(executor: RunningExecutor) -> AbstractContextManager[None]:
    return frozen(executor.pid)


@contextmanager
def killed(executor: RunningExecutor) -> Iterator[None]:
    os.kill(executor.pid, signal.SIGKILL)
    yield
    assert executor.wait_ended(5)


Harm = Callable[[RunningExecutor], AbstractContextManager[None]]


def in_flight(executor: RunningExecutor) -> int:
    with flight.connect(executor.address) as client:
        [answer] = client.do_action("ping")
        return int(json.loads(answer.body.to_pybytes())["in_flight"])


class Asked:
    """A query on a thread of its own."""

    def __init__(self, site: SpreadSite, sql: str) -> None:
        self.table: pa.Table | None = None
        self.error: AccelError | None = None
        self.seconds = 0.0
        self._site, self._sql = site, sql
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        started = time.monotonic()
        try:
            self.table = self._site.ask(self._sql)
        except FLIGHT_FAILURES as error:
            self.error = from_flight(error)
        self.seconds = time.monotonic() - started

    def end(self) -> Asked:
        self._thread.join(DEADLINE_SECONDS + 5)
        assert not self._thread.is_alive()
        return self


def working(executors: list[RunningExecutor], seconds: float = 10.0) -> RunningExecutor:
    """The first of `executors` that works on something."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for executor in executors:
            if in_flight(executor):
                return executor
    raise AssertionError("none of them worked on anything")


def check(site: SpreadSite, sql: str, asked: Asked) -> None:
    assert asked.error is None, asked.error
    assert asked.table is not None
    expected = site.plain.execute(sql).fetchall()
    assert [tuple(row.values()) for row in asked.table.to_pylist()] == expected
    assert asked.seconds < WELL_BEFORE_SECONDS


# Before the first batch: always answered, where another has the same.


@pytest.mark.parametrize("sql", [WHOLE, SPREAD], ids=["whole", "spread"])
def test_an_executor_that_hangs_is_overtaken_whatever_its_part(site: SpreadSite, sql: str) -> None:
    site.ask("select 1 as x from sales limit 1")
    with hung(site.executors["w2"]):
        for n in range(5):  # each prefers another executor
            text = sql.format(n=n)
            check(site, text, Asked(site, text).end())
    receipt = site.receipt()
    assert receipt["outcome"] == "OK"


@pytest.mark.parametrize("harm", [killed, hung], ids=["killed", "hung"])
@pytest.mark.parametrize("sql", [PAIRS, SPREAD_PAIRS], ids=["whole", "spread"])
def test_a_query_whose_executor_fails_while_it_works_is_answered_by_another(
    site: SpreadSite, sql: str, harm: Harm
) -> None:
    pair = [site.executors["w2"], site.executors["w3"]]
    text = sql.format(n=0)
    asked = Asked(site, text)
    victim = working(pair)
    with harm(victim):
        check(site, text, asked.end())
    receipt = site.receipt()
    alternatives = sum(part["alternatives"] for part in receipt["parts"])
    assert receipt["retries"] + alternatives >= 1


def test_a_query_that_only_a_hung_executor_can_answer_fails_before_its_deadline(
    site: SpreadSite,
) -> None:
    with hung(site.executors["w1"]):
        asked = Asked(site, "select count(*) as n from sales where id < 9000").end()
    assert isinstance(asked.error, ExecutorUnavailable)
    assert "does not answer" in str(asked.error)
    assert asked.seconds < DEADLINE_SECONDS / 2


ENDLESS = {
    "whole": (
        "select count(*) from sales a, sales b, stores c, stores d where a.id >= 21000 "
        "and b.id >= 21000 and a.ratio + b.ratio + c.store + d.store < -1"
    ),
    "spread": "select count(*) from sales a, sales b, stores c where a.ratio + b.ratio < -c.store",
}


@pytest.mark.parametrize("sql", ENDLESS.values(), ids=ENDLESS)
def test_at_its_deadline_a_query_ends_for_its_client_and_for_the_cpu(
    site: SpreadSite, sql: str
) -> None:
    started = time.monotonic()
    kind, told = site.refusal(sql, {"x-accel-deadline-ms": "300"})
    assert time.monotonic() - started < 2.5
    assert (kind, "300 ms" in told) == (DeadlineExceeded, True)
    deadline = time.monotonic() + 2
    while any(in_flight(executor) for executor in site.executors.values()):
        assert time.monotonic() < deadline
    pids = [executor.pid for executor in site.executors.values()]
    used = sum(map(cpu_ns, pids))
    time.sleep(0.3)
    assert sum(map(cpu_ns, pids)) - used < 0.1e9
    assert site.receipt()["outcome"] == "DEADLINE_EXCEEDED"


def cpu_ns(pid: int) -> int:
    """CPU time of another process (see clock_getcpuclockid(3))."""
    return time.clock_gettime_ns((~pid << 3) | 2)


# After it: a clear error, soon.


@pytest.mark.parametrize("harm", [killed, hung], ids=["killed", "hung"])
def test_an_answer_that_breaks_off_is_a_clear_error_and_soon(site: SpreadSite, harm: Harm) -> None:
    client, options = site.client()
    command = messages.wrap(messages.new("CommandStatementQuery", query=f"{LONG} and c.store < 5"))
    reader = client.do_get(flight.Ticket(command), options)
    assert reader.read_chunk().data.num_rows
    victim = working([site.executors["w2"], site.executors["w3"]])
    started = time.monotonic()
    broken = (flight.FlightError, pa.ArrowException, OSError)
    with harm(victim), pytest.raises(broken) as failed:
        reader.read_all()
    error = from_flight(failed.value)
    assert isinstance(error, ExecutorUnavailable)
    assert "in the middle of the answer; send the query again" in str(error)
    assert time.monotonic() - started < WELL_BEFORE_SECONDS
    client.close()


# Epochs.


def test_a_spread_query_sees_one_epoch_while_epochs_change_under_it(site: SpreadSite) -> None:
    versions = f"select *, {{v}} as version from ({SALES})"
    site.serve(versions.format(v=10), 10)
    sql = "select count(*), min(version), max(version), sum(id) from sales where store >= 0"
    seen: list[tuple[int, ...]] = []
    errors: list[AccelError] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            try:
                seen.append(tuple(next(iter(site.ask(sql).to_pylist())).values()))
            except FLIGHT_FAILURES as error:
                errors.append(from_flight(error))

    site.wait_routed()
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in range(11, 14):
        before = dict(site.executors)
        site.serve(versions.format(v=version), version)
        site.wait_routed()
        for executor in before.values():
            executor.drain(5)
        for executor in before.values():
            assert executor.wait_ended(10)
        deadline = time.monotonic() + 10
        while not any(one[1] == version for one in seen):
            assert time.monotonic() < deadline
            assert not errors
            time.sleep(0.005)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert errors == []
    assert {one[1] for one in seen} >= {11, 12, 13}
    total = sum(range(30_000))
    assert all(one == (30_000, one[1], one[1], total) for one in seen)
