"""The demo's last step where there is no engine to show."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from accel_dask import demo
from accel_dask.connectors.olap.servers.processes import NotInstalled
from accel_dask.demo_data import Lakehouse
from accel_dask.errors import EngineUnavailable
from accel_dask.local import LocalAccelCluster, LocalOptions


@pytest.mark.parametrize("error", [NotInstalled, EngineUnavailable])
def test_the_demo_goes_on_without_an_engine_and_says_so(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start() -> Any:
        raise error("there is no sail on this machine; pip install pysail")

    monkeypatch.setattr(demo, "SailServer", start)
    told = io.StringIO()
    shown = demo.Demo(LocalAccelCluster(LocalOptions(directory=tmp_path)), Console(file=told))
    shown._fall_back(Lakehouse(tmp_path))
    shown.close()
    assert "left out: there is no sail on this machine" in told.getvalue()
