"""The Dask edge of a host: what runs in the nanny, and the load task that runs in its worker.

The nanny holds the host agent, so executors outlive the Dask worker and the Dask scheduler.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import sys
import weakref
from collections.abc import Awaitable, Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Protocol

import psutil
from distributed import Status, get_worker

from accel_dask.codec import decode, encode
from accel_dask.config import HostSettings, load_settings
from accel_dask.errors import (
    AccelError,
    ConfigError,
    LoaderCrashed,
    StoreUnavailable,
    error_class,
)
from accel_dask.model.ids import ShardId, WorkerId
from accel_dask.model.load_plan import LoadOrder, ShardManifest
from accel_dask.model.member import Worker
from accel_dask.niceness import let_queries_go_first
from accel_dask.store.base import StateStore
from accel_dask.store.connect import open_store
from accel_dask.worker_plugin.agent import HostAgent
from accel_dask.worker_plugin.enforcement.background import step_back
from accel_dask.worker_plugin.enforcement.enforcer import Enforcement, make_enforcer
from accel_dask.worker_plugin.executors import ExecutorHost
from accel_dask.worker_plugin.load import run_loader
from accel_dask.worker_plugin.shard_dir import ShardDir, default_shard_dir, is_memory_fs

logger = logging.getLogger(__name__)

SCHEDULER_LOST: Final = frozenset(
    {
        "scheduler-close",
        "worker-handle-scheduler-connection-broken",
        "worker-heartbeat-error",
        "worker-heartbeat-missing",
    }
)
"""Why a Dask worker closes when its scheduler is gone. It would take its nanny with it."""

_SCHEDULER_RETRY_SECONDS: Final = 1.0
_WANTED_SECONDS: Final = 1.0
_NANNY_SECONDS: Final = 60.0
"""For the nanny's answer to a load report; it writes to the store before it answers."""

Answer = dict[str, Any]


class HostNanny(Protocol):
    """What we use of `distributed.Nanny`."""

    name: object
    handlers: dict[str, Callable[..., Any]]
    scheduler: Any
    process: Any
    close: Callable[..., Awaitable[str]]


class _Host:
    """The host agent of one nanny, with the store it speaks to."""

    def __init__(
        self, store: StateStore, agent: HostAgent, executors: ExecutorHost, *, steps_back: bool
    ) -> None:
        self.store = store
        self.agent = agent
        self._executors = executors
        self._steps_back = steps_back

    def start(self) -> None:
        self.agent.start()
        thread = self._executors.starting_thread
        if self._steps_back and thread is not None:
            let_queries_go_first(spared=(thread,))  # executors inherit its nice value

    def stop(self) -> None:
        try:
            self.agent.stop()
        finally:
            self.store.close()


_HOSTS: weakref.WeakKeyDictionary[HostNanny, _Host] = weakref.WeakKeyDictionary()


# In the nanny


async def set_up_nanny(nanny: HostNanny) -> None:
    """Start the host agent of `nanny`; its process ends if that fails, because Dask would go on
    without us."""
    _log_beside_dask()
    try:
        host = _build_host(nanny)
        try:
            await asyncio.to_thread(host.start)
        except BaseException:
            await asyncio.to_thread(host.stop)
            raise
    except Exception as error:
        if not isinstance(error, AccelError):
            logger.exception("the host agent did not start")
        sys.stderr.write(f"accel-dask: worker {nanny.name} cannot be a host: {error}\n")
        sys.stderr.flush()
        os._exit(1)
    _HOSTS[nanny] = host
    _add_handlers(nanny, host.agent)
    _outlive_scheduler(nanny)
    await _wait_for_scheduler(nanny)


def _log_beside_dask() -> None:
    """Dask sets up its own loggers only; leave ours alone where somebody has set them up."""
    ours = logging.getLogger("accel_dask")
    if ours.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)


async def tear_down_nanny(nanny: HostNanny) -> None:
    """Drain the host's executors and take it off the cluster."""
    host = _HOSTS.pop(nanny, None)
    if host is not None:
        await asyncio.to_thread(host.stop)
    # Dask waits for a worker to be up before it ends it; without a scheduler that is for ever.
    worker = nanny.process
    if worker is not None and worker.status == Status.starting and worker.process is not None:
        await worker.process.kill()


