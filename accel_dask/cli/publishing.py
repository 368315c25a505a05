"""The command `publish`, which shows what it waits for."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from accel_dask import admin
from accel_dask.cli import connection
from accel_dask.cli.options import ConfigOption, DatasetArgument, dataset_id_of
from accel_dask.cli.terminal import console
from accel_dask.errors import StoreUnavailable, WaitTimedOut
from accel_dask.model.cluster import ClusterView
from accel_dask.model.ids import DatasetId
from accel_dask.scheduler_plugin.waiting import request_waits_for, waiting_for
from accel_dask.store.mirror import Mirror

_SILENT_SECONDS = 15.0
"""A store that says nothing for so long was stopped, or is away for longer than we wait."""


def publish(
    dataset: DatasetArgument,
    snapshot: Annotated[
        str | None, typer.Option(help="The source's snapshot id (default: the newest).")
    ] = None,
    wait: Annotated[bool, typer.Option(help="Wait until it is READY or FAILED.")] = True,
    timeout: Annotated[float, typer.Option(help="Seconds to wait.")] = 600.0,
    config: ConfigOption = None,
) -> None:
    """Bring a dataset's snapshot into memory and switch to it."""
    dataset_id = dataset_id_of(dataset)
    with connection.cluster_store(config) as store:
        requested = admin.publish(store, dataset_id, snapshot)
        if not wait:
            console.print(f"requested ({requested.nonce})")
            return
        with Mirror(store).start() as mirror:
            started = time.monotonic()
            with console.status(f"publishing {dataset_id}") as spinner:
                result = _wait_showing(mirror, requested, timeout, spinner)
    if result.is_new:
        seconds = time.monotonic() - started
        console.print(f"{result.epoch} READY after {seconds:.1f} s: {result.epoch.snapshot_id}")
    else:
        console.print(f"{result.epoch} already serves {result.epoch.snapshot_id}")


def _wait_showing(
    mirror: Mirror, requested: admin.Requested, timeout: float, spinner: Any
) -> admin.Published:
    waits_for = ""

    def show(view: ClusterView) -> bool:
        nonlocal waits_for
        waits_for = _waits_for(view, requested.dataset)
        spinner.update(waits_for)
        return admin.publish_result(view, requested) is not None

    deadline = time.monotonic() + timeout
    while True:
        try:
            mirror.wait_for(show, min(1.0, max(0.0, deadline - time.monotonic())))
        except WaitTimedOut as error:
            if time.monotonic() - mirror.last_contact > _SILENT_SECONDS:
                raise StoreUnavailable(
                    f"the cluster's state store went silent while {requested.dataset} was being "
                    "published; the request is answered when it is back"
                ) from error
            if time.monotonic() >= deadline:
                raise WaitTimedOut(
                    f"{requested.dataset} was not published within {timeout:g} s ({waits_for}). "
                    "It goes on; see `accel-dask status`"
                ) from error
        else:
            return admin.wait_published(mirror, requested, 5.0)


def _waits_for(view: ClusterView, dataset: DatasetId) -> str:
    epoch = view.open_epoch(dataset)
    request = view.publish_request(dataset)
    if epoch is not None:
        return f"{epoch} {epoch.state}: {waiting_for(view, epoch) or epoch.reason}"
    return f"{dataset}: {request_waits_for(view, request)}" if request else str(dataset)
