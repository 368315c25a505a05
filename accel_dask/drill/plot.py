"""A drill as a picture: every query of the victim, and its 99th percentile beside each attack."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from accel_dask.drill.verdicts import Limits, Measured, verdicts
from accel_dask.errors import ConfigError

_GAP_SECONDS = 1.0
_CALM, _BUSY, _OVER, _LINE = "#4878a8", "#8c8c8c", "#c44e52", "#333333"


def check_can_plot(file: Path) -> None:
    """
    Raises:
        ConfigError: matplotlib is missing, or the file's name says no kind of picture.
    """
    if file.suffix.lower() not in {".png", ".svg", ".pdf"}:
        raise ConfigError(f"the plot {file} must end in .png, .svg or .pdf")
    try:
        import_module("matplotlib")
    except ImportError as error:
        raise ConfigError(
            "a plot needs matplotlib: pip install 'accel-dask[plot]', or leave --plot out"
        ) from error


def plot(measured: Sequence[Measured], limits: Limits, file: Path, caption: str = "") -> None:
    """Write the picture; the suffix of `file` says of which kind."""
    check_can_plot(file)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6.2), layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 2))
    _queries(upper, measured)
    _percentiles(lower, measured, limits)
    figure.suptitle("A victim's dashboards beside a noisy neighbour", x=0.01, ha="left")
    if caption:
        figure.supxlabel(caption, fontsize=8, color=_BUSY, x=0.99, ha="right")
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=130)


def _queries(axes: Any, measured: Sequence[Measured]) -> None:
    """Every query at its time, one measurement after the other."""
    start = 0.0
    alone = measured[0].victim.percentile(0.99)
    ticks, names = [], []
    for one in measured:
        length = max(one.victim.sent_at, default=1.0)
        colour = _CALM if one.attack is None else _BUSY
        times = [start + at for at in one.victim.sent_at]
        axes.scatter(times, one.victim.latencies_ms, s=7, alpha=0.55, color=colour, linewidths=0)
        p99 = one.victim.percentile(0.99)
        axes.plot((start, start + length), (p99, p99), color=_LINE, linewidth=1.4)
        ticks.append(start + length / 2)
        names.append(one.name if one.attack is None else f"beside {one.name}")
        start += length + _GAP_SECONDS
    axes.axhline(alone, color=_CALM, linewidth=1, linestyle=":")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.set_ylabel("latency of each query, ms")
    axes.set_xticks(ticks, names)
    axes.tick_params(axis="x", length=0)
    axes.margins(x=0.01)
    axes.set_title("line: 99th percentile; dotted: alone", fontsize=9, loc="right", color=_BUSY)
    _plain(axes)


def _percentiles(axes: Any, measured: Sequence[Measured], limits: Limits) -> None:
    """The 99th percentile against alone, with the limit."""
    attacked = [one for one in measured if one.attack is not None]
    for place, one in enumerate(attacked):
        held = all(v.has_held for v in verdicts([one], limits))
        axes.bar(place, one.ratio, width=0.55, color=_CALM if held else _OVER)
        kept = f"\nkeeps {one.kept:.0%}" if one.kept is not None else ""
        axes.annotate(
            f"{one.ratio:.2f} x{kept}",
            (place, one.ratio),
            xytext=(0, -4),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=9,
            color="white",
        )
    if limits.ratio is not None:
        axes.axhline(limits.ratio, color=_OVER, linewidth=1, linestyle="--")
        axes.annotate(
            f"limit {limits.ratio:g} x",
            (1, limits.ratio),
            xycoords=("axes fraction", "data"),
            xytext=(-2, 3),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=_OVER,
        )
    axes.axhline(1.0, color=_CALM, linewidth=1, linestyle=":")
    highest = max((one.ratio for one in attacked), default=1.0)
    axes.set_ylim(0, max(highest, limits.ratio or 0.0) * 1.3)
    axes.set_xlim(-0.6, max(len(attacked), 1) - 0.2)
    axes.set_xticks(range(len(attacked)), [f"beside {one.name}" for one in attacked])
    axes.tick_params(axis="x", length=0)
    axes.set_ylabel("p99 against alone")
    _plain(axes)


def _plain(axes: Any) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
