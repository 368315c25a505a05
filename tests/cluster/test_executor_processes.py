"""Executors as processes: started through the zygote, asked over Flight, attacked, killed."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from executor_builders import (
    EPOCH,
    KEY,
    ROWS,
    make_shard,
    make_spec,
    make_ticket,
    parameters,
    signed,
)
from pyarrow import flight

from accel_dask.errors import (
    AccelError,
    DeadlineExceeded,
    ExecutorUnavailable,
    InvalidQuery,
    MemoryLimit,
    ResourceExhausted,
    RowLimit,
    ShardDamaged,
    StaleEpoch,
    Unauthenticated,
    UnsupportedQuery,
)
from accel_dask.flight_errors import FLIGHT_FAILURES, from_flight
from accel_dask.model.ids import ShardId, TenantId
from accel_dask.model.tenant import MIB, Quota
from accel_dask.model.ticket import EpochToken, shard_relation, sign
from accel_dask.worker_plugin.executors import ExecutorHost
from accel_dask.worker_plugin.process_record import start_ticks
from accel_dask.worker_plugin.running_executor import RunningExecutor

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(60)]

ENDLESS = "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range + b.range % 9 = 7"


class Site:
    """A host of executors with one shard, and what its executors' ends were."""

    def __init__(self, directory: Path) -> None:
        self.shard_dir = directory / "shards"
        self.shard_dir.mkdir(parents=True)
        self.shard = make_shard(self.shard_dir)
        self.table = shard_relation(self.shard)
        self.exits: queue.Queue[tuple[RunningExecutor, str]] = queue.Queue()
        self.host = ExecutorHost(
            directory / "run",
            on_exit=lambda executor, because: self.exits.put((executor, because)),
            ping_seconds=0.1,
            hung_seconds=2.5,
        )

    def launch(self, **overrides: Any) -> RunningExecutor:
        return self.host.launch(make_spec(self.shard_dir, self.shard, **overrides))

    def count(self, executor: RunningExecutor) -> int:
        [row] = ask(executor, f"SELECT count(*) AS n FROM {self.table}", self.shard)
        return int(row["n"])


def ask(executor: RunningExecutor, sql: str, *shards: ShardId, **overrides: Any) -> list[Any]:
    """The rows; errors as ours, checked for what they must not contain."""
    with flight.connect(executor.address) as client:
        try:
            rows: list[Any] = (
                client.do_get(signed(make_ticket(sql, *shards, **overrides))).read_all().to_pylist()
            )
        except FLIGHT_FAILURES as error:
            _check_clean(str(error), executor.spec.shard_dir)
            raise from_flight(error) from error
        return rows


def _check_clean(text: str, *more: str) -> None:
    for inside in ("Traceback", 'File "', "site-packages", *more):
        assert inside not in text


