"""Snapshots of a session: several threads, one in another, and answers that are kept."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pytest
from client_world import LocalAnswer, LocalTransport

import accel_dask.client.pandas as pd
from accel_dask.client.options import Options
from accel_dask.client.provenance import Provenance
from accel_dask.client.session import Session
from accel_dask.client.snapshots import AnswerCache, Snapshots
from accel_dask.errors import EpochRetired


class Epochs(LocalTransport):
    """`flights` has as many rows as its epoch's number."""

    def __init__(self) -> None:
        super().__init__()
        self.pins: list[str] = []
        self.publish(1)

    def publish(self, epoch: int) -> None:
        self.epoch = epoch
        self.put("flights", pa.table({"id": list(range(epoch))}))

    def action(self, name: str, body: Mapping[str, Any]) -> Any:
        return [{"dataset": "flights", "epoch": self.epoch}]

    def query(
        self, sql: str, *, timeout_ms: int, headers: Mapping[str, str], name: str
    ) -> LocalAnswer:
        self.pins.append(headers.get("x-accel-epochs", ""))
        answer = super().query(sql, timeout_ms=timeout_ms, headers=headers, name=name)
        used = [{"dataset": "flights", "epoch": self.epoch}]
        answer.receipt = lambda: {"route": "hot", "datasets": used}  # type: ignore[method-assign]
        return answer


@pytest.fixture
def transport() -> Epochs:
    return Epochs()


@pytest.fixture
def session(transport: Epochs) -> Session:
    return Session(transport, Options())


def test_a_count_and_a_text_in_a_newer_snapshot_are_not_those_of_the_one_around_it(
    transport: Epochs, session: Session
) -> None:
    df = session.table("flights")
    text = session.sql("SELECT count(*) AS n FROM flights")
    with session.snapshot():
        assert (len(df), text.compute()["n"][0]) == (1, 1)
        transport.publish(2)
        with session.snapshot():
            assert (len(df), text.compute()["n"][0]) == (2, 2)
        assert (len(df), text.compute()["n"][0]) == (1, 1)


def test_snapshots_of_two_threads_do_not_end_each_other(
    transport: Epochs, session: Session
) -> None:
    df = session.table("flights")
    first_open, second_open, first_closed = (threading.Event() for _ in range(3))

    def first() -> None:
        with session.snapshot():
            first_open.set()
            assert second_open.wait(20)
            df.id.max()
        first_closed.set()

    other = threading.Thread(target=first)
    other.start()
    assert first_open.wait(20)
    transport.publish(2)
    with session.snapshot():
        second_open.set()
        assert first_closed.wait(20)
        df.id.min()
    other.join(20)
    df.id.sum()
    assert transport.pins == ["flights@1", "flights@2", ""]


def test_a_thread_without_a_snapshot_of_its_own_is_in_the_one_that_is_open(
    transport: Epochs, session: Session
) -> None:
    df = session.table("flights")
    with session.snapshot():
        worker = threading.Thread(target=df.id.max)
        worker.start()
        worker.join(20)
    assert transport.pins == ["flights@1"]


def test_a_snapshot_travels_with_its_session_and_what_it_keeps_stays() -> None:
    snapshots, cache = Snapshots(), AnswerCache()
    cache.put("q", {"a": 1}, pa.table({"x": [1]}), Provenance(sql="q"), 10**6)
    with snapshots.opened({"a": 1}):
        there = pickle.loads(pickle.dumps((snapshots, cache)))
    assert there[0].current() == {"a": 1}
    assert there[1].get("q", {"a": 1}) is None
    assert pickle.loads(pickle.dumps(snapshots)).current() is None


def test_answers_are_kept_up_to_a_size_however_often_the_same_is_put() -> None:
    cache, table = AnswerCache(), pa.table({"x": pa.array(range(1000), pa.int64())})
    for _ in range(5):
        cache.put("q", {"a": 1}, table, Provenance(sql="q"), 2 * table.nbytes)
    cache.put("r", {"a": 1}, table, Provenance(sql="r"), 2 * table.nbytes)
    assert cache.get("q", {"a": 1}) is not None
    cache.put("s", {"a": 1}, table, Provenance(sql="s"), 2 * table.nbytes)
    assert cache.get("q", {"a": 1}) is not None
    assert cache.get("r", {"a": 1}) is None


def test_bins_of_values_that_were_asked_first_are_of_the_same_epoch(
    transport: Epochs, session: Session
) -> None:
    df = session.table("flights")
    transport.publish(4)
    bins = pd.cut(df.id, 2, labels=["low", "high"])
    quarters = pd.qcut(df.id, 4, labels=False)
    fixed = pd.cut(df.id, [0, 2, 9], labels=["low", "high"])
    counted = df.assign(bin=bins).groupby("bin").size()
    transport.publish(9)
    for frame, pinned in (
        (bins, "flights@4"), (quarters, "flights@4"), (counted, "flights@4"), (fixed, ""),
        (df.assign(bin=bins)[["id"]], ""),
    ):  # fmt: skip
        frame.compute()
        assert transport.pins[-1] == pinned
    later = pd.cut(df.id, 2, labels=["low", "high"])
    with pytest.raises(EpochRetired, match="epochs 4 and 9"):
        df[bins == later].compute()
    with session.snapshot(), pytest.raises(EpochRetired, match=r"epoch 4 .* reads 9"):
        bins.compute()
