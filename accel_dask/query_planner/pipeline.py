"""SQL to plan: the passes, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from accel_dask.model.cluster import ClusterView
from accel_dask.model.ids import DatasetId, TenantId
from accel_dask.model.rollup import rollup_name
from accel_dask.model.routing import ExecutorRoute, build_routing
from accel_dask.model.ticket import DATA_TABLE
from accel_dask.query_planner.bound import bound
from accel_dask.query_planner.engine_faults import avoid_engine_faults
from accel_dask.query_planner.month_starts import cheapen_truncations
from accel_dask.query_planner.parse import parse
from accel_dask.query_planner.plan import (
    PlanContext,
    QueryDraft,
    QueryPlan,
    Scan,
    UsedDataset,
)
from accel_dask.query_planner.prune import prune
from accel_dask.query_planner.resolve import resolve
from accel_dask.query_planner.rollups import use_rollups
from accel_dask.query_planner.route import route
from accel_dask.query_planner.split import split

Pass = Callable[[QueryDraft, PlanContext], QueryDraft]

PASSES: Final[tuple[Pass, ...]] = (
    parse, resolve, prune, use_rollups, avoid_engine_faults, bound, route, split,
    cheapen_truncations,
)  # fmt: skip


def plan_query(sql: str, context: PlanContext) -> QueryPlan:
    """The plan for `sql`.

    Raises:
        QueryError: the gate refuses it, or it names an unknown table.
        NotResident: nothing can run it now.
    """
    return plan_parsed(parse(QueryDraft(sql=sql), context), context)


def plan_parsed(draft: QueryDraft, context: PlanContext) -> QueryPlan:
    """As `plan_query`, for a statement that has passed the gate already."""
    return plan_of(drafted(draft, context), context)


def drafted(draft: QueryDraft, context: PlanContext) -> QueryDraft:
    """All passes behind the gate.

    Raises:
        QueryError, NotResident: as `plan_query`.
    """
    if not context.seed:
        context = replace(context, seed=draft.sql)
    for step in PASSES[1:]:
        draft = step(draft, context)
    return draft


def plan_of(draft: QueryDraft, context: PlanContext) -> QueryPlan:
    """The plan that `draft` has become."""
    assert draft.parsed is not None
    assert draft.limits is not None
    assert draft.verdict is not None
    return QueryPlan(
        tenant=context.tenant,
        sql=draft.sql,
        datasets=_used(draft),
        fragments=draft.fragments,
        limits=draft.limits,
        parameters=len(draft.parsed.parameter_columns),
        minds_nan=draft.minds_nan,
        parameter_columns=draft.parsed.parameter_columns,
        verdict=draft.verdict,
        reasons=draft.reasons,
        routes=tuple(
            context.routing.datasets[dataset]
            for dataset in {scan.route.dataset_id: None for scan in draft.scans}
        ),
        rollups=draft.rollups,
    )


def shards_to_read(sql: str, context: PlanContext) -> tuple[Scan, ...]:
    """The scans of `sql` with their shards; nothing about limits or executors.

    Raises:
        QueryError, NotResident: as `plan_query`.
    """
    draft = QueryDraft(sql=sql)
    for step in (parse, resolve, prune):
        draft = step(draft, context)
    return draft.scans


def warm_up() -> None:
    """Parse one statement: the first costs a hundred times the second."""
    context = PlanContext(tenant=TenantId("warm_up"), routing=build_routing(ClusterView(0, {})))
    parse(QueryDraft(sql="WITH a AS (SELECT x FROM t) SELECT count(*) FROM a GROUP BY x"), context)


def explain(plan: QueryPlan) -> str:
    """The plan for people, pass by pass."""
    limits = plan.limits
    lines = [f"tenant {plan.tenant}"]
    lines += [
        f"prune: {used.dataset_id}@{used.epoch} (snapshot {used.snapshot_id}): reads "
        f"{used.shards} of {used.total_shards} shards"
        + (f", {used.cold_shards} of them cold" if used.cold_shards else "")
        for used in plan.datasets
    ]
    lines += [f"rollup: {told}" for told in plan.rollups]
    lines += [
        f"bound: {plan.verdict}",
        (
            f"limits: {limits.deadline_ms} ms, {limits.max_cpu_ms:,} ms of CPU, "
            f"{limits.max_result_rows:,} result rows and {limits.max_result_bytes:,} bytes, "
            f"{limits.max_scan_rows:,} rows and {limits.max_scan_bytes:,} bytes scanned, "
            f"{limits.max_cold_scan_bytes:,} bytes read cold, "
            f"{limits.max_gather_rows:,} rows and {limits.max_gather_bytes:,} bytes gathered"
        ),
    ]
    lines += [f"plan: {reason}" for reason in plan.reasons]
    for number, fragment in enumerate(plan.fragments, 1):
        for one in fragment.inputs:
            rows = "" if one.rows is None else f", at most {one.rows:,} rows"
            lines.append(f"input {one.name}: {len(one.parts)} part(s){rows}")
            for part in one.parts:
                where = _places(part.candidates)
                lines += [f"  part ({part.kind}) on {where}:", f"    {part.sql}"]
        where = _places(fragment.candidates)
        lines += [f"fragment {number} ({fragment.kind}) on {where}:", f"  {fragment.sql}"]
    return "\n".join(lines)


def _places(executors: tuple[ExecutorRoute, ...]) -> str:
    return ", ".join(
        f"{one.worker}/{one.generation}{' (cold)' if one.is_cold else ''}" for one in executors
    )


def _used(draft: QueryDraft) -> tuple[UsedDataset, ...]:
    scans = draft.scans
    read: dict[DatasetId, set[int]] = {}
    rollups: dict[DatasetId, set[str]] = {}
    for scan in scans:
        if scan.route.table != DATA_TABLE:
            rollups.setdefault(scan.route.dataset_id, set()).add(rollup_name(scan.route.table))
        read.setdefault(scan.route.dataset_id, set()).update(scan.shards)
    routes = {scan.route.dataset_id: scan.route for scan in scans}
    return tuple(
        UsedDataset(
            dataset_id=dataset,
            epoch=routes[dataset].epoch,
            snapshot_id=routes[dataset].snapshot_id,
            shards=len(read[dataset]),
            total_shards=len(routes[dataset].shards),
            rollup=", ".join(sorted(rollups.get(dataset, ()))),
            cold_shards=sum(1 for cold in draft.cold if cold.dataset == dataset.name),
        )
        for dataset in sorted(read)
    )
