"""Pass 8: the physical SQL of each fragment."""

from __future__ import annotations

from dataclasses import replace

from accel_dask.query_planner.columns import UsedColumns
from accel_dask.query_planner.physical import (
    SplicedText,
    kind_at,
    relation_of,
    shard_ids,
    table_edit,
    tokens_of,
)
from accel_dask.query_planner.plan import Fragment, PlanContext, QueryDraft
from accel_dask.query_planner.spread import spread_fragment


def split(draft: QueryDraft, context: PlanContext) -> QueryDraft:
    """Splice the shards into the user's own text: nothing else of it changes, so that DuckDB
    runs what the user wrote. Where no executor has everything, see `spread_fragment`.

    Raises:
        ScanLimit: more would be gathered than the limits allow.
    """
    if draft.spread is not None:
        return spread_fragment(draft, context)
    assert draft.parsed is not None
    columns = UsedColumns(draft.parsed)
    edits = []
    for scan in draft.scans:
        named = columns.of(scan) if len(scan.shards) > 1 else None
        edits.append(table_edit(scan.reference, relation_of(scan.route, shard_ids(scan), named)))
    fragment = Fragment(
        kind=kind_at(draft.candidates),
        sql=SplicedText(draft.parsed, [*draft.parsed.edits, *edits]).all(),
        tokens=tokens_of((scan.route, shard_ids(scan)) for scan in draft.scans),
        candidates=draft.candidates,
    )
    return replace(draft, fragments=(fragment,))
