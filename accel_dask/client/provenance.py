"""Where an answer came from: read from the gateway's receipt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedDataset:
    """A dataset as the query saw it."""

    dataset: str
    epoch: int
    snapshot: str = ""
    shards: int = 0
    total_shards: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """One answered query."""

    sql: str
    query_id: str = ""
    route: str = ""
    """`hot`: from memory; `cold`: from the source's files; `olap`: from the engine behind."""
    reason: str = ""
    """Why the engine behind was asked."""
    fallback: str = ""
    """In one word: `miss`, `breach`, `error` or `policy`; empty: it was not asked."""
    engine: str = ""
    is_pinned: bool | None = None
    """Whether the engine read the snapshot of the epoch; None: it was not asked."""
    datasets: tuple[UsedDataset, ...] = ()
    rows: int = 0
    server_ms: float = 0.0
    total_ms: float = 0.0
    """As the client saw it."""
    is_cached: bool = False

    @property
    def epochs(self) -> tuple[tuple[str, int], ...]:
        """Dataset and epoch, of each dataset."""
        return tuple((used.dataset, used.epoch) for used in self.datasets)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for `attrs`."""
        return asdict(self)

    def line(self) -> str:
        """One line for people."""
        used = ", ".join(f"{one.dataset}@{one.epoch}" for one in self.datasets)
        shards = sum(one.shards for one in self.datasets)
        total = sum(one.total_shards for one in self.datasets)
        where = "kept answer" if self.is_cached else _WHERE.get(self.route, self.route)
        parts = [where, self._engine_note(), used, f"{shards} of {total} shards" if total else ""]
        if self.is_cached:
            return " · ".join(part for part in parts if part)
        parts.append(f"{self.total_ms:.1f} ms ({self.server_ms:.1f} at the server)")
        return " · ".join(part for part in parts if part)

    def _engine_note(self) -> str:
        if not self.fallback:
            return ""
        pinned = "of the same snapshot" if self.is_pinned else "of its newest data"
        return f"{self.fallback}, {pinned}"


_WHERE: Final = {
    "hot": "from memory",
    "cold": "from the source's files",
    "hot+cold": "from memory and the source's files",
    "olap": "from the OLAP engine",
    "": "from the gateway",
}


def from_receipt(receipt: Mapping[str, Any], sql: str, *, rows: int, ms: float) -> Provenance:
    """The provenance that a gateway's receipt tells; unknown fields are passed over."""
    names = ("dataset", "epoch", "snapshot", "shards", "total_shards")
    datasets = tuple(
        UsedDataset(**{name: one[name] for name in names if name in one})
        for one in receipt.get("datasets", ())
    )
    return Provenance(
        sql=sql,
        query_id=str(receipt.get("query_id", "")),
        route=str(receipt.get("route", "")),
        reason=str(receipt.get("reason", "")),
        fallback=str(receipt.get("fallback", "")),
        engine=str(receipt.get("engine", "")),
        is_pinned=receipt.get("is_pinned"),
        datasets=datasets,
        rows=rows,
        server_ms=float(receipt.get("total_ms", 0.0)),
        total_ms=round(ms, 3),
    )
