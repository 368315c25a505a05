"""A gated statement as a portable query: FROM, grouping, items, order, one SELECT after another."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import sqlglot
from sqlglot import exp
from sqlglot.errors import SqlglotError

from accel_dask.query_planner.portable.coerce import coerced
from accel_dask.query_planner.portable.expressions import (
    Reader,
    check_no_subquery,
    check_subqueries,
    contains_aggregate,
    reads_column,
)
from accel_dask.query_planner.portable.from_clause import (
    FromReader,
    Relation,
    Table,
    full_size,
)
from accel_dask.query_planner.portable.names_in_scope import Scope, Source
from accel_dask.query_planner.portable.refusals import check_arguments, refuse, told
from accel_dask.query_planner.portable.tree import (
    AGGREGATES,
    Block,
    Derived,
    Grouping,
    Item,
    Join,
    Node,
    OrderKey,
    Output,
    Query,
    UnionBlock,
)
from accel_dask.query_planner.portable.types import NULL, Kind, common_of

NameOf = Callable[[exp.Expr], str]
_SELECT_PARTS: Final = (
    "with_", "expressions", "from_", "joins", "where", "group", "having", "distinct", "order",
    "limit", "offset",
)  # fmt: skip


@dataclass(slots=True)
class Numbers:
    """Gives every relation a name of its own."""

    last: int = -1

    def next(self) -> str:
        self.last += 1
        return f"t{self.last}"


@dataclass(frozen=True, slots=True)
class Cte:
    body: exp.Expr
    visible: Mapping[str, Cte]
    """The CTEs that it sees."""


@dataclass(frozen=True, slots=True)
class QueryReader:
    """Reads one statement."""

    tables: Mapping[int, Table]
    """By the id of their node."""
    name_of: NameOf
    """The name that DuckDB derives for an item without one."""
    tenant: str = ""
    parameters: Mapping[int, Node] = field(default_factory=dict)
    ctes: Mapping[str, Cte] = field(default_factory=dict)
    numbers: Numbers = field(default_factory=Numbers)

    def read(self, node: exp.Expr) -> Query:
        """
        Raises:
            NotPortable: it is not in the subset.
        """
        reader = self._with(node.args.get("with_"))
        if isinstance(node, exp.Select):
            return reader.select(node)
        if isinstance(node, exp.Union):
            return reader.union(node)
        if isinstance(node, exp.Subquery):
            check_arguments(node, "this", "with_", "alias")
            return reader.read(node.this)
        return refuse(type(node).__name__.upper())

    def _with(self, with_: exp.With | None) -> QueryReader:
        if with_ is None:
            return self
        check_arguments(with_, "expressions")
        ctes = dict(self.ctes)
        for cte in with_.expressions:
            check_arguments(cte, "this", "alias")
            alias = cte.args["alias"]
            if alias.args.get("columns"):
                refuse(f"the column list of the CTE {cte.alias}")
            ctes[cte.alias.lower()] = Cte(cte.this, dict(ctes))
        return replace(self, ctes=ctes)

    def cte(self, name: str) -> Query | None:
        """A CTE's query, read anew where it is named."""
        found = self.ctes.get(name)
        if found is None:
            return None
        return replace(self, ctes=found.visible).read(found.body)

    def table(self, node: exp.Table) -> Table | None:
        return self.tables.get(id(node))

    def next_alias(self) -> str:
        return self.numbers.next()

    def row_filter(self, table: Table, source: Source) -> Node | None:
        """The dataset's row filter, over its columns."""
        if table.row_filter is None:
            return None
        scope = Scope((Source(source.name, source.columns),))
        try:
            parsed = sqlglot.parse_one(
                f"SELECT 1 FROM t WHERE ({table.row_filter})",  # noqa: S608 - it is only read
                read="duckdb",
            )
        except SqlglotError as error:
            return refuse(f"the row filter of {table.dataset}", str(error).splitlines()[0])
        where = parsed.args.get("where")
        if where is None or set(parsed.args) - {"expressions", "from_", "where"} - {
            key for key, value in parsed.args.items() if not value
        }:
            return refuse(f"the row filter of {table.dataset}")
        condition = Reader(scope=scope, query_of=self._no_subquery).condition(where.this)
        return (
            refuse("an aggregate in a row filter") if contains_aggregate(condition) else condition
        )

    @staticmethod
    def _no_subquery(node: exp.Expr) -> Query:
        return refuse(told(node), "a row filter has no subquery")

    def select(self, node: exp.Select) -> Block:
        check_arguments(node, *_SELECT_PARTS)
        if node.args.get("from_") is None:
            refuse("a SELECT without FROM", "it reads no dataset")
        found = FromReader(self, self._reader).read(node)
        aliases = {one.alias.lower(): one.this for one in node.expressions if one.alias}
        group = node.args.get("group")
        reader = self._reader(found.scope)
        reader = replace(reader, aliases=aliases, is_grouped=group is not None)
        where = node.args.get("where")
        where_node = reader.condition(where.this) if where is not None else None
        check_subqueries(where_node)
        if where_node is not None and contains_aggregate(where_node):
            refuse("an aggregate in WHERE")
        items = self._items(node, reader)
        clauses = _Clauses(node, reader, items)
        return clauses.block(found.relation, found.joins, where_node, self.numbers.next())

    def _reader(self, scope: Scope) -> Reader:
        return Reader(scope=scope, query_of=self._subquery, parameters=self.parameters)

    def _subquery(self, node: exp.Expr) -> Query:
        return self.read(node)

    def _items(self, select: exp.Select, reader: Reader) -> list[tuple[str, Node]]:
        items: list[tuple[str, Node]] = []
        for one in select.expressions:
            if isinstance(one, exp.Star):
                check_arguments(one)
                items += reader.scope.star()
            elif isinstance(one, exp.Column) and isinstance(one.this, exp.Star):
                check_arguments(one.this)
                items += reader.scope.star(one.table)
            else:
                items.append(self._item(one, reader))
        for name, node in items:
            if node.op == "unread":
                refuse(f"the column {node.text}", "engines keep this type in ways of their own")
            if node.type == NULL:
                refuse(f"the column {name} of nothing but NULL", "cast it to a type")
        return items

    def _item(self, one: exp.Expr, reader: Reader) -> tuple[str, Node]:
        if isinstance(one, exp.Alias):
            check_arguments(one, "this", "alias")
            return one.alias, reader.read(one.this)
        if isinstance(one, exp.Column):
            declared = one.name
            for source in reader.scope.sources:
                for name, _ in source.columns:
                    declared = name if name.lower() == declared.lower() else declared
            return declared, reader.read(one)
        return self.name_of(one), reader.read(one)

    def union(self, node: exp.Union) -> UnionBlock:
        check_arguments(node, "this", "expression", "distinct", "with_", "order", "limit", "offset")
        branches = [self.read(node.this), self.read(node.expression)]
        counts = {len(branch.outputs) for branch in branches}
        if len(counts) > 1:
            refuse("UNION of queries with different numbers of columns")
        outputs = []
        for columns in zip(*(branch.outputs for branch in branches), strict=True):
            kind = common_of(column.type for column in columns)
            if kind is None or (kind.kind is Kind.DECIMAL and len({c.type for c in columns}) > 1):
                refuse("UNION of columns of different types", "cast them to one")
            assert kind is not None
            outputs.append(Output(columns[0].name, kind))
        is_distinct = bool(node.args.get("distinct"))
        if is_distinct and any(output.type.kind is Kind.DOUBLE for output in outputs):
            refuse("UNION of doubles", "it compares them for equality; use UNION ALL")
        casted = tuple(self._cast(branch, outputs) for branch in branches)
        block = UnionBlock(casted, tuple(outputs), is_distinct)
        limit, offset = limits(node)
        return replace(block, order=_union_order(node, block), limit=limit, offset=offset)

    def _cast(self, query: Query, outputs: Sequence[Output]) -> Query:
        """`query` with its columns in the types of `outputs`."""
        if all(ours.type == to.type for ours, to in zip(query.outputs, outputs, strict=True)):
            return query
        alias = self.next_alias()
        items = []
        for index, (ours, to) in enumerate(zip(query.outputs, outputs, strict=True)):
            node = Node("column", ours.type, text=f"{alias}.c{index}", size=full_size(ours.type))
            items.append(Item(f"c{index}", coerced(node, to.type)))
        return Block(Derived(alias, query), (), None, None, tuple(items), tuple(outputs))


