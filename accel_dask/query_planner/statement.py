"""Text to one statement's tree; refuses what is not a query, by its first word or its tree."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, NamedTuple, NoReturn

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.errors import ParseError
from sqlglot.parsers.duckdb import DuckDBParser
from sqlglot.tokenizer_core import Token

from accel_dask.errors import InvalidQuery, ReadOnly, TextLimit, UnsupportedQuery
from accel_dask.query_planner.lexemes import Kind, Lexeme

MAX_IN_LIST: Final = 10_000
MAX_JOINS: Final = 16
MAX_SET_OPERATIONS: Final = 64
MAX_TREE_DEPTH: Final = 600
"""Below DuckDB's own limit for expressions."""

SPAN: Final = "span"
"""Key in the `meta` of expressions and clauses: the first and last token."""
FIRST_TOKEN: Final = "first_token"  # noqa: S105 - a token of SQL
"""Key in the `meta` of each SELECT: its first token, `SELECT` or `FROM`."""

_DIALECT = DuckDB()

_QUERY_WORDS: Final = frozenset(["select", "with", "from", "("])
_NOT_SERVED: Final = {
    "table": "write SELECT * FROM ... instead",
    "values": "put rows into a dataset instead",
    "describe": "ask for the statement's schema through your driver instead",
    "show": "list tables through your driver instead",
    "summarize": "write the aggregates that you need",
    "explain": "use the action accel.explain, or `accel-dask explain`",
    "pivot": "write aggregates with FILTER instead",
    "unpivot": "write a UNION ALL instead",
}
_CHANGE_WORDS: Final = """
    alter analyze attach begin call checkpoint comment commit connect copy create deallocate
    delete detach disconnect drop execute export force grant import insert install kill load
    merge pragma prepare refresh reindex release replace reset revoke rollback savepoint set
    start transaction truncate unset update upsert use vacuum
"""
_CHANGES: Final = frozenset(_CHANGE_WORDS.split())


class Statement(NamedTuple):
    tree: exp.Expr
    lexemes: list[Lexeme]
    """Without the semicolons at the end."""


class _Parser(DuckDBParser):
    """Notes of every expression and clause between which tokens it lies."""

    def _noted(self, first: int, found: exp.Expr | None) -> exp.Expr | None:
        if found is not None:
            found.meta[SPAN] = (first, self._index - 1)
        return found

    def _parse_expression(self) -> exp.Expr | None:
        return self._noted(self._index, super()._parse_expression())

    def _parse_disjunction(self) -> exp.Expr | None:
        return self._noted(self._index, super()._parse_disjunction())

    def _parse_equality(self, parse_is: bool = True) -> exp.Expr | None:
        return self._noted(self._index, super()._parse_equality(parse_is))

    def _parse_function(self, *args: Any, **kwargs: Any) -> exp.Expr | None:
        return self._noted(self._index, super()._parse_function(*args, **kwargs))

    def _parse_placeholder(self) -> exp.Expr | None:
        return self._noted(self._index, super()._parse_placeholder())

    def _parse_from(self, *args: Any, **kwargs: Any) -> exp.From | None:
        first = self._index
        found = super()._parse_from(*args, **kwargs)
        self._noted(first, found)
        return found

    def _parse_join(self, *args: Any, **kwargs: Any) -> exp.Join | None:
        first = self._index
        found = super()._parse_join(*args, **kwargs)
        self._noted(first, found)
        return found

    def _parse_where(self, *args: Any, **kwargs: Any) -> exp.Where | None:
        first = self._index
        found = super()._parse_where(*args, **kwargs)
        self._noted(first, found)
        return found

    def _parse_group(self, *args: Any, **kwargs: Any) -> exp.Group | None:
        first = self._index
        found = super()._parse_group(*args, **kwargs)
        self._noted(first, found)
        return found

    def _parse_having(self, *args: Any, **kwargs: Any) -> exp.Having | None:
        first = self._index
        found = super()._parse_having(*args, **kwargs)
        self._noted(first, found)
        return found

    def _parse_qualify(self) -> exp.Qualify | None:
        first = self._index
        found = super()._parse_qualify()
        self._noted(first, found)
        return found

    def _parse_order(self, *args: Any, **kwargs: Any) -> exp.Expr | None:
        first = self._index
        found = super()._parse_order(*args, **kwargs)
        return self._noted(first, found) if isinstance(found, exp.Order) else found

    def _parse_limit(self, *args: Any, **kwargs: Any) -> exp.Expr | None:
        first = self._index
        found = super()._parse_limit(*args, **kwargs)
        return self._noted(first, found) if isinstance(found, exp.Limit | exp.Fetch) else found

    def _parse_offset(self, *args: Any, **kwargs: Any) -> exp.Expr | None:
        first = self._index
        found = super()._parse_offset(*args, **kwargs)
        return self._noted(first, found) if isinstance(found, exp.Offset) else found

    def _parse_select_query(self, *args: Any, **kwargs: Any) -> exp.Expr | None:
        first = self._index
        found = super()._parse_select_query(*args, **kwargs)
        innermost = found
        while isinstance(innermost, exp.SetOperation):
            innermost = innermost.this
        if isinstance(innermost, exp.Select):
            # A SELECT behind WITH was noted already when it was parsed itself.
            innermost.meta.setdefault(FIRST_TOKEN, first)
        return found


