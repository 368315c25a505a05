"""`dask worker --preload accel_dask.worker_plugin.preload_worker`: imports what load tasks need
before the first of them arrives, and puts executors before the worker's own tasks."""

from __future__ import annotations

from accel_dask.worker_plugin import plugin


async def dask_setup(worker: object) -> None:
    plugin.check_worker(worker)
    plugin.step_back_soon(worker)