def _build_host(nanny: HostNanny) -> _Host:
    if nanny.name in (None, ""):
        raise ConfigError("it has no name; start it as `dask worker --name <name> ...`")
    settings = load_settings()
    worker = WorkerId(str(nanny.name))
    shard_dir = ShardDir(
        Path(settings.host.shard_dir) if settings.host.shard_dir else default_shard_dir(worker)
    )
    store = open_store(settings.store)
    executors = ExecutorHost(
        shard_dir.path / "run", on_exit=lambda executor, _: agent.executor_ended(executor.spec)
    )
    place = hashlib.sha256(str(shard_dir.path).encode()).hexdigest()[:8]
    enforcer = make_enforcer(
        f"{worker}-{place}",
        len(os.sched_getaffinity(0)),
        enforcement=settings.host.enforcement,
        policy=settings.host.cpu_policy,
        parent=settings.host.cgroup,
    )
    record = _worker_record(worker, settings.host, shard_dir, enforcer.describe())
    agent = HostAgent(store, settings.host, record, shard_dir, executors, enforcer)
    steps_back = settings.host.enforcement != Enforcement.NONE
    return _Host(store, agent, executors, steps_back=steps_back)


def _worker_record(
    worker: WorkerId, settings: HostSettings, shard_dir: ShardDir, enforcement: str
) -> Worker:
    memory_bytes: int = settings.memory_bytes or psutil.virtual_memory().total // 2
    return Worker(
        worker=worker,
        host=settings.host,
        memory_bytes=memory_bytes,
        cores=len(os.sched_getaffinity(0)),
        shard_dir=str(shard_dir.path),
        in_memory=is_memory_fs(shard_dir.path),
        enforcement=enforcement,
        version=version("accel-dask"),
    )


def _add_handlers(nanny: HostNanny, agent: HostAgent) -> None:
    """RPC for the Dask worker and for tools. Answers are plain dicts, whatever happens."""

    async def load_started(order: bytes, pid: int) -> Answer:
        return await _answer(lambda: agent.loads.started(decode(order, LoadOrder), pid))

    async def load_finished(order: bytes) -> Answer:
        return await _answer(lambda: agent.loads.finished(decode(order, LoadOrder)))

    async def load_failed(order: bytes, code: str, message: str) -> Answer:
        return await _answer(
            lambda: agent.loads.failed(decode(order, LoadOrder), error_class(code)(message))
        )

    async def load_wanted(order: bytes) -> Answer:
        return await _answer(lambda: agent.loads.is_wanted(decode(order, LoadOrder)))

    async def inventory() -> Answer:
        return await _answer(agent.inventory)

    async def background() -> Answer:
        return await _answer(agent.enforcer.background_files)

    nanny.handlers.update(
        {
            "accel_load_started": load_started,
            "accel_load_finished": load_finished,
            "accel_load_failed": load_failed,
            "accel_load_wanted": load_wanted,
            "accel_inventory": inventory,
            "accel_background": background,
        }
    )


async def _answer(work: Callable[[], object]) -> Answer:
    """Do `work` off the event loop; `{"ok": <JSON>}`, or `{"code": ..., "message": ...}`."""
    try:
        return {"ok": encode(await asyncio.to_thread(work))}
    except AccelError as error:
        return {"code": error.code, "message": str(error)}
    except Exception:
        logger.exception("a request to the host agent failed")
        return {"code": AccelError.code, "message": "internal error; see the nanny's log"}


def _outlive_scheduler(nanny: HostNanny) -> None:
    """Keep the nanny when only its worker ends for want of a scheduler. It then starts a new
    worker, which waits for the scheduler to come back."""
    close_gracefully, close = nanny.handlers["close_gracefully"], nanny.close

    def keep_or_close_gracefully(reason: str = "nanny-close-gracefully") -> None:
        if reason in SCHEDULER_LOST:
            logger.warning("the scheduler is gone (%s): the host serves on without it", reason)
        else:
            close_gracefully(reason=reason)

    async def keep_or_close(*args: Any, reason: str = "nanny-close", **options: Any) -> str:
        # A worker that lost the scheduler while it was starting: the nanny tries another one.
        if reason == "nanny-instantiate-failed" and nanny in _HOSTS:
            logger.warning("a new Dask worker did not come up; the host serves on")
            return "OK"
        return await close(*args, reason=reason, **options)

    nanny.handlers["close_gracefully"] = keep_or_close_gracefully
    nanny.close = keep_or_close


