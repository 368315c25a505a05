"""How those who wait for a publish request learn of its end, whatever comes between."""

from __future__ import annotations

from dataclasses import replace

import pytest
from simulated_world import World, make_dataset, shard_task

from accel_dask.admin import Requested, publish_result
from accel_dask.errors import LoadError, SourceUnavailable
from accel_dask.model.ids import Revision
from accel_dask.scheduler_plugin.publish import open_epoch, refuse

FLIGHTS = make_dataset()


def requested(world: World, nonce: str) -> Requested:
    world.request(FLIGHTS, nonce)
    return Requested(FLIGHTS.dataset_id, nonce, Revision(world.view.revision))


def serving_world() -> World:
    world = World().begin()
    world.declare(FLIGHTS)
    world.publish(FLIGHTS, ["a"], sequence=1)
    world.settle()
    return world


def test_a_replaced_request_is_not_answered_by_the_epoch_from_before_it() -> None:
    world = serving_world()
    first = requested(world, "first")
    second = requested(world, "second")
    assert publish_result(world.view, first) is None, "the later request is still to be answered"
    world.publish(FLIGHTS, ["b"], sequence=2)  # replaces it once more
    assert publish_result(world.view, first) is None
    world.settle()
    for waiting in (first, second):
        result = publish_result(world.view, waiting)
        assert result is not None
        assert (result.epoch.number, result.is_new) == (2, True)


def test_a_replaced_request_fails_with_the_one_that_took_its_place() -> None:
    world = serving_world()
    first = requested(world, "first")
    later = world.request(FLIGHTS, "second")
    world.apply(refuse(world.round(), later, SourceUnavailable("the catalog is away")))
    result = publish_result(world.view, first)
    assert result is not None
    assert result.epoch.state.value == "FAILED"
    assert "the catalog is away" in result.epoch.reason


def test_a_first_publish_that_was_replaced_ends_when_the_later_one_fails() -> None:
    world = World().begin()
    world.declare(FLIGHTS)
    first = requested(world, "first")
    later = world.request(FLIGHTS, "second")
    world.apply(refuse(world.round(), later, SourceUnavailable("away")))
    assert publish_result(world.view, first) is not None


def test_an_old_failure_does_not_answer_a_request_with_nothing_new() -> None:
    world = serving_world()
    failing = world.request(FLIGHTS, "failing")
    world.apply(refuse(world.round(), failing, SourceUnavailable("away")))
    again = requested(world, "again")
    world.publish(FLIGHTS, ["a"], sequence=1)
    result = publish_result(world.view, again)
    assert result is not None
    assert (result.epoch.number, result.is_new) == (1, False)


def test_a_wait_for_a_dataset_that_was_deleted_ends() -> None:
    world = World().begin()
    world.declare(FLIGHTS)
    waiting = requested(world, "n")
    world.write(delete=[FLIGHTS.path])
    world.settle()
    with pytest.raises(LoadError, match=r"acme\.flights was deleted while it was being published"):
        publish_result(world.view, waiting)


def test_a_dataset_declared_over_another_source_is_no_older_whatever_its_sequence() -> None:
    """Sequences order one table's history only."""
    world = serving_world()
    world.request(FLIGHTS, "moved")
    older = world.planned(FLIGHTS, [shard_task("b")], 0)
    with pytest.raises(LoadError, match="older"):
        open_epoch(world.round(), older)
    elsewhere = replace(older.snapshot.snapshot_id, table_uuid="another table")
    moved = replace(older, snapshot=replace(older.snapshot, snapshot_id=elsewhere))
    world.apply(open_epoch(world.round(), moved))
    assert world.states(FLIGHTS) == [(1, "READY"), (2, "LOADING")]
