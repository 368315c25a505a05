"""Authentication of every call, as Flight middleware; the token goes back in a header."""

from __future__ import annotations

import logging
from collections.abc import Callable

from pyarrow import flight

from accel_dask.errors import AccelError
from accel_dask.flight_errors import to_flight
from flightsql_gateway.auth import Admission, Authenticator, Identity
from flightsql_gateway.lasting_threads import keep_known

log = logging.getLogger(__name__)

MIDDLEWARE = "accel"


class NoHandshake(flight.ServerAuthHandler):  # type: ignore[misc]
    """Flight answers Handshake only if there is a handler. The middleware has done the work."""

    def authenticate(self, outgoing: object, incoming: object) -> None:
        """Nothing: the token is in the response's headers."""

    def is_valid(self, token: bytes) -> bytes:  # noqa: ARG002
        return b""


class SessionMiddleware(flight.ServerMiddleware):  # type: ignore[misc]
    """One call's identity."""

    def __init__(self, admission: Admission, headers: dict[str, list[str]]) -> None:
        self.identity = admission.identity
        self.headers = headers
        self.on_end: Callable[[], None] | None = None
        """Runs when the call has ended, however it ended, while its context still exists."""
        self._bearer = admission.bearer

    def sending_headers(self) -> dict[str, str]:
        """Asked twice per call, so it must say the same both times."""
        return {"authorization": self._bearer} if self._bearer else {}

    def call_completed(self, exception: BaseException | None) -> None:  # noqa: ARG002
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end()


class SessionMiddlewareFactory(flight.ServerMiddlewareFactory):  # type: ignore[misc]
    """Lets nobody in who is not known."""

    def __init__(
        self, authenticator: Authenticator, logged_in: Callable[[Identity], None] = lambda _: None
    ) -> None:
        """`logged_in`: told of each handshake; what it raises refuses it."""
        self._authenticator = authenticator
        self._logged_in = logged_in

    def start_call(self, info: flight.CallInfo, headers: dict[str, list[str]]) -> SessionMiddleware:
        """`headers`: their names in lower case, as HTTP/2 has them."""
        keep_known()
        try:
            header = next(iter(headers.get("authorization", ())), None)
            admission = self._authenticator.authenticate(header)
            if info.method == flight.FlightMethod.HANDSHAKE:
                self._logged_in(admission.identity)
            return SessionMiddleware(admission, headers)
        except AccelError as error:
            log.info("refused a call of %s: %s", info.method, error)
            raised = to_flight(error)
        except Exception as error:  # whatever it is, the client must not see the inside
            log.exception("authentication failed unexpectedly")
            raised = to_flight(error)
        raise raised
