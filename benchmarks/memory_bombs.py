"""A tenant that tries to take more memory than it has, in a thousand ways, and its neighbour.

    python benchmarks/memory_bombs.py [--bombs 1000] [--seconds 0] [--rows 2000000]

Statements go straight to the tenant's executor, past the gateway's list of allowed functions: most
of them take memory that DuckDB's own limit does not see. Measured all the while: what the executor
and the shard files take, against the tenant's budget; the neighbour's dashboard queries, each with
what was going on meanwhile if it was slow; and, when the executor was stopped, how long until it
answers again through the gateway.
"""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow import flight

from accel_dask.codec import encode
from accel_dask.drill.arrivals import percentile
from accel_dask.drill.loads import Load, RunningLoad, Seen, Shape
from accel_dask.drill.run_delay import RunDelay
from accel_dask.drill.workload import DASHBOARD, write_facts
from accel_dask.flight_errors import FLIGHT_FAILURES
from accel_dask.local import LocalAccelCluster
from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.executor import Executor, ExecutorPlan, ExecutorState
from accel_dask.model.ids import TenantId
from accel_dask.model.member import Worker
from accel_dask.model.replica import Replica
from accel_dask.model.tenant import MIB, Quota
from accel_dask.model.ticket import EpochToken, Ticket, shard_relation, sign
from flightsql_gateway.flight_sql import messages

BUDGET = Quota(memory_bytes_per_host=1024 * MIB, executor_memory_bytes=384 * MIB)
ALONE_SECONDS = 15.0
SEGMENT_SECONDS = 20.0
SLOWEST = 6
WAYS = (
    # Vectors of text, lists and numbers that DuckDB does not count
    "SELECT length(repeat('x', {big}))",
    "SELECT sum(length(repeat(CAST(i AS VARCHAR), {mid}))) FROM range({some}) t(i)",
    "SELECT length(lpad('x', {big}, 'y'))",
    "SELECT len(range({big} // 8))",
    "SELECT len(list_sort(range({mid})))",
    "SELECT list_sum(flatten([range({mid}), range({mid})]))",
    "SELECT len(flatten(list_transform(range({few}), lambda x: range({few} * 10))))",
    "SELECT count(*) FROM (SELECT unnest(range({big})))",
    "SELECT length(format('{{:>{mid}}}', 'x'))",
    "SELECT md5(repeat('x', {mid}))",
    "SELECT length(CAST(bitstring('1', {mid}) AS VARCHAR))",
    "SELECT count(*) FROM range({some}) t(i), (SELECT repeat('y', {mid}) AS s) WHERE length(s) > i",
    "SELECT string_agg(repeat('z', {few}), ',') FROM range({mid} // 100)",
    "SELECT length(replace(repeat('a', {mid}), 'a', 'bbbbbbbb'))",
    "SELECT length(upper(reverse(repeat('ab', {mid}))))",
    "SELECT len(string_split(repeat('a,', {mid}), ','))",
    "SELECT len(regexp_extract_all(repeat('ab', {mid}), 'a'))",
    "SELECT length(CAST(json_array(repeat('j', {mid})) AS VARCHAR))",
    "SELECT len(map_keys(map(range({mid}), range({mid}))))",
    # The engine's own memory
    "SELECT count(*) FROM (SELECT order_id, list(amount) FROM {table} GROUP BY order_id, amount)",
    (
        "SELECT max(length(s)) FROM (SELECT string_agg(CAST(order_id AS VARCHAR), ',') AS s "
        "FROM {table})"
    ),
    "SELECT count(*) FROM {table} a JOIN {table} b ON a.store = b.store AND a.day = b.day + {few}",
    (
        "SELECT max(x) FROM (SELECT row_number() OVER (PARTITION BY store ORDER BY order_id) "
        "AS x FROM {table})"
    ),
    (
        "WITH RECURSIVE r(s) AS (SELECT 'x' UNION ALL SELECT s || s FROM r "
        "WHERE length(s) < {big}) SELECT max(length(s)) FROM r"
    ),
    # Results
    "SELECT repeat('r', {mid}) FROM range({some})",
    "SELECT * FROM {table} a, {table} b LIMIT {mid}",
    "SELECT range({few}) FROM range({mid} // 100)",
    # Plans
    "SELECT {ors}",
    "SELECT {parens}",
    "SELECT * FROM {table} WHERE order_id IN ({values})",
)


@dataclass
class Struck:
    peak_bytes: int = 0
    peak_private_bytes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    stops: int = 0
    back_ms: list[float] = field(default_factory=list)
    bombs: list[tuple[float, float, str]] = field(default_factory=list)
    """Monotonic seconds from and to, and what it was."""


