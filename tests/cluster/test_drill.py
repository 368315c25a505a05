"""The noisy neighbour's drill on a real cluster, small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from accel_dask.drill.drill import Plan
from accel_dask.drill.show import show_drill
from accel_dask.drill.site import NOISY, VICTIM, DrillSite, Target
from accel_dask.drill.verdicts import Attack
from accel_dask.local import LocalAccelCluster
from accel_dask.model.ids import TenantId
from accel_dask.store.records import read_view

pytestmark = pytest.mark.cluster
ROWS = 100_000
ATTACKS = (Attack.HEAVY, Attack.FLOOD, Attack.PYTHON, Attack.REFRESH)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalAccelCluster]:
    with LocalAccelCluster() as cluster:
        yield cluster


def tenants(cluster: LocalAccelCluster) -> set[str]:
    view = read_view(cluster.store)
    return {name for name in (VICTIM, NOISY) if view.tenant(TenantId(name)) is not None}


def test_a_drill_measures_the_victim_beside_attacks_and_leaves_nothing(
    cluster: LocalAccelCluster, tmp_path: Path
) -> None:
    figures = tmp_path / "drill.json"
    console = Console(width=140, record=True, file=StringIO())
    target = Target(store=cluster.store, mirror=cluster.mirror)
    plan = Plan(attacks=ATTACKS, seconds=1.0, rate=10.0)
    with DrillSite(target, rows=ROWS, directory=tmp_path / "data") as site:
        assert tenants(cluster) == {VICTIM, NOISY}
        show_drill(site, plan, console, json_file=figures)
    told = json.loads(figures.read_text())
    assert [one["attack"] for one in told["measured"]] == [None, *ATTACKS]
    for one in told["measured"]:
        assert one["victim"]["failures"] == {}
        assert one["victim"]["answered"] >= 3
        assert {"gateway", "victim's executor", "host agent"} <= one["processes"].keys()
    by_attack = {one["attack"]: one for one in told["measured"]}
    assert by_attack["heavy"]["noisy_kept"] > 0
    assert by_attack["flood"]["noisy"]["answered"] > 0
    assert by_attack["refresh"]["refreshes"] > 0
    assert "beside refresh" in console.export_text()
    assert tenants(cluster) == set()
    assert list((tmp_path / "data").iterdir()) == []


def test_an_interrupted_drill_takes_its_tenants_away(
    cluster: LocalAccelCluster, tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "accel_dask.cli", "drill", "noisy-neighbour"]
    environ = os.environ | {"ACCEL_CONFIG": str(cluster.directory / "accel.toml")}
    with subprocess.Popen(
        [*command, "--rows", str(ROWS), "--seconds", "60", "--directory", str(tmp_path / "data")],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as drill:
        assert drill.stdout is not None
        lines = iter(drill.stdout.readline, "")
        assert any("tenant drill_noisy" in line for line in lines)
        drill.send_signal(signal.SIGTERM)  # as Ctrl-C, which a shell may have it ignore
        output = drill.communicate(timeout=60)[0]
    assert drill.returncode == 130, output
    assert tenants(cluster) == set()
    assert list((tmp_path / "data").iterdir()) == []
