"""Pass 6: which executors can run the query, whole or in parts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from accel_dask.errors import NotResident
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import DatasetId
from accel_dask.model.routing import ExecutorRoute
from accel_dask.query_planner.plan import PlanContext, QueryDraft, Scan, Share, SpreadRoute

_MAX_SHARES_PER_PEER: Final = 4
_Needed = dict[DatasetId, frozenset[Attachment]]


def route(draft: QueryDraft, context: PlanContext) -> QueryDraft:
    """Find the executors that have every shard of the query attached. If there is none, choose
    one that answers and peers that give it what it lacks.

    Raises:
        NotResident: a shard is on no executor.
    """
    needed = _needed(draft.scans)
    wanted = frozenset[Attachment]().union(*needed.values())
    known = _executors(context, wanted)
    able = [found for found in known if wanted <= found.attachments]
    order = {found.address: _order(found, context.seed) for found in known}
    if able:
        candidates = tuple(sorted(able, key=lambda found: order[found.address]))
        reason = (
            f"hot: {_named(draft.scans) or 'no table'} on {len(candidates)} of {len(known)} "
            f"executor(s) of tenant {context.tenant}"
        )
        return replace(draft, candidates=candidates, reasons=(*draft.reasons, reason))
    _check_resident(needed, known, context)
    spread = _spread(needed, wanted, sorted(known, key=lambda found: order[found.address]))
    peers = len({share.executors[0].address for share in spread.shares})
    reason = (
        f"hot: no single executor of tenant {context.tenant} has all of {_named(draft.scans)}; "
        f"{spread.coordinator.worker}/{spread.coordinator.generation} asks {peers} other(s)"
    )
    return replace(draft, spread=spread, reasons=(*draft.reasons, reason))


def _executors(context: PlanContext, wanted: frozenset[Attachment]) -> list[ExecutorRoute]:
    """All executors of the tenant; without those to avoid, if the others have everything."""
    known = {
        (found.worker, found.generation): found
        for dataset in context.routing.datasets_of(context.tenant)
        for found in dataset.executors
    }
    others = [found for found in known.values() if found.address not in context.avoid]
    held = frozenset[Attachment]().union(*(found.attachments for found in others))
    return others if others and wanted <= held else list(known.values())


def _needed(scans: tuple[Scan, ...]) -> _Needed:
    """What the query reads of each dataset."""
    needed: dict[DatasetId, set[Attachment]] = {}
    for scan in scans:
        needed.setdefault(scan.route.dataset_id, set()).update(_attachments(scan))
    return {dataset: frozenset(found) for dataset, found in needed.items()}


def _attachments(scan: Scan) -> Iterable[Attachment]:
    dataset = scan.route.dataset_id
    for index in scan.shards:
        yield Attachment(dataset.name, scan.route.epoch, scan.route.shards[index].shard_id)


def _order(executor: ExecutorRoute, seed: str) -> bytes:
    """Rendezvous order: each seed prefers another executor, and keeps to it. Of one host, the
    newest generation first."""
    chosen = hashlib.sha256(f"{seed}|{executor.worker}".encode()).digest()
    return chosen + (2**63 - executor.generation).to_bytes(8)


def _named(scans: tuple[Scan, ...]) -> str:
    used = {scan.route.dataset_id: scan.route.epoch for scan in scans}
    return ", ".join(f"{dataset}@{epoch}" for dataset, epoch in used.items())


def _check_resident(needed: _Needed, known: list[ExecutorRoute], context: PlanContext) -> None:
    if not known:
        raise NotResident(f"tenant {context.tenant} has no executor at the moment")
    held = frozenset[Attachment]().union(*(found.attachments for found in known))
    for dataset, wanted in needed.items():
        missing = wanted - held
        if missing:
            raise NotResident(
                f"{len(missing)} of the {len(wanted)} shards of {dataset}@"
                f"{next(iter(missing)).epoch} that the query reads are on no executor of tenant "
                f"{context.tenant} at the moment"
            )


def _spread(
    needed: _Needed, wanted: frozenset[Attachment], ordered: list[ExecutorRoute]
) -> SpreadRoute:
    """The coordinator that needs the fewest peers, then has the most itself."""
    held = {found.address: wanted & found.attachments for found in ordered}
    best: tuple[tuple[int, int], ExecutorRoute, list[ExecutorRoute]] | None = None
    for coordinator in ordered:
        missing = wanted - held[coordinator.address]
        peers = _cover(missing, held, [one for one in ordered if one is not coordinator])
        rank = (len(peers), len(missing))
        if best is None or rank < best[0]:
            best = (rank, coordinator, peers)
    assert best is not None
    _, coordinator, peers = best
    everywhere = frozenset(
        dataset
        for dataset, shards in needed.items()
        if all(shards <= held[one.address] for one in (coordinator, *peers))
    )
    whole = frozenset[Attachment]().union(*(needed[dataset] for dataset in everywhere))
    able = [one for one in ordered if one is not coordinator and whole <= held[one.address]]
    shares = _shares(wanted - held[coordinator.address], held, peers, able)
    return SpreadRoute(coordinator=coordinator, shares=shares, everywhere=everywhere)


def _cover(
    missing: frozenset[Attachment],
    held: dict[str, frozenset[Attachment]],
    others: list[ExecutorRoute],
) -> list[ExecutorRoute]:
    """Few executors that have all that is missing: whoever has most of the rest, each time."""
    chosen = []
    while missing:
        peer = max(others, key=lambda one: len(missing & held[one.address]))
        chosen.append(peer)
        missing -= held[peer.address]
    return chosen


def _shares(
    missing: frozenset[Attachment],
    held: dict[str, frozenset[Attachment]],
    peers: list[ExecutorRoute],
    able: list[ExecutorRoute],
) -> tuple[Share, ...]:
    """A share per peer, or several where its shards have their other replicas on different
    executors, so that each share has someone else to turn to."""
    shares: list[Share] = []
    for peer in peers:
        mine = missing & held[peer.address]
        missing -= mine
        by_holders: dict[tuple[str, ...], set[Attachment]] = {}
        for shard in mine:
            holders = tuple(one.address for one in able if shard in held[one.address])
            by_holders.setdefault(holders, set()).add(shard)
        if len(by_holders) > _MAX_SHARES_PER_PEER:
            common = set.intersection(*(set(holders) for holders in by_holders))
            by_holders = {tuple(common): set(mine)}
        for holders, shards in sorted(by_holders.items()):
            rest = [one for one in able if one is not peer and one.address in holders]
            shares.append(Share(shards=frozenset(shards), executors=(peer, *rest)))
    return tuple(shares)