def _union_order(node: exp.Union, block: UnionBlock) -> tuple[OrderKey, ...]:
    order = node.args.get("order")
    keys = []
    for one in order.expressions if order is not None else ():
        target = one.this
        position = None
        if isinstance(target, exp.Literal) and not target.is_string:
            position = int(target.this) - 1
        elif isinstance(target, exp.Column) and not target.table:
            names = [output.name.lower() for output in block.outputs]
            if names.count(target.name.lower()) == 1:
                position = names.index(target.name.lower())
        if position is None or not 0 <= position < len(block.outputs):
            return refuse(f"ORDER BY {told(target)} behind UNION", "name a column of the result")
        keys.append(_key(one, Node("output", block.outputs[position].type, text=f"c{position}")))
    return tuple(keys)


def limits(node: exp.Expr) -> tuple[int | None, int]:
    """LIMIT and OFFSET."""
    numbers: list[int | None] = []
    for name in ("limit", "offset"):
        part = node.args.get(name)
        if part is None:
            numbers.append(None)
            continue
        check_arguments(part, "this", "expression")
        value = part.expression if part.expression is not None else part.this
        if not isinstance(value, exp.Literal) or value.is_string or not value.this.isdigit():
            refuse(f"{name.upper()} {told(value)}", "write a number")
        numbers.append(int(value.this))
    return numbers[0], numbers[1] or 0


