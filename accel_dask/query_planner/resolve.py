"""Pass 2: table names to datasets of the tenant, each at one epoch."""

from __future__ import annotations

import difflib
from dataclasses import replace
from typing import Final

from sqlglot import exp

from accel_dask.errors import InvalidQuery, NotResident, UnknownTable
from accel_dask.model.routing import DatasetRoute
from accel_dask.query_planner.plan import (
    CATALOG,
    PlanContext,
    QueryDraft,
    Scan,
    TableReference,
)

_ROW_ID: Final = "rowid"


def resolve(draft: QueryDraft, context: PlanContext) -> QueryDraft:
    """Find each table's dataset.

    Raises:
        InvalidQuery: two datasets have that name but for its case, or rows are asked for by number.
        UnknownTable: the tenant has no such dataset. Whether another has, is not told.
        NotResident: the tenant has it, but no epoch of it is READY yet.
    """
    assert draft.parsed is not None
    own = {
        route.dataset_id.name.lower(): route
        for route in context.routing.datasets_of(context.tenant)
    }
    scans = tuple(
        Scan(reference=reference, route=_route_of(reference, own, context), shards=())
        for reference in draft.parsed.tables
    )
    if _ROW_ID in draft.parsed.text.lower():
        _check_row_ids(draft.parsed.tree, scans)
    return replace(draft, scans=scans)


def _check_row_ids(tree: exp.Expr, scans: tuple[Scan, ...]) -> None:
    """A shard numbers its rows, and the engine would show that where a query reads one alone."""
    without = {
        scan.reference.node.alias_or_name.lower()
        for scan in scans
        if all(column.name.lower() != _ROW_ID for column in scan.route.columns)
    }
    given = {node.alias.lower() for node in tree.find_all(exp.Alias)}
    given |= {one.name.lower() for node in tree.find_all(exp.TableAlias) for one in node.columns}
    is_asked = bool(without) and any(
        name.name.lower() == _ROW_ID
        for join in tree.find_all(exp.Join)
        for name in join.args.get("using") or ()
    )
    for column in tree.find_all(exp.Column):
        if column.name.lower() == _ROW_ID:
            is_given = not column.table and (_ROW_ID in given or len(without) < len(scans))
            is_asked |= not is_given and (not column.table or column.table.lower() in without)
    if is_asked:
        raise InvalidQuery(
            "rows of a dataset have no rowid; order and choose them by columns of theirs"
        )


def _route_of(
    reference: TableReference, own: dict[str, DatasetRoute], context: PlanContext
) -> DatasetRoute:
    qualifiers = [part.lower() for part in reference.parts[:-1]]
    tenant = context.tenant.lower()
    is_own = qualifiers in ([], [tenant], [CATALOG, tenant])
    route = own.get(reference.table.lower()) if is_own else None
    if route is not None:
        _check_alone(route, context)
        return route
    declared = {
        dataset.name.lower()
        for dataset in context.routing.declared
        if dataset.tenant == context.tenant
    }
    if is_own and reference.table.lower() in declared:
        raise NotResident(
            f"dataset {context.tenant}.{reference.table.lower()} has no READY epoch yet; it is "
            "answered as soon as its first publish has been loaded"
        )
    raise UnknownTable(_unknown(reference, own, context))


def _check_alone(route: DatasetRoute, context: PlanContext) -> None:
    """SQL does not tell names apart by their case, and the wrong table must not be read."""
    alike = context.routing.alike.get((context.tenant, route.dataset_id.name.lower()))
    if alike:
        raise InvalidQuery(
            f"tenant {context.tenant} has datasets {', '.join(alike)}, which SQL does not tell "
            "apart; one of them must be declared under another name"
        )


def _unknown(reference: TableReference, own: dict[str, DatasetRoute], context: PlanContext) -> str:
    known = sorted(own)
    similar = difflib.get_close_matches(reference.table.lower()[:64], known, n=1)
    hint = f"; did you mean {similar[0]}?" if similar else ""
    listed = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    return (
        f"tenant {context.tenant} has no table {'.'.join(reference.parts)[:200]!r}{hint} "
        f"(tables: {listed or 'none'})"
    )
