"""`%load_ext accel_dask.client.magic`, then `%%accel` cells of SQL; loaded by IPython."""

from __future__ import annotations

from typing import Any

from accel_dask.client.pandas import read_sql, use_session
from accel_dask.client.session import connect


def load_ipython_extension(ipython: Any) -> None:
    """Called by `%load_ext`."""

    def accel(line: str, cell: str | None = None) -> Any:
        """`%%accel` runs the cell's SQL on the default session and gives a pandas frame;
        `%%accel name` also keeps it as `name`. `%accel grpc://host:port` connects."""
        words = line.split()
        if cell is None:
            use_session(connect(*words[:1]))
            return None
        answer = read_sql(cell).compute()
        if words:
            ipython.push({words[0]: answer})
        return answer

    ipython.register_magic_function(accel, "line_cell", "accel")
