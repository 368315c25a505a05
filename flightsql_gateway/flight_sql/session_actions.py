"""The session actions. Sessions hold nothing: a user's catalog and schema are what they are."""

from __future__ import annotations

from typing import Any

from accel_dask.query_planner.plan import CATALOG
from flightsql_gateway.flight_sql import messages
from flightsql_gateway.flight_sql.request import Request

_INVALID_NAME, _INVALID_VALUE = 1, 2
_CLOSED = 1
_NOT_CANCELLABLE = 3


def get_options(body: bytes, request: Request) -> bytes:  # noqa: ARG001 - an action
    result = messages.new("GetSessionOptionsResult")
    for key, value in _options(request).items():
        option = result.session_options.add()
        option.key = key
        option.value.string_value = value
    return _bytes(result)


def set_options(body: bytes, request: Request) -> bytes:
    """Agrees to what is so already; names every other option as an error."""
    options = _options(request)
    result = messages.new("SetSessionOptionsResult")
    for option in messages.decode("SetSessionOptionsRequest", body).session_options:
        expected = options.get(option.key)
        if expected is not None and option.value.string_value == expected:
            continue
        entry = result.errors.add()
        entry.key = option.key
        entry.value.value = _INVALID_NAME if expected is None else _INVALID_VALUE
    return _bytes(result)


def close(body: bytes, request: Request) -> bytes:  # noqa: ARG001
    return _bytes(messages.new("CloseSessionResult", status=_CLOSED))


def cancel(body: bytes, request: Request) -> bytes:  # noqa: ARG001
    """Queries are cancelled by ending the call that streams them."""
    return _bytes(messages.new("CancelFlightInfoResult", status=_NOT_CANCELLABLE))


def _options(request: Request) -> dict[str, str]:
    return {"catalog": CATALOG, "schema": request.identity.tenant}


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
