"""A block's SQL in two steps: what each executor computes of its own rows, and what the coordinator
makes of all the parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlglot import exp

from accel_dask.model.ids import ShardId
from accel_dask.query_planner.aggregates import call_name, is_aggregate
from accel_dask.query_planner.blocks import Block, NotMergeable, own_nodes, same_column
from accel_dask.query_planner.columns import UsedColumns
from accel_dask.query_planner.names import derived_name
from accel_dask.query_planner.physical import (
    SplicedText,
    quoted,
    relation_of,
    shard_ids,
    table_edit,
)
from accel_dask.query_planner.plan import Edit, Scan
from accel_dask.query_planner.scopes import is_closed

_ORDER_BY_ALL: Final = re.compile(r"ORDER\s+BY\s+ALL", re.IGNORECASE)
_KEY, _PARTIAL, _ITEM, _ORDER = "accel_k", "accel_p", "accel_c", "accel_o"


@dataclass(frozen=True, slots=True)
class PartColumn:
    """A column of a part."""

    name: str
    span: tuple[int, int]
    """Of its expression in the statement's text; (0, 0): it is `before` alone."""
    before: str = ""
    behind: str = ""
    state: str = ""
    """What makes a value of it of what arrives, with `{}` for it; empty: it is that."""


@dataclass(slots=True)
class Merge:
    """A block, ready to be written."""

    block: Block
    columns: list[PartColumn] = field(default_factory=list)
    items: list[tuple[str, str]] = field(default_factory=list)
    """Of the result of rows: text over the parts' columns, and name in quotes."""
    names: list[str] = field(default_factory=list)
    """Of a grouped result's items, in quotes."""
    edits: list[Edit] = field(default_factory=list)
    """Of a grouped result's clauses: keys and aggregates as the parts have them."""
    order: list[tuple[str, str, str]] = field(default_factory=list)
    """Of the result of rows: what a part, and what the result is ordered by, and how."""


def prepare(block: Block, text: SplicedText, scans: dict[int, Scan]) -> Merge:
    """
    Raises:
        NotMergeable: a name or an expression of it cannot be kept as it is.
    """
    if "accel_" in text.text.lower():
        raise NotMergeable("it has a name that is needed here")
    writer = _Writer(block, text, scans)
    return writer.grouped() if block.is_grouped else writer.rows()


def part_sql(
    merge: Merge, text: SplicedText, shards: Sequence[ShardId], columns: UsedColumns
) -> str:
    """What one executor computes of some of the spread table's shards."""
    block, select = merge.block, merge.block.select
    reads = [(block.spread, shards), *((scan, shard_ids(scan)) for scan in block.others)]
    edits = [
        table_edit(scan.reference, relation_of(scan.route, ids, columns.of(scan)))
        for scan, ids in reads
    ]
    spliced = SplicedText(text.parsed, [*text.edits, *edits])
    selected = ", ".join(
        f"{column.before}{spliced.cut(*column.span)}{column.behind} AS {column.name}"
        for column in merge.columns
    )
    clauses = [f"SELECT {selected}", spliced.cut(*_from_span(select, spliced))]
    if (where := select.args.get("where")) is not None:
        clauses.append(spliced.cut(*_span(where, spliced)))
    if block.is_grouped and block.keys:
        clauses.append(f"GROUP BY {', '.join(str(n + 1) for n in range(len(block.keys)))}")
    if block.limit is not None and not block.is_grouped:
        if merge.order:
            clauses.append("ORDER BY " + ", ".join(f"{by}{how}" for by, _, how in merge.order))
        clauses.append(f"LIMIT {block.limit}")
    return " ".join(clauses)


