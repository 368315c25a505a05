"""Handing loads to a real Dask scheduler and worker, all in this process."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from distributed import Scheduler, Worker
from simulated_world import shard_task

from accel_dask.codec import decode
from accel_dask.errors import SourceUnavailable
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId, WorkerId
from accel_dask.model.load_plan import LoadOrder
from accel_dask.scheduler_plugin import loads as module
from accel_dask.scheduler_plugin.controller import Load
from accel_dask.scheduler_plugin.loads import LoadDispatcher
from accel_dask.scheduler_plugin.wanted import WantedLoad

STARTED: list[str] = []
RUNNING: Counter[str] = Counter()
AT_ONCE: Counter[str] = Counter()
FAILURES: Counter[str] = Counter()
GATES: dict[str, asyncio.Event] = {}


async def fake_load(order_json: bytes) -> bytes:
    """Stands for a loader; tests say how it ends, and when."""
    order = decode(order_json, LoadOrder)
    shard = order.task.shard_id
    STARTED.append(shard)
    RUNNING[shard] += 1
    AT_ONCE[shard] = max(AT_ONCE[shard], RUNNING[shard])
    try:
        if shard in GATES:
            await GATES[shard].wait()
        if FAILURES[shard] > 0:
            FAILURES[shard] -= 1
            raise SourceUnavailable("the source is away")
        return b"manifest"
    finally:
        RUNNING[shard] -= 1


def wanted(shard: str, worker: str = "host-1", epoch: int = 1) -> Load:
    task = shard_task(shard)
    load = WantedLoad(
        worker=WorkerId(worker),
        shard_id=ShardId(shard),
        dataset_id=DatasetId(TenantId("acme"), "flights"),
        epoch=EpochNumber(epoch),
        index=int(shard[1:] or 0),
        plan_digest="d",
        max_file_bytes=1,
    )
    order = LoadOrder(
        tenant=TenantId("acme"),
        dataset="flights",
        epoch=EpochNumber(epoch),
        task=task,
        shard_dir="/x",
        spill_dir="",
        memory_bytes=0,
        threads=1,
        max_file_bytes=1,
    )
    return Load(load, order)


async def until(predicate: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not predicate():  # noqa: ASYNC110 - Dask offers no event for these
            await asyncio.sleep(0.01)


def host(scheduler: Any, name: str = "host-1", nthreads: int = 2) -> Worker:
    return Worker(scheduler.address, name=name, nthreads=nthreads, host="127.0.0.1", memory_limit=0)


@asynccontextmanager
async def dispatching() -> AsyncIterator[tuple[Any, LoadDispatcher]]:
    for known in (STARTED, RUNNING, AT_ONCE, FAILURES, GATES):
        known.clear()
    async with Scheduler(host="127.0.0.1", port=0, dashboard_address=":0") as scheduler:
        dispatcher = LoadDispatcher(scheduler, fake_load)
        dispatcher.start()
        try:
            yield scheduler, dispatcher
        finally:
            await dispatcher.close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TICK_SECONDS", 0.02)
    monkeypatch.setattr(module, "_RETRY_SECONDS", 0.1)
    monkeypatch.setattr(module, "_SETTLE_SECONDS", 0.2)


def test_a_load_runs_on_its_own_host_and_is_forgotten() -> None:
    async def run() -> None:
        async with (
            dispatching() as (scheduler, dispatcher),
            host(scheduler) as one,
            host(scheduler, "host-2") as two,
        ):
            GATES["a"] = asyncio.Event()
            dispatcher.want((wanted("a", "host-2"),))
            await until(lambda: STARTED == ["a"])
            key = ("accel-load", "acme.flights@1#0/host-2")
            assert key in two.state.tasks
            assert key not in one.state.tasks
            assert [load.shard_id for load in dispatcher.running()] == ["a"]
            GATES["a"].set()
            dispatcher.want(())
            await until(lambda: not dispatcher.running())
            await until(lambda: key not in scheduler.tasks)

    asyncio.run(run())


def test_a_load_waits_for_its_host() -> None:
    async def run() -> None:
        async with dispatching() as (scheduler, dispatcher):
            dispatcher.want((wanted("a"),))
            await asyncio.sleep(0.1)
            assert STARTED == []
            async with host(scheduler):
                await until(lambda: STARTED == ["a"])

    asyncio.run(run())


def test_a_failed_load_is_tried_again_after_a_pause() -> None:
    async def run() -> None:
        async with (
            dispatching() as (scheduler, dispatcher),
            host(scheduler),
        ):
            FAILURES["a"] = 2
            dispatcher.want((wanted("a"),))
            begun = asyncio.get_running_loop().time()
            await until(lambda: STARTED == ["a"] * 3)
            assert asyncio.get_running_loop().time() - begun >= 0.1 + 0.2
            assert AT_ONCE["a"] == 1

    asyncio.run(run())


def test_a_load_follows_its_host_to_another_address() -> None:
    async def run() -> None:
        async with dispatching() as (scheduler, dispatcher):
            async with host(scheduler):
                GATES["a"] = asyncio.Event()
                dispatcher.want((wanted("a"),))
                await until(lambda: STARTED == ["a"])
            RUNNING.clear()  # the process is gone with all it ran
            GATES.clear()
            async with host(scheduler):
                await until(lambda: STARTED == ["a", "a"])
                dispatcher.want(())
                await until(lambda: not dispatcher.running())

    asyncio.run(run())


def test_the_same_load_never_runs_twice_at_once() -> None:
    """Not even when another epoch comes to want the same shard."""

    async def run() -> None:
        async with (
            dispatching() as (scheduler, dispatcher),
            host(scheduler),
        ):
            GATES["a"] = asyncio.Event()
            dispatcher.want((wanted("a", epoch=1),))
            await until(lambda: STARTED == ["a"])
            dispatcher.want((wanted("a", epoch=2),))
            await asyncio.sleep(0.3)
            assert STARTED == ["a"]
            GATES["a"].set()
            await until(lambda: STARTED == ["a", "a"])
            assert AT_ONCE["a"] == 1

    asyncio.run(run())


def test_a_load_that_nobody_wants_any_more_is_cancelled() -> None:
    async def run() -> None:
        async with (
            dispatching() as (scheduler, dispatcher),
            host(scheduler, nthreads=1),
        ):
            GATES["a"] = asyncio.Event()
            dispatcher.want((wanted("a"), wanted("b", epoch=2)))
            await until(lambda: len(dispatcher.running()) == 2)
            dispatcher.want(())
            await until(lambda: not dispatcher.running())
            GATES["a"].set()
            await until(lambda: not any("host-1" in str(key) for key in scheduler.tasks))

    asyncio.run(run())


def test_many_loads_are_handed_out_a_few_at_a_time_and_leave_nothing_in_dask() -> None:
    async def run() -> None:
        async with (
            dispatching() as (scheduler, dispatcher),
            host(scheduler, nthreads=2),
        ):
            left = {f"s{i}" for i in range(40)}
            most = 0
            while left:
                dispatcher.want(tuple(wanted(shard) for shard in sorted(left)))
                most = max(most, len(dispatcher.running()))
                await asyncio.sleep(0.01)
                left -= set(STARTED)
            dispatcher.want(())
            await until(lambda: not dispatcher.running())
            assert most <= 4
            await until(lambda: len(scheduler.tasks) <= 1)
            assert set(scheduler.task_prefixes) == {"accel-load"}

    asyncio.run(run())
