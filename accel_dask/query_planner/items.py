"""The columns of a SELECT's result: their names, and what they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from sqlglot import exp

from accel_dask.query_planner.blocks import (
    Block,
    NotMergeable,
    own_nodes,
    same_column,
    source_parts,
)
from accel_dask.query_planner.columns import least_width
from accel_dask.query_planner.names import derived_name
from accel_dask.query_planner.physical import SplicedText, quoted
from accel_dask.query_planner.plan import Edit, Scan
from accel_dask.query_planner.scopes import Key, is_closed

_COLUMN: Final = "accel_c"


def is_star(item: exp.Expr) -> bool:
    """Whether it is a plain `*`."""
    return type(item) is exp.Star


def star_names(block: Block) -> list[str]:
    """The columns that `*` stands for, in quotes."""
    stars = [item for item in block.select.expressions if is_star(item)]
    if len(block.scope.sources) != 1 or any(any(star.args.values()) for star in stars):
        raise NotMergeable("it has a * over several tables")
    return [quoted(column.name) for column in block.spread.route.columns]


def item_name(item: exp.Expr, block: Block, text: SplicedText) -> str:
    """The name of a column of the result, in quotes.

    Raises:
        NotMergeable: only the engine knows it.
    """
    if isinstance(item, exp.Alias):
        return quoted(item.alias)
    if isinstance(item, exp.Column):
        return quoted(_column_name(item, block))
    span = text.span(item)
    if span is None:
        raise NotMergeable("it is written in an unusual way")
    given = _given_name(span[1], text)
    if given:
        return given.removeprefix(" AS ")
    name = derived_name(text.cut(*span))
    if name is None:
        raise NotMergeable("a column of it has a name that only DuckDB knows; name it with AS")
    return quoted(name)


def check_order(block: Block, names: Sequence[str]) -> None:
    """ORDER BY must not go by a name that several columns of the result have, which are `names`,
    in quotes: all of them are aliases where the parts are put together, and were not before.

    Raises:
        NotMergeable: it does.
    """
    order, items = block.select.args.get("order"), block.select.expressions
    for by in (ordered.this for ordered in order.expressions) if order is not None else ():
        if not isinstance(by, exp.Column) or by.table:
            continue
        found = [n for n, name in enumerate(names) if name.lower() == quoted(by.name).lower()]
        if len(found) < 2:
            continue
        same = [items[n] for n in found] if len(items) == len(names) else []
        is_one = all(isinstance(item, exp.Column) for item in same) and all(
            same_column(item, same[0], block.scope) for item in same
        )
        if not same or not is_one:
            raise NotMergeable("it is ordered by a name that several of its columns have")


def _given_name(end: int, text: SplicedText) -> str:
    """What puts a name behind the item that ends there."""
    return next(
        (e.replacement for e in text.edits
         if e.start == e.end == end and e.replacement.startswith(" AS ")), ""
    )  # fmt: skip


def _column_name(column: exp.Column, block: Block) -> str:
    found = block.scope.resolve(column)
    for source in block.scope.sources:
        if found and source.scan is not None and source.name == found[0]:
            for known in source.scan.route.columns:
                if known.name.lower() == found[1]:
                    return known.name
    return str(column.name)


class SourceWriter:
    """Puts columns of parts in place of the columns that a SELECT takes from its FROM."""

    def __init__(self, block: Block, text: SplicedText, scans: dict[int, Scan]) -> None:
        self._block = block
        self._text = text
        self._scans = scans
        self._known: dict[Key, str] = {}
        self.columns: list[tuple[str, tuple[int, int]]] = []
        """Of a part: name, and where its expression is."""
        self.edits: list[Edit] = []

    def write(self) -> None:
        """
        Raises:
            NotMergeable: a column or a name cannot be kept as it is.
        """
        items = self._block.select.expressions
        check_order(self._block, [self._write_item(item) for item in items])
        for clause in self._clauses():
            self._replace(clause, is_item=isinstance(clause, exp.Group | exp.Distinct))

    @property
    def width(self) -> int:
        """Bytes that the spread table's columns in a row have at least."""
        spread = self._block.spread
        name = spread.reference.node.alias_or_name.lower()
        names = {column for source, column in self._known if source == name}
        used = [column for column in spread.route.columns if column.name.lower() in names]
        return sum(least_width(column.type) for column in used)

    def _clauses(self) -> Iterator[exp.Expr]:
        """What stands behind WHERE, and DISTINCT ON."""
        select, before = self._block.select, source_parts(self._block.select)
        for name, value in select.args.items():
            if name in {"expressions", "joins"}:
                continue
            for clause in value if isinstance(value, list) else [value]:
                if isinstance(clause, exp.Expr) and not any(clause is one for one in before):
                    yield clause

    def _write_item(self, item: exp.Expr) -> str:
        """The item's name, in quotes."""
        count = len(self.edits)
        name = item_name(item, self._block, self._text)
        self._replace(item, is_item=True)
        if isinstance(item, exp.Alias) or len(self.edits) == count:
            return name
        span = self._text.span(item)
        assert span is not None
        if isinstance(item, exp.Column):
            own = self.edits.pop()
            self.edits.append(
                Edit(start=own.start, end=own.end, replacement=f"{own.replacement} AS {name}")
            )
        elif not _given_name(span[1], self._text):
            self.edits.append(Edit(start=span[1], end=span[1], replacement=f" AS {name}"))
        return name

    def _replace(self, root: exp.Expr, *, is_item: bool) -> None:
        scope = self._block.scope
        for node in _nodes_outside(root):
            if isinstance(node, exp.Query):
                if not is_closed(node, self._scans):
                    raise NotMergeable("a subquery uses columns of its rows")
            elif isinstance(node, exp.Star) and not isinstance(node.parent, exp.Count):
                raise NotMergeable("it has a *")
            elif isinstance(node, exp.Column):
                key = scope.resolve(node)
                is_alias = not node.table and node.name.lower() in scope.aliases
                if key is None and not is_alias:
                    raise NotMergeable(f"{node.name} is not a column of its tables")
                if key is not None and is_alias and not is_item and not self._is_own(node, key):
                    raise NotMergeable(f"{node.name} is a column and another one's alias")
                if key is not None:
                    self._put(node, key)

    def _is_own(self, node: exp.Column, key: Key) -> bool:
        """Whether the alias names the very column that it hides."""
        named = [
            item.this
            for item in self._block.select.expressions
            if item.alias.lower() == node.name.lower()
        ]
        return len(named) == 1 and self._block.scope.resolve(named[0]) == key

    def _put(self, node: exp.Column, key: Key) -> None:
        span = self._text.span(node)
        if span is None:
            raise NotMergeable("it is written in an unusual way")
        if key not in self._known:
            self._known[key] = f"{_COLUMN}{len(self.columns)}"
            self.columns.append((self._known[key], span))
        self.edits.append(Edit(start=span[0], end=span[1], replacement=self._known[key]))


def _nodes_outside(root: exp.Expr) -> Iterator[exp.Expr]:
    """As `own_nodes`, and subqueries themselves."""
    for node in own_nodes(root):
        yield node
        yield from (child for child in node.iter_expressions() if isinstance(child, exp.Query))
