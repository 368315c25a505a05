"""The portable query as SQL. Every dialect is a `Writer`; `dialects.py` has them all.

Each level of the SQL is of one plain shape, with names of our own, so that no engine has to
resolve an alias, an ordinal, a star or a name in another case.
"""

# ruff: noqa: S608 - what is put together here is typed, quoted and of our own naming
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from accel_dask.errors import NotPortable
from accel_dask.model.ids import DatasetId
from accel_dask.query_planner.portable.tree import (
    Block,
    Derived,
    Join,
    Node,
    OrderKey,
    Query,
    Scan,
    ScannedColumn,
    UnionBlock,
)
from accel_dask.query_planner.portable.types import BIGINT, Kind, SqlType

_INFIX: Final = {
    "eq": "=", "ne": "<>", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "and": "AND",
    "or": "OR", "div": "/", "mod": "%",
}  # fmt: skip
_ARITHMETIC: Final = {"add": "+", "sub": "-", "mul": "*"}
_ESCAPES: Final = "!|~^#"


@dataclass(frozen=True, slots=True)
class EngineTable:
    """Where an engine has a dataset."""

    name: tuple[str, ...]
    """Its parts, unquoted."""
    snapshot: str | None = None
    """The snapshot to read; None: whatever the engine has now."""


class Writer:
    """Standard SQL, as far as engines agree on it."""

    name: ClassVar[str] = ""
    is_verified: ClassVar[bool] = True
    """Whether its answers are compared with ours by the project's own tests."""
    can_pin: ClassVar[bool] = False
    """Whether it reads a table as of an Iceberg snapshot."""

    def __init__(self, tables: Mapping[DatasetId, EngineTable]) -> None:
        self._tables = tables

    # Words

    def quote(self, name: str) -> str:
        return '"' + name.replace('"', '""') + '"'

    def text(self, value: str) -> str:
        return "'" + value.replace("'", "''") + "'"

    def type_name(self, kind: SqlType, size: int) -> str:
        """Wide enough for values of `kind` that have `size` digits or bits."""
        if kind.kind is Kind.DECIMAL:
            return f"DECIMAL({max(size, kind.scale, 1)},{kind.scale})"
        return {
            Kind.INT: "BIGINT",
            Kind.DOUBLE: "DOUBLE",
            Kind.TEXT: "VARCHAR",
            Kind.BOOL: "BOOLEAN",
        }.get(kind.kind, kind.kind.value)

    def cast(self, text: str, kind: SqlType, size: int = 63) -> str:
        return f"CAST({text} AS {self.type_name(kind, size)})"

    # Queries

    def write(self, query: Query) -> str:
        """
        Raises:
            NotPortable: this dialect has no certain way to say it.
        """
        if isinstance(query, UnionBlock):
            return self._union(query)
        names = [item.alias for item in query.items]
        pieces = [f"{self.expression(item.node)} AS {item.alias}" for item in query.items]
        sorts: dict[Node, str] = {item.node: item.alias for item in query.items}
        for key in query.order:
            if key.node not in sorts:
                sorts[key.node] = f"s{len(sorts)}"
                pieces.append(f"{self.expression(key.node)} AS {sorts[key.node]}")
        distinct = "DISTINCT " if query.is_distinct else ""
        sql = f"SELECT {distinct}{', '.join(pieces)} FROM {self._rows(query)}"
        if not query.order and query.limit is None and not query.offset:
            return sql
        keys = [self.order_key(f"o.{sorts[key.node]}", key) for key in query.order]
        return self._ordered(sql, names, keys, query)

    def _ordered(self, sql: str, names: list[str], keys: list[str], query: Query) -> str:
        columns = ", ".join(f"o.{name} AS {name}" for name in names)
        order = f" ORDER BY {', '.join(keys)}" if keys else ""
        limited = self.limited(query.limit, query.offset)
        return f"SELECT {columns} FROM ({sql}) AS o{order}{limited}"

    def _union(self, query: UnionBlock) -> str:
        names = [f"c{index}" for index in range(len(query.outputs))]
        columns = ", ".join(f"u.{name} AS {name}" for name in names)
        word = " UNION " if query.is_distinct else " UNION ALL "
        sql = word.join(
            f"SELECT {columns} FROM ({self.write(branch)}) AS u" for branch in query.branches
        )
        if not query.order and query.limit is None and not query.offset:
            return sql
        keys = [self.order_key(f"o.{key.node.text}", key) for key in query.order]
        return self._ordered(sql, names, keys, query)

    def limited(self, limit: int | None, offset: int) -> str:
        found = f" LIMIT {limit}" if limit is not None else ""
        return found + (f" OFFSET {offset}" if offset else "")

    def order_key(self, text: str, key: OrderKey) -> str:
        nulls = "FIRST" if key.nulls_first else "LAST"
        return f"{text} {'DESC' if key.is_descending else 'ASC'} NULLS {nulls}"

    def _rows(self, block: Block) -> str:
        """FROM and WHERE, and the grouping."""
        rows = self._relation(block.relation)
        rows += "".join(self._join(join) for join in block.joins)
        if block.where is not None:
            rows += f" WHERE {self.expression(block.where)}"
        grouping = block.grouping
        if grouping is None:
            return rows
        keys = [f"{self.expression(key.node)} AS {key.alias}" for key in grouping.keys]
        inputs, outputs = [], [f"p.{key.alias} AS {key.alias}" for key in grouping.keys]
        for one in grouping.aggregates:
            node = one.node
            if node.args:
                inputs.append(f"{self.aggregated(node)} AS {one.alias}")
            outputs.append(f"{self.aggregate(node, 'p.' + one.alias)} AS {one.alias}")
        inner = ", ".join([*keys, *inputs]) or "1 AS one"
        by = ", ".join(f"p.{key.alias}" for key in grouping.keys)
        group = f" GROUP BY {by}" if by else ""
        grouped = (
            f"SELECT {', '.join(outputs) or '1 AS one'} FROM (SELECT {inner} FROM {rows}) AS p"
        )
        found = f"({grouped}{group}{self.kept_group(bool(outputs))}) AS {grouping.alias}"
        if grouping.having is not None:
            found += f" WHERE {self.expression(grouping.having)}"
        return found

    def kept_group(self, has_outputs: bool) -> str:
        """What makes one row of a grouping without keys or aggregates."""
        return "" if has_outputs else " HAVING COUNT(*) >= 0"

    def _join(self, join: Join) -> str:
        on = f" ON {self.expression(join.on)}" if join.on is not None else ""
        return f" {join.kind} JOIN {self._relation(join.relation)}{on}"

    def _relation(self, relation: Scan | Derived) -> str:
        if isinstance(relation, Derived):
            return f"({self.write(relation.query)}) AS {relation.alias}"
        table = self._tables[relation.dataset]
        columns = ", ".join(f"{self.scanned(one)} AS {one.alias}" for one in relation.columns)
        rows = f"(SELECT {columns} FROM {self.table(table)}) AS {relation.alias}"
        if relation.row_filter is None:
            return rows
        names = ", ".join(
            f"{relation.alias}.{one.alias} AS {one.alias}" for one in relation.columns
        )
        condition = self.expression(relation.row_filter)
        return f"(SELECT {names} FROM {rows} WHERE {condition}) AS {relation.alias}"

    def table(self, table: EngineTable) -> str:
        if table.snapshot is not None:
            raise NotPortable(f"{self.name} cannot read a table as of a snapshot")
        return ".".join(self.quote(part) for part in table.name)

    def scanned(self, column: ScannedColumn) -> str:
        """A column as memory has it: no NaN, texts compared byte by byte."""
        return self.quote(column.name)

    # Expressions

    def expression(self, node: Node) -> str:
        """
        Raises:
            NotPortable: this dialect has no certain way to say it.
        """
        found = _WRITERS.get(node.op)
        if found is not None:
            return found(self, node)
        if node.op in _INFIX:
            sign = f" {_INFIX[node.op]} "
            return f"({sign.join(self.expression(one) for one in node.args)})"
        raise NotPortable(f"{node.op} has no spelling in {self.name}")

    def column(self, node: Node) -> str:
        return node.text

    def literal(self, node: Node) -> str:
        match node.type.kind:
            case Kind.TEXT:
                return self.text_literal(node.text)
            case Kind.INT:
                return f"({node.text})" if node.text.startswith("-") else node.text
            case Kind.DECIMAL:
                return self.cast(node.text, node.type, node.size)
            case Kind.DOUBLE:
                return self.cast(_with_exponent(node.text), node.type)
            case Kind.DATE:
                return f"DATE '{node.text}'"
            case Kind.TIMESTAMP:
                return self.timestamp(node.text)
            case _:
                return node.text.upper()

    def text_literal(self, value: str) -> str:
        return self.text(value)

    def timestamp(self, value: str) -> str:
        return f"TIMESTAMP '{value}'"

    def null(self, node: Node) -> str:
        return self.cast("NULL", node.type, node.size)

    def casted(self, node: Node) -> str:
        return self.cast(self.expression(node.args[0]), node.type, node.size)

    def narrowed(self, node: Node) -> str:
        """A decimal that has no more than so many digits; the engine fails where it has more."""
        return self.casted(node)

    def number(self, node: Node, of: Node) -> str:
        """`node` as an operand of `of`, wide enough that nothing wraps around."""
        text = self.expression(node)
        if of.type.kind is not Kind.INT:
            return text
        return self.cast_int(text, node, is_wide=of.is_wide)

    def cast_int(self, text: str, node: Node, *, is_wide: bool) -> str:
        if is_wide:
            return self.cast(text, SqlType(Kind.DECIMAL, node.digits, 0), node.digits)
        return self.cast(text, BIGINT)

    def arithmetic(self, node: Node) -> str:
        left, right = (self.number(one, node) for one in node.args)
        return f"({left} {_ARITHMETIC[node.op]} {right})"

    def negated(self, node: Node) -> str:
        return f"(- {self.number(node.args[0], node)})"

    def absolute(self, node: Node) -> str:
        return f"ABS({self.number(node.args[0], node)})"

    def whole_division(self, node: Node) -> str:
        left, right = (self.number(one, node) for one in node.args)
        return f"({left} DIV {right})"

    def negation(self, node: Node) -> str:
        return f"(NOT {self.expression(node.args[0])})"

    def is_null(self, node: Node) -> str:
        return f"({self.expression(node.args[0])} IS NULL)"

    def same(self, node: Node) -> str:
        left, right = (self.expression(one) for one in node.args)
        return f"({left} IS NOT DISTINCT FROM {right})"

    def in_list(self, node: Node) -> str:
        value, *others = (self.expression(one) for one in node.args)
        return f"({value} IN ({', '.join(others)}))"

    def in_query(self, node: Node) -> str:
        assert node.query is not None
        query = f"SELECT i.c0 AS c0 FROM ({self.write(node.query)}) AS i"
        return f"({self.expression(node.args[0])} IN ({query}))"

    def scalar(self, node: Node) -> str:
        assert node.query is not None
        return f"({self.write(node.query)})"

    def case(self, node: Node) -> str:
        *pairs, default = node.args
        whens = "".join(
            f" WHEN {self.expression(condition)} THEN {self.value(value, node)}"
            for condition, value in zip(pairs[::2], pairs[1::2], strict=True)
        )
        return f"CASE{whens} ELSE {self.value(default, node)} END"

    def value(self, node: Node, of: Node) -> str:
        """`node` as one of the values of `of`."""
        if of.type.kind is Kind.INT and node.op != "null":
            return self.cast_int(self.expression(node), node, is_wide=of.is_wide)
        return self.expression(node)

    def coalesce(self, node: Node) -> str:
        return f"COALESCE({', '.join(self.value(one, node) for one in node.args)})"

    def nullif(self, node: Node) -> str:
        return f"NULLIF({', '.join(self.expression(one) for one in node.args)})"

    def like(self, node: Node) -> str:
        mark = next((one for one in _ESCAPES if one not in node.text), None)
        if mark is None:
            raise NotPortable(f"the pattern {node.text!r} has every escape character")
        pattern = _escaped_by(node.text, mark)
        value = self.expression(node.args[0])
        return f"({value} LIKE {self.text_literal(pattern)} ESCAPE {self.text_literal(mark)})"

    def concat(self, node: Node) -> str:
        left, right = (self.expression(one) for one in node.args)
        return f"({left} || {right})"

    def length(self, node: Node) -> str:
        return f"CHAR_LENGTH({self.expression(node.args[0])})"

    def substring(self, node: Node) -> str:
        return f"SUBSTRING({self.expression(node.args[0])}, {node.text.replace(',', ', ')})"

    def truncated(self, node: Node) -> str:
        return f"DATE_TRUNC('{node.text}', {self.expression(node.args[0])})"

    def part(self, node: Node) -> str:  # noqa: ARG002 - dialects read it
        raise NotPortable(f"parts of dates have no certain spelling in {self.name}")

    def shifted(self, node: Node) -> str:
        count, unit = node.text.split()
        return f"({self.expression(node.args[0])} + INTERVAL '{count}' {unit})"

    def add_days(self, node: Node) -> str:  # noqa: ARG002 - dialects read it
        raise NotPortable(f"dates plus days have no certain spelling in {self.name}")

    def days_between(self, node: Node) -> str:  # noqa: ARG002 - dialects read it
        raise NotPortable(f"days between dates have no certain spelling in {self.name}")

    def aggregated(self, node: Node) -> str:
        """What an aggregate is of."""
        (value,) = node.args
        text = self.expression(value)
        if node.op == "sum" and node.type.kind is Kind.INT:
            return self.cast(text, SqlType(Kind.DECIMAL, value.digits, 0), value.digits)
        return text

    def aggregate(self, node: Node, argument: str) -> str:
        if node.op == "count_star":
            return "COUNT(*)"
        distinct = "DISTINCT " if node.text == "distinct" else ""
        return f"{node.op.upper()}({distinct}{argument})"


