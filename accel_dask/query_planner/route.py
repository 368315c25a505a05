"""Pass 5: which executors can run the query."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from accel_dask.errors import NotResident
from accel_dask.model.executor import Attachment
from accel_dask.model.routing import ExecutorRoute
from accel_dask.query_planner.plan import PlanContext, QueryDraft, Scan


def route(draft: QueryDraft, context: PlanContext) -> QueryDraft:
    """Find the executors that have every shard of the query attached.

    Raises:
        NotResident: there is none.
    """
    needed = {attachment for scan in draft.scans for attachment in _attachments(scan)}
    known = {
        (found.worker, found.generation): found
        for dataset in context.routing.datasets_of(context.tenant)
        for found in dataset.executors
    }
    able = [found for found in known.values() if needed <= found.attachments]
    if not able:
        raise NotResident(_why(draft, context, list(known.values())))
    candidates = tuple(sorted(able, key=lambda found: _order(found, context.seed)))
    used = ", ".join(
        f"{scan.route.dataset_id}@{scan.route.epoch}"
        for scan in {scan.route.dataset_id: scan for scan in draft.scans}.values()
    )
    reason = (
        f"hot: {used or 'no table'} on {len(candidates)} of {len(known)} executor(s) of tenant "
        f"{context.tenant}"
    )
    return replace(draft, candidates=candidates, reasons=(*draft.reasons, reason))


def _attachments(scan: Scan) -> Iterable[Attachment]:
    dataset = scan.route.dataset_id
    for index in scan.shards:
        yield Attachment(dataset.name, scan.route.epoch, scan.route.shards[index].shard_id)


def _order(executor: ExecutorRoute, seed: str) -> bytes:
    """Rendezvous order: each seed prefers another executor, and keeps to it. Of one host, the
    newest generation first."""
    chosen = hashlib.sha256(f"{seed}|{executor.worker}".encode()).digest()
    return chosen + (2**63 - executor.generation).to_bytes(8)


def _why(draft: QueryDraft, context: PlanContext, known: list[ExecutorRoute]) -> str:
    for scan in draft.scans:
        needed = set(_attachments(scan))
        if not any(needed <= executor.attachments for executor in known):
            return (
                f"no executor of tenant {context.tenant} has all {len(needed)} shards of "
                f"{scan.route.dataset_id}@{scan.route.epoch} at the moment"
            )
    names = sorted({str(scan.route.dataset_id) for scan in draft.scans})
    if not names:
        return f"tenant {context.tenant} has no executor at the moment"
    return f"no single executor has all of {', '.join(names)} at the moment"
