"""Executors as a routing table has them."""

from __future__ import annotations

from collections.abc import Iterable

from accel_dask.model.executor import Attachment, ExecutorKind
from accel_dask.model.ids import TenantId, WorkerId
from accel_dask.model.routing import ExecutorRoute


def executor_route(
    attachments: Iterable[Attachment] = (),
    *,
    worker: str = "w",
    tenant: str = "acme",
    generation: int = 1,
    kind: ExecutorKind = ExecutorKind.HOT,
) -> ExecutorRoute:
    """The executor of `tenant` on `worker` that has `attachments`."""
    return ExecutorRoute(
        worker=WorkerId(worker),
        tenant=TenantId(tenant),
        generation=generation,
        incarnation=f"of-{worker}",
        address=f"grpc://{worker}",
        attachments=frozenset(attachments),
        kind=kind,
    )
