"""A gateway in this process, over an in-memory store and executors that are DuckDB behind Flight.

The executors check tickets as real ones do, and can be made to misbehave.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import duckdb
import pyarrow as pa
from adbc_driver_flightsql import dbapi
from pyarrow import flight

from accel_dask.codec import decode
from accel_dask.config import GatewaySettings
from accel_dask.errors import AccelError, ExecutorUnavailable, InvalidQuery
from accel_dask.flight_errors import to_flight
from accel_dask.model.dataset import Dataset, SourceSpec
from accel_dask.model.epoch import Epoch, EpochState, ShardSummary, StoryLine
from accel_dask.model.executor import Attachment, Executor, ExecutorPlan, ExecutorState
from accel_dask.model.ids import DatasetId, EpochNumber, ShardId, TenantId, WorkerId
from accel_dask.model.member import Gateway
from accel_dask.model.placement import Placement, Serving
from accel_dask.model.snapshot import Column, SnapshotId
from accel_dask.model.tenant import Quota, Tenant, User, hash_token
from accel_dask.model.ticket import Ticket, fence, shard_database, verify
from accel_dask.store.memory import MemoryStore
from accel_dask.store.records import delete_record, ensure_meta, put_record, read_view
from accel_dask.ticket_stream import FrameKind
from accel_dask.worker_plugin.executor.engine_threads import EngineThreads
from accel_dask.worker_plugin.executor.ticket_server import TicketServer
from flightsql_gateway.app import GatewayApp


@dataclass
class FakeAnswer:
    """What a `FakeExecutor` sends, batch by batch."""

    schema: pa.Schema
    batches: list[pa.RecordBatch]
    deadline: float
    between: Callable[[int], None]
    is_complete: bool = False

    @property
    def schema_message(self) -> pa.Buffer:
        return self.schema.serialize()

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for index, batch in enumerate(self.batches):
            self.between(index)
            yield batch

    def measured_text(self) -> bytes:
        return b""


class FakeExecutor(flight.FlightServerBase):  # type: ignore[misc]
    """One generation: tables per shard in one DuckDB."""

    def __init__(self, tenant: str, key: bytes, shards: dict[ShardId, pa.Table]) -> None:
        self.tenant = tenant
        self.key = key
        self.attached: frozenset[Attachment] = frozenset()
        self.tickets: list[Ticket] = []
        self.is_gone: dict[str, Callable[[], bool]] = {}
        """Of each query: whether its gateway has given it up."""
        self.before: Callable[[Ticket], None] = lambda ticket: None
        """Runs before each answer; may raise or block."""
        self.between: Callable[[int], None] = lambda index: None
        """Runs before each batch."""
        self.has_left = False
        self.database = duckdb.connect()
        for shard, rows in shards.items():
            name = shard_database(shard)
            self.database.execute(f"ATTACH ':memory:' AS \"{name}\"")
            self.database.register("rows", rows)
            self.database.execute(f'CREATE TABLE "{name}".main.data AS FROM rows')
            self.database.unregister("rows")
        super().__init__("grpc://127.0.0.1:0")
        self.threads = EngineThreads(tenant, "queries", 4, None)
        self.ticket_server = TicketServer(
            "127.0.0.1", self._answer, {FrameKind.TICKET: self.threads}
        )

    @property
    def address(self) -> str:
        return f"grpc://127.0.0.1:{self.port}"

    @property
    def ticket_port(self) -> int:
        return self.ticket_server.port

    def _answer(
        self, signed: bytes, is_gone: Callable[[], bool], started_at: float
    ) -> tuple[FakeAnswer, Callable[[], None]]:
        order = decode(verify(signed, self.key), Ticket)
        fence(order, TenantId(self.tenant), self.attached)
        self.tickets.append(order)
        self.is_gone[order.query_id] = is_gone
        self.before(order)
        params = pa.ipc.open_stream(order.parameters).read_all() if order.parameters else None
        values = list(params.to_pylist()[0].values()) if params else None
        if order.describe_only and "?" in order.sql:
            values = [None] * order.sql.count("?")
        try:
            with self.database.cursor() as cursor:
                table = cursor.sql(order.sql, params=values).to_arrow_table()
        except duckdb.Error as error:
            raise InvalidQuery(str(error).split("\n", maxsplit=1)[0]) from error
        batches = [] if order.describe_only else table.to_batches(1000)
        deadline = started_at + order.timeout_ms / 1000
        return FakeAnswer(table.schema, batches, deadline, self.between), lambda: None

    def do_get(self, context: Any, ticket: Any) -> Any:
        """As for peers, and for clients with a ticket of their own."""
        try:
            answer, _ = self._answer(ticket.ticket, lambda: False, time.monotonic())
            return flight.GeneratorStream(answer.schema, iter(answer))
        except AccelError as error:
            raise to_flight(error) from None

    def do_action(self, context: Any, action: Any) -> Any:
        return iter([])

    def break_off(self) -> NoReturn:
        """End all connections, as a process that is killed at its work."""
        self.ticket_server.end_all()
        raise ExecutorUnavailable("nobody is there to read this")

    def leave(self) -> None:
        """End as a process does: nobody listens, and what was open is closed. Once is enough."""
        if self.has_left:
            return
        self.has_left = True
        self.ticket_server.close()
        self.shutdown()
        # A test may still hold up an answer.
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        self.threads.close()
        self.database.close()


@dataclass
class World:
    """Store, executors and one gateway."""

    store: MemoryStore = field(default_factory=MemoryStore)
    settings: GatewaySettings = field(default_factory=lambda: GatewaySettings(port=0))

    def __post_init__(self) -> None:
        self.meta = ensure_meta(self.store, "test")
        self.key = bytes.fromhex(self.meta.ticket_key)
        self.executors: list[FakeExecutor] = []
        self.app = GatewayApp(replace(self.settings), self.store)
        self.url = ""
        self._shards = 0

    def start(self) -> str:
        self.url = self.app.start(10)
        return self.url

    def close(self) -> None:
        self.app.close(5)
        for executor in self.executors:
            threading.Thread(target=executor.leave, daemon=True).start()
        self.store.close()

    def tenant(self, name: str, quota: Quota | None = None) -> str:
        """A tenant with a user of the same name; its token."""
        put_record(self.store, Tenant(tenant=TenantId(name), quota=quota or Quota()))
        token = f"secret-of-{name}"
        put_record(
            self.store, User(name=name, tenant=TenantId(name), token_sha256=hash_token(token))
        )
        return token

    def declare(self, tenant: str, name: str) -> None:
        source = SourceSpec(connector="parquet")
        put_record(self.store, Dataset(tenant=TenantId(tenant), name=name, source=source))

    def serve(
        self,
        tenant: str,
        epochs: dict[str, tuple[int, list[pa.Table]]],
        *,
        worker: str = "w1",
        generation: int = 1,
    ) -> FakeExecutor:
        """Start an executor with these epochs (number and shards) and route to it."""
        attachments: list[Attachment] = []
        shards: dict[ShardId, pa.Table] = {}
        records = []
        for name, (number, parts) in epochs.items():
            self.declare(tenant, name)
            ids = []
            for index, part in enumerate(parts):
                shard = _shard_id(tenant, name, number, index)
                ids.append(shard)
                shards[shard] = part
                attachments.append(Attachment(name, EpochNumber(number), shard))
            records.append(_epoch(tenant, name, number, ids, parts))
        executor = FakeExecutor(tenant, self.key, shards)
        executor.attached = frozenset(attachments)
        self.executors.append(executor)
        for epoch in records:
            put_record(self.store, epoch)
            put_record(self.store, _placement(epoch, worker))
        self.register(executor, worker, generation)
        for epoch in records:
            put_record(
                self.store,
                Serving(tenant=epoch.tenant, dataset=epoch.dataset, epoch=epoch.number, since_ns=0),
            )
        self.wait_applied()
        return executor

    def register(self, executor: FakeExecutor, worker: str = "w1", generation: int = 1) -> None:
        tenant = TenantId(executor.tenant)
        put_record(
            self.store,
            ExecutorPlan(
                worker=WorkerId(worker),
                tenant=tenant,
                generation=generation,
                attachments=tuple(sorted(executor.attached)),
                quota=Quota(),
            ),
        )
        put_record(
            self.store,
            Executor(
                worker=WorkerId(worker),
                tenant=tenant,
                generation=generation,
                incarnation=f"{executor.port}",
                state=ExecutorState.READY,
                address=executor.address,
                ticket_port=executor.ticket_port,
            ),
        )

    def retire(self, tenant: str, name: str, number: int) -> None:
        """Move a replaced epoch to RETIRING."""
        epoch = read_view(self.store).epoch(DatasetId(TenantId(tenant), name), EpochNumber(number))
        assert epoch is not None
        put_record(self.store, replace(epoch, state=EpochState.RETIRING))

    def forget_executor(self, tenant: str, worker: str = "w1", generation: int = 1) -> None:
        delete_record(self.store, ("executor", worker, tenant, f"{generation:020d}"))

    def wait_applied(self, seconds: float = 10.0) -> None:
        """Wait until the gateway, if it runs, routes by what is in the store now."""
        if not self.url:
            return
        revision = self.store.read().revision
        wait_until(lambda: self.app.routing.view.revision >= revision, seconds)

    def gateway_record(self) -> Gateway | None:
        return next(iter(read_view(self.store).records(Gateway)), None)

    @contextmanager
    def connect(self, user: str, token: str, **options: str) -> Iterator[Any]:
        kwargs = {"username": user, "password": token, **options}
        with dbapi.connect(self.url, db_kwargs=kwargs, autocommit=True) as connection:
            yield connection

    def client(self, user: str, token: str) -> tuple[flight.FlightClient, flight.FlightCallOptions]:
        client = flight.FlightClient(self.url)
        header = client.authenticate_basic_token(user, token)
        return client, flight.FlightCallOptions(headers=[header], timeout=20)


def _shard_id(tenant: str, name: str, number: int, index: int) -> ShardId:
    return ShardId(hashlib.sha256(f"{tenant}.{name}.{number}.{index}".encode()).hexdigest()[:32])


def _epoch(tenant: str, name: str, number: int, ids: list[ShardId], parts: list[pa.Table]) -> Epoch:
    columns = duckdb.from_arrow(parts[0]).query("t", "DESCRIBE SELECT * FROM t").fetchall()
    return Epoch(
        tenant=TenantId(tenant),
        dataset=name,
        number=EpochNumber(number),
        snapshot_id=SnapshotId(table_uuid="u", snapshot=str(1000 + number), schema_id="0"),
        sequence=number,
        state=EpochState.READY,
        replicas=1,
        columns=tuple(Column(name=row[0], type=row[1]) for row in columns),
        shards=tuple(
            ShardSummary(shard_id=shard, rows=part.num_rows, source_bytes=0)
            for shard, part in zip(ids, parts, strict=True)
        ),
        story=(StoryLine(at_ns=0, state=EpochState.READY, because="test"),),
    )


def _placement(epoch: Epoch, worker: str) -> Placement:
    return Placement(
        tenant=epoch.tenant,
        dataset=epoch.dataset,
        epoch=epoch.number,
        hosts=tuple((shard.shard_id, (WorkerId(worker),)) for shard in epoch.shards),
    )


def flights(version: int = 1, rows: int = 100) -> pa.Table:
    """A table whose every row names its version."""
    return pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "carrier": pa.array([f"C{i % 3}" for i in range(rows)]),
            "delay": pa.array([i / 2 for i in range(rows)], pa.float64()),
            "version": pa.array([version] * rows, pa.int32()),
        }
    )


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "a condition did not hold in time"
        time.sleep(0.005)
