"""Statements that differ in values are parsed once, and planned as if each had been parsed."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from threading import Thread

import pytest
from tpch_data import QUERIES

from accel_dask.errors import AccelError
from accel_dask.literals import form_of
from accel_dask.model.cluster import ClusterView
from accel_dask.model.ids import TenantId
from accel_dask.model.routing import build_routing
from accel_dask.query_planner.parse import parse
from accel_dask.query_planner.plan import ParsedQuery, PlanContext, QueryDraft
from accel_dask.query_planner.templates import Templates

TENANT = TenantId("acme")
CONTEXT = PlanContext(tenant=TENANT, routing=build_routing(ClusterView(0, {})))

STATEMENTS = (
    "SELECT a FROM t WHERE d = DATE '1994-01-01'",
    "SELECT a, b + 17 FROM t WHERE d BETWEEN DATE '1994-01-01' AND DATE '1994-01-01' + 29 AND c=5",
    "SELECT 12, a AS x FROM t WHERE a IN (1, 22, 333) OR (b >= 10.50 AND NOT b < 7) LIMIT 10",
    "SELECT \"c1\" FROM t2 WHERE c1 > 5 AND \"n 77\" = 'it''s 12' AND s LIKE 'A1%' AND e <> 'x9'",
    "WITH a AS (SELECT x FROM t WHERE y=3 GROUP BY x HAVING max(x) > 4) SELECT * FROM a WHERE x<9",
    "SELECT a FROM (SELECT a FROM t WHERE b = 11) s JOIN u ON s.a = u.a AND u.k = 12 WHERE a > 13",
    "SELECT a FROM t WHERE d > TIMESTAMP '2020-01-01 10:11:12' + INTERVAL '3 days' ORDER BY 1",
    "SELECT a FROM t WHERE x = -5 AND l[1] = 2 AND CAST(y AS DECIMAL(10, 2)) > 3 AND z = .5 + 1e3",
    "SELECT sum(a) FILTER (WHERE b > 10) FROM t WHERE a = (SELECT max(a) FROM t WHERE b = 100)",
    "SELECT a FROM t WHERE a = 1 UNION ALL SELECT a FROM t WHERE a = 2",
    "SELECT CASE WHEN a = 1 THEN 2 ELSE 3 END FROM t WHERE CASE WHEN a = 4 THEN 5 END = 6",
    "select a from t where a=10 and b!=20 and c between 1.5 and 99",
)  # fmt: skip


def changed(sql: str, draw: random.Random) -> str:
    """`sql` with other digits in its literals."""
    form = form_of(sql)
    assert form is not None
    for start, end in form.literals:
        digits = re.sub(r"\d", lambda _: str(draw.randrange(1, 10)), sql[start:end])
        sql = sql[:start] + digits + sql[end:]
    return sql


def parsed(sql: str) -> ParsedQuery:
    found = parse(QueryDraft(sql=sql), CONTEXT).parsed
    assert found is not None
    return found


def told(query: ParsedQuery) -> list[object]:
    """Everything that a later pass can see."""
    nodes = [(type(node), node.arg_key, sorted(node.meta.items())) for node in query.tree.walk()]
    tables = [(t.start, t.end, t.parts, t.has_alias, t.node.sql()) for t in query.tables]
    assert all(any(t.node is node for node in query.tree.walk()) for t in query.tables)
    return [
        query.text, repr(query.tree), hash(query.tree), nodes, tables, query.edits, query.marks,
        query.parameter_columns, query.token_spans, query.token_starts,
    ]  # fmt: skip


def statements() -> Iterator[str]:
    yield from STATEMENTS
    for file in QUERIES.values():
        text = re.sub(r"--[^\n]*", "", file.read_text())
        yield text.strip().rstrip(";")


@pytest.mark.parametrize("sql", list(statements()))
def test_a_filled_template_is_what_parsing_gives(sql: str) -> None:
    templates, draw = Templates(), random.Random(3)
    filled = 0
    for number in range(8):
        statement = changed(sql, draw) if number % 2 else sql
        try:
            expected = told(parsed(statement))
        except AccelError:  # a month of 99 in an INTERVAL, or the like
            continue
        with templates.filled(statement, TENANT) as found:
            if found is not None:
                filled += 1
                assert told(found) == expected
                continue
        templates.learn(statement, TENANT, parsed(statement))
    with templates.filled(sql, TENANT) as found:
        assert found is None or told(found) == told(parsed(sql))
    assert filled or "UNION" in sql or "-5" in sql or "LIKE" in sql or sql not in STATEMENTS


def test_values_of_conditions_may_differ_and_nothing_else() -> None:
    templates = Templates()
    sql = (
        "SELECT a + 1 FROM t WHERE d BETWEEN DATE '1994-01-01' AND DATE '1994-01-01' + 29 LIMIT 10"
    )
    assert templates.learn(sql, TENANT, parsed(sql))
    for other, is_same in (
        (sql.replace("1994-01-01'", "1995-12-31'"), True),
        (sql.replace("+ 29", "+ 30"), True),
        (sql.replace("LIMIT 10", "LIMIT 20"), False),
        (sql.replace("a + 1", "a + 2"), False),
        (sql.replace("+ 29", "+ 300"), False),
        (sql.replace("'1994-01-01'", "'1994-1-01'", 1), False),
    ):
        with templates.filled(other, TENANT) as found:
            assert (found is not None) == is_same, other
    with templates.filled(sql, TenantId("other")) as found:
        assert found is None


def test_forms_with_different_fixed_values_are_kept_side_by_side() -> None:
    templates = Templates()
    first, second = (f"SELECT a FROM t WHERE a = 7 LIMIT {n}" for n in (10, 20))
    for sql in (first, second):
        assert templates.learn(sql, TENANT, parsed(sql))
    for sql in (first, second, first):
        with templates.filled(sql.replace("= 7", "= 8"), TENANT) as found:
            assert found is not None
            assert told(found) == told(parsed(sql.replace("= 7", "= 8")))


def test_a_template_is_in_one_hand_at_a_time() -> None:
    templates = Templates()
    sql = "SELECT a FROM t WHERE a = 7"
    assert templates.learn(sql, TENANT, parsed(sql))
    with templates.filled(sql, TENANT) as one:
        with templates.filled(sql.replace("7", "8"), TENANT) as another:
            assert one is not None
            assert another is None
        assert one.text == sql
    with templates.filled(sql.replace("7", "9"), TENANT) as again:
        assert again is not None


def test_threads_never_see_each_others_values() -> None:
    templates = Templates()
    wrong: list[str] = []

    def ask(seed: int) -> None:
        draw = random.Random(seed)
        for _ in range(300):
            sql = f"SELECT a FROM t WHERE a = {draw.randrange(100, 1000)}"
            with templates.filled(sql, TENANT) as found:
                if found is not None and (found.text != sql or sql[-3:] not in repr(found.tree)):
                    wrong.append(sql)
            if found is None:
                templates.learn(sql, TENANT, parsed(sql))

    threads = [Thread(target=ask, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


@pytest.mark.parametrize(
    "sql",
    ["SELECT 1 -- 2", "SELECT /* 3 */ 1", "SELECT $1", "SELECT ?", r"SELECT '\1'", "SELECT 'é1'"],
)
def test_what_is_not_plain_to_see_has_no_form(sql: str) -> None:
    assert form_of(sql) is None


def test_the_digits_of_names_are_part_of_a_form() -> None:
    form = form_of("SELECT a1, \"b 2\", 1e5, t.c3, 'x4', 0.5 FROM s WHERE d=6 AND e<>'7''8'")
    assert form is not None
    assert form.text == "SELECT a1, \"b 2\", 1e5, t.c3, 'x0', 0.0 FROM s WHERE d=0 AND e<>'0''0'"
