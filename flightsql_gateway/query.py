"""A query as it was asked, and what is noted of it on its way until it becomes a receipt."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, Final, Protocol

import pyarrow as pa

from accel_dask.errors import AccelError
from accel_dask.model.measured import Measured
from accel_dask.model.routing import ExecutorRoute
from accel_dask.model.shard_ref import ShardRef
from accel_dask.query_planner.plan import FragmentKind, QueryLimits, QueryPlan, Verdict
from flightsql_gateway.auth import Identity
from flightsql_gateway.observations import Observations
from flightsql_gateway.receipts import DatasetReceipt, FallbackNote, PartReceipt, Receipt, shortened
from flightsql_gateway.request_limits import AskedLimits
from flightsql_gateway.request_pins import Pins

_REASON_WITH_ANSWER: Final = 500
"""Characters of why an engine was asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What a client asks."""

    sql: str
    identity: Identity
    parameters: bytes = b""
    """Arrow IPC stream with one row; empty: none."""
    parameter_count: int = 0
    limits: AskedLimits = ()
    """The client's own."""
    pins: Pins = ()
    """Epochs that it must read."""
    shard: ShardRef | None = None
    """The one shard of its dataset that it is narrowed to. It has its dataset's pin, too."""
    may_fall_back: bool = True
    """Whether the engine behind memory may be asked."""
    name: str = ""
    """What its user can cancel it by."""
    describe_only: bool = False


class BatchStream(Protocol):
    """The batches of one answer, and where they come from."""

    @property
    def plan(self) -> QueryPlan: ...

    @property
    def executor(self) -> ExecutorRoute | None:
        """None: it is answered here."""
        ...

    @property
    def schema(self) -> pa.Schema: ...

    @property
    def retries(self) -> int: ...

    @property
    def measured(self) -> Measured | None:
        """What its executor measured, once it is complete."""
        ...

    def read(self) -> pa.RecordBatch | None:
        """The next batch; None: that was all."""
        ...

    def cancel(self) -> None:
        """End it from another thread; a blocked `read` fails."""
        ...

    def close(self) -> None: ...


class QueryRecord:
    """Collects what the receipt will say."""

    def __init__(self, query: Query, observations: Observations) -> None:
        self.query_id: Final = uuid.uuid4().hex
        self.plan: QueryPlan | None = None
        self.stream: BatchStream | None = None
        self.fallback: FallbackNote | None = None
        self.note = ""
        """What else there is to say of it."""
        self.plan_ms = self.queue_ms = self.run_ms = 0.0
        self.rows = self.bytes = 0
        self.summary: Receipt | None = None
        """The receipt as it goes along with the answer: without the statement, and with the
        reason only where an engine was asked. None: the query goes on."""
        self.error: AccelError | None = None
        self._query = query
        self._observations = observations
        self._reason = ""
        self._started = time.monotonic()
        self._started_at_ms = int(time.time() * 1000)

    def finish(self, error: BaseException | None) -> None:
        """Make the receipt and have it told to the observers, once."""
        if self.summary is not None:
            return
        if isinstance(error, AccelError):
            self.error = error
        query = self._query
        plan = self.stream.plan if self.stream else self.plan
        executor = self.stream.executor if self.stream else None
        measured = self.stream.measured if self.stream else None
        if error is None:
            reasons = plan.reasons if plan else ()
            self._reason = "; ".join((*reasons, self.note) if self.note else reasons)
        else:
            self._reason = _told(error)
        self.summary = Receipt(
            query_id=self.query_id,
            tenant=query.identity.tenant,
            user=query.identity.user,
            sql="",
            outcome="OK" if error is None else getattr(error, "code", "ACCEL_ERROR"),
            reason=self._reason[:_REASON_WITH_ANSWER] if self.fallback else "",
            route=_route(plan, executor, measured, self.fallback),
            fallback=str(self.fallback.reason) if self.fallback else "",
            engine=self.fallback.engine if self.fallback else "",
            is_pinned=self.fallback.is_pinned if self.fallback else None,
            datasets=_datasets(plan, executor),
            executor=_name_of(executor) if executor else "",
            executors=_executors(plan) if executor else 0,
            verdict=_verdict(plan.verdict) if plan else "",
            started_at_ms=self._started_at_ms,
            plan_ms=round(self.plan_ms, 3),
            queue_ms=round(self.queue_ms, 3),
            run_ms=round(self.run_ms, 3),
            total_ms=round((time.monotonic() - self._started) * 1000, 3),
            rows=self.rows,
            bytes=self.bytes,
            retries=self.stream.retries if self.stream else 0,
            predicted_scan_rows=plan.verdict.scan_rows if plan else None,
            limits=_limits(plan.limits) if plan else {},
            **_measured(plan, measured),
        )
        if not query.describe_only:
            self._observations.add(query.identity, self._receipt)

    def _receipt(self) -> Receipt:
        """All of it."""
        assert self.summary is not None
        return replace(self.summary, sql=shortened(self._query.sql), reason=self._reason)


