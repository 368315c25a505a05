"""Whose control groups are whose, and what becomes of those of a host agent that was killed.

An agent that ends removes its groups. One that is killed cannot, and its next life may have another
name or directory. So each keeps one group locked for as long as it lives, and whoever starts
removes the groups of all agents that are gone.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Set
from contextlib import suppress
from typing import Final

from accel_dask.worker_plugin.enforcement.cgroups import PROBE, Tree

log = logging.getLogger(__name__)

LIFE: Final = "host-agent"
"""No tenant can have this name."""
_LOCK_SECONDS: Final = 5.0
_PAUSE_SECONDS: Final = 0.02


class Lifetime:
    """From the start of a host agent to its end, however that comes."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._lock: int | None = None

    def begin(self) -> set[str]:
        """Remove what earlier lives and agents that are gone have left. Paths of our own groups
        that cannot be removed yet, as their processes are just ending."""
        self._take_lock()
        left = remove_groups(self._tree, but={LIFE})
        for other in self._tree.beside():
            remove_if_gone(other)
        return left

    def end(self) -> bool:
        """Remove our groups; whether nothing is left. All processes should have ended."""
        if remove_groups(self._tree, but={LIFE}) or not self._tree.remove(LIFE):
            return False
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        return True

    def _take_lock(self) -> None:
        until = time.monotonic() + _LOCK_SECONDS
        while self._lock is None:
            with suppress(FileExistsError, FileNotFoundError):  # it is just being removed
                self._tree.make(LIFE)
                self._lock = self._tree.lock(LIFE)
            if self._lock is None:  # somebody just finds out that our earlier life is over
                if time.monotonic() > until:
                    log.warning("another host agent uses the same control groups")
                    return
                time.sleep(_PAUSE_SECONDS)


def remove_if_gone(tree: Tree) -> None:
    """Remove all groups of an agent unless it lives."""
    lock = tree.lock(LIFE)
    if lock is None:
        return
    try:
        # Its next life may be trying out what it may do; for all else it waits for the lock.
        if not remove_groups(tree, but={LIFE, PROBE}):
            tree.remove(LIFE)
    finally:
        os.close(lock)


def remove_groups(tree: Tree, *, but: Set[str]) -> set[str]:
    """Remove all groups of `tree` except some; paths of those that could not be removed."""
    left = set()
    for name in tree.groups():
        if name not in but and not tree.remove(name):
            left |= {name, *(f"{name}/{below}" for below in tree.groups(name))}
    return left
