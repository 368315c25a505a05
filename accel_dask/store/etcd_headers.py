"""Guards against an etcd member that answers for another cluster or from the past."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

from accel_dask.errors import StoreMismatch


@dataclass(frozen=True, slots=True)
class Floor:
    """What an answer to a request sent now must reach."""

    revision: int = 0
    raft_term: int = 0


class HeaderGuard:
    """Knows the cluster's id and the newest revision and raft term any answer showed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cluster_id = 0
        self._floor = Floor()

    @property
    def cluster_id(self) -> int:
        """0 before the first answer."""
        return self._cluster_id

    def floor(self) -> Floor:
        """Take it before sending: answers may overtake each other, but none to a linearizable
        request may be older than what was known when it was sent."""
        return self._floor

    def check_cluster(self, header: Any, address: str) -> None:
        """Raise `StoreMismatch` unless `header` is of the cluster first heard of."""
        with self._lock:
            if not self._cluster_id:
                self._cluster_id = header.cluster_id
        if header.cluster_id != self._cluster_id:
            raise StoreMismatch(
                f"{address} is a member of etcd cluster {header.cluster_id:x}, but the others of "
                f"{self._cluster_id:x}; correct the endpoints or that member's data directory"
            )

    def check(self, header: Any, floor: Floor, address: str) -> None:
        """As `check_cluster`, and raise too if a linearizable answer is from before `floor`."""
        self.check_cluster(header, address)
        if header.revision < floor.revision:
            raise StoreMismatch(
                f"{address} answers at revision {header.revision} although {floor.revision} was "
                "seen before: its history went back (a restored backup?); restart this process "
                "if that was on purpose"
            )
        if header.raft_term < floor.raft_term:
            raise StoreMismatch(
                f"{address} answers from raft term {header.raft_term}, {floor.raft_term} was seen "
                "before: it is cut off from its cluster or its history went back"
            )
        with self._lock:
            self._floor = Floor(
                max(self._floor.revision, header.revision),
                max(self._floor.raft_term, header.raft_term),
            )
