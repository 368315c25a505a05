"""Writes docs/client-parity.md: the client and dask.dataframe on the same probes."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
COUNTS = ROOT / ".parity-counts.jsonl"
"""What `make parity` counted on the way; without it the table of engines is not written."""
sys.path.insert(0, str(ROOT / "tests" / "support"))

import dask.dataframe as dd  # noqa: E402
import pandas as pd  # noqa: E402
from client_probes import PROBES, expected, table, verdict  # noqa: E402
from client_world import local_session  # noqa: E402

import accel_dask.client.pandas as apd  # noqa: E402
from accel_dask.errors import UnsupportedOperation  # noqa: E402


def as_pandas() -> pd.DataFrame:
    frame = table().to_pandas()
    frame["k"] = frame["k"].astype("str")
    return frame


def main() -> None:
    session, transport = local_session()
    transport.put("t", table(), ("row",))
    frame = as_pandas()
    parts = dd.from_pandas(frame, npartitions=2)
    lines, totals = [], {"client": Counter[str](), "dask": Counter[str]()}

    def run_client(probe: str) -> Any:
        return eval(probe, {"df": session.table("t"), "pd": apd, "len": len})

    def run_dask(probe: str) -> Any:
        module: Any = type("module", (), {"__getattr__": lambda _, name: _of_dask(name)})()
        return eval(probe, {"df": parts, "pd": module, "len": len})

    for probe in PROBES:
        theirs = expected(frame, probe)
        ours = verdict(probe, theirs, run_client, UnsupportedOperation)
        other = verdict(probe, theirs, run_dask, NotImplementedError, AttributeError)
        totals["client"][ours] += 1
        totals["dask"][other] += 1
        written = probe.replace("|", "\\|")
        lines.append(f"| `{written}` | {ours} | {other} |")
    out = ROOT / "docs" / "client-parity.md"
    out.write_text(_page(lines, totals) + _engines(COUNTS), encoding="utf-8")
    sys.stdout.write(f"{totals}\n")


def _engines(counts: Path) -> str:
    """How many random examples of each family engines answered, all of them as pandas."""
    if not counts.exists():
        return ""
    told = [json.loads(line) for line in counts.read_text(encoding="utf-8").splitlines()]
    routes = [one for one in dict.fromkeys(row["route"] for row in told) if one != "memory"]
    cells: dict[str, dict[str, str]] = {}
    for row in told:
        total = row["answered"] + row["refused"]
        cells.setdefault(row["family"], {})[row["route"]] = f"{row['answered']} of {total}"
    head = [
        "",
        "## Families of operations at OLAP engines",
        "",
        "Random examples of `tests/property/test_client_against_pandas.py` that the portable",
        "subset lets through, all answered as pandas does; others are refused with the reason.",
        "",
        f"| family | {' | '.join(routes)} |",
        "|---|" + "---|" * len(routes),
    ]
    lines = [
        f"| {name.removeprefix('test_').replace('_', ' ')} | "
        + " | ".join(found.get(route, "") for route in routes)
        + " |"
        for name, found in sorted(cells.items())
        if any(route in found for route in routes)
    ]
    return "\n".join([*head, *lines]) + "\n"


def _of_dask(name: str) -> Any:
    if name in {"Grouper", "Timedelta"}:
        return getattr(pd, name)
    return getattr(dd, name)


def _page(lines: list[str], totals: dict[str, Counter[str]]) -> str:
    head = [
        "# The client beside pandas",
        "",
        "Written by `scripts/client_parity.py`: each probe runs on the same 60 rows (missing",
        "texts, NaN, nullable integers, ties) in pandas, the client and dask.dataframe.",
        "`ok`: the same values as pandas, of the same kinds. `wrong`: others, silently (Dask's",
        "quantiles are approximate by design). `refused`: an error that says it is not served;",
        "`error`: any other. Order counts where the probe sorts; values that come equally often,",
        "which pandas lists by first appearance, the client lists in their own order.",
        "",
        f"pandas {pd.__version__}, dask {_dask_version()}, {len(lines)} probes.",
        "",
        "| | ok | wrong | refused | error |",
        "|---|---|---|---|---|",
    ]
    for name, found in totals.items():
        counts = " | ".join(str(found[kind]) for kind in ("ok", "wrong", "refused", "error"))
        head.append(f"| {name} | {counts} |")
    return "\n".join([*head, "", "| probe | client | dask |", "|---|---|---|", *lines]) + "\n"


def _dask_version() -> str:
    import dask

    return str(dask.__version__)


if __name__ == "__main__":
    main()
