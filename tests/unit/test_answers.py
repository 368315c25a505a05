"""The comparison that the query tests rest on must see what is wrong."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from answers import Answer, difference, refusal

RIGHT = Answer(
    names=("day", "total", "mean"),
    types=("date32[day]", "decimal128(10, 2)", "double"),
    rows=((1, Decimal("1.50"), 0.1), (2, None, math.nan), (2, Decimal("3.00"), None)),
)


def changed(rows: tuple[tuple[object, ...], ...]) -> Answer:
    return Answer(RIGHT.names, RIGHT.types, rows)


def test_the_same_rows_in_another_order_are_the_same_unless_the_order_is_asked_for() -> None:
    other = changed((RIGHT.rows[2], RIGHT.rows[0], RIGHT.rows[1]))
    assert difference(RIGHT, other) == ""
    assert "order" in difference(RIGHT, other, order=(0,))


def test_rows_that_tie_in_the_order_may_change_places() -> None:
    other = changed((RIGHT.rows[0], RIGHT.rows[2], RIGHT.rows[1]))
    assert difference(RIGHT, other, order=(0,)) == ""
    assert difference(RIGHT, other, order=(0, 1)) != ""


def test_doubles_may_differ_in_their_last_digits_only() -> None:
    first, *rest = RIGHT.rows
    assert difference(RIGHT, changed(((1, Decimal("1.50"), 0.1 + 1e-17), *rest))) == ""
    assert difference(RIGHT, changed(((1, Decimal("1.50"), 0.1001), *rest))) != ""
    assert difference(RIGHT, changed(((1, Decimal("1.51"), first[2]), *rest))) != ""


@pytest.mark.parametrize(
    "rows",
    [
        RIGHT.rows[:2],
        (*RIGHT.rows, RIGHT.rows[0]),
        (RIGHT.rows[0], RIGHT.rows[0], RIGHT.rows[2]),
        ((1, Decimal("1.50"), None), *RIGHT.rows[1:]),
        ((1, 1.5, 0.1), *RIGHT.rows[1:]),
        (),
    ],
    ids=["lost", "twice", "replaced", "null", "type", "none"],
)
def test_a_wrong_row_is_seen(rows: tuple[tuple[object, ...], ...]) -> None:
    assert difference(RIGHT, changed(rows)) != ""
    assert difference(RIGHT, changed(rows), order=(0,)) != ""


def test_a_column_of_another_name_or_type_is_seen() -> None:
    assert difference(RIGHT, Answer(("day", "sum", "mean"), RIGHT.types, RIGHT.rows)) != ""
    types = ("date32[day]", "decimal128(38, 2)", "double")
    assert difference(RIGHT, Answer(RIGHT.names, types, RIGHT.rows)) != ""
    assert difference(RIGHT, Answer(RIGHT.names[:2], RIGHT.types[:2], ())) != ""


def test_only_typed_refusals_count_as_such() -> None:
    assert refusal("INVALID_ARGUMENT: [SCAN_LIMIT] too many rows").is_by_design
    assert not refusal("INVALID_ARGUMENT: [INVALID_QUERY] no such column").is_by_design
    for text in ("IO: [ACCEL_ERROR] internal error", "connection reset", "[STALE_EPOCH] late"):
        with pytest.raises(AssertionError):
            refusal(text)
