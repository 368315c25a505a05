"""Which rollups the queries of a tenant ask for. Pure; `accel-dask suggest` measures and prints."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from sqlglot import exp

from accel_dask.errors import AccelError
from accel_dask.model.dataset import Rollup
from accel_dask.model.ids import DatasetId
from accel_dask.model.rollup import COUNT, GRAINS, Dimension, Measure, grains_of, rollup_table
from accel_dask.model.routing import DatasetRoute
from accel_dask.query_planner.parse import parse
from accel_dask.query_planner.physical import SplicedText
from accel_dask.query_planner.plan import PlanContext, QueryDraft, Scan
from accel_dask.query_planner.resolve import resolve
from accel_dask.query_planner.rollup_match import Fact, NoMatch, RollupMatch

_MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedShape:
    """Queries of one shape and the time that they took together."""

    sql: str
    queries: int
    total_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A rollup that would answer some of what is asked."""

    dataset: DatasetId
    rollup: Rollup
    answers: tuple[AskedShape, ...]

    @property
    def total_ms(self) -> float:
        return sum(shape.total_ms for shape in self.answers)

    @property
    def queries(self) -> int:
        return sum(shape.queries for shape in self.answers)


@dataclass
class _Block:
    """A SELECT of a shape, and what a rollup needs to answer it."""

    shape: AskedShape
    match: RollupMatch
    dimensions: frozenset[Dimension]
    measures: frozenset[Measure]


def candidates(shapes: Iterable[AskedShape], context: PlanContext) -> tuple[Candidate, ...]:
    """Rollups that no dataset has yet, those whose queries took the most time first."""
    blocks: dict[DatasetId, list[_Block]] = {}
    for shape in shapes:
        for route, block in _blocks(shape, context):
            blocks.setdefault(route.dataset_id, []).append(block)
    found = [
        candidate
        for dataset, asked in blocks.items()
        for candidate in _of_dataset(context.routing.datasets[dataset], asked)
    ]
    return tuple(sorted(found, key=lambda one: -one.total_ms))


def _blocks(shape: AskedShape, context: PlanContext) -> Iterable[tuple[DatasetRoute, _Block]]:
    try:
        draft = resolve(parse(QueryDraft(sql=shape.sql), context), context)
    except AccelError:
        return  # of a dataset or a form that is no more
    assert draft.parsed is not None
    text = SplicedText(draft.parsed, ())
    scans = {id(scan.reference.node): scan for scan in draft.scans}
    for scan in draft.scans:
        parent = scan.reference.node.parent
        if not isinstance(parent, exp.From | exp.Join) or not isinstance(parent.parent, exp.Select):
            continue
        try:
            match = RollupMatch(parent.parent, scan, text, scans)
            dimensions, measures = _Wish(parent.parent, scan, text, scans).wanted()
        except NoMatch:
            continue
        if dimensions and len(dimensions) <= _MAX_DIMENSIONS:
            yield scan.route, _Block(shape, match, dimensions, measures)


def _of_dataset(route: DatasetRoute, blocks: Sequence[_Block]) -> Iterable[Candidate]:
    declared = [rollup_table(route.dataset_id, one, route.columns) for one in route.rollups]
    open_blocks = [
        b for b in blocks if not any(b.match.is_answered_by(table) for table in declared)
    ]
    taken = {rollup.name.lower() for rollup in route.rollups}
    for dimensions in dict.fromkeys(block.dimensions for block in open_blocks):
        inside = [b for b in open_blocks if _covers(dimensions, b.dimensions)]
        measures = frozenset[Measure]().union(*(block.measures for block in inside), {COUNT})
        name = _name(dimensions, taken)
        rollup = Rollup(
            name=name,
            dimensions=tuple(sorted(map(str, dimensions))),
            measures=tuple(sorted(map(str, measures))),
        )
        try:
            table = rollup_table(route.dataset_id, rollup, route.columns)
        except AccelError:
            continue
        answers = {id(b.shape): b.shape for b in inside if b.match.is_answered_by(table)}
        if answers:
            taken.add(name)
            yield Candidate(
                dataset=route.dataset_id, rollup=rollup, answers=tuple(answers.values())
            )


def _covers(dimensions: frozenset[Dimension], others: frozenset[Dimension]) -> bool:
    """Whether each of `others` is there, maybe in a finer grain; matching says it for certain."""
    columns = {one.column for one in dimensions}
    return all(one.column in columns for one in others)


def _name(dimensions: frozenset[Dimension], taken: set[str]) -> str:
    parts = sorted(f"{one.grain}_{one.column}" if one.grain else one.column for one in dimensions)
    plain = "".join(c if c.isascii() and c.isalnum() else "_" for c in "_".join(["by", *parts]))
    name, number = plain[:50], 2
    while name.lower() in taken:
        name, number = f"{plain[:50]}_{number}", number + 1
    return name


@dataclass
class _Uses:
    """How the SELECT uses one column outside of aggregates."""

    grains: set[str] = field(default_factory=lambda: {*GRAINS, ""})
    """In which of them that is the same."""


class _Wish(RollupMatch):
    """Notes what a rollup would need, in place of asking whether one has it."""

    def __init__(
        self, select: exp.Select, scan: Scan, text: SplicedText, scans: dict[int, Scan]
    ) -> None:
        super().__init__(select, scan, text, scans)
        self._uses: dict[str, _Uses] = {}
        self._measures: set[Measure] = set()

    def wanted(self) -> tuple[frozenset[Dimension], frozenset[Measure]]:
        """
        Raises:
            NoMatch: no rollup could answer it.
        """
        columns = {column.name.lower(): column for column in self._scan.route.columns}
        raw = {name: Dimension(column.name) for name, column in columns.items()}
        fact = replace(self._whole_fact(), dimensions=raw)
        self._check_columns(fact)
        for name in self._joined & columns.keys():
            self._note(name, {""})
        for call in self._calls:
            self._rewritten(call, fact)
        dimensions = {
            Dimension(columns[name].name, _coarsest(uses.grains, columns[name].type))
            for name, uses in self._uses.items()
        }
        return frozenset(dimensions), frozenset(self._measures)

    def _check_column(self, column: exp.Column, fact: Fact) -> None:
        super()._check_column(column, fact)
        own = self._own_column(column, fact)
        if own is not None:
            self._note(own, {"", *(g for g in GRAINS if self._is_in_grain(column, g))})

    def _note(self, name: str, grains: set[str]) -> None:
        self._uses.setdefault(name, _Uses()).grains &= grains

    def _over_measures(
        self, name: str, argument: exp.Expr | None, behind: str, fact: Fact
    ) -> str | None:
        del behind
        while isinstance(argument, exp.Paren):
            argument = argument.this
        if argument is None or isinstance(argument, exp.Literal | exp.Star):
            return "" if name == "count" else None
        own = self._own_column(argument, fact)
        if own is None or name not in {"count", "sum", "avg", "min", "max"}:
            return None
        self._measures.add(Measure(name, fact.columns[own].name))
        return ""


def _coarsest(grains: set[str], kind: str) -> str:
    found = [grain for grain in GRAINS if grain in grains and grain in grains_of(kind)]
    return found[-1] if found else ""
