"""What a drill has measured, as a table and as data."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from typing import Any

from rich.table import Table

from accel_dask.drill.loads import Seen
from accel_dask.drill.verdicts import Limits, Measured, verdicts

_SHARES = (0.5, 0.95, 0.99)


def table(measured: Sequence[Measured], limits: Limits) -> Table:
    """One line per measurement."""
    shown = Table(
        "victim",
        *(f"p{share * 100:.0f} ms" for share in _SHARES),
        "p99 against alone",
        "failed",
        "the noisy tenant meanwhile",
        title="a noisy neighbour",
    )
    for number in (1, 2, 3, 4, 5):
        shown.columns[number].justify = "right"
    for one in measured:
        held = all(v.has_held for v in verdicts([one], limits))
        colour = "green" if held else "red"
        ratio = f"[{colour}]{one.ratio:.2f} x[/]" if one.attack else ""
        shown.add_row(
            f"beside {one.attack}" if one.attack else "alone",
            *(f"{one.victim.percentile(share):.1f}" for share in _SHARES),
            ratio,
            str(one.victim.failed) if not one.victim.failed else f"[red]{one.victim.failed}[/]",
            meanwhile(one),
        )
    return shown


def meanwhile(one: Measured) -> str:
    """What the attack got done."""
    if one.refreshes:
        return f"{one.refreshes} refreshes"
    if one.noisy is None:
        return ""
    kept = f", keeps {one.kept:.0%}" if one.kept is not None else ""
    refused = f", {one.noisy.failed} refused or failed" if one.noisy.failed else ""
    return f"{one.noisy.per_second:.1f} answers/s{kept}{refused}"


def as_data(measured: Sequence[Measured], limits: Limits, *, rows: int) -> dict[str, Any]:
    """Everything, for machines."""
    return {
        "taken_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            "load_average": round(os.getloadavg()[0], 2),
        },
        "rows": rows,
        "measured": [_measured(one) for one in measured],
        "verdicts": [
            {"attack": str(v.attack), "has_held": v.has_held, "text": v.text}
            for v in verdicts(measured, limits)
        ],
    }


def caption(data: dict[str, Any]) -> str:
    """When and where `data` was measured, in a line."""
    machine = data["machine"]
    return (
        f"{data['taken_at'][:10]}, {machine['cores']} cores, Linux {machine['kernel']}, "
        f"{data['rows']:,} rows a tenant; keeps: of the noisy tenant's throughput"
    )


def _measured(one: Measured) -> dict[str, Any]:
    waits = one.waits
    return {
        "attack": str(one.attack) if one.attack else None,
        "victim": _seen(one.victim),
        "p99_ratio": round(one.ratio, 3),
        "noisy": _seen(one.noisy) if one.noisy else None,
        "noisy_alone": _seen(one.noisy_alone) if one.noisy_alone else None,
        "noisy_kept": round(one.kept, 3) if one.kept is not None else None,
        "refreshes": one.refreshes,
        "other_work_cores": round(waits.others_cores, 2) if waits else None,
        "processes": {
            role: {
                "cores": round(wait.cpu / waits.seconds, 3),
                "waited_ms_per_second": round(1000 * wait.waited / waits.seconds, 1),
            }
            for role, wait in sorted(waits.by_role.items())
        }
        if waits
        else {},
    }


def _seen(seen: Seen) -> dict[str, Any]:
    told: dict[str, Any] = {
        f"p{share * 100:.0f}_ms": round(seen.percentile(share), 2) for share in _SHARES
    }
    return told | {
        "answered": seen.answered,
        "per_second": round(seen.per_second, 2),
        "failures": seen.failures,
    }
