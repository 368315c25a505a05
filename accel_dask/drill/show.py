"""A drill in a terminal: what goes on, the table as it grows, the limits at the end."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from accel_dask.drill.drill import Plan, drill
from accel_dask.drill.plot import plot as save_plot
from accel_dask.drill.report import as_data, caption, table
from accel_dask.drill.site import DrillSite
from accel_dask.drill.verdicts import Limits, Measured, verdicts
from accel_dask.model.member import Worker

_STDOUT = Path("-")


class _Shown:
    """The table so far, and how far the measurement under way is."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.measured: list[Measured] = []
        self._step: tuple[str, float, float] | None = None

    def step(self, text: str, seconds: float) -> None:
        self._step = text, time.monotonic(), seconds

    def end(self) -> None:
        self._step = None

    def __rich__(self) -> RenderableType:
        shown = table(self.measured, self._limits)
        if self._step is None:
            return shown
        text, since, seconds = self._step
        line = Table.grid(padding=(0, 1))
        passed = min(time.monotonic() - since, seconds)
        line.add_row(ProgressBar(total=seconds, completed=passed, width=20), text)
        return Group(shown, line)


def show_drill(
    site: DrillSite,
    plan: Plan,
    console: Console,
    *,
    plot: Path | None = None,
    json_file: Path | None = None,
) -> bool:
    """Run the drill and show it; save its picture and its figures. Whether every limit held.

    Raises:
        AccelError: it could not be carried out.
    """
    limits = Limits()
    for host in site.target.mirror.view.records(Worker):
        console.print(f"[dim]{host.worker}: {host.enforcement}[/]", highlight=False)
    shown = _Shown(limits)
    with Live(shown, console=console, refresh_per_second=4):
        for one in drill(site, plan, shown.step):
            shown.measured.append(one)
        shown.end()
    for one in shown.measured:
        if one.waits is not None:
            console.print(f"[dim]{one.name}: {one.waits.text()}[/]", highlight=False)
    results = tuple(verdicts(shown.measured, limits))
    for verdict in results:
        style = "green" if verdict.has_held else "red"
        console.print(str(verdict), style=style, highlight=False, markup=False)
    data = as_data(shown.measured, limits, rows=site.rows)
    if plot is not None:
        save_plot(shown.measured, limits, plot, caption(data))
        console.print(f"picture in {plot}")
    _write_json(json_file, data)
    return all(verdict.has_held for verdict in results)


def _write_json(file: Path | None, data: object) -> None:
    if file is None:
        return
    text = msgspec.json.format(msgspec.json.encode(data)).decode()
    if file == _STDOUT:
        print(text)  # noqa: T201 - asked for
    else:
        file.write_text(text + "\n", encoding="utf-8")
