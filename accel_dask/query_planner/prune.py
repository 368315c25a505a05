"""Pass 3: which shards a query has to read."""

from __future__ import annotations

from dataclasses import replace

from accel_dask.query_planner.plan import PlanContext, QueryDraft, Scan


def prune(draft: QueryDraft, context: PlanContext) -> QueryDraft:  # noqa: ARG001 - a pass
    """Choose the shards of each scan. All of them for now: bounds are not looked at yet."""
    scans = tuple(
        Scan(
            reference=scan.reference,
            route=scan.route,
            shards=tuple(range(len(scan.route.shards))),
        )
        for scan in draft.scans
    )
    return replace(draft, scans=scans)
