"""The command `status`."""

from __future__ import annotations

from accel_dask.cli import connection
from accel_dask.cli.options import ConfigOption
from accel_dask.cli.terminal import console
from accel_dask.current import find_current
from accel_dask.status import status_tables
from accel_dask.store.records import read_view


def status(config: ConfigOption = None) -> None:
    """Hosts, datasets, epochs with their reasons, executors, gateways."""
    with connection.cluster_store(config) as store:
        view = read_view(store)
    current = find_current() if connection.is_local(config) else None
    if current is not None:
        console.print(f"gateway    {', '.join(current.gateways)}")
        console.print(f"dashboard  {current.dashboard}")
    leader = view.leader
    console.print(f"master     {leader.master if leader else '[red]none leads[/]'}")
    for table in status_tables(view):
        console.print(table)