def merge_edit(merge: Merge, text: SplicedText, own: str, input_name: str) -> Edit:
    """The block over its parts: `own`, the coordinator's, which may be empty, and the input."""
    block, select = merge.block, merge.block.select
    arrived = ", ".join(
        f"{column.state.format(column.name)} AS {column.name}" if column.state else column.name
        for column in merge.columns
    )
    parts = [f"SELECT {arrived} FROM {quoted(input_name)}"]  # noqa: S608 - our own names
    if own:
        parts.insert(0, own)
    source = f"({' UNION ALL '.join(parts)}) AS accel_u"
    spliced = SplicedText(text.parsed, text.edits)
    if block.is_grouped:
        clauses = _grouped_clauses(merge, spliced, source)
    else:
        clauses = [
            "SELECT " + ", ".join(f"{item} AS {name}" for item, name in merge.items),
            f"FROM {source}",
        ]
        if merge.order:
            clauses.append("ORDER BY " + ", ".join(f"{by}{how}" for _, by, how in merge.order))
    clauses += [
        spliced.cut(*_span(select.args[name], spliced))
        for name in ("limit", "offset")
        if select.args.get(name) is not None
    ]
    start, end = block_span(block, spliced)
    return Edit(start=start, end=end, replacement=" ".join(clauses))


def _grouped_clauses(merge: Merge, spliced: SplicedText, source: str) -> list[str]:
    block, select = merge.block, merge.block.select
    items = [
        f"{spliced.cut(*_span(_bare(item), spliced), merge.edits)} AS {name}"
        for item, name in zip(select.expressions, merge.names, strict=True)
    ]
    distinct = "DISTINCT " if select.args.get("distinct") is not None else ""
    clauses = [f"SELECT {distinct}{', '.join(items)}", f"FROM {source}"]
    if shown := len(block.keys) - block.hidden:
        clauses.append("GROUP BY " + ", ".join(f"{_KEY}{n}" for n in range(shown)))
    clauses += [
        spliced.cut(*_span(select.args[name], spliced), merge.edits)
        for name in ("having", "order")
        if select.args.get(name) is not None
    ]
    return clauses


def block_span(block: Block, text: SplicedText) -> tuple[int, int]:
    """Start and end of the whole SELECT, without its WITH."""
    select = block.select
    start = text.start_of(select)
    assert start is not None
    parts = [*select.expressions, *(select.args.get("joins") or ())]
    parts += [value for value in select.args.values() if isinstance(value, exp.Expr)]
    spans = [text.span(part) for part in parts if not isinstance(part, exp.Distinct)]
    return start, max(span[1] for span in spans if span is not None)


