"""What an executor is told at its start; written by the host, read by the executor."""

from __future__ import annotations

from dataclasses import dataclass

from accel_dask.model.executor import Attachment
from accel_dask.model.ids import TenantId, WorkerId
from accel_dask.model.load_plan import LoadTask
from accel_dask.model.tenant import MIB, Quota


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdShard:
    """A shard that is read from its source's files."""

    task: LoadTask
    is_needed: bool
    """The executor is of no use if it cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSpec:
    """One executor: whose it is, what it attaches, what bounds it."""

    tenant: TenantId
    worker: WorkerId
    generation: int
    incarnation: str
    """Random hex, new at each start; `worker_plugin.executors.new_incarnation` makes one."""
    attachments: tuple[Attachment, ...]
    shard_dir: str
    """Holds `<shard id>.duckdb` of every attachment."""
    cold: tuple[ColdShard, ...] | None = None
    """Of every attachment, where it is a cold executor; None: it is not."""
    quota: Quota
    """A cold executor's as `Quota.for_cold` has it."""
    ticket_key: str
    """Hex of the key that tickets must be signed with."""
    host: str = "127.0.0.1"
    """Address to listen on; the port is the system's choice."""
    grace_seconds: float = 300.0
    """How long to serve on after the last lease deadline heard of (at first: the start)."""
    stuck_seconds: float = 1.0
    """A query that runs on for this long after it was interrupted ends the executor."""
    join_files: tuple[str, ...] = ()
    """Of the control group that it joins before anything else."""
    address_space_slack_bytes: int = 512 * MIB
    """Address space beyond what is in use after the start and DuckDB's memory limit: results,
    threads and what DuckDB does not count."""
