"""When and by which engine a dataset's queries are answered where memory does not."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class FallbackPolicy(StrEnum):
    """For which reasons the engine is asked. Each but the last includes the one before."""

    NEVER = "never"
    ON_MISS = "on_miss"
    """The dataset has no epoch in memory."""
    ON_BREACH = "on_breach"
    """Or the query is beyond a limit of its tenant (rows, bytes, CPU, memory, time), or would wait
    too long for one of the tenant's places."""
    ON_ERROR = "on_error"
    """Or no executor answers."""
    ALWAYS = "always"
    """Memory is not asked at all."""


class FallbackReason(StrEnum):
    """Why one query went to the engine."""

    MISS = "miss"
    BREACH = "breach"
    """A cap, before the first batch."""
    OVERLOAD = "overload"
    """No place in memory in time, as it turned out or as was predicted: `ResourceExhausted`."""
    ERROR = "error"
    POLICY = "policy"


_REASONS = {
    FallbackPolicy.NEVER: frozenset[FallbackReason](),
    FallbackPolicy.ON_MISS: frozenset({FallbackReason.MISS}),
    FallbackPolicy.ON_BREACH: frozenset(
        {FallbackReason.MISS, FallbackReason.BREACH, FallbackReason.OVERLOAD}
    ),
    FallbackPolicy.ON_ERROR: frozenset(set(FallbackReason) - {FallbackReason.POLICY}),
    FallbackPolicy.ALWAYS: frozenset(FallbackReason),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackSpec:
    """The engine that holds a dataset's rows too, and when to ask it."""

    engine: str
    """`flightsql`, `mysql` or `postgresql`: how it is spoken to."""
    policy: FallbackPolicy = FallbackPolicy.ON_ERROR
    options: tuple[tuple[str, str], ...] = ()
    """Sorted; `connectors/olap/registry.py` says which there are. Never a password: the name of
    an environment variable or file that has it."""

    def option(self, key: str, default: str = "") -> str:
        return dict(self.options).get(key, default)

    def allows(self, reason: FallbackReason) -> bool:
        return reason in _REASONS[self.policy]
