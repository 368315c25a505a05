"""Places in a gateway: whom the gateway refuses at once, whom it lets wait, and who comes next."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from accel_dask.errors import QueryCancelled, ResourceExhausted, Unauthenticated
from accel_dask.flight_errors import from_flight, to_flight
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import Quota
from flightsql_gateway.admission import Admission, Slot
from flightsql_gateway.calls import Call, CallWatch
from flightsql_gateway.fair_queue import FairQueue, ShedReason

ACME, RIVAL = TenantId("acme"), TenantId("rival")
PATIENT = Quota(concurrency=1, queue_length=1000, queue_wait_ms=10_000)


@pytest.fixture
def watch() -> Iterator[CallWatch]:
    watch = CallWatch()
    yield watch
    watch.close()


def open_call(
    watch: CallWatch, seconds: float = 10.0, is_cancelled: Callable[[], bool] = lambda: False
) -> Call:
    return watch.open(is_cancelled, time.monotonic() + seconds, "too slow")


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Waiting:
    """A query that is admitted on a thread of its own."""

    def __init__(self, admission: Admission, tenant: TenantId, quota: Quota, call: Call) -> None:
        self.slot: Slot | None = None
        self.error: Exception | None = None
        self.ended_at = 0.0
        before = admission.load(tenant)
        self._thread = threading.Thread(
            target=self._run, args=(admission, tenant, quota, call), daemon=True
        )
        self._thread.start()
        until(lambda: admission.load(tenant) != before or not self._thread.is_alive())

    def _run(self, admission: Admission, tenant: TenantId, quota: Quota, call: Call) -> None:
        try:
            self.slot = admission.admit(tenant, quota, call)
        except Exception as error:  # noqa: BLE001  the test looks at it
            self.error = error
        self.ended_at = time.monotonic()

    def end(self) -> Waiting:
        self._thread.join(5)
        assert not self._thread.is_alive()
        return self


def measured(queue: FairQueue[str], seconds: float, count: int = 10) -> None:
    """Teach `queue` how long acme's queries hold their places."""
    line = queue.line(ACME, PATIENT)
    for _ in range(count):
        predicted = queue.enter(line)
        assert predicted is not None
        queue.end(line, predicted, seconds)


def taught(admission: Admission, seconds: float) -> Admission:
    measured(admission._queue, seconds)  # type: ignore[arg-type]
    return admission


def test_a_wait_that_would_be_too_long_is_refused_at_once_and_told_when_to_come_back(
    watch: CallWatch,
) -> None:
    admission = taught(Admission(), 4.0)
    admission.admit(ACME, PATIENT, open_call(watch))
    Waiting(admission, ACME, PATIENT, open_call(watch))
    started = time.monotonic()
    with pytest.raises(ResourceExhausted, match=r"would wait about 8000 ms, beyond the") as told:
        admission.admit(ACME, PATIENT, open_call(watch, 7))
    assert time.monotonic() - started < 1
    assert told.value.retry_after_ms == 8000
    assert admission.shed() == {(ACME, ShedReason.PREDICTED_WAIT): 1}
    assert Waiting(admission, ACME, PATIENT, open_call(watch, 9)).error is None


def test_a_tenant_whose_queries_were_slow_is_let_in_when_nothing_runs(watch: CallWatch) -> None:
    admission = taught(Admission(), 1000.0)
    assert admission.admit(ACME, PATIENT, open_call(watch, 1)).queue_ms == 0


def test_a_deadline_that_passes_in_the_queue_is_told_as_overload(watch: CallWatch) -> None:
    admission = Admission()
    admission.admit(ACME, PATIENT, open_call(watch))
    with pytest.raises(ResourceExhausted, match="all the time that the query has"):
        admission.admit(ACME, PATIENT, open_call(watch, 0.03))
    assert admission.load(ACME) == (1, 0)
    assert admission.shed() == {(ACME, ShedReason.WAITED_TOO_LONG): 1}


def test_whoever_goes_away_leaves_the_queue_at_once(watch: CallWatch) -> None:
    admission = Admission()
    admission.admit(ACME, PATIENT, open_call(watch))
    gone = threading.Event()
    waiting = Waiting(admission, ACME, PATIENT, open_call(watch, is_cancelled=gone.is_set))
    gone_at = time.monotonic()
    gone.set()
    assert isinstance(waiting.end().error, QueryCancelled)
    assert waiting.ended_at - gone_at < 1
    assert admission.load(ACME) == (1, 0)
    assert not admission.shed()


def test_the_queue_of_a_deleted_tenant_is_told_and_no_other(watch: CallWatch) -> None:
    admission = Admission()
    places = [admission.admit(tenant, PATIENT, open_call(watch)) for tenant in (ACME, RIVAL)]
    theirs = Waiting(admission, RIVAL, PATIENT, open_call(watch))
    ours = Waiting(admission, ACME, PATIENT, open_call(watch))
    admission.keep_only([ACME])
    error = theirs.end().error
    assert isinstance(error, Unauthenticated)
    assert "rival no longer exists" in str(error)
    for place in places:
        place.release()
    assert ours.end().slot is not None
    assert admission.load(ACME) == (1, 0)
    assert admission.load(RIVAL) == (0, 0)


def test_a_share_that_grows_lets_waiting_queries_in(watch: CallWatch) -> None:
    share = 1
    admission = Admission(limit=lambda _, __: share)
    admission.admit(ACME, PATIENT, open_call(watch))
    waiting = Waiting(admission, ACME, PATIENT, open_call(watch))
    share = 2
    admission.limits_changed()
    assert waiting.end().slot is not None


def test_a_share_that_grows_by_the_clock_alone_is_noticed(watch: CallWatch) -> None:
    share = 0
    admission = Admission(limit=lambda _, __: share)
    waiting = Waiting(admission, ACME, PATIENT, open_call(watch))
    share = 1
    assert waiting.end().slot is not None


def test_a_share_that_shrinks_lets_nobody_in_until_enough_have_ended(watch: CallWatch) -> None:
    share = 3
    admission = Admission(limit=lambda _, __: share)
    quota = Quota(queue_length=1000, queue_wait_ms=10_000)
    places = [admission.admit(ACME, quota, open_call(watch)) for _ in range(3)]
    waiting = Waiting(admission, ACME, quota, open_call(watch))
    share = 1
    for place in places[:2]:
        place.release()
        assert admission.load(ACME)[1] == 1
    places[2].release()
    assert waiting.end().slot is not None


def test_the_places_of_the_gateway_bound_all_tenants_together(watch: CallWatch) -> None:
    admission = Admission(places=1)
    place = admission.admit(ACME, PATIENT, open_call(watch))
    waiting = Waiting(admission, RIVAL, PATIENT, open_call(watch))
    assert admission.load(RIVAL) == (0, 1)
    with pytest.raises(ResourceExhausted, match="all 1 places of this gateway are taken"):
        admission.admit(RIVAL, Quota(queue_length=1), open_call(watch))
    place.release()
    assert waiting.end().slot is not None
    (acme, rival) = admission.loads()
    assert (acme.share, acme.in_use, acme.queued, acme.shed) == (1, 0, 0, 0)
    assert (rival.share, rival.in_use, rival.queued, rival.shed) == (4, 1, 0, 1)


def test_when_to_come_back_survives_the_wire() -> None:
    error = ResourceExhausted("full; retry after 1234 ms")
    assert error.code == "RESOURCE_EXHAUSTED"
    again = from_flight(to_flight(error))
    assert isinstance(again, ResourceExhausted)
    assert again.retry_after_ms == 1234
    assert ResourceExhausted("full").retry_after_ms == 0
