"""The fragment of a query whose shards are on several executors.

The coordinator runs the user's query. SELECTs that can be answered part by part (see `blocks`) are
put in place of themselves over an input of their parts. Any other table is the union of the shards
that the coordinator has and an input with the rows of the others, of which only the columns that
the query names and the rows that its conditions may keep are moved.
"""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace

from sqlglot import exp

from accel_dask.errors import ScanLimit, UnsupportedQuery
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import DatasetId, ShardId
from accel_dask.model.routing import DatasetRoute, ExecutorRoute
from accel_dask.model.snapshot import Column
from accel_dask.query_planner.blocks import (
    Block,
    BlockKind,
    BlockReader,
    NotMergeable,
    source_parts,
)
from accel_dask.query_planner.columns import UsedColumns, least_width
from accel_dask.query_planner.disjoint import disjoint_columns
from accel_dask.query_planner.gathering import (
    Condition,
    Conditions,
    is_for_existence,
    may_be_distinct,
)
from accel_dask.query_planner.merge import Merge, merge_edits, part_sql, prepare
from accel_dask.query_planner.physical import (
    SplicedText,
    kind_at,
    number_parameters,
    parameter_edits,
    quoted,
    relation_of,
    shard_ids,
    table_edit,
    tokens_of,
)
from accel_dask.query_planner.plan import (
    Edit,
    Fragment,
    Part,
    PartInput,
    PlanContext,
    QueryDraft,
    QueryLimits,
    Scan,
    SpreadRoute,
)

_Reads = list[tuple[DatasetRoute, tuple[ShardId, ...]]]


def spread_fragment(draft: QueryDraft, context: PlanContext) -> QueryDraft:
    """The coordinator's fragment and what it fetches.

    Raises:
        ScanLimit: statistics say already that more rows would be gathered than allowed.
        UnsupportedQuery: the answer depends on the order of rows.
    """
    splitter = _Splitter(draft, context)
    splitter.split()
    return replace(
        draft,
        fragments=(splitter.fragment(),),
        reasons=(*draft.reasons, *(one.because for one in splitter.inputs)),
    )


@dataclass(frozen=True, slots=True)
class _PartSql:
    """A part before it is made an order."""

    executors: tuple[ExecutorRoute, ...]
    sql: str
    reads: tuple[tuple[DatasetRoute, tuple[ShardId, ...]], ...]


