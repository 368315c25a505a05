"""What must stay light stays light, at run time: static contracts do not see package inits."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = {"distributed", "dask", "pandas", "pyiceberg", "bokeh"}

CASES = {
    "accel_dask.worker_plugin.executor.main": HEAVY | {"grpc", "sqlglot"},
    "accel_dask.worker_plugin.executor.zygote": HEAVY | {"grpc", "sqlglot"},
    "accel_dask.worker_plugin.loader": HEAVY | {"grpc", "sqlglot"},
    "flightsql_gateway.app": HEAVY | {"duckdb"},
    "accel_dask.client": HEAVY | {"duckdb", "grpc"},
    "accel_dask": HEAVY | {"duckdb", "grpc", "pyarrow", "sqlglot"},
}


@pytest.mark.parametrize("module", sorted(CASES))
def test_importing_a_light_process_brings_in_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(' '.join(m.split('.')[0] for m in sys.modules))"
    loaded = set(
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, text=True
        ).stdout.split()
    )
    assert loaded & CASES[module] == set()
