"""A block's SQL in two steps: what each executor computes of its own rows, and what the coordinator
makes of all the parts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from sqlglot import exp

from accel_dask.model.ids import ShardId
from accel_dask.query_planner.aggregates import (
    arguments_of,
    below,
    call_name,
    function_of,
    is_aggregate,
)
from accel_dask.query_planner.blocks import (
    Block,
    BlockKind,
    Call,
    NotMergeable,
    group_elements,
    group_key,
    own_nodes,
    same_column,
)
from accel_dask.query_planner.columns import UsedColumns
from accel_dask.query_planner.items import SourceWriter, check_order, is_star, item_name, star_names
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
    template: str
    """What a part computes, with names in braces for what it takes of the statement's text."""
    spans: tuple[tuple[str, tuple[int, int]], ...] = ()
    """Where the text for each name lies."""
    state: str = ""
    """What makes a value of it of what arrives, with `{}` for it; empty: it is that."""

    @classmethod
    def of(cls, name: str, span: tuple[int, int]) -> PartColumn:
        """A column with the text's own expression."""
        return cls(name, "{own}", (("own", span),))

    def text(self, spliced: SplicedText) -> str:
        """Its expression and name in a part."""
        cut = {name: spliced.cut(*span) for name, span in self.spans}
        return f"{self.template.format(**cut)} AS {self.name}"


@dataclass(slots=True)
class Merge:
    """A block, ready to be written."""

    block: Block
    why: str = ""
    """Why its parts are not partial results, if they could be thought to be."""
    is_distinct: bool = False
    """Whether it makes no difference how often a row of a part is there."""
    width: int = 0
    """Bytes that a row of the spread table's columns has at least, for a block of rows."""
    columns: list[PartColumn] = field(default_factory=list)
    items: list[tuple[str, str]] = field(default_factory=list)
    """Of the result of rows: text over the parts' columns, and name in quotes."""
    names: list[str] = field(default_factory=list)
    """Of a grouped result's items, in quotes."""
    edits: list[Edit] = field(default_factory=list)
    """Of the clauses behind WHERE: keys, aggregates and columns as the parts have them."""
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
    write = {
        BlockKind.ROWS: writer.rows,
        BlockKind.GROUPS: writer.grouped,
        BlockKind.COMPLETE: writer.complete,
        BlockKind.SOURCE: writer.source,
    }
    merge = write[block.kind]()
    check_order(block, merge.names or [name for _, name in merge.items])
    return merge


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
    if block.kind is BlockKind.COMPLETE:
        names = ", ".join(column.name for column in merge.columns)
        body = spliced.cut(*_body_span(block, spliced))
        clauses = [f"SELECT * FROM ({body}) AS accel_t({names})"]  # noqa: S608 - the user's text
    else:
        selected = ", ".join(column.text(spliced) for column in merge.columns)
        select_ = "SELECT DISTINCT" if merge.is_distinct else "SELECT"
        clauses = [f"{select_} {selected}", spliced.cut(*_from_span(select, spliced))]
        if (where := select.args.get("where")) is not None:
            clauses.append(spliced.cut(*_span(where, spliced)))
    if block.kind is BlockKind.GROUPS and block.keys:
        clauses.append(f"GROUP BY {', '.join(str(n + 1) for n in range(len(block.keys)))}")
    if block.limit is not None and block.kind in {BlockKind.ROWS, BlockKind.COMPLETE}:
        if merge.order:
            clauses.append("ORDER BY " + ", ".join(f"{by}{how}" for by, _, how in merge.order))
        clauses.append(f"LIMIT {block.limit}")
    return " ".join(clauses)


def merge_edits(merge: Merge, text: SplicedText, own: str, input_name: str) -> list[Edit]:
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
    if block.kind is BlockKind.SOURCE:
        return [*_source_edits(block, spliced, source), *merge.edits]
    if block.kind is BlockKind.GROUPS:
        clauses = _grouped_clauses(merge, spliced, source)
    else:
        distinct = "DISTINCT " if select.args.get("distinct") is not None else ""
        items = ", ".join(f"{item} AS {name}" for item, name in merge.items)
        clauses = [f"SELECT {distinct}{items}", f"FROM {source}"]
        if merge.order:
            clauses.append("ORDER BY " + ", ".join(f"{by}{how}" for _, by, how in merge.order))
    clauses += [
        spliced.cut(*_span(select.args[name], spliced))
        for name in ("limit", "offset")
        if select.args.get(name) is not None
    ]
    start, end = block_span(block, spliced)
    return [Edit(start=start, end=end, replacement=" ".join(clauses))]


