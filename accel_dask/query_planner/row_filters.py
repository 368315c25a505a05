"""Conditions that certainly hold for every row of a table that a query uses, as text.

Only conjuncts of the WHERE of the table's own SELECT count, over columns of this table alone and
constants, and only where no outer join would give the table's rows back as NULLs; and those of the
ON of its own join where a row that fails it is left out. What is found here may only leave out rows
that the query would drop itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from sqlglot import exp

from accel_dask.query_planner.plan import Scan
from accel_dask.query_planner.scopes import is_plain_path

_COMPARISONS: Final = (
    exp.EQ,
    exp.NEQ,
    exp.GT,
    exp.GTE,
    exp.LT,
    exp.LTE,
    exp.NullSafeEQ,
    exp.NullSafeNEQ,
)
_CONSTANT_PARTS: Final = (
    exp.Literal,
    exp.Neg,
    exp.Cast,
    exp.DataType,
    exp.DataTypeParam,
    exp.Interval,
    exp.Var,
    exp.Add,
    exp.Sub,
    exp.Paren,
    exp.Boolean,
    exp.Null,
    exp.Placeholder,
)
_NUMBER, _TEXT, _TIME, _BOOL, _ANY = "number", "text", "time", "bool", "any"
_TIME_TYPES: Final = frozenset([exp.DType.DATE, exp.DType.TIMESTAMP, exp.DType.TIMESTAMPNTZ])


def row_filters(scan: Scan, scans: tuple[Scan, ...]) -> list[exp.Expr]:
    """Conjuncts that name columns as the query does; `scans` are all of the query's."""
    table = scan.reference.node
    select = own_select(table)
    if select is None or _has_column_list(table):
        return []
    sources = [select.args["from_"].this, *(join.this for join in select.args.get("joins") or ())]
    if any(source.args.get("joins") for source in sources):
        return []
    conditions = []
    if select.args.get("where") is not None and keeps_filters(table, select, sources):
        conditions.append(select.args["where"].this)
    join = table.parent
    if isinstance(join, exp.Join) and _is_filtered_by(join):
        conditions.append(join.args["on"])
    reader = _Reader(scan, sources, {id(one.reference.node): one for one in scans})
    return [
        found
        for condition in conditions
        for found in conjuncts(condition)
        if reader.is_certain(found)
    ]


def _is_filtered_by(join: exp.Join) -> bool:
    """Whether a row of the joined table that fails its ON is as if it were not there."""
    if join.args.get("on") is None or join.method:
        return False
    return join.side.upper() in {"", "LEFT"} and join.kind.upper() in {
        "", "INNER", "OUTER", "SEMI", "ANTI",
    }  # fmt: skip


def conjuncts(condition: exp.Expr) -> Iterator[exp.Expr]:
    """What `condition` joins by AND."""
    pending = [condition]
    while pending:
        node = pending.pop()
        if isinstance(node, exp.And):
            pending += (node.expression, node.this)
        elif isinstance(node, exp.Paren) and isinstance(node.this, exp.And):
            pending.append(node.this)
        else:
            yield node


def own_select(table: exp.Expr) -> exp.Select | None:
    """The SELECT in whose FROM or JOIN `table` stands itself."""
    parent = table.parent
    if isinstance(parent, exp.From | exp.Join) and isinstance(parent.parent, exp.Select):
        return parent.parent
    return None


def _has_column_list(table: exp.Table) -> bool:
    alias = table.args.get("alias")
    return alias is not None and bool(alias.args.get("columns"))


def keeps_filters(table: exp.Expr, select: exp.Select, sources: list[exp.Expr]) -> bool:
    """Whether a row of `table` that fails the WHERE cannot change the answer otherwise."""
    if any(source.args.get("joins") for source in sources):
        return False
    position = next(index for index, source in enumerate(sources) if source is table)
    for index, join in enumerate(select.args.get("joins") or (), 1):
        method, side, kind = join.method.upper(), join.side.upper(), join.kind.upper()
        if method not in {"", "NATURAL", "ASOF"}:
            return False
        if index > position and side in {"RIGHT", "FULL"}:
            return False
        is_lost = side in {"LEFT", "FULL"} or kind in {"SEMI", "ANTI"} or method == "ASOF"
        if index == position and is_lost:
            return False
    return True


