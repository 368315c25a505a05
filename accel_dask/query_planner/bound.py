"""Pass 4: the bounds that a query runs under."""

from __future__ import annotations

from dataclasses import replace

from accel_dask.query_planner.plan import PlanContext, QueryDraft, QueryLimits


def bound(draft: QueryDraft, context: PlanContext) -> QueryDraft:
    """Set the tenant's own limits."""
    limits = QueryLimits(
        deadline_ms=context.quota.deadline_ms,
        max_result_rows=context.quota.max_result_rows,
    )
    return replace(draft, limits=limits)
