"""Pass 3: which shards a query has to read."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from accel_dask.errors import EpochRetired, InvalidQuery
from accel_dask.model.routing import DatasetRoute
from accel_dask.model.shard_ref import ShardRef
from accel_dask.query_planner.plan import PlanContext, QueryDraft, Scan
from accel_dask.query_planner.pruning import KeptShards, kept_shards


def prune(draft: QueryDraft, context: PlanContext) -> QueryDraft:
    """Choose the shards of each scan: those that may hold a row that the query's conditions
    let pass, or the only one that the caller wants of a dataset.

    Raises:
        EpochRetired: its dataset serves another epoch by now.
        InvalidQuery: there is no such shard, or the query does not read its dataset.
    """
    assert draft.parsed is not None
    if context.only is not None:
        return _narrowed(draft, context.only)
    tables = [(scan.reference.node, scan.route) for scan in draft.scans]
    found = kept_shards(draft.parsed.tree, tables, facts=draft.parsed.facts)
    scans = tuple(
        replace(scan, shards=kept.shards or _fencing_shard(scan.route))
        for scan, kept in zip(draft.scans, found, strict=True)
    )
    told = (_reason(scan, kept) for scan, kept in zip(scans, found, strict=True))
    reasons = dict.fromkeys(reason for reason in told if reason)
    return replace(draft, scans=scans, reasons=(*draft.reasons, *reasons))


def _narrowed(draft: QueryDraft, only: ShardRef) -> QueryDraft:
    if not any(scan.route.dataset_id.name == only.dataset for scan in draft.scans):
        raise InvalidQuery(f"the query does not read {only.dataset}, whose shard it is narrowed to")
    scans = tuple(
        replace(scan, shards=(_index_of(scan.route, only),))
        if scan.route.dataset_id.name == only.dataset
        else replace(scan, shards=tuple(range(len(scan.route.shards))))
        for scan in draft.scans
    )
    return replace(draft, scans=scans, reasons=(*draft.reasons, f"narrowed to the shard {only}"))


def _index_of(route: DatasetRoute, only: ShardRef) -> int:
    if route.epoch != only.epoch:
        raise EpochRetired(
            f"{route.dataset_id.tenant}: the dataset {only.dataset} serves epoch {route.epoch} by "
            f"now; a shard of {only.epoch} was asked for. Begin again on the new epoch"
        )
    for index, shard in enumerate(route.shards):
        if shard.shard_id == only.shard_id:
            return index
    raise InvalidQuery(f"epoch {only.epoch} of {only.dataset} has no shard {only.shard_id!r}")


def _fencing_shard(route: DatasetRoute) -> tuple[int, ...]:
    """One shard, where none can match: an executor refuses a ticket of an epoch that is gone by
    the shards that it names, so that an old routing table cannot answer from old bounds. The one
    that most executors have, then the smallest."""
    holders = Counter(
        held.shard_id
        for executor in route.executors
        if not executor.is_cold
        for held in executor.attachments
        if (held.dataset, held.epoch) == (route.dataset_id.name, route.epoch)
    )
    ranked = (
        (-holders[shard.shard_id], shard.source_bytes, index)
        for index, shard in enumerate(route.shards)
    )
    best = min(ranked, default=None)
    return () if best is None else (best[2],)


def _reason(scan: Scan, kept: KeptShards) -> str:
    total = len(scan.route.shards)
    if len(kept.shards) == total:
        return ""
    by = f" by {', '.join(kept.columns)}" if kept.columns else ""
    return f"pruned {scan.reference.table} to {len(kept.shards)} of {total} shards{by}"
