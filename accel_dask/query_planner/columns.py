"""Which columns of a table a query can possibly use."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence, Set
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

    def __init__(self, parsed: ParsedQuery, without: Sequence[tuple[int, int]] = ()) -> None:
        """`without`: places in the text that do not count."""
        self._parsed = parsed
        self._without = without

    @cached_property
    def _words(self) -> Counter[str]:
        """How often each name is in the text."""
        text = self._parsed.text
        for start, end in self._without:
            text = text[:start] + " " * (end - start) + text[end:]
        return Counter(
            (quoted.replace('""', '"') or plain).lower() for quoted, plain in _NAMES.findall(text)
        )

    @cached_property
    def _qualified(self) -> dict[str, Counter[str]]:
        """Of each column's name, how often it stands behind each table's."""
        found: dict[str, Counter[str]] = {}
        for node in self._parsed.tree.find_all(exp.Column):
            if node.table and not self._is_left_out(node):
                found.setdefault(node.name.lower(), Counter())[node.table.lower()] += 1
        return found

    def _is_left_out(self, column: exp.Column) -> bool:
        """Or not found: then its name counts for every table."""
        start = column.this.meta.get("start")
        starts = self._parsed.token_starts
        token = bisect_left(starts, start) if start is not None else len(starts)
        if token >= len(starts) or starts[token] != start:
            return True
        place = self._parsed.token_spans[token][0]
        return any(first <= place < end for first, end in self._without)

    @cached_property
    def _is_all(self) -> bool:
        return _may_use_all(self._parsed)

    def _is_used(self, name: str, table: str) -> bool:
        count, qualified = self._words[name], self._qualified.get(name, Counter[str]())
        # Where each of them is behind a table's name, it is that table's.
        return count > qualified.total() or qualified[table] > 0

    def of(self, scan: Scan) -> tuple[Column, ...]:
        """Columns of the scan's table, in its order; never none."""
        if self._without:
            return self._found(scan)
        # Words in values only ever add columns, so what one statement found holds for all of its
        # form.
        columns, key = scan.route.columns, (scan.reference.start, scan.route.table)
        known = self._parsed.facts.get(key)
        if known is not None and known[0] is columns:
            used: tuple[Column, ...] = known[1]
            return used
        used = self._found(scan)
        self._parsed.facts[key] = columns, used
        return used

    def _found(self, scan: Scan) -> tuple[Column, ...]:
        columns = scan.route.columns
        alias = scan.reference.node.args.get("alias")
        if scan.route.table != DATA_TABLE:  # its columns are not what the text names
            return columns
        if self._is_all or (alias is not None and alias.args.get("columns")):
            return columns
        table = scan.reference.node.alias_or_name.lower()
        used = tuple(column for column in columns if self._is_used(column.name.lower(), table))
        return used or (min(columns, key=lambda column: least_width(column.type)),)


def _may_use_all(parsed: ParsedQuery) -> bool:
    """A star, or a table's name where a column's could stand, means every column."""
    tables = {reference.node.alias_or_name.lower() for reference in parsed.tables}
    for node in parsed.tree.walk():
        if isinstance(node, exp.Star) and not _is_no_row(node):
            return True
        if isinstance(node, exp.Column) and node.name.lower() in tables and _is_in_reach(node):
            return True
        if isinstance(node, exp.Join) and node.args.get("method"):
            return True
    return False


def _is_no_row(star: exp.Star) -> bool:
    """Whether it stands for no column: in `count(*)` and `EXISTS (SELECT * ...)`."""
    select = star.parent
    if isinstance(select, exp.Count):
        return True
    if not isinstance(select, exp.Select) or len(select.expressions) != 1:
        return False
    return isinstance(select.parent, exp.Exists) and not select.args.get("distinct")


def _is_in_reach(column: exp.Column) -> bool:
    """Whether a table of the column's name is in the FROM of a SELECT that it is in."""
    node: exp.Expr | None = column
    while node is not None:
        from_ = node.args.get("from_") if isinstance(node, exp.Select) else None
        if from_ is not None:
            sources = [from_.this, *(join.this for join in node.args.get("joins") or ())]
            for source in sources:
                is_plain = isinstance(source, exp.Table | exp.Subquery) and source.alias_or_name
                if not is_plain or source.args.get("joins"):
                    return True
                if source.alias_or_name.lower() == column.name.lower():
                    return True
        node = node.parent
    return False


def least_width(kind: str) -> int:
    """Bytes of Arrow buffers that a value of this type has at least."""
    if kind.startswith("DECIMAL"):
        return 16
    if kind in {"VARCHAR", "BLOB", "JSON"} or "(" in kind or "[" in kind:
        return _TEXT_WIDTH
    return _WIDTHS.get(kind, _FIXED_WIDTH)


def names_of_types(scans: Iterable[Scan], types: Set[str]) -> frozenset[str]:
    """Names, in lower case, that are of columns of `types` in every table that has them."""
    found: dict[str, set[str]] = {}
    for scan in scans:
        for column in scan.route.columns:
            found.setdefault(column.name.lower(), set()).add(column.type)
    return frozenset(name for name, kinds in found.items() if kinds <= types)
