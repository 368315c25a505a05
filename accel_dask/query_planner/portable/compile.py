"""From a statement that passed the gate to the portable query that every dialect writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlglot import exp

from accel_dask.errors import NotPortable
from accel_dask.query_planner.names import derived_name
from accel_dask.query_planner.plan import ParsedQuery
from accel_dask.query_planner.portable.from_clause import Table
from accel_dask.query_planner.portable.refusals import refuse, told
from accel_dask.query_planner.portable.select import QueryReader
from accel_dask.query_planner.portable.tree import (
    Block,
    Derived,
    Node,
    Output,
    Query,
    Scan,
    UnionBlock,
)
from accel_dask.query_planner.statement import SPAN


@dataclass(frozen=True, slots=True)
class PortableQuery:
    """What is asked, and what its answer must look like."""

    query: Query
    scans: tuple[Scan, ...]
    parameter_columns: tuple[str, ...] = ()
    """As in `ParsedQuery`."""

    @property
    def outputs(self) -> tuple[Output, ...]:
        return self.query.outputs

    @property
    def max_rows(self) -> int | None:
        """More rows than this no right answer has; None: any number."""
        return self.query.max_rows


def compile_portable(
    parsed: ParsedQuery, tables: Mapping[int, Table], parameters: Sequence[Node] = ()
) -> PortableQuery:
    """The portable query of `parsed`. `tables` has the dataset of each of its table references,
    by the id of its node; `parameters` the values of its parameters.

    Raises:
        NotPortable: some engine could answer it otherwise than we do. The message names what.
    """
    reader = QueryReader(
        tables=tables,
        name_of=lambda item: _name_of(parsed, item),
        tenant=next((str(table.dataset.tenant) for table in tables.values()), ""),
        parameters=_parameters(parsed, parameters),
    )
    try:
        query = reader.read(parsed.tree)
    except RecursionError as error:
        raise NotPortable("the statement is nested too deep for the fallback engine") from error
    used = {node.text for node in _nodes(query) if node.op == "column"}
    query = _pruned(query, used)
    return PortableQuery(query, tuple(_scans(query)), parsed.parameter_columns)


def _name_of(parsed: ParsedQuery, item: exp.Expr) -> str:
    """The name that DuckDB gives to an item without one."""
    first, last = item.meta.get(SPAN, (0, -1))
    name = None
    if last >= first:
        name = derived_name(parsed.text[parsed.token_spans[first][0] : parsed.token_spans[last][1]])
    return name or refuse(told(item), "a column without a name; give it one with AS")


def _parameters(parsed: ParsedQuery, values: Sequence[Node]) -> dict[int, Node]:
    """Values by the id of their placeholder."""
    marks = sorted(
        parsed.tree.find_all(exp.Placeholder), key=lambda node: node.meta.get(SPAN, (0,))[0]
    )
    if len(marks) != len(parsed.marks):
        refuse("a parameter that is used several times")
    found = {}
    for mark, written in zip(marks, parsed.marks, strict=True):
        if written.number < len(values):
            found[id(mark)] = values[written.number]
    return found


def _relations(block: Block) -> Iterator[Scan | Derived]:
    yield block.relation
    for join in block.joins:
        yield join.relation


def _own_nodes(query: Query) -> Iterator[Node]:
    yield from (key.node for key in query.order)
    if isinstance(query, UnionBlock):
        return
    yield from (item.node for item in query.items)
    if query.where is not None:
        yield query.where
    yield from (join.on for join in query.joins if join.on is not None)
    yield from (
        one.row_filter
        for one in _relations(query)
        if isinstance(one, Scan) and one.row_filter is not None
    )
    if query.grouping is not None:
        yield from (one.node for one in (*query.grouping.keys, *query.grouping.aggregates))
        if query.grouping.having is not None:
            yield query.grouping.having


def _inner(query: Query) -> Iterator[Query]:
    if isinstance(query, UnionBlock):
        yield from query.branches
        return
    yield from (one.query for one in _relations(query) if isinstance(one, Derived))


def _nodes(query: Query) -> Iterator[Node]:
    """All expressions in `query`, whole."""
    pending = list(_own_nodes(query))
    while pending:
        node = pending.pop()
        yield node
        pending += node.args
        if node.query is not None:
            yield from _nodes(node.query)
    for inner in _inner(query):
        yield from _nodes(inner)


def _pruned(query: Query, used: set[str]) -> Query:
    """`query` with only the columns of its scans that it names."""
    if isinstance(query, UnionBlock):
        return replace(query, branches=tuple(_pruned(one, used) for one in query.branches))
    return replace(
        query,
        relation=_pruned_relation(query.relation, used),
        joins=tuple(
            replace(join, relation=_pruned_relation(join.relation, used)) for join in query.joins
        ),
    )


def _pruned_relation(relation: Scan | Derived, used: set[str]) -> Scan | Derived:
    if isinstance(relation, Derived):
        return replace(relation, query=_pruned(relation.query, used))
    columns = tuple(one for one in relation.columns if f"{relation.alias}.{one.alias}" in used)
    columns = columns or relation.columns[:1]
    if not columns:
        refuse(f"{relation.dataset}, none of whose columns can be read there")
    return replace(relation, columns=columns)


def _scans(query: Query) -> Iterator[Scan]:
    if isinstance(query, Block):
        yield from (one for one in _relations(query) if isinstance(one, Scan))
    for inner in _inner(query):
        yield from _scans(inner)
    for node in _own_nodes(query):
        yield from _scans_in(node)


def _scans_in(node: Node) -> Iterator[Scan]:
    if node.query is not None:
        yield from _scans(node.query)
    for one in node.args:
        yield from _scans_in(one)
