"""Pass 7: which executors can run the query, whole or in parts, from memory or from files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from accel_dask.errors import NotResident, ScanLimit
from accel_dask.model.dataset import ColdPolicy
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import DatasetId
from accel_dask.model.routing import DatasetRoute, ExecutorRoute
from accel_dask.model.ticket import DATA_TABLE
from accel_dask.query_planner.plan import PlanContext, QueryDraft, Scan, Share, SpreadRoute

_MAX_SHARES_PER_PEER: Final = 4
_Shards = frozenset[Attachment]
_NONE: Final[_Shards] = frozenset()


def route(draft: QueryDraft, context: PlanContext) -> QueryDraft:
    """Find the executors that have every shard of the query attached. If there is none, choose
    one that answers and peers that give it what it lacks. What no hot executor has is read cold,
    where its dataset allows it; cold executors also stand in, last of all, for hot ones.

    Raises:
        NotResident: a shard is on no executor, and may or can not be read cold now.
        ScanLimit: more must be read cold than the tenant may.
    """
    scene = _scene(draft, context)
    if not scene.hot and not scene.cold:
        raise NotResident(f"tenant {context.tenant} has no executor at the moment")
    able = scene.able(scene.hot)
    if able:
        reason = (
            f"hot: {_named(draft.scans) or 'no table'} on {len(able)} of {len(scene.hot)} "
            f"executor(s) of tenant {context.tenant}"
        )
        candidates = (*able, *scene.stand_ins(scene.wanted))
        return replace(draft, candidates=candidates, reasons=(*draft.reasons, reason))
    missing = scene.wanted - scene.hot_shards
    _check_cold(scene, missing, context)
    reasons = (*draft.reasons, *_cold_reasons(scene, missing))
    if missing == scene.wanted and (able := scene.able(scene.cold)):
        return replace(draft, candidates=tuple(able), cold=missing, reasons=reasons)
    spread = _spread(scene, missing)
    peers = len({share.executors[0].address for share in spread.shares})
    reason = (
        f"hot: no single executor of tenant {context.tenant} has all of {_named(draft.scans)}; "
        f"{spread.coordinator.worker}/{spread.coordinator.generation} asks {peers} other(s)"
    )
    return replace(draft, spread=spread, cold=missing, reasons=(*reasons, reason))


@dataclass(frozen=True, slots=True)
class _Scene:
    """What the query reads, and who has it."""

    needed: dict[DatasetId, _Shards]
    """What it reads of each dataset."""
    wanted: _Shards
    routes: dict[DatasetId, DatasetRoute]
    sizes: dict[Attachment, int]
    """Bytes of the source's files."""
    hot: list[ExecutorRoute]
    """In the order to try them, as `cold`."""
    cold: list[ExecutorRoute]
    held: dict[str, _Shards]
    """Of what is wanted, by executor's address."""
    max_cold_bytes: int

    @property
    def hot_shards(self) -> _Shards:
        return _NONE.union(*(self.held[one.address] for one in self.hot))

    @property
    def cold_shards(self) -> _Shards:
        return _NONE.union(*(self.held[one.address] for one in self.cold))

    def able(self, executors: Iterable[ExecutorRoute]) -> list[ExecutorRoute]:
        """Those that have everything."""
        return [one for one in executors if self.wanted <= self.held[one.address]]

    def bytes_of(self, shards: Iterable[Attachment]) -> int:
        return sum(self.sizes[shard] for shard in shards)

    def stand_ins(self, shards: _Shards) -> tuple[ExecutorRoute, ...]:
        """Cold executors that can read all of `shards`, if the tenant may."""
        if not self.cold or self.bytes_of(shards) > self.max_cold_bytes:
            return ()
        return tuple(one for one in self.cold if shards <= self.held[one.address])


