"""Publish requests on their way: asks the sources in the background, answers with commits.

Nothing is asked of one dataset's source by two threads at once. Only the control loop calls in.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from accel_dask.config import MasterSettings
from accel_dask.connectors.base import SnapshotSource
from accel_dask.errors import (
    AccelError,
    CommitConflict,
    LoadError,
    QuotaExceeded,
    SourceUnavailable,
    StoreError,
)
from accel_dask.model.cluster import ClusterView
from accel_dask.model.commit import Commit
from accel_dask.model.dataset import Dataset, PublishRequest, dataset_path
from accel_dask.model.ids import DatasetId, EpochNumber, Revision
from accel_dask.scheduler_plugin.admission import memory_is_coming_back
from accel_dask.scheduler_plugin.jobs import Job, Jobs
from accel_dask.scheduler_plugin.poller import Poller
from accel_dask.scheduler_plugin.publish import (
    PlannedPublish,
    can_take_up,
    is_current,
    is_short_of_memory,
    load_plan,
    next_number,
    open_epoch,
    refuse,
)
from accel_dask.scheduler_plugin.round import Round
from accel_dask.scheduler_plugin.sharding import cut_shards
from accel_dask.scheduler_plugin.upkeep import Pin, Pins, needed_digests, pin_label, pin_prefix
from accel_dask.store.base import StateStore
from accel_dask.store.blobs import put_blob
from accel_dask.store.records import create_record

logger = logging.getLogger(__name__)

OpenSource = Callable[[Dataset], SnapshotSource]

_PLAN: Final = "plan"
_POLL: Final = "poll"
_UNPIN: Final = "unpin"
_SWEEP: Final = "sweep"
_MOST_SECONDS: Final = {_PLAN: 600.0, _POLL: 60.0, _UNPIN: 60.0, _SWEEP: 60.0}
"""A source that takes longer is given up; its thread is left behind."""


@dataclass(frozen=True, slots=True)
class _Taken:
    """A request as it was taken up."""

    request: PublishRequest
    dataset: Dataset
    dataset_revision: Revision
    number: EpochNumber


class Publishing:
    """The part of the master that talks to sources."""

    def __init__(
        self, store: StateStore, settings: MasterSettings, jobs: Jobs, open_source: OpenSource
    ) -> None:
        self._store = store
        self._settings = settings
        self._jobs = jobs
        self._open_source = open_source
        self._poller = Poller()
        self._pins = Pins()
        self._stored: dict[str, tuple[DatasetId, EpochNumber]] = {}

    def begin_term(self) -> None:
        self._stored.clear()
        self._poller = Poller()
        self._pins = Pins()

    def end_term(self) -> None:
        """Whatever is under way was begun by a master that leads no longer."""
        for job in self._jobs.values():
            job.is_wanted = False

    def answers(self, round_: Round) -> Iterator[Commit]:
        """Starts planning what can be taken up; commits for what was planned."""
        view = round_.view
        self._give_up_overdue(round_)
        for request in view.records(PublishRequest):
            job = self._jobs.get(request.dataset_id)
            if job is None:
                if can_take_up(view, request):
                    self._take_up(round_, request)
            elif job.kind == _PLAN and can_take_up(view, request):
                commit = self._answer(round_, request, job) if job.is_done else None
                if commit is not None:
                    yield commit

    def _give_up_overdue(self, round_: Round) -> None:
        """A source that hangs must not keep its dataset, or all threads, from being published."""
        for key, job in self._jobs.items():
            seconds = _MOST_SECONDS.get(job.kind)
            if seconds is None or job.is_done or not isinstance(key, DatasetId):
                continue
            if abs(round_.now_ns - job.started_ns) > seconds * 1e9:
                self._jobs.give_up(
                    key,
                    SourceUnavailable(
                        f"{key}: the source did not answer within {seconds:g} s; look at it, "
                        "then publish again"
                    ),
                )

    def _take_up(self, round_: Round, request: PublishRequest) -> None:
        view, key = round_.view, request.dataset_id
        found = view.get(dataset_path(key))
        dataset = view.dataset(key)
        assert found is not None
        assert dataset is not None
        assert view.meta is not None
        taken = _Taken(request, dataset, found.mod_revision, next_number(view, key))
        cluster = view.meta.cluster_id
        self._jobs.start(key, _PLAN, taken, round_.now_ns, lambda: self._plan(taken, cluster))

    def _plan(self, taken: _Taken, cluster: str) -> PlannedPublish:
        """In the background: snapshot, shards, stored plan, pin."""
        dataset = taken.dataset
        source = self._open_source(dataset)
        try:
            snapshot = source.plan(taken.request.snapshot)
            plan, data = load_plan(dataset, taken.number, snapshot, cut_shards(dataset, snapshot))
            if self._settings.pin_snapshots:
                label = pin_label(cluster, dataset.dataset_id, snapshot.snapshot_id.snapshot)
                try:
                    source.pin(snapshot, label)
                except AccelError as error:
                    logger.warning("%s is loaded without a pin: %s", dataset.dataset_id, error)
            digest = put_blob(self._store, data)
        finally:
            source.close()
        return PlannedPublish(
            request=taken.request,
            dataset=dataset,
            dataset_revision=taken.dataset_revision,
            snapshot=snapshot,
            plan=plan,
            plan_digest=digest,
        )

    def _answer(self, round_: Round, request: PublishRequest, job: Job) -> Commit | None:
        taken, outcome = job.subject, job.outcome
        assert isinstance(taken, _Taken)
        if not job.is_wanted or not self._is_current(round_, request, taken, outcome):
            logger.info("%s is planned again: what was asked has changed", request.dataset_id)
            if isinstance(outcome, PlannedPublish):
                self._note_left(round_, outcome)
            self._jobs.forget(request.dataset_id)
            return None
        if not isinstance(outcome, PlannedPublish):
            error = outcome if isinstance(outcome, AccelError) else LoadError(str(outcome))
            return refuse(round_, request, error)
        outcome = replace(outcome, source_version=self._poller.seen_version(taken.dataset))
        try:
            if self._may_wait(round_, outcome, job) and is_short_of_memory(round_.view, outcome):
                return None
            return open_epoch(round_, outcome)
        except QuotaExceeded as error:
            if self._may_wait(round_, outcome, job):
                return None
            return refuse(round_, request, error, outcome)
        except AccelError as error:
            return refuse(round_, request, error, outcome)

    def _is_current(
        self, round_: Round, request: PublishRequest, taken: _Taken, outcome: object
    ) -> bool:
        if isinstance(outcome, PlannedPublish):
            return is_current(round_.view, outcome)
        found = round_.view.get(dataset_path(request.dataset_id))
        return (
            taken.request == request
            and found is not None
            and found.mod_revision == taken.dataset_revision
        )

    def _may_wait(self, round_: Round, planned: PlannedPublish, job: Job) -> bool:
        """Whether to wait for memory that is being returned, rather than to refuse."""
        waited = (round_.now_ns - job.started_ns) / 1e9
        return waited < self._settings.validate_seconds and memory_is_coming_back(
            round_.view, planned.dataset
        )

    def look_after(self, round_: Round) -> None:
        """Ends jobs that are over, releases pins, polls."""
        for key, job in self._jobs.items():
            if isinstance(key, DatasetId) and job.is_done:
                self._end(round_, key, job)
        planning = [k for k, job in self._jobs.items() if isinstance(k, DatasetId)]
        if self._settings.pin_snapshots:
            for dataset, pin in self._pins.releasable(round_.view, planning):
                self._start(round_, dataset, _UNPIN, pin, self._unpinning(dataset, pin))
            for dataset in self._pins.unswept(round_.view, planning):
                self._start(round_, dataset, _SWEEP, dataset, self._sweeping(round_, dataset))
        for dataset in self._poller.due(round_.view, round_.now_ns):
            self._start(round_, dataset, _POLL, dataset, self._asking(dataset))

    def _start(
        self, round_: Round, dataset: Dataset, kind: str, subject: object, run: Callable[[], object]
    ) -> None:
        if not self._jobs.is_stuck(dataset.dataset_id):  # one thread left behind is enough
            self._jobs.start(dataset.dataset_id, kind, subject, round_.now_ns, run)

    def _end(self, round_: Round, key: DatasetId, job: Job) -> None:
        match job.kind, job.subject, job.outcome:
            case "plan", _Taken() as taken, outcome:
                if isinstance(outcome, PlannedPublish):
                    self._note_left(round_, outcome)
                request = round_.view.publish_request(key)
                if request is not None and request == taken.request and job.is_wanted:
                    return  # not answered yet
            case "unpin", Pin() as pin, outcome:
                if isinstance(outcome, AccelError):
                    logger.warning("%s of %s was not released: %s", pin.label, key, outcome)
                self._pins.released(pin)
            case "sweep", Dataset(), outcome:
                self._pins.swept(key)
                if isinstance(outcome, tuple):
                    for label in outcome:
                        self._pins.pinned(Pin(key, label))
                else:
                    logger.warning("pins that were left behind at %s stay: %s", key, outcome)
            case "poll", Dataset() as dataset, str() as version:
                if self._poller.is_new(round_.view, dataset, version, round_.now_ns):
                    self._request(round_, dataset)
            case "poll", Dataset() as dataset, outcome:
                logger.warning("%s could not be polled: %s", key, outcome)
                self._poller.could_not_ask(dataset, round_.now_ns)
            case _:
                logger.error("a job of unknown kind ended: %s", job)
        self._jobs.forget(key)

    def _note_left(self, round_: Round, planned: PlannedPublish) -> None:
        """What planning left at the source and in the store, for an epoch that may never come."""
        key = planned.dataset.dataset_id
        assert round_.view.meta is not None
        label = pin_label(round_.view.meta.cluster_id, key, planned.snapshot.snapshot_id.snapshot)
        self._pins.pinned(Pin(key, label))
        self._stored[planned.plan_digest] = (key, planned.plan.epoch)

    def unused_plans(self, view: ClusterView) -> frozenset[str]:
        """Stored load plans whose epoch numbers have passed without them: never needed again."""
        needed = needed_digests(view)
        passed = set()
        for digest, (dataset, number) in tuple(self._stored.items()):
            epochs = view.epochs_of(dataset)
            if epochs and epochs[-1].number >= number:
                del self._stored[digest]  # or the epoch took it over
                passed.add(digest)
        return frozenset(passed - needed)

    def _unpinning(self, dataset: Dataset, pin: Pin) -> Callable[[], None]:
        def unpin() -> None:
            source = self._open_source(dataset)
            try:
                source.unpin(pin.label)
            finally:
                source.close()

        return unpin

    def _sweeping(self, round_: Round, dataset: Dataset) -> Callable[[], tuple[str, ...]]:
        assert round_.view.meta is not None
        prefix = pin_prefix(round_.view.meta.cluster_id, dataset.dataset_id)

        def sweep() -> tuple[str, ...]:
            source = self._open_source(dataset)
            try:
                return source.pinned_labels(prefix)
            finally:
                source.close()

        return sweep

    def _asking(self, dataset: Dataset) -> Callable[[], str]:
        def ask() -> str:
            source = self._open_source(dataset)
            try:
                return source.current_version()
            finally:
                source.close()

        return ask

    def _request(self, round_: Round, dataset: Dataset) -> None:
        request = PublishRequest(
            tenant=dataset.tenant,
            name=dataset.name,
            nonce=uuid.uuid4().hex,
            requested_by="poller",
            requested_at_ns=round_.now_ns,
        )
        try:
            create_record(self._store, request)
        except CommitConflict:
            logger.info("%s: somebody asked for a publish already", dataset.dataset_id)
        except StoreError:
            self._poller.not_requested(dataset)
            raise
