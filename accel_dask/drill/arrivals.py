"""When an open loop sends, and what it asks. Pure, given a source of random numbers."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from accel_dask.drill.workload import DAYS, STORES
from flightsql_gateway.load_figures import quantile

_LAST_DAY = DAYS - 35
"""So that a month from it on is within the data."""


def arrivals(rate: float, seconds: float, rng: random.Random) -> Iterator[float]:
    """Seconds from the start at which independent users ask, `rate` a second on average."""
    at = 0.0
    while at < seconds:
        yield at
        at += rng.expovariate(rate)


def filled(statements: Sequence[str], number: int, rng: random.Random) -> str:
    """The statement of request `number`: each in its turn, with values of its own."""
    return statements[number % len(statements)].format(
        day=rng.randrange(_LAST_DAY), store=rng.randrange(STORES), n=rng.randrange(1000, 1_000_000)
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values are not above; 0 if there are none."""
    return quantile(sorted(values), share)
