"""Limits that a client sets for one call."""

from __future__ import annotations

import pytest

from accel_dask.errors import InvalidQuery
from accel_dask.model.tenant import Quota
from flightsql_gateway.request_limits import LIMITS, lowered, read_limits, whose


def test_limits_are_read_from_headers_of_any_case_and_order() -> None:
    headers = {
        "X-Accel-Max-Cpu-Ms": ["50"],
        "x-accel-deadline-ms": ["900"],
        "authorization": ["Bearer x"],
        "user-agent": ["adbc"],
    }
    assert read_limits(headers) == (("deadline_ms", 900), ("max_cpu_ms", 50))


def test_every_limit_has_a_header_and_a_field() -> None:
    headers = {f"x-accel-{name.replace('_', '-')}": ["1"] for name in LIMITS}
    asked = read_limits(headers)
    assert dict(asked) == dict.fromkeys(LIMITS, 1)
    quota = lowered(Quota(), asked)
    assert all(getattr(quota, name) == 1 for name in LIMITS)


def test_of_two_values_the_lower_counts() -> None:
    assert read_limits({"x-accel-max-result-rows": ["9", "5"]}) == (("max_result_rows", 5),)


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "1e3", "ten", "9" * 19, "\u0665"])
def test_what_is_no_limit_is_refused_and_named(value: str) -> None:
    with pytest.raises(InvalidQuery, match="x-accel-max-result-rows must be a whole number"):
        read_limits({"x-accel-max-result-rows": [value]})


@pytest.mark.parametrize("header", ["x-accel-max-rows", "x-accel-timeout-ms", "X-Accel-Max-"])
def test_a_limit_that_there_is_not_is_refused_with_those_there_are(header: str) -> None:
    with pytest.raises(InvalidQuery, match=r"there is no limit .*x-accel-max-result-rows"):
        read_limits({header: ["5"]})


def test_a_client_lowers_its_limits_and_never_raises_them() -> None:
    quota = Quota(deadline_ms=1_000, max_result_rows=10)
    asked = (("deadline_ms", 5_000), ("max_result_rows", 3))
    own = lowered(quota, asked)
    assert (own.deadline_ms, own.max_result_rows) == (1_000, 3)
    assert whose(quota, asked, "deadline_ms", "acme") == "tenant acme's limit"
    assert whose(quota, asked, "max_result_rows", "acme") == (
        "the client's own limit (x-accel-max-result-rows)"
    )
    assert lowered(quota, ()) is quota
