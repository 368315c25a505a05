"""Where an answer came from: read from the gateway's receipt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


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
    """`hot`: from memory; `olap`: from the engine behind."""
    reason: str = ""
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
        where = "cached" if self.is_cached else self.route or "gateway"
        parts = [where, used, f"{shards} of {total} shards" if total else ""]
        parts.append(f"{self.total_ms:.1f} ms ({self.server_ms:.1f} at the server)")
        return " · ".join(part for part in parts if part)


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
        datasets=datasets,
        rows=rows,
        server_ms=float(receipt.get("total_ms", 0.0)),
        total_ms=round(ms, 3),
    )
