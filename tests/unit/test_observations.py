"""What is noted of ended queries comes a moment later, in order, and to everybody."""

from __future__ import annotations

import threading
from functools import partial

import pytest

from accel_dask.model.ids import TenantId
from flightsql_gateway.auth import Identity
from flightsql_gateway.calls import CallWatch
from flightsql_gateway.observations import Observations
from flightsql_gateway.receipts import Receipt, Receipts

ANN = Identity(user="ann", tenant=TenantId("acme"))


def receipt(number: int) -> Receipt:
    return Receipt(query_id=str(number), tenant="acme", user="ann", sql="", outcome="OK", reason="")


def test_observers_are_told_in_the_order_in_which_queries_ended() -> None:
    told: list[str] = []
    observations = Observations((lambda _, found: told.append(found.query_id),))
    for number in range(5):
        observations.add(ANN, partial(receipt, number))
    assert told == []
    observations.settle()
    assert told == ["0", "1", "2", "3", "4"]


def test_an_observer_that_fails_keeps_nothing_from_the_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[str] = []

    def fail(identity: Identity, found: Receipt) -> None:
        raise ValueError(found.query_id)

    observations = Observations((fail, lambda _, found: told.append(found.query_id)))
    observations.add(ANN, partial(receipt, 1))
    observations.add(ANN, partial(receipt, 2))
    observations.settle()
    assert told == ["1", "2"]
    assert "noting query 1 failed" in caplog.text


def test_who_looks_waits_for_whoever_is_telling() -> None:
    receipts = Receipts(lambda: observations.settle())  # noqa: PLW0108 - made below
    has_begun, may_go_on = threading.Event(), threading.Event()

    def keep(identity: Identity, found: Receipt) -> None:
        has_begun.set()
        assert may_go_on.wait(10)
        receipts.add(identity.tenant, found)

    observations = Observations((keep,))
    observations.add(ANN, partial(receipt, 1))
    telling = threading.Thread(target=observations.settle)
    telling.start()
    assert has_begun.wait(10)
    found: list[tuple[Receipt, ...]] = []
    looking = threading.Thread(target=lambda: found.append(receipts.last(ANN.tenant, 10)))
    looking.start()
    may_go_on.set()
    looking.join(10)
    telling.join(10)
    assert [one.query_id for one in found[0]] == ["1"]


def test_what_nobody_asks_for_is_noted_all_the_same() -> None:
    told = threading.Event()
    observations = Observations((lambda *_: told.set(),))
    observations.add(ANN, partial(receipt, 1))
    watch = CallWatch(observations.settle)
    try:
        assert told.wait(10)
    finally:
        watch.close()


def test_a_great_many_are_noted_at_once() -> None:
    told: list[str] = []
    observations = Observations((lambda _, found: told.append(found.query_id),))
    for number in range(1001):
        observations.add(ANN, partial(receipt, number))
    assert len(told) == 1001
