"""Shard files, specs and tickets for tests and benchmarks of executors."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
from pyarrow import flight

from accel_dask.codec import encode
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import EpochNumber, ShardId, TenantId, WorkerId
from accel_dask.model.tenant import MIB, Quota
from accel_dask.model.ticket import EpochToken, Input, Piece, Source, Ticket, sign
from accel_dask.worker_plugin.executor.spec import ExecutorSpec
from accel_dask.worker_plugin.executors import new_incarnation

KEY = bytes(range(32))
TENANT = TenantId("acme")
EPOCH = EpochNumber(3)
ROWS = 100_000

SALES = (
    f"SELECT i AS id, (i % 100)::INTEGER AS store, (i * 7 % 1000) / 10 AS amount, "
    f"['ab', 'cd', 'ef'][i % 3 + 1] AS code, DATE '2024-01-01' + (i // 1000)::INTEGER AS day "
    f"FROM range({ROWS}) t(i) ORDER BY day"
)


def make_shard(shard_dir: Path, rows_sql: str = SALES) -> ShardId:
    """A shard file with the rows of `rows_sql`, as a loader makes it."""
    shard_id = ShardId(hashlib.sha256(rows_sql.encode()).hexdigest()[:32])
    file = shard_dir / f"{shard_id}.duckdb"
    if not file.exists():
        with duckdb.connect(str(file)) as database:
            database.execute(f"CREATE TABLE main.data AS {rows_sql}")
    return shard_id


def make_spec(shard_dir: Path, *shards: ShardId, **overrides: Any) -> ExecutorSpec:
    """A spec that attaches `shards` as epoch 3 of `sales`."""
    fields: dict[str, Any] = {
        "tenant": TENANT,
        "worker": WorkerId("host-1"),
        "generation": 1,
        "incarnation": new_incarnation(),
        "attachments": tuple(Attachment("sales", EPOCH, shard) for shard in shards),
        "shard_dir": str(shard_dir),
        "quota": Quota(executor_memory_bytes=192 * MIB, concurrency=2, queue_length=2),
        "ticket_key": KEY.hex(),
    }
    return ExecutorSpec(**(fields | overrides))


def make_ticket(sql: str, *shards: ShardId, **overrides: Any) -> Ticket:
    """A ticket of the tenant that reads `shards` of epoch 3 of `sales`."""
    fields: dict[str, Any] = {
        "version": 1,
        "query_id": "q-1",
        "tenant": TENANT,
        "sql": sql,
        "tokens": (EpochToken(dataset="sales", epoch=EPOCH, shards=shards),),
        "expires_at_ms": int(time.time() * 1000) + 60_000,
        "timeout_ms": 5_000,
        "max_result_rows": 1_000_000,
    }
    return Ticket(**(fields | overrides))


def signed(ticket: Ticket, key: bytes = KEY) -> flight.Ticket:
    return flight.Ticket(sign(encode(ticket), key))


def make_source(
    address: str, sql: str, *shards: ShardId, ticket_port: int = 0, **overrides: Any
) -> Source:
    """A part that the executor at `address` is asked for."""
    part = make_ticket(sql, *shards, **({"is_part": True} | overrides))
    return Source(address=address, ticket=sign(encode(part), KEY), ticket_port=ticket_port)


def make_input(*pieces: Source | tuple[Source, ...], **overrides: Any) -> Input:
    """`input_0`, of one piece per argument, each with its alternatives."""
    alternatives = [(one,) if isinstance(one, Source) else one for one in pieces]
    fields: dict[str, Any] = {
        "name": "input_0",
        "pieces": tuple(Piece(alternatives=each) for each in alternatives),
        "max_rows": 1_000_000,
        "max_bytes": 64 * MIB,
    }
    return Input(**(fields | overrides))


def parameters(**columns: pa.Array) -> bytes:
    """One row of parameters as a gateway sends it."""
    table = pa.table(columns)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
