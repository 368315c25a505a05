"""Commands for a cluster on this machine: demo, up, down."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from accel_dask.cli.local_tokens import read_tokens
from accel_dask.cli.terminal import INTERRUPTED, console, ignore_interrupts, until_interrupted
from accel_dask.current import find_current, forget_current, home, remember, require_current
from accel_dask.errors import AccelError, ConfigError
from accel_dask.local import LocalAccelCluster, LocalOptions


class Data(StrEnum):
    """What the demo can serve."""

    NYCFLIGHTS = "nycflights"


def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the last step.")] = False,
    data: Annotated[Data, typer.Option(help="Which real data to serve.")] = Data.NYCFLIGHTS,
    masters: Annotated[int, typer.Option(help="etcd members: 1, or 3 for a quorum.")] = 1,
    workers: Annotated[int, typer.Option(help="Worker hosts.")] = 1,
) -> None:
    """Show the whole of it on real flights: publish, load, query, refresh under load.

    Exit code 0 only if every step held. Stays up afterwards unless --once is given.
    """
    from accel_dask.demo import Demo

    del data
    cluster = LocalAccelCluster(LocalOptions(masters=masters, workers=workers))
    shown = Demo(cluster, console)
    every_step_held = False
    with until_interrupted() as interrupted:
        try:
            shown.run()
            every_step_held = True
            if not once:
                _remember_demo(cluster, shown.tokens)
                console.print("\n[bold]up until Ctrl-C[/]")
                interrupted.wait()
        finally:
            shown.close()
            _stop(cluster)
    if not every_step_held:
        raise typer.Exit(INTERRUPTED)


def up(
    directory: Annotated[
        Path | None,
        typer.Option(help="Where it keeps its state (default: ~/.accel-dask/cluster)."),
    ] = None,
    workers: Annotated[int, typer.Option(help="Worker hosts.")] = 1,
    masters: Annotated[int, typer.Option(help="etcd members: 1, or 3 for a quorum.")] = 1,
    gateways: Annotated[int, typer.Option(help="Gateway processes.")] = 1,
    gateway_port: Annotated[int, typer.Option(help="Of the first gateway; 0: any.")] = 31337,
    dashboard_port: Annotated[int, typer.Option(help="Of the Dask dashboard; 0: any.")] = 8787,
    detach: Annotated[bool, typer.Option("--detach", help="Go to the background.")] = False,
) -> None:
    """Start a cluster on this machine. The same directory brings the same cluster back."""
    running = find_current()
    if running is not None:
        raise ConfigError(
            f"a cluster already runs in {running.directory} (process {running.pid}); "
            "stop it with `accel-dask down`"
        )
    if detach:
        _detach()
        return
    options = LocalOptions(
        directory=directory or home() / "cluster",
        workers=workers,
        masters=masters,
        gateways=gateways,
        gateway_port=gateway_port,
        dashboard_port=dashboard_port,
    )
    cluster = LocalAccelCluster(options)
    is_up = False
    with until_interrupted() as interrupted:
        try:
            cluster.start(lambda text: console.print(f"[dim]{text}[/]"))
            remember(cluster, read_tokens(cluster.directory))
            console.print(f"gateway    {', '.join(cluster.gateway_urls)}")
            console.print(f"dashboard  {cluster.dashboard_url}")
            console.print("[bold]up until Ctrl-C[/]; in another terminal: accel-dask --help")
            is_up = True
            interrupted.wait()
        finally:
            _stop(cluster)
    if not is_up:
        raise typer.Exit(INTERRUPTED)


def down() -> None:
    """Stop the cluster on this machine. What it had published is there at the next `up`."""
    current = require_current()
    os.kill(current.pid, signal.SIGTERM)
    deadline = time.monotonic() + 60
    while find_current() is not None or Path(f"/proc/{current.pid}").exists():
        if time.monotonic() > deadline:
            raise AccelError(f"process {current.pid} still runs after 60 s; look at its output")
        time.sleep(0.1)
    console.print("stopped")


def _remember_demo(cluster: LocalAccelCluster, tokens: dict[str, str]) -> None:
    running = find_current()
    if running is None:
        remember(cluster, tokens)
        return
    console.print(
        f"another cluster runs in {running.directory}: accel-dask commands go to that one; to ask "
        "this one, give --gateway, --user and --token"
    )


def _detach() -> None:
    log = home() / "up.log"
    log.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    arguments = [argument for argument in sys.argv[1:] if argument != "--detach"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "accel_dask.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    with console.status("starting"):
        while find_current() is None:
            if process.poll() is not None:
                raise AccelError(f"the cluster did not start:\n{log.read_text()}")
            time.sleep(0.1)
    current = require_current()
    console.print(f"up (process {current.pid}, log {log})")
    console.print(f"gateway    {', '.join(current.gateways)}")
    console.print(f"dashboard  {current.dashboard}")


def _stop(cluster: LocalAccelCluster) -> None:
    """End the cluster. A second Ctrl-C must not leave half of it behind."""
    ignore_interrupts()
    forget_current(os.getpid())
    console.print("[dim]stopping[/]")
    cluster.close()
