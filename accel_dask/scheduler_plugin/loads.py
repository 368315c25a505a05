"""Has wanted loads run as Dask tasks, each pinned to its host; in the scheduler's process.

Dask only carries them: what a load led to is in its `Replica` record, and a task that is lost
changes nothing but the time until the next try.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from distributed import Client

from accel_dask.codec import encode
from accel_dask.model.ids import EpochNumber, ShardId, WorkerId
from accel_dask.scheduler_plugin.controller import Load
from accel_dask.scheduler_plugin.wanted import WantedLoad

logger = logging.getLogger(__name__)

TASK_PREFIX: Final = "accel-load"
"""One prefix for all loads: Dask never forgets a prefix. It is their name in the task stream."""

_RUNS_PER_HOST: Final = 4
"""Loads handed to one host at once; the rest wait here, where they cost nothing."""
_RETRY_SECONDS: Final = 1.0
_MAX_RETRY_SECONDS: Final = 30.0
_SETTLE_SECONDS: Final = 2.0
"""A load's end is seen twice: as its task's end and as its replica. This much may lie between,
whichever comes first, before a load is tried again or cancelled."""
_TICK_SECONDS: Final = 0.5

Slot = tuple[WorkerId, ShardId]


@dataclass(slots=True)
class _Run:
    """A load that was handed to Dask."""

    load: WantedLoad
    address: str
    future: Any
    unwanted_since: float | None = None


@dataclass(slots=True)
class _Tried:
    """How the last tries of a slot went, for one epoch."""

    epoch: EpochNumber
    failures: int = 0
    not_before: float = 0.0


class LoadDispatcher:
    """Implements `Loads`. Lives on the scheduler's event loop; `want` may be called from any
    thread."""

    def __init__(self, scheduler: Any, run_load: Callable[[bytes], Any]) -> None:
        self._scheduler = scheduler
        self._run_load = run_load
        self._loop: asyncio.AbstractEventLoop | None = None
        self._changed = asyncio.Event()
        self._wanted: tuple[Load, ...] = ()
        self._runs: dict[Slot, _Run] = {}
        self._tried: dict[Slot, _Tried] = {}
        self._client: Any = None
        self._anchor: Any = None
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False

    def start(self) -> None:
        """Begin, in the background: the scheduler answers no client before it has started."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run())

    async def close(self) -> None:
        """Stop. Loads under way end by themselves, and are found by the next master."""
        self._is_closing = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._client is not None:
            await self._client.close()

    def want(self, loads: tuple[Load, ...]) -> None:
        """Have exactly these under way."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._take, loads)

    def _wake(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._changed.set)

    def running(self) -> tuple[WantedLoad, ...]:
        """Loads that Dask has now."""
        return tuple(run.load for run in self._runs.values())

    def _take(self, loads: tuple[Load, ...]) -> None:
        if loads != self._wanted:
            self._wanted = loads
            self._changed.set()

    async def _run(self) -> None:
        while not self._is_closing:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), _TICK_SECONDS)
            self._changed.clear()
            try:
                if (self._wanted or self._runs) and await self._is_connected():
                    await self._step()
            except Exception:  # a fault with one load must not end all loading
                logger.exception("handing loads to Dask failed; it is tried again")

    async def _is_connected(self) -> bool:
        if self._client is None or self._client.status != "running":
            if self._client is not None:
                await self._client.close()
            self._runs.clear()
            self._client = await Client(
                self._scheduler.address,
                asynchronous=True,
                set_as_default=False,
                name="accel-dask-master",
            )
            # Dask keeps statistics of a group of tasks for ever and begins a new group when
            # the last one has no task left; one that never ends keeps it to a single group.
            self._anchor = self._client.submit(
                _anchor, key=(TASK_PREFIX, "anchor"), pure=False, priority=-1
            )
        return True

    async def _step(self) -> None:
        now = time.monotonic()
        wanted = {(load.wanted.worker, load.wanted.shard_id): load for load in self._wanted}
        for slot in self._tried.keys() - wanted.keys():
            del self._tried[slot]
        for slot, run in tuple(self._runs.items()):
            if run.future.done():
                await self._end(slot, run, now)
            elif self._scheduler.aliases.get(run.load.worker) != run.address:
                await self._cancel(slot, run, "its worker is gone or has another address")
            elif slot in wanted:
                run.unwanted_since = None
            elif run.unwanted_since is None:
                run.unwanted_since = now
            elif now - run.unwanted_since > _SETTLE_SECONDS:
                await self._cancel(slot, run, "it is not wanted any more")
        for slot, load in wanted.items():
            if slot not in self._runs and self._may_start(slot, load.wanted, now):
                self._submit(slot, load)

    def _may_start(self, slot: Slot, wanted: WantedLoad, now: float) -> bool:
        if self._scheduler.aliases.get(wanted.worker) is None:
            return False
        if sum(run.load.worker == wanted.worker for run in self._runs.values()) >= _RUNS_PER_HOST:
            return False
        tried = self._tried.get(slot)
        return tried is None or tried.epoch != wanted.epoch or now >= tried.not_before

    def _submit(self, slot: Slot, load: Load) -> None:
        wanted = load.wanted
        address = self._scheduler.aliases[wanted.worker]
        future = self._client.submit(
            self._run_load,
            encode(load.order),
            key=(TASK_PREFIX, wanted.name),
            workers=[address],
            allow_other_workers=False,
            pure=False,
            retries=0,
        )
        future.add_done_callback(lambda _: self._wake())  # Dask calls it on another thread
        self._runs[slot] = _Run(wanted, address, future)
        logger.info("load %s (shard %s) goes to %s", wanted.name, wanted.shard_id, address)

    async def _end(self, slot: Slot, run: _Run, now: float) -> None:
        """Note how the load went, and let Dask forget it."""
        tried = self._tried.get(slot)
        if tried is None or tried.epoch != run.load.epoch:
            tried = self._tried[slot] = _Tried(run.load.epoch)
        if run.future.status == "finished":
            tried.failures = 0
            tried.not_before = now + _SETTLE_SECONDS
        else:
            error = await self._reason(run)
            tried.failures += 1
            delay = min(_RETRY_SECONDS * 2 ** (tried.failures - 1), _MAX_RETRY_SECONDS)
            tried.not_before = now + delay
            logger.warning("load %s failed (try %d): %s", run.load.name, tried.failures, error)
        run.future.release()
        del self._runs[slot]

    async def _reason(self, run: _Run) -> str:
        if run.future.status == "cancelled":
            return "Dask lost it"
        error = await run.future.exception()
        return f"{type(error).__name__}: {error}"

    async def _cancel(self, slot: Slot, run: _Run, why: str) -> None:
        logger.info("load %s is cancelled: %s", run.load.name, why)
        await self._client.cancel([run.future], force=True)
        run.future.release()
        del self._runs[slot]


def _anchor() -> None:
    """Does nothing, and is done."""
