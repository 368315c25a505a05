"""Which conditions of a query certainly filter which of its tables.

A condition may be used to leave out rows of a table if every row of the result that would need
them is rejected by that very condition. For a table under the null-supplying side of an outer
join this holds only of conditions that its row of NULLs does not pass either: without its match,
a row would come back with NULLs. Conditions on a column of a subquery or CTE are followed to the
table that the column is taken from, where nothing between them (LIMIT, windows, grouping by other
columns, ...) sees the rows first. What is not understood filters nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Final, NamedTuple

from sqlglot import exp

from accel_dask.model.routing import DatasetRoute
from accel_dask.query_planner.predicates import TRUE, Place, Predicate, operands
from accel_dask.query_planner.pruning_bounds import NullRow
from accel_dask.query_planner.pruning_conditions import conjuncts_of, predicate_of
from accel_dask.query_planner.pruning_constants import has_only
from accel_dask.query_planner.pruning_scopes import (
    UNKNOWN_OUTPUT,
    Condition,
    EqualColumns,
    Joined,
    Link,
    Member,
    Origin,
    Origins,
    Output,
    Reading,
    Resolver,
    Source,
    equal_columns,
    folded,
    merged_columns,
    output_of,
)

_MAX_QUERIES: Final = 400
"""CTEs are followed from each place that names them; beyond this, nothing is pruned."""


class Unreadable(Exception):
    """The query has a part whose meaning for pruning is not known: nothing is pruned."""


class _Cte(NamedTuple):
    node: exp.CTE
    scope: _Ctes
    """The CTEs that its body sees."""
    is_recursive: bool


_Ctes = Mapping[str, _Cte]

_EXPRESSION_ARGS: Final = (
    "expressions",
    "distinct",
    "where",
    "group",
    "having",
    "qualify",
    "windows",
    "order",
    "limit",
    "offset",
)
_SELECT_ARGS: Final = ("with_", "from_", "joins", *_EXPRESSION_ARGS)
_TAIL_ARGS: Final = ("order", "limit", "offset")


class Put(NamedTuple):
    """A condition, put to all tables that it may filter."""

    expression: exp.Expr
    resolver: Resolver
    tables: frozenset[int]
    """Readings that have no row if it is about no column and not TRUE."""


class Filters(NamedTuple):
    """Which conditions of a query filter which of its readings: the same whatever values the
    conditions compare with."""

    nodes: tuple[exp.Table, ...]
    """The table of each reading."""
    links: tuple[tuple[Link, ...], ...]
    """Of each reading."""
    puts: tuple[Put, ...]

    def readings(self, tables: Iterable[tuple[exp.Table, DatasetRoute]]) -> tuple[Reading, ...]:
        """Every reading of `tables`, each with the conditions that filter it."""
        routes = {id(node): route for node, route in tables}
        found = tuple(
            Reading(number, node, routes[id(node)], links=self.links[number])
            for number, node in enumerate(self.nodes)
        )
        for put in self.puts:
            _put(put, found)
        return found


def _put(put: Put, readings: Sequence[Reading]) -> None:
    predicate = predicate_of(put.expression, put.resolver.operand)
    for table in filtered_by(put, predicate):
        if predicate not in readings[table].conditions:
            readings[table].conditions.append(predicate)


def filtered_by(put: Put, predicate: Predicate) -> Iterator[int]:
    """The readings that `predicate`, which is what `put` says, filters."""
    resolver = put.resolver
    tables: Set[int] = {place.table for used in operands(predicate) for place in used.places}
    if not tables and not predicate.truths(NullRow(-1))[0] & TRUE:  # such as WHERE false
        tables = put.tables
    for table in tables:
        if table in resolver.nullable and predicate.truths(NullRow(table))[0] & TRUE:
            continue
        yield table


def filters_of(tree: exp.Expr, tables: Iterable[tuple[exp.Table, DatasetRoute]]) -> Filters:
    """The filters of `tables`, which are nodes of `tree`. They hold for other routes of the same
    columns, too.

    Raises:
        Unreadable: nothing can be said of the query.
    """
    walk = _Walk({id(node): route for node, route in tables})
    walk.read(tree)
    return Filters(tuple(walk.nodes), tuple(map(tuple, walk.links)), tuple(walk.puts))


class _Walk:
    """Goes through a query, FROM before WHERE, and collects the readings."""

    def __init__(self, routes: Mapping[int, DatasetRoute]) -> None:
        self._routes = routes
        self._seen: set[int] = set()
        self._ctes: list[_Cte] = []
        self._used: set[int] = set()
        self._queries = 0
        self.nodes: list[exp.Table] = []
        self.links: list[list[Link]] = []
        self.puts: list[Put] = []

    def read(self, tree: exp.Expr) -> None:
        self._query(tree, {})
        for cte in self._ctes:  # grows meanwhile
            if id(cte.node) not in self._used:
                self._cte_output(cte)
        if any(id(node) not in self._seen for node in _parts_of(tree, exp.Table)):
            raise Unreadable

    def _query(self, node: exp.Expr, ctes: _Ctes) -> Output:
        self._queries += 1
        if self._queries > _MAX_QUERIES:
            raise Unreadable
        ctes = self._with(node, ctes)
        match node:
            case exp.Select():
                return self._select(node, ctes)
            case exp.SetOperation():
                return self._set_operation(node, ctes)
            case exp.Subquery():
                return self._parenthesized(node, ctes)
            case _:
                raise Unreadable

    def _with(self, node: exp.Expr, ctes: _Ctes) -> _Ctes:
        with_ = node.args.get("with_")
        if with_ is None:
            return ctes
        for cte_node in with_.expressions:
            cte = _Cte(cte_node, ctes, bool(with_.args.get("recursive")))
            self._ctes.append(cte)
            ctes = {**ctes, folded(cte_node.alias): cte}
        return ctes

    def _cte_output(self, cte: _Cte) -> Output:
        is_first = id(cte.node) not in self._used
        self._used.add(id(cte.node))
        if cte.is_recursive:
            if is_first:
                self._query(cte.node.this, {**cte.scope, folded(cte.node.alias): cte})
            return UNKNOWN_OUTPUT
        return self._query(cte.node.this, cte.scope).renamed(cte.node.args.get("alias"))

    def _parenthesized(self, node: exp.Subquery, ctes: _Ctes) -> Output:
        if not has_only(node, "this", "alias", "with_", "joins", *_TAIL_ARGS):
            raise Unreadable
        output = self._query(node.this, ctes)
        self._nested(node, _TAIL_ARGS, ctes)
        return output.sealed() if _is_limited(node) else output

    def _set_operation(self, node: exp.SetOperation, ctes: _Ctes) -> Output:
        left, right = self._query(node.this, ctes), self._query(node.expression, ctes)
        self._nested(node, _TAIL_ARGS, ctes)
        if not has_only(node, "this", "expression", "distinct", "with_", *_TAIL_ARGS):
            return UNKNOWN_OUTPUT
        if not left.is_complete or not right.is_complete:
            return UNKNOWN_OUTPUT
        if len(left.columns) != len(right.columns):
            return UNKNOWN_OUTPUT
        output = output_of(
            (name, _both(ours, theirs))
            for (name, ours), (_, theirs) in zip(left.columns, right.columns, strict=True)
        )
        return output.sealed() if _is_limited(node) else output

    def _select(self, node: exp.Select, ctes: _Ctes) -> Output:
        if not has_only(node, *_SELECT_ARGS):
            raise Unreadable
        from_ = node.args.get("from_")
        joined = self._item(from_.this, ctes) if from_ is not None else Joined()
        joined = self._joins(joined, node.args.get("joins") or (), ctes)
        where = node.args.get("where")
        conjuncts = conjuncts_of(where.this) if where is not None else ()
        self._apply([*joined.certain, *(Condition(part, joined) for part in conjuncts)], joined)
        self._nested(node, _EXPRESSION_ARGS, ctes)
        output = _projected(node, joined)
        return output if _is_transparent(node) else output.sealed()

    def _nested(self, node: exp.Expr, names: Iterable[str], ctes: _Ctes) -> None:
        """Read the subqueries in expressions; those in FROM are read as sources."""
        for name in names:
            for query in _queries_in(node.args.get(name)):
                self._query(query, ctes)

    # What stands in FROM

    def _item(self, item: exp.Expr, ctes: _Ctes) -> Joined:
        match item:
            case exp.Table():
                found = Joined((Member(self._table(item, ctes)),))
            case exp.Subquery() if _holds_joins(item):
                found = self._parenthesized_joins(item, ctes)
            case exp.Subquery():
                output = self._query(item, ctes).renamed(item.args.get("alias"))
                found = Joined((Member(Source(_alias_of(item), output)),))
            case exp.Lateral() if isinstance(item.this, exp.Subquery):
                output = self._query(item.this, ctes).renamed(item.args.get("alias"))
                found = Joined((Member(Source(_alias_of(item), output.sealed())),))
            case exp.Unnest() | exp.Lateral():
                for query in _queries_in(list(item.args.values())):
                    self._query(query, ctes)
                found = Joined((Member(Source(_alias_of(item), UNKNOWN_OUTPUT)),))
            case _:
                raise Unreadable
        return self._joins(found, item.args.get("joins") or (), ctes)

    def _table(self, node: exp.Table, ctes: _Ctes) -> Source:
        if not has_only(node, "this", "db", "catalog", "alias", "joins"):
            raise Unreadable
        self._seen.add(id(node))
        alias, name = node.args.get("alias"), folded(node.alias or node.name)
        route = self._routes.get(id(node))
        if route is not None:
            output = self._reading(node, route).renamed(alias)
            tenant = "" if alias is not None else route.dataset_id.tenant
            return Source(name, output, folded(tenant))
        cte = None if node.args.get("db") else ctes.get(folded(node.name))
        if cte is None:
            raise Unreadable
        return Source(name, self._cte_output(cte).renamed(alias))

    def _reading(self, node: exp.Table, route: DatasetRoute) -> Output:
        number = len(self.nodes)
        self.nodes.append(node)
        self.links.append([])
        return output_of(
            (folded(column.name), (Origin(Place(number, index), column.type),))
            for index, column in enumerate(route.columns)
        )

    def _parenthesized_joins(self, item: exp.Subquery, ctes: _Ctes) -> Joined:
        """`(a JOIN b ON ...)`, whose names are seen outside unless it has an alias."""
        if not has_only(item, "this", "alias", "joins"):
            raise Unreadable
        found = self._item(item.this, ctes)
        if item.args.get("alias") is None:
            return found
        self._apply(found.certain, found)
        return Joined((Member(Source(_alias_of(item), UNKNOWN_OUTPUT)),))

    # Joins

    def _joins(self, left: Joined, joins: Sequence[exp.Join], ctes: _Ctes) -> Joined:
        has_comma = False
        for join in joins:
            right = self._item(join.this, ctes)
            self._nested(join, ("on",), ctes)
            left = self._join(left, right, join, has_comma=has_comma)
            has_comma = has_comma or not (join.args.get("on") or join.args.get("using"))
        return left

    def _join(self, left: Joined, right: Joined, join: exp.Join, *, has_comma: bool) -> Joined:
        how = _how(join)
        both = Joined((*left.members, *right.members), merged={**left.merged, **right.merged})
        on = join.args.get("on")
        conditions = [Condition(part, both) for part in conjuncts_of(on)] if on is not None else []
        names = [folded(name.name) for name in join.args.get("using") or ()]
        targets = {
            "INNER": both.members,
            "LEFT": right.members,
            "ANTI": right.members,
            # Behind a comma, ON may be about the tables after it alone.
            "RIGHT": () if has_comma else left.members,
            "SEMI": both.members,
        }
        for condition in conditions:
            self._put(condition, targets.get(how, ()))
        if how in {"RIGHT", "FULL"}:
            self._apply(left.certain, left)
        if how not in {"INNER", "RIGHT"}:
            self._apply(right.certain, right)
        return Joined(
            _members_of(how, left, right),
            certain={
                "INNER": (*left.certain, *right.certain, *conditions),
                "RIGHT": right.certain,
                "FULL": (),
            }.get(how, left.certain),
            equal={
                "INNER": (*left.equal, *right.equal, *equal_columns(names, left, right)),
                "RIGHT": right.equal,
                "FULL": (),
            }.get(how, left.equal),
            merged={**both.merged, **merged_columns(names, left, right, how)},
            has_star=left.has_star
            and right.has_star
            and not names
            and join.args.get("method") != "NATURAL",
        )

    # Conditions

    def _apply(self, conditions: Sequence[Condition], joined: Joined) -> None:
        """Put `conditions`, all of which hold for each row of `joined` that counts, to all
        members, also by way of columns that equal those that they name."""
        classes = EqualColumns(joined)
        for condition in conditions:
            classes.add(condition)
        for condition in conditions:
            self._put(condition, joined.members, classes)
        self._link(classes, joined)

    def _put(
        self,
        condition: Condition,
        targets: Iterable[Member],
        classes: EqualColumns | None = None,
    ) -> None:
        targets = tuple(targets)
        tables = frozenset(
            origin.place.table for member in targets for origin in member.all_origins()
        )
        resolver = Resolver(condition.scope, targets, classes)
        self.puts.append(Put(condition.expression, resolver, tables))

    def _link(self, classes: EqualColumns, joined: Joined) -> None:
        members = {member.source: member for member in joined.members}
        for keys in classes:
            for source, name in keys:
                others = tuple(
                    tuple(origin.place for origin in members[other].origins(other_name))
                    for other, other_name in keys
                    if other is not source
                )
                for origin in members[source].origins(name):
                    links = (Link(origin.place.column, places) for places in others if places)
                    self.links[origin.place.table].extend(links)


def _how(join: exp.Join) -> str:
    """INNER, LEFT, RIGHT, FULL, SEMI, ANTI or ASOF."""
    if not has_only(join, "this", "on", "using", "side", "kind", "method"):
        raise Unreadable
    side, kind, method = (str(join.args.get(name) or "") for name in ("side", "kind", "method"))
    if method not in {"", "ASOF", "NATURAL"} or side not in {"", "LEFT", "RIGHT", "FULL"}:
        raise Unreadable  # such as POSITIONAL, where the order of rows counts
    if method == "ASOF":
        if side not in {"", "LEFT"}:
            raise Unreadable
        return "ASOF"
    if kind in {"SEMI", "ANTI"} and not side:
        return kind
    if kind not in {"", "INNER", "CROSS"} and not (kind == "OUTER" and side):
        raise Unreadable
    return side or "INNER"


def _members_of(how: str, left: Joined, right: Joined) -> tuple[Member, ...]:
    match how:
        case "INNER":
            return (*left.members, *right.members)
        case "LEFT":
            return (*left.members, *right.nullable())
        case "RIGHT":
            return (*left.nullable(), *right.members)
        case "FULL":
            return (*left.nullable(), *right.nullable())
        case "ASOF":  # which row of the right side is nearest depends on the others
            return (*left.members, *right.blocked())
        case _:
            return left.members


def _projected(node: exp.Select, joined: Joined) -> Output:
    """The columns that `node` selects."""
    columns: list[tuple[str, Origins]] = []
    for projection in node.expressions:
        found = _columns_of(projection, joined)
        if found is None:
            return UNKNOWN_OUTPUT
        columns += found
    return output_of(columns)


def _columns_of(projection: exp.Expr, joined: Joined) -> list[tuple[str, Origins]] | None:
    """The columns of one projection; None: not known."""
    if isinstance(projection, exp.Star):
        return _star(joined, joined.members) if has_only(projection) else None
    if isinstance(projection, exp.Column) and isinstance(projection.this, exp.Star):
        table = folded(projection.table)
        members = [member for member in joined.members if member.source.name == table]
        is_plain = has_only(projection, "this", "table") and has_only(projection.this)
        return _star(joined, members) if is_plain and len(members) == 1 else None
    name = projection.alias if isinstance(projection, exp.Alias) else ""
    inner = projection.this if isinstance(projection, exp.Alias) else projection
    while isinstance(inner, exp.Paren):
        inner = inner.this
    if isinstance(inner, exp.Column):
        return [(folded(name or inner.name), joined.origins_of(inner))]
    if inner.find(exp.Explode, exp.Unnest) is not None:  # may become several columns
        return None
    if name:
        return [(folded(name), ())]
    is_unnamed = isinstance(inner, _WITHOUT_PLAIN_NAME) and not isinstance(inner, exp.Dot)
    return [("", ())] if is_unnamed else None


_WITHOUT_PLAIN_NAME: Final = (exp.AggFunc, exp.Binary, exp.Literal, exp.Cast, exp.TimestampTrunc)
"""The engine names these by their text, which is no plain word."""


def _star(joined: Joined, members: Sequence[Member]) -> list[tuple[str, Origins]] | None:
    if not joined.has_star or not all(member.source.output.is_complete for member in members):
        return None
    return [
        (name, member.origins(name) if name else ())
        for member in members
        for name, _ in member.source.output.columns
    ]


def _is_transparent(node: exp.Select) -> bool:
    """Whether a condition on a column that `node` takes unchanged from a table may as well be put
    to the table. Grouped queries only take unchanged what they group by."""
    distinct, group = node.args.get("distinct"), node.args.get("group")
    if _is_limited(node) or node.args.get("qualify"):
        return False
    if distinct is not None and not has_only(distinct):
        return False
    if group is None:
        if node.args.get("having"):
            return False
    elif not has_only(group, "expressions", "all") or group.find(
        exp.Rollup, exp.Cube, exp.GroupingSets, exp.Tuple
    ):
        return False
    return all(projection.find(exp.Window) is None for projection in node.expressions)


def _both(ours: Origins, theirs: Origins) -> Origins:
    """The origins of a column of a set operation."""
    both = (*ours, *theirs)
    is_known = bool(ours and theirs) and len({origin.type for origin in both}) == 1
    return both if is_known else ()


def _is_limited(node: exp.Expr) -> bool:
    return bool(node.args.get("limit") or node.args.get("offset"))


def _alias_of(item: exp.Expr) -> str:
    alias = item.args.get("alias")
    return folded(alias.name) if isinstance(alias, exp.TableAlias) else ""


def _holds_joins(item: exp.Subquery) -> bool:
    """`(a JOIN b ...)`, not a query."""
    inner = item.this
    while isinstance(inner, exp.Subquery):
        if inner.args.get("alias") or inner.args.get("joins"):
            return True
        inner = inner.this
    return isinstance(inner, exp.Table)


def _queries_in(value: object) -> list[exp.Expr]:
    """The outermost queries in an argument of a node."""
    found: list[exp.Expr] = []
    pending = [value]
    while pending:
        part = pending.pop()
        if isinstance(part, exp.Query):
            found.append(part)
        elif type(part) not in _LEAVES:
            pending.extend(_children(part))
    return found


def _parts_of(tree: exp.Expr, kind: type[exp.Expr]) -> Iterator[exp.Expr]:
    """All nodes of one kind."""
    pending: list[object] = [tree]
    while pending:
        part = pending.pop()
        if isinstance(part, kind):
            yield part
        if type(part) not in _LEAVES:
            pending.extend(_children(part))


_LEAVES: Final[frozenset[type]] = frozenset(
    [
        exp.Column,
        exp.Identifier,
        exp.Literal,
        exp.Null,
        exp.Boolean,
        exp.DataType,
        str,
        bool,
        type(None),
    ]
)
"""What has no query or table in it; of literals there may be thousands."""


def _children(part: object) -> Iterable[object]:
    if isinstance(part, list):
        return part
    return part.args.values() if isinstance(part, exp.Expr) else ()
