"""Shares: how many of a tenant's queries each gateway may run at once. Pure.

A tenant's `concurrency` is divided among the live gateways. Each share is a record on the lease of
its gateway, which alone writes it:

- it *grows* by a commit that requires the tenant's record and all its shares to be those of the
  view in which they, with the growth, add up to no more than `concurrency`. Only when the store
  has confirmed it does the gateway run more queries;
- it *shrinks* only once the gateway runs no more queries than it will then have.

So at every revision the shares add up to no more than `concurrency`, or, after that was lowered, to
no more than before; and a gateway never runs more than its share while its lease lives. What a
gateway aims at is a function of the view alone (`divide`), so all agree without talking.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from accel_dask.model.cluster import ClusterView
from accel_dask.model.commit import Commit, Put, Requirement, UnchangedUnder, unchanged
from accel_dask.model.ids import GatewayId, TenantId
from accel_dask.model.member import Gateway, Share
from accel_dask.model.tenant import tenant_path

_SERVED: Final = 2**62


@dataclass(frozen=True, slots=True, order=True)
class Claim:
    """What one gateway would run at once."""

    gateway: GatewayId
    wanted: int
    turn: int
    """Where not each gateway can have a slot, lower ones come first."""


@lru_cache(maxsize=4096)
def divide(concurrency: int, claims: tuple[Claim, ...]) -> dict[GatewayId, int]:
    """The slots that each gateway should have: all of `concurrency`, if there is a gateway.

    What gateways want comes first, evenly (max-min fair); where not each can have one, those
    first whose turn was longest ago. What nobody wants is spread evenly, so that the first
    queries of a quiet gateway need not ask. Callers must not change the answer.
    """
    slots = {claim.gateway: 0 for claim in claims}
    left = concurrency
    for claim in sorted(claims, key=lambda claim: (claim.turn, claim.gateway)):
        if claim.wanted > 0 and left > 0:
            slots[claim.gateway] = 1
            left -= 1
    eager = sorted(claim for claim in claims if claim.wanted > 1)
    while left > 0 and eager:
        for claim in eager[:left]:
            slots[claim.gateway] += 1
        left -= min(left, len(eager))
        eager = [claim for claim in eager if claim.wanted > slots[claim.gateway]]
    for _ in range(left if slots else 0):
        poorest = min(slots, key=lambda gateway: (slots[gateway], gateway))
        slots[poorest] += 1
    return slots


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """One gateway and one tenant, as the gateway knows it."""

    tenant: TenantId
    gateway: GatewayId
    held: int
    """Slots that the store has confirmed and that were not given up since."""
    running: int
    wanted: int
    """Queries that it would run at once if it could."""


@dataclass(frozen=True, slots=True)
class Move:
    """What a gateway does next about one share."""

    target: int
    """It runs no more than so many, from now on."""
    share: Share | None
    """To be written; None: nothing is."""


def aim(view: ClusterView, holding: Holding, shares: Iterable[Share]) -> int:
    """The slots that the gateway should have. `shares`: all of the tenant's."""
    concurrency = concurrency_of(view, holding.tenant)
    own = replace(_own(shares, holding), wanted=holding.wanted)
    return divide(concurrency, _claims(view, concurrency, shares, own))[holding.gateway]


def next_move(view: ClusterView, holding: Holding, shares: tuple[Share, ...]) -> Move:
    """What to do on `view`. `holding.running` was counted when no more than the present target
    could run. `shares`: all of the tenant's in `view`."""
    concurrency = concurrency_of(view, holding.tenant)
    there = _own(shares, holding)
    own = replace(there, wanted=min(holding.wanted, concurrency))
    claims = _claims(view, concurrency, shares, own)
    division = divide(concurrency, claims)
    target = division[holding.gateway]
    free = max(concurrency - sum(share.slots for share in shares), 0)
    if there.slots > target:
        slots = max(target, min(there.slots, holding.running))
    else:
        slots = min(target, there.slots + free)
    matters = division != divide(concurrency, _claims(view, concurrency, shares, there))
    if slots == there.slots and holding.held >= min(target, slots) and not matters:
        return Move(target, None)
    turn = view.revision if there.slots == 0 and slots > 0 else there.served_at
    return Move(target, replace(own, slots=slots, served_at=turn))


def share_commit(view: ClusterView, share: Share, lease_id: int) -> Commit:
    """The commit that writes `share`, decided on `view`."""
    there = view.find(Share, share.path)
    requirements: tuple[Requirement, ...] = (unchanged(view, share.path),)
    if share.slots > (there.slots if there is not None else 0):
        requirements = (
            unchanged(view, tenant_path(share.tenant)),
            UnchangedUnder((Share.KIND, share.tenant), view.revision),
        )
    return Commit(
        requirements=requirements,
        changes=(Put(share, lease_id),),
        because=f"gateway {share.gateway} has {share.slots} slots of tenant {share.tenant}",
    )


def shares_by_tenant(view: ClusterView) -> dict[TenantId, tuple[Share, ...]]:
    """All shares, in order of their gateways."""
    found: dict[TenantId, list[Share]] = {}
    for share in view.records(Share):
        found.setdefault(share.tenant, []).append(share)
    return {tenant: tuple(shares) for tenant, shares in found.items()}


def concurrency_of(view: ClusterView, tenant: TenantId) -> int:
    """Queries of `tenant` that may run at once; 0: there is no such tenant."""
    found = view.tenant(tenant)
    return found.quota.concurrency if found is not None else 0


def _own(shares: Iterable[Share], holding: Holding) -> Share:
    for share in shares:
        if share.gateway == holding.gateway:
            return share
    return Share(tenant=holding.tenant, gateway=holding.gateway, slots=0)


def _claims(
    view: ClusterView, concurrency: int, shares: Iterable[Share], own: Share
) -> tuple[Claim, ...]:
    """Of all live gateways, with `own` in place of what its record says."""
    claims = {found.gateway: Claim(found.gateway, 0, 0) for found in view.records(Gateway)}
    for share in (*shares, own):
        wanted = min(share.wanted, concurrency)
        # Whose turn it is matters only to those who want something.
        claims[share.gateway] = Claim(share.gateway, wanted, _turn_of(share) if wanted else 0)
    return tuple(claims[gateway] for gateway in sorted(claims))


def _turn_of(share: Share) -> int:
    """Who waits comes before who is served; of those that wait the one whose turn began longest
    ago, and of those that are served the one whose turn began last."""
    return _SERVED - share.served_at if share.slots else share.served_at
