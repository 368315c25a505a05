"""A small Flight client of a gateway, for the command line and the demo.

It speaks what ADBC has no call for: receipts and plans.
"""

from __future__ import annotations

import json
from types import TracebackType
from typing import Any, Self

from pyarrow import ArrowInvalid, flight

from accel_dask.errors import ConfigError, ExecutorUnavailable
from accel_dask.flight_errors import FLIGHT_FAILURES, from_flight


class FlightSession:
    """An authenticated connection to one gateway.

    Raises:
        ConfigError: `url` is not an address.
        Unauthenticated: user and token do not match.
        ExecutorUnavailable: there is no gateway at `url`.
    """

    def __init__(self, url: str, user: str, token: str) -> None:
        try:
            self._client = flight.FlightClient(url)
        except ArrowInvalid as error:
            raise ConfigError(f"{url!r} is no gateway's address; write grpc://host:port") from error
        try:
            header = self._client.authenticate_basic_token(
                user, token, flight.FlightCallOptions(timeout=30)
            )
        except FLIGHT_FAILURES as error:
            self._client.close()
            told = from_flight(error)
            if isinstance(told, ExecutorUnavailable):
                told = ExecutorUnavailable(f"no gateway answers at {url}: {told}")
            raise told from error
        self._options = flight.FlightCallOptions(headers=[header], timeout=30)

    def receipts(self, last: int) -> list[dict[str, Any]]:
        """The newest receipts of the user's tenant, newest first."""
        receipts: list[dict[str, Any]] = self._action("accel.receipts", {"last": last})
        return receipts

    def receipt(self, query_id: str | None = None) -> dict[str, Any] | None:
        """The receipt of one query, or of the user's newest; None: it is not known."""
        asked = {"query_id": query_id} if query_id else {"last": 1, "mine": True}
        found: list[dict[str, Any]] = self._action("accel.receipts", asked)
        return found[0] if found else None

    def history(self) -> list[dict[str, Any]]:
        """What the user's tenant has asked of this gateway, by shape, slowest in all first."""
        shapes: list[dict[str, Any]] = self._action("accel.history", {})
        return shapes

    def explain(self, sql: str) -> str:
        """How the gateway would answer `sql`."""
        return str(self._action("accel.explain", {"sql": sql}))

    def _action(self, name: str, body: dict[str, Any]) -> Any:
        action = flight.Action(name, json.dumps(body).encode())
        try:
            results = list(self._client.do_action(action, self._options))
        except FLIGHT_FAILURES as error:
            raise from_flight(error) from error
        return json.loads(results[0].body.to_pybytes())

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
