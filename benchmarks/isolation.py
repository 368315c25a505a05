"""What a tenant sees of another one's worst day: latency of its dashboards, alone and beside it.

    python benchmarks/isolation.py [--seconds 15] [--rows 6000000] [--quick]

A whole cluster on this machine. The victim's dashboard queries (1 to 20 ms each) arrive at random
times, 30 a second, whatever the answers do. Beside it another tenant runs eight heavy scans and
joins, queries beyond its memory, a flood of connections, a refresh of its data; or somebody
computes in pure Python on the Dask workers. With the default policy, with equal fixed weights, with
nice values alone, without any, and with one DuckDB for both tenants. Limits are checked at the end.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))

import duckdb
from distributed import Client
from load_drivers import Drive, Driving, Told

from accel_dask.local import LocalAccelCluster
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.ids import TenantId
from accel_dask.model.member import Worker
from accel_dask.model.tenant import MIB, Quota

RATE = 30.0
DAYS = 365
DASHBOARD = (
    (
        "SELECT channel, sum(amount), count(*) FROM facts "
        "WHERE day BETWEEN {day} AND {day} + 6 GROUP BY channel"
    ),
    "SELECT store, sum(amount) FROM facts WHERE day = {day} GROUP BY store ORDER BY 2 DESC LIMIT 9",
    (
        "SELECT day, sum(amount), sum(quantity) FROM facts "
        "WHERE day BETWEEN {day} AND {day} + 29 GROUP BY day ORDER BY day"
    ),
    (
        "SELECT product, count(*) FROM facts WHERE day BETWEEN {day} AND {day} + 2 "
        "GROUP BY product ORDER BY 2 DESC, 1 LIMIT 10"
    ),
    "SELECT count(*), avg(amount) FROM facts WHERE day = {day} AND store = {store}",
    "SELECT day, quantity, amount FROM facts WHERE day = {day} AND store = {store} LIMIT 100",
)
HEAVY = (
    (
        "SELECT product, channel, store, sum(amount), count(*) FROM facts "
        "WHERE quantity <> {n} GROUP BY product, channel, store ORDER BY 4 DESC LIMIT 5"
    ),
    "SELECT count(DISTINCT order_id) FROM facts WHERE quantity <> {n}",
    "SELECT count(*) FROM facts a JOIN facts b ON a.order_id = b.order_id WHERE a.quantity <> {n}",
    (
        "SELECT store, median(amount) FROM facts WHERE quantity <> {n} GROUP BY store "
        "ORDER BY 2 LIMIT 3"
    ),
)
HOGS = (
    (
        "SELECT max(length(s)) FROM (SELECT string_agg(CAST(order_id * {n} AS VARCHAR), ',') AS s "
        "FROM facts)"
    ),
    (
        "SELECT count(*) FROM (SELECT order_id, list(amount), list(store), list(product) "
        "FROM facts WHERE quantity <> {n} GROUP BY order_id)"
    ),
    (
        "SELECT max(x) FROM (SELECT row_number() OVER (PARTITION BY store, product "
        "ORDER BY amount, order_id + {n}) AS x FROM facts)"
    ),
    (
        "SELECT count(*) FROM facts a JOIN facts b ON a.store = b.store AND a.product = b.product "
        "WHERE a.quantity <> {n} AND a.day < 100 AND b.day < 100"
    ),
)
TINY = ("SELECT count(*) FROM facts WHERE day = {day} AND store = {store}",)


@dataclass(frozen=True)
class Policy:
    name: str
    environ: dict[str, str]
    noises: tuple[str, ...]
    limit: float | None
    is_shared: bool = False


ALL = ("heavy", "memory", "flood", "python", "refresh")
POLICIES = (
    Policy("default", {}, ALL, 1.3),
    Policy("equal fixed weights", {"ACCEL_HOST_CPU_POLICY": "fixed"}, ("heavy",), 2.0),
    Policy("nice alone", {"ACCEL_HOST_ENFORCEMENT": "nice"}, ("heavy",), 1.5),
    Policy(
        "a process each, no weights",
        {"ACCEL_HOST_ENFORCEMENT": "none", "ACCEL_HOST_CPU_POLICY": "none"},
        ("heavy",),
        None,
    ),
    Policy("one DuckDB for both", {}, ("heavy",), None, is_shared=True),
)


@dataclass
class Row:
    policy: Policy
    noise: str
    victim: Told
    alone: Told
    noisy: Told | None
    noisy_alone: Told | None

    @property
    def ratio(self) -> float:
        return self.victim.percentile(0.99) / max(self.alone.percentile(0.99), 0.001)

    @property
    def kept(self) -> float | None:
        """Of the noisy tenant's own throughput without the victim."""
        if self.noisy is None or self.noisy_alone is None:
            return None
        return self.noisy.per_second / max(self.noisy_alone.per_second, 0.001)

    def __str__(self) -> str:
        kept = f"{self.kept:5.0%}" if self.kept is not None else "    –"
        failed = sum(self.victim.failures.values())
        return (
            f"{self.policy.name:28} {self.noise:9} {self.victim.percentile(0.5):7.1f} "
            f"{self.victim.percentile(0.95):7.1f} {self.victim.percentile(0.99):7.1f} "
            f"{self.ratio:6.2f} {kept:>7} {failed:7}"
        )


