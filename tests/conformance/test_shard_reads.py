"""Reading shard by shard through a real gateway, beside executors that misbehave."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
from gateway_world import World, flights

from accel_dask.client import Session, dask_reads
from accel_dask.codec import decode
from accel_dask.errors import EpochRetired, ExecutorUnavailable, InvalidQuery, StaleEpoch
from accel_dask.model.ticket import Ticket, verify


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    made.start()
    made.tenant("acme")
    made.serve("acme", {"flights": (1, [flights(1, 10), flights(1, 20), flights(1, 30)])})
    yield made
    made.close()


def shards(session: Session, sql: str = "SELECT id FROM flights") -> list[str]:
    told = session._transport.action("accel.shards", {"sql": sql})
    assert (told["tenant"], told["dataset"], told["epoch"]) == ("acme", "flights", 1)
    return [f"flights@1/{one['shard']}" for one in told["shards"]]


def count(session: Session, shard: str, sql: str = "SELECT count(*) AS n FROM flights") -> int:
    answer = session._transport.query(
        sql, timeout_ms=5000, headers={"x-accel-shard": shard}, name=""
    )
    return int(next(iter(answer.batches()))["n"][0].as_py())


def test_a_call_narrowed_to_a_shard_reads_it_and_nothing_else(session: Session) -> None:
    found = shards(session)
    assert [count(session, one) for one in found] == [10, 20, 30]
    plain = session.table("flights")
    assert len(plain) == 60, "a plan of one shard is never kept for the whole"
    assert [count(session, one) for one in found] == [10, 20, 30]


def test_what_names_no_shard_is_refused(session: Session) -> None:
    (one, *_) = shards(session)
    with pytest.raises(InvalidQuery, match="no dataset@epoch/shard"):
        count(session, "flights")
    with pytest.raises(InvalidQuery, match="has no shard"):
        count(session, "flights@1/0")
    with pytest.raises(EpochRetired, match="serves epoch 1"):
        count(session, one.replace("@1", "@7"))
    with pytest.raises(InvalidQuery, match="does not read"):
        count(session, one, "SELECT 1 AS n")
    with pytest.raises(InvalidQuery, match="over one dataset"):
        session._transport.action("accel.shards", {"sql": "SELECT 1"})


def test_a_ticket_is_the_users_own_and_bounded_as_a_query_is(
    world: World, session: Session
) -> None:
    (_, one, _) = shards(session)
    told = session._transport.action(
        "accel.ticket", {"sql": "SELECT id FROM flights", "shard": one}
    )
    assert [source["worker"] for source in told["executors"]] == ["w1"]
    ticket = decode(verify(base64.b64decode(told["ticket"]), world.key), Ticket)
    assert ticket.tenant == "acme"
    assert [len(token.shards) for token in ticket.tokens] == [1]
    assert ticket.timeout_ms == 10_000
    assert ticket.max_result_rows == 1_000_000
    receipt = session._transport.action("accel.receipts", {"last": 1})[0]
    assert "handed out as a ticket" in receipt["reason"]


@pytest.mark.parametrize("error", [StaleEpoch("gone"), ExecutorUnavailable("ended")])
def test_a_ticket_that_its_executor_does_not_take_becomes_a_read_through_the_gateway(
    world: World, session: Session, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(dask_reads, "_this_host", lambda: "w1")
    executor = world.executors[0]
    asked: list[Ticket] = []

    def refuse_the_first(order: Ticket) -> None:
        asked.append(order)
        if len(asked) == 1:
            raise error

    ddf = session.table("flights")[["id"]].to_dask_dataframe()
    executor.before = refuse_the_first
    assert len(ddf.partitions[1].compute(scheduler="sync")) == 20
    assert len(asked) == 2


def test_a_stream_that_breaks_is_read_anew_and_never_continued(
    world: World, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.serve("acme", {"flights": (2, [flights(2, 5000)])}, generation=2)
    monkeypatch.setattr(dask_reads, "_this_host", lambda: "w1")
    executor = world.executors[1]
    seen: list[int] = []

    def break_once(index: int) -> None:
        seen.append(index)
        if seen == [0, 1, 2]:
            raise RuntimeError("the executor dies")

    ddf = session.table("flights")[["id"]].to_dask_dataframe()
    executor.between = break_once
    found = ddf.compute(scheduler="sync")
    assert found["id"].tolist() == list(range(5000))
    assert seen[:5] == [0, 1, 2, 0, 1]
