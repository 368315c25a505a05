"""CommandGetXdbcTypeInfo: the types that columns may have."""

from __future__ import annotations

from typing import Any, Final

import pyarrow as pa

from flightsql_gateway.flight_sql.request import Request

SCHEMA = pa.schema(
    [
        pa.field("type_name", pa.string(), nullable=False),
        pa.field("data_type", pa.int32(), nullable=False),
        pa.field("column_size", pa.int32()),
        pa.field("literal_prefix", pa.string()),
        pa.field("literal_suffix", pa.string()),
        pa.field("create_params", pa.list_(pa.field("item", pa.string(), nullable=False))),
        pa.field("nullable", pa.int32(), nullable=False),
        pa.field("case_sensitive", pa.bool_(), nullable=False),
        pa.field("searchable", pa.int32(), nullable=False),
        pa.field("unsigned_attribute", pa.bool_()),
        pa.field("fixed_prec_scale", pa.bool_(), nullable=False),
        pa.field("auto_increment", pa.bool_()),
        pa.field("local_type_name", pa.string()),
        pa.field("minimum_scale", pa.int32()),
        pa.field("maximum_scale", pa.int32()),
        pa.field("sql_data_type", pa.int32(), nullable=False),
        pa.field("datetime_subcode", pa.int32()),
        pa.field("num_prec_radix", pa.int32()),
        pa.field("interval_precision", pa.int32()),
    ]
)

# Name, XDBC type, size in digits or characters, quote around literals, unsigned.
_TYPES: Final = (
    ("BOOLEAN", -7, 1, None, None),
    ("TINYINT", -6, 3, None, False),
    ("BIGINT", -5, 19, None, False),
    ("UBIGINT", -5, 20, None, True),
    ("BLOB", -4, None, "'", None),
    ("DECIMAL", 3, 38, None, False),
    ("INTEGER", 4, 10, None, False),
    ("UINTEGER", 4, 10, None, True),
    ("SMALLINT", 5, 5, None, False),
    ("FLOAT", 6, 24, None, False),
    ("DOUBLE", 8, 53, None, False),
    ("VARCHAR", 12, None, "'", None),
    ("DATE", 91, 10, "'", None),
    ("TIME", 92, 15, "'", None),
    ("TIMESTAMP", 93, 26, "'", None),
    ("TIMESTAMP WITH TIME ZONE", 93, 32, "'", None),
)


def schema(command: Any) -> pa.Schema:  # noqa: ARG001 - the same for every command file
    return SCHEMA


def answer(command: Any, request: Request) -> pa.Table:  # noqa: ARG001
    wanted = command.data_type if command.HasField("data_type") else None
    rows = [_row(*entry) for entry in _TYPES if wanted is None or entry[1] == wanted]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _row(
    name: str, code: int, size: int | None, quote: str | None, unsigned: bool | None
) -> dict[str, Any]:
    return {
        "type_name": name,
        "data_type": code,
        "column_size": size,
        "literal_prefix": quote,
        "literal_suffix": quote,
        "create_params": ["precision", "scale"] if name == "DECIMAL" else None,
        "nullable": 1,
        "case_sensitive": name == "VARCHAR",
        "searchable": 3,
        "unsigned_attribute": unsigned,
        "fixed_prec_scale": name == "DECIMAL",
        "auto_increment": False,
        "local_type_name": name,
        "minimum_scale": 0 if name == "DECIMAL" else None,
        "maximum_scale": 38 if name == "DECIMAL" else None,
        "sql_data_type": 9 if code in {91, 92, 93} else code,
        "datetime_subcode": code - 90 if code in {91, 92, 93} else None,
        "num_prec_radix": 2 if name in {"FLOAT", "DOUBLE"} else 10 if unsigned is False else None,
        "interval_precision": None,
    }