class Site:
    """A cluster with two tenants that hold the same facts."""

    def __init__(self, cluster: LocalAccelCluster, directory: Path, policy: Policy) -> None:
        self.cluster = cluster
        self.directory = directory
        self.policy = policy
        quota = Quota(
            memory_bytes_per_host=1536 * MIB,
            executor_memory_bytes=512 * MIB,
            concurrency=4 if not policy.is_shared else 12,
            queue_wait_ms=60_000,
            deadline_ms=60_000,
            max_cpu_ms=60_000,
        )
        self.tokens = {tenant: self._tenant(tenant, quota) for tenant in ("victim", "noisy")}
        cluster.wait_routed()

    def _tenant(self, tenant: str, quota: Quota) -> str:
        if tenant == "noisy":
            quota = Quota(**{**_fields(quota), "concurrency": 8})
        token = self.cluster.create_tenant(tenant, quota)
        source = SourceSpec(connector="parquet", options=(("path", str(self.directory / tenant)),))
        self.cluster.create_dataset(
            Dataset(tenant=TenantId(tenant), name="facts", source=source, sort_by=("day",))
        )
        self.cluster.publish(tenant, "facts", timeout_seconds=300)
        return token

    def victim(self, seconds: float) -> Driving:
        return self._drive("victim", DASHBOARD, seconds, "open", clients=24, favoured=True)

    def _drive(
        self,
        tenant: str,
        statements: tuple[str, ...],
        seconds: float,
        shape: str,
        *,
        clients: int = 8,
        favoured: bool = False,
    ) -> Driving:
        return Driving(
            Drive(
                url=self.cluster.gateway_urls[0],
                user=tenant,
                token=self.tokens[tenant],
                statements=statements,
                seconds=seconds,
                shape=shape,
                rate=RATE,
                clients=clients,
                is_favoured=favoured,
            )
        )

    @contextmanager
    def noise(self, kind: str, seconds: float) -> Iterator[Callable[[], Told | None]]:
        """The other tenant's bad day; what it has got done, once it is over."""
        who = "victim" if self.policy.is_shared else "noisy"
        if kind == "python":
            with self._python_tasks():
                yield lambda: None
        elif kind == "refresh":
            with self._refreshes():
                yield lambda: None
        else:
            shape, clients, statements = {
                "heavy": ("closed", 8, HEAVY),
                "memory": ("closed", 8, HOGS),
                "flood": ("flood", 64, TINY),
            }[kind]
            driving = self._drive(who, statements, seconds, shape, clients=clients)
            try:
                yield driving.wait
            finally:
                driving.end()

    @contextmanager
    def _python_tasks(self) -> Iterator[None]:
        with Client(self.cluster.scheduler_address, set_as_default=False) as client:
            tasks = [client.submit(_compute, 600.0, i, pure=False) for i in range(2)]
            try:
                yield
            finally:
                client.cancel(tasks, force=True)
        # A task that runs cannot be cancelled; the worker can be replaced.
        with Client(self.cluster.scheduler_address, set_as_default=False) as client:
            client.restart(timeout=60)

    @contextmanager
    def _refreshes(self) -> Iterator[None]:
        stop = threading.Event()

        def refresh() -> None:
            generation = 0
            while not stop.is_set():
                generation += 1
                write_facts(self.directory / "noisy", self._rows(), generation)
                self.cluster.publish("noisy", "facts", timeout_seconds=300)

        thread = threading.Thread(target=refresh)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _rows(self) -> int:
        with duckdb.connect() as engine:
            path = self.directory / "victim" / "*.parquet"
            found = engine.execute(f"SELECT count(*) FROM read_parquet('{path}')").fetchone()
        assert found is not None
        return int(found[0])


