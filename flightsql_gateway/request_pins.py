"""What a client says of one call beside its limits: the epochs, or the one shard, that it must
read, whether an engine may be asked, and a name to cancel it by.

Used by the front ends and the query service.
"""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from accel_dask.errors import EpochRetired, InvalidQuery
from accel_dask.model.shard_ref import ShardRef
from accel_dask.query_planner.plan import QueryPlan
from flightsql_gateway.auth import Identity

EPOCHS: Final = "x-accel-epochs"
SHARD: Final = "x-accel-shard"
FALLBACK: Final = "x-accel-fallback"
REQUEST: Final = "x-accel-request"
_PIN: Final = re.compile(r"([^@,]{1,200})@(\d{1,18})")
_SHARD: Final = re.compile(r"([^@,]{1,200})@(\d{1,18})/([0-9A-Za-z]{1,64})")
_NAME: Final = re.compile(r"[0-9A-Za-z-]{8,64}")

Pins = tuple[tuple[str, int], ...]
"""Dataset and epoch."""


def read_pins(headers: Mapping[str, Iterable[str]]) -> Pins:
    """The epochs that a call is pinned to: `flights@12,airlines@3`.

    Raises:
        InvalidQuery: the header does not say so.
    """
    pins: dict[str, int] = {}
    for pin in filter(None, _header(headers, EPOCHS).split(",")):
        found = _PIN.fullmatch(pin.strip())
        if found is None:
            raise InvalidQuery(f"{EPOCHS}: {pin[:60]!r} is no dataset@epoch")
        if pins.setdefault(found[1], int(found[2])) != int(found[2]):
            raise InvalidQuery(f"{EPOCHS}: {found[1]!r} is pinned to two epochs")
    return tuple(pins.items())


def read_shard(headers: Mapping[str, Iterable[str]], tenant: str) -> ShardRef | None:
    """The one shard that a call is narrowed to, `flights@12/<shard id>`; None: none.

    Raises:
        InvalidQuery: the header does not say so.
    """
    text = _header(headers, SHARD).strip()
    return parse_shard(text, tenant) if text else None


def parse_shard(text: str, tenant: str) -> ShardRef:
    """
    Raises:
        InvalidQuery: `text` names no shard.
    """
    found = _SHARD.fullmatch(text)
    if found is None:
        raise InvalidQuery(f"{text[:60]!r} is no dataset@epoch/shard")
    return ShardRef(tenant, found[1], int(found[2]), found[3])


def pin_of(shard: ShardRef | None) -> Pins:
    """The epoch that a call is pinned to by the shard it is narrowed to."""
    return () if shard is None else ((shard.dataset, shard.epoch),)


def read_may_fall_back(headers: Mapping[str, Iterable[str]]) -> bool:
    """Whether the fallback engine may be asked: not with the header `x-accel-fallback: forbid`.

    Raises:
        InvalidQuery: the header says something else.
    """
    text = _header(headers, FALLBACK).strip()
    if text not in {"", "allow", "forbid"}:
        raise InvalidQuery(f"{FALLBACK} must be allow or forbid, not {text[:30]!r}")
    return text != "forbid"


def read_request_name(headers: Mapping[str, Iterable[str]]) -> str:
    """The name that the caller can cancel the call by; empty: none.

    Raises:
        InvalidQuery: it is too short to be the caller's own, or no name.
    """
    name = _header(headers, REQUEST)
    if name and not _NAME.fullmatch(name):
        raise InvalidQuery(f"{REQUEST} must be 8 to 64 letters, digits or dashes")
    return name


def _header(headers: Mapping[str, Iterable[str]], name: str) -> str:
    return ",".join(",".join(values) for key, values in headers.items() if key.lower() == name)


def check_pins(plan: QueryPlan, pins: Pins) -> None:
    """Raise unless every dataset of `plan` that is pinned is read at its pinned epoch.

    Raises:
        EpochRetired: one serves another epoch by now.
    """
    wanted = dict(pins)
    in_any_case = {name.lower(): epoch for name, epoch in pins}  # as SQL takes names
    for used in plan.datasets:
        name = used.dataset_id.name
        pinned = wanted.get(name, in_any_case.get(name.lower()))
        if pinned is not None and pinned != used.epoch:
            raise EpochRetired(
                f"{used.dataset_id.tenant}: the dataset {name} serves epoch {used.epoch} by now; "
                f"the query is pinned to {pinned}. Take a new snapshot and ask again"
            )


class _Flag:
    """Whether a call was cancelled by its name."""

    def __init__(self) -> None:
        self.is_set = False


class NamedCalls:
    """Calls that can be cancelled by their names, each by the user who made it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._flags: weakref.WeakValueDictionary[tuple[Identity, str], _Flag] = (
            weakref.WeakValueDictionary()
        )

    def watched(
        self, identity: Identity, name: str, is_cancelled: Callable[[], bool]
    ) -> Callable[[], bool]:
        """`is_cancelled`, also true once `cancel` was called with that name. The name is known
        for as long as the result is kept."""
        if not name:
            return is_cancelled
        flag = _Flag()
        with self._lock:
            self._flags[identity, name] = flag
        return lambda: flag.is_set or is_cancelled()

    def cancel(self, identity: Identity, name: str) -> bool:
        """Cancel the call; False: there is none (any more)."""
        with self._lock:
            flag = self._flags.get((identity, name))
        if flag is None:
            return False
        flag.is_set = True
        return True
