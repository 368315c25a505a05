"""What frames and series share: running them, and the forms that the answer comes in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from accel_dask.client.arrow_forms import as_arrow
from accel_dask.client.dask_collection import DaskCollection
from accel_dask.client.expressions import Expr
from accel_dask.client.lower import Compiled, compile_rows
from accel_dask.client.nodes import Node
from accel_dask.client.view import Finish, Item, View, refuse_finished
from accel_dask.errors import UnsupportedOperation

if TYPE_CHECKING:
    from accel_dask.client.session import Session


class Lazy(DaskCollection):
    """A view of a session's data that runs when it is asked to."""

    _is_series = False

    def __init__(self, session: Session, view: View | None = None, **_: Any) -> None:
        if view is None:
            raise UnsupportedOperation(
                f"a lazy {type(self).__name__} of local values; put them into a dataset, or use "
                "pandas itself for what is local"
            )
        self._session = session
        self._view = view
        self._max_rows: int | None = None
        self._fetched: tuple[View, int, pa.Table] | None = None

    def _repr_html_(self) -> str:
        from accel_dask.client.display import preview_html

        return preview_html(self)

    # What will run

    @property
    def sql(self) -> str:
        """The one SQL text that this compiles to."""
        return self._compiled().sql

    def explain(self) -> str:
        """The SQL, what is read, the bound, and how the gateway would answer it now."""
        return self._session.explain(self._compiled(), self._cap())

    def limit_rows(self, count: int) -> Self:
        """The same, whose answer may have up to `count` rows instead of the session's limit."""
        made = self._like(self._view)
        made._max_rows = count
        return made

    def _cap(self) -> int:
        return self._max_rows or self._session.options.max_rows

    def _compiled(self) -> Compiled:
        columns = [(_name(item.label), item.expr) for item in self._view.items]
        if not columns:
            raise UnsupportedOperation("a frame without columns is not asked for; name some")
        return compile_rows(self._view.rows, columns, self._cap())

    # Running it

    def compute(self, *, dtype_backend: str = "numpy") -> Any:
        """The answer as pandas. `dtype_backend`: `numpy`, `numpy_nullable` or `pyarrow`.

        Raises:
            ResultTooLarge: it has more rows than the session's `max_rows`.
            AccelError: as the gateway answered.
        """
        from accel_dask.client.materialize import to_pandas

        table, provenance = self._answer()
        return to_pandas(
            table, self._view, dtype_backend=dtype_backend, is_series=self._is_series,
            provenance=provenance,
        )  # fmt: skip

    def to_pandas(self, *, dtype_backend: str = "numpy") -> Any:
        """The same as `compute`."""
        return self.compute(dtype_backend=dtype_backend)

    def to_arrow(self) -> pa.Table:
        """The answer as an Arrow table; an index becomes its first columns."""
        if self._view.finish is not None:
            return pa.Table.from_pandas(_as_frame(self.compute()), preserve_index=None)
        table, _ = self._answer()
        return as_arrow(table, [item.expr.dtype for item in self._view.items])

    def to_polars(self) -> Any:
        """The answer as a Polars frame; needs Polars."""
        try:
            import polars as pl
        except ImportError as error:
            raise UnsupportedOperation("to_polars needs Polars: pip install polars") from error
        return pl.from_arrow(self.to_arrow())

    def to_pandas_batches(self, *, dtype_backend: str = "numpy") -> Iterator[Any]:
        """The answer as pandas frames, one after the other, while it arrives."""
        from accel_dask.client.materialize import to_pandas

        refuse_finished(self._view, "to_pandas_batches")
        for table, provenance in self._session.stream(self._compiled(), self._cap()):
            yield to_pandas(
                table, self._view, dtype_backend=dtype_backend, is_series=self._is_series,
                provenance=provenance,
            )  # fmt: skip

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """For whatever takes Arrow streams. Asked several times it sends one query."""
        view = self._view
        if self._fetched is None or self._fetched[0] is not view:
            self._fetched = (view, 0, self.to_arrow())
        return self._fetched[2].__arrow_c_stream__(requested_schema)

    def _answer(self) -> tuple[pa.Table, Any]:
        compiled = self._compiled()
        table, provenance = self._session.fetch(compiled, self._cap())
        return table.rename_columns(_labels(self._view)), provenance

    def pipe(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """`func` of this and the arguments."""
        return func(self, *args, **kwargs)

    # For those that build upon it

    def _like(self, view: View) -> Self:
        made = type(self)(self._session, view)
        made._max_rows = self._max_rows
        return made

    def _ready(self, what: str) -> View:
        """The view, if `what` can follow.

        Raises:
            UnsupportedOperation: it is finished on the client.
        """
        refuse_finished(self._view, what)
        return self._view

    def _scalar(self, expr: Expr, rows: Node | None = None) -> Any:
        """The value of the aggregate `expr` over all rows: one query of one row."""
        from accel_dask.client.materialize import scalar
        from accel_dask.client.nodes import Aggregate, aggregate_columns

        source = Aggregate(rows or self._ready("an aggregate").rows, (), (("value", expr),))
        column = aggregate_columns(source)["value"]
        table, _ = self._session.fetch(compile_rows(source, [("value", column)]), 1)
        return scalar(table.column(0)[0].as_py(), expr.dtype)

    def _without_index(self, *, drop: bool) -> Self:
        """As `reset_index`, of an answer whose last step is made here."""
        finish = self._view.finish
        assert finish is not None

        def apply(found: Any) -> Any:
            return finish.apply(found).reset_index(drop=drop)

        return self._like(replace(self._view, finish=Finish(finish.what, apply)))


def _name(label: Hashable) -> str:
    if isinstance(label, tuple):
        return "_".join(str(part) for part in label)
    return "value" if label is None else str(label)


def _labels(view: View) -> list[str]:
    """Names for Arrow: as they are, told apart only where they must be."""
    return [_name(item.label) for item in view.items]


def _as_frame(answer: Any) -> Any:
    return answer.to_frame() if hasattr(answer, "to_frame") else answer


def item(label: Hashable, expr: Expr) -> Item:
    return Item(label, expr)
