"""When an engine that fails is left alone, and when it is tried again. Pure: time is passed in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

FAILURES: Final = 5
"""One after the other, until the breaker opens."""
FIRST_REST_SECONDS: Final = 2.0
MAX_REST_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """CLOSED while `rest_until` is None; else open until then, then one probe at a time."""

    failures: int = 0
    rest_seconds: float = 0.0
    rest_until: float | None = None
    probe_until: float | None = None
    """A probe is under way, and is believed to be until then."""
    because: str = ""
    """The last failure."""

    def is_open(self, now: float) -> bool:
        """Whether a query is refused now."""
        if self.rest_until is None:
            return False
        return now < self.rest_until or (self.probe_until is not None and now < self.probe_until)

    def state(self, now: float) -> str:
        """`closed`, `open` (left alone), or `probing` (the next query, or one, tries it)."""
        if self.rest_until is None:
            return "closed"
        return "open" if now < self.rest_until else "probing"

    def retry_after(self, now: float) -> float:
        """Seconds until it is worth another try."""
        return max((self.rest_until or now) - now, 0.1)

    def began(self, now: float, seconds: float) -> Breaker:
        """A query is let through that ends within `seconds`."""
        if self.rest_until is None:
            return self
        return replace(self, probe_until=now + seconds)

    def succeeded(self) -> Breaker:
        return Breaker()

    def gave_no_sign(self) -> Breaker:
        """A query ended in a way that says nothing of the engine, such as a cancel."""
        return replace(self, probe_until=None)

    def failed(self, now: float, because: str) -> Breaker:
        failures = self.failures + 1
        if self.rest_until is None and failures < FAILURES:
            return replace(self, failures=failures, because=because)
        rest = min(max(2 * self.rest_seconds, FIRST_REST_SECONDS), MAX_REST_SECONDS)
        return Breaker(failures, rest, now + rest, None, because)
