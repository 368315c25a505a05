"""DuckDB type names as Arrow types, exactly as an executor sends them, and as XDBC type codes."""

from __future__ import annotations

import re
from typing import Final

import pyarrow as pa

from accel_dask.model.snapshot import Column

_PLAIN: Final[dict[str, pa.DataType]] = {
    "BOOLEAN": pa.bool_(),
    "TINYINT": pa.int8(),
    "SMALLINT": pa.int16(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "HUGEINT": pa.decimal128(38, 0),
    "UTINYINT": pa.uint8(),
    "USMALLINT": pa.uint16(),
    "UINTEGER": pa.uint32(),
    "UBIGINT": pa.uint64(),
    "UHUGEINT": pa.decimal128(38, 0),
    "FLOAT": pa.float32(),
    "DOUBLE": pa.float64(),
    "VARCHAR": pa.string(),
    "JSON": pa.string(),
    "UUID": pa.string(),
    "BLOB": pa.binary(),
    "BIT": pa.binary(),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
    "TIME WITH TIME ZONE": pa.time64("us"),
    "TIMESTAMP": pa.timestamp("us"),
    "TIMESTAMP_S": pa.timestamp("s"),
    "TIMESTAMP_MS": pa.timestamp("ms"),
    "TIMESTAMP_NS": pa.timestamp("ns"),
    "TIMESTAMP WITH TIME ZONE": pa.timestamp("us", tz="UTC"),
    "INTERVAL": pa.month_day_nano_interval(),
    '"NULL"': pa.null(),
}
_ALIASES: Final = {
    "INT": "INTEGER",
    "LONG": "BIGINT",
    "REAL": "FLOAT",
    "STRING": "VARCHAR",
    "TEXT": "VARCHAR",
    "TIMESTAMPTZ": "TIMESTAMP WITH TIME ZONE",
    "TIMETZ": "TIME WITH TIME ZONE",
}
_DECIMAL: Final = re.compile(r"DECIMAL\((\d+),\s*(\d+)\)", re.IGNORECASE)
_ARRAY: Final = re.compile(r"(.*)\[(\d*)\]", re.DOTALL)


def arrow_type(name: str) -> pa.DataType:
    """The Arrow type of the DuckDB type `name`; text for one that is not known here."""
    name = name.strip()
    upper = name.upper()
    plain = _PLAIN.get(_ALIASES.get(upper, upper))
    if plain is not None:
        return plain
    if found := _DECIMAL.fullmatch(name):
        return pa.decimal128(int(found[1]), int(found[2]))
    if found := _ARRAY.fullmatch(name):
        size = int(found[2]) if found[2] else -1
        field = pa.field("l" if size < 0 else "", arrow_type(found[1]))
        return pa.list_(field, size)
    if upper.startswith("STRUCT(") and name.endswith(")"):
        parts = (_split_name(part) for part in _split(name[7:-1]))
        return pa.struct([pa.field(field, arrow_type(kind)) for field, kind in parts])
    if upper.startswith("MAP(") and name.endswith(")"):
        key, value = _split(name[4:-1])
        return pa.map_(arrow_type(key), arrow_type(value))
    return pa.string()


def _split(text: str) -> list[str]:
    """`text` at its outermost commas."""
    parts, depth, is_quoted, start = [], 0, False, 0
    for index, character in enumerate(text):
        if character == '"':
            is_quoted = not is_quoted
        elif not is_quoted:
            depth += (character in "([") - (character in ")]")
            if character == "," and depth == 0:
                parts.append(text[start:index])
                start = index + 1
    return [*parts, text[start:]]


def _split_name(text: str) -> tuple[str, str]:
    """Name and type of one field of a STRUCT."""
    text = text.strip()
    if text.startswith('"'):
        found = re.match(r'"((?:[^"]|"")*)"\s+(.*)', text, re.DOTALL)
        if found:
            return found[1].replace('""', '"'), found[2]
    name, _, kind = text.partition(" ")
    return name, kind


def schema_of(columns: tuple[Column, ...], catalog: str, db_schema: str, table: str) -> pa.Schema:
    """A table's schema with the metadata that Flight SQL names for columns."""
    return pa.schema(
        [
            pa.field(
                column.name,
                arrow_type(column.type),
                metadata={
                    "ARROW:FLIGHT:SQL:CATALOG_NAME": catalog,
                    "ARROW:FLIGHT:SQL:DB_SCHEMA_NAME": db_schema,
                    "ARROW:FLIGHT:SQL:TABLE_NAME": table,
                    "ARROW:FLIGHT:SQL:TYPE_NAME": column.type,
                    "ARROW:FLIGHT:SQL:IS_READ_ONLY": "1",
                    "ARROW:FLIGHT:SQL:IS_SEARCHABLE": "1",
                },
            )
            for column in columns
        ]
    )