def _with_exponent(number: str) -> str:
    return number if "e" in number else number + "e0"


def _escaped_by(pattern: str, mark: str) -> str:
    """A pattern whose plain characters follow `mark`."""
    found = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            plain = next(characters)
            found.append(mark + plain if plain in "%_" else plain)
        else:
            found.append(character)
    return "".join(found)


_WRITERS: Final[Mapping[str, Callable[[Writer, Node], str]]] = {
    "column": lambda writer, node: writer.column(node),
    "literal": lambda writer, node: writer.literal(node),
    "null": lambda writer, node: writer.null(node),
    "cast": lambda writer, node: writer.casted(node),
    "narrow": lambda writer, node: writer.narrowed(node),
    "add": lambda writer, node: writer.arithmetic(node),
    "sub": lambda writer, node: writer.arithmetic(node),
    "mul": lambda writer, node: writer.arithmetic(node),
    "neg": lambda writer, node: writer.negated(node),
    "abs": lambda writer, node: writer.absolute(node),
    "intdiv": lambda writer, node: writer.whole_division(node),
    "not": lambda writer, node: writer.negation(node),
    "is_null": lambda writer, node: writer.is_null(node),
    "same": lambda writer, node: writer.same(node),
    "in": lambda writer, node: writer.in_list(node),
    "in_query": lambda writer, node: writer.in_query(node),
    "scalar": lambda writer, node: writer.scalar(node),
    "case": lambda writer, node: writer.case(node),
    "coalesce": lambda writer, node: writer.coalesce(node),
    "nullif": lambda writer, node: writer.nullif(node),
    "like": lambda writer, node: writer.like(node),
    "concat": lambda writer, node: writer.concat(node),
    "length": lambda writer, node: writer.length(node),
    "substring": lambda writer, node: writer.substring(node),
    "trunc": lambda writer, node: writer.truncated(node),
    "part": lambda writer, node: writer.part(node),
    "shift": lambda writer, node: writer.shifted(node),
    "add_days": lambda writer, node: writer.add_days(node),
    "days_between": lambda writer, node: writer.days_between(node),
}
