"""Pass 5: what the engine's optimiser is known to answer wrongly is written in another way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from sqlglot import exp

from accel_dask.errors import UnsupportedQuery
from accel_dask.model.date_trunc import short_truncations
from accel_dask.query_planner.columns import names_of_types
from accel_dask.query_planner.names import derived_name
from accel_dask.query_planner.parse import declared_names, unnamed_projections
from accel_dask.query_planner.physical import SplicedText, quoted
from accel_dask.query_planner.plan import Edit, ParsedQuery, PlanContext, QueryDraft

_TIMES: Final = frozenset(
    ["TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS", "TIMESTAMP WITH TIME ZONE"]
)

_REASON: Final = "date_trunc is kept from the engine's optimiser, which errs where it is of a date"
NAN_REFUSED: Final = (
    "a query that compares with NaN and negates columns is not served here: the engine's optimiser "
    "errs on -x < 'NaN'; write isnan(x), or 0 - x for -x"
)
_NAN: Final = re.compile(r"'\s*[+-]?nan\s*'", re.IGNORECASE)
_ORDERED: Final = (exp.LT, exp.LTE, exp.GT, exp.GTE, exp.Between)


def avoid_engine_faults(draft: QueryDraft, context: PlanContext) -> QueryDraft:  # noqa: ARG001
    """Keep the optimiser from comparing `date_trunc` of dates; see `model.date_trunc`.

    Raises:
        UnsupportedQuery: it is called in a way that is not understood here, or something negative
            may be compared with NaN.
    """
    parsed = draft.parsed
    assert parsed is not None
    if _minds_nan(parsed):
        draft = replace(draft, minds_nan=True)
    found = short_truncations(parsed.text)
    if not found:
        return draft
    if not all(one.is_understood for one in found):
        raise UnsupportedQuery(
            "date_trunc is called in a way that is not served here; write date_trunc('hour', x)"
        )
    times = _times(draft)
    found = [one for one in found if one.column not in times]
    if not found:
        return draft
    edits = [Edit(start=a, end=b, replacement=new) for one in found for a, b, new in one.edits]
    edits += _names(parsed, edits)
    edited = replace(parsed, edits=(*parsed.edits, *edits))
    return replace(draft, parsed=edited, reasons=(*draft.reasons, _REASON))


def _minds_nan(parsed: ParsedQuery) -> bool:
    """`-x < 'NaN'` becomes `x > '-NaN'`, which is another thing: NaN is above all numbers. A
    parameter may be one, too, which is known when it is bound."""
    has_nan = _NAN.search(parsed.text) is not None
    if not has_nan and not parsed.parameter_columns:
        return False
    is_negated = any(
        not isinstance(node.this, exp.Literal) for node in parsed.tree.find_all(exp.Neg)
    )
    if not is_negated or parsed.tree.find(*_ORDERED) is None:
        return False
    if has_nan:
        raise UnsupportedQuery(NAN_REFUSED)
    return True


def _times(draft: QueryDraft) -> frozenset[str]:
    """Names that certainly are of timestamps wherever they stand, in lower case: there the
    optimiser is right, and leaves out row groups."""
    assert draft.parsed is not None
    if "unnest" in draft.parsed.text.lower():  # names its columns by what is in the rows
        return frozenset()
    return names_of_types(draft.scans, _TIMES) - declared_names(draft.parsed.tree)


def _names(parsed: ParsedQuery, edits: list[Edit]) -> Iterator[Edit]:
    """Keep the names of columns that the engine would derive from text that is changed."""
    text = SplicedText(parsed, ())
    for item in unnamed_projections(parsed.tree):
        span = text.span(item)
        if span is None or not any(span[0] <= e.start and e.end <= span[1] for e in edits):
            continue
        start, end = span
        if any(edit.start == edit.end == end for edit in parsed.edits):
            continue  # it is given its name already
        name = derived_name(parsed.text[start:end]) or parsed.text[start:end]
        yield Edit(start=end, end=end, replacement=f" AS {quoted(name)}")
