"""Our errors over Arrow Flight and back; used by executors and gateways.

A Flight error carries `[CODE] message`, so that a receiver finds the class of the tree again.
Everything else that a handler might raise becomes an internal error with nothing of the inside
in it: Flight would otherwise send the traceback.
"""

from __future__ import annotations

import re
from typing import Final

from pyarrow import ArrowCancelled, ArrowException, ArrowInvalid, flight

from accel_dask.errors import (
    AccelError,
    AdmissionError,
    AuthError,
    ColdReadFailed,
    DeadlineExceeded,
    EpochRetired,
    ExecutorUnavailable,
    FallbackForbidden,
    NotResident,
    QueryCancelled,
    QueryError,
    ReadOnly,
    StaleEpoch,
    StoreError,
    UnsupportedQuery,
    error_class,
)

FLIGHT_FAILURES: Final = (flight.FlightError, ArrowException, OSError)
"""All that a failed Flight call raises: INVALID_ARGUMENT, UNIMPLEMENTED and others arrive as
Arrow's own exceptions, which are no FlightError."""

# The first class that matches decides. Flight cannot send RESOURCE_EXHAUSTED; INVALID_ARGUMENT
# and UNIMPLEMENTED are reached through the exceptions that Arrow maps to them.
_FLIGHT_CLASSES: Final[tuple[tuple[type[AccelError], type[Exception]], ...]] = (
    (AuthError, flight.FlightUnauthenticatedError),
    (DeadlineExceeded, flight.FlightTimedOutError),
    (QueryCancelled, flight.FlightCancelledError),
    (ReadOnly, NotImplementedError),
    (UnsupportedQuery, NotImplementedError),
    (QueryError, ArrowInvalid),
    (AdmissionError, flight.FlightUnavailableError),
    (StaleEpoch, flight.FlightUnavailableError),
    (EpochRetired, ArrowInvalid),
    (FallbackForbidden, ArrowInvalid),
    (NotResident, flight.FlightUnavailableError),
    (ExecutorUnavailable, flight.FlightUnavailableError),
    (ColdReadFailed, flight.FlightUnavailableError),
    (StoreError, flight.FlightUnavailableError),
    (AccelError, flight.FlightInternalError),
)

_CODED = re.compile(r"\[([A-Z][A-Z_]+)\] (.*)", re.DOTALL)
# What Flight appends on the way, in whatever combination.
_SUFFIX = re.compile(
    r"\. (?:Detail: (?:Python exception:.*|[\w ]+(?=\.|$))"
    r"|gRPC client debug context:.*|Client context:.*)",
    re.DOTALL,
)


def to_flight(error: BaseException) -> Exception:
    """The exception to raise in a Flight handler for `error`. Log `error` itself first."""
    if isinstance(error, AccelError):
        for accel_class, flight_class in _FLIGHT_CLASSES:
            if isinstance(error, accel_class):
                raised: Exception = flight_class(f"[{error.code}] {error}")
                return raised
    unexpected: Exception = flight.FlightInternalError(
        "[ACCEL_ERROR] internal error; see the server's log"
    )
    return unexpected


def from_flight(error: BaseException) -> AccelError:
    """The error of our tree that `error`, raised by a Flight call, stands for."""
    if isinstance(error, AccelError):
        return error
    text = str(error)
    coded = _CODED.search(text)
    if coded:
        return error_class(coded[1])(_SUFFIX.sub("", coded[2]).strip())
    if isinstance(error, flight.FlightTimedOutError):
        return DeadlineExceeded("the call's deadline passed")
    if isinstance(error, flight.FlightCancelledError | ArrowCancelled):
        return QueryCancelled("the call was cancelled")
    return ExecutorUnavailable(f"the call failed: {_SUFFIX.sub('', text).strip()[:300]}")
