"""Pass 6: the physical SQL of each fragment. Now there is always one."""

from __future__ import annotations

from dataclasses import replace

from accel_dask.model.ids import DatasetId, ShardId
from accel_dask.model.routing import DatasetRoute
from accel_dask.model.ticket import EpochToken, shard_relation
from accel_dask.query_planner.plan import (
    Edit,
    Fragment,
    FragmentKind,
    PlanContext,
    QueryDraft,
    Scan,
)


def split(draft: QueryDraft, context: PlanContext) -> QueryDraft:  # noqa: ARG001 - a pass
    """Splice the shards into the user's own text: nothing else of it changes, so that DuckDB
    runs what the user wrote."""
    assert draft.parsed is not None
    edits = [*draft.parsed.edits, *(_edit_of(scan) for scan in draft.scans)]
    fragment = Fragment(
        kind=FragmentKind.HOT,
        sql=apply_edits(draft.parsed.text, edits),
        tokens=_tokens(draft.scans),
        candidates=draft.candidates,
    )
    return replace(draft, fragments=(fragment,))


def apply_edits(text: str, edits: list[Edit]) -> str:
    """`text` with every edit applied; edits that insert at one place go in as listed."""
    pieces: list[str] = []
    at = 0
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        pieces += (text[at : edit.start], edit.replacement)
        at = max(at, edit.end)
    return "".join((*pieces, text[at:]))


def _edit_of(scan: Scan) -> Edit:
    reference = scan.reference
    relation = _relation(scan)
    if not reference.has_alias:
        relation = f"{relation} AS {_quoted(reference.table)}"
    return Edit(start=reference.start, end=reference.end, replacement=relation)


def _relation(scan: Scan) -> str:
    shards = [scan.route.shards[index].shard_id for index in scan.shards]
    if len(shards) == 1:
        return shard_relation(shards[0])
    columns = ", ".join(_quoted(column.name) for column in scan.route.columns)
    if not shards:
        return f"({_no_rows(scan.route)})"
    selects = (f"SELECT {columns} FROM {shard_relation(shard)}" for shard in shards)  # noqa: S608 - quoted names
    return f"({' UNION ALL '.join(selects)})"


def _no_rows(route: DatasetRoute) -> str:
    columns = ", ".join(
        f"CAST(NULL AS {column.type}) AS {_quoted(column.name)}" for column in route.columns
    )
    return f"SELECT {columns} WHERE false"


def _tokens(scans: tuple[Scan, ...]) -> tuple[EpochToken, ...]:
    shards: dict[DatasetId, set[ShardId]] = {}
    routes: dict[DatasetId, DatasetRoute] = {}
    for scan in scans:
        dataset = scan.route.dataset_id
        routes[dataset] = scan.route
        found = shards.setdefault(dataset, set())
        found.update(scan.route.shards[index].shard_id for index in scan.shards)
    return tuple(
        EpochToken(
            dataset=dataset.name,
            epoch=routes[dataset].epoch,
            shards=tuple(sorted(shards[dataset])),
        )
        for dataset in sorted(shards)
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
