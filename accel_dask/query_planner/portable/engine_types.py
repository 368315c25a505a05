"""Whether an engine's column can be what memory holds of it, by the engine's own type name."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Final

from accel_dask.errors import EngineDisagrees
from accel_dask.query_planner.portable.tree import Scan
from accel_dask.query_planner.portable.types import Kind, SqlType

_NUMBER: Final = re.compile(r"(?:decimal\d*|numeric)\((\d+), ?(\d+)\)")
_INTS: Final = frozenset({"smallint", "integer", "bigint"})
_MYSQL_INT: Final = re.compile(r"(?:tinyint|smallint|mediumint|int|bigint)(?:\(\d+\))?")
_MYSQL_TEXT: Final = re.compile(r"varchar\(\d+\)|(?:tiny|medium|long)?text|string")
_ARROW_INT: Final = re.compile(r"u?int(?:8|16|32)|int64")


def _decimal(kind: SqlType, name: str) -> bool:
    """Not wider in its fraction: its values would be others once loaded."""
    found = _NUMBER.fullmatch(name)
    return found is not None and int(found[2]) <= kind.scale


def _postgres(kind: SqlType, name: str) -> bool:
    found = {
        Kind.INT: name in _INTS,
        Kind.DOUBLE: name == "double precision",
        Kind.TEXT: name == "text" or name.startswith("character varying"),
        Kind.BOOL: name == "boolean",
        Kind.DATE: name == "date",
        Kind.TIMESTAMP: name == "timestamp without time zone",
    }
    return found.get(kind.kind, False) or (kind.kind is Kind.DECIMAL and _decimal(kind, name))


def _mysql(kind: SqlType, name: str) -> bool:
    found = {
        Kind.INT: bool(_MYSQL_INT.fullmatch(name)),
        Kind.DOUBLE: name == "double",
        Kind.TEXT: bool(_MYSQL_TEXT.fullmatch(name)),
        Kind.BOOL: name in {"tinyint(1)", "boolean"},
        Kind.DATE: name == "date",
        Kind.TIMESTAMP: name == "datetime(6)",
    }
    return found.get(kind.kind, False) or (kind.kind is Kind.DECIMAL and _decimal(kind, name))


def _starrocks(kind: SqlType, name: str) -> bool:
    return _mysql(kind, name) or (kind.kind is Kind.TIMESTAMP and name == "datetime")


def _arrow(kind: SqlType, name: str) -> bool:
    found = {
        Kind.INT: bool(_ARROW_INT.fullmatch(name)),
        Kind.DOUBLE: name == "double",
        Kind.TEXT: name in {"string", "large_string", "string_view"},
        Kind.BOOL: name == "bool",
        Kind.DATE: name == "date32[day]",
        Kind.TIMESTAMP: name in {"timestamp[us]", "timestamp[ms]", "timestamp[s]"},
    }
    is_decimal = kind.kind is Kind.DECIMAL
    return found.get(kind.kind, False) or (is_decimal and _decimal(kind, name))


_ACCEPTS: Final[Mapping[str, Callable[[SqlType, str], bool]]] = MappingProxyType(
    {
        "postgres": _postgres,
        "mariadb": _mysql,
        "mysql": _mysql,
        "starrocks": _starrocks,
        "doris": _starrocks,
        "spark": _arrow,
        "dremio": _arrow,
    }
)


def check_columns(
    scan: Scan, found: Sequence[tuple[str, str]], dialect: str, table: str, *, by_arrow: bool
) -> None:
    """Check that the engine's table has the columns of `scan`, each of a type whose values are
    those that memory holds. `by_arrow`: types are told by Arrow's names.

    Raises:
        EngineDisagrees: it has not; the message names column and types.
    """
    accepts = _arrow if by_arrow else _ACCEPTS[dialect]
    types = dict(found)
    for column in scan.columns:
        name = types.get(column.name)
        if name is None:
            raise EngineDisagrees(
                f"dataset {scan.dataset}: the engine's table {table} has no column "
                f"{column.name!r}; it has {', '.join(sorted(types)[:20]) or 'none'}"
            )
        if not accepts(column.type, name.lower()):
            raise EngineDisagrees(
                f"dataset {scan.dataset}: column {column.name} is {column.type} here, and "
                f"{name} in the engine's table {table}: its answers would be others"
            )