class Neighbour:
    """The other tenant's dashboards, one segment after the other until it is told to stop."""

    def __init__(self, start: Callable[[float], RunningLoad]) -> None:
        self._start = start
        self._segments: list[Seen] = []
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._done.is_set():
            self._segments.append(self._start(SEGMENT_SECONDS).wait())

    def end(self) -> tuple[Seen, list[tuple[float, float]]]:
        """All segments together, and when each answered query was sent and answered."""
        self._done.set()
        self._thread.join()
        failures: Counter[str] = Counter()
        seen, at = Seen(), []
        for one in self._segments:
            seen.latencies_ms += one.latencies_ms
            seen.seconds += one.seconds
            failures.update(one.failures)
            for sent, ms in zip(one.sent_at, one.latencies_ms, strict=True):
                at.append((one.started + sent, one.started + sent + ms / 1000))
        seen.failures = dict(failures)
        return seen, at


def bomb(rng: random.Random, table: str) -> str:
    sizes = {
        "some": rng.choice((10, 100, 1_000)),
        "few": rng.randrange(1_000, 30_000),
        "mid": rng.choice((1_000_000, 10_000_000, 50_000_000, 200_000_000)),
        "big": rng.choice((100_000_000, 800_000_000, 3_000_000_000)),
    }
    way = rng.choice(WAYS)
    if "{ors}" in way:
        return way.format(ors=" OR ".join(f"{i} = 7" for i in range(rng.randrange(1_000, 60_000))))
    if "{parens}" in way:
        depth = rng.randrange(100, 100_000)
        return way.format(parens="(" * depth + "1" + ")" * depth)
    if "{values}" in way:
        count = rng.randrange(1_000, 300_000)
        return way.format(table=table, values=",".join(str(i) for i in range(count)))
    return way.format(table=table, **sizes)


class Bombing:
    """One tenant's executor under attack."""

    def __init__(self, cluster: LocalAccelCluster, token: str, seed: int) -> None:
        self._cluster = cluster
        self._rng = random.Random(seed)
        self._seen = Struck()
        self._done = threading.Event()
        meta = cluster.view.meta
        assert meta is not None
        self._key = bytes.fromhex(meta.ticket_key)
        self._client = flight.connect(cluster.gateway_urls[0])
        header = self._client.authenticate_basic_token("bomber", token)
        self._options = flight.FlightCallOptions(headers=[header], timeout=30)

    def run(self, count: int, seconds: float) -> Struck:
        sampling = threading.Thread(target=self._sample)
        sampling.start()
        until = time.monotonic() + seconds if seconds else float("inf")
        for number in range(count):
            if time.monotonic() > until:
                break
            self._one()
            if number % 100 == 99:
                print(f"#   {number + 1}: {dict(self._seen.outcomes)}", flush=True)
        self._done.set()
        sampling.join()
        return self._seen

    def _one(self) -> None:
        self._cluster.mirror.wait_for(lambda view: find_executor(view) is not None, 30.0)
        plan, executor = executor_of(self._cluster.view)
        attachment = plan.attachments[0]
        sql = bomb(self._rng, shard_relation(attachment.shard_id))
        token = EpochToken(
            dataset=attachment.dataset, epoch=attachment.epoch, shards=(attachment.shard_id,)
        )
        ticket = Ticket(
            version=1,
            query_id=uuid.uuid4().hex,
            tenant=plan.tenant,
            sql=sql,
            tokens=(token,),
            expires_at_ms=int(time.time() * 1000) + 60_000,
            timeout_ms=3_000,
            max_result_rows=100_000,
        )
        began = time.monotonic()
        try:
            with flight.connect(executor.address) as client:
                signed = flight.Ticket(sign(encode(ticket), self._key))
                for _ in client.do_get(signed, flight.FlightCallOptions(timeout=10)):
                    pass
            outcome = "answered"
        except FLIGHT_FAILURES as error:
            outcome = kind_of(error)
        self._seen.outcomes[outcome] += 1
        ended, was_stopped = time.monotonic(), has_ended(executor.pid)
        self._seen.bombs.append((began, ended, f"{outcome}: {sql[:90]}"))
        if was_stopped:
            self._wait_back()
            self._seen.bombs.append((ended, time.monotonic(), "the executor starts again"))

    def _wait_back(self) -> None:
        """It was stopped: until its tenant's queries are answered again."""
        started = time.monotonic()
        self._seen.stops += 1
        sql = "SELECT count(*) FROM facts WHERE day = 3"
        ticket = flight.Ticket(messages.wrap(messages.new("CommandStatementQuery", query=sql)))
        while True:
            try:
                self._client.do_get(ticket, self._options).read_all()
            except FLIGHT_FAILURES as error:
                if time.monotonic() > started + 30:
                    raise AssertionError("it does not come back") from error
            else:
                break
        self._seen.back_ms.append((time.monotonic() - started) * 1000)

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            try:
                _, executor = executor_of(self._cluster.view)
                fields = Path(f"/proc/{executor.pid}/statm").read_text().split()
            except (OSError, LookupError):
                continue
            resident, shared = (int(n) * os.sysconf("SC_PAGE_SIZE") for n in fields[1:3])
            self._seen.peak_bytes = max(self._seen.peak_bytes, resident)
            self._seen.peak_private_bytes = max(self._seen.peak_private_bytes, resident - shared)


