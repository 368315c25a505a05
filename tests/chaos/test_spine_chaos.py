"""Every process killed or frozen at random while clients query and epochs are published.

Three masters, two worker hosts with two replicas, so that every dataset outlives any one host.
What must hold: an answer is always that of exactly one epoch that was published, a query that
fails says so with a code of ours, and when the faults end everything comes back.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import psutil
import pytest
from whole_cluster import CHECK, Lakehouse, Load, ask, querying, wait_until

from accel_dask.errors import AccelError
from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.executor import Executor
from accel_dask.model.member import Worker

pytestmark = [pytest.mark.chaos, pytest.mark.cluster]

TABLE = "facts"
SQL = CHECK.format(table=TABLE)
SECONDS = float(os.environ.get("ACCEL_CHAOS_SECONDS", "90"))
SEED = int(os.environ.get("ACCEL_CHAOS_SEED", "0")) or random.SystemRandom().randrange(10**6)


@pytest.fixture
def cluster() -> Iterator[LocalAccelCluster]:
    with LocalAccelCluster(LocalOptions(masters=3, workers=2)) as running:
        yield running


def test_random_kills_and_freezes_never_give_a_wrong_answer_and_it_all_comes_back(
    cluster: LocalAccelCluster, lakehouse: Lakehouse
) -> None:
    print(f"ACCEL_CHAOS_SEED={SEED}")
    dice = random.Random(SEED)
    expected = {lakehouse.write(TABLE, 1)}
    token = cluster.create_tenant("chaos")
    cluster.create_dataset(lakehouse.dataset("chaos", TABLE, replicas=2))
    cluster.publish("chaos", TABLE)
    cluster.wait_routed()
    stop = threading.Event()
    published: list[int] = []
    publisher = threading.Thread(
        target=_publish_until, args=(stop, cluster, lakehouse, expected, published)
    )
    answers, errors = set(), []
    publisher.start()
    deadline = time.monotonic() + SECONDS
    total = 0
    while time.monotonic() < deadline:
        # Clients reconnect after an error, as real ones do.
        with querying(cluster, "chaos", token, SQL) as load:
            fault = dice.choice(_faults(cluster, dice))
            fault()
            _let_run(load, dice.uniform(0.5, 3))
        answers |= set(load.answers)
        errors += load.errors
        total += load.total
    stop.set()
    publisher.join(120)
    assert not publisher.is_alive(), "publishing hangs"
    assert answers <= expected
    assert all("[" in error and "Traceback" not in error for error in errors), errors
    assert total > SECONDS, "queries must have been answered throughout"
    assert published, "epochs must have been published throughout"
    final = lakehouse.write(TABLE, 10_000)
    _publish_at_last(cluster)
    cluster.wait_routed()
    assert ask(cluster.gateway_urls[0], "chaos", token, SQL) == [final]
    print(f"{total} answers, {len(errors)} typed errors, {len(published)} epochs")


def _let_run(load: Load, seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_until(lambda: bool(load.errors) or time.monotonic() > until)


def _publish_until(
    stop: threading.Event,
    cluster: LocalAccelCluster,
    lakehouse: Lakehouse,
    expected: set[tuple[int, int, int, int]],
    published: list[int],
) -> None:
    version = 1
    while not stop.wait(0.5):
        version += 1
        expected.add(lakehouse.write(TABLE, version, rows=1000 + version))
        try:
            cluster.publish("chaos", TABLE, timeout_seconds=30)
        except AccelError:
            continue  # told: the epoch FAILED, or nobody took it up in time
        published.append(version)


def _publish_at_last(cluster: LocalAccelCluster) -> None:
    deadline = time.monotonic() + 120
    while True:
        try:
            cluster.publish("chaos", TABLE, timeout_seconds=30)
        except AccelError:
            if time.monotonic() > deadline:
                raise
        else:
            return


def _faults(cluster: LocalAccelCluster, dice: random.Random) -> list[Callable[[], None]]:
    def kill(pid: int) -> Callable[[], None]:
        return lambda: _signal(pid, signal.SIGKILL)

    def freeze(pid: int) -> Callable[[], None]:
        return lambda: _freeze(pid, dice.uniform(0.2, 6))

    faults: list[Callable[[], None]] = []
    pids = cluster.pids()
    faults += [kill(pid) for name, pid in pids.items() if not name.startswith("gateway")]
    faults += [freeze(pid) for name, pid in pids.items() if not name.startswith("gateway")]
    for name, pid in pids.items():
        if name.startswith("worker") and psutil.pid_exists(pid):
            children = _children(pid)
            faults += [kill(child) for child in children]
            faults += [freeze(child) for child in children]
    executors = [e.pid for e in cluster.view.records(Executor) if e.pid]
    faults += [kill(pid) for pid in executors] + [freeze(pid) for pid in executors]
    member = dice.randrange(3)
    faults += [lambda: cluster.etcd.kill(member)] * 2
    return faults


def _children(pid: int) -> list[int]:
    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _freeze(pid: int, seconds: float) -> None:
    _signal(pid, signal.SIGSTOP)
    timer = threading.Timer(seconds, _signal, (pid, signal.SIGCONT))
    timer.daemon = True
    timer.start()


def test_a_host_that_never_comes_back_has_its_shards_loaded_elsewhere(
    cluster: LocalAccelCluster, lakehouse: Lakehouse
) -> None:
    expected = lakehouse.write(TABLE, 1)
    token = cluster.create_tenant("single")
    cluster.create_dataset(lakehouse.dataset("single", TABLE, replicas=1))
    cluster.publish("single", TABLE)
    cluster.wait_routed()
    (executor,) = cluster.view.records(Executor)
    lost = executor.worker
    cluster.stop_process(lost, kill=True)
    cluster.mirror.wait_for(
        lambda view: (
            {w.worker for w in view.records(Worker)} == {"worker-0", "worker-1"} - {lost}
            and any(e.worker != lost for e in view.records(Executor))
        ),
        60,
        "an executor on the other host",
    )
    cluster.wait_routed()
    assert ask(cluster.gateway_urls[0], "single", token, SQL) == [expected]