def parse_statement(sql: str, tokens: list[Token], lexemes: list[Lexeme]) -> Statement:
    """The one query in `sql`.

    Raises:
        InvalidQuery: empty, or a syntax error, with its line and column.
        ReadOnly: a statement that would change something.
        UnsupportedQuery: several statements, or one of another kind.
        TextLimit: nested too deep to parse.
    """
    while lexemes and lexemes[-1].text == ";":
        lexemes = lexemes[:-1]
        tokens = tokens[:-1]
    if not lexemes:
        raise InvalidQuery("the SQL text holds no statement")
    _check_first_word(lexemes[0])
    if any(lexeme.text == ";" for lexeme in lexemes):
        raise UnsupportedQuery("the SQL text holds several statements; send one at a time")
    if any(lexeme.kind is Kind.WORD and lexeme.word == "table" for lexeme in lexemes):
        raise UnsupportedQuery(f"TABLE is not served here; {_NOT_SERVED['table']}")
    _check_nested_with(lexemes)
    try:
        parsed = _Parser(dialect=_DIALECT).parse(tokens, sql)
    except ParseError as error:
        raise InvalidQuery(_syntax_error(error)) from error
    except RecursionError as error:
        raise TextLimit("the SQL text is nested too deep") from error
    except (AttributeError, TypeError, ValueError, KeyError, IndexError) as error:
        # The parser trips over some texts that are no SQL.
        raise InvalidQuery("the SQL text does not parse") from error
    trees = [tree for tree in parsed if tree is not None]
    if len(trees) != 1:
        raise UnsupportedQuery("the SQL text must hold exactly one statement")
    tree = trees[0]
    if not isinstance(tree, exp.Select | exp.SetOperation | exp.Subquery):
        _refuse(tree)
    return Statement(tree, lexemes)


def _check_nested_with(lexemes: list[Lexeme]) -> None:
    """`WITH a AS (...) (WITH b AS (...) SELECT ...)`: DuckDB loses the inner WITH, sqlglot joins
    the two."""
    is_behind = False
    for lexeme in lexemes:
        if lexeme.word == "with" and is_behind:
            raise UnsupportedQuery("put all CTEs into one WITH, not into parentheses behind it")
        is_behind = lexeme.text == ")" or (is_behind and lexeme.text == "(")


def _check_first_word(first: Lexeme) -> None:
    word = first.word or first.text
    if word in _QUERY_WORDS:
        return
    if word in _NOT_SERVED:
        raise UnsupportedQuery(f"{word.upper()} is not served here; {_NOT_SERVED[word]}")
    if word in _CHANGES:
        raise ReadOnly(f"{word.upper()} is refused: this is a read-only cache; send a SELECT")
    raise InvalidQuery(f"syntax error at {first.text[:40]!r}: a query begins with SELECT or WITH")


def _syntax_error(error: ParseError) -> str:
    if not error.errors:
        return "the SQL text does not parse"
    first = error.errors[0]
    description = str(first.get("description", "")).splitlines()[0].rstrip(".")
    if "<class" in description:
        description = "something is missing"
    return (
        f"syntax error at line {first.get('line')}, column {first.get('col')}, near "
        f"{str(first.get('highlight', ''))[:60]!r}: {description}"
    )


_CHANGING: Final = (exp.DML, exp.DDL, exp.Command, exp.Into, exp.Lock, exp.Merge, exp.Set)

