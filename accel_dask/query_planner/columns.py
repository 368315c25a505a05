"""Which columns of a table a query can possibly use."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Final

from sqlglot import exp

from accel_dask.model.snapshot import Column
from accel_dask.model.ticket import DATA_TABLE
from accel_dask.query_planner.plan import ParsedQuery, Scan

_NAMES: Final = re.compile(r'"((?:[^"]|"")*)"|([^\W\d][\w$]*)')
_WIDTHS: Final = {
    "BOOLEAN": 1,
    "TINYINT": 1,
    "UTINYINT": 1,
    "SMALLINT": 2,
    "USMALLINT": 2,
    "INTEGER": 4,
    "UINTEGER": 4,
    "DATE": 4,
    "FLOAT": 4,
    "HUGEINT": 16,
    "UHUGEINT": 16,
    "INTERVAL": 16,
}
_TEXT_WIDTH: Final = 4
_FIXED_WIDTH: Final = 8


class UsedColumns:
    """Reads the statement once for all of its tables. Errs on the side of too many."""

    def __init__(self, parsed: ParsedQuery) -> None:
        self._parsed = parsed

    @cached_property
    def _words(self) -> set[str]:
        return {
            (quoted.replace('""', '"') or plain).lower()
            for quoted, plain in _NAMES.findall(self._parsed.text)
        }

    @cached_property
    def _is_all(self) -> bool:
        return _may_use_all(self._parsed)

    def of(self, scan: Scan) -> tuple[Column, ...]:
        """Columns of the scan's table, in its order; never none."""
        columns = scan.route.columns
        alias = scan.reference.node.args.get("alias")
        if scan.route.table != DATA_TABLE:  # its columns are not what the text names
            return columns
        if self._is_all or (alias is not None and alias.args.get("columns")):
            return columns
        used = tuple(column for column in columns if column.name.lower() in self._words)
        return used or (min(columns, key=lambda column: least_width(column.type)),)


def _may_use_all(parsed: ParsedQuery) -> bool:
    """A star, or a table's name where a column's could stand, means every column."""
    tables = {reference.node.alias_or_name.lower() for reference in parsed.tables}
    for node in parsed.tree.walk():
        if isinstance(node, exp.Star) and not isinstance(node.parent, exp.Count):
            return True
        if isinstance(node, exp.Column) and node.name.lower() in tables:
            return True
        if isinstance(node, exp.Join) and node.args.get("method"):
            return True
    return False


def least_width(kind: str) -> int:
    """Bytes of Arrow buffers that a value of this type has at least."""
    if kind.startswith("DECIMAL"):
        return 16
    if kind in {"VARCHAR", "BLOB", "JSON"} or "(" in kind or "[" in kind:
        return _TEXT_WIDTH
    return _WIDTHS.get(kind, _FIXED_WIDTH)
