"""What epochs that are over leave outside the records: pinned snapshots and load plan blobs.

Both are found from a view alone, so that a new leader finishes what the last one began.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import ColdPolicy, Dataset
from accel_dask.model.epoch import Epoch, EpochState
from accel_dask.model.ids import DatasetId

_NEEDS_SOURCE: Final = frozenset({EpochState.LOADING, EpochState.VALIDATING, EpochState.READY})
"""An epoch in these states may have to be loaded again: a host may be lost."""


class Pin(NamedTuple):
    """A snapshot that is kept alive at its source, under a label of ours."""

    dataset: DatasetId
    label: str


def pin_label(cluster_id: str, dataset: DatasetId, snapshot: str) -> str:
    """One label for all epochs of one snapshot of one dataset."""
    return pin_prefix(cluster_id, dataset) + snapshot


def pin_prefix(cluster_id: str, dataset: DatasetId) -> str:
    """What all labels of one dataset begin with, and no other's: names have no hyphens."""
    return f"accel-{cluster_id[:8]}-{dataset.tenant}-{dataset.name}-"


def needed_digests(view: ClusterView) -> frozenset[str]:
    """Load plans that may still be read."""
    return frozenset(e.plan_digest for e in view.records(Epoch) if _needs_source(e))


def _needs_source(epoch: Epoch) -> bool:
    """Whether it may be loaded again, or read cold."""
    if epoch.state is EpochState.RETIRING:
        return epoch.cold is ColdPolicy.ALLOW
    return epoch.state in _NEEDS_SOURCE


class Pins:
    """Which pins are to be released. Retiring epochs need none, unless they may be read cold:
    they are not loaded again."""

    def __init__(self) -> None:
        self._released: set[Pin] = set()
        self._datasets: dict[DatasetId, Dataset] = {}
        self._held: set[Pin] = set()
        self._swept: set[DatasetId] = set()

    def unswept(self, view: ClusterView, busy: Iterable[DatasetId]) -> Iterator[Dataset]:
        """Datasets whose source has not been asked yet, in this term, for pins that an earlier
        master left: it may have died between pinning and opening an epoch."""
        skipped = {*busy, *self._swept}
        return (d for d in view.records(Dataset) if d.dataset_id not in skipped)

    def swept(self, dataset: DatasetId) -> None:
        self._swept.add(dataset)

    def releasable(
        self, view: ClusterView, coming: Iterable[DatasetId]
    ) -> Iterator[tuple[Dataset, Pin]]:
        """Pins that no epoch needs any more, with the dataset (perhaps as it was declared
        before it was deleted). Datasets in `coming` are being planned and left alone."""
        meta = view.meta
        if meta is None:
            return
        self._datasets.update((d.dataset_id, d) for d in view.records(Dataset))
        held: set[Pin] = set()
        over: set[Pin] = set()
        for epoch in view.records(Epoch):
            if epoch.snapshot_id is None:
                continue
            label = pin_label(meta.cluster_id, epoch.dataset_id, epoch.snapshot_id.snapshot)
            wanted = held if _needs_source(epoch) else over
            wanted.add(Pin(epoch.dataset_id, label))
        over |= self._held - held
        self._held |= held
        self._released &= over - held
        busy = set(coming)
        for pin in sorted(over - held - self._released):
            dataset = self._datasets.get(pin.dataset)
            if dataset is not None and pin.dataset not in busy:
                yield dataset, pin

    def released(self, pin: Pin) -> None:
        self._held.discard(pin)
        self._released.add(pin)

    def pinned(self, pin: Pin) -> None:
        """It was pinned (again), perhaps for an epoch that never came to be."""
        self._held.add(pin)
        self._released.discard(pin)