async def _wait_for_scheduler(nanny: HostNanny) -> None:
    """The host serves while its scheduler is still to come; a nanny alone would give up."""
    told = False
    while True:
        try:
            await nanny.scheduler.identity()
        except OSError as error:
            if not told:
                logger.warning("waiting for the scheduler: %s", error)
            told = True
            await asyncio.sleep(_SCHEDULER_RETRY_SECONDS)
        else:
            return


# In the worker

_SHARD_LOCKS: weakref.WeakValueDictionary[ShardId, asyncio.Lock] = weakref.WeakValueDictionary()
"""Two epochs may order the same shard at once: the second load only checks the first's file."""


def check_worker(worker: Any) -> None:
    """Refuse a worker without a nanny: nothing would record its loads."""
    if not worker.nanny:
        sys.stderr.write("accel-dask: a worker needs its nanny; do not use --no-nanny\n")
        sys.stderr.flush()
        os._exit(1)


_BACKGROUND: set[asyncio.Task[None]] = set()


def step_back_soon(worker: Any) -> None:
    """Let the Dask worker's tasks disturb no executor. The nanny answers once the worker is up,
    so nothing may wait for this."""
    task = asyncio.get_running_loop().create_task(_step_back(worker))
    _BACKGROUND.add(task)
    task.add_done_callback(_BACKGROUND.discard)


async def _step_back(worker: Any) -> None:
    try:
        files = decode(await _tell(worker, "accel_background"), tuple[str, ...])
    except AccelError as error:
        logger.warning("the Dask worker keeps its CPU weight: %s", error)
    else:
        step_back(files)


async def run_load(order_json: bytes) -> bytes:
    """The load task: waits for one loader and tells the nanny how it went; the manifest.

    Raises:
        AccelError: why the load failed; the nanny has recorded it.
    """
    worker = get_worker()
    order = decode(order_json, LoadOrder)
    lock = _SHARD_LOCKS.setdefault(order.task.shard_id, asyncio.Lock())
    async with lock:
        started = await _tell(worker, "accel_load_started", order=order_json, pid=os.getpid())
        order = decode(started, LoadOrder)
        try:
            await _load(worker, order)
        except AccelError as error:
            await _report_failure(worker, order, error)
            raise
        except BaseException as error:
            told = f"the load task ended with {type(error).__name__}: {error}"
            await _report_failure(worker, order, LoaderCrashed(told))
            raise
        return await _tell(worker, "accel_load_finished", order=encode(order))


async def _load(worker: Any, order: LoadOrder) -> ShardManifest:
    """Run the loader; stop it once nothing wants its shard any more."""
    unwanted = asyncio.Event()

    async def watch() -> None:
        while not unwanted.is_set():
            await asyncio.sleep(_WANTED_SECONDS)
            answer = await _tell(worker, "accel_load_wanted", order=encode(order))
            if not decode(answer, bool):
                logger.info("shard %s is not wanted any more; ending", order.task.shard_id)
                unwanted.set()

    watching = asyncio.create_task(watch())
    try:
        return await run_loader(order, unwanted)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


async def _report_failure(worker: Any, order: LoadOrder, failure: AccelError) -> None:
    try:
        await _tell(
            worker,
            "accel_load_failed",
            order=encode(order),
            code=failure.code,
            message=str(failure),
        )
    except AccelError as error:  # the agent sees for itself when this process has ended
        logger.warning("could not report the failed load of %s: %s", order.task.shard_id, error)


async def _tell(worker: Any, what: str, **message: Any) -> bytes:
    """Ask the nanny; what it answers.

    Raises:
        AccelError: what the nanny reports.
        StoreUnavailable: the nanny does not answer.
    """
    try:
        call = getattr(worker.rpc(worker.nanny), what)(**message)
        answer = await asyncio.wait_for(call, _NANNY_SECONDS)
    except (OSError, TimeoutError) as error:
        raise StoreUnavailable(f"the nanny of {worker.name} does not answer: {error}") from error
    if "ok" not in answer:
        raise error_class(answer["code"])(answer["message"])
    ok: bytes = answer["ok"]
    return ok
