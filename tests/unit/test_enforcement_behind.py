"""Loaders and the Dask worker behind the queries of all tenants."""

from __future__ import annotations

import pytest

from accel_dask.worker_plugin.enforcement import behind
from accel_dask.worker_plugin.enforcement.behind import LEAST_CORES, WEIGHT, BehindQueries
from accel_dask.worker_plugin.enforcement.cgroups import CgroupV1Tree
from accel_dask.worker_plugin.enforcement.group_cpu import GroupCpu

TICK = 0.1


class KernelTree(CgroupV1Tree):
    """Two loaders in a group; what it was told."""

    def __init__(self) -> None:
        super().__init__({})
        self.is_idle: dict[str, bool] = {}
        self.weights: dict[str, int] = {}

    def groups(self, path: str = "") -> tuple[str, ...]:
        return ("one", "two")

    def processes(self, path: str) -> frozenset[int]:
        return frozenset({"loaders/one": {1}, "loaders/two": {2}}.get(path, set()))

    def set_cpu_idle(self, path: str, is_idle: bool) -> None:
        self.is_idle[path] = is_idle

    def set_cpu_weight(self, path: str, weight: int) -> None:
        self.weights[path] = weight

    def set_cpu_limit(self, path: str, percent: int) -> None: ...


def site(
    monkeypatch: pytest.MonkeyPatch, used: dict[int, float], *, gives_way: bool = True
) -> tuple[KernelTree, BehindQueries]:
    """`used`: seconds of CPU of each process."""
    monkeypatch.setattr(behind, "cpu_seconds", used.get)
    tree = KernelTree()
    return tree, BehindQueries(tree, GroupCpu(tree), gives_way=gives_way)


@pytest.mark.parametrize("gives_way", [True, False])
def test_a_group_gives_way_while_it_gets_on_and_has_its_weight_when_it_starves(
    gives_way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = {1: 5.0, 2: 7.0}
    tree, groups = site(monkeypatch, used, gives_way=gives_way)
    groups.begin("loaders", is_looked_at=False)
    assert (tree.weights, tree.is_idle) == ({"loaders": WEIGHT}, {"loaders": False})
    groups.look(TICK)  # what they had used before is no sign of anything
    assert not tree.is_idle["loaders"]
    used[1] += 2 * LEAST_CORES * TICK
    groups.look(TICK)
    assert tree.is_idle["loaders"] == gives_way
    tree.weights.clear()
    used[2] += LEAST_CORES * TICK / 2
    groups.look(TICK)
    assert not tree.is_idle["loaders"]
    assert tree.weights == ({"loaders": WEIGHT} if gives_way else {})


def test_a_group_that_is_looked_at_gives_way_from_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = {1: 0.0, 2: 0.0}
    tree, groups = site(monkeypatch, used)
    groups.begin("loaders", is_looked_at=True)
    assert tree.is_idle["loaders"]
    groups.look(TICK)
    assert not tree.is_idle["loaders"], "it got nowhere"
    groups.begin("loaders", is_looked_at=True)
    assert tree.is_idle["loaders"]


def test_what_a_new_process_used_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {1: 0.0, 2: 0.0, 3: LEAST_CORES * TICK}
    tree, groups = site(monkeypatch, used)
    groups.begin("loaders", is_looked_at=False)
    monkeypatch.setattr(tree, "processes", lambda path: {3} if path == "loaders/one" else set())
    groups.look(TICK)
    assert tree.is_idle["loaders"]


def test_a_group_competes_while_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    used = {1: 0.0, 2: 0.0}
    tree, groups = site(monkeypatch, used)
    groups.begin("loaders", is_looked_at=False)
    groups.look(TICK)
    used[1] = 1.0
    groups.look(TICK)
    assert tree.is_idle["loaders"]
    groups.compete()
    assert not tree.is_idle["loaders"]
    groups.end("loaders")
    tree.is_idle.clear()
    groups.look(TICK)
    assert tree.is_idle == {}
