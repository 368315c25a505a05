"""The commands `drill ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from accel_dask.cli import connection
from accel_dask.cli.options import ConfigOption
from accel_dask.cli.terminal import INTERRUPTED, console, ignore_interrupts, until_interrupted
from accel_dask.current import find_current
from accel_dask.drill.plot import check_can_plot
from accel_dask.drill.verdicts import Attack
from accel_dask.store.mirror import Mirror

drills = typer.Typer(help="Drills on the running cluster.", no_args_is_help=True)


@drills.command("noisy-neighbour")
def noisy_neighbour(
    attack: Annotated[
        list[Attack] | None, typer.Option(help="Only this one; may be repeated.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Of each of the two tenants.", min=1000)] = 6_000_000,
    seconds: Annotated[float, typer.Option(help="Of each measurement.", min=1.0)] = 15.0,
    rate: Annotated[float, typer.Option(help="The victim's queries per second.", min=1.0)] = 30.0,
    plot: Annotated[
        Path | None, typer.Option(help="Save a picture: .png, .svg or .pdf (needs the extra plot).")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Save all figures; - prints them instead.")
    ] = None,
    directory: Annotated[
        Path | None,
        typer.Option(help="Where to write the data, if hosts do not share this machine's /tmp."),
    ] = None,
    config: ConfigOption = None,
) -> None:
    """Attack the running cluster as one tenant and measure what another one sees of it.

    Makes two tenants with synthetic data and takes them away again. Exit code 1 if a limit did not
    hold.
    """
    from accel_dask.drill.drill import Plan
    from accel_dask.drill.show import show_drill
    from accel_dask.drill.site import DrillSite, Target

    if plot is not None:
        check_can_plot(plot)
    out = Console(stderr=True) if json_file == Path("-") else console
    current = find_current() if connection.is_local(config) else None
    plan = Plan(attacks=tuple(attack or Attack), seconds=seconds, rate=rate)
    exit_code = INTERRUPTED
    with (
        until_interrupted(),
        connection.cluster_store(config) as store,
        Mirror(store).start() as mirror,
    ):
        target = Target(store=store, mirror=mirror, roots=(current.pid,) if current else ())
        site = DrillSite(
            target, rows=rows, directory=directory, say=lambda text: out.print(f"[dim]{text}[/]")
        )
        try:
            site.set_up()
            has_held = show_drill(site, plan, out, plot=plot, json_file=json_file)
            exit_code = 0 if has_held else 1
        finally:
            ignore_interrupts()  # a second Ctrl-C must not leave the tenants behind
            site.take_down()
    if exit_code:
        raise typer.Exit(exit_code)