def _scene(draft: QueryDraft, context: PlanContext) -> _Scene:
    assert draft.limits is not None
    routes = {scan.route.dataset_id: scan.route for scan in draft.scans}
    needed: dict[DatasetId, set[Attachment]] = {dataset: set() for dataset in routes}
    sizes: dict[Attachment, int] = {}
    hot_only: set[Attachment] = set()
    for scan in draft.scans:
        found = dict(_attachments(scan))
        sizes |= {one: max(size, sizes.get(one, 0)) for one, size in found.items()}
        needed[scan.route.dataset_id].update(found)
        if scan.route.table != DATA_TABLE:  # rollups are in shard files alone
            hot_only.update(found)
    wanted = frozenset(sizes)
    ordered = in_order(executors_of(context), context.seed)
    held = {
        one.address: (one.attachments & wanted) - (hot_only if one.is_cold else _NONE)
        for one in ordered
    }
    scene = _Scene(
        needed={dataset: frozenset(found) for dataset, found in needed.items()},
        wanted=wanted,
        routes=routes,
        sizes=sizes,
        hot=[one for one in ordered if not one.is_cold],
        cold=[one for one in ordered if one.is_cold],
        held=held,
        max_cold_bytes=draft.limits.max_cold_scan_bytes,
    )
    return _without(scene, context.avoid) if context.avoid else scene


def _without(scene: _Scene, avoid: frozenset[str]) -> _Scene:
    """The scene without executors to avoid, if the others can answer."""
    others = replace(
        scene,
        hot=[one for one in scene.hot if one.address not in avoid],
        cold=[one for one in scene.cold if one.address not in avoid],
    )
    missing = others.wanted - others.hot_shards
    can = missing <= others.cold_shards and others.bytes_of(missing) <= others.max_cold_bytes
    return others if can and (others.hot or others.cold) else scene


def _attachments(scan: Scan) -> Iterable[tuple[Attachment, int]]:
    dataset = scan.route.dataset_id
    for index in scan.shards:
        shard = scan.route.shards[index]
        yield Attachment(dataset.name, scan.route.epoch, shard.shard_id), shard.source_bytes


def executors_of(context: PlanContext) -> tuple[ExecutorRoute, ...]:
    """All of the tenant's."""
    known = {
        (one.worker, one.generation): one
        for dataset in context.routing.datasets_of(context.tenant)
        for one in dataset.executors
    }
    return tuple(known.values())


def in_order(executors: Iterable[ExecutorRoute], seed: str) -> list[ExecutorRoute]:
    """Rendezvous order: each seed prefers another executor, and keeps to it. Of one host, the
    newest generation first."""

    def rank(executor: ExecutorRoute) -> bytes:
        chosen = hashlib.sha256(f"{seed}|{executor.worker}".encode()).digest()
        return chosen + (2**63 - executor.generation).to_bytes(8)

    return sorted(executors, key=rank)


def _named(scans: tuple[Scan, ...]) -> str:
    used = {scan.route.dataset_id: scan.route.epoch for scan in scans}
    return ", ".join(f"{dataset}@{epoch}" for dataset, epoch in used.items())


def _check_cold(scene: _Scene, missing: _Shards, context: PlanContext) -> None:
    """Whether all that no hot executor has may and can be read cold.

    Raises:
        NotResident, ScanLimit: as `route`.
    """
    absent = missing - scene.cold_shards
    for dataset, wanted in scene.needed.items():
        if wanted & absent:
            found = scene.routes[dataset]
            way_out = (
                "no cold executor reads them either"
                if found.cold is ColdPolicy.ALLOW
                else 'declared with cold = "allow", they would be read from the source\'s files'
            )
            raise NotResident(
                f"{len(wanted & absent)} of the {len(wanted)} shards of {dataset}@{found.epoch} "
                f"that the query reads are on no executor of tenant {context.tenant} at the "
                f"moment; {way_out}"
            )
    size = scene.bytes_of(missing)
    if size <= scene.max_cold_bytes:
        return
    lasting = [
        attached
        for dataset, wanted in scene.needed.items()
        for attached in wanted & missing
        if attached.shard_id in scene.routes[dataset].cold_shards
    ]
    largest = max(scene.needed, key=lambda dataset: scene.bytes_of(scene.needed[dataset] & missing))
    told = (
        f"{len(missing)} shards that the query reads, most of them of {largest}, are not in memory "
        f"{{}}and would have to be read from {size:,} bytes of the source's files; the limit of "
        f"tenant {context.tenant} is {scene.max_cold_bytes:,} (max_cold_scan_bytes)"
    )
    if scene.bytes_of(lasting) > scene.max_cold_bytes:
        raise ScanLimit(
            f"{told.format('')}; filter by a column that the table is sorted by, or hold more "
            "of it in memory"
        )
    raise NotResident(f"{told.format('at the moment ')}; try again")


