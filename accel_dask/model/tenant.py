"""Tenants, their users and the quota that bounds everything done for them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from typing import ClassVar

from accel_dask.model.ids import Path, TenantId

MIB = 1024 * 1024
MAX_CPU_WEIGHT = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """Upper bounds of one tenant. Nothing set means these small defaults, never infinity."""

    memory_bytes_per_host: int = 1024 * MIB
    """Shard files plus executor memory on any one host."""
    memory_bytes_on_all_hosts: int = 16 * 1024 * MIB
    """Shard files on all hosts together, each replica counted."""
    executor_memory_bytes: int = 384 * MIB
    """DuckDB's memory limit in the tenant's executor; part of the per-host budget."""
    threads: int = 2
    """DuckDB threads of one executor."""
    concurrency: int = 4
    """Queries that run at once in one executor, and through all gateways together."""
    queue_length: int = 64
    """Queries that may wait for a place in one gateway."""
    queue_wait_ms: int = 2_000
    logins_per_second: int = 20
    """Logins of its users at one gateway, after twice as many at once; others wait."""
    deadline_ms: int = 10_000
    """Total time of a query: queue, plan, run and stream."""
    max_cpu_ms: int = 15_000
    """CPU time of one query in any one executor, over all its threads."""
    max_result_rows: int = 1_000_000
    max_result_bytes: int = 512 * MIB
    """As `max_result_rows`, in bytes of Arrow buffers."""
    max_scan_rows: int = 200_000_000
    """Rows of all shards that one query reads, by their statistics, before it runs."""
    max_scan_bytes: int = 8 * 1024 * MIB
    """As `max_scan_rows`, in bytes of the source's files."""
    max_gather_rows: int = 4_000_000
    """Rows that one query's coordinator may fetch from other executors, over all of its inputs.
    As many rows of three keys or numbers as `max_gather_bytes` holds: what is scarce is memory."""
    max_gather_bytes: int = 96 * MIB
    """As `max_gather_rows`, in bytes of Arrow buffers."""
    fallback_concurrency: int = 2
    """Queries of the tenant that one gateway has at OLAP engines at once."""
    fallback_deadline_ms: int = 30_000
    """Total time of a query at an engine: waiting for a place there, run and stream."""
    fallback_max_rows: int = 100_000
    fallback_max_bytes: int = 64 * MIB
    """As `fallback_max_rows`, in bytes of Arrow buffers; the gateway holds them meanwhile."""
    load_threads: int = 2
    """DuckDB threads of one loader."""
    cpu_weight: int = 100
    """Share of a host's CPU against other tenants, after the guarantees; idle CPU is anybody's."""
    cpu_guarantee_percent: int = 5
    """Percent of one core that the tenant can always have on any one host."""
    cpu_limit_percent: int = 0
    """Percent of one core that the tenant never exceeds on any one host, even an idle one; 0: no
    such limit."""
    cold_memory_bytes: int = 384 * MIB
    """All memory of a cold executor; beside `memory_bytes_per_host`, and only on hosts that run
    one."""
    cold_threads: int = 1
    """DuckDB threads of a cold executor."""
    cold_concurrency: int = 2
    """Queries, and as many parts of queries, that run at once in a cold executor."""
    max_cold_scan_bytes: int = 512 * MIB
    """Bytes of the source's files behind the shards that one query reads cold."""

    def for_cold(self) -> Quota:
        """As a cold executor is bounded; its engine gets what its process leaves of the memory."""
        return replace(
            self,
            executor_memory_bytes=self.cold_memory_bytes,
            threads=self.cold_threads,
            concurrency=self.cold_concurrency,
        )

    @property
    def shard_bytes_per_host(self) -> int:
        """What is left for shard files on a host, in bytes."""
        return self.memory_bytes_per_host - self.executor_memory_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tenant:
    """A business unit with its own users, quota and executors."""

    KIND: ClassVar[str] = "tenant"

    tenant: TenantId
    quota: Quota = field(default_factory=Quota)

    @property
    def path(self) -> Path:
        return tenant_path(self.tenant)


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """Someone who may ask for one tenant's data. Tokens are random, so one hash is enough."""

    KIND: ClassVar[str] = "user"

    name: str
    tenant: TenantId
    token_sha256: str

    @property
    def path(self) -> Path:
        return user_path(self.name)


def tenant_path(tenant: TenantId) -> Path:
    return (Tenant.KIND, tenant)


def user_path(name: str) -> Path:
    return (User.KIND, name)


def hash_token(token: str) -> str:
    """The form in which a token is kept: SHA-256 in hex."""
    return hashlib.sha256(token.encode()).hexdigest()