def until(condition: Callable[[], bool], seconds: float = 5.0) -> float:
    """Wait for `condition`; after how many seconds it held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "the condition did not come to hold"
        time.sleep(0.002)
    return time.monotonic() - started


def is_running(pid: int, ticks: int | None) -> bool:
    """Whether that very process runs; a zombie has ended."""
    if start_ticks(pid) != ticks:
        return False
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:4]
    except OSError:
        return False


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    built = Site(tmp_path_factory.mktemp("host"))
    built.host.start()
    yield built
    built.host.close()


@pytest.fixture(scope="module")
def shared(site: Site) -> Iterator[Callable[[], RunningExecutor]]:
    """An executor for tests that leave it as it was, or kill it."""
    kept: list[RunningExecutor] = []

    def get() -> RunningExecutor:
        if not kept or kept[-1].has_ended:
            kept.append(site.launch())
        return kept[-1]

    yield get
    kept[-1].kill()


Shared = Callable[[], RunningExecutor]

# Tickets.


def test_a_signed_ticket_is_answered(site: Site, shared: Shared) -> None:
    assert site.count(shared()) == ROWS
    rows = ask(
        shared(),
        f"SELECT id FROM {site.table} WHERE code = ? AND id < ? ORDER BY id",
        site.shard,
        parameters=parameters(c=pa.array(["cd"]), i=pa.array([6], pa.int32())),
    )
    assert rows == [{"id": 1}, {"id": 4}]


def test_a_large_answer_arrives_whole_and_in_order(site: Site, shared: Shared) -> None:
    rows = ask(
        shared(),
        f"SELECT id FROM {site.table} ORDER BY id",
        site.shard,
        max_batch_bytes=100_000,
    )
    assert [row["id"] for row in rows] == list(range(ROWS))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"tenant": TenantId("other")}, StaleEpoch),
        ({"tokens": (EpochToken(dataset="sales", epoch=EPOCH, shards=(ShardId("f" * 32),)),)},
         StaleEpoch),
        ({"tokens": (EpochToken(dataset="sold", epoch=EPOCH, shards=()),)}, None),
        ({"expires_at_ms": 1}, StaleEpoch),
    ],
    ids=["another tenant's", "unknown shard", "nothing read", "expired"],
)  # fmt: skip
def test_a_ticket_that_is_not_for_this_executor_is_refused(
    shared: Shared, overrides: dict[str, Any], expected: type[AccelError] | None
) -> None:
    if expected is None:
        assert ask(shared(), "SELECT 1 AS x", **overrides) == [{"x": 1}]
        return
    with pytest.raises(expected):
        ask(shared(), "SELECT 1 AS x", **overrides)


def test_an_epoch_that_is_not_attached_is_stale(site: Site, shared: Shared) -> None:
    token = EpochToken(dataset="sales", epoch=type(EPOCH)(EPOCH + 1), shards=(site.shard,))
    with pytest.raises(StaleEpoch, match=r"epoch 4 of acme\.sales is not served here"):
        ask(shared(), "SELECT 1", tokens=(token,))


@pytest.mark.parametrize(
    "ticket",
    [
        b"",
        b"short",
        signed(make_ticket("SELECT 1")).ticket[:-1],
        signed(make_ticket("SELECT 1"), key=b"another key").ticket,
    ],
    ids=["empty", "short", "cut", "another key"],
)
def test_what_is_not_signed_by_the_cluster_is_refused(shared: Shared, ticket: bytes) -> None:
    with flight.connect(shared().address) as client:
        with pytest.raises(flight.FlightUnauthenticatedError) as caught:
            client.do_get(flight.Ticket(ticket)).read_all()
        assert type(from_flight(caught.value)) is Unauthenticated


def test_a_signed_ticket_of_another_form_is_refused(shared: Shared) -> None:
    ticket = flight.Ticket(sign(b'{"version": "x"}', KEY))
    with (
        flight.connect(shared().address) as client,
        pytest.raises(flight.FlightUnauthenticatedError),
    ):
        client.do_get(ticket).read_all()


def test_only_what_an_executor_offers_is_offered(shared: Shared) -> None:
    with flight.connect(shared().address) as client:
        [answer] = client.do_action(flight.Action("ping", b""))
        assert set(json.loads(answer.body.to_pybytes())) == {"in_flight", "queries", "rss_bytes"}
        for call in (
            lambda: list(client.do_action("shutdown")),
            lambda: list(client.list_flights()),
            lambda: client.get_flight_info(flight.FlightDescriptor.for_command(b"SELECT 1")),
            lambda: _put(client),
        ):
            with pytest.raises((pa.ArrowException, flight.FlightError, NotImplementedError)) as e:
                call()
            _check_clean(str(e.value))


def _put(client: flight.FlightClient) -> None:
    writer, _ = client.do_put(flight.FlightDescriptor.for_path("x"), pa.schema({"a": pa.int32()}))
    writer.close()


# Attacks. The statements that DuckDB's own limits do not stop.

BOMBS = [
    "SELECT repeat('x', 3000000000) AS x",
    "SELECT length(repeat('x', 3000000000)) AS x",
    "SELECT " + ", ".join(f"repeat('{i}', 300000000) AS x{i}" for i in range(10)),
    "SELECT lpad('x', 2000000000, 'y') AS x",
    "SELECT len(range(1000000000)) AS x",
    "SELECT list_sort(range(200000000))[1] AS x",
    "SELECT count(*) FROM (SELECT unnest(range(2000000000)))",
    "SELECT len(flatten(list_transform(range(30000), lambda x: range(30000)))) AS x",
    "SELECT list(range) FROM range(1000000000)",
    "SELECT string_agg(repeat('x', 10000000), '') AS x FROM range(1000)",
    "SELECT printf('%1000000000d', 1) AS x",
    "SELECT md5(repeat('x', 400000000)) AS x",
]


@pytest.mark.parametrize("sql", BOMBS, ids=[sql[7:60] for sql in BOMBS])
def test_a_memory_bomb_harms_at_most_its_own_executor(site: Site, sql: str) -> None:
    executor = site.launch(stuck_seconds=0.5)
    bystander = site.launch(generation=2)
    try:
        try:
            ask(executor, sql, timeout_ms=1_000)  # some fit: then it must simply be well
        except (MemoryLimit, DeadlineExceeded):
            pass
        except ExecutorUnavailable:
            assert executor.wait_ended(5)
            executor = site.launch()
        assert site.count(executor) == ROWS
        assert site.count(bystander) == ROWS
    finally:
        executor.kill()
        bystander.kill()


# What else than an answer each must give; None: whatever, but the executor is well after it.
REFUSED: dict[str, type[AccelError] | None] = {
    "SELECT * FROM read_csv('/etc/passwd')": UnsupportedQuery,
    "COPY (SELECT 1) TO '/tmp/accel-dask-attack'": None,
    "ATTACH ':memory:' AS m": UnsupportedQuery,
    "SET lock_configuration = false": UnsupportedQuery,
    "PRAGMA database_list": UnsupportedQuery,
    "INSTALL httpfs": UnsupportedQuery,
    "CREATE MACRO sum(x) AS 0": None,
    "SELECT 1; SELECT 2": InvalidQuery,
    "SELECT " + "(" * 100_000 + "1" + ")" * 100_000: None,
    "SELECT " + "[" * 5_000 + "1" + "]" * 5_000: None,
    "SELECT 1 WHERE " + " AND ".join(["1 = 1"] * 50_000): None,
    "SELECT 1 WHERE 1 IN (" + ", ".join(map(str, range(200_000))) + ")": None,
}


@pytest.mark.parametrize("sql", REFUSED, ids=[sql[:40] for sql in REFUSED])
def test_an_attack_by_text_is_survived(site: Site, shared: Shared, sql: str) -> None:
    if REFUSED[sql] is None:
        with contextlib.suppress(AccelError):
            ask(shared(), sql, timeout_ms=3_000)
    else:
        with pytest.raises(REFUSED[sql]):
            ask(shared(), sql, timeout_ms=3_000)
    executor = shared()
    try:
        assert site.count(executor) == ROWS
    except ExecutorUnavailable:  # planning cannot be interrupted: it may have had to end
        assert executor.wait_ended(5)
        assert "did not stop" in executor.exit_reason
        assert site.count(shared()) == ROWS
    assert not Path("/tmp/accel-dask-attack").exists()


def test_an_error_never_tells_a_path_or_a_shard(site: Site, shared: Shared) -> None:
    for sql in (
        f"SELECT nope FROM {site.table}",
        f"SELECT x.nope FROM {site.table} x",
        f'SELECT * FROM {site.table[:-1]}_2"',
        f"DELETE FROM {site.table}",
        "SELECT path FROM duckdb_databases()",
        f"SELECT * FROM '{site.shard_dir}/{site.shard}.duckdb'",
        f"SELECT code::INTEGER FROM {site.table}",
    ):
        with pytest.raises(AccelError) as caught:
            ask(shared(), sql, site.shard)
        assert site.shard not in str(caught.value)
        assert str(site.shard_dir) not in str(caught.value)


def test_a_query_that_cannot_be_interrupted_ends_its_executor_only(site: Site) -> None:
    executor = site.launch(stuck_seconds=0.3)
    number = "repeat('9', 4000000)::BIGNUM"
    started = time.monotonic()
    with pytest.raises((ExecutorUnavailable, DeadlineExceeded)):
        ask(executor, f"SELECT {number} * {number} AS x", timeout_ms=500)
    assert time.monotonic() - started < 4
    assert executor.wait_ended(5)
    ended, because = site.exits.get(timeout=5)
    while ended is not executor:
        ended, because = site.exits.get(timeout=5)
    assert "did not stop within 0.3 s of its interruption" in because


# Limits of a request.


def test_the_deadline_of_a_ticket_is_kept(shared: Shared) -> None:
    started = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        ask(shared(), ENDLESS, timeout_ms=300)
    assert time.monotonic() - started < 2.5


def test_more_rows_than_allowed_are_an_error(site: Site, shared: Shared) -> None:
    with pytest.raises(RowLimit):
        ask(shared(), f"SELECT * FROM {site.table}", site.shard, max_result_rows=99_999)


def test_a_client_that_gives_up_stops_its_query_and_frees_the_cpu(
    site: Site, shared: Shared
) -> None:
    executor = shared()
    impatient = flight.FlightCallOptions(timeout=0.3)
    with flight.connect(executor.address) as client, pytest.raises(flight.FlightTimedOutError):
        client.do_get(signed(make_ticket(ENDLESS, timeout_ms=30_000)), impatient)
    assert until(lambda: in_flight(executor) == 0) < 1.5
    before = cpu_seconds(executor.pid)
    time.sleep(0.3)
    assert cpu_seconds(executor.pid) - before < 0.1


def test_a_client_that_cancels_a_stream_stops_it(site: Site, shared: Shared) -> None:
    executor = shared()
    sql = f"SELECT a.* FROM {site.table} a, range(9)"
    with flight.connect(executor.address) as client:
        reader = client.do_get(signed(make_ticket(sql, site.shard, timeout_ms=30_000)))
        reader.read_chunk()
        assert in_flight(executor) == 1
        reader.cancel()
        assert until(lambda: in_flight(executor) == 0) < 1.5


def in_flight(executor: RunningExecutor) -> int:
    with flight.connect(executor.address) as client:
        [answer] = client.do_action("ping")
        return int(json.loads(answer.body.to_pybytes())["in_flight"])


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_killed_client_stops_its_query(site: Site, shared: Shared) -> None:
    ticket = signed(make_ticket(ENDLESS, timeout_ms=30_000)).ticket.hex()
    code = (
        "from pyarrow import flight; "
        f"flight.connect({shared().address!r}).do_get("
        f"flight.Ticket(bytes.fromhex({ticket!r}))).read_all()"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        until(lambda: in_flight(shared()) == 1, 10)
    finally:
        process.kill()
        process.wait()
    until(lambda: in_flight(shared()) == 0, 5)


def test_a_reader_that_stalls_does_not_hold_others_up(site: Site, shared: Shared) -> None:
    executor = shared()
    readers = []
    wide = f"SELECT a.*, repeat('x', 200) AS t FROM {site.table} a, range(10)"
    with flight.connect(executor.address) as client:
        for _ in range(2):
            ticket = signed(make_ticket(wide, site.shard, timeout_ms=2_500))
            reader = client.do_get(ticket)
            reader.read_chunk()
            readers.append(reader)
        with pytest.raises(ResourceExhausted):
            ask(executor, "SELECT 1", timeout_ms=100)
        assert ask(executor, "SELECT 1 AS x", timeout_ms=10_000) == [{"x": 1}]
        for reader in readers:
            with pytest.raises((pa.ArrowException, flight.FlightError)) as caught:
                reader.read_all()
            assert type(from_flight(caught.value)) is DeadlineExceeded


def test_many_clients_at_once_get_right_answers_or_a_clear_refusal(
    site: Site, shared: Shared
) -> None:
    answers: list[object] = []

    def work(number: int) -> None:
        for i in range(10):
            wanted = number * 10 + i
            try:
                [row] = ask(
                    shared(),
                    f"SELECT id, code FROM {site.table} WHERE id = {wanted}",
                    site.shard,
                )
            except ResourceExhausted:
                answers.append("refused")
            else:
                answers.append(row == {"id": wanted, "code": ["ab", "cd", "ef"][wanted % 3]})

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 80
    assert False not in answers
    assert answers.count(True) > 10
    assert in_flight(shared()) == 0


# Life and death.


def test_an_executor_tells_what_it_uses(site: Site, shared: Shared) -> None:
    stats = shared().stats()
    assert 0 < stats.private_bytes < stats.rss_bytes < 400 * MIB
    assert abs(shared().resident_bytes() - stats.rss_bytes) < 16 * MIB
    assert "address space" in shared().limits
    fresh = site.launch(attachments=())
    assert fresh.stats().private_bytes < 60 * MIB
    fresh.kill()


def test_a_shard_that_is_not_there_fails_the_launch_and_says_which(site: Site) -> None:
    missing = ShardId("e" * 32)
    with pytest.raises(ShardDamaged, match=missing):
        site.host.launch(make_spec(site.shard_dir, missing))
    assert missing not in [a.shard_id for e in site.host.running() for a in e.spec.attachments]


def test_without_a_lease_an_executor_stops_serving_after_its_grace(site: Site) -> None:
    executor = site.launch(grace_seconds=0.0)
    with pytest.raises(StaleEpoch, match="lost its lease"):
        site.count(executor)
    executor.extend_lease(time.monotonic() + 30)
    until(lambda: _serves(site, executor))
    assert site.count(executor) == ROWS
    executor.kill()


def _serves(site: Site, executor: RunningExecutor) -> bool:
    try:
        return site.count(executor) == ROWS
    except StaleEpoch:
        return False


def test_draining_lets_queries_end_and_takes_no_more(site: Site) -> None:
    executor = site.launch()
    with flight.connect(executor.address) as client:
        reader = client.do_get(
            signed(
                make_ticket(f"SELECT a.*, repeat('x', 300) AS t FROM {site.table} a", site.shard)
            )
        )
        first = reader.read_chunk().data.num_rows
        executor.drain(20)
        until(lambda: not _serves(site, executor))
        assert not executor.has_ended
        assert first + reader.read_all().num_rows == ROWS
    assert executor.wait_ended(5)
    ended, because = site.exits.get(timeout=5)
    while ended is not executor:
        ended, because = site.exits.get(timeout=5)
    assert because in {"its process ended with status 0", "its process ended"}


def test_a_drain_ends_at_its_deadline_whatever_runs(site: Site) -> None:
    executor = site.launch()
    with flight.connect(executor.address) as client:
        client.do_get(signed(make_ticket(f"SELECT * FROM {site.table}, range(99)", site.shard)))
        executor.drain(0.2)
        assert executor.wait_ended(5)


def test_a_killed_executor_is_noticed_at_once_and_another_answers_soon(site: Site) -> None:
    executor = site.launch()
    noticed, answered = [], []
    for _ in range(3):  # others use this machine as well
        assert site.count(executor) == ROWS
        killed_at = time.monotonic()
        os.kill(executor.pid, signal.SIGKILL)
        assert executor.wait_ended(5)
        noticed.append(time.monotonic() - killed_at)
        again = site.launch()
        assert site.count(again) == ROWS
        answered.append(time.monotonic() - killed_at)
        ended, because = site.exits.get(timeout=5)
        while ended is not executor:
            ended, because = site.exits.get(timeout=5)
        assert because in {"its process was ended by SIGKILL", "its process ended"}
        assert executor.stats().rss_bytes == executor.resident_bytes() == 0
        executor = again
    assert min(noticed) < 0.2
    assert min(answered) < 0.5
    executor.kill()


def test_a_stopped_executor_is_killed_after_its_pings_go_unanswered(site: Site) -> None:
    executor = site.launch()
    os.kill(executor.pid, signal.SIGSTOP)
    assert executor.wait_ended(5)
    assert "pings unanswered" in executor.exit_reason


def test_a_killed_zygote_leaves_executors_alone_and_comes_back(site: Site) -> None:
    executor = site.launch()
    zygote = site.host._zygote
    assert zygote is not None
    os.kill(zygote.pid, signal.SIGKILL)
    until(lambda: site.host._zygote is not zygote)
    assert site.count(executor) == ROWS
    another = site.launch()
    assert site.count(another) == ROWS
    for each in (executor, another):
        os.kill(each.pid, signal.SIGKILL)
        assert each.wait_ended(5)


def test_a_launch_succeeds_though_the_zygote_is_killed_during_it(site: Site) -> None:
    for delay in (0.0, 0.001, 0.003, 0.01, 0.02, 0.04):
        zygote = site.host._warm_zygote(time.monotonic() + 10)
        killer = threading.Timer(delay, os.kill, (zygote.pid, signal.SIGKILL))
        killer.start()
        executor = site.launch()
        killer.join()
        assert site.count(executor) == ROWS
        executor.kill()
        assert executor.wait_ended(5)


def test_launches_from_many_threads_do_not_disturb_each_other(site: Site) -> None:
    tenants = [TenantId(f"t{i}") for i in range(6)]
    launched: dict[str, RunningExecutor] = {}

    def launch(tenant: TenantId) -> None:
        launched[tenant] = site.launch(tenant=tenant)

    threads = [threading.Thread(target=launch, args=(tenant,)) for tenant in tenants]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({e.pid for e in launched.values()}) == 6
    for tenant, executor in launched.items():
        [row] = ask(executor, "SELECT 1 AS x", tenant=tenant)
        assert row == {"x": 1}
        with pytest.raises(StaleEpoch):
            ask(executor, "SELECT 1 AS x", tenant=TenantId("nobody"))
        executor.kill()
        assert executor.wait_ended(5)


def test_nothing_of_the_host_is_in_an_executor(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCEL_STORE_PASSWORD", "secret")
    host = ExecutorHost(tmp_path / "run")
    host.start()
    try:
        executor = host.launch(make_spec(site.shard_dir, site.shard))
        environment = Path(f"/proc/{executor.pid}/environ").read_bytes()
        assert b"secret" not in environment
        open_files = [str(fd.readlink()) for fd in Path(f"/proc/{executor.pid}/fd").iterdir()]
        files = [name for name in open_files if name.startswith("/")]
        shard_file = str(site.shard_dir / f"{site.shard}.duckdb")
        strange = {f for f in files if f != shard_file and not f.startswith(("/dev/", "/tmp/"))}
        assert strange == set()
    finally:
        host.close()
    assert executor.wait_ended(0)
    assert not is_running(executor.pid, start_ticks(executor.pid))


def test_launching_and_ending_leaves_nothing_in_the_host(site: Site, tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before, threads = open_files(), threading.active_count()
    ended = threading.Semaphore(0)
    host = ExecutorHost(tmp_path / "run", on_exit=lambda *_: ended.release())
    host.start()
    for _ in range(10):
        executor = host.launch(make_spec(site.shard_dir, site.shard))
        executor.kill()
        assert ended.acquire(timeout=5)
    with pytest.raises(ShardDamaged):
        host.launch(make_spec(site.shard_dir, ShardId("e" * 32)))
    assert host.running() == ()
    assert len(list((tmp_path / "run" / "processes").iterdir())) == 1, "the zygote's"
    host.close()
    until(lambda: threading.active_count() == threads)
    assert open_files() == before


def test_streams_ended_at_any_moment_never_harm_the_executor(site: Site) -> None:
    executor = site.launch(quota=Quota(concurrency=4))
    stop_at = time.monotonic() + 3
    unexpected: list[BaseException] = []

    def work(seed: int) -> None:
        turn = random.Random(seed)
        with flight.connect(executor.address) as client:
            while time.monotonic() < stop_at:
                sql = turn.choice(
                    [
                        f"SELECT a.* FROM {site.table} a, range(3)",
                        ENDLESS,
                        "SELECT 1",
                        "SELECT nope",
                    ]
                )
                ticket = signed(make_ticket(sql, site.shard, timeout_ms=turn.choice([40, 4000])))
                options = flight.FlightCallOptions(timeout=turn.uniform(0.001, 0.15))
                try:
                    reader = client.do_get(ticket, options)
                    for _ in range(turn.randrange(4)):
                        reader.read_chunk()
                    reader.cancel()
                except StopIteration:
                    pass
                except FLIGHT_FAILURES as error:
                    if isinstance(from_flight(error), ExecutorUnavailable):
                        unexpected.append(error)
                        return

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert unexpected == []
    until(lambda: in_flight(executor) == 0)
    assert site.count(executor) == ROWS
    executor.kill()


PARENT = textwrap.dedent(
    """
    import json, sys, time
    from pathlib import Path
    from accel_dask.codec import decode
    from accel_dask.worker_plugin.executor.spec import ExecutorSpec
    from accel_dask.worker_plugin.executors import ExecutorHost

    host = ExecutorHost(Path(sys.argv[1]))
    host.start()
    running = [host.launch(decode(a.encode(), ExecutorSpec)) for a in sys.argv[2:]]
    print(json.dumps([e.pid for e in running] + [host._zygote.pid]), flush=True)
    time.sleep(600)
    """
)


@pytest.mark.parametrize("zygote_too", [False, True], ids=["with zygote", "zygote dead before"])
def test_no_executor_outlives_its_host_even_when_stopped(
    site: Site, tmp_path: Path, zygote_too: bool
) -> None:
    from accel_dask.codec import encode

    specs = [encode(make_spec(site.shard_dir, site.shard)).decode() for _ in range(2)]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "run"), *specs],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert parent.stdout is not None
        pids = json.loads(parent.stdout.readline())
        processes = {pid: start_ticks(pid) for pid in pids}
        os.kill(pids[0], signal.SIGSTOP)
        if zygote_too:
            os.kill(pids[-1], signal.SIGKILL)
            until(lambda: not is_running(pids[-1], processes[pids[-1]]))
    finally:
        parent.kill()
        parent.wait()
    took = until(lambda: not any(is_running(p, t) for p, t in processes.items()), 5)
    assert took < 2
    records = list((tmp_path / "run" / "processes").iterdir())
    assert records, "the next life finds what to look for"
    host = ExecutorHost(tmp_path / "run")
    host.start()
    host.close()
    assert list((tmp_path / "run" / "processes").iterdir()) == []


def test_closing_the_host_while_launching_hangs_nobody(site: Site, tmp_path: Path) -> None:
    host = ExecutorHost(tmp_path / "run")
    host.start()
    failed: list[AccelError] = []

    def launch() -> None:
        try:
            while True:
                host.launch(make_spec(site.shard_dir, site.shard), timeout_seconds=10)
        except AccelError as error:
            failed.append(error)

    threads = [threading.Thread(target=launch) for _ in range(3)]
    for thread in threads:
        thread.start()
    until(lambda: len(host.running()) > 2)
    host.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert all(isinstance(error, ExecutorUnavailable) for error in failed)


def test_quota_defaults_start_an_executor(site: Site) -> None:
    executor = site.launch(quota=Quota())
    assert site.count(executor) == ROWS
    executor.kill()
