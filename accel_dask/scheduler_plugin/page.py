"""The tables of the /accel page, as HTML made from the summary. Every value is escaped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Any, Final

Row = dict[str, Any]
Cell = Callable[[Row], str]

_MIB: Final = 1024 * 1024

STYLE: Final = """
:host, .bk-clearfix { width: 100%; }
.accel { box-sizing: border-box; width: 100%;
  font: 13px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif;
  color: #22272e; padding: 4px 12px 16px; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 8px 0 4px; }
.tile { background: #fff; border: 1px solid #dfe3e8; border-radius: 8px; padding: 8px 16px;
  min-width: 104px; }
.tile b { display: block; font-size: 22px; font-weight: 600; line-height: 1.2; }
.tile span { color: #667080; font-size: 12px; }
.tile.bad b { color: #c62828; }
h2 { font-size: 14px; font-weight: 600; margin: 16px 0 6px; }
table { border-collapse: collapse; width: 100%; background: #fff; border: 1px solid #dfe3e8; }
th { text-align: left; font-weight: 600; color: #667080; font-size: 12px; background: #f6f8fa; }
th, td { padding: 5px 10px; border-bottom: 1px solid #edf0f3; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td.why { max-width: 520px; color: #4a5361; overflow-wrap: anywhere; }
td.s { white-space: nowrap; }
tr:last-child td { border-bottom: none; }
.chip { display: inline-block; border-radius: 9px; padding: 0 8px; font-size: 11px;
  font-weight: 600; line-height: 18px; color: #fff; background: #78818d; }
.READY { background: #2e7d32; } .LOADING, .STARTING { background: #1565c0; }
.VALIDATING { background: #6a1b9a; } .RETIRING { background: #9e7700; }
.FAILED { background: #c62828; }
.wait { color: #9a5b00; }
.bar { position: relative; width: 180px; height: 16px; border-radius: 4px; background: #e6eaef;
  overflow: hidden; display: inline-block; vertical-align: middle; margin-right: 8px; }
.bar i { position: absolute; top: 0; bottom: 0; left: 0; background: #4c9f70; }
.bar i.second { background: #8fc7a8; }
.bar.full i { background: #c62828; }
.none { color: #8a93a0; padding: 6px 10px; background: #fff; border: 1px solid #dfe3e8; }
ul { list-style: none; margin: 0; padding: 6px 10px; background: #fff;
  border: 1px solid #dfe3e8; max-height: 260px; overflow-y: auto; }
li span { display: inline-block; min-width: 72px; color: #8a93a0; text-align: right;
  margin-right: 12px; font-variant-numeric: tabular-nums; }
"""


def render_overview(state: Row) -> str:
    """The tiles on top."""
    executors = state["executors"]
    running = sum(row["state"] == "READY" for row in executors)
    serving = sum(row["epoch"] is not None for row in state["datasets"])
    failed = sum(row["failed"] for row in state["gateways"])
    tiles = [
        (_role(state), "this master", not state["leader"]),
        (f"{serving} / {len(state['datasets'])}", "datasets served", False),
        (str(len(state["hosts"])), "hosts", not state["hosts"]),
        (f"{running} / {len(executors)}", "executors READY", running < len(executors)),
        (str(len(state["gateways"])), "gateways", False),
        (f"{sum(state['queries_per_second'].values()):,.1f}", "queries per second", False),
        (f"{failed:,}", "failed queries", failed > 0),
        (str(len(state["loads"])), "loads under way", False),
    ]
    body = "".join(
        f'<div class="tile{" bad" if bad else ""}"><b>{escape(value)}</b>'
        f"<span>{escape(label)}</span></div>"
        for value, label, bad in tiles
    )
    return f'<div class="accel"><div class="tiles">{body}</div></div>'


def render_tables(state: Row) -> str:
    """Datasets, epochs, executors, hosts, gateways, engines, and what the master said last."""
    sections = (
        ("Datasets", _table(_DATASETS, state["datasets"], "no dataset is declared")),
        ("Publish requests", _table(_REQUESTS, state["requests"], "")),
        ("Epochs", _table(_EPOCHS, _newest_first(state["epochs"]), "nothing was published yet")),
        ("Executors", _table(_EXECUTORS, state["executors"], "no executor is wanted")),
        ("Hosts", _table(_HOSTS, state["hosts"], "no host is alive")),
        ("Gateways", _table(_GATEWAYS, state["gateways"], "no gateway is alive")),
        ("Places of tenants in gateways", _table(_SHARES, state["shares"], "nothing was asked")),
        ("Fallback engines", _table(_ENGINES, state["engines"], "")),
        ("What this master did", _story(state["story"])),
    )
    body = "".join(f"<h2>{escape(title)}</h2>{html}" for title, html in sections if html)
    return f'<div class="accel">{body}</div>'


def _role(state: Row) -> str:
    if state["is_leader"]:
        return "leads"
    return "stands by" if state["leader"] else "no leader"


def _newest_first(epochs: Sequence[Row]) -> list[Row]:
    return sorted(epochs, key=lambda r: (r["tenant"], r["dataset"], -r["epoch"]))


def _breaker(row: Row) -> str:
    state = escape(str(row["breaker"]))
    return state if state == "closed" else f'<span class="wait">{state}</span>'


def _text(field: str) -> Cell:
    return lambda row: escape(str(row[field]))


def _count(field: str) -> Cell:
    return lambda row: f"{row[field]:,}"


def _decimal(field: str) -> Cell:
    return lambda row: f"{row[field]:,.1f}"


def _size(field: str) -> Cell:
    return lambda row: mib(row[field])


def _age(field: str) -> Cell:
    return lambda row: age(row[field]) if row[field] is not None else "–"


def _state(row: Row) -> str:
    return f'<span class="chip {escape(row["state"])}">{escape(row["state"])}</span>'


def _why(row: Row) -> str:
    waits = row["waiting_for"]
    told = f'<div class="wait">{escape(waits)}</div>' if waits else ""
    return escape(row.get("reason", "")) + told


def _serving(row: Row) -> str:
    return str(row["epoch"]) if row["epoch"] is not None else '<span class="wait">none</span>'


def _bar(parts: Sequence[int], whole: int) -> str:
    shares = [100 * part / whole if whole > 0 else 0.0 for part in parts]
    left, bars = 0.0, ""
    for number, share in enumerate(shares):
        kind = ' class="second"' if number else ""
        bars += f'<i{kind} style="left:{min(left, 100):.1f}%;width:{min(share, 100):.1f}%"></i>'
        left += share
    full = " full" if sum(shares) > 100 else ""
    return f'<span class="bar{full}">{bars}</span>{mib(sum(parts))} of {mib(whole)}'


def _executor_memory(row: Row) -> str:
    return _bar((row["shard_bytes"], row["resident_bytes"]), row["memory_bytes_per_host"])


def _host_memory(row: Row) -> str:
    return _bar((row["shard_bytes"], row["executor_bytes"]), row["memory_bytes"])


def _per_tenant(row: Row) -> str:
    rates = row["per_tenant"].items()
    return escape(", ".join(f"{tenant} {rate:,.1f}" for tenant, rate in rates)) or "–"


Columns = tuple[tuple[str, str, Cell], ...]
"""Heading, class of the cells, and what is in them."""

_DATASETS: Final[Columns] = (
    ("tenant", "s", _text("tenant")),
    ("dataset", "s", _text("dataset")),
    ("epoch", "n", _serving),
    ("snapshot", "why", _text("snapshot")),
    ("served for", "n", _age("since_seconds")),
    ("rows", "n", _count("rows")),
    ("shards READY", "n", lambda row: f"{row['shards_ready']} / {row['shards']}"),
    ("cold", "n", _count("shards_cold")),
    ("replicas", "n", _count("replicas")),
    ("bytes in memory", "n", _size("bytes")),
    ("source", "s", _text("source")),
)
_REQUESTS: Final[Columns] = (
    ("tenant", "s", _text("tenant")),
    ("dataset", "s", _text("dataset")),
    ("snapshot", "s", _text("snapshot")),
    ("requested by", "s", _text("requested_by")),
    ("age", "n", _age("age_seconds")),
    ("waits because", "why", _why),
)
_EPOCHS: Final[Columns] = (
    ("tenant", "s", _text("tenant")),
    ("dataset", "s", _text("dataset")),
    ("epoch", "n", _count("epoch")),
    ("state", "s", _state),
    ("for", "n", _age("age_seconds")),
    ("snapshot", "s", _text("snapshot")),
    ("shards READY", "n", lambda row: f"{row['shards_ready']} / {row['shards']}"),
    ("cold", "n", _count("shards_cold")),
    ("reason", "why", _why),
)
_EXECUTORS: Final[Columns] = (
    ("tenant", "s", _text("tenant")),
    ("host", "s", _text("host")),
    ("generation", "n", _text("generation")),
    ("kind", "s", _text("kind")),
    ("state", "s", _state),
    ("epochs", "why", lambda row: escape(", ".join(row["epochs"]))),
    ("shards and process, of the tenant's budget on the host", "s", _executor_memory),
    ("process may use", "n", _size("executor_memory_bytes")),
    ("started in", "n", lambda row: f"{row['start_ms']:,} ms" if row["start_ms"] else "–"),
    ("reason", "why", _text("reason")),
)
_HOSTS: Final[Columns] = (
    ("host", "s", _text("host")),
    ("address", "s", _text("address")),
    ("shards and executors, of what the host offers", "s", _host_memory),
    ("shards", "n", _count("shards")),
    ("FAILED", "n", _count("failed")),
    ("executors", "n", _count("executors")),
    ("in memory", "s", lambda row: "yes" if row["in_memory"] else '<span class="wait">no</span>'),
    ("cores", "n", _count("cores")),
    ("budgets enforced by", "why", _text("enforcement")),
)
_SHARES: Final[Columns] = (
    ("tenant", "s", _text("tenant")),
    ("gateway", "s", _text("gateway")),
    ("share", "n", _count("share")),
    ("of", "n", _count("of")),
    ("in use", "n", _count("in_use")),
    ("queued", "n", _count("queued")),
    ("refused so far", "n", _count("shed")),
)
_GATEWAYS: Final[Columns] = (
    ("gateway", "s", _text("gateway")),
    ("address", "s", _text("address")),
    ("queries", "n", _count("queries")),
    ("failed", "n", _count("failed")),
    ("per second", "n", _decimal("queries_per_second")),
    ("p50 ms", "n", _decimal("p50_ms")),
    ("p99 ms", "n", _decimal("p99_ms")),
    ("by tenant", "why", _per_tenant),
    ("at revision", "n", _text("applied_revision")),
)

_ENGINES: Final[Columns] = (
    ("tenant", "s", _text("tenant")),
    ("engine", "s", _text("engine")),
    ("gateway", "s", _text("gateway")),
    ("queries", "n", _count("queries")),
    ("failed", "n", _count("failed")),
    ("not sent", "n", _count("refused")),
    ("running", "n", _count("running")),
    ("p50 ms", "n", _decimal("p50_ms")),
    ("p99 ms", "n", _decimal("p99_ms")),
    ("breaker", "s", _breaker),
    ("last failure", "why", _text("because")),
)


def _table(columns: Columns, rows: Sequence[Row], empty: str) -> str:
    if not rows:
        return f'<div class="none">{escape(empty)}</div>' if empty else ""
    head = "".join(f'<th class="{kind}">{escape(title)}</th>' for title, kind, _ in columns)
    body = "".join(f"<tr>{_cells(columns, row)}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(columns: Columns, row: Row) -> str:
    return "".join(f'<td class="{kind}">{cell(row)}</td>' for _, kind, cell in columns)


def _story(lines: Iterable[Row]) -> str:
    items = "".join(
        f"<li><span>{age(line['seconds_ago'])} ago</span>{escape(line['sentence'])}</li>"
        for line in reversed(list(lines))
    )
    return f"<ul>{items}</ul>" if items else '<div class="none">nothing yet</div>'


def mib(size_bytes: int) -> str:
    """A size for people."""
    if size_bytes >= 1024 * _MIB:
        return f"{size_bytes / _MIB / 1024:,.2f} GiB"
    return f"{size_bytes / _MIB:,.1f} MiB"


def age(seconds: float) -> str:
    """A duration for people."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
    return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
