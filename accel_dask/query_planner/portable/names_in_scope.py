"""What names stand for inside one SELECT."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from sqlglot import exp

from accel_dask.query_planner.plan import CATALOG
from accel_dask.query_planner.portable.refusals import refuse, told
from accel_dask.query_planner.portable.tree import Node


@dataclass(frozen=True, slots=True)
class Source:
    """A table or subquery in FROM."""

    name: str
    """In lower case."""
    columns: tuple[tuple[str, Node], ...]
    """Names as they are declared."""

    def find(self, name: str) -> Node | None:
        found = [node for declared, node in self.columns if declared.lower() == name]
        if len(found) > 1:
            refuse(f"the column {name}", f"{self.name} has several of that name")
        return found[0] if found else None

    def check_names(self) -> None:
        """Refuse a subquery with a name given twice: DuckDB makes another of the second."""
        names = [declared.lower() for declared, _ in self.columns]
        if len(set(names)) < len(names):
            refuse(f"{self.name}.*", "several of its columns have one name; give them others")


@dataclass(frozen=True, slots=True)
class Scope:
    """The sources of one SELECT, in order."""

    sources: tuple[Source, ...]
    merged: Mapping[str, Node] = field(default_factory=dict)
    """Columns that USING made one of, in lower case."""
    tenant: str = ""

    def column(self, column: exp.Column) -> Node | None:
        """What a column's name stands for; None: no source has it."""
        if not isinstance(column.this, exp.Identifier) or column.args.get("join_mark"):
            return refuse(told(column))
        name = column.name.lower()
        if column.table:
            return self._qualified(column, name)
        if name in self.merged:
            return self.merged[name]
        found = [node for node in (source.find(name) for source in self.sources) if node]
        if len(found) > 1:
            refuse(f"the column {name}", "several tables have it; name the table")
        return found[0] if found else None

    def _qualified(self, column: exp.Column, name: str) -> Node | None:
        if column.text("db").lower() not in {"", self.tenant}:
            return refuse(told(column))
        if column.text("catalog").lower() not in {"", CATALOG}:
            return refuse(told(column))
        source = self._source(column.table)
        return source.find(name) if source is not None else None

    def _source(self, name: str) -> Source | None:
        found = [source for source in self.sources if source.name == name.lower()]
        if len(found) > 1:
            refuse(f"the table {name}", "several tables have this name; give them aliases")
        return found[0] if found else None

    def star(self, table: str = "") -> list[tuple[str, Node]]:
        """The columns of `*`, or of `table.*`."""
        if table:
            source = self._source(table)
            if source is None:
                return refuse(f"{table}.*")
            source.check_names()
            return list(source.columns)
        found: list[tuple[str, Node]] = []
        seen: set[str] = set()
        for source in self.sources:
            source.check_names()
            for name, node in source.columns:
                merged = self.merged.get(name.lower())
                if merged is None:
                    found.append((name, node))
                elif name.lower() not in seen:
                    seen.add(name.lower())
                    found.append((name, merged))
        return found
