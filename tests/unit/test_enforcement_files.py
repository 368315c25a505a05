"""Control group files as the kernel writes them, read from and written to a tree of ours."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from enforcement_trees import FakeProc, make_v1, make_v2

from accel_dask.errors import ConfigError
from accel_dask.model.tenant import MIB, Quota
from accel_dask.niceness import LOWEST, nice_of
from accel_dask.worker_plugin.enforcement import find
from accel_dask.worker_plugin.enforcement.budgets import (
    MIN_EXECUTOR_BYTES,
    engine_quota,
    executor_limit_bytes,
)
from accel_dask.worker_plugin.enforcement.cgroups import CgroupV1Tree, CgroupV2Tree
from accel_dask.worker_plugin.enforcement.enforcer import make_enforcer
from accel_dask.worker_plugin.enforcement.kernel_files import (
    cpu_seconds,
    idle_seconds,
    parse_cgroup_mounts,
    parse_flat,
    parse_own_groups,
    parse_pressure_us,
    private_bytes,
    waited_us,
)

MOUNTS = """\
25 1 0:23 / /proc rw - proc proc rw
31 28 0:27 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:9 - cgroup cgroup rw,cpu,cpuacct
32 28 0:28 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory
33 28 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
34 28 0:30 / /mnt/with\\040space rw - cgroup2 cgroup2 rw
35 28 0:31 / /mnt/covered rw - cgroup cgroup rw,pids
36 35 0:32 / /mnt/covered rw - tmpfs tmpfs rw
"""


def test_mounts_are_read_with_their_version_root_and_controllers() -> None:
    mounts = {m.mount_point: m for m in parse_cgroup_mounts(MOUNTS)}
    assert {"cpu", "cpuacct"} <= mounts["/sys/fs/cgroup/cpu,cpuacct"].options
    assert mounts["/sys/fs/cgroup/memory"].root == "/docker/abc"
    assert mounts["/sys/fs/cgroup/unified"].version == 2
    assert "/mnt/with space" in mounts
    assert "/mnt/covered" not in mounts


def test_own_groups_are_read_by_controller() -> None:
    text = "4:memory:/jobs/7\n1:cpu,cpuacct:/\n0::/user.slice/a:b\n"
    assert parse_own_groups(text) == {
        "memory": "/jobs/7",
        "cpu": "/",
        "cpuacct": "/",
        "": "/user.slice/a:b",
    }


def test_flat_files_and_pressure_are_read() -> None:
    assert parse_flat("low 0\noom_kill 3\nrubbish\nmax max\n") == {"low": 0, "oom_kill": 3}
    pressure = "some avg10=3.69 avg60=19.44 avg300=16.71 total=3478037971\nfull total=1\n"
    assert parse_pressure_us(pressure) == 3_478_037_971
    assert parse_pressure_us("full avg10=0 total=1") is None


def test_figures_of_this_process_and_host_are_plausible() -> None:
    assert (cpu_seconds(os.getpid()) or 0) > 0
    assert (private_bytes(os.getpid()) or 0) > MIB
    assert cpu_seconds(2**22 + 1) is None
    assert private_bytes(2**22 + 1) is None
    assert idle_seconds() > 0


def test_a_kernel_without_pressure_files_says_nothing_of_waiting(tmp_path: Path) -> None:
    assert waited_us(tmp_path) is None


def test_a_name_with_spaces_and_brackets_does_not_confuse_the_cpu_time(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    fields = " ".join(str(n) for n in range(3, 45))
    (tmp_path / "7" / "stat").write_text(f"7 (a) b ( c)) S {fields}")
    ticks = os.sysconf("SC_CLK_TCK")
    assert cpu_seconds(7, tmp_path) == (13 + 14) / ticks


def test_version_1_writes_shares_quota_and_memory_with_swap(tmp_path: Path) -> None:
    tree = make_v1(tmp_path, "acme/hot-1")
    tree.set_cpu_weight("acme/hot-1", 250)
    tree.set_cpu_limit("acme/hot-1", 150)
    tree.set_memory_limit("acme/hot-1", 300 * MIB)
    group = "accel.acme/hot-1"
    assert (tmp_path / "cpu" / group / "cpu.shares").read_text() == "2560"
    assert (tmp_path / "cpu" / group / "cpu.cfs_quota_us").read_text() == "150000"
    for file in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
        assert (tmp_path / "memory" / group / file).read_text() == str(300 * MIB)
    tree.set_cpu_limit("acme/hot-1", 0)
    assert (tmp_path / "cpu" / group / "cpu.cfs_quota_us").read_text() == "-1"
    (tmp_path / "memory" / group / "memory.oom_control").write_text("under_oom 0\noom_kill 2\n")
    assert tree.memory_kills("acme/hot-1") == 2


def test_version_2_writes_weight_max_and_passes_controllers_on(tmp_path: Path) -> None:
    tree = make_v2(tmp_path, "acme/hot-1")
    tree.set_cpu_weight("acme/hot-1", 250)
    tree.set_cpu_limit("acme/hot-1", 150)
    tree.set_memory_limit("acme/hot-1", 300 * MIB)
    tree.make("acme/hot-1")
    group = tmp_path / "acme" / "hot-1"
    assert (group / "cpu.weight").read_text() == "250"
    assert (group / "cpu.max").read_text() == "150000 100000"
    assert (group / "memory.max").read_text() == str(300 * MIB)
    assert (group / "memory.swap.max").read_text() == "0"
    assert (tmp_path / "acme" / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    tree.set_cpu_limit("acme/hot-1", 0)
    assert (group / "cpu.max").read_text() == "max 100000"


def test_a_missing_file_is_an_error_and_never_created(tmp_path: Path) -> None:
    tree = CgroupV1Tree({"cpu": tmp_path})
    tree.make("acme")
    with pytest.raises(FileNotFoundError):
        tree.set_cpu_weight("acme", 100)
    assert not list((tmp_path / "acme").iterdir())


def test_groups_are_made_in_every_hierarchy_and_removed_depth_first(tmp_path: Path) -> None:
    tree = CgroupV1Tree({"cpu": tmp_path / "cpu", "memory": tmp_path / "memory"})
    tree.make("acme/hot-1")
    tree.make("acme/hot-1")
    assert tree.groups() == ("acme",)
    assert tree.groups("acme") == ("hot-1",)
    assert len(tree.join_files("acme/hot-1")) == 2
    assert tree.remove("acme")
    assert tree.remove("acme")
    assert tree.groups() == ()
    tree.make("globex")
    assert tree.remove("")
    assert tree.groups() == ()


def test_the_groups_of_another_agent_are_not_ours(tmp_path: Path) -> None:
    bases = {"cpu": tmp_path / "cpu", "memory": tmp_path / "memory"}
    ours, theirs = CgroupV1Tree(bases, "accel-w-1."), CgroupV1Tree(bases, "accel-w-12.")
    ours.make("acme/hot-1")
    theirs.make("acme/hot-1")
    assert ours.remove("")
    assert ours.groups() == ()
    assert theirs.groups() == ("acme",)


def test_a_group_that_cannot_be_removed_stays_and_says_so(tmp_path: Path) -> None:
    tree = make_v1(tmp_path, "acme/hot-1")  # plain files keep the directories
    assert not tree.remove("acme")
    assert tree.groups("acme") == ("hot-1",)


def test_the_own_group_is_found_below_a_mount_that_shows_a_part(tmp_path: Path) -> None:
    (mount,) = parse_cgroup_mounts("1 1 0:1 /docker/abc /m rw - cgroup c rw,memory")
    assert find._own_directory(mount, "/docker/abc/child") == Path("/m/child")
    assert find._own_directory(mount, "/docker/abc") == Path("/m")


def test_version_1_needs_both_cpu_and_memory(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path, v1=("cpu", "pids"))
    tree, why = find.find_tree("w-1", proc=proc.path)
    assert tree is None
    assert "not both" in why


def test_without_any_control_group_the_reason_is_told(tmp_path: Path) -> None:
    tree, why = find.find_tree("w-1", proc=FakeProc(tmp_path).path)
    assert tree is None
    assert why == "no control groups are mounted here"


def test_a_version_2_group_that_others_live_in_is_left_alone(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path, v2="cpu memory pids", processes=(1, 2))
    tree, why = find.find_tree("w-1", proc=proc.path)
    assert tree is None
    assert "processes of others" in why
    assert "Delegate=yes" in why
    assert not (proc.group / "accel-agent").exists()


def test_the_processes_of_a_version_2_group_of_our_own_move_into_a_leaf(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path, v2="cpu memory pids", processes=(os.getpid(), 4711))
    child = proc.path / "4711"
    child.mkdir()
    (child / "stat").write_text(f"4711 (a child) S {os.getpid()} 1 1")
    tree, why = find.find_tree("w-1", proc=proc.path)
    assert (proc.group / "accel-agent" / "cgroup.procs").read_text() == "4711"  # moved last
    assert (proc.group / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"
    assert (proc.group / "accel-agent" / "cpu.weight").read_text() == "11"  # queries go first
    assert tree is None, why  # what the kernel would answer is not there


def test_a_version_2_hierarchy_without_controllers_is_of_no_use(tmp_path: Path) -> None:
    tree, why = find.find_tree("w-1", proc=FakeProc(tmp_path, v2="").path)
    assert tree is None
    assert "no CPU and memory controllers" in why


def test_a_parent_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    proc = FakeProc(tmp_path, v2="")
    with pytest.raises(ConfigError, match=r"\[host\] cgroup"):
        find.find_tree("w-1", str(proc.group), proc.path)


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="'strict' is not a valid"):
        make_enforcer("w-1", 2, enforcement="strict")
    with pytest.raises(ConfigError, match="'unfair' is not a valid"):
        make_enforcer("w-1", 2, enforcement="nice", policy="unfair")


def test_what_is_enforced_is_told_truly(tmp_path: Path) -> None:
    assert "no cgroups (not asked for)" in make_enforcer("w", 2, enforcement="none").describe()
    assert "memory watched" in make_enforcer("w", 2, enforcement="nice").describe()


def test_an_executor_may_have_what_the_shard_files_leave_but_always_its_own_budget() -> None:
    quota = Quota(memory_bytes_per_host=1024 * MIB, executor_memory_bytes=384 * MIB)
    assert executor_limit_bytes(quota, 0) == 1024 * MIB
    assert executor_limit_bytes(quota, 600 * MIB) == 424 * MIB
    assert executor_limit_bytes(quota, 2000 * MIB) == 384 * MIB
    tiny = Quota(memory_bytes_per_host=40 * MIB, executor_memory_bytes=32 * MIB)
    assert executor_limit_bytes(tiny, 0) == MIN_EXECUTOR_BYTES


def test_engine_inputs_and_process_together_fit_into_the_limit() -> None:
    quota = Quota(memory_bytes_per_host=1024 * MIB, executor_memory_bytes=384 * MIB)
    assert engine_quota(quota, 1024 * MIB) == quota
    tight = engine_quota(quota, 384 * MIB).executor_memory_bytes
    assert tight + tight // 2 + 64 * MIB <= 384 * MIB


def test_nice_values_have_the_ratio_of_the_weights() -> None:
    assert nice_of(1000, 1000) == 0
    assert nice_of(2000, 1000) == 0
    assert nice_of(100, 1000) == 10
    assert nice_of(16, 1000) == 19
    assert nice_of(0, 1000) == LOWEST


def test_both_versions_offer_the_same_methods() -> None:
    def public(cls: type) -> set[str]:
        return {name for name in dir(cls) if not name.startswith("_")}

    assert public(CgroupV1Tree) == public(CgroupV2Tree)
