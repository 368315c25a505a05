"""The supervisor of a local cluster's processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from accel_dask.errors import ConfigError
from accel_dask.processes import ProcessSpec, Supervisor


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    running = Supervisor(tmp_path / "logs")
    yield running
    running.close()


def _until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False


SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")
STUBBORN = (
    sys.executable,
    "-c",
    (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "print('up', flush=True); time.sleep(600)"
    ),
)


def test_a_killed_process_is_started_again(supervisor: Supervisor) -> None:
    supervisor.start(ProcessSpec(name="sleeper", argv=SLEEPER))
    first = supervisor.pids()["sleeper"]
    os.kill(first, signal.SIGKILL)
    _until(lambda: supervisor.pids().get("sleeper", first) != first)
    assert supervisor.restarts("sleeper") == 1


def test_a_stopped_process_stays_stopped(supervisor: Supervisor) -> None:
    supervisor.start(ProcessSpec(name="sleeper", argv=SLEEPER))
    pid = supervisor.pids()["sleeper"]
    supervisor.stop("sleeper")
    assert not _alive(pid)
    assert supervisor.pids() == {}


def test_a_process_that_ignores_sigterm_is_killed(supervisor: Supervisor) -> None:
    supervisor.start(ProcessSpec(name="stubborn", argv=STUBBORN, stop_seconds=0.2))
    pid = supervisor.pids()["stubborn"]
    _until(lambda: "up" in supervisor.log_tail("stubborn"))
    supervisor.stop("stubborn")
    assert not _alive(pid)


def test_a_program_that_does_not_exist_is_an_error_that_names_it(supervisor: Supervisor) -> None:
    with pytest.raises(ConfigError, match="no-such-program"):
        supervisor.start(ProcessSpec(name="x", argv=("no-such-program",)))


def test_output_goes_to_the_log(supervisor: Supervisor) -> None:
    argv = (sys.executable, "-c", "print('hello', flush=True); import time; time.sleep(600)")
    supervisor.start(ProcessSpec(name="talker", argv=argv))
    _until(lambda: "hello" in supervisor.log_tail("talker"))


def test_no_process_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path;"
        "from accel_dask.processes import ProcessSpec, Supervisor;"
        "s = Supervisor(Path(sys.argv[1]));"
        f"s.start(ProcessSpec(name='x', argv={SLEEPER!r}));"
        "print(s.pids()['x'], flush=True); time.sleep(600)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert _alive(child)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    _until(lambda: not _alive(child))