def _source_edits(block: Block, text: SplicedText, source: str) -> list[Edit]:
    """FROM and WHERE give what the parts gave."""
    start, end = _from_span(block.select, text)
    edits = [Edit(start=start, end=end, replacement=f"FROM {source}")]
    if (where := block.select.args.get("where")) is not None:
        start, end = _span(where, text)
        edits.append(Edit(start=start, end=end, replacement=""))
    return edits


def _grouped_clauses(merge: Merge, spliced: SplicedText, source: str) -> list[str]:
    block, select = merge.block, merge.block.select
    items = [
        f"{spliced.cut(*_span(_bare(item), spliced), merge.edits)} AS {name}"
        for item, name in zip(select.expressions, merge.names, strict=True)
    ]
    distinct = "DISTINCT " if select.args.get("distinct") is not None else ""
    clauses = [f"SELECT {distinct}{', '.join(items)}", f"FROM {source}"]
    shown = len(block.keys) - block.hidden
    if block.has_sets:
        clauses.append(spliced.cut(*_span(select.args["group"], spliced), merge.edits))
    elif shown:
        clauses.append("GROUP BY " + ", ".join(f"{_KEY}{n}" for n in range(shown)))
    clauses += [
        spliced.cut(*_span(select.args[name], spliced), merge.edits)
        for name in ("having", "qualify", "order")
        if select.args.get(name) is not None
    ]
    return clauses


def block_span(block: Block, text: SplicedText) -> tuple[int, int]:
    """Start and end of the whole SELECT, without its WITH."""
    return _span_of(block.select, text, frozenset())


def _body_span(block: Block, text: SplicedText) -> tuple[int, int]:
    """As `block_span`, without ORDER BY, LIMIT and OFFSET, which come last."""
    return _span_of(block.select, text, frozenset(["order", "limit", "offset"]))