class _Reader:
    """Reads conditions over one table."""

    def __init__(self, scan: Scan, sources: list[exp.Expr], scans: dict[int, Scan]) -> None:
        self._scan = scan
        self._names = [source.alias_or_name.lower() for source in sources]
        self._name = scan.reference.node.alias_or_name.lower()
        self._is_named = self._names.count(self._name) == 1
        self._types = {column.name.lower(): column.type for column in scan.route.columns}
        self._plain = set(self._types)
        """Columns that need no table's name before them."""
        for source in sources:
            other = scans.get(id(source))
            if other is None or _has_column_list(other.reference.node):
                self._plain = set()
            elif other is not scan:
                self._plain -= {column.name.lower() for column in other.route.columns}

    def is_certain(self, node: exp.Expr) -> bool:
        """Whether `node` is over this table alone, and cannot fail where it did not before."""
        if isinstance(node, exp.And | exp.Or):
            return self.is_certain(node.this) and self.is_certain(node.expression)
        if isinstance(node, exp.Paren | exp.Not):
            return self.is_certain(node.this)
        if isinstance(node, exp.Is):
            return bool(self._type(node.this)) and isinstance(node.expression, exp.Null)
        if isinstance(node, _COMPARISONS):
            return self._compares(node.this, [node.expression]) or self._compares(
                node.expression, [node.this]
            )
        if isinstance(node, exp.Between):
            return self._compares(node.this, [node.args["low"], node.args["high"]])
        if isinstance(node, exp.In):
            others = set(node.args) - {"this", "expressions"}
            return not any(node.args[name] for name in others) and self._compares(
                node.this, node.expressions
            )
        if isinstance(node, exp.Like | exp.ILike):
            is_text = self._type(node.this) == "VARCHAR"
            return is_text and isinstance(node.expression, exp.Literal)
        return False

    def _compares(self, column: exp.Expr, values: list[exp.Expr]) -> bool:
        kind = _class_of(self._type(column))
        if not kind or not values:
            return False
        if len(values) == 1 and isinstance(values[0], exp.Column):
            return _class_of(self._type(values[0])) == kind
        classes = {_constant_class(value) for value in values} - {_ANY}
        allowed = {_NUMBER: {_NUMBER}, _TEXT: {_TEXT}, _TIME: {_TIME, _TEXT}, _BOOL: {_BOOL}}
        return len(classes) <= 1 and classes <= allowed[kind]

    def _type(self, node: exp.Expr) -> str:
        """The type of a column of this table; empty: it is none."""
        if not isinstance(node, exp.Column) or not isinstance(node.this, exp.Identifier):
            return ""
        name = node.name.lower()
        if not node.table:
            return self._types[name] if name in self._plain else ""
        is_own = self._is_named and node.table.lower() == self._name
        is_own = is_own and is_plain_path(node, self._scan, self._names)
        return self._types.get(name, "") if is_own else ""


def _class_of(kind: str) -> str:
    if kind in {"DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"}:
        return _TIME
    if kind.endswith("INT") or kind in {"INTEGER", "FLOAT", "DOUBLE"} or kind[:7] == "DECIMAL":
        return _NUMBER
    return {"VARCHAR": _TEXT, "BOOLEAN": _BOOL}.get(kind, "")


def _constant_class(node: exp.Expr) -> str:
    """Empty: no constant that is understood here."""
    if not all(isinstance(part, _CONSTANT_PARTS) for part in node.walk()):
        return ""
    while isinstance(node, exp.Paren | exp.Neg | exp.Add | exp.Sub):
        node = node.this
    if isinstance(node, exp.Literal):
        return _TEXT if node.is_string else _NUMBER
    if isinstance(node, exp.Cast):
        is_plain = isinstance(node.this, exp.Literal) and node.this.is_string
        return _TIME if is_plain and node.to.this in _TIME_TYPES else ""
    if isinstance(node, exp.Boolean):
        return _BOOL
    return _ANY if isinstance(node, exp.Null | exp.Placeholder) else ""
