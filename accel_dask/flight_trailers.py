"""Trailing metadata of Flight answers, for their callers. Flight shows it to middleware only.

The middleware of a call is made on the thread that makes the call, which is how the two find
each other.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pyarrow import flight


class Trailers:
    """What came with one answer: complete once the stream has been read to its end."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}

    def get(self, name: str) -> str | None:
        return self._values.get(name)

    def take(self, headers: dict[str, list[str | bytes]]) -> None:
        for name, values in headers.items():
            if values:
                value = values[0]
                self._values[name] = value.decode() if isinstance(value, bytes) else value


class _Reading(flight.ClientMiddleware):  # type: ignore[misc]
    def __init__(self, trailers: Trailers) -> None:
        self._trailers = trailers

    def received_headers(self, headers: dict[str, list[str | bytes]]) -> None:
        self._trailers.take(headers)


class TrailerReader(flight.ClientMiddlewareFactory):  # type: ignore[misc]
    """Give it to a client as middleware."""

    def __init__(self) -> None:
        self._wanted: Final = threading.local()

    def start_call(self, info: flight.CallInfo) -> flight.ClientMiddleware | None:  # noqa: ARG002
        trailers = getattr(self._wanted, "trailers", None)
        return None if trailers is None else _Reading(trailers)

    @contextmanager
    def reading(self) -> Iterator[Trailers]:
        """The trailers of the one call that is made inside."""
        trailers = self._wanted.trailers = Trailers()
        try:
            yield trailers
        finally:
            self._wanted.trailers = None
