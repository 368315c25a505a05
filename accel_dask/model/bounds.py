"""Order and merge of statistics whose bounds are texts; used by connectors and sharding."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from decimal import Decimal, InvalidOperation

from accel_dask.model.snapshot import ColumnStats

BoundKey = int | float | Decimal | str

_INTEGERS = frozenset(
    {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT"}
    | {"UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"}
)
FLOATS = frozenset({"FLOAT", "DOUBLE"})
# ISO texts of four-digit years order as their instants do; anything else has no key.
_ISO = {
    "DATE": re.compile(r"\d{4}-\d\d-\d\d"),
    "TIME": re.compile(r"\d\d:\d\d:\d\d(\.\d+)?"),
    "TIMESTAMP": re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?"),
    "TIMESTAMP WITH TIME ZONE": re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(\.\d+)?\+00"),
}
_ISO["TIMESTAMP_NS"] = _ISO["TIMESTAMP"]


def bound_key(column_type: str, text: str) -> BoundKey | None:
    """A value that compares as the engine compares `text` cast to `column_type`; None where
    we do not know how to."""
    if column_type == "VARCHAR":
        return text  # code point order is UTF-8 byte order
    if column_type == "BOOLEAN":
        return {"false": 0, "true": 1}.get(text)
    try:
        return _number(column_type, text)
    except (ValueError, InvalidOperation):
        return None


def _number(column_type: str, text: str) -> BoundKey | None:
    if column_type in _INTEGERS:
        return int(text)
    if column_type in FLOATS:
        number = float(text)
        return None if math.isnan(number) else number
    if column_type.startswith("DECIMAL"):
        return Decimal(text)
    pattern = _ISO.get(column_type)
    if pattern is None or not pattern.fullmatch(text):
        return None
    text = text.removesuffix("+00")
    return text.rstrip("0").rstrip(".") if "." in text else text


def merge_stats(
    name: str, column_type: str, parts: Iterable[tuple[ColumnStats | None, int]]
) -> ColumnStats:
    """The statistics of one column over all `parts`, each with its number of rows. What one
    part does not say, the whole does not know."""
    nulls: int | None = 0
    lowers: list[str] | None = []
    uppers: list[str] | None = []
    exact = True
    for stats, rows in parts:
        if rows == 0:
            continue
        known = stats or ColumnStats(name=name)
        nulls = None if nulls is None or known.null_count is None else nulls + known.null_count
        if known.null_count == rows:
            continue  # no values, so no bounds to wait for
        lowers = _with(lowers, known.lower)
        uppers = _with(uppers, known.upper)
        exact = exact and known.exact
    lower = _extreme(column_type, lowers, want_least=True)
    upper = _extreme(column_type, uppers, want_least=False)
    return ColumnStats(
        name=name,
        null_count=nulls,
        lower=lower,
        upper=upper,
        exact=exact and lower is not None and upper is not None,
    )


def _with(bounds: list[str] | None, bound: str | None) -> list[str] | None:
    return None if bounds is None or bound is None else [*bounds, bound]


def _extreme(column_type: str, bounds: list[str] | None, *, want_least: bool) -> str | None:
    keyed: list[tuple[BoundKey, str]] = []
    for bound in bounds or ():
        key = bound_key(column_type, bound)
        if key is None:
            return None
        keyed.append((key, bound))
    if not keyed:
        return None
    # All keys of one column type have one Python type, so they compare.
    return (min if want_least else max)(keyed, key=lambda pair: pair[0])[1]
