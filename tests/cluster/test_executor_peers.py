"""Executors of one tenant that answer one query together: real processes, killed, stopped, full."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from executor_builders import (
    EPOCH,
    KEY,
    ROWS,
    SALES,
    make_input,
    make_shard,
    make_source,
    make_spec,
    make_ticket,
    signed,
)
from freezing import freeze
from pyarrow import flight

from accel_dask.codec import encode
from accel_dask.errors import (
    AccelError,
    DeadlineExceeded,
    ExecutorUnavailable,
    InvalidQuery,
    InvariantViolated,
    MemoryLimit,
    RowLimit,
    StaleEpoch,
    Unauthenticated,
)
from accel_dask.flight_errors import FLIGHT_FAILURES, from_flight
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import MIB, Quota
from accel_dask.model.ticket import Cancellation, EpochToken, Source, shard_relation, sign
from accel_dask.ticket_calls import Connections
from accel_dask.ticket_stream import FrameKind, read_error
from accel_dask.worker_plugin.executors import ExecutorHost
from accel_dask.worker_plugin.running_executor import RunningExecutor

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(90)]

SHARDS = 3
COLUMNS = (
    "*, id * 1000000007::HUGEINT AS big, "
    "CASE WHEN id % 7 = 0 THEN NULL WHEN id % 11 = 0 THEN 'nan'::DOUBLE ELSE id / 3 END AS x, "
    "md5(id::VARCHAR)::UUID AS u, [id, NULL] AS l, {'a': id, 'b': code} AS s, "
    "TIMESTAMPTZ '2024-01-01 00:00:00+00' + to_seconds(id) AS ts, (id / 7)::DECIMAL(18, 4) AS d"
)
ALL_ROWS = f"SELECT {COLUMNS} FROM ({SALES})"
PARTIAL = (
    "SELECT store, count(*) AS n, count(x) AS nx, sum(big) AS big, sum(d) AS d, min(u) AS u, "
    "max(ts) AS ts FROM {t} GROUP BY store"
)
MERGE = (
    "SELECT store, sum(n)::BIGINT AS n, sum(nx)::BIGINT AS nx, sum(big) AS big, sum(d) AS d, "
    'min(u) AS u, max(ts) AS ts FROM ({own} UNION ALL SELECT * FROM "input_0") '
    "GROUP BY store ORDER BY store"
)
COUNT = "SELECT count(*) AS n FROM {t}"
SUM_COUNT = 'SELECT sum(n)::BIGINT AS n FROM ({own} UNION ALL SELECT * FROM "input_0")'
ROWS_OF = "SELECT a.*, repeat('y', 100) AS y FROM {t} a, range(3)"
ENDLESS = (
    "SELECT count(*) AS n FROM range(1000000) a, range(1000000) b WHERE a.range + b.range % 9 = 7"
)


class Site:
    """A host with the executors of one tenant, each with another third of the rows."""

    def __init__(self, directory: Path) -> None:
        self.shard_dir = directory / "shards"
        self.shard_dir.mkdir(parents=True)
        self.shards = [
            make_shard(self.shard_dir, f"SELECT * FROM ({ALL_ROWS}) WHERE id % {SHARDS} = {i}")
            for i in range(SHARDS)
        ]
        self.host = ExecutorHost(directory / "run", ping_seconds=1.0, hung_seconds=30.0)
        self.executors: list[RunningExecutor] = []
        self._generation = 0

    def launch(self, *shards: int, **overrides: Any) -> RunningExecutor:
        """One more executor, with these shards."""
        self._generation += 1
        fields = {"generation": self._generation, "quota": Quota()} | overrides
        ids = [self.shards[number] for number in shards]
        return self.host.launch(make_spec(self.shard_dir, *ids, **fields))

    def executor(self, number: int) -> RunningExecutor:
        """The one that has shard `number`; a new one if it was killed."""
        while len(self.executors) < SHARDS:
            self.executors.append(self.launch(len(self.executors)))
        if self.executors[number].has_ended:
            self.executors[number] = self.launch(number)
        return self.executors[number]

    def table(self, shard: int) -> str:
        return shard_relation(self.shards[shard])

    def source(
        self, shard: int, sql: str, at: RunningExecutor | None = None, **overrides: Any
    ) -> Source:
        asked = at or self.executor(shard)
        return make_source(
            asked.address,
            sql.format(t=self.table(shard)),
            self.shards[shard],
            ticket_port=asked.ticket_port,
            **overrides,
        )

    def ticket(
        self, partial: str, merge: str, *, pieces: Any = None, own: int = 0, **overrides: Any
    ) -> flight.Ticket:
        """A query for the executor of shard `own`; its inputs are all others by default."""
        if pieces is None:
            pieces = [self.source(n, partial) for n in range(SHARDS) if n != own]
        limits = {k: overrides.pop(k) for k in ("max_rows", "max_bytes") if k in overrides}
        sql = merge.format(own=partial.format(t=self.table(own)))
        inputs = (make_input(*pieces, **limits),)
        return signed(make_ticket(sql, self.shards[own], inputs=inputs, **overrides))

    def ask(self, *ticket: Any, own: int = 0, **overrides: Any) -> pa.Table:
        return ask(self.executor(own), self.ticket(*ticket, own=own, **overrides))


def ask(executor: RunningExecutor, ticket: flight.Ticket) -> pa.Table:
    with flight.connect(executor.address) as client:
        try:
            return client.do_get(ticket).read_all()
        except FLIGHT_FAILURES as error:
            _check_clean(str(error))
            raise from_flight(error) from error


def _check_clean(text: str) -> None:
    for inside in ("Traceback", "site-packages", "127.0.0.1", "grpc://", '"s_', ".duckdb"):
        assert inside not in text


def until(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "the condition did not come to hold"
        time.sleep(0.002)
    return time.monotonic() - started


def in_flight(executor: RunningExecutor) -> int:
    with flight.connect(executor.address) as client:
        [answer] = client.do_action("ping")
        return int(json.loads(answer.body.to_pybytes())["in_flight"])


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    built = Site(tmp_path_factory.mktemp("host"))
    built.host.start()
    yield built
    built.host.close()


@pytest.fixture(autouse=True)
def _nothing_is_left_under_way(site: Site) -> Iterator[None]:
    yield
    for executor in site.executors:
        if not executor.has_ended:
            until(lambda executor=executor: in_flight(executor) == 0)


@pytest.fixture(scope="module")
def plain() -> Iterator[Callable[[str], list[Any]]]:
    """All rows in one plain DuckDB."""
    with duckdb.connect(":memory:") as database:
        database.execute("SET TimeZone = 'UTC'")
        database.execute(f"CREATE TABLE t AS {ALL_ROWS}")
        yield lambda sql: database.sql(sql).to_arrow_table().to_pylist()


Plain = Callable[[str], list[Any]]

# Answers.


@pytest.mark.parametrize("own", range(SHARDS))
def test_merged_partials_equal_plain_duckdb(site: Site, plain: Plain, own: int) -> None:
    wanted = plain(PARTIAL.format(t="t").replace("GROUP BY store", "GROUP BY store ORDER BY store"))
    found = site.ask(PARTIAL, MERGE, own=own)
    assert found.to_pylist() == wanted
    assert found.num_rows == 100


def test_gathered_rows_equal_plain_duckdb_to_the_last_type(site: Site, plain: Plain) -> None:
    sql = "SELECT * REPLACE (x::VARCHAR AS x), typeof(big) || typeof(u) || typeof(s) AS k FROM {t}"
    wanted = plain(sql.format(t="t WHERE id < 2000 ORDER BY id"))
    merge = (
        "SELECT * REPLACE (x::VARCHAR AS x), typeof(big) || typeof(u) || typeof(s) AS k "
        'FROM ({own} UNION ALL SELECT * FROM "input_0") ORDER BY id'
    )
    found = site.ask("SELECT * FROM {t} WHERE id < 2000", merge)
    assert found.to_pylist() == wanted


def test_rows_come_in_the_order_of_the_pieces(site: Site) -> None:
    part = "SELECT id FROM {t} ORDER BY id"
    pieces = [site.source(n, part) for n in (2, 1, 0)]
    found = site.ask(part, 'SELECT id FROM "input_0"', pieces=pieces)
    by_shard = [list(range(n, ROWS, SHARDS)) for n in (2, 1, 0)]
    assert found["id"].to_pylist() == [*by_shard[0], *by_shard[1], *by_shard[2]]


def test_an_executor_may_ask_itself(site: Site) -> None:
    pieces = [site.source(n, COUNT) for n in range(SHARDS)]
    found = site.ask(COUNT, 'SELECT sum(n)::BIGINT AS n FROM "input_0"', pieces=pieces)
    assert found.to_pylist() == [{"n": ROWS}]


def test_a_peer_without_a_port_for_tickets_is_asked_by_flight(site: Site) -> None:
    sources = [replace(site.source(n, PARTIAL), ticket_port=0) for n in (1, 2)]
    assert site.ask(PARTIAL, MERGE, pieces=sources).equals(site.ask(PARTIAL, MERGE))
    mixed = [sources[0], site.source(2, PARTIAL)]
    assert site.ask(PARTIAL, MERGE, pieces=mixed).equals(site.ask(PARTIAL, MERGE))


def test_an_executor_checks_a_part_that_comes_in_a_frame_like_any_ticket(site: Site) -> None:
    peer = site.executor(1)
    good = site.source(1, COUNT)
    connections = Connections()
    for ticket, expected in (
        (b"x" * 32 + good.ticket[32:], Unauthenticated),
        (b"", Unauthenticated),
        (good.ticket[:-1], Unauthenticated),
        (site.source(1, COUNT, expires_at_ms=1).ticket, StaleEpoch),
        (site.source(1, COUNT, tenant=TenantId("rival")).ticket, StaleEpoch),
    ):
        call = connections.idle(peer) or connections.connect(peer)
        assert call.send_now(FrameKind.PART, ticket)
        with pytest.raises(expected):
            raise read_error(call.read().payload)
        call.close()
    connections.close()


def test_many_pieces_are_fetched_at_once(site: Site) -> None:
    nap = "SELECT count(*) AS n FROM {t}"
    pieces = [site.source(n % SHARDS, nap) for n in range(24)]
    found = site.ask(nap, 'SELECT count(*) AS n FROM "input_0"', pieces=pieces)
    assert found.to_pylist() == [{"n": 24}]


def test_describing_gives_the_schema_of_the_answer(site: Site) -> None:
    pieces = [site.source(n, PARTIAL, describe_only=True) for n in (1, 2)]
    described = site.ask(PARTIAL, MERGE, pieces=pieces, describe_only=True)
    assert described.num_rows == 0
    assert described.schema == site.ask(PARTIAL, MERGE).schema


def test_the_answer_tells_what_was_fetched_for_it(site: Site) -> None:
    told: list[Any] = []

    class Listener(flight.ClientMiddleware):
        def received_headers(self, headers: Any) -> None:
            told.extend(headers.get("accel-measured", []))

    class Listeners(flight.ClientMiddlewareFactory):
        def start_call(self, info: Any) -> Listener:
            return Listener()

    with flight.FlightClient(site.executor(0).address, middleware=[Listeners()]) as client:
        client.do_get(site.ticket(COUNT, SUM_COUNT)).read_all()
    [measured] = [json.loads(each) for each in told]
    assert (measured["gathered_rows"], measured["gathered_bytes"]) == (2, 16)
    assert measured["rows"] == 1
    assert {part["address"] for part in measured["parts"]} == {
        site.executor(1).address,
        site.executor(2).address,
    }
    for part in measured["parts"]:
        assert (part["rows"], part["bytes"], part["alternatives"]) == (1, 8, 0)
        assert 0 < part["cpu_ms"] < 1000
        assert part["ms"] > 0
    assert 0 < measured["cpu_ms"] < 1000


# Peers that die, hang, or are of another time.


def test_a_dead_peer_is_replaced_by_the_next_that_has_its_part(site: Site) -> None:
    dead, spare = site.launch(1), site.launch(1)
    os.kill(dead.pid, signal.SIGKILL)
    assert dead.wait_ended(5)
    alternatives = (site.source(1, PARTIAL, dead), site.source(1, PARTIAL, spare))
    pieces = [alternatives, site.source(2, PARTIAL)]
    assert site.ask(PARTIAL, MERGE, pieces=pieces).equals(site.ask(PARTIAL, MERGE))
    spare.kill()


def test_without_another_a_dead_peer_is_an_error_that_names_no_address(site: Site) -> None:
    dead = site.launch(1)
    os.kill(dead.pid, signal.SIGKILL)
    assert dead.wait_ended(5)
    pieces = [site.source(1, PARTIAL, dead), site.source(2, PARTIAL)]
    started = time.monotonic()
    with pytest.raises(ExecutorUnavailable, match="another executor of tenant acme"):
        site.ask(PARTIAL, MERGE, pieces=pieces)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("spares", [0, 1])
def test_a_peer_killed_at_any_moment_gives_a_whole_answer_or_an_error(
    site: Site, spares: int
) -> None:
    turn = random.Random(spares)
    merge = 'SELECT count(*) AS n, sum(id)::BIGINT AS s FROM "input_0"'
    spare = site.launch(1)
    outcomes: list[str] = []
    for _ in range(12):
        victim = site.launch(1)
        alternatives = [site.source(1, ROWS_OF, victim)]
        alternatives += [site.source(1, ROWS_OF, spare)] * spares
        ticket = site.ticket(
            ROWS_OF,
            merge,
            pieces=[tuple(alternatives), site.source(2, ROWS_OF)],
            max_bytes=100 * MIB,
        )
        delay = turn.uniform(0, 0.25)
        killer = threading.Timer(delay, os.kill, (victim.pid, signal.SIGKILL))
        killer.start()
        try:
            [row] = ask(site.executor(0), ticket).to_pylist()
        except ExecutorUnavailable:
            outcomes.append("error")
        else:
            ids = [i for i in range(ROWS) if i % 3]
            assert row == {"n": 3 * len(ids), "s": 3 * sum(ids)}
            outcomes.append("whole")
        killer.join()
        assert victim.wait_ended(5)
    if spares:
        assert outcomes == ["whole"] * 12
    else:
        assert "error" in outcomes
    spare.kill()


@pytest.mark.parametrize("sql", [COUNT, ROWS_OF], ids=["before the first batch", "at any time"])
def test_a_stopped_peer_is_replaced_by_the_next(site: Site, sql: str) -> None:
    stopped = site.launch(1)
    merge = 'SELECT count(*) AS n FROM "input_0"'
    alternatives = (site.source(1, sql, stopped), site.source(1, sql))
    wanted = site.ask(sql, merge, pieces=[site.source(1, sql)], max_bytes=100 * MIB)
    ticket = site.ticket(sql, merge, pieces=[alternatives], max_bytes=100 * MIB)
    if sql is COUNT:
        freeze(stopped.pid)
    else:
        threading.Timer(0.05, freeze, (stopped.pid,)).start()
    started = time.monotonic()
    assert ask(site.executor(0), ticket) == wanted
    assert time.monotonic() - started < 4
    stopped.kill()


@pytest.mark.parametrize("is_connected", [True, False])
def test_a_stopped_peer_without_another_is_an_error_in_time(site: Site, is_connected: bool) -> None:
    stopped = site.launch(1)
    pieces = [site.source(1, COUNT, stopped)]
    if is_connected:
        site.ask(COUNT, SUM_COUNT, pieces=pieces)
    freeze(stopped.pid)
    with pytest.raises(DeadlineExceeded):
        site.ask(COUNT, SUM_COUNT, pieces=pieces, timeout_ms=400)
    started = time.monotonic()
    with pytest.raises(ExecutorUnavailable, match="does not answer at the moment"):
        site.ask(COUNT, SUM_COUNT, pieces=pieces, timeout_ms=8_000)
    assert time.monotonic() - started < 4
    stopped.kill()


def test_a_peer_with_another_epoch_is_stale_and_the_next_is_asked(site: Site) -> None:
    newer = site.launch(attachments=(Attachment("sales", type(EPOCH)(EPOCH + 1), site.shards[1]),))
    old = site.source(1, COUNT, newer)
    with pytest.raises(StaleEpoch, match=r"epoch 3 of acme\.sales"):
        site.ask(COUNT, SUM_COUNT, pieces=[old])
    found = site.ask(COUNT, SUM_COUNT, pieces=[(old, site.source(1, COUNT))])
    assert found.num_rows == 1
    newer.kill()


def test_a_peer_that_drains_ends_its_parts_and_takes_no_more(site: Site) -> None:
    peer = site.launch(1)
    with flight.connect(peer.address) as client:  # something under way keeps it
        reader = client.do_get(flight.Ticket(site.source(1, ROWS_OF, peer).ticket))
        reader.read_chunk()
        peer.drain(20)

        def is_stale() -> bool:
            try:
                site.ask(COUNT, SUM_COUNT, pieces=[site.source(1, COUNT, peer)])
            except StaleEpoch:
                return True
            return False

        until(is_stale)
        assert reader.read_all().num_rows > 0
    assert peer.wait_ended(5)


# Errors and limits.


def test_a_fault_of_the_query_at_a_peer_keeps_its_class(site: Site) -> None:
    with pytest.raises(InvalidQuery, match="INT32"):
        site.ask("SELECT code::INTEGER AS n FROM {t}", SUM_COUNT)
    bad = site.source(1, "SELECT code::INTEGER AS n FROM {t}")
    with pytest.raises(InvalidQuery, match="INT32"):
        site.ask(COUNT, SUM_COUNT, pieces=[bad])
    many = site.source(1, "SELECT id AS n FROM {t}", max_result_rows=99)
    with pytest.raises(RowLimit, match="more than 99 rows"):
        site.ask(COUNT, SUM_COUNT, pieces=[many])


def test_more_than_may_be_gathered_is_an_error_before_any_row(site: Site) -> None:
    with pytest.raises(RowLimit, match="gathers more than 60000 rows from several executors"):
        site.ask("SELECT id AS n FROM {t}", SUM_COUNT, max_rows=60_000)
    with pytest.raises(MemoryLimit, match="gathers more than 500000 bytes"):
        site.ask("SELECT id AS n FROM {t}", SUM_COUNT, max_bytes=500_000)
    small = site.launch(0, quota=Quota(executor_memory_bytes=32 * MIB))
    ticket = site.ticket(ROWS_OF, 'SELECT count(*) AS n FROM "input_0"', max_bytes=500 * MIB)
    with pytest.raises(MemoryLimit, match="the 16 MiB that its executor has for that"):
        ask(small, ticket)
    assert ask(small, site.ticket(COUNT, SUM_COUNT)).to_pylist() == [{"n": ROWS}]
    small.kill()


def test_parts_of_different_forms_are_refused(site: Site) -> None:
    pieces = [site.source(1, COUNT), site.source(2, "SELECT count(*)::HUGEINT AS n FROM {t}")]
    with pytest.raises(InvariantViolated, match="different forms"):
        site.ask(COUNT, SUM_COUNT, pieces=pieces)


def test_a_part_of_another_tenant_is_refused_by_who_asks_and_by_who_is_asked(site: Site) -> None:
    rival = TenantId("rival")
    theirs = site.launch(1, tenant=rival)
    with pytest.raises(InvariantViolated, match="not a part of it"):
        site.ask(COUNT, SUM_COUNT, pieces=[site.source(1, COUNT, theirs, tenant=rival)])
    with pytest.raises(StaleEpoch, match="does not serve tenant acme"):
        site.ask(COUNT, SUM_COUNT, pieces=[site.source(1, COUNT, theirs)])
    theirs.kill()


def test_a_part_has_no_inputs_of_its_own(site: Site) -> None:
    with pytest.raises(Unauthenticated):
        site.ask(COUNT, SUM_COUNT, is_part=True)


@pytest.mark.parametrize("forged", ["key", "expired", "shard"])
def test_peers_check_a_part_like_any_ticket(site: Site, forged: str) -> None:
    if forged == "key":
        good = site.source(1, COUNT)
        sources = [Source(address=good.address, ticket=b"x" * 32 + good.ticket[32:])]
        with pytest.raises(InvariantViolated):
            site.ask(COUNT, SUM_COUNT, pieces=sources)
        return
    overrides: dict[str, Any] = {"expires_at_ms": 1}
    if forged == "shard":
        token = EpochToken(dataset="sales", epoch=EPOCH, shards=(site.shards[2],))
        overrides = {"tokens": (token,)}
    with pytest.raises(StaleEpoch):
        site.ask(COUNT, SUM_COUNT, pieces=[site.source(1, COUNT, **overrides)])


# Stopping.


def busy(site: Site) -> list[int]:
    return [in_flight(site.executor(n)) for n in range(SHARDS)]


def assert_idle_cpu(site: Site) -> None:
    pids = [site.executor(n).pid for n in range(SHARDS)]
    before = [cpu_seconds(pid) for pid in pids]
    time.sleep(0.3)
    used = [cpu_seconds(pid) - b for pid, b in zip(pids, before, strict=True)]
    assert all(seconds < 0.1 for seconds in used), used


def test_a_client_that_gives_up_frees_every_executor(site: Site) -> None:
    ticket = site.ticket(ENDLESS, SUM_COUNT, timeout_ms=30_000)
    with (
        flight.connect(site.executor(0).address) as client,
        pytest.raises(flight.FlightTimedOutError),
    ):
        client.do_get(ticket, flight.FlightCallOptions(timeout=0.4))
    assert until(lambda: busy(site) == [0, 0, 0]) < 1
    assert_idle_cpu(site)


def test_a_cancelled_query_frees_every_executor_within_a_tenth_of_a_second(site: Site) -> None:
    taken: list[float] = []
    for number in range(7):
        query_id = f"q-{number}"
        pieces = [site.source(n, ENDLESS, query_id=query_id, timeout_ms=30_000) for n in (1, 2)]
        ticket = site.ticket(COUNT, SUM_COUNT, pieces=pieces, query_id=query_id, timeout_ms=30_000)
        thread = threading.Thread(target=_ask_quietly, args=(site.executor(0), ticket))
        thread.start()
        until(lambda: busy(site) == [1, 1, 1])
        order = Cancellation(tenant=TenantId("acme"), query_id=query_id)
        with flight.connect(site.executor(0).address) as client:
            list(client.do_action(flight.Action("cancel", sign(encode(order), KEY))))
        taken.append(until(lambda: busy(site) == [0, 0, 0]))
        thread.join(5)
    assert min(taken) < 0.1, taken  # others use this machine as well
    assert max(taken) < 3, taken


def test_the_deadline_frees_every_executor(site: Site) -> None:
    with pytest.raises(DeadlineExceeded):
        site.ask(ENDLESS, SUM_COUNT, timeout_ms=300)
    assert until(lambda: busy(site) == [0, 0, 0]) < 1
    assert_idle_cpu(site)


def test_a_killed_coordinator_frees_its_peers(site: Site) -> None:
    coordinator = site.launch(0)
    ticket = site.ticket(ENDLESS, SUM_COUNT, timeout_ms=30_000)
    thread = threading.Thread(target=_ask_quietly, args=(coordinator, ticket))
    thread.start()
    until(lambda: busy(site)[1:] == [1, 1])
    os.kill(coordinator.pid, signal.SIGKILL)
    assert until(lambda: busy(site)[1:] == [0, 0]) < 1.5
    thread.join(5)
    assert_idle_cpu(site)


def _ask_quietly(executor: RunningExecutor, ticket: flight.Ticket) -> None:
    with contextlib.suppress(AccelError):
        ask(executor, ticket)


def test_a_killed_client_frees_every_executor(site: Site) -> None:
    ticket = site.ticket(ENDLESS, SUM_COUNT, timeout_ms=30_000).ticket.hex()
    code = (
        "from pyarrow import flight; "
        f"flight.connect({site.executor(0).address!r}).do_get("
        f"flight.Ticket(bytes.fromhex({ticket!r}))).read_all()"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        until(lambda: busy(site) == [1, 1, 1], 10)
    finally:
        process.kill()
        process.wait()
    until(lambda: busy(site) == [0, 0, 0], 5)


def test_a_cancellation_of_one_part_leaves_another_of_the_same_query_alone(site: Site) -> None:
    keep, stop = (site.source(1, ENDLESS, timeout_ms=t).ticket for t in (20_001, 20_002))
    peer = site.executor(1)
    failed: dict[bytes, AccelError] = {}

    def run(ticket: bytes) -> None:
        try:
            ask(peer, flight.Ticket(ticket))
        except AccelError as error:
            failed[ticket] = error

    threads = [threading.Thread(target=run, args=(ticket,)) for ticket in (keep, stop)]
    for thread in threads:
        thread.start()
    until(lambda: in_flight(peer) == 2)

    def cancel(signature: str) -> None:
        order = Cancellation(tenant=TenantId("acme"), query_id="q-1", signature=signature)
        with flight.connect(peer.address) as client:
            list(client.do_action(flight.Action("cancel", sign(encode(order), KEY))))

    cancel(stop[:32].hex())
    until(lambda: stop in failed)
    until(lambda: in_flight(peer) == 1)
    assert set(failed) == {stop}
    cancel("")
    for thread in threads:
        thread.join(5)
    assert set(failed) == {keep, stop}


# Many at once.


def test_executors_that_coordinate_for_each_other_never_wait_for_each_other(site: Site) -> None:
    quota = Quota(concurrency=1, queue_length=30)
    pair = [site.launch(n, quota=quota) for n in range(2)]
    answers: list[Any] = []

    def work(client: int) -> None:
        own = client % 2
        other = 1 - own
        for _ in range(10):
            piece = site.source(other, COUNT, pair[other], timeout_ms=20_000)
            ticket = site.ticket(COUNT, SUM_COUNT, pieces=[piece], own=own, timeout_ms=20_000)
            answers.append(ask(pair[own], ticket)["n"][0].as_py())

    threads = [threading.Thread(target=work, args=(n,)) for n in range(20)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert time.monotonic() - started < 20
    wanted = len([i for i in range(ROWS) if i % SHARDS < 2])
    assert answers == [wanted] * 200
    for executor in pair:
        until(lambda executor=executor: in_flight(executor) == 0)
        executor.kill()


def test_memory_does_not_grow_with_the_number_of_queries(site: Site) -> None:
    executors = [site.launch(n) for n in range(SHARDS)]
    gather = "SELECT id, d, u FROM {t} WHERE id < 20000"
    merge = 'SELECT count(*) AS n FROM ({own} UNION ALL SELECT * FROM "input_0")'

    def run(times: int) -> None:
        with flight.connect(executors[0].address) as client:
            for _ in range(times):
                pieces = [site.source(n, gather, executors[n]) for n in (1, 2)]
                ticket = site.ticket(gather, merge, pieces=pieces)
                [row] = client.do_get(ticket).read_all().to_pylist()
                assert row == {"n": 20_000}

    run(100)
    before = [executor.stats().private_bytes for executor in executors]
    threads_before = len(list(Path(f"/proc/{executors[0].pid}/task").iterdir()))
    run(500)
    grown = [e.stats().private_bytes - b for e, b in zip(executors, before, strict=True)]
    assert max(grown) < 12 * MIB, grown
    assert len(list(Path(f"/proc/{executors[0].pid}/task").iterdir())) <= threads_before + 8
    for executor in executors:
        executor.kill()
