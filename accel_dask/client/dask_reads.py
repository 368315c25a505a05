"""Reading one shard for Dask, where the shard is.

A task asks the gateway, as the user, for a ticket to its shard and redeems it at the tenant's
executor on its own host: the rows never leave the host, and the executor's budget bounds the read.
Where there is none, the same SQL narrowed to the same shard of the same epoch is asked of the
gateway.
"""

from __future__ import annotations

import base64
import logging
import sys
import uuid
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from accel_dask.client.dtypes import Kind, arrow_type
from accel_dask.client.expressions import Call, Column, Expr
from accel_dask.client.lower import Compiled, compile_rows
from accel_dask.client.materialize import EXACT
from accel_dask.client.nodes import Derived
from accel_dask.client.transport import FlightTransport, read_ticket
from accel_dask.client.view import Item, View
from accel_dask.errors import AdmissionError, AuthError, RoutingError, UnsupportedOperation
from accel_dask.model.shard_ref import ShardRef

log = logging.getLogger(__name__)

_SPARE_SECONDS: Final = 5.0


def read_shard(ref: ShardRef, reading: Reading, columns: Sequence[Hashable] | None = None) -> Any:
    """The rows of one shard, in the task that Dask runs. Dask says which `columns` it needs."""
    return reading.of_columns(columns).read(ref)


def read_series(ref: ShardRef, reading: Reading) -> Any:
    return reading.read(ref)


@dataclass(frozen=True)
class Reading:
    """What all partitions of one frame have in common. Travels with the user's token in it."""

    where: tuple[str, str, str]
    """The gateway, the user and the token."""
    view: View
    is_series: bool
    dtype_backend: str
    timeout_ms: int
    missing: frozenset[str]
    """Columns of the dataset that have missing values in any of its shards."""

    def __repr__(self) -> str:
        return f"Reading({sql_of(self.view)})"

    def __dask_tokenize__(self) -> tuple[str, ...]:
        labels = (repr(item.label) for item in self.view.items)
        return (*self.where, sql_of(self.view), self.dtype_backend, *labels,
                *sorted(self.missing))  # fmt: skip

    def of_columns(self, labels: Sequence[Hashable] | None) -> Reading:
        """The same with just those columns."""
        if labels is None:
            return self
        return replace(self, view=self.view.with_columns(self.view.get(one) for one in labels))

    def empty(self) -> Any:
        """No rows, in the dtypes of every partition."""
        fields = [
            pa.field(f"c{i}", arrow_type(item.expr.dtype)) for i, item in enumerate(self.view.items)
        ]
        return self._as_pandas(pa.schema(fields).empty_table())

    def read(self, ref: ShardRef) -> Any:
        """The rows of the shard as pandas.

        Raises:
            EpochRetired: the dataset serves another epoch by now.
            AccelError: as the gateway answered.
        """
        sql = sql_of(self.view)
        table = self._read_beside(ref, sql)
        return self._as_pandas(self._read_through_gateway(ref, sql) if table is None else table)

    def _read_beside(self, ref: ShardRef, sql: str) -> pa.Table | None:
        """From the tenant's executor on this task's host; None: there is none, or it could not."""
        host = _this_host()
        if host is None:
            return None
        body = {"sql": sql, "shard": str(ref)}
        told = _connected(self.where).action("accel.ticket", body)
        near = [one["address"] for one in told["executors"] if one["worker"] == host]
        if not near:
            return None
        seconds = self.timeout_ms / 1000 + _SPARE_SECONDS
        try:
            return read_ticket(near[0], base64.b64decode(told["ticket"]), seconds)
        except (RoutingError, AdmissionError, AuthError) as error:
            log.info("shard %s is read through the gateway: %s", ref, error)
            return None

    def _read_through_gateway(self, ref: ShardRef, sql: str) -> pa.Table:
        answer = _connected(self.where).query(
            sql,
            timeout_ms=self.timeout_ms,
            headers={"x-accel-shard": str(ref)},
            name=uuid.uuid4().hex,
        )
        return pa.Table.from_batches(list(answer.batches()), answer.schema)

    def _as_pandas(self, table: pa.Table) -> Any:
        from accel_dask.client.materialize import to_pandas

        items = self.view.items
        wanted = [self._dtype(item.expr) for item in items]
        for column, dtype, item in zip(table.columns, wanted, items, strict=True):
            _check_exact(column, dtype, item)
        found = to_pandas(
            table, self.view, dtype_backend=self.dtype_backend, is_series=self.is_series,
            provenance=None,
        )  # fmt: skip
        return _with_dtypes(found, wanted, len(self.view.index))

    def _dtype(self, expr: Expr) -> Any:
        """One dtype for all partitions; None: whatever the values have."""
        from accel_dask.client.materialize import pandas_dtype

        if self.dtype_backend != "numpy" or expr.dtype.kind in {Kind.CATEGORY, Kind.OTHER}:
            return None
        if expr.dtype.kind in _WITH_MISSING and _may_miss(expr, self.missing):
            return _WITH_MISSING[expr.dtype.kind]
        return pandas_dtype(expr.dtype)


