"""What is noted of queries that have ended: a moment later, so that no answer waits for it."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from flightsql_gateway.auth import Identity
from flightsql_gateway.receipts import Receipt

log = logging.getLogger(__name__)

Observer = Callable[[Identity, Receipt], None]

_MOST_PENDING: Final = 1000


class Observations:
    """Tells observers of receipts, in the order in which queries ended. Safe to use from several
    threads."""

    def __init__(self, observers: tuple[Observer, ...]) -> None:
        self._observers = observers
        self._pending: deque[tuple[Identity, Callable[[], Receipt]]] = deque()
        self._telling = threading.Lock()

    def add(self, identity: Identity, receipt: Callable[[], Receipt]) -> None:
        """A query ended. `receipt` makes its receipt; it is called once, by another thread."""
        self._pending.append((identity, receipt))
        if len(self._pending) > _MOST_PENDING:  # whose task it is does not keep up
            self.settle()

    def settle(self) -> None:
        """Tell of all queries that have ended. Who looks at what observers keep calls it before;
        somebody calls it every now and then."""
        if not self._pending:
            with self._telling:  # another thread may be at the last of them
                return
        with self._telling:
            while self._pending:
                identity, receipt = self._pending.popleft()
                made = receipt()
                for observe in self._observers:
                    try:
                        observe(identity, made)
                    except Exception:  # the others, and the queries to come, must be told
                        log.exception("noting query %s failed", made.query_id)
