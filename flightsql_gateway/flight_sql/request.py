"""What every command is given: who asks, and the parts of the gateway that answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from accel_dask.model.routing import RoutingTable
from accel_dask.model.shard_ref import ShardRef
from flightsql_gateway.auth import Identity
from flightsql_gateway.query_service import QueryService
from flightsql_gateway.receipts import Receipts
from flightsql_gateway.request_limits import AskedLimits
from flightsql_gateway.request_pins import Pins


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One authenticated call."""

    identity: Identity
    table: RoutingTable
    """The routing table of the moment, for metadata."""
    service: QueryService
    receipts: Receipts
    handle_key: bytes
    """Signs tickets and prepared-statement handles."""
    is_cancelled: Callable[[], bool]
    limits: AskedLimits = ()
    """The client's own."""
    pins: Pins = ()
    """Epochs that a query must read."""
    shard: ShardRef | None = None
    """The one shard that a query is narrowed to."""
    may_fall_back: bool = True
    name: str = ""
    """What the caller can cancel it by; empty: nothing."""
