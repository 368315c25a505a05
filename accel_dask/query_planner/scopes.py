"""What the columns of a SELECT refer to: enough to say that none of them comes from outside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlglot import exp

from accel_dask.query_planner.plan import CATALOG, Scan

Key = tuple[str, str]
"""A column: its source's name and its own, in lower case. A source without a name: several."""


@dataclass(frozen=True, slots=True)
class Source:
    """Something in FROM."""

    name: str
    columns: frozenset[str] | None
    """In lower case; None: not known."""
    scan: Scan | None
    node: exp.Expr


class Scope:
    """The sources of one SELECT."""

    def __init__(self, select: exp.Select, scans: dict[int, Scan]) -> None:
        self.select = select
        from_ = select.args.get("from_")
        nodes = [from_.this] if from_ is not None else []
        nodes += [join.this for join in select.args.get("joins") or ()]
        self.sources = tuple(_source(node, scans) for node in nodes)
        self._names = [source.name for source in self.sources]
        self.aliases = frozenset(
            item.alias.lower() for item in select.expressions if isinstance(item, exp.Alias)
        )

    @property
    def is_plain(self) -> bool:
        """Whether every source is one that is understood here, each with a name of its own."""
        return len(set(self._names)) == len(self._names) and all(
            isinstance(source.node, exp.Table | exp.Subquery)
            and source.name
            and not source.node.args.get("joins")
            and not _has_column_list(source.node)
            for source in self.sources
        )

    def is_alias(self, column: exp.Column) -> bool:
        """Whether `column`, where no source has it, is a name that the SELECT itself gives: a
        table's name stands for its row, but in ORDER BY an alias comes first."""
        name = column.name.lower()
        is_row = name in self._names and not isinstance(column.parent, exp.Ordered)
        return not column.table and name in self.aliases and not is_row

    def resolve(self, column: exp.Expr) -> Key | None:
        """Which source's column it certainly is."""
        if not isinstance(column, exp.Column) or not isinstance(column.this, exp.Identifier):
            return None
        name = column.name.lower()
        if column.table:
            table = column.table.lower()
            source = next((s for s in self.sources if s.name == table), None)
            if source is None or (source.columns is not None and name not in source.columns):
                return None
            if not is_plain_path(column, source.scan, self._names):
                return None
            return table, name
        if any(source.columns is None for source in self.sources):
            return None
        owners = [s.name for s in self.sources if s.columns is not None and name in s.columns]
        # Of two, as with USING, it is neither's own.
        return (owners[0] if len(owners) == 1 else "", name) if owners else None


def _source(node: exp.Expr, scans: dict[int, Scan]) -> Source:
    scan = scans.get(id(node))
    columns: frozenset[str] | None = None
    if scan is not None:
        columns = frozenset(column.name.lower() for column in scan.route.columns)
    elif isinstance(node, exp.Subquery) and isinstance(node.this, exp.Select):
        columns = _named_columns(node.this)
    return Source(node.alias_or_name.lower(), columns, scan, node)


def _named_columns(select: exp.Select) -> frozenset[str] | None:
    """The names of a subquery's columns, if all of them are plain to see."""
    names = []
    for item in select.expressions:
        if not isinstance(item, exp.Alias | exp.Column) or isinstance(item.this, exp.Star):
            return None
        names.append(item.alias_or_name.lower())
    return frozenset(names)


def _has_column_list(node: exp.Expr) -> bool:
    alias = node.args.get("alias")
    return alias is not None and bool(alias.args.get("columns"))


def is_closed(query: exp.Expr, scans: dict[int, Scan], outer: tuple[Scope, ...] = ()) -> bool:
    """Whether all columns in `query` are certainly of sources within it, or of `outer`."""
    pending: list[tuple[exp.Expr, tuple[Scope, ...]]] = [(query, outer)]
    while pending:
        node, scopes = pending.pop()
        if isinstance(node, exp.Select):
            scope = Scope(node, scans)
            if not scope.is_plain:
                return False
            scopes = (scope, *scopes)
        elif isinstance(node, exp.Column):
            if not isinstance(node.this, exp.Star) and not _is_known(node, scopes):
                return False
            continue
        elif isinstance(node, exp.With | exp.Lateral | exp.Unnest):
            return False
        pending += [(child, scopes) for child in node.iter_expressions()]
    return True


def _is_known(column: exp.Column, scopes: tuple[Scope, ...]) -> bool:
    if any(scope.resolve(column) for scope in scopes):
        return True
    # An alias of the SELECT itself, where such may stand: no column of that name hides it.
    return bool(scopes) and scopes[0].is_alias(column)


def is_plain_path(column: exp.Column, scan: Scan | None, names: Sequence[str]) -> bool:
    """Whether `a.b.c` is the tenant's table's column, and no field of a column `b` of `a`; `names`
    are those in the same FROM."""
    if column.args.get("db") is None:
        return True
    if scan is None or scan.reference.has_alias:
        return False
    tenant, catalog = column.text("db").lower(), column.text("catalog").lower()
    is_own = tenant == str(scan.route.dataset_id.tenant).lower() and catalog in {"", CATALOG}
    return is_own and not {tenant, catalog} & set(names)
