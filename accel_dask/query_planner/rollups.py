"""Pass 4: SELECTs that a rollup answers are rewritten to read it in place of the table's rows.

The rewritten statement goes through the gate again and on through the passes as if the user had
written it, over datasets whose shards have the rollup's columns and rows.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

from sqlglot import exp

from accel_dask.errors import QueryError
from accel_dask.model.executor import Attachment
from accel_dask.model.rollup import RollupTable, rollup_table
from accel_dask.model.routing import DatasetRoute
from accel_dask.query_planner.parse import parse
from accel_dask.query_planner.physical import SplicedText
from accel_dask.query_planner.plan import Edit, ParsedQuery, PlanContext, QueryDraft, Scan
from accel_dask.query_planner.rollup_match import NoMatch, RollupMatch

_table = lru_cache(maxsize=1000)(rollup_table)
logger = logging.getLogger(__name__)

_MOST_VALUE_BYTES = 16


@dataclass(frozen=True, slots=True)
class _Chosen:
    """A rollup that answers a SELECT, and what to change for it."""

    scan: Scan
    table: RollupTable
    rows: int
    edits: tuple[Edit, ...]
    route: DatasetRoute


def use_rollups(draft: QueryDraft, context: PlanContext) -> QueryDraft:
    """Read the smallest rollup that gives the same answer, of every table that has one.

    Only where all shards that the query reads are in memory: the source's files have no rollups.
    """
    if not any(scan.route.rollups for scan in draft.scans):
        return draft
    assert draft.parsed is not None
    marks = [
        Edit(start=mark.start, end=mark.end, replacement=f"${mark.number + 1}")
        for mark in draft.parsed.marks
    ]
    text = SplicedText(draft.parsed, marks)
    chosen: list[_Chosen] = []
    notes: list[str] = []
    answered: set[int] = set()
    for select, scan in _candidates(draft):
        if id(select) in answered:
            continue  # a row of two rollups would stand for rows that were never joined
        best, why_not = _best(select, scan, text, draft, context)
        if best is not None:
            chosen.append(best)
            answered.add(id(select))
        else:
            notes.append(f"none of {scan.route.dataset_id}: {why_not}")
    if chosen:
        names = [edit for edit in draft.parsed.edits if edit.replacement.startswith(" AS ")]
        edits = [*(edit for one in chosen for edit in one.edits), *names]
        rewritten = SplicedText(draft.parsed, [*marks, *edits]).all()
        try:
            parsed = _parsed(rewritten, context)
        except QueryError as error:
            return replace(draft, rollups=(f"none: rewritten, the query is refused: {error}",))
        draft = _rewritten(draft, parsed, chosen)
        told = [_told(one) for one in chosen]
        notes = [*told, *notes]
        draft = replace(draft, reasons=(*draft.reasons, *(f"rollup {one}" for one in told)))
    return replace(draft, rollups=tuple(dict.fromkeys(notes)))


def _parsed(sql: str, context: PlanContext) -> ParsedQuery:
    if context.parse_again is not None:
        return context.parse_again(sql)
    parsed = parse(QueryDraft(sql=sql), context).parsed
    assert parsed is not None
    return parsed


def is_resident(scan: Scan, context: PlanContext) -> bool:
    """Whether all shards of the scan are attached on executors that are not to be avoided."""
    held = frozenset[Attachment]().union(
        *(
            one.attachments
            for one in scan.route.executors
            if not one.is_cold and one.address not in context.avoid
        )
    )
    name, epoch = scan.route.dataset_id.name, scan.route.epoch
    return all(
        Attachment(name, epoch, scan.route.shards[index].shard_id) in held for index in scan.shards
    )


def _candidates(draft: QueryDraft) -> Iterator[tuple[exp.Select, Scan]]:
    """The scans of datasets with rollups, each with the SELECT in whose FROM it stands."""
    for scan in draft.scans:
        parent = scan.reference.node.parent
        if not scan.route.rollups or not isinstance(parent, exp.From | exp.Join):
            continue
        if isinstance(parent.parent, exp.Select):
            yield parent.parent, scan


def _best(
    select: exp.Select, scan: Scan, text: SplicedText, draft: QueryDraft, context: PlanContext
) -> tuple[_Chosen | None, str]:
    """The smallest rollup that answers `select`; else why none does."""
    if not is_resident(scan, context):
        return None, "not all of its shards are in memory"
    scans = {id(one.reference.node): one for one in draft.scans}
    try:
        match = RollupMatch(select, scan, text, scans)
        return _smallest(match, scan)
    except (NoMatch, RecursionError) as reason:
        return None, str(reason)
    except Exception:
        # The rows answer it as well: a form that was not thought of must not cost the answer.
        logger.exception("rollups of %s are not used: %s", scan.route.dataset_id, text.text)
        return None, "of an error; see the gateway's log"


def _smallest(match: RollupMatch, scan: Scan) -> tuple[_Chosen | None, str]:
    found: list[_Chosen] = []
    why_not: list[str] = []
    for number, declared in enumerate(scan.route.rollups):
        table = _table(scan.route.dataset_id, declared, scan.route.columns)
        route = _rollup_route(scan, table, number)
        rows = sum(route.shards[index].rows or 0 for index in scan.shards) if route else 0
        try:
            if route is None:
                raise NoMatch("it is not smaller than the rows")
            edits = tuple(match.edits(table))
        except NoMatch as reason:
            why_not.append(f"{declared.name}: {reason}")
            continue
        found.append(_Chosen(scan, table, rows, edits, route))
    best = min(found, key=lambda one: one.rows, default=None)
    return best, "; ".join(why_not)


def _rollup_route(scan: Scan, table: RollupTable, number: int) -> DatasetRoute | None:
    """The dataset as the rollup has it; None: not all shards that are read have it, or it is not
    smaller than their rows."""
    route = scan.route
    counts = route.rollup_rows
    if len(counts) != len(route.shards) or any(
        len(counts[index]) != len(route.rollups) for index in scan.shards
    ):
        return None
    known = [route.shards[index].rows for index in scan.shards]
    rows = sum(counts[index][number] for index in scan.shards)
    if None not in known and rows >= sum(count or 0 for count in known):
        return None
    width = _MOST_VALUE_BYTES * len(table.columns)
    shards = tuple(
        replace(
            shard,
            rows=count[number] if count else None,
            source_bytes=min(shard.source_bytes, width * count[number]) if count else 0,
            stats=(),
        )
        for shard, count in zip(route.shards, counts, strict=True)
    )
    return replace(route, columns=table.columns, shards=shards, table=table.table)


def _rewritten(draft: QueryDraft, parsed: ParsedQuery, chosen: list[_Chosen]) -> QueryDraft:
    assert draft.parsed is not None
    routes = {id(one.scan.reference): one.route for one in chosen}
    # Only aggregates were changed, so that the tables are the same in the same order.
    references = zip(draft.scans, parsed.tables, strict=True)
    scans = tuple(
        replace(scan, reference=reference, route=routes.get(id(scan.reference), scan.route))
        for scan, reference in references
    )
    parsed = replace(parsed, parameter_columns=draft.parsed.parameter_columns)
    return replace(draft, parsed=parsed, scans=scans)


def _told(one: _Chosen) -> str:
    return f"{one.table.name} of {one.scan.route.dataset_id} ({one.rows:,} rows)"
