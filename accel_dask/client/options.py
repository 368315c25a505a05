"""A session's settings."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fallback(StrEnum):
    """What to do with an answer of the OLAP engine."""

    ALLOW = "allow"
    WARN = "warn"
    FORBID = "forbid"


@dataclass(slots=True)
class Options:
    """May be changed at any time; what runs next goes by it."""

    max_rows: int = 10_000
    """The most rows an answer may have."""
    timeout_ms: int = 30_000
    """For one query; the tenant's own limit holds, too."""
    fallback: Fallback = Fallback.WARN
    preview_rows: int = 20
    """Rows of the HTML preview; 0: none, and no query."""
    progress_ms: int = 300
    """A notebook shows progress from then on."""
    cache_bytes: int = 64 * 1024 * 1024
    """Of answers kept, to be shown again while their epochs serve."""
