"""What this kernel really enforces on processes: control groups where they can be made, nice
values and the watch over memory everywhere."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import MIB, Quota
from accel_dask.niceness import has_autogroups
from accel_dask.worker_plugin.enforcement import behind
from accel_dask.worker_plugin.enforcement.background import step_back
from accel_dask.worker_plugin.enforcement.confinement import Confinement, Role
from accel_dask.worker_plugin.enforcement.enforcer import Enforcer, make_enforcer
from accel_dask.worker_plugin.enforcement.find import find_tree
from accel_dask.worker_plugin.enforcement.kernel_files import parse_own_groups
from accel_dask.worker_plugin.enforcement.lifetime import LIFE

pytestmark = pytest.mark.cluster

CALM, NOISY = TenantId("calm"), TenantId("noisy")
CORES = 0.25
"""As far as the enforcer knows: so that others at work on the machine do not matter."""
NUMBERS = itertools.count(1)
NAME = f"test-{os.getpid()}"
GONE = f"{NAME}-gone"

_CHILD = """
import os, sys, threading, time
os.setsid()
for file in sys.argv[4:]:
    with open(file, "w") as procs:
        procs.write("0")
threads, mib, pause = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
held = bytearray(mib << 20)
print("up", flush=True)
def compute():
    import hashlib
    block = b"x" * 1_000_000
    while True:
        hashlib.sha256(block).digest()
        time.sleep(pause)
for _ in range(threads):
    threading.Thread(target=compute, daemon=True).start()
for line in sys.stdin:  # each line: so many MiB more, bit by bit
    for _ in range(int(line)):
        held += bytearray(1 << 20)
        time.sleep(0.001)
    print("got it", flush=True)
"""


class Child:
    def __init__(
        self, confinement: Confinement, *, threads: int = 0, mib: int = 1, pause: float = 0
    ) -> None:
        self.confinement = confinement
        self.reasons: list[str] = []
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", _CHILD, str(threads), str(mib), str(pause)),
                *confinement.join_files,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n"
        confinement.watch(self.process.pid, self.kill)

    def kill(self, because: str) -> None:
        self.reasons.append(because)
        self.process.kill()

    def take(self, mib: int) -> bool:
        """Whether it lives with so many MiB more."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{mib}\n")
        self.process.stdin.flush()
        return self.process.stdout.readline() == "got it\n"


@contextmanager
def an_enforcer(enforcement: str, policy: str = "adaptive") -> Iterator[Enforcer]:
    if enforcement == "cgroup":
        tree, why = find_tree(f"{NAME}-probe")
        if tree is None:
            pytest.skip(f"control groups cannot be made here: {why}")
        tree.remove("")
    enforcer = make_enforcer(NAME, CORES, enforcement=enforcement, policy=policy)
    enforcer.start()
    enforcer.set_quotas({CALM: Quota(), NOISY: Quota()})
    try:
        yield enforcer
    finally:
        enforcer.close()


@contextmanager
def a_child(
    enforcer: Enforcer, tenant: TenantId, *, limit_mib: int = 200, **what: float
) -> Iterator[Child]:
    confinement = enforcer.confine(tenant, Role.HOT, f"{next(NUMBERS)}-test", limit_mib * MIB)
    child = Child(confinement, **what)  # type: ignore[arg-type]
    try:
        yield child
    finally:
        with child.process:
            child.process.kill()
        enforcer.release(confinement)