def _key(ordered: exp.Ordered, node: Node) -> OrderKey:
    check_arguments(ordered, "this", "desc", "nulls_first")
    is_descending = bool(ordered.args.get("desc"))
    return OrderKey(node, is_descending, bool(ordered.args.get("nulls_first")))


class _Clauses:
    """GROUP BY, HAVING, ORDER BY and DISTINCT of one SELECT, whose items are read."""

    def __init__(
        self, select: exp.Select, reader: Reader, items: Sequence[tuple[str, Node]]
    ) -> None:
        self._select = select
        self._reader = reader
        self._names = [name.lower() for name, _ in items]
        self._outputs = tuple(Output(name, node.type) for name, node in items)
        self._nodes = [node for _, node in items]
        self._keys: list[Item] = []
        self._aggregates: list[Item] = []
        self._alias = ""

    def block(
        self, relation: Relation, joins: tuple[Join, ...], where: Node | None, alias: str
    ) -> Block:
        select = self._select
        self._alias = alias
        having = select.args.get("having")
        condition = self._reader.condition(having.this) if having is not None else None
        order = self._order()
        check_no_subquery(*self._nodes, *(one.node for one in order), condition)
        is_grouped = select.args.get("group") is not None or any(
            contains_aggregate(node)
            for node in (*self._nodes, *(one.node for one in order), condition)
            if node is not None
        )
        grouping = None
        if is_grouped or condition is not None:
            self._find_keys(select.args.get("group"))
            self._nodes = [self._split(node) for node in self._nodes]
            order = [replace(one, node=self._split(one.node)) for one in order]
            condition = self._split(condition) if condition is not None else None
            grouping = Grouping(alias, tuple(self._keys), tuple(self._aggregates), condition)
        items = tuple(Item(f"c{index}", node) for index, node in enumerate(self._nodes))
        limit, offset = limits(select)
        return Block(
            relation=relation,
            joins=joins,
            where=where,
            grouping=grouping,
            items=items,
            outputs=self._outputs,
            is_distinct=self._is_distinct(order),
            order=tuple(order),
            limit=limit,
            offset=offset,
        )

    def _is_distinct(self, order: list[OrderKey]) -> bool:
        distinct = self._select.args.get("distinct")
        if distinct is None:
            return False
        check_arguments(distinct, "expressions")
        if distinct.args.get("on") or any(not node.is_exact for node in self._nodes):
            refuse("DISTINCT of doubles that were summed up or rounded")
        if any(key.node not in self._nodes for key in order):
            refuse("ORDER BY of something that SELECT DISTINCT does not have")
        return True

    def _order(self) -> list[OrderKey]:
        order = self._select.args.get("order")
        if order is None:
            return []
        check_arguments(order, "expressions", "this")
        return [_key(one, self._order_node(one.this)) for one in order.expressions]

    def _order_node(self, node: exp.Expr) -> Node:
        if isinstance(node, exp.Literal) and not node.is_string and node.this.isdigit():
            return self._at(int(node.this), "ORDER BY")
        if isinstance(node, exp.Literal):
            refuse(f"ORDER BY {told(node)}", "it is no column")
        if isinstance(node, exp.Column) and not node.table:
            found = {
                self._nodes[index]
                for index, name in enumerate(self._names)
                if name == node.name.lower()
            }
            if len(found) > 1:
                refuse(f"ORDER BY {told(node)}", "several columns have this name")
            if found:
                return found.pop()
        for column in node.find_all(exp.Column):
            is_alias = not column.table and column.name.lower() in self._reader.aliases
            if is_alias and self._reader.scope.column(column) is not None:
                refuse(f"ORDER BY {told(node)}", f"{column.name} is a column and an alias")
        return self._reader.read(node)

    def _at(self, number: int, clause: str) -> Node:
        if not 1 <= number <= len(self._nodes):
            refuse(f"{clause} {number}", "there is no such column")
        return self._nodes[number - 1]

    def _find_keys(self, group: exp.Group | None) -> None:
        if group is None:
            return
        check_arguments(group, "expressions", "all")
        nodes = [self._key_node(one) for one in group.expressions]
        if group.args.get("all"):
            nodes = [node for node in self._nodes if not contains_aggregate(node)]
            if not all(map(reads_column, nodes)):
                refuse("GROUP BY ALL with a constant", "name what to group by")
        for node in dict.fromkeys(nodes):
            if contains_aggregate(node) or not node.is_exact:
                refuse("GROUP BY of an aggregate, or of doubles that were rounded")
            self._keys.append(Item(f"k{len(self._keys)}", node))

    def _key_node(self, node: exp.Expr) -> Node:
        if isinstance(node, exp.Literal) and not node.is_string and node.this.isdigit():
            return self._at(int(node.this), "GROUP BY")
        return self._reader.read(node)

    def _split(self, node: Node) -> Node:
        """`node` over the grouping's keys and aggregates."""
        for key in self._keys:
            if key.node == node or _same_but_type(key.node, node):
                return self._reference(key, node)
        if node.op in AGGREGATES:
            for one in self._aggregates:
                if one.node == node:
                    return self._reference(one, node)
            item = Item(f"a{len(self._aggregates)}", node)
            self._aggregates.append(item)
            return self._reference(item, node)
        if node.op == "column":
            refuse(f"a column that is neither grouped by nor aggregated ({node.type})")
        return replace(node, args=tuple(self._split(one) for one in node.args))

    def _reference(self, item: Item, node: Node) -> Node:
        return Node(
            "column",
            node.type,
            text=f"{self._alias}.{item.alias}",
            size=node.size,
            is_exact=node.is_exact,
        )


def _same_but_type(key: Node, node: Node) -> bool:
    """Integers of another width are the same value."""
    both_ints = key.type.kind is Kind.INT and node.type.kind is Kind.INT
    return both_ints and replace(key, type=node.type) == node
