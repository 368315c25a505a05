"""Which hosts hold each shard of an epoch: for a new one, and when hosts come and go. Pure.

Nothing moves that need not: what a live host holds stays there. A slot of a host that is gone
is given to another one, or, where no host has room, kept for its return.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from accel_dask.errors import QuotaExceeded
from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import ColdPolicy, Dataset, Spread
from accel_dask.model.epoch import EpochState, ShardSummary
from accel_dask.model.ids import DatasetId, ShardId, TenantId, WorkerId
from accel_dask.model.placement import Placement
from accel_dask.scheduler_plugin.budget import Ledger

Hosts = tuple[tuple[ShardId, tuple[WorkerId, ...]], ...]
"""As in `Placement.hosts`."""


def place(
    view: ClusterView,
    dataset: Dataset,
    shards: Sequence[ShardSummary],
    current: Placement | None = None,
) -> Hosts:
    """Hosts for `shards`: `dataset.replicas` of each, fewer where fewer hosts live.

    With `current`, the epoch's placement so far, its live hosts stay.

    Raises:
        QuotaExceeded: no host is alive, or the tenant's or the hosts' memory does not hold it.
    """
    ledger = Ledger(view, dataset.tenant, shards, wants_cold=dataset.cold is ColdPolicy.ALLOW)
    if not ledger.hosts:
        raise QuotaExceeded(
            f"{dataset.dataset_id}: no host is alive, so there is no memory to load it into; "
            "start a worker host"
        )
    before = dict(current.hosts) if current else {}
    if dataset.spread is Spread.TOGETHER:
        hosts = _together(view, ledger, dataset, shards, before)
    else:
        hosts = _spread(view, ledger, dataset, shards, before)
    return tuple((shard.shard_id, hosts[shard.shard_id]) for shard in shards)


def _together(
    view: ClusterView,
    ledger: Ledger,
    dataset: Dataset,
    shards: Sequence[ShardSummary],
    before: dict[ShardId, tuple[WorkerId, ...]],
) -> dict[ShardId, tuple[WorkerId, ...]]:
    """All shards on the same hosts: those that hold the tenant's other such datasets."""
    shard_ids = [shard.shard_id for shard in shards]
    named = tuple(
        worker
        for worker in _in_order(w for shard_id in shard_ids for w in before.get(shard_id, ()))
        if all(worker in before.get(shard_id, ()) for shard_id in shard_ids)
    )
    chosen = [worker for worker in named if worker in ledger.hosts]
    wanted = min(dataset.replicas, len(ledger.hosts))
    for worker, is_fixed in _together_candidates(view, ledger, dataset):
        if len(chosen) >= wanted:
            break
        if worker in chosen:
            continue
        shortage = ledger.shortage(worker, shard_ids)
        if not shortage:
            chosen.append(worker)
        elif is_fixed:
            raise _no_room(dataset, f"{shortage}; the tenant's other datasets are there")
    if len(chosen) < wanted:
        raise _no_room(dataset, _shortages(ledger, shard_ids, chosen))
    hosts = _with_absent(chosen, named, dataset.replicas)
    return dict.fromkeys(shard_ids, hosts)


def _together_candidates(
    view: ClusterView, ledger: Ledger, dataset: Dataset
) -> list[tuple[WorkerId, bool]]:
    """Live hosts, best first, and whether the choice is forced by another dataset.

    The order is the same for every dataset of the group, so that they meet: most datasets of
    the group first, then most of its bytes, then the emptiest host.
    """
    datasets: dict[WorkerId, set[DatasetId]] = {}
    members: dict[WorkerId, set[ShardId]] = {}
    group: set[ShardId] = set()
    for placement in _group(view, dataset.tenant):
        for shard_id, workers in placement.hosts:
            if workers:
                group.add(shard_id)
            for worker in workers:
                datasets.setdefault(worker, set()).add(placement.dataset_id)
                members.setdefault(worker, set()).add(shard_id)

    def rank(worker: WorkerId) -> tuple[int, int, bool, int, WorkerId]:
        return (
            -len(datasets.get(worker, ())),
            -ledger.bytes_of(members.get(worker, ())),
            bool(ledger.shortage(worker, group)),
            -ledger.host_free_bytes(worker),
            worker,
        )

    return [
        (worker, bool(datasets.get(worker, set()) - {dataset.dataset_id}))
        for worker in sorted(ledger.hosts, key=rank)
    ]


