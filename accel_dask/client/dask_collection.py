"""Lazy frames as Dask collections: `dask.compute(frame)`, and beside `delayed` tasks.

A frame is one task, which runs its one query where Dask runs it; on a cluster the session is
connected again there. Dask itself is imported only when it asks for a scheduler.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from accel_dask.client.lazy import Lazy


class Answerable:
    """A frame as it travels to where Dask computes it: nothing that Dask would look into."""

    def __init__(self, frame: Any) -> None:
        self._frame = frame

    def __call__(self) -> Any:
        return self._frame.compute()


class DaskCollection:
    """Dask's collection protocol, by the frame's own `compute`, and the way to its DataFrame."""

    def to_dask_dataframe(self, *, dtype_backend: str = "numpy") -> Any:
        """A Dask DataFrame (or Series) of these rows: a partition per shard, pinned to the epoch
        that serves now, each read where its shard lives. Its dtypes are those of `compute()`, but
        for one that a column without missing values gets here if others of its dataset have some.
        Divisions are known if the index is a column that the shards do not overlap in.

        Raises:
            UnsupportedOperation: it is not a choice of rows and columns of one dataset.
        """
        from accel_dask.client.dask_frame import to_dask_dataframe

        return to_dask_dataframe(cast("Lazy", self), dtype_backend=dtype_backend)

    @property
    def _dask_key(self) -> str:
        key: str = self.__dict__.setdefault("_key", f"accel-query-{uuid.uuid4().hex}")
        return key

    def __dask_graph__(self) -> Mapping[str, Any]:
        return {self._dask_key: (Answerable(self),)}

    def __dask_keys__(self) -> list[str]:
        return [self._dask_key]

    def __dask_layers__(self) -> tuple[str]:
        return (self._dask_key,)

    def __dask_tokenize__(self) -> str:
        return self._dask_key

    def __dask_postcompute__(self) -> tuple[Callable[..., Any], tuple[()]]:
        return _only, ()

    @staticmethod
    def __dask_optimize__(graph: Any, keys: Any, **_: object) -> Any:
        return graph

    @staticmethod
    def __dask_scheduler__(graph: Any, keys: Any, **options: Any) -> Any:
        from dask.threaded import get

        return get(graph, keys, **options)


def _only(results: list[Any]) -> Any:
    return results[0]
