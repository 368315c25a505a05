"""Pass 1, the gate: one read-only statement, and where its text names tables."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from sqlglot import exp

from accel_dask.errors import InvalidQuery, UnsupportedQuery
from accel_dask.model.ids import TenantId
from accel_dask.query_planner.lexemes import Kind, Lexeme, check_calls, render, tokenize
from accel_dask.query_planner.plan import (
    CATALOG,
    Edit,
    ParameterMark,
    ParsedQuery,
    PlanContext,
    QueryDraft,
    TableReference,
)
from accel_dask.query_planner.statement import SPAN, check_tree, parse_statement


def parse(draft: QueryDraft, context: PlanContext) -> QueryDraft:
    """Parse and gate the statement.

    Raises:
        InvalidQuery: it does not parse.
        ReadOnly: it would change something.
        UnsupportedQuery: a statement, construct or function that is not served.
        TextLimit: it is larger than the gate accepts.
    """
    return replace(draft, parsed=_parse(draft.sql, context.tenant))


def _parse(sql: str, tenant: TenantId) -> ParsedQuery:
    tokens, all_lexemes, first_lexemes = tokenize(sql)
    tree, lexemes = parse_statement(sql, tokens, all_lexemes)
    check_tree(tree)
    reader = _Reader(lexemes, tenant)
    reader.read(tree)
    check_calls(lexemes, frozenset(reader.declared))
    reader.note_session_calls()
    reader.name_projections(tree, [*first_lexemes, len(all_lexemes)])
    text, offsets = render(lexemes)
    ends = [offset + len(lexeme.text) for offset, lexeme in zip(offsets, lexemes, strict=True)]
    return ParsedQuery(
        text=text,
        tables=tuple(
            TableReference(
                start=offsets[found.first],
                end=ends[found.last],
                parts=found.parts,
                has_alias=found.has_alias,
                node=found.node,
            )
            for found in sorted(reader.tables, key=lambda found: found.first)
        ),
        edits=tuple(
            Edit(
                start=offsets[first] if first <= last else ends[last],
                end=ends[last],
                replacement=replacement,
            )
            for first, last, replacement in sorted(reader.edits)
        ),
        parameter_columns=_parameter_columns(tree, lexemes),
        marks=tuple(
            ParameterMark(
                start=offsets[index],
                end=ends[index + (lexemes[index].text == "$")],
                number=number - 1,
            )
            for index, number in _parameters(lexemes)
        ),
        tree=tree,
        token_spans=tuple(
            (offsets[first], ends[min(following, len(lexemes)) - 1])
            for first, following in pairwise([*first_lexemes, len(all_lexemes)])
            if first < len(lexemes)
        ),
        token_starts=tuple(token.start for token in tokens),
    )


def _parameters(lexemes: list[Lexeme]) -> list[tuple[int, int]]:
    """For each parameter mark in the text, in order, its lexeme and number.

    Raises:
        UnsupportedQuery: named parameters.
        InvalidQuery: marks and numbers mixed, or numbers with a gap.
    """
    found: list[tuple[int, int]] = []
    kinds: set[str] = set()
    for index, lexeme in enumerate(lexemes):
        if lexeme.kind is not Kind.SYMBOL or lexeme.text not in {"?", "$"}:
            continue
        kinds.add(lexeme.text)
        if lexeme.text == "?":
            found.append((index, len(found) + 1))
            continue
        following = lexemes[index + 1] if index + 1 < len(lexemes) else None
        if following is None or not following.text.isdigit() or following.start != lexeme.end:
            raise UnsupportedQuery("named parameters are not served here; use ?")
        found.append((index, int(following.text)))
    if len(kinds) > 1:
        raise InvalidQuery("the query mixes ? and $1 parameters; use one kind")
    numbers = {number for _, number in found}
    if numbers != set(range(1, len(numbers) + 1)):
        raise InvalidQuery("parameters must be numbered $1, $2, ... without a gap")
    return found


def _parameter_columns(tree: exp.Expr, lexemes: list[Lexeme]) -> tuple[str, ...]:
    """For each parameter the column that it is compared with, if that is plain to see."""
    numbers = [number for _, number in _parameters(lexemes)]
    if not numbers:
        return ()
    columns = [""] * max(numbers)
    placeholders = sorted(
        tree.find_all(exp.Placeholder), key=lambda node: node.meta.get(SPAN, (0,))[0]
    )
    if len(placeholders) != len(numbers):
        return tuple(columns)
    for number, placeholder in zip(numbers, placeholders, strict=True):
        parent = placeholder.parent
        sides: tuple[exp.Expr, ...] = ()
        if isinstance(parent, exp.EQ | exp.NEQ | exp.GT | exp.GTE | exp.LT | exp.LTE | exp.Like):
            sides = (parent.this, parent.expression)
        elif isinstance(parent, exp.In | exp.Between):
            sides = (parent.this,)
        found = next((side.name for side in sides if isinstance(side, exp.Column)), "")
        columns[number - 1] = columns[number - 1] or found.lower()
    return tuple(columns)


@dataclass(frozen=True, slots=True)
class _Named:
    """A table's name: which lexemes, and what they say."""

    first: int
    last: int
    parts: tuple[str, ...]
    has_alias: bool
    node: exp.Table


