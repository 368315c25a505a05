"""Control groups of host agents that were killed, and those of processes that just come and go."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import MIB, Quota
from accel_dask.worker_plugin.enforcement.cgroups import PROBE, CgroupV1Tree, CgroupV2Tree, Tree
from accel_dask.worker_plugin.enforcement.confinement import Confinement, Role
from accel_dask.worker_plugin.enforcement.enforcer import CpuPolicy, Enforcer
from accel_dask.worker_plugin.enforcement.lifetime import LIFE, Lifetime

ACME = TenantId("acme")


class PlainTree(CgroupV1Tree):
    """Version 1 over plain directories: what would be written to the kernel's files is not."""

    def __init__(self, directory: Path, name: str = "w-1") -> None:
        super().__init__(
            {name: directory / name for name in ("cpu", "memory", "pids")}, f"accel-{name}."
        )

    def set_cpu_weight(self, path: str, weight: int) -> None: ...
    def set_cpu_limit(self, path: str, percent: int) -> None: ...
    def set_memory_limit(self, path: str, limit_bytes: int) -> None: ...
    def set_pids_limit(self, path: str, limit: int) -> None: ...


def version_2(directory: Path, name: str) -> Tree:
    (directory / "cgroup.subtree_control").write_text("cpu memory pids")
    return CgroupV2Tree(directory, f"accel-{name}.")


def version_1(directory: Path, name: str) -> Tree:
    return PlainTree(directory, name)


@pytest.mark.parametrize("make", [version_1, version_2])
def test_who_starts_removes_what_killed_agents_left_and_nothing_of_those_that_live(
    make: type, tmp_path: Path
) -> None:
    alive, gone, starts = (make(tmp_path, name) for name in ("w-1", "w-2", "w-3"))
    life, killed = Lifetime(alive), Lifetime(gone)
    life.begin()
    killed.begin()
    for tree in (alive, gone):
        tree.make(ACME)
        tree.make(PROBE)
    assert killed._lock is not None
    os.close(killed._lock)  # as the kernel does when a process is killed
    Lifetime(starts).begin()
    assert set(alive.groups()) == {ACME, PROBE, LIFE}
    assert gone.groups() == (PROBE,)  # its next life may be trying out what it may do
    assert starts.groups() == (LIFE,)
    assert life.end()
    assert alive.groups() == ()


def test_groups_that_somebody_else_made_are_left_alone(tmp_path: Path) -> None:
    other = PlainTree(tmp_path, "old")
    other.make(ACME)  # by an agent that knows nothing of locks
    for name in ("cpu", "memory", "pids"):
        (tmp_path / name / "systemd.slice").mkdir()
    Lifetime(PlainTree(tmp_path)).begin()
    assert other.groups() == (ACME,)
    assert (tmp_path / "cpu" / "systemd.slice").is_dir()


def test_an_agent_waits_until_its_earlier_life_has_been_cleaned_up(tmp_path: Path) -> None:
    tree = PlainTree(tmp_path)
    tree.make(LIFE)
    cleaner = tree.lock(LIFE)
    assert cleaner is not None
    assert tree.lock(LIFE) is None
    life = Lifetime(tree)
    began = threading.Thread(target=life.begin)
    began.start()
    assert tree.remove(LIFE)
    os.close(cleaner)
    began.join(5)
    assert life._lock is not None
    assert tree.lock(LIFE) is None  # of a group that is there again
    assert life.end()


def test_a_lock_on_a_group_that_was_removed_meanwhile_is_none(tmp_path: Path) -> None:
    tree = PlainTree(tmp_path)
    assert tree.lock("acme") is None
    tree.make("acme")
    first = tree.lock("acme")
    assert first is not None
    os.close(first)
    again = tree.lock("acme")
    assert again is not None
    os.close(again)


def test_a_process_whose_bounds_the_kernel_refuses_leaves_no_group(tmp_path: Path) -> None:
    tree = CgroupV1Tree({"cpu": tmp_path / "cpu", "memory": tmp_path / "memory"}, "accel-w.")
    with pytest.raises(FileNotFoundError):
        Confinement(tree, ACME, Role.HOT, "1-x", 100 * MIB)
    assert tree.groups(ACME) == ()


def test_a_tenants_last_group_is_not_removed_while_its_next_process_is_let_in(
    tmp_path: Path,
) -> None:
    looked, made = threading.Event(), threading.Event()

    class SlowTree(PlainTree):
        def set_memory_limit(self, path: str, limit_bytes: int) -> None:
            made.set()
            looked.wait(0.5)

    enforcer = Enforcer(SlowTree(tmp_path), 2.0)
    looked.set()
    enforcer.release(enforcer.confine(ACME, Role.HOT, "1-killed", 100 * MIB))
    looked.clear()
    made.clear()
    found: list[Confinement] = []
    starting = threading.Thread(
        target=lambda: found.append(enforcer.confine(ACME, Role.HOT, "1-next", 100 * MIB))
    )
    starting.start()
    assert made.wait(5)
    enforcer._look(0.1, 1.0, is_contended=False)
    looked.set()
    starting.join(5)
    assert all(Path(file).parent.is_dir() for file in found[0].join_files)
    enforcer.close()


@pytest.mark.parametrize("policy", CpuPolicy)
def test_a_tenants_group_goes_with_its_last_process_whatever_the_policy(
    policy: CpuPolicy, tmp_path: Path
) -> None:
    tree = PlainTree(tmp_path)
    enforcer = Enforcer(tree, 2.0, policy=policy)
    enforcer.release(enforcer.confine(ACME, Role.HOT, "1-x", 100 * MIB))
    enforcer._look(0.1, 1.0, is_contended=False)
    assert tree.groups() == ()
    enforcer.close()


def test_loaders_are_beside_the_tenants_but_for_one_with_a_hard_limit(tmp_path: Path) -> None:
    weights: dict[str, int] = {}

    class WeighedTree(PlainTree):
        def set_cpu_weight(self, path: str, weight: int) -> None:
            weights[path] = weight

    tree = WeighedTree(tmp_path)
    enforcer = Enforcer(tree, 2.0)
    limited = TenantId("limited")
    enforcer.set_quotas({ACME: Quota(), limited: Quota(cpu_limit_percent=50)})
    loader = enforcer.confine(ACME, Role.LOAD, "s1-1", 100 * MIB)
    bound = enforcer.confine(limited, Role.LOAD, "s2-1", 100 * MIB)
    hot = enforcer.confine(ACME, Role.HOT, "1-x", 100 * MIB)
    assert hot.path.startswith(f"{ACME}/")
    assert bound.path.startswith(f"{limited}/")
    among = loader.path.partition("/")[0]
    assert set(tree.groups()) == {ACME, limited, among}
    assert weights[among] * 10 == weights[ACME]
    for confinement in (loader, bound, hot):
        enforcer.release(confinement)
    enforcer._look(0.1, 1.0, is_contended=False)
    assert tree.groups() == ()
    enforcer.close()