def _group(view: ClusterView, tenant: TenantId) -> Iterable[Placement]:
    """Placements of the tenant's TOGETHER datasets that stay: not those of retiring epochs."""
    for placement in view.records(Placement):
        dataset = view.dataset(placement.dataset_id)
        epoch = view.epoch(placement.dataset_id, placement.epoch)
        if (
            placement.tenant == tenant
            and dataset is not None
            and dataset.spread is Spread.TOGETHER
            and epoch is not None
            and epoch.state is not EpochState.RETIRING
        ):
            yield placement


def _spread(
    view: ClusterView,
    ledger: Ledger,
    dataset: Dataset,
    shards: Sequence[ShardSummary],
    before: dict[ShardId, tuple[WorkerId, ...]],
) -> dict[ShardId, tuple[WorkerId, ...]]:
    """Each shard on its own hosts, largest first, each to the host with the fewest bytes of
    this epoch."""
    wanted = min(dataset.wanted_replicas, len(ledger.hosts))
    laid = dict.fromkeys(ledger.hosts, 0)
    order = sorted(shards, key=lambda s: (-ledger.sizes[s.shard_id], s.shard_id))
    chosen: dict[ShardId, list[WorkerId]] = {}
    for shard in order:
        chosen[shard.shard_id] = _kept(view, ledger, shard.shard_id, before, wanted, laid)
        for worker in chosen[shard.shard_id]:
            laid[worker] += ledger.sizes[shard.shard_id]
    for shard in order:
        kept = chosen[shard.shard_id]
        while len(kept) < wanted:
            candidates = [
                worker
                for worker in ledger.hosts
                if worker not in kept and not ledger.shortage(worker, (shard.shard_id,))
            ]
            if not candidates:
                raise _no_room(dataset, _shortages(ledger, (shard.shard_id,), kept))
            worker = min(candidates, key=lambda w: (laid[w], -ledger.host_free_bytes(w), w))
            ledger.add(worker, (shard.shard_id,))
            laid[worker] += ledger.sizes[shard.shard_id]
            kept.append(worker)
    # A host that is gone keeps its name in the placement, except where every host counts: then
    # it is placed on again when it is back.
    at_most = 0 if dataset.spread is Spread.EVERYWHERE else dataset.replicas
    return {
        shard_id: _with_absent(kept, before.get(shard_id, ()), at_most)
        for shard_id, kept in chosen.items()
    }


def _kept(
    view: ClusterView,
    ledger: Ledger,
    shard_id: ShardId,
    before: dict[ShardId, tuple[WorkerId, ...]],
    wanted: int,
    laid: dict[WorkerId, int],
) -> list[WorkerId]:
    """Live hosts that keep the shard: all of its placement so far, else up to `wanted` that
    hold it for the tenant already."""
    stay = [worker for worker in before.get(shard_id, ()) if worker in ledger.hosts]
    if stay:
        return stay
    ready = {replica.worker for replica in view.ready_replicas(shard_id)}
    holding = [w for w in ledger.hosts if shard_id in ledger.of_tenant.get(w, ())]
    holding.sort(key=lambda w: (w not in ready, laid[w], w))
    return holding[:wanted]


def _with_absent(
    chosen: Sequence[WorkerId], named: Sequence[WorkerId], replicas: int
) -> tuple[WorkerId, ...]:
    """`chosen`, and while there are fewer than `replicas`, hosts named before that are gone."""
    absent = [worker for worker in named if worker not in chosen]
    return (*chosen, *absent[: max(0, replicas - len(chosen))])


def _in_order(workers: Iterable[WorkerId]) -> tuple[WorkerId, ...]:
    return tuple(dict.fromkeys(workers))


def _shortages(ledger: Ledger, shards: Iterable[ShardId], taken: Sequence[WorkerId]) -> str:
    shard_ids = tuple(shards)
    told = (ledger.shortage(w, shard_ids) for w in ledger.hosts if w not in taken)
    return "; ".join(text for text in told if text)


def _no_room(dataset: Dataset, shortages: str) -> QuotaExceeded:
    return QuotaExceeded(
        f"no room for {_count(dataset)} of every shard of {dataset.dataset_id}: "
        f"{shortages}. Raise the tenant's memory_bytes_per_host, add a host, or hold fewer "
        "columns or rows"
    )


def _count(dataset: Dataset) -> str:
    if dataset.spread is Spread.EVERYWHERE:
        return "a replica on every host"
    return f"{dataset.replicas} replica(s)"
