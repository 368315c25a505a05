"""A tenant's worst day, while it lasts."""

from __future__ import annotations

import threading
import time
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from accel_dask.drill.loads import Load, RunningLoad, Seen, Shape
from accel_dask.drill.site import VICTIM, DrillSite
from accel_dask.drill.verdicts import Attack
from accel_dask.drill.workload import DASHBOARD, HEAVY, HOGS, LOOKUPS
from accel_dask.errors import AccelError

_SPARE_SECONDS = 3.0
"""Pure Python computes so much longer than it is asked for, in case the victim comes late."""


@dataclass(slots=True)
class Done:
    """What an attack has got done, once it is over."""

    seen: Seen | None = None
    refreshes: int = 0


def dashboards(site: DrillSite, seconds: float, rate: float) -> RunningLoad:
    """The victim's queries, arriving at random times, whatever the answers do."""
    return RunningLoad(
        Load(
            url=site.target.gateway,
            user=VICTIM,
            token=site.tokens[VICTIM],
            statements=DASHBOARD,
            seconds=seconds,
            shape=Shape.OPEN,
            rate=rate,
            clients=24,
            is_favoured=True,
        )
    )


@contextmanager
def under(site: DrillSite, attack: Attack, seconds: float) -> Iterator[Done]:
    """`attack` goes on for `seconds`, or until the body ends if that can be had sooner. Its
    end is waited for."""
    done = Done()
    if attack is Attack.PYTHON:
        with _computing(site, seconds):
            yield done
    elif attack is Attack.REFRESH:
        with _refreshing(site, done):
            yield done
    else:
        clients, shape, statements = {
            Attack.HEAVY: (8, Shape.CLOSED, HEAVY),
            Attack.MEMORY: (8, Shape.CLOSED, HOGS),
            Attack.FLOOD: (64, Shape.FLOOD, LOOKUPS),
        }[attack]
        running = RunningLoad(
            Load(
                url=site.target.gateway,
                user=site.noisy,
                token=site.tokens[site.noisy],
                statements=statements,
                seconds=seconds,
                shape=shape,
                clients=clients,
            )
        )
        try:
            yield done
            done.seen = running.wait()
        finally:
            running.end()


@contextmanager
def _computing(site: DrillSite, seconds: float) -> Iterator[None]:
    """Somebody's tasks on every thread of the Dask workers. They end by the clock: a task that
    runs cannot be stopped, and workers are not ours to restart."""
    from distributed import Client

    until = time.time() + seconds + _SPARE_SECONDS
    try:
        with Client(site.target.scheduler, set_as_default=False) as client:
            threads = sum(client.nthreads().values())
            tasks = [client.submit(compute, until, i, pure=False) for i in range(threads)]
            try:
                yield
                for task in tasks:
                    task.result(timeout=10 * _SPARE_SECONDS)
            finally:
                client.cancel(tasks, force=True)
    except (OSError, TimeoutError, CancelledError) as error:
        raise AccelError(
            f"pure Python could not be run on the Dask workers of {site.target.scheduler}: {error}"
        ) from error


def compute(until: float, _: int) -> int:
    """Pure Python until the clock (seconds since 1970) says so."""
    count = 0
    while time.time() < until:
        count += sum(i * i % 7 for i in range(10_000))
    return count


@contextmanager
def _refreshing(site: DrillSite, done: Done) -> Iterator[None]:
    """
    Raises:
        AccelError: a refresh failed.
    """
    stop = threading.Event()
    failures: list[AccelError] = []

    def refresh() -> None:
        while not stop.is_set():
            try:
                site.refresh()
            except AccelError as error:
                failures.append(error)
                return
            done.refreshes += 1

    thread = threading.Thread(target=refresh, name="drill-refresh", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    if failures:
        raise failures[0]
