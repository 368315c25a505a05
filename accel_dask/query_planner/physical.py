"""Physical SQL: the user's own text, cut and spliced. Nothing is written anew from a tree, so that
DuckDB runs what the user wrote."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from typing import Final

from sqlglot import exp

from accel_dask.model.ids import DatasetId, ShardId
from accel_dask.model.routing import DatasetRoute, ExecutorRoute
from accel_dask.model.snapshot import Column
from accel_dask.model.ticket import EpochToken, shard_relation
from accel_dask.query_planner.plan import (
    Edit,
    FragmentKind,
    ParsedQuery,
    Scan,
    TableReference,
)
from accel_dask.query_planner.statement import FIRST_TOKEN, SPAN

_MARK: Final = re.compile("\0([0-9]+)\0")


class SplicedText:
    """A statement's text and what is put into it."""

    def __init__(self, parsed: ParsedQuery, edits: Iterable[Edit]) -> None:
        self.parsed: Final = parsed
        self.edits: Final = list(edits)

    def span(self, node: exp.Expr) -> tuple[int, int] | None:
        """Start and end of `node`, if the parser noted them."""
        tokens = node.meta.get(SPAN)
        spans = self.parsed.token_spans
        if tokens is not None and tokens[0] <= tokens[1] < len(spans):
            return spans[tokens[0]][0], spans[tokens[1]][1]
        if isinstance(node, exp.Column) and isinstance(node.this, exp.Identifier):
            first, last = (self._token_of(part) for part in (node.parts[0], node.parts[-1]))
            if first is not None and last is not None:
                return spans[first][0], spans[last][1]
        return None

    def start_of(self, select: exp.Select) -> int | None:
        """Where `select` begins: at `SELECT` or `FROM`, behind any WITH."""
        token = select.meta.get(FIRST_TOKEN)
        return None if token is None else self.parsed.token_spans[token][0]

    @property
    def text(self) -> str:
        return self.parsed.text

    def _token_of(self, identifier: exp.Expr) -> int | None:
        start = identifier.meta.get("start")
        if start is None:
            return None
        starts = self.parsed.token_starts
        token = bisect_left(starts, start)
        return token if token < len(starts) and starts[token] == start else None

    def cut(self, start: int, end: int, more: Iterable[Edit] = ()) -> str:
        """The text from `start` to `end` with the edits that lie in it. `more` take the place of
        edits inside of them."""
        more = [edit for edit in more if start <= edit.start and edit.end <= end]
        within = [
            edit
            for edit in self.edits
            if start <= edit.start
            and edit.end <= end
            and not edit.start == edit.end == end
            and not any((one.start, one.end) == (edit.start, edit.end) for one in more)
        ]
        return apply_edits(self.parsed.text[:end], _outermost([*within, *more]), start)

    def all(self) -> str:
        """The whole statement."""
        return apply_edits(self.parsed.text, _outermost(self.edits))


def _outermost(edits: list[Edit]) -> list[Edit]:
    replaced = [edit for edit in edits if edit.start < edit.end]
    return [edit for edit in edits if not any(_is_inside(edit, outer) for outer in replaced)]


def _is_inside(edit: Edit, outer: Edit) -> bool:
    if edit.start == edit.end:
        return outer.start < edit.start < outer.end
    is_shorter = edit.end - edit.start < outer.end - outer.start
    return is_shorter and outer.start <= edit.start and edit.end <= outer.end


def apply_edits(text: str, edits: list[Edit], at: int = 0) -> str:
    """`text` from `at` with every edit applied; edits that insert at one place go in as listed."""
    pieces: list[str] = []
    for edit in sorted(edits, key=lambda edit: (edit.start, edit.end)):
        pieces += (text[at : edit.start], edit.replacement)
        at = max(at, edit.end)
    return "".join((*pieces, text[at:]))


def parameter_edits(parsed: ParsedQuery) -> list[Edit]:
    """Edits that put a mark of our own in place of each parameter; see `number_parameters`."""
    return [
        Edit(start=mark.start, end=mark.end, replacement=f"\0{mark.number}\0")
        for mark in parsed.marks
    ]


def number_parameters(sql: str) -> tuple[str, tuple[int, ...]]:
    """`sql` with `$1`, `$2`, ... for our marks, and which of the query's parameters these are."""
    order: dict[str, int] = {}

    def numbered(match: re.Match[str]) -> str:
        return f"${order.setdefault(match[1], len(order) + 1)}"

    numbered_sql = _MARK.sub(numbered, sql)
    return numbered_sql, tuple(map(int, order))


def table_edit(reference: TableReference, relation: str) -> Edit:
    """`relation` in place of a table's name."""
    if not reference.has_alias:
        relation = f"{relation} AS {quoted(reference.table)}"
    return Edit(start=reference.start, end=reference.end, replacement=relation)


def relation_of(
    route: DatasetRoute,
    shards: Sequence[ShardId],
    columns: Sequence[Column] | None = None,
    inputs: Sequence[str] = (),
) -> str:
    """The union of `shards` and `inputs` as a relation; of no more than some columns where they
    must be listed, if given: the engine binds each column of each shard."""
    if len(shards) == 1 and not inputs:
        return shard_relation(shards[0], route.table)
    selected = ", ".join(quoted(column.name) for column in columns or route.columns)
    sources = [shard_relation(shard, route.table) for shard in shards]
    sources += map(quoted, inputs)
    if not sources:
        return f"({_no_rows(columns or route.columns)})"
    selects = (f"SELECT {selected} FROM {source}" for source in sources)  # noqa: S608 - quoted names
    return f"({' UNION ALL '.join(selects)})"


def _no_rows(columns: Sequence[Column]) -> str:
    selected = ", ".join(
        f"CAST(NULL AS {column.type}) AS {quoted(column.name)}" for column in columns
    )
    return f"SELECT {selected} WHERE false"


def kind_at(executors: Sequence[ExecutorRoute]) -> FragmentKind:
    """The kind of what is run by the first of `executors`."""
    return FragmentKind.COLD if executors and executors[0].is_cold else FragmentKind.HOT


def shard_ids(scan: Scan) -> list[ShardId]:
    return [scan.route.shards[index].shard_id for index in scan.shards]


def tokens_of(reads: Iterable[tuple[DatasetRoute, Iterable[ShardId]]]) -> tuple[EpochToken, ...]:
    """What a fragment reads, by dataset."""
    shards: dict[DatasetId, set[ShardId]] = {}
    routes: dict[DatasetId, DatasetRoute] = {}
    for route, ids in reads:
        routes[route.dataset_id] = route
        shards.setdefault(route.dataset_id, set()).update(ids)
    return tuple(
        EpochToken(
            dataset=dataset.name,
            epoch=routes[dataset].epoch,
            shards=tuple(sorted(shards[dataset])),
        )
        for dataset in sorted(shards)
    )


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
