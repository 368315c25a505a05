"""Shards of `sales` on three real executors, `stores` on all of them, and a gateway over them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from adbc_driver_flightsql import dbapi
from executor_builders import EPOCH, TENANT, make_shard, make_spec
from pyarrow import flight

from accel_dask.config import GatewaySettings
from accel_dask.errors import AccelError
from accel_dask.flight_errors import from_flight
from accel_dask.model.epoch import Epoch, EpochState, ShardSummary
from accel_dask.model.executor import Attachment, Executor, ExecutorPlan, ExecutorState
from accel_dask.model.ids import EpochNumber, ShardId, WorkerId
from accel_dask.model.placement import Placement, Serving
from accel_dask.model.snapshot import Column
from accel_dask.model.tenant import Quota, Tenant, User, hash_token
from accel_dask.store.memory import MemoryStore
from accel_dask.store.records import ensure_meta, put_record
from accel_dask.worker_plugin.executors import ExecutorHost
from accel_dask.worker_plugin.running_executor import RunningExecutor
from flightsql_gateway.app import GatewayApp
from flightsql_gateway.flight_sql import messages

ROWS = 30_000
SALES = f"""
    SELECT i AS id, (i % 7)::INTEGER AS store, (i * 7 % 1000)::DECIMAL(12, 2) / 4 AS amount,
        ['ab', 'cd', NULL][i % 3 + 1] AS code, DATE '2024-01-01' + (i // 1000)::INTEGER AS day,
        (i % 5)::HUGEINT AS big, i / 3.0::DOUBLE AS ratio,
        ('00000000-0000-0000-0000-00000000000' || (i % 4))::UUID AS tag
    FROM range({ROWS}) t(i)
"""
STORES = "SELECT i::INTEGER AS store, 'store ' || i AS label FROM range(6) t(i)"
CUTS = [(0, 9_000), (9_000, 9_000), (9_000, 21_000), (21_000, ROWS)]
HELD = {"w1": [0, 1], "w2": [2, 3], "w3": [2, 3]}
"""The shards of `sales` that each executor has."""
TOKEN = "secret-of-acme"


class SpreadSite:
    """Shards of `sales` on three executors, `stores` on all of them, and a gateway."""

    def __init__(self, directory: Path, quota: Quota) -> None:
        self.store = MemoryStore()
        self.key = ensure_meta(self.store, "test").ticket_key
        self.quota = quota
        self.shard_dir = directory / "shards"
        self.shard_dir.mkdir()
        self.plain = duckdb.connect()
        self.plain.execute("CREATE SCHEMA acme")
        self.plain.execute("USE acme")
        self.host = ExecutorHost(directory / "run")
        self.host.start()
        self.executors: dict[str, RunningExecutor] = {}
        self.app = GatewayApp(GatewaySettings(port=0), self.store)
        put_record(self.store, Tenant(tenant=TENANT, quota=quota))
        put_record(self.store, User(name="ann", tenant=TENANT, token_sha256=hash_token(TOKEN)))
        self.serve(SALES)
        self.url = self.app.start(10)

    def serve(self, rows: str, number: int = EPOCH, held: dict[str, list[int]] = HELD) -> None:
        """Launch executors with `rows` as epoch `number` of `sales`, then switch to it."""
        sales = [
            make_shard(self.shard_dir, f"FROM ({rows}) WHERE id >= {a} AND id < {b}")
            for a, b in CUTS
        ]
        stores = [make_shard(self.shard_dir, STORES)]
        epoch = EpochNumber(number)
        for worker, indexes in held.items():
            self._launch(
                worker,
                tuple(
                    sorted(
                        [Attachment("sales", epoch, sales[index]) for index in indexes]
                        + [Attachment("stores", epoch, stores[0])]
                    )
                ),
                number,
            )
        self._declare("sales", rows, sales, [b - a for a, b in CUTS], epoch)
        self._declare("stores", STORES, stores, [6], epoch)

    def _declare(
        self, name: str, rows: str, shards: list[ShardId], counts: list[int], number: EpochNumber
    ) -> None:
        self.plain.execute(f"CREATE OR REPLACE TABLE {name} AS {rows}")
        described = self.plain.sql(f"FROM {name}")
        epoch = Epoch(
            tenant=TENANT,
            dataset=name,
            number=number,
            snapshot_id=None,
            sequence=1,
            state=EpochState.READY,
            replicas=1,
            columns=tuple(
                Column(name=column, type=str(kind))
                for column, kind in zip(described.columns, described.types, strict=True)
            ),
            shards=tuple(
                ShardSummary(shard_id=shard, rows=count, source_bytes=count * 10)
                for shard, count in zip(shards, counts, strict=True)
            ),
        )
        put_record(self.store, epoch)
        hosts = tuple((shard, (WorkerId("w1"),)) for shard in shards)
        put_record(self.store, Placement(tenant=TENANT, dataset=name, epoch=number, hosts=hosts))
        put_record(self.store, Serving(tenant=TENANT, dataset=name, epoch=number, since_ns=0))

    def _launch(self, worker: str, attachments: tuple[Attachment, ...], generation: int) -> None:
        spec = make_spec(
            self.shard_dir,
            worker=WorkerId(worker),
            generation=generation,
            attachments=attachments,
            ticket_key=self.key,
            quota=self.quota,
        )
        executor = self.executors[worker] = self.host.launch(spec)
        plan = ExecutorPlan(
            worker=spec.worker,
            tenant=TENANT,
            generation=generation,
            attachments=attachments,
            quota=self.quota,
        )
        put_record(self.store, plan)
        record = Executor(
            worker=spec.worker,
            tenant=TENANT,
            generation=generation,
            incarnation=executor.incarnation,
            state=ExecutorState.READY,
            address=executor.address,
            ticket_port=executor.ticket_port,
        )
        put_record(self.store, record)

    def wait_routed(self, seconds: float = 10.0) -> None:
        """Wait until the gateway routes by what is in the store now."""
        revision = self.store.read().revision
        deadline = time.monotonic() + seconds
        while self.app.routing.view.revision < revision:
            assert time.monotonic() < deadline
            time.sleep(0.002)

    def connect(self) -> Any:
        kwargs = {"username": "ann", "password": TOKEN}
        return dbapi.connect(self.url, db_kwargs=kwargs, autocommit=True)

    def client(
        self, headers: dict[str, str] | None = None
    ) -> tuple[flight.FlightClient, flight.FlightCallOptions]:
        client = flight.FlightClient(self.url)
        sent = [client.authenticate_basic_token("ann", TOKEN)]
        sent += [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
        return client, flight.FlightCallOptions(headers=sent, timeout=30)

    def ask(self, sql: str, headers: dict[str, str] | None = None) -> pa.Table:
        client, options = self.client(headers)
        command = messages.wrap(messages.new("CommandStatementQuery", query=sql))
        return client.do_get(flight.Ticket(command), options).read_all()

    def refusal(
        self, sql: str, headers: dict[str, str] | None = None
    ) -> tuple[type[AccelError], str]:
        with pytest.raises((flight.FlightError, pa.ArrowException, OSError, ValueError)) as failed:
            self.ask(sql, headers)
        error = from_flight(failed.value)
        return type(error), str(error)

    def receipt(self) -> dict[str, Any]:
        client, options = self.client()
        action = flight.Action("accel.receipts", json.dumps({"last": 1}).encode())
        (result,) = client.do_action(action, options)
        found: dict[str, Any] = json.loads(result.body.to_pybytes())[0]
        return found

    def close(self) -> None:
        self.app.close(5)
        self.host.close()
        self.store.close()
        self.plain.close()