@lru_cache(maxsize=8)
def _connected(where: tuple[str, str, str]) -> FlightTransport:
    """One connection per process; it is made when it is first used."""
    return FlightTransport.later(*where)


def _this_host() -> str | None:
    """The name of the host whose Dask worker runs this task; None: no worker does."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        return str(get_worker().name)
    except ValueError:
        return None


def compiled_of(view: View) -> Compiled:
    """All rows of `view`, not capped: the tenant's own limits hold for each shard."""
    columns = [(f"c{i}", item.expr) for i, item in enumerate(view.items)]
    return compile_rows(view.rows, columns)


def sql_of(view: View) -> str:
    """The SQL of the same."""
    return compiled_of(view).sql


# Missing values: partitions must have one dtype, so it is decided for all of them


def _may_miss(expr: Expr, missing: frozenset[str]) -> bool:
    """Whether an integer or boolean may be missing in any row."""
    if isinstance(expr, Column):
        if isinstance(expr.source, Derived):
            return _may_miss(dict(expr.source.columns)[expr.name], missing)
        return expr.name in missing
    if isinstance(expr, Call) and expr.op == "coalesce":
        return all(_may_miss(one, missing) for one in expr.operands)
    if isinstance(expr, Call) and expr.op in _AS_OPERANDS:
        return any(_may_miss(one, missing) for one in expr.operands)
    return expr.may_null


def _check_exact(column: pa.ChunkedArray, dtype: Any, item: Item) -> None:
    if dtype != "float64" or item.expr.dtype.kind is not Kind.INT:
        return
    bounds = pc.min_max(column).as_py()
    if max(abs(bounds["min"] or 0), abs(bounds["max"] or 0)) > EXACT:
        raise UnsupportedOperation(
            f"to_dask_dataframe: {item.label!r} has missing values and integers beyond 2**53, "
            "which a float does not hold; use dtype_backend='numpy_nullable'"
        )


def _with_dtypes(found: Any, wanted: Sequence[Any], index: int) -> Any:
    """`found` in the dtypes that all partitions have."""
    if index == 1 and wanted[0] is not None and found.index.dtype != wanted[0]:
        found.index = found.index.astype(wanted[0])
    if found.ndim == 1:
        dtype = wanted[index]
        return found if dtype is None or found.dtype == dtype else found.astype(dtype)
    for position, dtype in enumerate(wanted[index:]):
        if dtype is not None and found.dtypes.iloc[position] != dtype:
            found.isetitem(position, found.iloc[:, position].astype(dtype))
    return found


_WITH_MISSING: Final = {Kind.INT: "float64", Kind.BOOL: "object"}
_AS_OPERANDS: Final = frozenset(
    ["add", "sub", "mul", "neg", "abs", "cast", "date_part", "date_trunc", "round", "truncated"]
)
"""What is missing where an operand is, and nowhere else."""
