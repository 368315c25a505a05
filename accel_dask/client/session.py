"""Connections, and how frames run on them: bounded, cancellable, with provenance."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any, Final, Self

import pyarrow as pa

from accel_dask.client import dtypes, nodes
from accel_dask.client.frame import DataFrame
from accel_dask.client.lower import Compiled
from accel_dask.client.nodes import Field, Scan, Text
from accel_dask.client.options import Fallback, Options
from accel_dask.client.provenance import Provenance, from_receipt
from accel_dask.client.running import Watched
from accel_dask.client.snapshots import AnswerCache, Pins, Snapshots
from accel_dask.client.transport import FlightTransport, Transport
from accel_dask.client.view import Item, View, unknown_column
from accel_dask.errors import (
    ConfigError,
    EpochRetired,
    FallbackForbidden,
    ResultTooLarge,
    SchemaChanged,
    UnknownTable,
)

_URL: Final = "ACCEL_URL"
_USER: Final = "ACCEL_USER"
_TOKEN: Final = "ACCEL_TOKEN"  # noqa: S105 - the name of a variable


def connect(url: str | None = None, *, user: str | None = None, token: str | None = None,
            **options: Any) -> Session:  # fmt: skip
    """A session with a gateway: at `url`, else what ACCEL_URL, ACCEL_USER and ACCEL_TOKEN say,
    else the local cluster that runs. `options` are those of `Options`.

    Raises:
        ConfigError: nothing says where, or who.
        Unauthenticated: user and token do not match.
        ExecutorUnavailable: no gateway answers there.
    """
    url = url or os.environ.get(_URL)
    user = user or os.environ.get(_USER)
    token = token or os.environ.get(_TOKEN)
    if not url or not token:
        url, user, token = _local(url, user, token)
    if not user:
        raise ConfigError(f"say who is asking: connect(user=...), or {_USER}")
    return Session(FlightTransport(url, user, token), Options(**options))


def _local(url: str | None, user: str | None, token: str | None) -> tuple[str, str, str]:
    from accel_dask.current import find_current

    current = find_current()
    if current is None:
        raise ConfigError(
            f"where is the gateway? connect(url, user=..., token=...), {_URL} with {_USER} and "
            f"{_TOKEN}, or a local cluster (accel-dask up)"
        )
    users = sorted(current.tokens)
    user = user or (users[0] if len(users) == 1 else None)
    found = token or current.tokens.get(user or "")
    if not user or not found:
        raise ConfigError(f"connect(user=...): the local cluster knows {', '.join(users)}")
    return url or current.gateways[0], user, found


class Session:
    """One user's connection. Frames of it run on it."""

    def __init__(self, transport: Transport, options: Options | None = None) -> None:
        self._transport = transport
        self.options = options or Options()
        self.last_query: Provenance | None = None
        """Where the newest answer came from."""
        self.fallbacks = 0
        """Answers that came from the OLAP engine."""
        self._scans: dict[str, Scan] = {}
        self._seen: dict[tuple[bool, str], tuple[object, tuple[Field, ...]]] = {}
        """Columns of datasets (true) and texts, and the epochs at which they were looked at."""
        self._snapshots = Snapshots()
        self._cache = AnswerCache()

    # What there is

    def tables(self) -> list[str]:
        """The names of the datasets that can be asked."""
        return sorted(self._transport.tables())

    def table(self, name: str) -> DataFrame:
        """The dataset `name` as a lazy frame.

        Raises:
            UnknownTable: there is none of that name.
        """
        scan = self._scans.get(name)
        if scan is None:
            scan = self._scans[name] = self._scan(name)
        return self._frame(scan)

    def sql(self, text: str) -> DataFrame:
        """The answer to a query of one's own, as a lazy frame to go on from.

        Raises:
            QueryError: the gateway would not take it.
        """
        text = text.strip().rstrip(";")
        return self._frame(Text(text, _fields(self._transport.describe(text))))

    def refresh(self) -> None:
        """Forget what is known of datasets' columns."""
        self._scans.clear()
        self._seen.clear()

    def _scan(self, name: str) -> Scan:
        schemas = self._transport.tables()
        if name not in schemas:
            raise UnknownTable(unknown_column(name, sorted(schemas)).replace("column", "dataset"))
        schema = schemas[name]
        metadata = schema.metadata or {}
        sort_by = metadata.get(b"accel:sort_by", b"").decode()
        return Scan(name, _fields(schema), tuple(sort_by.split("\x1f")) if sort_by else ())

    def _frame(self, source: Scan | Text) -> DataFrame:
        columns = nodes.scan_columns(source)
        return DataFrame(self, View(source, tuple(Item(one.name, one) for one in columns)))

    # Running

    def fetch(self, compiled: Compiled, cap: int) -> tuple[pa.Table, Provenance]:
        """The whole answer, and where it came from.

        Raises:
            ResultTooLarge: it has more than `cap` rows.
            FallbackForbidden: it came from the OLAP engine, and the options forbid that.
            AccelError: as the gateway answered.
        """
        pins = self._pins_of(compiled)
        known = None if pins is None else self._cached(compiled, pins)
        if known is not None:
            return known
        started = time.perf_counter()
        table, receipt = self._watched(compiled, pins).whole()
        milliseconds = (time.perf_counter() - started) * 1000
        _check_rows(table.num_rows, cap)
        provenance = from_receipt(receipt, compiled.sql, rows=table.num_rows, ms=milliseconds)
        self._note(compiled, provenance)
        if pins is not None:
            limit = self.options.cache_bytes
            self._cache.put(compiled.sql, pins, table, provenance, limit)
        return table, provenance

    def stream(self, compiled: Compiled, cap: int) -> Iterator[tuple[pa.Table, None]]:
        """The answer batch by batch, while it arrives.

        Raises:
            ResultTooLarge: the next batch would make more than `cap` rows.
        """
        query = self._watched(compiled, self._pins_of(compiled))
        rows, started = 0, time.perf_counter()
        with closing(query.batches()) as batches:
            for batch in batches:
                rows += batch.num_rows
                _check_rows(rows, cap)
                yield pa.Table.from_batches([batch]), None
        milliseconds = (time.perf_counter() - started) * 1000
        told = from_receipt(query.receipt(), compiled.sql, rows=rows, ms=milliseconds)
        self._note(compiled, told)

    def _pins_of(self, compiled: Compiled) -> Pins | None:
        """Those of the snapshot, and of what was asked before to make the SQL.

        Raises:
            EpochRetired: the two differ.
        """
        pins = self._snapshots.current()
        for dataset, epoch in compiled.pins:
            if pins is not None and pins.get(dataset, epoch) != epoch:
                raise EpochRetired(
                    f"the bins were made at epoch {epoch} of {dataset}, the snapshot reads "
                    f"{pins[dataset]}: make them inside it"
                )
        return {**(pins or {}), **dict(compiled.pins)} if compiled.pins else pins

    def _watched(self, compiled: Compiled, pins: Pins | None) -> Watched:
        name, headers = uuid.uuid4().hex, _query_headers(pins)
        if self.options.fallback == Fallback.FORBID:
            headers["x-accel-fallback"] = "forbid"
        timeout_ms = self.options.timeout_ms
        return Watched(
            lambda: self._transport.query(
                compiled.sql, timeout_ms=timeout_ms, headers=headers, name=name
            ),
            lambda: self._transport.cancel(name),
            progress_ms=self.options.progress_ms,
        )

    def receipts(self, last: int = 10) -> list[dict[str, Any]]:
        """The gateway's receipts of the newest queries of the user's tenant, newest first."""
        found: list[dict[str, Any]] = self._transport.action("accel.receipts", {"last": last})
        return found

    def explain(self, compiled: Compiled, cap: int) -> str:
        """The SQL, what it reads, its bound and the gateway's plan for it."""
        columns = ", ".join(f"{table}.{name}" for table, name in compiled.columns)
        bound = "one row" if compiled.is_single_row else f"at most {cap:,} rows, else an error"
        plan = self._transport.action("accel.explain", {"sql": compiled.sql})
        return f"SQL      {compiled.sql}\nreads    {columns}\nbound    {bound}\n\n{plan}"

    def _note(self, compiled: Compiled, provenance: Provenance) -> None:
        self.last_query = provenance
        self._check_columns(compiled, provenance)
        if provenance.route != "olap":
            return
        self.fallbacks += 1
        match Fallback(self.options.fallback):
            case Fallback.FORBID:  # a gateway that does not know of it
                raise FallbackForbidden(
                    f"the answer came from the OLAP engine ({provenance.reason}); "
                    "options.fallback = 'allow' or 'warn' takes it"
                )
            case Fallback.WARN:
                from accel_dask.client.display import notice

                read = "the snapshot that memory has" if provenance.is_pinned else "its newest data"
                notice(
                    f"answered by the OLAP engine, which read {read}, and not from memory: "
                    f"{provenance.reason}"
                )
            case Fallback.ALLOW:
                pass

    def _check_columns(self, compiled: Compiled, provenance: Provenance) -> None:
        """What SQL a frame compiles to depends on its sources' types, and an epoch may bring
        others: they are looked at again whenever an answer comes from another epoch than the one
        before, and compared with those that this very frame was made with.

        Raises:
            SchemaChanged: they are others.
        """
        epochs = dict(provenance.epochs)
        schemas: dict[str, pa.Schema] | None = None
        for source in compiled.sources:
            is_table = isinstance(source, Scan)
            name = source.table if isinstance(source, Scan) else source.sql
            at = epochs.get(name) if is_table else provenance.epochs
            if not at:
                continue
            seen = self._seen.get((is_table, name))
            if seen is None or seen[0] != at:
                if is_table:
                    schemas = self._transport.tables() if schemas is None else schemas
                    found = schemas.get(name)
                else:
                    found = self._transport.describe(name)
                seen = self._seen[is_table, name] = at, () if found is None else _fields(found)
            if not _is_compatible(source.fields, seen[1]):
                raise self._changed(source, provenance)

    def _changed(self, source: Scan | Text, provenance: Provenance) -> SchemaChanged:
        if isinstance(source, Scan):
            self._scans.pop(source.table, None)
            epoch = dict(provenance.epochs)[source.table]
            return SchemaChanged(
                f"the columns of {source.table} changed with epoch {epoch}: make the frame again "
                f"from session.table({source.table!r}), or call session.refresh()"
            )
        used = ", ".join(f"{name}@{epoch}" for name, epoch in provenance.epochs)
        return SchemaChanged(
            f"the columns of a query changed with {used}: make the frame again from "
            f"session.sql({source.sql[:60]!r})"
        )

    # Snapshots

    @contextmanager
    def snapshot(self) -> Iterator[Mapping[str, int]]:
        """Every query inside reads the epochs that serve now, or fails. Queries of other threads
        do so too, unless they are in a snapshot of their own."""
        found = self._transport.action("accel.datasets", {})
        pins = {one["dataset"]: one["epoch"] for one in found}
        try:
            with self._snapshots.opened(pins):
                yield dict(pins)
        finally:
            if not self._snapshots.is_any:
                self._cache.clear()

    def _cached(self, compiled: Compiled, pins: Pins) -> tuple[pa.Table, Provenance] | None:
        found = self._cache.get(compiled.sql, pins)
        if found is None:
            return None
        table, provenance = found
        self.last_query = replace(provenance, is_cached=True, total_ms=0.0)
        return table, self.last_query

    # Its end

    def close(self) -> None:
        """End the connection."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _query_headers(pins: Pins | None) -> dict[str, str]:
    if not pins:
        return {}
    return {"x-accel-epochs": ",".join(f"{name}@{n}" for name, n in sorted(pins.items()))}


def _fields(schema: pa.Schema) -> tuple[Field, ...]:
    found = []
    for field in schema:
        metadata = field.metadata or {}
        nulls = metadata.get(b"accel:nulls", b"")
        found.append(
            Field(
                field.name,
                dtypes.of_arrow(field.type),
                may_nan=metadata.get(b"accel:nan") != b"0",
                # What an epoch happens to hold may be other in the next one, while frames stay.
                may_null=field.nullable and nulls != b"never",
                has_missing={b"never": False, b"0": False, b"some": True}.get(nulls),
            )
        )
    return tuple(found)


def _is_compatible(before: tuple[Field, ...], now: tuple[Field, ...]) -> bool:
    """Whether SQL that was made for columns `before` means the same for those of `now`."""
    return len(before) == len(now) and all(
        (old.name, old.dtype) == (new.name, new.dtype)
        and old.may_null >= new.may_null
        and old.may_nan >= new.may_nan
        for old, new in zip(before, now, strict=True)
    )


def _check_rows(rows: int, cap: int) -> None:
    if rows > cap:
        raise ResultTooLarge(
            f"the answer has more than max_rows={cap:,} rows: aggregate (groupby, agg), filter, "
            f"or take a part (.head(n), .nlargest(n, column)); .limit_rows(n) raises the limit"
        )