class _Writer:
    """Says how the parts and the whole of one block are written."""

    def __init__(self, block: Block, text: SplicedText, scans: dict[int, Scan]) -> None:
        self._block = block
        self._text = text
        self._scans = scans

    def rows(self) -> Merge:
        merge = Merge(self._block)
        for number, (span, name) in enumerate(self._items()):
            column = f"{_ITEM}{number}"
            merge.columns.append(PartColumn(column, span, "" if span != (0, 0) else name))
            merge.items.append((column, name))
        for ordered, how in self._ordered():
            merge.order.append((*self._row_order(merge, ordered.this), how))
        return merge

    def _items(self) -> Iterator[tuple[tuple[int, int], str]]:
        """Place and name of each column of the result."""
        select = self._block.select
        if len(select.expressions) == 1 and type(select.expressions[0]) is exp.Star:
            if len(self._block.scope.sources) != 1 or any(select.expressions[0].args.values()):
                raise NotMergeable("it has a * over several tables")
            for column in self._block.spread.route.columns:
                yield (0, 0), quoted(column.name)
            return
        for item in select.expressions:
            if isinstance(item, exp.Star) or item.find(exp.Star):
                raise NotMergeable("it has a * beside other columns")
            yield _span(_bare(item), self._text), self._name(item)

    def _row_order(self, merge: Merge, by: exp.Expr) -> tuple[str, str]:
        """By what a part and the whole are ordered."""
        if isinstance(by, exp.Literal):
            return by.name, by.name
        if _is_all(by):
            return "ALL", "ALL"
        items = self._block.select.expressions
        if isinstance(by, exp.Column) and not by.table:
            for position, item in enumerate(items, 1):
                if item.alias_or_name.lower() == by.name.lower() and _is_named(item):
                    return str(position), str(position)
        for node in own_nodes(by):
            if isinstance(node, exp.Query):
                raise NotMergeable("it is ordered by a subquery")
            is_alias = isinstance(node, exp.Column) and node.name.lower() in self._aliases()
            if is_alias or (
                isinstance(node, exp.Column) and self._block.scope.resolve(node) is None
            ):
                raise NotMergeable("it is ordered by an expression over its own columns")
        if self._block.select.args.get("distinct") is not None:
            raise NotMergeable("it is ordered by what it does not select")
        name = f"{_ORDER}{len(merge.columns)}"
        merge.columns.append(PartColumn(name, _span(by, self._text)))
        return str(len(merge.columns)), name

    def grouped(self) -> Merge:
        block = self._block
        merge = Merge(block)
        group = block.select.args.get("group")
        for part in (*block.select.expressions, *([group] if group is not None else [])):
            if part.find(exp.Query):
                raise NotMergeable("it has a subquery beside its aggregates")
        for number, key in enumerate(block.keys):
            merge.columns.append(PartColumn(f"{_KEY}{number}", _span(key, self._text)))
        for number in range(len(block.calls)):
            self._add_call(merge, number)
        if not merge.columns:
            raise NotMergeable("it has neither groups nor aggregates")
        for item in block.select.expressions:
            merge.names.append(self._name(item))
            self._replace(merge, _bare(item), aliases=frozenset())
        if (having := block.select.args.get("having")) is not None:
            self._replace(merge, having.this, self._aliases())
        for ordered, _ in self._ordered():
            by = ordered.this
            # A name that stands alone is an alias before it is a column.
            is_alias = (
                isinstance(by, exp.Column) and not by.table and by.name.lower() in self._aliases()
            )
            if not is_alias and not isinstance(by, exp.Literal) and not _is_all(by):
                self._replace(merge, by, self._aliases())
        return merge

    def _add_call(self, merge: Merge, number: int) -> None:
        call = self._block.calls[number]
        start, end = _span(call.node, self._text)
        if call.node.find(exp.Query):
            raise NotMergeable("it has a subquery in an aggregate")
        if call.how is None:
            inside = self._text.span(call.node.this.expressions[0])
            if inside is None or not start < inside[0] <= inside[1] < end:
                raise NotMergeable("it is written in an unusual way")
            edit = Edit(start=inside[0], end=inside[1], replacement=f"{_KEY}{call.argument}")
            merge.edits.append(edit)
            return
        how = call.how
        names = []
        for place, function in enumerate(how.instead or ("",)):
            name = f"{_PARTIAL}{number}" + f"_{place}" * bool(function)
            names.append(name)
            # Another function is called with the same arguments and FILTER.
            skipped = len(call_name(self._text.text[start:end])) if function else 0
            span = (start + skipped, end)
            merge.columns.append(PartColumn(name, span, function, how.behind, how.state))
        merge.edits.append(Edit(start=start, end=end, replacement=how.final.format(*names)))

    def _replace(self, merge: Merge, root: exp.Expr, aliases: frozenset[str]) -> None:
        """Put the parts' columns in place of the keys in an expression over groups."""
        block = self._block
        shown = block.keys[: len(block.keys) - block.hidden]
        pending = [root]
        while pending:
            node = pending.pop()
            if is_aggregate(node):
                continue
            if isinstance(node, exp.Query):
                if not is_closed(node, self._scans):
                    raise NotMergeable("a subquery uses columns of its groups")
                continue
            is_alias = (
                isinstance(node, exp.Column) and not node.table and node.name.lower() in aliases
            )
            place = next(
                (n for n, key in enumerate(shown) if same_column(node, key, block.scope)), None
            )
            if is_alias and not self._is_own_alias(node, place):
                if place is not None or block.scope.resolve(node) is not None:
                    raise NotMergeable(f"{node.name} is a column and another one's alias")
                continue
            if place is not None:
                start, end = _span(node, self._text)
                merge.edits.append(Edit(start=start, end=end, replacement=f"{_KEY}{place}"))
                continue
            if isinstance(node, exp.Column):
                raise NotMergeable(f"{node.name} is not one of its groups")
            pending += node.iter_expressions()

    def _is_own_alias(self, node: exp.Expr, place: int | None) -> bool:
        """Whether the alias names the very column that it hides."""
        items = [i for i in self._block.select.expressions if i.alias.lower() == node.name.lower()]
        return (
            place is not None
            and len(items) == 1
            and same_column(items[0].this, self._block.keys[place], self._block.scope)
            and isinstance(items[0].this, exp.Column)
        )

    def _aliases(self) -> frozenset[str]:
        return self._block.scope.aliases

    def _ordered(self) -> Iterator[tuple[exp.Expr, str]]:
        """The elements of ORDER BY, each with the words behind it."""
        order = self._block.select.args.get("order")
        if order is None:
            return
        start, end = _span(order, self._text)
        if len(order.expressions) == 1 and _is_all(order.expressions[0].this):
            how = _ORDER_BY_ALL.sub("", self._text.text[start:end]).strip()
            yield order.expressions[0], f" {how}" if how else ""
            return
        spans = [_span(ordered.this, self._text) for ordered in order.expressions]
        following = [*(span[0] for span in spans[1:]), end]
        for ordered, span, until in zip(order.expressions, spans, following, strict=True):
            how = self._text.text[span[1] : until].rstrip().removesuffix(",").rstrip()
            if set(how.lower().split()) - {"asc", "desc", "nulls", "first", "last"}:
                raise NotMergeable("its ORDER BY is written in an unusual way")
            yield ordered, f" {how.strip()}" if how.strip() else ""

    def _name(self, item: exp.Expr) -> str:
        if isinstance(item, exp.Alias):
            return quoted(item.alias)
        if isinstance(item, exp.Column):
            return quoted(self._column_name(item))
        start, end = _span(item, self._text)
        given = next(
            (e.replacement for e in self._text.edits
             if e.start == e.end == end and e.replacement.startswith(" AS ")), ""
        )  # fmt: skip
        if given:
            return given.removeprefix(" AS ")
        name = derived_name(self._text.cut(start, end))
        if name is None:
            raise NotMergeable("a column of it has a name that only DuckDB knows; name it with AS")
        return quoted(name)

    def _column_name(self, column: exp.Column) -> str:
        found = self._block.scope.resolve(column)
        for source in self._block.scope.sources:
            if found and source.scan is not None and source.name == found[0]:
                for known in source.scan.route.columns:
                    if known.name.lower() == found[1]:
                        return known.name
        return str(column.name)


def _from_span(select: exp.Select, text: SplicedText) -> tuple[int, int]:
    start, end = _span(select.args["from_"], text)
    for join in select.args.get("joins") or ():
        end = max(end, _span(join, text)[1])
    return start, end


def _span(node: exp.Expr, text: SplicedText) -> tuple[int, int]:
    span = text.span(node)
    if span is None:
        raise NotMergeable("it is written in an unusual way")
    return span


def _is_all(by: exp.Expr) -> bool:
    """ORDER BY ALL, and not by a column of that name."""
    return isinstance(by, exp.Var) and by.name.upper() == "ALL"


def _is_named(item: exp.Expr) -> bool:
    return isinstance(item, exp.Alias | exp.Column)


def _bare(item: exp.Expr) -> exp.Expr:
    return item.this if isinstance(item, exp.Alias) else item
