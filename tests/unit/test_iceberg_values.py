"""Iceberg's bounds and values as texts that the engine casts."""

from __future__ import annotations

import datetime as dt
import struct
from decimal import Decimal

import duckdb
import pytest
from pyiceberg.conversions import to_bytes
from pyiceberg.types import (
    BinaryType,
    BooleanType,
    DateType,
    DecimalType,
    DoubleType,
    FloatType,
    IcebergType,
    IntegerType,
    ListType,
    LongType,
    StringType,
    TimestampNanoType,
    TimestampType,
    TimestamptzType,
    TimeType,
    UUIDType,
)

from accel_dask.connectors.iceberg_values import (
    bound_text,
    engine_type,
    ordered_text,
    value_text,
)

MICRO = 1_000_000


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (BooleanType(), True, "true"),
        (IntegerType(), -5, "-5"),
        (LongType(), 2**63 - 1, str(2**63 - 1)),
        (FloatType(), 0.5, "0.5"),
        (DoubleType(), 1e300, "1e+300"),
        (DecimalType(38, 3), Decimal("-12345678901234567890.001"), "-12345678901234567890.001"),
        (DecimalType(9, 2), Decimal("0.00"), "0.00"),
        (DateType(), -1, "1969-12-31"),
        (TimeType(), 3723 * MICRO + 1, "01:02:03.000001"),
        (TimestampType(), -1, "1969-12-31 23:59:59.999999"),
        (TimestamptzType(), 86400 * MICRO, "1970-01-02 00:00:00.000000+00"),
        (StringType(), "é'", "é'"),
    ],
)
def test_a_bound_is_text_that_casts_back_to_its_value(
    kind: IcebergType, value: object, text: str
) -> None:
    found = bound_text(kind, to_bytes(kind, value))
    assert found == text
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        row = engine.execute(
            f"SELECT CAST(CAST(? AS {engine_type(kind)}) AS VARCHAR)", [found]
        ).fetchone()
    assert row is not None
    assert row[0] is not None


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        (IntegerType(), None),
        (DoubleType(), struct.pack("<d", float("nan"))),
        (LongType(), b"\x01"),
        (DateType(), struct.pack("<i", 2**31 - 1)),
        (TimestampType(), struct.pack("<q", 2**62)),
        (TimestampType(), struct.pack("<i", 1)),  # of days when the column was a date
        (StringType(), b"\xff\xfe"),
        (StringType(), b"a\0"),
        (BinaryType(), b"a"),
        (UUIDType(), bytes(16)),
    ],
)
def test_a_bound_that_is_not_to_be_trusted_is_none(kind: IcebergType, bound: bytes | None) -> None:
    assert bound_text(kind, bound) is None


def test_a_promoted_column_keeps_the_bounds_of_its_narrower_days() -> None:
    assert bound_text(LongType(), struct.pack("<i", -7)) == "-7"
    assert bound_text(DoubleType(), struct.pack("<f", 0.25)) == "0.25"
    assert bound_text(DecimalType(18, 2), b"\xff") == "-0.01"


def test_types_without_an_exact_home_have_none() -> None:
    assert engine_type(TimestampNanoType()) is None
    assert engine_type(ListType(1, LongType())) is None
    assert engine_type(DecimalType(12, 2)) == "DECIMAL(12,2)"


def test_values_of_partitions_are_written_as_the_engine_reads_them() -> None:
    assert value_text(StringType(), None) is None
    assert value_text(DateType(), 19_000) == "2022-01-08"
    assert value_text(DateType(), dt.date(2022, 1, 8)) == "2022-01-08"
    assert value_text(BinaryType(), b"\x00A") == "\\x00\\x41"
    assert value_text(LongType(), -3) == "-3"


def test_partition_texts_order_as_their_values() -> None:
    values: list[object] = [None, -(10**18), -11, -2, -1, 0, 1, 9, 10, 10**18]
    texts = [ordered_text(value) for value in values]
    assert texts == sorted(texts)
    assert ordered_text("2024-01-09") < ordered_text("2024-01-10")
