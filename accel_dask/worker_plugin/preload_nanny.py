"""`dask worker --preload-nanny accel_dask.worker_plugin.preload_nanny`: makes a Dask worker's
nanny a host of the cluster, or ends its process."""

from __future__ import annotations

from accel_dask.worker_plugin.plugin import HostNanny, set_up_nanny, tear_down_nanny


async def dask_setup(nanny: HostNanny) -> None:
    await set_up_nanny(nanny)


async def dask_teardown(nanny: HostNanny) -> None:
    await tear_down_nanny(nanny)
