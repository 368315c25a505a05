"""The gateway's parts by themselves: admission, calls, authentication, receipts, figures."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise

import pytest

from accel_dask.errors import DeadlineExceeded, QueryCancelled, ResourceExhausted, Unauthenticated
from accel_dask.model.ids import TenantId
from accel_dask.model.routing import RoutingTable
from accel_dask.model.tenant import Quota, User, hash_token
from flightsql_gateway.admission import Admission
from flightsql_gateway.auth import Authenticator
from flightsql_gateway.calls import Call, CallWatch, ask_pause
from flightsql_gateway.load_figures import LoadFigures
from flightsql_gateway.receipts import Receipt, Receipts, shortened

ACME = TenantId("acme")


@pytest.fixture
def watch() -> Iterator[CallWatch]:
    watch = CallWatch()
    yield watch
    watch.close()


def call(
    watch: CallWatch, seconds: float = 10.0, is_cancelled: Callable[[], bool] = lambda: False
) -> Call:
    return watch.open(is_cancelled, time.monotonic() + seconds, "too slow")


def wait_until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


# Admission


def test_so_many_queries_run_at_once_and_the_next_waits(watch: CallWatch) -> None:
    admission = Admission()
    quota = Quota(concurrency=2, queue_wait_ms=5000)
    slots = [admission.admit(ACME, quota, call(watch)) for _ in range(2)]
    admitted = threading.Event()

    def third() -> None:
        slots.append(admission.admit(ACME, quota, call(watch)))
        admitted.set()

    thread = threading.Thread(target=third)
    thread.start()
    wait_until(lambda: admission.load(ACME) == (2, 1))
    assert not admitted.is_set()
    slots[0].release()
    assert admitted.wait(5)
    thread.join()
    assert admission.load(ACME) == (2, 0)
    assert slots[2].queue_ms > 0
    for slot in slots:
        slot.release()
        slot.release()  # once only
    assert admission.load(ACME) == (0, 0)


def test_those_who_wait_are_served_in_order(watch: CallWatch) -> None:
    admission = Admission()
    quota = Quota(concurrency=1, queue_wait_ms=5000)
    first = admission.admit(ACME, quota, call(watch))
    order: list[int] = []

    def wait(number: int) -> None:
        slot = admission.admit(ACME, quota, call(watch))
        order.append(number)
        slot.release()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        wait_until(lambda n=number: admission.load(ACME) == (1, n + 1))  # type: ignore[misc]
    first.release()
    for thread in threads:
        thread.join(5)
    assert order == [0, 1, 2, 3, 4]


def test_a_full_queue_refuses_at_once_and_says_when_to_come_back(watch: CallWatch) -> None:
    admission = Admission()
    quota = Quota(concurrency=1, queue_length=0)
    admission.admit(ACME, quota, call(watch))
    with pytest.raises(ResourceExhausted, match=r"acme may run 1 queries.*retry after 1000 ms"):
        admission.admit(ACME, quota, call(watch))
    assert admission.load(ACME) == (1, 0)


def test_a_wait_is_bounded(watch: CallWatch) -> None:
    admission = Admission()
    quota = Quota(concurrency=1, queue_wait_ms=30)
    admission.admit(ACME, quota, call(watch))
    with pytest.raises(ResourceExhausted, match="30 ms"):
        admission.admit(ACME, quota, call(watch))
    assert admission.load(ACME) == (1, 0)


def test_one_tenants_queue_is_no_other_tenants(watch: CallWatch) -> None:
    admission = Admission()
    quota = Quota(concurrency=1, queue_length=0)
    admission.admit(ACME, quota, call(watch))
    admission.admit(TenantId("rival"), quota, call(watch))


def test_a_client_that_leaves_the_queue_gives_up_its_turn(watch: CallWatch) -> None:
    admission = Admission()
    quota = Quota(concurrency=1, queue_wait_ms=5000)
    slot = admission.admit(ACME, quota, call(watch))
    gone = threading.Event()
    gone.set()
    with pytest.raises(QueryCancelled):
        admission.admit(ACME, quota, call(watch, is_cancelled=gone.is_set))
    assert admission.load(ACME) == (1, 0)
    slot.release()
    assert admission.load(ACME) == (0, 0)


def test_places_are_not_lost_in_a_race_of_leaving_and_releasing(watch: CallWatch) -> None:
    admission = Admission()
    quota = Quota(concurrency=2, queue_wait_ms=3, queue_length=100)

    def run() -> None:
        for _ in range(100):
            try:
                slot = admission.admit(ACME, quota, call(watch))
            except ResourceExhausted:
                continue
            slot.release()

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert admission.load(ACME) == (0, 0)


# Calls


def test_the_end_of_a_call_runs_its_action_once(watch: CallWatch) -> None:
    gone = threading.Event()
    ended: list[int] = []
    watched = call(watch, is_cancelled=gone.is_set)
    watched.on_end(lambda: ended.append(1))
    gone.set()
    wait_until(lambda: ended == [1])
    with pytest.raises(QueryCancelled):
        watched.check()
    watched.close()
    assert ended == [1]


def test_a_deadline_ends_a_call(watch: CallWatch) -> None:
    ended = threading.Event()
    watched = call(watch, seconds=0.02)
    watched.on_end(ended.set)
    assert ended.wait(5)
    with pytest.raises(DeadlineExceeded, match="too slow"):
        watched.remaining()


def test_a_closed_call_is_never_looked_at_again(watch: CallWatch) -> None:
    looks: list[float] = []

    def look() -> bool:
        looks.append(time.monotonic())
        return False

    watched = call(watch, is_cancelled=look)
    wait_until(lambda: len(looks) > 2)
    watched.close()
    count = len(looks)
    other = threading.Event()
    another = call(watch, seconds=0.05)
    another.on_end(other.set)
    assert other.wait(5)
    assert len(looks) == count


def test_clients_of_calls_that_last_are_asked_after_less_often(watch: CallWatch) -> None:
    looks: list[float] = []
    started = time.monotonic()

    def look() -> bool:
        looks.append(time.monotonic() - started)
        return False

    ended = threading.Event()
    call(watch, seconds=0.7, is_cancelled=look).on_end(ended.set)
    assert ended.wait(5)
    assert max(looks[0], *(after - before for before, after in pairwise(looks))) < 0.5
    assert len(looks) < 35  # 70 without a pause
    assert ask_pause(0.0) == 0.01
    assert ask_pause(60.0) == 0.05  # a long query's CPU is free soon after its client has gone


def test_an_action_that_fails_does_not_stop_the_watching(watch: CallWatch) -> None:
    def fail() -> None:
        raise RuntimeError("broken")

    call(watch, seconds=0.01).on_end(fail)
    ended = threading.Event()
    call(watch, seconds=0.05).on_end(ended.set)
    assert ended.wait(5)


# Authentication


class Routing:
    """As much of a routing cache as authentication uses."""

    def __init__(self, *users: User) -> None:
        self.key = b"k" * 32
        self.users = users

    def current(self) -> RoutingTable:
        return RoutingTable(1, {}, {}, {user.name: user for user in self.users}, self.key)

    def ticket_key(self) -> bytes:
        return self.key


ANN = User(name="ann", tenant=ACME, token_sha256=hash_token("right"))


def basic(name: str, token: str, padding: bool = True) -> str:
    value = base64.b64encode(f"{name}:{token}".encode()).decode()
    return "Basic " + (value if padding else value.rstrip("="))


def test_a_token_is_exchanged_for_a_bearer_token_that_is_accepted() -> None:
    auth = Authenticator(Routing(ANN), 3600)  # type: ignore[arg-type]
    for padding in (True, False):
        admitted = auth.authenticate(basic("ann", "right", padding))
        assert admitted.identity.tenant == "acme"
        assert admitted.bearer is not None
        again = auth.authenticate(admitted.bearer)
        assert again.identity == admitted.identity
        assert again.bearer is None


@pytest.mark.parametrize(
    "header",
    [
        basic("ann", "wrong"),
        basic("ann", ""),
        basic("bob", "right"),
        basic("", ""),
        "Basic !!!",
        "Basic",
        "Bearer",
        "Bearer None",
        "Bearer AAAA",
        "Digest x",
        "right",
        "Basic " + "A" * 100_000,
        "Bearer ünïcode",
    ],
)
def test_everything_else_is_refused_in_the_same_words(header: str) -> None:
    auth = Authenticator(Routing(ANN), 3600)  # type: ignore[arg-type]
    with pytest.raises(Unauthenticated) as refused:
        auth.authenticate(header)
    assert str(refused.value) == "user name and token do not match"


def test_no_header_is_refused() -> None:
    with pytest.raises(Unauthenticated):
        Authenticator(Routing(ANN), 3600).authenticate(None)  # type: ignore[arg-type]


def test_a_new_token_voids_bearer_tokens_of_the_old_one() -> None:
    routing = Routing(ANN)
    auth = Authenticator(routing, 3600)  # type: ignore[arg-type]
    bearer = auth.authenticate(basic("ann", "right")).bearer
    routing.users = (User(name="ann", tenant=ACME, token_sha256=hash_token("new")),)
    with pytest.raises(Unauthenticated):
        auth.authenticate(bearer)
    routing.users = ()
    with pytest.raises(Unauthenticated):
        auth.authenticate(bearer)


def test_a_bearer_token_expires() -> None:
    auth = Authenticator(Routing(ANN), -1)  # type: ignore[arg-type]
    bearer = auth.authenticate(basic("ann", "right")).bearer
    with pytest.raises(Unauthenticated, match="expired"):
        auth.authenticate(bearer)


def test_a_token_in_use_is_renewed_before_it_expires() -> None:
    routing = Routing(ANN)
    bearer = Authenticator(routing, 10).authenticate(basic("ann", "right")).bearer  # type: ignore[arg-type]
    renewed = Authenticator(routing, 3600).authenticate(bearer).bearer  # type: ignore[arg-type]
    assert renewed is not None
    assert renewed != bearer


def test_another_clusters_bearer_token_is_refused() -> None:
    ours, theirs = Routing(ANN), Routing(ANN)
    theirs.key = b"x" * 32
    bearer = Authenticator(theirs, 3600).authenticate(basic("ann", "right")).bearer  # type: ignore[arg-type]
    with pytest.raises(Unauthenticated):
        Authenticator(ours, 3600).authenticate(bearer)  # type: ignore[arg-type]


# Receipts and figures


def receipt(number: int) -> Receipt:
    return Receipt(query_id=str(number), tenant="acme", user="ann", sql="", outcome="OK", reason="")


def test_the_newest_receipts_of_a_tenant_are_kept() -> None:
    receipts = Receipts()
    for number in range(1200):
        receipts.add(ACME, receipt(number))
    assert [r.query_id for r in receipts.last(ACME, 2)] == ["1199", "1198"]
    assert len(receipts.last(ACME, 5000)) == 1000
    assert receipts.last(TenantId("rival"), 5) == ()
    assert receipts.last(ACME, -1) == ()


def test_a_long_statement_is_shortened_in_its_receipt() -> None:
    assert len(shortened("x" * 10_000)) == 2000
    assert shortened("select 1") == "select 1"


def test_load_figures_count_and_measure() -> None:
    figures = LoadFigures()
    assert figures.summary().p99_ms == 0
    for number in range(100):
        figures.add("acme", float(number), failed=number == 0)
    summary = figures.summary()
    assert (summary.queries, summary.failed) == (100, 1)
    assert (summary.p50_ms, summary.p99_ms) == (50.0, 99.0)
    assert summary.per_tenant[0][0] == "acme"
