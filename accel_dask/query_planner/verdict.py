"""What statistics say of a query's cost before it runs: shape, rows read, rows returned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from sqlglot import exp

from accel_dask.query_planner.plan import ParsedQuery, Scan, Verdict

_MAX_ROWS: Final = 10**15
"""Above this a bound says nothing."""
_MAX_DEPTH: Final = 64


class _Unbounded(Exception):
    """Carries why the rows of a part are not bounded, and its clause."""

    def __init__(self, reason: str, clause: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.clause = clause


def verdict_of(parsed: ParsedQuery, scans: tuple[Scan, ...]) -> Verdict:
    """The verdict on a statement whose tables are `scans`."""
    tree = parsed.tree
    rows = {id(scan.reference.node): _rows_of(scan) for scan in scans}
    known = [count for count in rows.values() if count is not None]
    scan_rows = sum(known) if len(known) == len(rows) else None
    size = sum(scan.route.shards[i].source_bytes for scan in scans for i in scan.shards)
    shape = parsed.facts.get("shape") or parsed.facts.setdefault("shape", _shape(tree))
    try:
        result_rows = _Rows(rows, parsed.facts).of(tree, {}, 0)
    except _Unbounded as unbounded:
        return Verdict(
            shape=shape,
            scan_rows=scan_rows,
            scan_bytes=size,
            result_rows=None,
            reason=unbounded.reason,
            clause=unbounded.clause,
        )
    unknown = next((s for s in scans if rows[id(s.reference.node)] is None), None)
    if unknown is None:
        return Verdict(shape=shape, scan_rows=scan_rows, scan_bytes=size, result_rows=result_rows)
    return Verdict(
        shape=shape,
        scan_rows=None,
        scan_bytes=size,
        result_rows=result_rows,
        reason="the source does not say how many rows a shard has",
        clause=f"FROM {unknown.reference.table}",
    )


def _rows_of(scan: Scan) -> int | None:
    counts = [scan.route.shards[index].rows for index in scan.shards]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


_WORK: Final[tuple[tuple[str, tuple[type[exp.Expr], ...]], ...]] = (
    ("join", (exp.Join,)),
    ("set operation", (exp.SetOperation,)),
    ("subquery", (exp.Subquery, exp.CTE)),
    ("group by", (exp.Group,)),
    ("aggregate", (exp.AggFunc,)),
    ("window", (exp.Window,)),
    ("distinct", (exp.Distinct,)),
    ("sort", (exp.Order,)),
    ("limit", (exp.Limit,)),
)


def _shape(tree: exp.Expr) -> str:
    """The kinds of work in the statement, in words."""
    nodes = {type(node) for node in tree.walk()}
    found = [name for name, kinds in _WORK if any(issubclass(node, kinds) for node in nodes)]
    if {"sort", "limit"} <= set(found):
        found = [*(name for name in found if name not in {"sort", "limit"}), "top-n"]
    return ", ".join(found) or "rows"


_Ctes = dict[str, int]


class _Rows:
    """Upper bounds for the rows of queries."""

    def __init__(self, tables: dict[int, int | None], facts: dict[Any, Any]) -> None:
        """`facts`: as in `ParsedQuery`."""
        self._tables = tables
        self._facts = facts

    def of(self, node: exp.Expr, ctes: _Ctes, depth: int) -> int:
        """Rows of a query at most.

        Raises:
            _Unbounded: no bound is known.
        """
        if depth > _MAX_DEPTH:
            raise _Unbounded("it is nested too deep to tell", "subqueries")
        ctes = self._with(node, ctes, depth)
        if isinstance(node, exp.Subquery):
            rows = self._source(node, ctes, depth)
        elif isinstance(node, exp.SetOperation):
            rows = self.of(node.this, ctes, depth + 1)
            if isinstance(node, exp.Union):
                rows += self.of(node.expression, ctes, depth + 1)
        elif isinstance(node, exp.Select):
            rows = self._select(node, ctes, depth)
        else:
            raise _Unbounded("its rows are not counted", type(node).__name__)
        return min(rows, _limit_of(node))

    def _with(self, node: exp.Expr, ctes: _Ctes, depth: int) -> _Ctes:
        with_ = node.args.get("with_")
        if with_ is None:
            return ctes
        ctes = dict(ctes)
        for cte in with_.expressions:
            name = cte.alias.lower()
            if with_.recursive and isinstance(cte.this, exp.Union):
                ctes[name] = -1
                continue
            try:
                ctes[name] = self.of(cte.this, ctes, depth + 1)
            except _Unbounded:
                ctes[name] = -2
        return ctes

    def _select(self, select: exp.Select, ctes: _Ctes, depth: int) -> int:
        key = "select", id(select)
        unbounded, is_one = self._facts.get(key) or self._facts.setdefault(key, _kind_of(select))
        if unbounded is not None:
            raise _Unbounded(*unbounded)
        if is_one:
            return 1
        from_ = select.args.get("from_")
        if from_ is None:
            return 1
        rows = self._source(from_.this, ctes, depth)
        return self._joined(rows, select.args.get("joins") or (), ctes, depth)

    def _joined(self, rows: int, joins: Sequence[exp.Join], ctes: _Ctes, depth: int) -> int:
        for join in joins:
            if join.kind.upper() in {"SEMI", "ANTI"}:
                continue
            other = self._source(join.this, ctes, depth)
            is_inner = not join.side and join.method.upper() in {"", "NATURAL"}
            rows = rows * other + (0 if is_inner else rows + other)
            if rows > _MAX_ROWS:
                raise _Unbounded(
                    "statistics do not bound the rows of a join",
                    f"JOIN {join.alias_or_name or 'a subquery'}",
                )
        return rows

    def _source(self, source: exp.Expr, ctes: _Ctes, depth: int) -> int:
        rows: int | None
        if isinstance(source, exp.Table):
            rows = self._tables.get(id(source))
            if id(source) not in self._tables:
                rows = ctes.get(source.name.lower(), -2)
            if rows is None:
                raise _Unbounded(
                    "the source does not say how many rows a shard has", f"FROM {source.name}"
                )
            if rows < 0:
                why = "a recursive CTE has any number of rows"
                other = "the rows of a CTE are not bounded"
                raise _Unbounded(why if rows == -1 else other, f"WITH {source.name}")
        elif isinstance(source, exp.Subquery):
            rows = (
                self._source(source.this, ctes, depth + 1)
                if isinstance(source.this, exp.Table)
                else self.of(source.this, ctes, depth + 1)
            )
        else:
            raise _Unbounded("its rows are not counted", type(source).__name__.upper())
        return self._joined(rows, source.args.get("joins") or (), ctes, depth)


def _kind_of(select: exp.Select) -> tuple[tuple[str, str] | None, bool]:
    """Why and in which clause it has no bound, if it has none; whether it gives one row."""
    group = select.args.get("group")
    if group is not None and group.find(exp.Cube, exp.Rollup, exp.GroupingSets):
        return ("several groupings repeat rows", "GROUP BY"), False
    for projection in select.expressions:
        if any(isinstance(node, exp.Unnest | exp.Explode) for node in _own_nodes(projection)):
            return ("an unnested list has any length", "UNNEST"), False
    return None, group is None and _is_aggregate(select)


def _own_nodes(projection: exp.Expr) -> Iterator[exp.Expr]:
    """Without those of subqueries and windows."""
    return projection.walk(prune=lambda node: isinstance(node, exp.Query | exp.Window))


def _is_aggregate(select: exp.Select) -> bool:
    """Whether it gives one row for all: it has an aggregate of its own that is no window."""
    if select.args.get("having"):
        return True
    for projection in select.expressions:
        if any(isinstance(node, exp.AggFunc) for node in _own_nodes(projection)):
            return True
    return False


def _limit_of(node: exp.Expr) -> int:
    limit = node.args.get("limit")
    value = limit.args.get("expression") if isinstance(limit, exp.Limit) else None
    if isinstance(value, exp.Literal) and not value.is_string and value.name.isdigit():
        options = limit.args.get("limit_options") if limit is not None else None
        return _MAX_ROWS if options else int(value.name)
    return _MAX_ROWS
