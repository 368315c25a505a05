"""Which datasets are to be looked at for a new snapshot, and what was seen of them. Pure state:
the controller asks the sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from accel_dask.model.cluster import ClusterView
from accel_dask.model.dataset import Dataset
from accel_dask.model.epoch import EpochState
from accel_dask.model.ids import DatasetId
from accel_dask.scheduler_plugin.round import is_declared

_RETRY_SECONDS: Final = 60.0
"""A version whose epoch FAILED is published again after this, or ten polls if that is longer."""


@dataclass(slots=True)
class _Seen:
    checked_ns: int = 0
    version: str | None = None


class Poller:
    """Remembers the version that each polled dataset was last published at."""

    def __init__(self) -> None:
        self._seen: dict[DatasetId, _Seen] = {}

    def due(self, view: ClusterView, now_ns: int) -> Iterator[Dataset]:
        """Datasets whose source is to be asked now: their time has come and nothing of them
        is on its way."""
        for dataset in view.records(Dataset):
            key = dataset.dataset_id
            if dataset.poll_seconds <= 0 or not is_declared(view, key):
                self._seen.pop(key, None)
                continue
            seen = self._seen.setdefault(key, _Seen())
            is_idle = view.publish_request(key) is None and view.open_epoch(key) is None
            # A clock that was set back must not end the polling.
            is_early = 0 <= now_ns - seen.checked_ns < dataset.poll_seconds * 1e9
            if is_idle and not is_early:
                yield dataset

    def is_new(self, view: ClusterView, dataset: Dataset, version: str, now_ns: int) -> bool:
        """Take note of `version`; whether to publish it."""
        seen = self._seen.setdefault(dataset.dataset_id, _Seen())
        seen.checked_ns = now_ns
        known, seen.version = seen.version or _published(view, dataset), version
        if version != known:
            return True
        epochs = view.epochs_of(dataset.dataset_id)
        if not epochs or epochs[-1].state is not EpochState.FAILED:
            return False
        patience = max(_RETRY_SECONDS, 10 * dataset.poll_seconds)
        return abs(now_ns - epochs[-1].since_ns) > patience * 1e9

    def seen_version(self, dataset: Dataset) -> str:
        """What was last taken note of; empty: nothing in this term."""
        seen = self._seen.get(dataset.dataset_id)
        return (seen.version if seen else None) or ""

    def not_requested(self, dataset: Dataset) -> None:
        """The version just taken note of could not be published: it is still new."""
        self._seen.setdefault(dataset.dataset_id, _Seen()).version = None

    def could_not_ask(self, dataset: Dataset, now_ns: int) -> None:
        """The source did not answer: ask again at the next poll."""
        self._seen.setdefault(dataset.dataset_id, _Seen()).checked_ns = now_ns


def _published(view: ClusterView, dataset: Dataset) -> str | None:
    """The version that the newest epoch was planned at. An operator who went back to an older
    snapshot did so knowing it: a new leader must not undo that."""
    versions = (epoch.source_version for epoch in reversed(view.epochs_of(dataset.dataset_id)))
    return next((version for version in versions if version), None)