def _cold_reasons(scene: _Scene, missing: _Shards) -> Iterable[str]:
    """What is read cold and why, a sentence a dataset."""
    for dataset, wanted in scene.needed.items():
        cold = wanted & missing
        if not cold:
            continue
        found = scene.routes[dataset]
        lasting = sum(1 for attached in cold if attached.shard_id in found.cold_shards)
        why = []
        if lasting:
            why.append(f"{lasting} stay at the source: {found.cold_because}")
        if len(cold) > lasting:
            why.append(f"{len(cold) - lasting} are on no hot executor at the moment")
        yield (
            f"cold: {len(cold)} of the {len(wanted)} shards of {dataset}@{found.epoch}, "
            f"{scene.bytes_of(cold):,} bytes of files ({'; '.join(why)})"
        )


def _spread(scene: _Scene, missing: _Shards) -> SpreadRoute:
    """The coordinator that needs the fewest peers, then has the most itself. Hot executors
    coordinate if they have anything."""
    executors = scene.hot if missing != scene.wanted else [*scene.cold, *scene.hot]
    best: tuple[tuple[int, int], ExecutorRoute, list[ExecutorRoute]] | None = None
    for coordinator in executors:
        lacking = scene.wanted - scene.held[coordinator.address]
        peers = [
            *_cover(lacking - missing, scene.held, _but(scene.hot, coordinator)),
            *_cover(lacking & missing, scene.held, _but(scene.cold, coordinator)),
        ]
        rank = (len(peers), len(lacking))
        if best is None or rank < best[0]:
            best = (rank, coordinator, peers)
    assert best is not None
    _, coordinator, peers = best
    everywhere = _everywhere(scene, missing, coordinator, peers)
    whole = _NONE.union(*(scene.needed[dataset] for dataset in everywhere))
    lacking = scene.wanted - scene.held[coordinator.address]
    return SpreadRoute(
        coordinator=coordinator,
        shares=_all_shares(scene, lacking, missing, whole, _but(peers, coordinator), coordinator),
        everywhere=everywhere,
    )


def _but(executors: list[ExecutorRoute], one: ExecutorRoute) -> list[ExecutorRoute]:
    return [other for other in executors if other is not one]


def _cover(
    missing: _Shards, held: dict[str, _Shards], others: list[ExecutorRoute]
) -> list[ExecutorRoute]:
    """Few executors that have all that is missing: whoever has most of the rest, each time."""
    chosen = []
    while missing:
        peer = max(others, key=lambda one: len(missing & held[one.address]))
        chosen.append(peer)
        missing -= held[peer.address]
    return chosen


def _everywhere(
    scene: _Scene, missing: _Shards, coordinator: ExecutorRoute, peers: list[ExecutorRoute]
) -> frozenset[DatasetId]:
    """Datasets that every executor involved has, for joins. A cold one reads them anew, so there
    only as much as the tenant may read cold."""
    common = [
        dataset
        for dataset, shards in scene.needed.items()
        if all(shards <= scene.held[one.address] for one in (coordinator, *peers))
    ]
    cold_peers = sum(one.is_cold for one in peers)
    left = scene.max_cold_bytes - scene.bytes_of(missing)
    chosen = []
    for dataset in sorted(common, key=lambda dataset: scene.bytes_of(scene.needed[dataset])):
        left -= cold_peers * scene.bytes_of(scene.needed[dataset])
        if not cold_peers or left >= 0:
            chosen.append(dataset)
    return frozenset(chosen)


def _all_shares(
    scene: _Scene,
    lacking: _Shards,
    missing: _Shards,
    whole: _Shards,
    peers: list[ExecutorRoute],
    coordinator: ExecutorRoute,
) -> tuple[Share, ...]:
    """Hot shares, for which cold executors stand in last, and cold ones."""
    held = scene.held
    hot_able = [one for one in _but(scene.hot, coordinator) if whole <= held[one.address]]
    cold_able = [one for one in _but(scene.cold, coordinator) if whole <= held[one.address]]
    hot_peers = [one for one in peers if not one.is_cold]
    cold_peers = [one for one in peers if one.is_cold]
    hot = _shares(lacking - missing, held, hot_peers, hot_able)
    with_stand_ins = (
        replace(share, executors=(*share.executors, *scene.stand_ins(share.shards | whole)))
        for share in hot
    )
    return (*with_stand_ins, *_shares(lacking & missing, held, cold_peers, cold_able))


def _shares(
    missing: _Shards,
    held: dict[str, _Shards],
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
