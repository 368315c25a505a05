"""What is written of a tenant's CPU, and when."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
from enforcement_trees import make_v1, make_v2

from accel_dask.model.ids import TenantId
from accel_dask.worker_plugin.enforcement.cgroups import CgroupV1Tree
from accel_dask.worker_plugin.enforcement.group_cpu import GroupCpu, GroupShare

ACME = TenantId("acme")
FULL = GroupShare(weight=200, limit_percent=0)
LOW = GroupShare(weight=12, limit_percent=0)
IDLE = GroupShare(weight=12, limit_percent=0, gives_way=True)


class KernelTree(CgroupV1Tree):
    """Refuses what the kernel refuses, and keeps what it was told."""

    def __init__(self, *, knows_idle: bool = True) -> None:
        super().__init__({})
        self.told: list[tuple[str, int]] = []
        self.weight, self.is_idle = 100, False
        self._can_idle = knows_idle

    def set_cpu_idle(self, path: str, is_idle: bool) -> None:
        if not self._can_idle:
            raise FileNotFoundError(errno.ENOENT, "cpu.idle")
        self.told.append(("idle", is_idle))
        if self.is_idle != is_idle:
            self.weight = 0 if is_idle else 100
        self.is_idle = is_idle

    def set_cpu_weight(self, path: str, weight: int) -> None:
        if self.is_idle:
            raise OSError(errno.EINVAL, "cpu.shares")
        self.told.append(("weight", weight))
        self.weight = weight

    def set_cpu_limit(self, path: str, percent: int) -> None:
        self.told.append(("limit", percent))


def test_a_group_is_idle_and_has_its_weight_again_afterwards() -> None:
    tree = KernelTree()
    cpu = GroupCpu(tree)
    for share, weight in ((FULL, 200), (IDLE, 0), (LOW, 12), (IDLE, 0), (FULL, 200)):
        cpu.apply(ACME, share)
        assert (tree.is_idle, tree.weight) == (share.gives_way, weight)


def test_only_what_has_changed_is_written() -> None:
    tree = KernelTree()
    cpu = GroupCpu(tree)
    cpu.apply(ACME, FULL)
    assert tree.told == [("idle", False), ("weight", 200), ("limit", 0)]
    cpu.apply(ACME, FULL)
    cpu.apply(ACME, LOW)
    assert tree.told[3:] == [("weight", 12)]
    cpu.forget(ACME)
    cpu.apply(ACME, LOW)
    assert tree.told[4:] == [("idle", False), ("weight", 12), ("limit", 0)]


def test_a_kernel_without_idle_groups_has_the_weight(caplog: pytest.LogCaptureFixture) -> None:
    tree = KernelTree(knows_idle=False)
    cpu = GroupCpu(tree)
    for share, weight in ((FULL, 200), (IDLE, 12), (FULL, 200)):
        cpu.apply(ACME, share)
        assert tree.weight == weight
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_both_versions_write_the_kernels_file(tmp_path: Path) -> None:
    for version, make in (("1", make_v1), ("2", make_v2)):
        (tmp_path / version).mkdir()
        tree = make(tmp_path / version, "acme")
        with pytest.raises(FileNotFoundError):
            tree.set_cpu_idle("acme", True)
        group = Path(tree.join_files("acme")[0]).parent
        (group / "cpu.idle").write_text("0")
        tree.set_cpu_idle("acme", True)
        assert (group / "cpu.idle").read_text() == "1"