class _Splitter:
    """Collects the edits of the query's text and the inputs that they name."""

    def __init__(self, draft: QueryDraft, context: PlanContext) -> None:
        assert draft.parsed is not None
        assert draft.spread is not None
        assert draft.limits is not None
        self._parsed = draft.parsed
        self._scans = {id(scan.reference.node): scan for scan in draft.scans}
        self._all_scans = draft.scans
        self._spread: SpreadRoute = draft.spread
        self._limits: QueryLimits = draft.limits
        self._tenant = context.tenant
        self._text = SplicedText(
            draft.parsed, [*draft.parsed.edits, *parameter_edits(draft.parsed)]
        )
        self._columns = UsedColumns(draft.parsed)
        self._merges: list[Merge] = []
        self._why_not: dict[int, str] = {}
        """By the table's node: why its SELECT is not answered part by part."""
        self._reads: _Reads = []
        self._known: dict[tuple[_PartSql, ...], str] = {}
        self._gathered: dict[
            tuple[DatasetId, tuple[tuple[ShardId, ...], ...]], tuple[int, int]
        ] = {}
        """Rows and bytes that are gathered for certain, of each dataset's shares."""
        self.inputs: list[PartInput] = []

    def split(self) -> None:
        """Find what can be answered part by part, then gather the other tables."""
        self._find_blocks()
        merged = set()
        for merge in self._merges:
            merged |= {id(scan) for scan in (merge.block.spread, *merge.block.others)}
        self._add_tables([scan for scan in self._all_scans if id(scan) not in merged])
        # What is inside of another was found after it, and is written before it.
        for merge in reversed(self._merges):
            self._add_merge(merge)

    def fragment(self) -> Fragment:
        sql, parameters = number_parameters(self._text.all())
        return Fragment(
            kind=kind_at((self._spread.coordinator,)),
            sql=sql,
            tokens=tokens_of(self._reads),
            candidates=(self._spread.coordinator,),
            inputs=tuple(self.inputs),
            parameters=parameters,
        )

    def _find_blocks(self) -> None:
        spread = {node for node, scan in self._scans.items() if self._by_executor(scan)[1]}
        everywhere = {
            node
            for node, scan in self._scans.items()
            if scan.route.dataset_id in self._spread.everywhere
        }
        reader = BlockReader(self._text, self._scans, spread, everywhere, self._disjoint)
        pending: list[exp.Expr] = [self._parsed.tree]
        while pending:
            node = pending.pop()
            if isinstance(node, exp.Join) and node.method.upper() == "POSITIONAL":
                raise UnsupportedQuery(
                    "POSITIONAL JOIN is not served over tables that are spread over several "
                    "executors: their rows have no order"
                )
            if isinstance(node, exp.Select) and self._has_spread(node, spread):
                try:
                    merge = self._merge(reader, node)
                except NotMergeable as reason:
                    self._note_why_not(node, str(reason))
                else:
                    self._merges.append(merge)
                    pending += _left_over(merge.block)
                    continue
            pending += node.iter_expressions()

    def _merge(self, reader: BlockReader, select: exp.Select) -> Merge:
        """The best way to answer `select` part by part.

        Raises:
            NotMergeable: there is none; why its parts are not partial results.
        """
        reasons: list[NotMergeable] = []
        for read in (reader.read_complete, reader.read, reader.read_source):
            try:
                merge = prepare(read(select), self._text, self._scans)
            except NotMergeable as reason:
                reasons.append(reason)
            else:
                merge.why = str(reasons[1]) if len(reasons) > 1 else ""
                is_of_rows = merge.block.kind is BlockKind.ROWS and not merge.order
                merge.is_distinct = is_of_rows and is_for_existence(merge.block.spread)
                return merge
        raise reasons[1]

    def _disjoint(self, scan: Scan, names: AbstractSet[str]) -> frozenset[str]:
        own, shares = self._by_executor(scan)
        return disjoint_columns(scan.route, [own, *(shards for _, shards in shares)], names)

    @staticmethod
    def _has_spread(select: exp.Select, spread: set[int]) -> bool:
        from_ = select.args.get("from_")
        sources = [from_.this] if from_ is not None else []
        sources += [join.this for join in select.args.get("joins") or ()]
        return any(id(source) in spread for source in sources)

    def _note_why_not(self, select: exp.Select, why: str) -> None:
        for part in (select.args.get("from_"), *(select.args.get("joins") or ())):
            for table in part.find_all(exp.Table) if part is not None else ():
                self._why_not.setdefault(id(table), why)

    def _add_merge(self, merge: Merge) -> None:
        """Put a SELECT over an input of its parts in place of itself."""
        spread = merge.block.spread
        own, shares = self._by_executor(spread)
        others = [(scan.route, tuple(shard_ids(scan))) for scan in merge.block.others]
        if merge.block.kind is BlockKind.SOURCE:
            select = merge.block.select
            self._why_not[id(spread.reference.node)] = merge.why
            if not select.args.get("where") and not select.args.get("joins"):
                self._check(spread, merge.width, [shards for _, shards in shares])
        what = f"{merge.block.kind.value} of {spread.route.dataset_id}"
        if merge.why:
            what += f", because {merge.why}"
        name = self._input(
            spread,
            tuple(
                _PartSql(
                    executors=executors,
                    sql=part_sql(merge, self._text, shards, self._columns),
                    reads=((spread.route, shards), *others),
                )
                for executors, shards in shares
            ),
            what,
        )
        own_sql = part_sql(merge, self._text, own, self._columns) if own else ""
        if own:
            self._reads += [(spread.route, own), *others]
        if " LIMIT " in own_sql:
            own_sql = f"({own_sql})"
        self._text.edits.extend(merge_edits(merge, self._text, own_sql, name))

    def _add_tables(self, scans: list[Scan]) -> None:
        """Gather what others have of these tables."""
        everywhere = frozenset(
            node
            for node, scan in self._scans.items()
            if scan.route.dataset_id in self._spread.everywhere
        )
        reader = Conditions(self._text, self._all_scans, everywhere)
        gathered = {id(scan): reader.of(scan) for scan in scans if self._by_executor(scan)[1]}
        spans = [one.span for found in gathered.values() for one in found if one.span is not None]
        left = UsedColumns(self._parsed, spans)
        for scan in scans:
            if id(scan) in gathered:
                self._add_gathered(scan, left.of(scan), gathered[id(scan)])
            else:
                own, _ = self._by_executor(scan)
                self._reads.append((scan.route, own))
                relation = relation_of(scan.route, own, left.of(scan))
                self._text.edits.append(table_edit(scan.reference, relation))
        # What the rows were chosen by already need not be asked again.
        self._text.edits.extend(Edit(start=a, end=b, replacement="true") for a, b in spans)

    def _add_gathered(
        self, scan: Scan, columns: tuple[Column, ...], conditions: list[Condition]
    ) -> None:
        """Put the coordinator's own shards and an input with the others in place of a table."""
        own, shares = self._by_executor(scan)
        if not conditions:
            width = sum(least_width(column.type) for column in columns)
            self._check(scan, width, [shards for _, shards in shares])
        why = self._why_not.get(id(scan.reference.node), "")
        named = self._columns.of(scan)
        if not set(columns) <= set(named):  # nothing but rows is wanted: any column will do
            columns = (min(named, key=lambda column: least_width(column.type)),)
        others = tuple(
            (read.route, tuple(shard_ids(read))) for one in conditions for read in one.reads
        )
        is_distinct = is_for_existence(scan) and may_be_distinct(one.type for one in columns)
        name = self._input(
            scan,
            tuple(
                _PartSql(
                    executors=executors,
                    sql=_rows_sql(
                        scan, shards, named, columns, conditions, is_distinct=is_distinct
                    ),
                    reads=((scan.route, shards), *others),
                )
                for executors, shards in shares
            ),
            f"rows of {scan.route.dataset_id}" + (f", because {why}" if why else ""),
        )
        chosen = [one for one in conditions if one.span is not None]
        relation = f"SELECT {_named(columns)} FROM {quoted(name)}"  # noqa: S608 - quoted names
        if own:
            self._reads.append((scan.route, own))
            relation = f"{_rows_sql(scan, own, named, columns, chosen)} UNION ALL {relation}"
        self._text.edits.append(table_edit(scan.reference, f"({relation})"))

    def _by_executor(
        self, scan: Scan
    ) -> tuple[tuple[ShardId, ...], list[tuple[tuple[ExecutorRoute, ...], tuple[ShardId, ...]]]]:
        """The scan's shards that the coordinator has, and the others with who has them."""
        held = self._spread.coordinator.attachments
        shards = {
            shard: Attachment(scan.route.dataset_id.name, scan.route.epoch, shard)
            for shard in shard_ids(scan)
        }
        own = tuple(shard for shard, attached in shards.items() if attached in held)
        others = [(shard, attached) for shard, attached in shards.items() if attached not in held]
        shares = [
            (share.executors, tuple(s for s, attached in others if attached in share.shards))
            for share in self._spread.shares
        ]
        return own, [(executors, found) for executors, found in shares if found]

    def _input(self, scan: Scan, parts: tuple[_PartSql, ...], what: str) -> str:
        """The name of the input of these parts, which two references may share."""
        known = self._known.get(parts)
        if known is not None:
            return known
        name = f"input_{len(self.inputs)}"
        count = len({part.executors[0].address for part in parts})
        shards = [shard for part in parts for shard in part.reads[0][1]]
        self.inputs.append(
            PartInput(
                name=name,
                parts=tuple(_order(part) for part in parts),
                max_rows=self._limits.max_gather_rows,
                max_bytes=self._limits.max_gather_bytes,
                rows=_count(scan.route, shards) if what.startswith("rows of") else None,
                because=f"{name}: {what} from {count} executor(s)",
            )
        )
        self._known[parts] = name
        return name

    def _check(self, scan: Scan, width: int, shares: list[tuple[ShardId, ...]]) -> None:
        """Refuse what cannot fit, if that is certain: all rows of these shares, of which each
        has `width` bytes at least."""
        rows = _count(scan.route, [shard for shards in shares for shard in shards])
        # Two references may share one input.
        known = self._gathered.get((scan.route.dataset_id, tuple(shares)), (0, 0))
        if rows is None or (rows, rows * width) <= known:
            return
        self._gathered[scan.route.dataset_id, tuple(shares)] = (rows, rows * width)
        rows = sum(found for found, _ in self._gathered.values())
        size = sum(found for _, found in self._gathered.values())
        limits = self._limits
        if rows <= limits.max_gather_rows and size <= limits.max_gather_bytes:
            return
        why = self._why_not.get(id(scan.reference.node), "it is not aggregated by itself")
        raise ScanLimit(
            f"the query must gather {rows:,} rows ({size:,} bytes or more), the last of them of "
            f"{scan.reference.table} (FROM {scan.reference.table}) from several executors, "
            f"because {why}; the limits of tenant {self._tenant} are {limits.max_gather_rows:,} "
            f"rows (max_gather_rows) and {limits.max_gather_bytes:,} bytes (max_gather_bytes); "
            "filter it, or aggregate it in a subquery"
        )


