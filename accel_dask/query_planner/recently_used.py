"""A map that keeps what was used last."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final, Generic, TypeVar

_K = TypeVar("_K")
_V = TypeVar("_V")


class RecentlyUsed(Generic[_K, _V]):
    """Safe to use from several threads: each step on the map is one atomic operation, and a value
    that another thread evicts meanwhile is only made again."""

    def __init__(self, capacity: int) -> None:
        self._capacity: Final = capacity
        self._kept: OrderedDict[_K, _V] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def __contains__(self, key: _K) -> bool:
        return key in self._kept

    def get(self, key: _K) -> _V | None:
        """Whether it is used is told by `keep`."""
        return self._kept.get(key)

    def keep(self, key: _K, value: _V) -> None:
        """As the one used last; evicts others beyond the capacity."""
        self._kept[key] = value
        try:
            self._kept.move_to_end(key)
            while len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        except KeyError:  # another thread evicted it meanwhile
            return
