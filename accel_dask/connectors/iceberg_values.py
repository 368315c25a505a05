"""Iceberg types and single values in the engine's words; used by the Iceberg connector."""

from __future__ import annotations

import math
import struct
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FixedType,
    FloatType,
    IcebergType,
    IntegerType,
    LongType,
    StringType,
    TimestampType,
    TimestamptzType,
    TimeType,
    UUIDType,
)

_TYPES: dict[type[IcebergType], str] = {
    BooleanType: "BOOLEAN",
    IntegerType: "INTEGER",
    LongType: "BIGINT",
    FloatType: "FLOAT",
    DoubleType: "DOUBLE",
    DateType: "DATE",
    TimeType: "TIME",
    TimestampType: "TIMESTAMP",
    TimestamptzType: "TIMESTAMP WITH TIME ZONE",
    StringType: "VARCHAR",
    UUIDType: "UUID",
    FixedType: "BLOB",
    BinaryType: "BLOB",
}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_DAY_MICROSECONDS = 86_400_000_000


def engine_type(iceberg_type: IcebergType) -> str | None:
    """The DuckDB type that holds every value of `iceberg_type`; None: there is none."""
    if isinstance(iceberg_type, DecimalType):
        return f"DECIMAL({iceberg_type.precision},{iceberg_type.scale})"
    return _TYPES.get(type(iceberg_type))


def bound_text(iceberg_type: IcebergType, bound: bytes | None) -> str | None:
    """A manifest's bound as text that the engine casts to the column's type.

    None where there is no bound or it is not to be trusted: binary values, UUIDs (older writers
    ordered them as signed numbers), NaN, dates outside the calendar, lengths of another type.
    """
    if bound is None:
        return None
    try:
        return _bound_text(iceberg_type, bound)
    except (struct.error, ValueError, OverflowError):
        return None


def _bound_text(iceberg_type: IcebergType, bound: bytes) -> str | None:
    match iceberg_type:
        case BooleanType():
            return "true" if bound[0] else "false"
        case IntegerType() | LongType():
            # A promoted column keeps the bounds of its narrower days.
            return str(struct.unpack("<i" if len(bound) == 4 else "<q", bound)[0])
        case FloatType() | DoubleType():
            number = struct.unpack("<f" if len(bound) == 4 else "<d", bound)[0]
            return None if math.isnan(number) else repr(number)
        case DecimalType():
            unscaled = int.from_bytes(bound, "big", signed=True)
            return value_text(iceberg_type, Decimal(unscaled).scaleb(-iceberg_type.scale))
        case DateType():
            return value_text(iceberg_type, struct.unpack("<i", bound)[0])
        case TimeType() | TimestampType() | TimestamptzType():
            return value_text(iceberg_type, struct.unpack("<q", bound)[0])
        case StringType():
            return None if b"\0" in bound else bound.decode("utf-8")
        case _:
            return None


def value_text(iceberg_type: IcebergType, value: Any) -> str | None:
    """A value as text that the engine casts to the column's type; times may be numbers of
    days or microseconds, as manifests have them."""
    if value is None:
        return None
    match iceberg_type:
        case BooleanType():
            text = "true" if value else "false"
        case DecimalType():
            text = format(value, "f")
        case BinaryType() | FixedType():
            text = "".join(f"\\x{byte:02X}" for byte in value)
        case _:
            text = _number_text(iceberg_type, value) if isinstance(value, int) else str(value)
    return text


def _number_text(iceberg_type: IcebergType, value: int) -> str:
    match iceberg_type:
        case DateType():
            return date.fromordinal(_EPOCH_DAY + value).isoformat()
        case TimeType():
            time = _EPOCH + timedelta(microseconds=value % _DAY_MICROSECONDS)
            return time.strftime("%H:%M:%S.%f")
        case TimestampType():
            return _instant(value)
        case TimestamptzType():
            return _instant(value) + "+00"
        case _:
            return str(value)


def _instant(microseconds: int) -> str:
    instant = _EPOCH + timedelta(microseconds=microseconds)
    return instant.replace(tzinfo=None).isoformat(sep=" ", timespec="microseconds")


def ordered_text(value: Any) -> str:
    """A partition value as text whose order is the values' order; NULL comes first."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int):
        return f"={value}"
    if value < 0:
        return f"=-{10**19 + value:019d}"  # '-' sorts before digits
    return f"={value:019d}"