# Of cached plans, which are asked for again and again.
@lru_cache(maxsize=1000)
def _verdict(verdict: Verdict) -> str:
    return str(verdict)


@lru_cache(maxsize=1000)
def _limits(limits: QueryLimits) -> dict[str, int]:
    return asdict(limits)


def _measured(plan: QueryPlan | None, measured: Measured | None) -> dict[str, Any]:
    """The receipt's fields of that name."""
    if plan is None or measured is None:
        return {}
    names = {one.address: _name_of(one) for one in _part_executors(plan)}
    scanned = (measured.scanned_rows, *(part.scanned_rows for part in measured.parts))
    counted = [rows for rows in scanned if rows is not None]
    return {
        "scanned_rows": sum(counted) if len(counted) == len(scanned) else None,
        "executor_queue_ms": measured.queue_ms,
        "gather_ms": measured.gather_ms,
        "engine_ms": measured.engine_ms,
        "cpu_ms": round(measured.total_cpu_ms, 3),
        "peak_memory_bytes": measured.peak_memory_bytes,
        "gathered_rows": measured.gathered_rows,
        "gathered_bytes": measured.gathered_bytes,
        "parts": tuple(
            PartReceipt(
                executor=names.get(part.address, ""),
                rows=part.rows,
                bytes=part.bytes,
                ms=part.ms,
                cpu_ms=part.cpu_ms,
                scanned_rows=part.scanned_rows,
                alternatives=part.alternatives,
            )
            for part in measured.parts
        ),
    }


def _part_executors(plan: QueryPlan) -> Iterator[ExecutorRoute]:
    for one in plan.fragments[0].inputs:
        for part in one.parts:
            yield from part.candidates


def _name_of(executor: ExecutorRoute) -> str:
    cold = " (cold)" if executor.is_cold else ""
    return f"{executor.worker}/{executor.generation}{cold}"


def _route(
    plan: QueryPlan | None,
    executor: ExecutorRoute | None,
    measured: Measured | None,
    fallback: FallbackNote | None,
) -> str:
    """Where the rows came from, whoever stood in for whom; empty: from nowhere."""
    if fallback is not None:
        return FragmentKind.OLAP.value
    if plan is None or executor is None:
        return ""
    fragment = plan.fragments[0]
    if not fragment.inputs:
        return (FragmentKind.COLD if executor.is_cold else fragment.kind).value
    cold = {one.address for one in _part_executors(plan) if one.is_cold}
    kinds = {part.kind for one in fragment.inputs for part in one.parts} | {fragment.kind}
    if measured is not None and any(part.address in cold for part in measured.parts):
        kinds.add(FragmentKind.COLD)
    return "+".join(kind.value for kind in FragmentKind if kind in kinds)


def _executors(plan: QueryPlan | None) -> int:
    """The one that was asked and those that it asks."""
    if plan is None:
        return 0
    parts = (part for one in plan.fragments[0].inputs for part in one.parts)
    return 1 + len({part.candidates[0].address for part in parts})


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, AccelError) else "internal error"


def _datasets(plan: QueryPlan | None, executor: ExecutorRoute | None) -> tuple[DatasetReceipt, ...]:
    stood_in = bool(plan and executor and executor.is_cold and not plan.fragments[0].inputs)
    return tuple(
        DatasetReceipt(
            dataset=used.dataset_id.name,
            epoch=used.epoch,
            snapshot=used.snapshot_id.snapshot if used.snapshot_id else "",
            shards=used.shards,
            total_shards=used.total_shards,
            rollup=used.rollup,
            cold_shards=used.shards if stood_in else used.cold_shards,
        )
        for used in (plan.datasets if plan else ())
    )
