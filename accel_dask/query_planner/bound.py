"""Pass 6: what a query costs at most, by statistics, and the limits that it runs under."""

from __future__ import annotations

from dataclasses import replace

from accel_dask.errors import ScanLimit
from accel_dask.model.tenant import Quota
from accel_dask.query_planner.plan import PlanContext, QueryDraft, QueryLimits, Scan
from accel_dask.query_planner.verdict import verdict_of


def bound(draft: QueryDraft, context: PlanContext) -> QueryDraft:
    """Set the tenant's own limits, and compare the query with them.

    Raises:
        ScanLimit: it would read more than the tenant may.
    """
    assert draft.parsed is not None
    limits = limits_of(context.quota)
    verdict = verdict_of(draft.parsed, draft.scans)
    largest = max(draft.scans, key=scan_bytes, default=None)
    for what, name, value, limit in (
        ("rows", "max_scan_rows", verdict.scan_rows, limits.max_scan_rows),
        ("bytes", "max_scan_bytes", verdict.scan_bytes, limits.max_scan_bytes),
    ):
        if value is not None and value > limit:
            assert largest is not None
            raise ScanLimit(
                f"the query would read {value:,} {what}, most of them of "
                f"{largest.reference.table} ({len(largest.shards)} of "
                f"{len(largest.route.shards)} shards); {_whose(name, limit, context)} is "
                f"{limit:,} ({name}); filter by a column that the table is sorted by"
            )
    return replace(draft, limits=limits, verdict=verdict)


def _whose(name: str, limit: int, context: PlanContext) -> str:
    if dict(context.asked).get(name) == limit:
        return "the client's own limit"
    return f"the limit of tenant {context.tenant}"


def limits_of(quota: Quota) -> QueryLimits:
    return QueryLimits(
        deadline_ms=quota.deadline_ms,
        max_cpu_ms=quota.max_cpu_ms,
        max_result_rows=quota.max_result_rows,
        max_result_bytes=quota.max_result_bytes,
        max_scan_rows=quota.max_scan_rows,
        max_scan_bytes=quota.max_scan_bytes,
        max_cold_scan_bytes=quota.max_cold_scan_bytes,
        max_gather_rows=quota.max_gather_rows,
        max_gather_bytes=quota.max_gather_bytes,
    )


def scan_bytes(scan: Scan) -> int:
    """Bytes of the source's files behind the scan's shards."""
    return sum(scan.route.shards[index].source_bytes for index in scan.shards)