@dataclass(frozen=True, slots=True)
class _Scope:
    """What is visible at a place in the tree."""

    ctes: frozenset[str] = frozenset()
    unfinished: frozenset[str] = frozenset()
    """Recursive CTEs in whose first branch we are."""
    tables: tuple[dict[str, bool], ...] = ()
    """Names in FROM, innermost first; True: a dataset that carries its own name."""


class _Reader:
    """Walks the tree once and finds what must be rewritten in the text."""

    def __init__(self, lexemes: list[Lexeme], tenant: TenantId) -> None:
        self._lexemes = lexemes
        self._tenant = tenant.lower()
        self._at = {lexeme.start: index for index, lexeme in enumerate(lexemes)}
        self.tables: list[_Named] = []
        self.edits: list[tuple[int, int, str]] = []
        """First and last lexeme to replace (last < first: insert after last), and by what."""
        self.declared: set[int] = set()
        """Lexemes of names that the statement declares, which a column list may follow."""

    def read(self, tree: exp.Expr) -> None:
        pending: list[tuple[exp.Expr, _Scope]] = [(tree, _Scope())]
        while pending:
            node, scope = pending.pop()
            with_ = node.args.get("with_")
            if with_ is not None:
                scope = self._read_with(with_, scope, pending)
            if isinstance(node, exp.Select):
                scope = _Scope(
                    scope.ctes, scope.unfinished, (self._sources(node, scope), *scope.tables)
                )
            elif isinstance(node, exp.Table):
                self._read_table(node, scope)
            elif isinstance(node, exp.Column):
                self._read_column(node, scope)
            elif isinstance(node, exp.TableAlias) and node.this is not None:
                self._declare(node.this)
            pending.extend(
                (child, scope) for child in node.iter_expressions() if child is not with_
            )

    def _read_with(
        self,
        with_: exp.With,
        scope: _Scope,
        pending: list[tuple[exp.Expr, _Scope]],
    ) -> _Scope:
        """Queue the CTEs' bodies, each with what is visible in it; the scope after them."""
        for cte in with_.expressions:
            name = cte.alias.lower()
            self._declare(cte.args["alias"].this)
            body = cte.this
            visible = _Scope(scope.ctes | {name}, scope.unfinished - {name}, scope.tables)
            if with_.recursive and isinstance(body, exp.Union):
                first = _Scope(scope.ctes - {name}, scope.unfinished | {name}, scope.tables)
                inner = body.args.get("with_")
                if inner is not None:
                    raise UnsupportedQuery("WITH inside a recursive CTE is not served here")
                pending.append((body.this, first))
                pending.extend(
                    (child, visible) for child in body.iter_expressions() if child is not body.this
                )
            else:
                pending.append((body, scope))
            scope = visible
        return scope

    def _sources(self, select: exp.Select, scope: _Scope) -> dict[str, bool]:
        """The names that `select`'s FROM makes visible."""
        found: dict[str, bool] = {}
        from_ = select.args.get("from_")
        pending = [from_.this] if from_ is not None else []
        pending += [join.this for join in select.args.get("joins") or ()]
        while pending:
            source = pending.pop()
            pending += [join.this for join in source.args.get("joins") or ()]
            if isinstance(source, exp.Subquery) and isinstance(source.this, exp.Table):
                pending.append(source.this)
            alias = source.alias.lower()
            if isinstance(source, exp.Table) and not alias:
                found[source.name.lower()] = not self._is_cte(source, scope)
            elif alias:
                found[alias] = False
        return found

    @staticmethod
    def _is_cte(table: exp.Table, scope: _Scope) -> bool:
        return table.args.get("db") is None and table.name.lower() in scope.ctes

    def _read_table(self, table: exp.Table, scope: _Scope) -> None:
        if table.args.get("db") is None and table.name.lower() in scope.unfinished:
            raise UnsupportedQuery(
                f"the recursive CTE {table.name} is named in its own first branch; give it a "
                "name that is no table's"
            )
        if self._is_cte(table, scope):
            return
        parts = table.parts
        first, last = self._index_of(parts[0]), self._index_of(parts[-1])
        self._check_dotted(first, last, len(parts))
        self.tables.append(
            _Named(first, last, tuple(str(part.name) for part in parts), bool(table.alias), table)
        )

    def _read_column(self, column: exp.Column, scope: _Scope) -> None:
        """Drop `tenant.` (or `accel.tenant.`) before a table's own name."""
        names = [part for part in column.parts if isinstance(part, exp.Identifier)]
        words = [part.name.lower() for part in names]
        qualifiers = 1 if words[:1] == [self._tenant] else 0
        if words[:2] == [CATALOG, self._tenant]:
            qualifiers = 2
        if not qualifiers or len(column.parts) < qualifiers + 2:
            return
        table = words[qualifiers]
        nearest = next((tables for tables in scope.tables if table in tables), None)
        if nearest is None:
            return
        if not nearest[table]:
            if any(tables.get(table) for tables in scope.tables):
                raise UnsupportedQuery(
                    f"{'.'.join(words)} is ambiguous here; give the table an alias"
                )
            return
        first, last = self._index_of(names[0]), self._index_of(names[qualifiers])
        self._check_dotted(first, last, qualifiers + 1)
        self.edits.append((first, last - 1, ""))

    def _declare(self, identifier: exp.Expr) -> None:
        self.declared.add(self._index_of(identifier))

    def _index_of(self, identifier: exp.Expr) -> int:
        index = self._at.get(identifier.meta.get("start", -1))
        if index is None or not self._lexemes[index].word:
            raise UnsupportedQuery(
                f"{identifier.name[:60]!r} is not a name as it is served here; write names plain "
                "or in double quotes"
            )
        return index

    def _check_dotted(self, first: int, last: int, parts: int) -> None:
        """Names of several parts must be exactly that in the text: part, dot, part."""
        between = self._lexemes[first + 1 : last : 2]
        if last - first != 2 * (parts - 1) or any(lexeme.text != "." for lexeme in between):
            raise UnsupportedQuery("a qualified name is spelled in a way that is not served here")

    def note_session_calls(self) -> None:
        """Where the session is asked for its database and schema, answer for the gateway."""
        answers = {
            "current_database": CATALOG,
            "current_catalog": CATALOG,
            "current_schema": self._tenant,
        }
        for index, lexeme in enumerate(self._lexemes):
            answer = answers.get(lexeme.word)
            called = [found.text for found in self._lexemes[index + 1 : index + 3]] == ["(", ")"]
            before = self._lexemes[index - 1].text if index else ""
            if answer is not None and called and before != ".":
                self.edits.append((index, index + 2, _text_literal(answer)))

    def name_projections(self, tree: exp.Expr, first_lexemes: list[int]) -> None:
        """Keep the names of columns that DuckDB would derive from text that is replaced."""
        changed = [(table.first, table.last) for table in self.tables]
        changed += [(first, last) for first, last, replacement in self.edits if replacement]
        if not changed:
            return
        for projection in unnamed_projections(tree):
            first_token, last_token = projection.meta.get(SPAN, (0, -1))
            first, last = first_lexemes[first_token], first_lexemes[last_token + 1] - 1
            if any(first <= start and end <= last for start, end in changed):
                text, _ = render(self._lexemes[first : last + 1])
                self.edits.append((last + 1, last, f" AS {_quoted(text)}"))


def declared_names(tree: exp.Expr) -> frozenset[str]:
    """Names that the statement itself gives to columns, in lower case."""
    return frozenset(_declared(tree))


def _declared(tree: exp.Expr) -> Iterator[str]:
    for node in tree.walk():
        if isinstance(node, exp.Alias):
            yield node.alias.lower()
        elif isinstance(node, exp.TableAlias):
            yield from (column.name.lower() for column in node.args.get("columns") or ())
        elif isinstance(node, exp.Star):
            for part in node.args.values():
                for one in part if isinstance(part, list) else ():
                    yield from (name.name.lower() for name in one.find_all(exp.Identifier))


def unnamed_projections(tree: exp.Expr) -> Iterator[exp.Expr]:
    """Elements of SELECT lists to which the engine gives a name."""
    for select in tree.find_all(exp.Select):
        for projection in select.expressions:
            is_named = isinstance(projection, exp.Alias | exp.Aliases | exp.Column | exp.Star)
            if not is_named and not projection.alias:
                yield projection


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text_literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
