"""What planning takes and gives: context, draft, plan, fragment. All frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlglot import exp

from accel_dask.model.executor import Attachment
from accel_dask.model.ids import DatasetId, EpochNumber, TenantId
from accel_dask.model.routing import DatasetRoute, ExecutorRoute, RoutingTable
from accel_dask.model.shard_ref import ShardRef
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
    asked: tuple[tuple[str, int], ...] = ()
    """Limits that the query's client set itself; `quota` has them already."""
    seed: str = ""
    """Varies the order of a plan's candidates; the same seed gives the same order."""
    avoid: frozenset[str] = frozenset()
    """Addresses of executors that did not answer just now."""
    only: ShardRef | None = None
    """The one shard of its dataset to read; None: all that the query needs."""
    parse_again: Callable[[str], ParsedQuery] | None = None
    """Parses a rewritten statement, for as long as the plan is made; None: the gate itself."""


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
    max_cpu_ms: int
    max_result_rows: int
    max_result_bytes: int
    max_scan_rows: int
    max_scan_bytes: int
    max_cold_scan_bytes: int
    max_gather_rows: int
    max_gather_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is known of a query's cost before it runs. Every figure is an upper bound."""

    shape: str
    """As `aggregate` or `join, group by, top-n`."""
    scan_rows: int | None
    """None: the source does not say."""
    scan_bytes: int
    """Of the source's files."""
    result_rows: int | None
    """None: no bound is known; `reason` and `clause` say why."""
    reason: str = ""
    clause: str = ""

    @property
    def is_bounded(self) -> bool:
        return self.scan_rows is not None and self.result_rows is not None

    def __str__(self) -> str:
        rows = "an unknown number of" if self.scan_rows is None else f"at most {self.scan_rows:,}"
        told = f"{self.shape}: scans {rows} rows, {self.scan_bytes:,} bytes of source files"
        if self.result_rows is not None:
            told += f", returns at most {self.result_rows:,} rows"
        if self.is_bounded:
            return f"bounded; {told}"
        return f"not bounded, because {self.reason} ({self.clause}); {told}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UsedDataset:
    """A dataset that a query reads, and the one epoch of it that it is planned on."""

    dataset_id: DatasetId
    epoch: EpochNumber
    snapshot_id: SnapshotId | None
    shards: int
    """Shards read, of `total_shards`."""
    total_shards: int
    rollup: str = ""
    """The rollup that was read of it, or several; empty: its rows alone."""
    cold_shards: int = 0
    """Of the shards read, those that are read from the source's files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One peer's share of an input."""

    kind: FragmentKind
    sql: str
    """Physical SQL: every table is an attached shard."""
    tokens: tuple[EpochToken, ...]
    parameters: tuple[int, ...]
    """As in `Fragment`."""
    candidates: tuple[ExecutorRoute, ...]
    """Executors that can run it, in the order to try them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInput:
    """A relation that a fragment's SQL names, made of the rows of all its parts."""

    name: str
    parts: tuple[Part, ...]
    max_rows: int
    """Of all inputs of the fragment together, as `max_bytes`."""
    max_bytes: int
    rows: int | None
    """An upper bound from statistics."""
    because: str
    """What it holds, for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fragment:
    """The part of a plan that one executor runs, with what it fetches from its peers first."""

    kind: FragmentKind
    sql: str
    """Physical SQL: every table is an attached shard or an input."""
    tokens: tuple[EpochToken, ...]
    candidates: tuple[ExecutorRoute, ...]
    """Executors that can run it, in the order to try them."""
    inputs: tuple[PartInput, ...] = ()
    parameters: tuple[int, ...] | None = None
    """Which of the query's parameters, from 0, its own are, in order; None: all of them."""


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
    verdict: Verdict
    reasons: tuple[str, ...]
    """What was decided and why, one sentence per pass that has something to say."""
    routes: tuple[DatasetRoute, ...]
    """What it was planned on: the plan holds for as long as these do."""
    minds_nan: bool = False
    """Whether the engine errs if a parameter is NaN; see `engine_faults`."""
    rollups: tuple[str, ...] = ()
    """As in `QueryDraft`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TableReference:
    """A table's name in the text, where a dataset must be put in."""

    start: int
    end: int
    """Offsets into `ParsedQuery.text`."""
    parts: tuple[str, ...]
    """`table`, `schema.table` or `catalog.schema.table`, without quotes."""
    has_alias: bool
    node: exp.Table

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
class ParameterMark:
    """A `?` or `$1` in `ParsedQuery.text`."""

    start: int
    end: int
    number: int
    """Of the parameter, from 0."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedQuery:
    """One statement that passed the gate. `text` is the user's own, without comments."""

    text: str
    tables: tuple[TableReference, ...]
    edits: tuple[Edit, ...]
    parameter_columns: tuple[str, ...]
    """As in `QueryPlan`."""
    marks: tuple[ParameterMark, ...]
    """In the order of the text."""
    tree: exp.Expr
    """Never changed."""
    token_spans: tuple[tuple[int, int], ...]
    """Start and end in `text` of each token of the parser."""
    token_starts: tuple[int, ...]
    """Where each token begins in the statement as it was sent."""
    facts: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)
    """What passes have found out of the statement's form, for others of the same form: nothing
    that the value of a condition could change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """A table reference, resolved: which shards of which epoch it reads."""

    reference: TableReference
    route: DatasetRoute
    shards: tuple[int, ...]
    """Indexes into the route's shards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """Shards that are read together from one of the peers that have all of them."""

    shards: frozenset[Attachment]
    executors: tuple[ExecutorRoute, ...]
    """In the order to try them; all of them have `SpreadRoute.everywhere` too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpreadRoute:
    """Who reads what of a query that no executor has whole."""

    coordinator: ExecutorRoute
    shares: tuple[Share, ...]
    """Together all the shards that the coordinator lacks, each once."""
    everywhere: frozenset[DatasetId]
    """Datasets of which every executor here has all shards that the query reads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryDraft:
    """A plan in the making: each pass fills in its part."""

    sql: str
    parsed: ParsedQuery | None = None
    scans: tuple[Scan, ...] = ()
    limits: QueryLimits | None = None
    verdict: Verdict | None = None
    candidates: tuple[ExecutorRoute, ...] = ()
    """Executors that have every shard of the query."""
    spread: SpreadRoute | None = None
    """If there are no candidates."""
    cold: frozenset[Attachment] = frozenset()
    """Shards that no hot executor has, to be read from the source's files."""
    fragments: tuple[Fragment, ...] = ()
    minds_nan: bool = False
    """As in `QueryPlan`."""
    rollups: tuple[str, ...] = ()
    """Which rollups are read, and why declared ones are not."""
    reasons: tuple[str, ...] = ()