def _span_of(select: exp.Select, text: SplicedText, without: frozenset[str]) -> tuple[int, int]:
    start = text.start_of(select)
    assert start is not None
    parts = [*select.expressions, *(select.args.get("joins") or ())]
    parts += [
        value
        for name, value in select.args.items()
        if isinstance(value, exp.Expr) and name not in without
    ]
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
        items = self._block.select.expressions
        if is_star(items[0]) and len(items) == 1:
            for number, name in enumerate(star_names(self._block)):
                merge.columns.append(
                    PartColumn(f"{_ITEM}{number}", name.replace("{", "{{").replace("}", "}}"))
                )
                merge.items.append((f"{_ITEM}{number}", name))
        else:
            for number, item in enumerate(items):
                if isinstance(item, exp.Star) or item.find(exp.Star):
                    raise NotMergeable("it has a * beside other columns")
                column = f"{_ITEM}{number}"
                merge.columns.append(PartColumn.of(column, _span(_bare(item), self._text)))
                merge.items.append((column, item_name(item, self._block, self._text)))
        for ordered, how in self._ordered():
            merge.order.append((*self._row_order(merge, ordered.this), how))
        return merge

    def complete(self) -> Merge:
        merge = Merge(self._block)
        names: list[str] = []
        for item in self._block.select.expressions:
            if is_star(item):
                names += star_names(self._block)
            elif isinstance(item, exp.Column) and isinstance(item.this, exp.Star):
                raise NotMergeable("it has a * of one of its tables")
            else:
                names.append(item_name(item, self._block, self._text))
        merge.columns += [PartColumn(f"{_ITEM}{n}", "") for n in range(len(names))]
        merge.items += [(f"{_ITEM}{n}", name) for n, name in enumerate(names)]
        for ordered, how in self._ordered():
            place = self._place_of(ordered.this, names)
            merge.order.append((place, place, how))
        return merge

    def _place_of(self, by: exp.Expr, names: list[str]) -> str:
        """Which column of the result it is ordered by."""
        if isinstance(by, exp.Literal):
            return _position(by)
        if _is_all(by):
            return "ALL"
        items = self._block.select.expressions
        if not any(map(is_star, items)):
            for place, item in enumerate(items, 1):
                if isinstance(by, exp.Column) and not by.table:
                    if item.alias_or_name.lower() == by.name.lower() and _is_named(item):
                        return str(place)
                elif same_column(_bare(item), by, self._block.scope):
                    return str(place)
        found = [n for n, name in enumerate(names, 1) if name.lower() == quoted(by.name).lower()]
        if isinstance(by, exp.Column) and not by.table and len(found) == 1:
            return str(found[0])
        raise NotMergeable("it is ordered by what it does not select")

    def source(self) -> Merge:
        merge = Merge(self._block)
        writer = SourceWriter(self._block, self._text, self._scans)
        writer.write()
        merge.columns = [PartColumn.of(name, span) for name, span in writer.columns]
        if not merge.columns:
            merge.columns = [PartColumn(f"{_ITEM}0", "1")]
        merge.edits = writer.edits
        merge.width = writer.width
        return merge

    def _row_order(self, merge: Merge, by: exp.Expr) -> tuple[str, str]:
        """By what a part and the whole are ordered."""
        if isinstance(by, exp.Literal):
            return _position(by), _position(by)
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
        merge.columns.append(PartColumn.of(name, _span(by, self._text)))
        return str(len(merge.columns)), name

    def grouped(self) -> Merge:
        block = self._block
        merge = Merge(block)
        group = block.select.args.get("group")
        for part in (*block.select.expressions, *([group] if group is not None else [])):
            if part.find(exp.Query):
                raise NotMergeable("it has a subquery beside its aggregates")
        for number, key in enumerate(block.keys):
            merge.columns.append(PartColumn.of(f"{_KEY}{number}", _span(key, self._text)))
        for number in range(len(block.calls)):
            self._add_call(merge, number)
        if not merge.columns:
            raise NotMergeable("it has neither groups nor aggregates")
        for item in block.select.expressions:
            merge.names.append(item_name(item, block, self._text))
            self._replace(merge, _bare(item), aliases=frozenset())
        for name in ("having", "qualify"):
            if (clause := block.select.args.get(name)) is not None:
                self._replace(merge, clause.this, self._aliases())
        if group is not None and block.has_sets:
            self._replace_groups(merge, group)
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
            inside = self._text.span(function_of(call.node).this.expressions[0])
            if inside is None or not start < inside[0] <= inside[1] < end:
                raise NotMergeable("it is written in an unusual way")
            edit = Edit(start=inside[0], end=inside[1], replacement=f"{_KEY}{call.argument}")
            merge.edits.append(edit)
            return
        names = []
        for place, template in enumerate(call.how.parts):
            name = f"{_PARTIAL}{number}" + f"_{place}" * (len(call.how.parts) > 1)
            names.append(name)
            merge.columns.append(self._part_column(name, template, call))
        merge.edits.append(Edit(start=start, end=end, replacement=call.how.final.format(*names)))

    def _part_column(self, name: str, template: str, call: Call) -> PartColumn:
        """What a part computes for an aggregate."""
        assert call.how is not None
        condition = call.node.expression.this if isinstance(call.node, exp.Filter) else None
        template = template.replace("{and}", "" if condition is None else " AND ({filter})")
        words = dict.fromkeys(_BRACED.findall(template))
        spans = tuple((f"of_{word}", self._piece(call.node, word)) for word in words)
        return PartColumn(name, _BRACED.sub(r"{of_\1}", template), spans, call.how.state)

    def _piece(self, call: exp.Expr, word: str) -> tuple[int, int]:
        """Where the piece of an aggregate's text is that `Aggregate.parts` calls so."""
        start, end = _span(call, self._text)
        if word == "call":
            return start, end
        if word == "rest":
            return start + len(call_name(self._text.text[start:end])), end
        if word == "filter":
            return _span(call.expression.this, self._text)
        return _span(arguments_of(function_of(call))[int(word)], self._text)

    def _replace_groups(self, merge: Merge, group: exp.Expr) -> None:
        """Several groupings, as the user wrote them, of the parts' keys."""
        for element in group_elements(group):
            key = group_key(self._block, element)
            place = next(
                n
                for n, one in enumerate(self._block.keys)
                if same_column(one, key, self._block.scope)
            )
            start, end = _span(element, self._text)
            merge.edits.append(Edit(start=start, end=end, replacement=f"{_KEY}{place}"))

    def _replace(self, merge: Merge, root: exp.Expr, aliases: frozenset[str]) -> None:
        """Put the parts' columns in place of the keys in an expression over groups."""
        block = self._block
        shown = block.keys[: len(block.keys) - block.hidden]
        pending = [(root, False)]
        while pending:
            node, is_windowed = pending.pop()
            if not is_windowed and is_aggregate(node):
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
            pending += below(node, is_windowed)

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


def _position(by: exp.Literal) -> str:
    if by.is_string:  # DuckDB refuses it
        raise NotMergeable("it is ordered by a constant")
    return str(by.name)


def _is_all(by: exp.Expr) -> bool:
    """ORDER BY ALL, and not by a column of that name."""
    return isinstance(by, exp.Var) and by.name.upper() == "ALL"


_BRACED: Final = re.compile(r"\{(\w+)\}")


def _is_named(item: exp.Expr) -> bool:
    return isinstance(item, exp.Alias | exp.Column)


def _bare(item: exp.Expr) -> exp.Expr:
    return item.this if isinstance(item, exp.Alias) else item