def find_executor(view: ClusterView) -> tuple[ExecutorPlan, Executor] | None:
    """The bomber's executor as the store has it."""
    executors = {e.path[1:]: e for e in view.records(Executor) if e.tenant == "bomber"}
    for plan in view.records(ExecutorPlan):
        executor = executors.get(plan.path[1:])
        if executor is not None and executor.state is ExecutorState.READY:
            return plan, executor
    return None


def executor_of(view: ClusterView) -> tuple[ExecutorPlan, Executor]:
    """As `find_executor`; LookupError: there is none."""
    found = find_executor(view)
    if found is None:
        raise LookupError("the bomber has no executor")
    return found


def has_ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def kind_of(error: BaseException) -> str:
    text = str(error)
    start, end = text.find("["), text.find("]")
    return text[start + 1 : end] if 0 <= start < end < 60 else type(error).__name__


def declare(cluster: LocalAccelCluster, tenant: str, directory: Path, quota: Quota) -> str:
    token = cluster.create_tenant(tenant, quota)
    source = SourceSpec(connector="parquet", options=(("path", str(directory)),))
    cluster.create_dataset(
        Dataset(tenant=TenantId(tenant), name="facts", source=source, sort_by=("day",))
    )
    cluster.publish(tenant, "facts", timeout_seconds=300)
    return token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bombs", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=0.0, help="no bomb later; 0: all of them")
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory(prefix="accel-bombs-") as name, LocalAccelCluster() as cluster:
        directory = Path(name) / "facts"
        write_facts(directory, options.rows, 0)
        neighbour = declare(cluster, "neighbour", directory, BUDGET)
        token = declare(cluster, "bomber", directory, BUDGET)
        cluster.wait_routed()
        for host in cluster.view.records(Worker):
            print(f"# {host.enforcement}")
        shard_bytes = max(r.file_bytes for r in cluster.view.records(Replica))

        def dashboards(seconds: float) -> RunningLoad:
            return RunningLoad(
                Load(
                    url=cluster.gateway_urls[0],
                    user="neighbour",
                    token=neighbour,
                    statements=DASHBOARD,
                    seconds=seconds,
                    shape=Shape.OPEN,
                    rate=20.0,
                    clients=16,
                    is_favoured=True,
                )
            )

        roots = (os.getpid(),)

        def names() -> dict[int, str]:
            return {e.pid: f"{e.tenant}'s executor" for e in cluster.view.records(Executor)}

        dashboards(2.0).wait()
        with RunDelay(lambda: roots, names) as before:
            alone = dashboards(ALONE_SECONDS).wait()
        with RunDelay(lambda: roots, names) as meanwhile:
            beside = Neighbour(dashboards)
            struck = Bombing(cluster, token, options.seed).run(options.bombs, options.seconds)
            told, at = beside.end()

    print(f"# alone: {before.waits().text(6)}")
    print(f"# meanwhile: {meanwhile.waits().text(6)}")
    for sent, answered in sorted(at, key=lambda pair: pair[0] - pair[1])[:SLOWEST]:
        print(f"# a query of the neighbour took {1000 * (answered - sent):.0f} ms, meanwhile:")
        for began, ended, what in struck.bombs:
            if began < answered and ended > sent:
                print(f"#   {1000 * (began - sent):+.0f} to {1000 * (ended - sent):+.0f} ms {what}")
    budget = BUDGET.memory_bytes_per_host
    taken = (struck.peak_bytes + shard_bytes) / budget
    ratio = told.percentile(0.99) / max(alone.percentile(0.99), 0.001)
    slowest = max(struck.back_ms, default=0.0)
    dropped = sum(struck.outcomes.values())
    print(f"{dropped} bombs: {dict(struck.outcomes)}; the executor was stopped {struck.stops} x")
    lines = (
        (taken <= 1.10, (f"executor and shard files took at most {taken:.2f} of the budget "
         f"({struck.peak_bytes / MIB:.0f} + {shard_bytes / MIB:.0f} of {budget / MIB:.0f} MiB; "
         f"{struck.peak_private_bytes / MIB:.0f} MiB private) (<= 1.10)")),
        (ratio <= 2.0, (f"the neighbour's p99 was {ratio:.2f} x alone "
         f"({told.percentile(0.99):.1f} ms, {alone.percentile(0.99):.1f} ms alone) (<= 2)")),
        (not told.failures, f"the neighbour's failed queries: {told.failures or 'none'}"),
        (slowest <= 500, (f"stopped, it answered again within {slowest:.0f} ms at worst, "
         f"{percentile(struck.back_ms, 0.5):.0f} ms at the median (<= 500)")),
    )  # fmt: skip
    for holds, line in lines:
        print(f"{'held' if holds else 'NOT HELD'}: {line}")
    if not all(holds for holds, _ in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
