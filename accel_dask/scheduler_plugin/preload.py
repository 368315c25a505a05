"""`dask scheduler --preload accel_dask.scheduler_plugin.preload`: makes the scheduler a master."""

from __future__ import annotations

import logging
from typing import Any

from accel_dask.niceness import let_queries_go_first
from accel_dask.scheduler_plugin import dashboard
from accel_dask.scheduler_plugin.plugin import AccelSchedulerPlugin

# Dask builds its web pages right after it has imported its preloads: this is the only moment.
dashboard.register_pages()


def dask_setup(scheduler: Any) -> None:
    """Called by Dask once the scheduler listens; it then starts the plugin."""
    _log_beside_dask()
    let_queries_go_first()  # no query waits for the master
    dashboard.add_tab(scheduler)
    scheduler.add_plugin(AccelSchedulerPlugin())


def _log_beside_dask() -> None:
    """Dask sets up its own loggers only; leave ours alone where somebody has set them up."""
    ours = logging.getLogger("accel_dask")
    if ours.hasHandlers():
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s - %(name)s - %(levelname)s - %(message)s"))
    ours.addHandler(handler)
    ours.setLevel(logging.INFO)
