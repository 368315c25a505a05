"""What the kernel was told of the CPU of each tenant's control group, and of the loaders'."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from accel_dask.worker_plugin.enforcement.cgroups import Tree

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupShare:
    """A tenant's group against all others."""

    weight: int
    limit_percent: int
    gives_way: bool = False
    """It runs only where nobody else wants to, whatever its weight; where the kernel has no such
    thing, the weight counts."""


class GroupCpu:
    """Writes what has changed. Not safe to use from several threads."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._applied: dict[str, GroupShare] = {}
        self._knows_idle = True

    def apply(self, group: str, share: GroupShare) -> None:
        """What the kernel refuses is logged."""
        before = self._applied.get(group)
        if before == share:
            return
        if before is None or before.gives_way != share.gives_way:
            self._set_idle(group, share.gives_way)
        if not (share.gives_way and self._knows_idle):  # the kernel takes no weight of an idle one
            _guarded(
                f"the CPU weight of group {group}",
                lambda: self._tree.set_cpu_weight(group, share.weight),
            )
        if before is None or before.limit_percent != share.limit_percent:
            _guarded(
                f"the CPU limit of group {group}",
                lambda: self._tree.set_cpu_limit(group, share.limit_percent),
            )
        self._applied[group] = share

    def forget(self, group: str) -> None:
        """The group is gone, or not as it was: all is written the next time."""
        self._applied.pop(group, None)

    def _set_idle(self, group: str, is_idle: bool) -> None:
        if not self._knows_idle:
            return
        try:
            self._tree.set_cpu_idle(group, is_idle)
        except OSError as error:
            self._knows_idle = False
            log.info("demoted tenants have a low weight only, no idle class: %s", error)


def _guarded(what: str, apply: Callable[[], None]) -> None:
    try:
        apply()
    except OSError as error:
        log.warning("%s could not be set: %s", what, error)
