"""A tenant that tries to take more memory than it has, in a thousand ways, and its neighbour.

    python benchmarks/memory_bombs.py [--bombs 1000] [--rows 2000000]

Statements go straight to the tenant's executor, past the gateway's list of allowed functions: most
of them take memory that DuckDB's own limit does not see. Measured all the while: what the executor
and the shard files take, against the tenant's budget; the neighbour's dashboard queries; and, when
the executor was stopped, how long until it answers again through the gateway.
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
from dataclasses import dataclass, field
from pathlib import Path

from pyarrow import flight

from accel_dask.codec import encode
from accel_dask.drill.loads import Load, RunningLoad, Shape
from accel_dask.drill.workload import DASHBOARD, write_facts
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
NEIGHBOUR_SECONDS = 20.0
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
class Seen:
    peak_bytes: int = 0
    peak_private_bytes: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    stops: int = 0
    back_ms: list[float] = field(default_factory=list)


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
        self._seen = Seen()
        self._done = threading.Event()
        meta = cluster.view.meta
        assert meta is not None
        self._key = bytes.fromhex(meta.ticket_key)
        self._client = flight.connect(cluster.gateway_urls[0])
        header = self._client.authenticate_basic_token("bomber", token)
        self._options = flight.FlightCallOptions(headers=[header], timeout=30)

    def run(self, count: int) -> Seen:
        sampling = threading.Thread(target=self._sample)
        sampling.start()
        for number in range(count):
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
        token = EpochToken(
            dataset=attachment.dataset, epoch=attachment.epoch, shards=(attachment.shard_id,)
        )
        ticket = Ticket(
            version=1,
            query_id=uuid.uuid4().hex,
            tenant=plan.tenant,
            sql=bomb(self._rng, shard_relation(attachment.shard_id)),
            tokens=(token,),
            expires_at_ms=int(time.time() * 1000) + 60_000,
            timeout_ms=3_000,
            max_result_rows=100_000,
        )
        try:
            with flight.connect(executor.address) as client:
                signed = flight.Ticket(sign(encode(ticket), self._key))
                for _ in client.do_get(signed, flight.FlightCallOptions(timeout=10)):
                    pass
            self._seen.outcomes["answered"] += 1
        except (flight.FlightError, OSError, ValueError, KeyError) as error:
            self._seen.outcomes[kind_of(error)] += 1
        if has_ended(executor.pid):
            self._wait_back()

    def _wait_back(self) -> None:
        """It was stopped: until its tenant's queries are answered again."""
        started = time.monotonic()
        self._seen.stops += 1
        sql = "SELECT count(*) FROM facts WHERE day = 3"
        ticket = flight.Ticket(messages.wrap(messages.new("CommandStatementQuery", query=sql)))
        while True:
            try:
                self._client.do_get(ticket, self._options).read_all()
            except flight.FlightError as error:
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

        dashboards(2.0).wait()
        alone = dashboards(NEIGHBOUR_SECONDS / 2).wait()
        beside: list[RunningLoad] = [dashboards(NEIGHBOUR_SECONDS)]
        seen = Bombing(cluster, token, options.seed).run(options.bombs)
        told = beside[0].wait()

    budget = BUDGET.memory_bytes_per_host
    taken = (seen.peak_bytes + shard_bytes) / budget
    ratio = told.percentile(0.99) / max(alone.percentile(0.99), 0.001)
    slowest = max(seen.back_ms, default=0.0)
    print(f"{options.bombs} bombs: {dict(seen.outcomes)}; the executor was stopped {seen.stops} x")
    lines = (
        (taken <= 1.10, (f"executor and shard files took at most {taken:.2f} of the budget "
         f"({seen.peak_bytes / MIB:.0f} + {shard_bytes / MIB:.0f} of {budget / MIB:.0f} MiB; "
         f"{seen.peak_private_bytes / MIB:.0f} MiB private) (<= 1.10)")),
        (ratio <= 2.0, (f"the neighbour's p99 was {ratio:.2f} x alone "
         f"({told.percentile(0.99):.1f} ms, {alone.percentile(0.99):.1f} ms alone) (<= 2)")),
        (not told.failures, f"the neighbour's failed queries: {told.failures or 'none'}"),
        (slowest <= 500, (f"stopped, it answered again within {slowest:.0f} ms at worst, "
         f"{sorted(seen.back_ms)[len(seen.back_ms) // 2] if seen.back_ms else 0:.0f} ms at the "
         "median (<= 500)")),
    )  # fmt: skip
    for holds, line in lines:
        print(f"{'held' if holds else 'NOT HELD'}: {line}")
    if not all(holds for holds, _ in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
