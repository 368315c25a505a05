"""Types of columns and literals as the client reasons about them: a few kinds over SQL types."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Hashable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final

import pyarrow as pa


class Kind(StrEnum):
    """What operations and pandas dtype a value has."""

    BOOL = "bool"
    INT = "int"
    FLOAT = "float"
    DECIMAL = "decimal"
    STRING = "string"
    DATE = "date"
    TIMESTAMP = "timestamp"
    TIMESTAMPTZ = "timestamptz"
    DURATION = "duration"
    """Microseconds in a BIGINT."""
    CATEGORY = "category"
    """Codes into `DType.categories`, in an INTEGER."""
    NULL = "null"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class DType:
    """A kind and the SQL type that holds it."""

    kind: Kind
    sql: str
    zone: str = "UTC"
    """Of a TIMESTAMPTZ: the zone that its fields are read in."""
    categories: tuple[Hashable, ...] = ()
    """Of a CATEGORY, in order."""

    @property
    def is_number(self) -> bool:
        return self.kind in NUMBERS

    @property
    def is_time(self) -> bool:
        return self.kind in TIMES


BOOL: Final = DType(Kind.BOOL, "BOOLEAN")
INT: Final = DType(Kind.INT, "BIGINT")
HUGE: Final = DType(Kind.INT, "HUGEINT")
FLOAT: Final = DType(Kind.FLOAT, "DOUBLE")
STRING: Final = DType(Kind.STRING, "TEXT")
DATE: Final = DType(Kind.DATE, "DATE")
TIMESTAMP: Final = DType(Kind.TIMESTAMP, "TIMESTAMP")
TIMESTAMPTZ: Final = DType(Kind.TIMESTAMPTZ, "TIMESTAMPTZ")
DURATION: Final = DType(Kind.DURATION, "BIGINT")
NULL: Final = DType(Kind.NULL, "NULL")

NUMBERS: Final = frozenset([Kind.BOOL, Kind.INT, Kind.FLOAT, Kind.DECIMAL])
TIMES: Final = frozenset([Kind.DATE, Kind.TIMESTAMP, Kind.TIMESTAMPTZ])


def of_arrow(kind: pa.DataType) -> DType:  # noqa: PLR0911 - a table in words
    """The type of an Arrow column as executors send it."""
    types = pa.types
    if types.is_boolean(kind):
        return BOOL
    if types.is_integer(kind):
        return DType(Kind.INT, _INTEGERS[str(kind)])
    if types.is_floating(kind):
        return DType(Kind.FLOAT, "FLOAT" if str(kind) == "float" else "DOUBLE")
    if types.is_decimal(kind):
        if kind.scale == 0 and kind.precision == 38:
            return DType(Kind.INT, "HUGEINT")
        return DType(Kind.DECIMAL, f"DECIMAL({kind.precision}, {kind.scale})")
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return STRING
    if types.is_date(kind):
        return DATE
    if types.is_timestamp(kind):
        return TIMESTAMPTZ if kind.tz else TIMESTAMP
    if types.is_null(kind):
        return NULL
    return DType(Kind.OTHER, str(kind))


_INTEGERS: Final = {
    "int8": "TINYINT",
    "int16": "SMALLINT",
    "int32": "INTEGER",
    "int64": "BIGINT",
    "uint8": "UTINYINT",
    "uint16": "USMALLINT",
    "uint32": "UINTEGER",
    "uint64": "UBIGINT",
}


def arrow_type(dtype: DType) -> pa.DataType:
    """The Arrow type that a column of `dtype` comes in."""
    match dtype.kind:
        case Kind.INT:
            names = {sql: name for name, sql in _INTEGERS.items()}
            return pa.type_for_alias(names.get(dtype.sql, "int64"))
        case Kind.FLOAT:
            return pa.float32() if dtype.sql == "FLOAT" else pa.float64()
        case Kind.DURATION:
            return pa.int64()
        case Kind.CATEGORY:
            return pa.int32()
        case _:
            return _ARROW.get(dtype.kind, pa.null())


_ARROW: Final = {
    Kind.BOOL: pa.bool_(),
    Kind.DECIMAL: pa.float64(),
    Kind.STRING: pa.string(),
    Kind.DATE: pa.date32(),
    Kind.TIMESTAMP: pa.timestamp("us"),
    Kind.TIMESTAMPTZ: pa.timestamp("us", tz="UTC"),
}


def plain(value: Any) -> Any:
    """`value` as plain Python: NumPy and pandas scalars unwrapped, everything missing as None.

    Durations and timestamps of pandas are subclasses of the plain ones and stay.
    """
    if value is None or value is NotImplemented:
        return None
    name = type(value).__name__
    if name in {"NAType", "NaTType"}:
        return None
    module = type(value).__module__
    if module.partition(".")[0] == "numpy" and hasattr(value, "item"):
        if name in {"datetime64", "timedelta64"}:
            value = value.astype(f"{name}[us]")
        value = value.item()
    if isinstance(value, float) and math.isnan(value):
        return None
    return value


def of_value(value: Any) -> DType | None:
    """The type of a plain literal; None: it has none in SQL."""
    if isinstance(value, dt.datetime) and value.tzinfo is not None:
        return TIMESTAMPTZ
    for python, dtype in _LITERALS:
        if isinstance(value, python):
            return dtype
    return NULL if value is None else None


# A bool is an int, and a datetime is a date: the order decides.
_LITERALS: Final[tuple[tuple[type, DType], ...]] = (
    (bool, BOOL),
    (int, INT),
    (float, FLOAT),
    (Decimal, DType(Kind.DECIMAL, "DECIMAL")),
    (str, STRING),
    (dt.datetime, TIMESTAMP),
    (dt.date, DATE),
    (dt.timedelta, DURATION),
)
