"""Executes the notebooks of examples/ on the demo's data, on a cluster of one host, and stores
their outputs (`make examples`). The tests run them the same way and store nothing."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from accel_dask import admin
from accel_dask.current import remember
from accel_dask.demo import declare
from accel_dask.demo_data import write_lakehouse
from accel_dask.local import LocalAccelCluster, LocalOptions
from accel_dask.model.dataset import Dataset
from accel_dask.store.records import read_view

EXAMPLES = Path(__file__).parent.parent / "examples"
_CELL_SECONDS = 300
_PUBLISH_SECONDS = 300.0


@contextmanager
def demo_cluster() -> Iterator[LocalAccelCluster]:
    """The demo's tenants and datasets on a cluster that `connect()` finds."""
    before = os.environ.get("ACCEL_HOME")
    with (
        tempfile.TemporaryDirectory(prefix="accel-examples-") as home,
        LocalAccelCluster(LocalOptions()) as cluster,
    ):
        os.environ["ACCEL_HOME"] = home
        try:
            tokens = declare(cluster, write_lakehouse(cluster.directory / "lakehouse"))
            datasets = [one.dataset_id for one in read_view(cluster.store).records(Dataset)]
            requests = [admin.publish(cluster.store, one, by="examples") for one in datasets]
            for requested in requests:
                admin.wait_published(cluster.mirror, requested, _PUBLISH_SECONDS)
            cluster.wait_routed()
            remember(cluster, tokens)
            yield cluster
        finally:
            os.environ.pop("ACCEL_HOME")
            if before is not None:
                os.environ["ACCEL_HOME"] = before


def execute(path: Path) -> Any:
    """The notebook at `path`, run from its first to its last cell.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(path, as_version=4)
    return NotebookClient(
        notebook, timeout=_CELL_SECONDS, resources={"metadata": {"path": str(path.parent)}}
    ).execute()


def main() -> None:
    with demo_cluster():
        for path in sorted(EXAMPLES.glob("*.ipynb")):
            sys.stderr.write(f"executing {path.name}\n")
            found = execute(path)
            nbformat.write(_tidied(found), path)


def _tidied(notebook: Any) -> Any:
    """Without what changes from run to run and says nothing: times, and progress that is over."""
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                one for one in cell.outputs if one.get("data", {}).get("text/html") != ""
            ]
    return notebook


if __name__ == "__main__":
    main()
