"""The master's control loop: leads if elected, takes up publish requests, carries out what
`reconcile` decides, and says which loads are wanted. All of its state is in the store.

One thread decides. It never decides on a view older than its own last write, so that what it
has just given away is not given away twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from accel_dask.codec import decode
from accel_dask.config import Settings
from accel_dask.errors import (
    AccelError,
    CommitConflict,
    OutcomeUnknown,
    StoreError,
    StoreMismatch,
    StoreUnavailable,
)
from accel_dask.model.cluster import ClusterView
from accel_dask.model.commit import Commit, fencing_token
from accel_dask.model.epoch import EpochState
from accel_dask.model.load_plan import LoadOrder, LoadPlan
from accel_dask.model.member import META_PATH, FencingToken, Leader
from accel_dask.scheduler_plugin.jobs import Jobs
from accel_dask.scheduler_plugin.publishing import OpenSource, Publishing
from accel_dask.scheduler_plugin.reconcile import fail_epoch, reconcile
from accel_dask.scheduler_plugin.round import Round
from accel_dask.scheduler_plugin.upkeep import needed_digests
from accel_dask.scheduler_plugin.wanted import WantedLoad, wanted_loads
from accel_dask.store.base import StateStore
from accel_dask.store.blobs import delete_blob, get_blob, list_blobs
from accel_dask.store.keys import key_of
from accel_dask.store.leadership import Campaign
from accel_dask.store.mirror import Mirror
from accel_dask.store.records import commit_records

logger = logging.getLogger(__name__)

_STORY_LINES: Final = 500
_BLOBS: Final = "blobs"


@dataclass(frozen=True, slots=True)
class Load:
    """A wanted load and its order."""

    wanted: WantedLoad
    order: LoadOrder


class Loads(Protocol):
    """Whoever has loads run; called by the control loop, from its thread."""

    def want(self, loads: tuple[Load, ...]) -> None:
        """Have exactly these under way: start what is new, cancel what is not named."""


@dataclass(frozen=True, slots=True)
class Told:
    """One sentence of the master, for operators."""

    at_ns: int
    sentence: str


class Controller:
    """Owns the mirror, the campaign and the loop's thread."""

    def __init__(
        self,
        store: StateStore,
        settings: Settings,
        *,
        master: str,
        address: str,
        open_source: OpenSource,
        loads: Loads,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._store = store
        self._settings = settings
        self._loads = loads
        self._clock_ns = clock_ns
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._progress = time.monotonic()
        self._floor = 0
        self._is_uncertain = False
        self._term: FencingToken | None = None
        self._plans: dict[str, LoadPlan] = {}
        self._digests: frozenset[str] = frozenset()
        self._unreadable: set[str] = set()
        self._told: deque[Told] = deque(maxlen=_STORY_LINES)
        self._jobs = Jobs(self._wake.set)
        self._publishing = Publishing(store, settings.master, self._jobs, open_source)
        self._mirror = Mirror(store, on_change=lambda _: self._wake.set())
        self._campaign = Campaign(
            store,
            lambda: Leader(master=master, address=address, elected_at_ns=clock_ns()),
            settings.master.lease_seconds,
            may_renew=self._makes_progress,
            on_elected=lambda _: self._wake.set(),
            on_lost=self._wake.set,
        )
        self._thread = threading.Thread(target=self._run, name="accel-master", daemon=True)

    @property
    def view(self) -> ClusterView:
        """The newest view of the cluster, leader or not."""
        return self._mirror.view

    @property
    def is_leader(self) -> bool:
        return self._campaign.token() is not None

    def story(self) -> tuple[Told, ...]:
        """What this master did and why, oldest first."""
        return tuple(self._told)

    def start(self, timeout_seconds: float = 30.0) -> None:
        """Begin.

        Raises:
            StoreUnavailable: the store gave no view in time.
        """
        self._mirror.start(timeout_seconds)
        self._campaign.start()
        self._thread.start()

    def close(self) -> None:
        """Stop deciding, give up leadership, stop watching."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(10)
        self._campaign.close()
        self._mirror.close()

    def _makes_progress(self) -> bool:
        """The lease's watchdog: leadership must not outlive a loop that is stuck."""
        patience = max(self._settings.master.lease_seconds, 3 * self._settings.master.tick_seconds)
        return time.monotonic() - self._progress < patience

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            try:
                self._round()
            except StoreError as error:
                logger.warning("this round ended early: %s", error)
            except Exception:  # a fault in one decision must not end all others
                logger.exception("this round failed; the next one begins at the next change")
            self._progress = time.monotonic()
            self._wake.wait(self._settings.master.tick_seconds)

    def _round(self) -> None:
        token = self._campaign.token()
        view = self._mirror.view
        if token is None:
            self._end_term()
            return
        self._find_floor()
        if view.revision < self._floor or fencing_token(view) != token:
            return
        if token != self._term:
            self._begin_term(token)
        round_ = Round(view, self._clock_ns(), self._settings.master, token)
        written = [
            self._carry_out(c) for c in reconcile(view, round_.now_ns, round_.settings, token)
        ]
        if not any(written):
            for commit in self._publishing.answers(round_):
                if self._carry_out(commit):
                    return
            self._want_loads(round_)
            self._publishing.look_after(round_)
            self._collect_blobs(view, round_.now_ns)

    def _begin_term(self, token: FencingToken) -> None:
        logger.info("this master leads now, with fencing token %s", token)
        self._publishing.begin_term()
        self._digests = frozenset()
        self._sweep_blobs()
        self._term = token
        self._tell(f"this master leads, with fencing token {token.create_revision}")

    def _end_term(self) -> None:
        if self._term is not None:
            logger.warning("this master leads no longer")
            self._tell("this master leads no longer")
        self._term = None
        self._floor = 0
        self._publishing.end_term()
        self._plans.clear()
        self._loads.want(())

    def _carry_out(self, commit: Commit) -> bool:
        """Try `commit`; whether the view is out of date now."""
        try:
            self._floor = max(self._floor, commit_records(self._store, commit))
        except CommitConflict as error:
            logger.info("decided on a view that has moved on: %s", error)
            return False
        except OutcomeUnknown as error:
            logger.warning("%s", error)
            self._is_uncertain = True
            return True
        except (StoreUnavailable, StoreMismatch):
            raise
        except StoreError as error:  # no store takes it; all other decisions must go on
            logger.error("cannot be carried out: %s", error)
            return False
        self._progress = time.monotonic()
        self._tell(commit.because)
        logger.info("%s", commit.because)
        return True

    def _find_floor(self) -> None:
        """After a write whose outcome is not known: wait until the view shows all that was
        written before now."""
        if self._is_uncertain:
            self._floor = max(self._floor, self._store.read(key_of(META_PATH)).revision)
            self._is_uncertain = False

    def _tell(self, sentence: str) -> None:
        self._told.append(Told(self._clock_ns(), sentence))

    # -- loads

    def _want_loads(self, round_: Round) -> None:
        loads = []
        for wanted in wanted_loads(round_.view):
            try:
                order = self._order(round_.view, wanted)
            except StoreUnavailable:
                raise
            except AccelError as error:
                self._give_up(round_, wanted, error)
            else:
                loads.append(Load(wanted, order))
        self._loads.want(tuple(loads))

    def _order(self, view: ClusterView, wanted: WantedLoad) -> LoadOrder:
        tenant = view.tenant(wanted.dataset_id.tenant)
        assert tenant is not None, "loads are wanted of declared datasets only"
        plan = self._plans.get(wanted.plan_digest)
        if plan is None:
            plan = decode(get_blob(self._store, wanted.plan_digest), LoadPlan)
            self._plans[wanted.plan_digest] = plan
        return LoadOrder(
            tenant=wanted.dataset_id.tenant,
            dataset=wanted.dataset_id.name,
            epoch=wanted.epoch,
            task=plan.tasks[wanted.index],
            shard_dir=view.workers[wanted.worker].record.shard_dir,
            spill_dir=self._settings.host.spill_dir,
            memory_bytes=self._settings.host.loader_memory_bytes,
            threads=tenant.quota.load_threads,
            max_file_bytes=wanted.max_file_bytes,
        )

    def _give_up(self, round_: Round, wanted: WantedLoad, error: AccelError) -> None:
        """Without its load plan an epoch cannot be loaded."""
        if wanted.plan_digest not in self._unreadable:
            self._unreadable.add(wanted.plan_digest)
            logger.error("the load plan of %s cannot be read: %s", wanted.name, error)
        epoch = round_.view.epoch(wanted.dataset_id, wanted.epoch)
        if epoch is not None and epoch.state is EpochState.LOADING and not self._is_behind(round_):
            self._carry_out(fail_epoch(round_, epoch, f"its load plan cannot be read: {error}"))

    def _is_behind(self, round_: Round) -> bool:
        return round_.view.revision < self._floor

    # -- load plans that no epoch needs

    def _collect_blobs(self, view: ClusterView, now_ns: int) -> None:
        job = self._jobs.get(_BLOBS)
        if job is not None:
            if not job.is_done:
                return
            if isinstance(job.outcome, AccelError):
                logger.warning("load plans were not removed: %s", job.outcome)
            self._jobs.forget(_BLOBS)
        needed = needed_digests(view)
        for digest in self._plans.keys() - needed:
            del self._plans[digest]
        self._unreadable &= needed
        gone = (self._digests - needed) | self._publishing.unused_plans(view)
        if gone:
            self._jobs.start(_BLOBS, "blobs", None, now_ns, lambda: self._delete_blobs(gone))
        self._digests = needed

    def _sweep_blobs(self) -> None:
        """What an earlier master left. Before anything is planned in this term: a load plan
        that is being stored again must not be taken for left over."""
        stored = frozenset(list_blobs(self._store))
        self._delete_blobs(stored - needed_digests(self._mirror.view))

    def _delete_blobs(self, digests: frozenset[str]) -> None:
        for digest in digests:
            delete_blob(self._store, digest)
