"""Work that waits for something outside, one piece at a time for each key, on threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from accel_dask.errors import AccelError, LoadError

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Job:
    """A piece of work; its `outcome` is there once `is_done`."""

    kind: str
    subject: object
    """What it is about, for whoever started it."""
    started_ns: int
    outcome: object = None
    is_done: bool = False
    is_wanted: bool = field(default=True)
    """False: nobody will look at the outcome."""
    has_returned: bool = False
    """Its thread has come back; not so where it was given up."""


class Jobs:
    """Runs functions on daemon threads. All methods are for one thread, the control loop's."""

    def __init__(self, on_done: Callable[[], None], most: int = 16) -> None:
        self._on_done = on_done
        self._most = most
        self._running: dict[Hashable, Job] = {}
        self._stuck: dict[Hashable, list[Job]] = {}

    def get(self, key: Hashable) -> Job | None:
        return self._running.get(key)

    def values(self) -> tuple[Job, ...]:
        return tuple(self._running.values())

    def items(self) -> tuple[tuple[Hashable, Job], ...]:
        return tuple(self._running.items())

    def start(
        self, key: Hashable, kind: str, subject: object, now_ns: int, run: Callable[[], object]
    ) -> bool:
        """Run `run` in the background; False if the key is busy or all threads are."""
        alive = sum(not job.is_done for job in self._running.values())
        if key in self._running or alive >= self._most:
            return False
        job = Job(kind, subject, now_ns)
        self._running[key] = job
        # Daemon threads: a source that never answers must not keep the process from ending.
        threading.Thread(
            target=self._run, args=(job, run), name=f"accel-{kind}", daemon=True
        ).start()
        return True

    def give_up(self, key: Hashable, outcome: object) -> None:
        """End the job under `key` with `outcome`; its thread is left behind."""
        job = self._running[key]
        job.outcome = outcome
        job.is_done = True
        self._stuck.setdefault(key, []).append(job)

    def is_stuck(self, key: Hashable) -> bool:
        """Whether a job of `key` that was given up still hangs."""
        left = [job for job in self._stuck.pop(key, ()) if not job.has_returned]
        if left:
            self._stuck[key] = left
        return bool(left)

    def forget(self, key: Hashable) -> None:
        self._running.pop(key, None)

    def _run(self, job: Job, run: Callable[[], object]) -> None:
        try:
            outcome = run()
        except AccelError as error:
            outcome = error
        except Exception as error:  # a connector's fault must not stop the master
            logger.exception("a %s job for %s failed unexpectedly", job.kind, job.subject)
            outcome = LoadError(
                f"internal error ({type(error).__name__}) in {job.kind}; see the master's log"
            )
        job.has_returned = True
        if not job.is_done:  # else it was given up meanwhile
            job.outcome = outcome
            job.is_done = True
        self._on_done()