def wait_for(what: str, predicate: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < deadline, f"in vain for {seconds:g} s: {what}"
        time.sleep(0.02)


def is_demoted(enforcer: Enforcer, tenant: TenantId) -> bool:
    return bool(enforcer.report()["tenants"].get(tenant, {}).get("is_demoted"))


def nice_of(child: Child) -> int:
    """Of its session where sessions compete, else of its main thread."""
    proc = Path(f"/proc/{child.process.pid}")
    if has_autogroups():
        return int((proc / "autogroup").read_text().split()[-1])
    return int((proc / "stat").read_text().rpartition(")")[2].split()[16])


@pytest.mark.parametrize("enforcement", ["cgroup", "nice"])
def test_a_process_over_its_memory_is_stopped_alone_and_soon(enforcement: str) -> None:
    with (
        an_enforcer(enforcement) as enforcer,
        a_child(enforcer, CALM, mib=100) as calm,
        a_child(enforcer, NOISY, mib=100) as noisy,
    ):
        started = time.monotonic()
        assert not noisy.take(400)
        assert noisy.process.wait(5) == -9
        assert time.monotonic() - started < 5
        assert noisy.confinement.was_killed_for_memory() == (enforcement == "cgroup")
        assert bool(noisy.reasons) == (enforcement == "nice")
        assert calm.take(20)


@pytest.mark.parametrize("enforcement", ["cgroup", "nice"])
def test_a_lower_memory_limit_ends_what_is_above_it_and_a_higher_one_gives_room(
    enforcement: str,
) -> None:
    with an_enforcer(enforcement) as enforcer, a_child(enforcer, CALM, mib=100) as child:
        child.confinement.set_limit(400 * MIB)
        assert child.take(150)
        child.confinement.set_limit(120 * MIB)
        assert child.process.wait(5) == -9


@pytest.mark.parametrize("enforcement", ["cgroup", "nice"])
def test_who_takes_more_than_its_share_is_demoted_while_another_works(enforcement: str) -> None:
    with (
        an_enforcer(enforcement) as enforcer,
        a_child(enforcer, NOISY, threads=8) as noisy,
        a_child(enforcer, CALM),
    ):
        # Its own threads wait for each other, but nobody else works.
        wait_for(
            "the noisy tenant is seen at work",
            lambda: enforcer.report()["tenants"].get(NOISY, {}).get("used_cores", 0) > 0.15,
        )
        assert not is_demoted(enforcer, NOISY)
        with a_child(enforcer, CALM, threads=1, pause=0.02):
            wait_for("the noisy tenant is demoted", lambda: is_demoted(enforcer, NOISY))
            if enforcement == "cgroup":
                wait_for("it gives way at once", lambda: gives_way(noisy.confinement))
            else:
                wait_for("its nice value says so", lambda: nice_of(noisy) >= 10)
            assert not is_demoted(enforcer, CALM)
        noisy.process.kill()
        wait_for("its debt is paid", lambda: not is_demoted(enforcer, NOISY))
        if enforcement == "cgroup":
            wait_for("it gives way no longer", lambda: not gives_way(noisy.confinement))
            assert not enforcer._accounts[NOISY].gives_way


def test_loaders_and_the_dask_worker_give_way_while_they_get_on_and_else_compete(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(behind, "LEAST_CORES", 0.001)  # others at work here do not matter
    with an_enforcer("cgroup") as enforcer:
        loader = enforcer.confine(NOISY, Role.LOAD, f"{next(NUMBERS)}-test", 200 * MIB)
        worker = enforcer.confine(CALM, Role.HOT, f"{next(NUMBERS)}-test", 200 * MIB)
        worker.join_files = enforcer.background_files()
        for confinement in (loader, worker):
            child = Child(confinement, threads=1)
            try:
                wait_for("it gives way", partial(gives_way, confinement))
                child.process.send_signal(signal.SIGSTOP)
                wait_for("it competes", partial(competes, confinement))
                child.process.send_signal(signal.SIGCONT)
                wait_for("it gives way again", partial(gives_way, confinement))
            finally:
                child.process.kill()
                child.process.communicate()
            enforcer.release(confinement)
        wait_for("nobody is there to give way to", partial(competes, worker))


def competes(confinement: Confinement) -> bool:
    return not gives_way(confinement)


def gives_way(confinement: Confinement) -> bool:
    """Whether the group that its own is in, or that stands in for it, is idle to the kernel."""
    directories = [Path(file).parent for file in confinement.join_files]
    if not any((directory / "cpu.idle").exists() for directory in directories):
        pytest.skip("this kernel has no idle groups")
    among = [d if d.name.endswith("dask-worker") else d.parent for d in directories]
    files = [d / "cpu.idle" for d in among if (d / "cpu.idle").exists()]
    return any(file.read_text().strip() == "1" for file in files)


def test_a_changed_weight_and_cpu_limit_reach_the_group_at_once() -> None:
    with an_enforcer("cgroup", "fixed") as enforcer, a_child(enforcer, NOISY, threads=2) as noisy:
        own = parse_own_groups(Path(f"/proc/{noisy.process.pid}/cgroup").read_text())
        assert f"accel-{NAME}.noisy/hot-" in own.get("memory", own.get("", ""))
        enforcer.set_quotas({CALM: Quota(), NOISY: Quota(cpu_limit_percent=30)})
        noisy.confinement.used_cpu_seconds()
        started = time.monotonic()
        wait_for("a second", lambda: time.monotonic() - started > 1)
        used = noisy.confinement.used_cpu_seconds() / (time.monotonic() - started)
        assert used < 0.45
        with a_child(enforcer, CALM):
            unpromised = Quota(cpu_guarantee_percent=0)
            heavy = Quota(cpu_weight=400, cpu_guarantee_percent=0)
            enforcer.set_quotas({CALM: heavy, NOISY: unpromised})
            weights = enforcer._weights
            assert weights[CALM] == 4 * weights[NOISY]


def test_groups_of_ended_processes_and_of_a_closed_host_are_gone() -> None:
    with an_enforcer("cgroup") as enforcer:
        with a_child(enforcer, CALM) as child:
            directories = [Path(file).parent for file in child.confinement.join_files]
            assert all(directory.is_dir() for directory in directories)
        wait_for("its group is gone", lambda: not any(d.exists() for d in directories))
        wait_for(
            "its tenant's group is gone", lambda: not any(d.parent.exists() for d in directories)
        )


_AGENT = """
import subprocess, sys
from accel_dask.model.ids import TenantId
from accel_dask.worker_plugin.enforcement.confinement import Role
from accel_dask.worker_plugin.enforcement.enforcer import make_enforcer
enforcer = make_enforcer(sys.argv[1], 0.25, enforcement="cgroup")
enforcer.start()
files = enforcer.confine(TenantId("noisy"), Role.HOT, "1-left", 200 << 20).join_files
code = (
    "import sys, time; [open(f, 'w').write('0') for f in sys.argv[1:]];"
    "print('up', flush=True); time.sleep(60)"
)
child = subprocess.Popen([sys.executable, "-c", code, *files], stdout=subprocess.PIPE, text=True)
assert child.stdout.readline() == "up\\n"
print(child.pid, flush=True)
sys.stdin.read()
"""


@contextmanager
def a_killed_agent(name: str) -> Iterator[int]:
    """It has just been killed, its executor, of the id given, is still there."""
    with subprocess.Popen(
        [sys.executable, "-c", _AGENT, name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as agent:
        assert agent.stdout is not None
        executor = int(agent.stdout.readline())
        agent.kill()
        agent.wait()
        try:
            yield executor
        finally:
            with suppress(ProcessLookupError):
                os.kill(executor, signal.SIGKILL)


def test_what_a_killed_host_left_is_removed_by_its_next_life_once_its_processes_end() -> None:
    with a_killed_agent(NAME) as executor:
        second = make_enforcer(NAME, CORES, enforcement="cgroup")
        second.start()
        try:
            assert second._tree is not None
            assert set(second._tree.groups()) == {NOISY, LIFE}
            with a_child(second, NOISY) as child:  # who is here now is not in the way
                os.kill(executor, signal.SIGKILL)
                own = Path(child.confinement.join_files[0]).parent
                wait_for(
                    "the old executor's group is gone",
                    lambda: second._tree.groups(NOISY) == (own.name,),  # type: ignore[union-attr]
                )
                assert child.take(1)
            wait_for("all is gone", lambda: set(second._tree.groups()) == {LIFE})  # type: ignore[union-attr]
        finally:
            second.close()


def test_what_a_host_left_that_never_came_back_is_removed_by_the_next_one_to_start() -> None:
    with a_killed_agent(GONE) as executor:
        os.kill(executor, signal.SIGKILL)
        gone, why = find_tree(GONE)
        assert gone is not None, why
        assert set(gone.groups()) == {NOISY, LIFE}
        wait_for("its executor has ended", lambda: not gone.processes(f"{NOISY}/hot-1-left"))
        with an_enforcer("cgroup") as lives:
            assert gone.groups() == ()
            with a_child(lives, CALM), an_agent(f"{NAME}-third"):
                assert set(lives._tree.groups()) == {CALM, LIFE}  # type: ignore[union-attr]


@contextmanager
def an_agent(name: str) -> Iterator[None]:
    enforcer = make_enforcer(name, CORES, enforcement="cgroup")
    enforcer.start()
    try:
        yield
    finally:
        enforcer.close()


def test_a_process_that_steps_back_has_a_high_nice_value() -> None:
    code = (
        "import os; from accel_dask.worker_plugin.enforcement.background import step_back;"
        "step_back(()); print(os.getpriority(os.PRIO_PROCESS, 0));"
        "print(open('/proc/self/autogroup').read().split()[-1])"
        if has_autogroups()
        else "import os; from accel_dask.worker_plugin.enforcement.background import step_back;"
        "step_back(()); print(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(told.stdout.split()) == {"10"}


def test_a_group_that_cannot_be_joined_is_not_an_end_to_stepping_back() -> None:
    step_back(["/nonexistent/cgroup.procs"])