def _left_over(block: Block) -> list[exp.Expr]:
    """What of a block the coordinator does itself, and may have SELECTs in it."""
    select = block.select
    if block.kind is BlockKind.GROUPS:
        names = ("having", "qualify", "order")
        return [select.args[name] for name in names if select.args.get(name) is not None]
    if block.kind is BlockKind.SOURCE:
        done = {id(part) for part in source_parts(select)}
        return [part for part in select.iter_expressions() if id(part) not in done]
    return []


def _count(route: DatasetRoute, shards: list[ShardId]) -> int | None:
    """Rows of these shards; None: not known."""
    rows = {shard.shard_id: shard.rows for shard in route.shards}
    counts = [rows[shard] for shard in shards]
    known = [count for count in counts if count is not None]
    return sum(known) if len(known) == len(counts) else None


def _order(part: _PartSql) -> Part:
    sql, parameters = number_parameters(part.sql)
    return Part(
        kind=kind_at(part.executors),
        sql=sql,
        tokens=tokens_of(part.reads),
        parameters=parameters,
        candidates=part.executors,
    )


def _rows_sql(
    scan: Scan,
    shards: tuple[ShardId, ...],
    named: tuple[Column, ...],
    columns: tuple[Column, ...],
    conditions: list[Condition],
    *,
    is_distinct: bool = False,
) -> str:
    """`columns` of the rows of some shards that the query may use, under the table's name in the
    query, of whose columns it uses those `named`."""
    name = quoted(scan.reference.node.alias_or_name)
    where = " AND ".join(f"({one.sql})" for one in conditions)
    relation = relation_of(scan.route, shards, named)
    select = "SELECT DISTINCT" if is_distinct else "SELECT"
    return f"{select} {_named(columns)} FROM {relation} AS {name}" + f" WHERE {where}" * bool(where)


def _named(columns: tuple[Column, ...]) -> str:
    return ", ".join(quoted(column.name) for column in columns)
