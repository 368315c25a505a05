"""What the notebook client makes of answers of a real OLAP engine behind a real gateway."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gateway_world import flights
from olap_world import EngineWorld, Worlds, start_world, started
from test_gateway_fallback import FallbackWorld, fallback_to, no_epoch, small, with_snapshot

from accel_dask.client import Session
from accel_dask.errors import FallbackForbidden, ScanLimit
from accel_dask.model.fallback import FallbackPolicy


@pytest.fixture(scope="module")
def engine(worlds: Worlds, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EngineWorld]:
    started(worlds, "sail")
    found = start_world("sail", {"flights": flights()}, tmp_path_factory.mktemp("flights"))
    yield found
    found.close()


@pytest.fixture
def world(engine: EngineWorld) -> Iterator[FallbackWorld]:
    made = FallbackWorld()
    made.tenant("acme")
    made.serve("acme", {"flights": (1, [flights()])})
    made.start()
    with_snapshot(made, engine)
    made.declare_fallback(fallback_to(engine, FallbackPolicy.ON_BREACH))
    yield made
    made.close()


def counts(session: Session) -> Any:
    df = session.table("flights")
    return df.groupby("carrier").agg(n=("id", "count"), total=("delay", "sum"))


def test_an_engines_answer_is_the_same_and_says_loudly_whose_it_is(
    world: FallbackWorld, session: Session
) -> None:
    expected = counts(session).compute()
    assert expected.attrs["accel"]["route"] == "hot"
    small(max_scan_rows=10)(world)
    with pytest.warns(UserWarning, match=r"OLAP engine.*snapshot that memory has.*SCAN_LIMIT"):
        found = counts(session).compute()
    assert found.equals(expected)
    told = found.attrs["accel"]
    assert (told["route"], told["fallback"], told["is_pinned"]) == ("olap", "breach", True)
    assert "SCAN_LIMIT" in told["reason"]
    assert session.last_query is not None
    assert session.last_query.line().startswith(
        "from the OLAP engine · breach, of the same snapshot · flights@1"
    )
    assert session.fallbacks == 1


def test_allowed_it_is_quiet_but_still_told(
    world: FallbackWorld, session: Session, recwarn: pytest.WarningsRecorder
) -> None:
    small(max_scan_rows=10)(world)
    session.options.fallback = "allow"  # type: ignore[assignment] - as people write it
    assert counts(session).compute().attrs["accel"]["route"] == "olap"
    assert not [one for one in recwarn if "OLAP" in str(one.message)]
    assert "from the OLAP engine" in counts(session)._repr_html_()


def test_forbidden_the_engine_is_not_even_asked(world: FallbackWorld, session: Session) -> None:
    small(max_scan_rows=10)(world)
    session.options.fallback = "forbid"  # type: ignore[assignment]
    with pytest.raises(FallbackForbidden, match="SCAN_LIMIT"):
        counts(session).compute()
    with pytest.raises(FallbackForbidden):
        list(session.table("flights").to_pandas_batches())
    assert world.source_queries == 0
    assert world.receipt().outcome == "FALLBACK_FORBIDDEN"


def test_a_dataset_that_is_always_the_engines_cannot_be_asked_without_it(
    world: FallbackWorld, session: Session, engine: EngineWorld
) -> None:
    df = counts(session)
    world.declare_fallback(fallback_to(engine, FallbackPolicy.ALWAYS))
    session.options.fallback = "forbid"  # type: ignore[assignment]
    with pytest.raises(FallbackForbidden, match="policy of the dataset"):
        df.compute()
    assert world.source_queries == 0


def test_a_pinned_query_and_a_shard_are_never_the_engines(
    world: FallbackWorld, session: Session
) -> None:
    df = counts(session)
    shards = session._transport.action("accel.shards", {"sql": "SELECT id FROM flights"})["shards"]
    small(max_scan_rows=10)(world)
    with session.snapshot(), pytest.raises(ScanLimit):
        df.compute()
    with pytest.raises(ScanLimit):
        session._transport.query(
            "SELECT id FROM flights", timeout_ms=5000, name="",
            headers={"x-accel-shard": f"flights@1/{shards[0]['shard']}"},
        )  # fmt: skip
    assert world.source_queries == 0


def test_what_memory_never_held_is_told_apart_from_its_snapshot(
    world: FallbackWorld, session: Session, engine: EngineWorld
) -> None:
    df = counts(session)
    spec = fallback_to(engine, FallbackPolicy.ON_MISS)
    unpinned = tuple(pair for pair in spec.options if pair[0] != "time_travel")
    world.declare_fallback(type(spec)(engine=spec.engine, policy=spec.policy, options=unpinned))
    no_epoch(world)
    with pytest.warns(UserWarning, match="read its newest data"):
        found = df.compute()
    assert found.attrs["accel"]["is_pinned"] is False
    assert session.last_query is not None
    assert "miss, of its newest data" in session.last_query.line()


def test_a_notebook_shows_a_box_in_place_of_a_warning(
    world: FallbackWorld, session: Session, monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:  # fmt: skip
    shown: list[str] = []
    display = SimpleNamespace(HTML=lambda text: text, display=shown.append)
    ipython = SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=object()), display=display)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    small(max_scan_rows=10)(world)
    counts(session).compute()
    (box,) = shown
    assert "OLAP engine" in box
    assert "SCAN_LIMIT" in box
    assert not [one for one in recwarn if "OLAP" in str(one.message)]
