"""Processes that no query waits for take less of the CPU, without harm to anybody else's share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from accel_dask.niceness import BEHIND_QUERIES, has_autogroups, let_queries_go_first

_TELL = """
import os, threading
from pathlib import Path
from accel_dask.niceness import let_queries_go_first

def nice(thread=0):
    return os.getpriority(os.PRIO_PROCESS, thread)

def starts_one():
    may_end.wait()
    later = threading.Thread(target=lambda: told.append(nice()))
    later.start()
    later.join()

may_end, told = threading.Event(), []
there, spared = threading.Thread(target=starts_one), threading.Thread(target=starts_one)
there.start()
spared.start()
before = nice()
let_queries_go_first(spared=(spared.native_id,))
at_once = [nice(), nice(there.native_id), nice(spared.native_id)]
may_end.set()
there.join()
spared.join()
print(before, *at_once, *sorted(told))
group = Path("/proc/self/autogroup")  # nothing stands there where no session was ever begun
print(group.read_text().strip() if group.exists() else "")
"""


def told_by_a_process(*, leads_a_session: bool) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _TELL],
        capture_output=True,
        text=True,
        check=True,
        start_new_session=leads_a_session,
    )
    return done.stdout.splitlines()


def own_autogroup() -> str:
    return Path("/proc/self/autogroup").read_text().strip() if has_autogroups() else ""


def test_all_threads_step_back_but_the_spared_one_and_those_that_it_starts() -> None:
    threads, autogroup = told_by_a_process(leads_a_session=True)
    before, main, there, spared, *later = (int(found) for found in threads.split())
    behind = max(before, BEHIND_QUERIES)
    assert (main, there, spared) == (behind, behind, before)
    assert later == [before, behind]
    assert not has_autogroups() or autogroup.endswith(f" nice {BEHIND_QUERIES}")


@pytest.mark.skipif(not has_autogroups(), reason="sessions do not compete on this kernel")
def test_a_session_that_others_lead_keeps_its_weight() -> None:
    _, autogroup = told_by_a_process(leads_a_session=False)
    assert autogroup == own_autogroup()


def test_who_is_further_behind_stays_there() -> None:
    code = (
        "import os; from accel_dask.niceness import let_queries_go_first;"
        "os.nice(19); let_queries_go_first(); print(os.getpriority(os.PRIO_PROCESS, 0))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "19"


def test_a_thread_that_has_just_ended_is_nobodys_trouble(tmp_path: Path) -> None:
    (tmp_path / "self" / "task" / str(2**22 - 1)).mkdir(parents=True)
    let_queries_go_first(proc=tmp_path)