def _fields(quota: Quota) -> dict[str, int]:
    return {name: getattr(quota, name) for name in quota.__dataclass_fields__}


def _compute(seconds: float, _: int) -> int:
    until, count = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        count += sum(i * i % 7 for i in range(10_000))
    return count


def write_facts(directory: Path, rows: int, seed: int) -> None:
    """Replace the Parquet files of a dataset by `rows` rows; other values for another seed."""
    directory.mkdir(parents=True, exist_ok=True)
    fresh = directory / f"facts-{seed}.parquet"
    with duckdb.connect(config={"threads": 2}) as engine:
        engine.execute(
            f"""COPY (
                SELECT CAST(i * {DAYS} // {rows} AS INTEGER) AS day,
                    CAST(hash(i, {seed}) % 300 AS INTEGER) AS store,
                    CAST(hash(i, {seed}, 1) % 1000 AS INTEGER) AS product,
                    CAST(hash(i, {seed}, 2) % 4 AS TINYINT) AS channel,
                    i // 4 AS order_id,
                    CAST(hash(i, {seed}, 3) % 50 AS INTEGER) AS quantity,
                    CAST(hash(i, {seed}, 4) % 100000 AS DECIMAL(12, 2)) / 100 AS amount
                FROM range({rows}) t(i)
            ) TO '{fresh}.tmp' (FORMAT parquet)"""
        )
    for old in directory.glob("*.parquet"):
        old.unlink()
    Path(f"{fresh}.tmp").rename(fresh)


@contextmanager
def environ(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value


def run_policy(
    policy: Policy, noises: tuple[str, ...], directory: Path, seconds: float
) -> list[Row]:
    with environ(policy.environ), LocalAccelCluster() as cluster:
        site = Site(cluster, directory, policy)
        for host in cluster.view.records(Worker):
            print(f"# {policy.name}: {host.enforcement}", flush=True)
        site.victim(2.0).wait()
        alone = site.victim(seconds).wait()
        rows = [Row(policy, "(alone)", alone, alone, None, None)]
        print(rows[0], flush=True)
        for kind in noises:
            noisy_alone = None
            if kind in {"heavy", "flood"}:
                with site.noise(kind, seconds / 2) as end:
                    noisy_alone = end()
            with site.noise(kind, seconds + 1.0) as end:
                time.sleep(0.5)
                victim = site.victim(seconds).wait()
                noisy = end()
            rows.append(Row(policy, kind, victim, alone, noisy, noisy_alone))
            print(rows[-1], flush=True)
            for failures, who in ((victim.failures, "victim"), (noisy and noisy.failures, kind)):
                for text, count in (failures or {}).items():
                    print(f"#   {who}: {count} x {text}", flush=True)
        return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement")
    parser.add_argument("--rows", type=int, default=6_000_000)
    parser.add_argument("--policy", help="only the policies with this in their name")
    parser.add_argument("--noise", help="only this noise")
    options = parser.parse_args()
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    print(
        f"{'policy':28} {'noise':9} {'p50 ms':>7} {'p95 ms':>7} {'p99 ms':>7} "
        f"{'x p99':>6} {'kept':>7} {'failed':>7}"
    )
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="accel-isolation-") as name:
        directory = Path(name)
        for tenant in ("victim", "noisy"):
            write_facts(directory / tenant, options.rows, 0)
        for policy in POLICIES:
            if options.policy and options.policy not in policy.name:
                continue
            noises = (options.noise,) if options.noise else policy.noises
            rows += run_policy(policy, noises, directory, options.seconds)
    verdicts = list(check(rows))
    print(*verdicts, sep="\n")
    if any(line.startswith("NOT") for line in verdicts):
        raise SystemExit(1)


def check(rows: list[Row]) -> Iterator[str]:
    for row in rows:
        limit = row.policy.limit
        if row.noise == "(alone)" or limit is None:
            continue
        what = f"{row.policy.name}, {row.noise}: victim p99 {row.ratio:.2f} x alone (<= {limit} x)"
        yield f"{'held' if row.ratio <= limit else 'NOT HELD'}: {what}"
        if row.victim.failures:
            yield f"NOT HELD: {row.policy.name}, {row.noise}: failed queries of the victim"
        if row.noise == "heavy" and row.kept is not None:
            yield (
                f"{'held' if row.kept >= 0.8 else 'NOT HELD'}: {row.policy.name}: the noisy "
                f"tenant keeps {row.kept:.0%} of its throughput (>= 80 %)"
            )


if __name__ == "__main__":
    main()
