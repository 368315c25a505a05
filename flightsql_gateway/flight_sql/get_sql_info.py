"""CommandGetSqlInfo: what this server is and can, by the numbers of the SqlInfo enumeration."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

import pyarrow as pa

from accel_dask.query_planner.statement import MAX_JOINS
from flightsql_gateway.flight_sql.request import Request

_MAP = pa.map_(pa.int32(), pa.list_(pa.int32()))
_VALUE = pa.dense_union(
    [
        pa.field("string_value", pa.string()),
        pa.field("bool_value", pa.bool_()),
        pa.field("bigint_value", pa.int64()),
        pa.field("int32_bitmask", pa.int32()),
        pa.field("string_list", pa.list_(pa.field("string_data", pa.string()))),
        pa.field("int32_to_int32_list_map", _MAP),
    ]
)
SCHEMA = pa.schema(
    [
        pa.field("info_name", pa.uint32(), nullable=False),
        pa.field("value", _VALUE, nullable=False),
    ]
)

_NO_LIMIT: Final = 0


class _Flags(int):
    """An enumeration or bit mask: int32, where plain numbers are int64."""


# Numbers without a comment after them follow one another in the enumeration.
_INFO: Final[dict[int, Any]] = {
    2: pa.__version__,
    3: True,  # read-only
    4: True,  # SQL
    5: False,  # Substrait
    6: "",
    7: "",
    8: _Flags(0),  # no transactions
    9: True,  # cancel
    10: False,  # bulk ingestion
    11: False,
    100: _Flags(0),  # statement timeout, by default
    101: _Flags(0),
    500: False,  # DDL: catalog, schema, table
    501: False,
    502: False,
    503: _Flags(1),  # identifiers are case-insensitive
    504: '"',
    505: _Flags(1),  # quoted ones as well
    506: True,  # all tables listed can be selected from
    507: _Flags(3),  # NULLs at the end
    508: ["QUALIFY", "EXCLUDE", "ASOF", "SEMI", "ANTI", "POSITIONAL"],
    509: ["abs", "ceil", "floor", "ln", "log10", "pow", "round", "sign", "sqrt", "trunc"],
    510: ["concat", "length", "lower", "ltrim", "replace", "rtrim", "substring", "trim", "upper"],
    511: ["coalesce", "ifnull", "nullif"],
    512: ["current_date", "date_diff", "date_part", "date_trunc", "day", "month", "now", "year"],
    513: "\\",
    514: "",
    515: True,  # column aliases
    516: True,  # NULL || 'x' is NULL
    517: {},
    518: True,  # table aliases
    519: False,
    520: True,  # expressions in ORDER BY
    521: True,
    522: _Flags(3),  # GROUP BY: unrelated, beyond select
    523: True,  # LIKE ... ESCAPE
    524: True,
    525: _Flags(7),  # grammar: minimum, core, extended
    526: _Flags(1),  # ANSI 92 entry level
    527: False,
    528: _Flags(2),  # full outer joins
    529: "schema",
    530: "procedure",
    531: "catalog",
    532: True,
    533: _Flags(0),
    534: _Flags(0),
    535: _Flags(0),
    536: False,  # SELECT FOR UPDATE
    537: False,
    538: _Flags(15),  # subqueries: comparisons, exists, in, quantified
    539: True,  # correlated ones
    540: _Flags(3),  # UNION, UNION ALL
    556: False,
    557: 64 * 1024,  # bytes of a statement
    558: _NO_LIMIT,
    560: MAX_JOINS + 1,  # tables in a SELECT
    562: _Flags(0),
    563: False,  # transactions
    564: _Flags(0),
    565: False,
    566: False,
    567: _Flags(2),  # forward-only results
    568: _Flags(0),
    569: _Flags(2),  # read-only results
    570: _Flags(0),
    571: False,
    572: False,
    573: False,  # named parameters
    574: False,
    575: False,
    576: False,
}
_UNLIMITED: Final = (*range(541, 556), 559, 561)


def schema(command: Any) -> pa.Schema:  # noqa: ARG001 - the same for every command file
    return SCHEMA


def answer(command: Any, request: Request) -> pa.Table:  # noqa: ARG001
    return _table(tuple(command.info))


@cache
def _info() -> dict[int, Any]:
    names = {0: "accel-dask", 1: f"duckdb v{_version('duckdb')}, accel-dask v{_version()}"}
    return names | _INFO | dict.fromkeys(_UNLIMITED, _NO_LIMIT)


def _version(package: str = "accel-dask") -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "0"


def _table(wanted: tuple[int, ...]) -> pa.Table:
    info = _info()
    names = [name for name in wanted if name in info] if wanted else sorted(info)
    children: list[list[Any]] = [[] for _ in range(_VALUE.num_fields)]
    types, offsets = [], []
    for name in names:
        kind = _kind(info[name])
        types.append(kind)
        offsets.append(len(children[kind]))
        value = info[name]
        children[kind].append(list(value.items()) if isinstance(value, dict) else value)
    union = pa.UnionArray.from_dense(
        pa.array(types, pa.int8()),
        pa.array(offsets, pa.int32()),
        [pa.array(child, _VALUE.field(i).type) for i, child in enumerate(children)],
        [_VALUE.field(i).name for i in range(_VALUE.num_fields)],
    )
    return pa.Table.from_arrays([pa.array(names, pa.uint32()), union], schema=SCHEMA)


def _kind(value: Any) -> int:
    """Which member of the union holds `value`."""
    match value:
        case str():
            return 0
        case bool():
            return 1
        case _Flags():
            return 3
        case int():
            return 2
        case list():
            return 4
        case _:
            return 5
