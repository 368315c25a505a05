"""The processes of the cluster as they register themselves: leader, hosts, gateways.

All but `ClusterMeta` live on a lease and vanish with it. The create revision of such a
record is its incarnation: it never repeats, so it serves as fencing token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from accel_dask.model.ids import GatewayId, Path, Revision, TenantId, WorkerId

_NEVER: Final = Revision(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterMeta:
    """Which cluster this is. Written once, and again when a backup is restored."""

    KIND: ClassVar[str] = "meta"

    cluster_id: str
    format_version: int
    incarnation: int
    """Counts restores: after one, revisions run backwards and older tokens are void."""
    ticket_key: str
    """Hex of the key that signs tickets and bearer tokens."""

    @property
    def path(self) -> Path:
        return META_PATH


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """The master that may change the cluster's state."""

    KIND: ClassVar[str] = "leader"

    master: str
    address: str
    """Its Dask scheduler."""
    elected_at_ns: int

    @property
    def path(self) -> Path:
        return LEADER_PATH


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A host that can hold shards and run executors."""

    KIND: ClassVar[str] = "worker"

    worker: WorkerId
    host: str
    """Name or address by which gateways reach its executors."""
    memory_bytes: int
    """What it offers to shard files and executors together."""
    cores: int
    shard_dir: str
    in_memory: bool
    """Whether the shard directory is on a memory file system."""
    enforcement: str
    """How budgets are enforced here, for people."""
    version: str

    @property
    def path(self) -> Path:
        return worker_path(self.worker)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantLoad:
    """A tenant's places and queries in one gateway."""

    tenant: TenantId
    share: int
    """Queries that may run at once."""
    in_use: int
    queued: int
    shed: int
    """Refused for want of a place, since the gateway started."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLoad:
    """A tenant's queries at one OLAP engine, from one gateway, since it started."""

    tenant: TenantId
    engine: str
    """How it is spoken to, where, and its dialect."""
    queries: int
    """That ended there."""
    failed: int
    refused: int
    """Not sent, because the engine was left alone."""
    running: int
    breaker: str
    """`closed`, `open` (left alone) or `probing`."""
    because: str
    """The last failure that spoke against it."""
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """A gateway, how far its routing table has come, and what it has served."""

    KIND: ClassVar[str] = "gateway"

    gateway: GatewayId
    address: str
    applied_revision: Revision
    """Every query admitted from now on is routed by this revision or a later one."""
    queries: int = 0
    failed: int = 0
    queries_per_second: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    per_tenant: tuple[tuple[str, float], ...] = ()
    """Queries per second of each tenant."""
    admission: tuple[TenantLoad, ...] = ()
    engines: tuple[EngineLoad, ...] = ()

    @property
    def path(self) -> Path:
        return (Gateway.KIND, self.gateway)


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """How many of a tenant's queries one gateway may run at once; see `model/share.py`. On the
    gateway's lease."""

    KIND: ClassVar[str] = "share"

    tenant: TenantId
    gateway: GatewayId
    slots: int
    wanted: int = 0
    """Queries that it would run at once if it could."""
    served_at: Revision = _NEVER
    """Revision of the view on which it last had no slot and took one."""

    @property
    def path(self) -> Path:
        return (Share.KIND, self.tenant, self.gateway)


@dataclass(frozen=True, slots=True, order=True)
class FencingToken:
    """Who may write as leader; a later one is greater."""

    incarnation: int
    create_revision: Revision


META_PATH: Path = (ClusterMeta.KIND,)
LEADER_PATH: Path = (Leader.KIND,)


def worker_path(worker: WorkerId) -> Path:
    return (Worker.KIND, worker)
