"""Lets the calling process step back behind the executors of its host; used by the Dask worker,
whose tasks may compute for as long as they like."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from accel_dask.niceness import BEHIND_QUERIES, has_autogroups, set_nice

log = logging.getLogger(__name__)


def step_back(join_files: Sequence[str]) -> None:
    """Join the control groups, if there are any; else raise the nice value, for good."""
    if join_files:
        for file in join_files:
            try:
                Path(file).write_text("0", encoding="ascii")
            except OSError as error:
                log.warning("this process keeps its CPU weight: %s", error)
        return
    with contextlib.suppress(PermissionError):  # it leads a process group: a session already
        os.setsid()  # else the nice value would count within the nanny's session only
    if not set_nice(os.getpid(), BEHIND_QUERIES, autogroup=has_autogroups(), threads=True):
        log.warning("this process keeps its CPU weight")