# Only what is in this list, or a function or operator, may occur in a tree. Which functions,
# the lexemes decide.
_ALLOWED_NODES: Final = """
    Alias All Any AtTimeZone Bracket CTE Case Column ColumnDef Cube DataType DataTypeParam
    Distinct Dot Except Filter From Group GroupingSets Having HavingMax Identifier IgnoreNulls
    Intersect Interval IntervalSpan Join Kwarg Lateral Limit LimitOptions Literal Null Boolean
    Offset Order Ordered Paren Placeholder PropertyEQ Qualify RespectNulls Rollup Select Slice
    Star Subquery Table TableAlias Tuple Union Var Where Window WindowSpec With WithinGroup
"""
_ALLOWED: Final = frozenset(getattr(exp, name) for name in _ALLOWED_NODES.split())
_ALLOWED_BASES: Final = (
    exp.Func,
    exp.Binary,
    exp.Unary,
    exp.Predicate,
    exp.JSONPath,
    exp.JSONPathPart,
)
_REFUSED: Final = {
    exp.Columns: "COLUMNS()",
    exp.Values: "VALUES",
    exp.Lambda: "a lambda",
    exp.Comprehension: "a list comprehension",
    exp.Pivot: "PIVOT and UNPIVOT",
    exp.TableSample: "sampling",
    exp.HistoricalData: "AT (time travel)",
    exp.Describe: "DESCRIBE",
    exp.Collate: "COLLATE",
    exp.PositionalColumn: "a column by position (#1)",
}
_ALLOWED_TYPE_NAMES: Final = """
    ARRAY BIGINT BIT BLOB BOOLEAN BPCHAR CHAR DATE DATETIME DECIMAL DOUBLE FLOAT INT INT128
    INTERVAL JSON LIST MAP NCHAR NULL NVARCHAR SMALLINT STRUCT TEXT TIME TIMESTAMP TIMESTAMPLTZ
    TIMESTAMPNTZ TIMESTAMPTZ TIMESTAMP_MS TIMESTAMP_NS TIMESTAMP_S TIMETZ TINYINT UBIGINT UINT
    UINT128 USMALLINT UTINYINT UUID VARBINARY VARCHAR
"""
_ALLOWED_TYPES: Final = frozenset(exp.DType[name] for name in _ALLOWED_TYPE_NAMES.split())
_REFUSED_TABLE_ARGS: Final = (
    "laterals",
    "pivots",
    "hints",
    "system_time",
    "version",
    "format",
    "pattern",
    "ordinality",
    "when",
    "only",
    "partition",
    "changes",
    "rows_from",
    "sample",
    "indexed",
)


def check_tree(tree: exp.Expr) -> None:
    """Check every node of `tree`.

    Raises:
        ReadOnly: a part that would change something, as in a CTE.
        UnsupportedQuery: a construct outside what is served.
        TextLimit: too deep, or too many joins, set operations or values.
    """
    joins = set_operations = 0
    for node in _nodes(tree):
        _check_node(node)
        joins += isinstance(node, exp.Join)
        set_operations += isinstance(node, exp.SetOperation)
        if isinstance(node, exp.In) and len(node.expressions) > MAX_IN_LIST:
            raise TextLimit(
                f"an IN list has {len(node.expressions):,} values; the limit is {MAX_IN_LIST:,}"
            )
    if joins > MAX_JOINS:
        raise TextLimit(f"the query has {joins} joins; the limit is {MAX_JOINS}")
    if set_operations > MAX_SET_OPERATIONS:
        raise TextLimit(
            f"the query has {set_operations} set operations; the limit is {MAX_SET_OPERATIONS}"
        )


def _nodes(tree: exp.Expr) -> Iterator[exp.Expr]:
    pending = [(tree, 0)]
    while pending:
        node, depth = pending.pop()
        if depth > MAX_TREE_DEPTH:
            raise TextLimit(f"the query is nested deeper than {MAX_TREE_DEPTH} expressions")
        yield node
        pending.extend((child, depth + 1) for child in node.iter_expressions())


def _check_node(node: exp.Expr) -> None:
    kind = type(node)
    if kind in _REFUSED or isinstance(node, _CHANGING):
        _refuse(node)
    if kind not in _ALLOWED and not isinstance(node, _ALLOWED_BASES):
        _refuse(node)
    if isinstance(node, exp.Table):
        _check_table(node)
    elif isinstance(node, exp.Lateral):
        if not isinstance(node.this, exp.Subquery | exp.Unnest):
            raise UnsupportedQuery("LATERAL is served over a subquery or UNNEST only")
    elif isinstance(node, exp.DataType) and not isinstance(node, exp.IntervalSpan):
        if node.this not in _ALLOWED_TYPES:
            raise UnsupportedQuery(f"the type {str(node)[:40]} is not served here")
    elif isinstance(node, exp.CTE) and node.args.get("key_expressions"):
        raise UnsupportedQuery("USING KEY is not served here")
    elif isinstance(node, exp.Placeholder) and node.this and not str(node.this).isdigit():
        raise UnsupportedQuery("named parameters are not served here; use ?")


def _check_table(node: exp.Table) -> None:
    if not isinstance(node.this, exp.Identifier):
        raise UnsupportedQuery(
            "table functions are not served here; only the tenant's tables and UNNEST"
        )
    for name in _REFUSED_TABLE_ARGS:
        if node.args.get(name):
            raise UnsupportedQuery(f"{name.upper()} on a table is not served here")
    alias = node.args.get("alias")
    if alias is not None and alias.this is None:
        raise UnsupportedQuery("a column list needs a table alias: FROM t AS a(x, y)")


def _refuse(node: exp.Expr) -> NoReturn:
    if isinstance(node, _CHANGING):
        raise ReadOnly(
            f"{type(node).__name__.upper()} is refused: this is a read-only cache; send a SELECT"
        )
    what = next((name for kind, name in _REFUSED.items() if type(node) is kind), None)
    what = what or type(node).__name__
    raise UnsupportedQuery(f"{what} is not served here")
