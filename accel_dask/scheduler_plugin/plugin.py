"""The master inside the Dask scheduler: puts its parts together and ties them to Dask.

Nothing that matters lives here. A scheduler that cannot become a master ends, with one line that
says why: Dask itself would go on without us.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
import sys
import time
import uuid
from collections import deque
from typing import Any, Final

from distributed import SchedulerPlugin
from prometheus_client import REGISTRY
from tornado.ioloop import PeriodicCallback

from accel_dask.config import Settings, load_settings
from accel_dask.connectors.registry import open_source
from accel_dask.errors import AccelError, ConfigError
from accel_dask.model.dataset import PublishRequest
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.scheduler_plugin.controller import Controller
from accel_dask.scheduler_plugin.loads import LoadDispatcher
from accel_dask.scheduler_plugin.locality import ShardPlaces
from accel_dask.scheduler_plugin.metrics import AccelCollector
from accel_dask.scheduler_plugin.summary import queries_per_second, summarize
from accel_dask.store.base import StateStore
from accel_dask.store.connect import open_store
from accel_dask.store.records import ensure_meta, put_record

logger = logging.getLogger(__name__)

NAME: Final = "accel-dask"

# By name, not by import: master and host share no code but the model. Workers look it up too.
_RUN_LOAD: Final = ("accel_dask.worker_plugin.plugin", "run_load")
_SAMPLES: Final = 600
_STORY_LINES: Final = 50


class AccelSchedulerPlugin(SchedulerPlugin):
    """Runs the master. Found again as `scheduler.plugins["accel-dask"]`."""

    name = NAME
    idempotent = True

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings
        self._store: StateStore | None = None
        self._collector: AccelCollector | None = None
        self._loads: LoadDispatcher | None = None
        self._places = ShardPlaces()
        self.controller: Controller | None = None
        self.rates: deque[tuple[float, dict[str, float]]] = deque(maxlen=_SAMPLES)
        """(wall clock seconds, queries per second by tenant), one sample a second."""

    async def start(self, scheduler: Any) -> None:
        try:
            await self._start(scheduler)
        except Exception as error:
            if not isinstance(error, AccelError):
                logger.exception("the master did not start")
            sys.stderr.write(f"accel-dask: this scheduler cannot be a master: {error}\n")
            sys.stderr.flush()
            os._exit(1)

    async def _start(self, scheduler: Any) -> None:
        settings = self._settings or load_settings()
        module, function = _RUN_LOAD
        loads = LoadDispatcher(scheduler, getattr(importlib.import_module(module), function))
        self._store = store = open_store(settings.store)
        await asyncio.to_thread(ensure_meta, store)
        master = f"{socket.gethostname()}-{os.getpid()}"
        self.controller = Controller(
            store,
            settings,
            master=master,
            address=scheduler.address,
            open_source=open_source,
            loads=loads,
        )
        await asyncio.to_thread(self.controller.start)
        self._loads = loads
        loads.start()
        self._tie_to(scheduler)
        logger.info("master %s runs for %s", master, ", ".join(settings.store.endpoints))

    def _tie_to(self, scheduler: Any) -> None:
        scheduler.handlers["accel_status"] = self._handle_status
        scheduler.handlers["accel_publish"] = self._handle_publish
        sampler = PeriodicCallback(self._sample, 1000)
        scheduler.periodic_callbacks["accel-dask-rates"] = sampler
        sampler.start()
        self._collector = AccelCollector(self.state)
        REGISTRY.register(self._collector)

    async def before_close(self) -> None:
        if self._collector is not None:
            REGISTRY.unregister(self._collector)
            self._collector = None
        if self._loads is not None:
            await self._loads.close()
        if self.controller is not None:
            await asyncio.to_thread(self.controller.close)
        if self._store is not None:
            await asyncio.to_thread(self._store.close)

    def valid_workers_downscaling(self, scheduler: Any, workers: list[Any]) -> list[Any]:
        """Workers that may be taken away: not those whose host holds shards or runs executors.
        They look idle to Dask."""
        del scheduler
        if self.controller is None:
            return []
        view = self.controller.view
        held = {worker for worker, shards in view.wanted_shards.items() if shards}
        return [worker for worker in workers if worker.name not in held]

    def update_graph(self, scheduler: Any, *, tasks: list[Any], **_: Any) -> None:
        """Tasks of users that read shards run where the shards are, if they can."""
        if self.controller is None:
            return
        try:
            self._places.prefer(scheduler, tasks, self.controller.view)
        except Exception:  # they run elsewhere then, and are right there too
            logger.exception("tasks were not placed beside their shards")

    def state(self) -> dict[str, Any]:
        """What the page, the JSON route and the metrics show."""
        assert self.controller is not None, "the plugin has started"
        now_ns = time.time_ns()
        state = summarize(self.controller.view, now_ns)
        state["is_leader"] = self.controller.is_leader
        state["loads"] = [load.name for load in self._loads.running()] if self._loads else []
        state["story"] = [
            {"seconds_ago": round((now_ns - told.at_ns) / 1e9, 1), "sentence": told.sentence}
            for told in self.controller.story()[-_STORY_LINES:]
        ]
        return state

    async def request_publish(
        self, tenant: str, dataset: str, snapshot: str | None, requested_by: str
    ) -> str:
        """Write a publish request; its nonce.

        Raises:
            ConfigError: there is no such dataset.
            StoreError: it could not be written.
        """
        assert self.controller is not None
        assert self._store is not None
        key = DatasetId(TenantId(tenant), dataset)
        if self.controller.view.dataset(key) is None:
            raise ConfigError(f"there is no dataset {key}; create it first")
        request = PublishRequest(
            tenant=key.tenant,
            name=key.name,
            nonce=uuid.uuid4().hex,
            requested_by=requested_by,
            requested_at_ns=time.time_ns(),
            snapshot=snapshot,
        )
        await asyncio.to_thread(put_record, self._store, request)
        return request.nonce

    def _sample(self) -> None:
        if self.controller is not None:
            self.rates.append((time.time(), queries_per_second(self.controller.view)))

    # RPC: plain values in and out, an exception reaches the caller.

    async def _handle_status(self) -> dict[str, Any]:
        return self.state()

    async def _handle_publish(
        self, tenant: str, dataset: str, snapshot: str | None = None
    ) -> dict[str, str]:
        return {"nonce": await self.request_publish(tenant, dataset, snapshot, "rpc")}


def plugin_of(scheduler: Any) -> AccelSchedulerPlugin:
    """Ours, in `scheduler`.

    Raises:
        ConfigError: it is not a master (yet).
    """
    plugin = scheduler.plugins.get(NAME)
    if not isinstance(plugin, AccelSchedulerPlugin) or plugin.controller is None:
        raise ConfigError("this scheduler is not a master (yet)")
    return plugin
