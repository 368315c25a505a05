"""What planning takes and gives: context, draft, plan, fragment. All frozen."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from accel_dask.model.ids import DatasetId, EpochNumber, TenantId
from accel_dask.model.routing import DatasetRoute, ExecutorRoute, RoutingTable
from accel_dask.model.snapshot import SnapshotId
from accel_dask.model.tenant import Quota
from accel_dask.model.ticket import EpochToken

CATALOG = "accel"
"""The catalog that clients see; its schemas are the tenants' names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanContext:
    """Whose query it is, and the routing table to plan it on."""

    tenant: TenantId
    routing: RoutingTable
    quota: Quota = field(default_factory=Quota)
    seed: str = ""
    """Varies the order of a plan's candidates; the same seed gives the same order."""


class FragmentKind(StrEnum):
    """Where a fragment runs."""

    HOT = "hot"
    """On resident shards, in an executor."""
    COLD = "cold"
    """On the snapshot's own files."""
    OLAP = "olap"
    """In the source engine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryLimits:
    """Bounds of one query."""

    deadline_ms: int
    max_result_rows: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedDataset:
    """A dataset that a query reads, and the one epoch of it that it is planned on."""

    dataset_id: DatasetId
    epoch: EpochNumber
    snapshot_id: SnapshotId | None
    shards: int
    """Shards read, of `total_shards`."""
    total_shards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """The part of a plan that runs in one place."""

    kind: FragmentKind
    sql: str
    """Physical SQL: every table is an attached shard."""
    tokens: tuple[EpochToken, ...]
    candidates: tuple[ExecutorRoute, ...]
    """Executors that can run it, in the order to try them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryPlan:
    """How one query is answered."""

    tenant: TenantId
    sql: str
    """As the user wrote it."""
    datasets: tuple[UsedDataset, ...]
    fragments: tuple[Fragment, ...]
    """Now exactly one."""
    limits: QueryLimits
    parameters: int
    """How many values must be bound."""
    parameter_columns: tuple[str, ...]
    """For each of them the column that it is compared with, in lower case; empty: none."""
    reasons: tuple[str, ...]
    """What was decided and why, one sentence per pass that has something to say."""
    routes: tuple[DatasetRoute, ...]
    """What it was planned on: the plan holds for as long as these do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReference:
    """A table's name in the text, where a dataset must be put in."""

    start: int
    end: int
    """Offsets into `ParsedQuery.text`."""
    parts: tuple[str, ...]
    """`table`, `schema.table` or `catalog.schema.table`, without quotes."""
    has_alias: bool

    @property
    def table(self) -> str:
        return self.parts[-1]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edit:
    """A replacement in `ParsedQuery.text` that does not depend on routing."""

    start: int
    end: int
    replacement: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedQuery:
    """One statement that passed the gate. `text` is the user's own, without comments."""

    text: str
    tables: tuple[TableReference, ...]
    edits: tuple[Edit, ...]
    parameter_columns: tuple[str, ...]
    """As in `QueryPlan`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A table reference, resolved: which shards of which epoch it reads."""

    reference: TableReference
    route: DatasetRoute
    shards: tuple[int, ...]
    """Indexes into the route's shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryDraft:
    """A plan in the making: each pass fills in its part."""

    sql: str
    parsed: ParsedQuery | None = None
    scans: tuple[Scan, ...] = ()
    limits: QueryLimits | None = None
    candidates: tuple[ExecutorRoute, ...] = ()
    fragments: tuple[Fragment, ...] = ()
    reasons: tuple[str, ...] = ()
