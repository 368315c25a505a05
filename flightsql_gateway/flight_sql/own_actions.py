"""Our own actions: receipts and plans, JSON in and out."""

from __future__ import annotations

import json
from typing import Any

from accel_dask.codec import encode
from accel_dask.errors import InvalidQuery
from flightsql_gateway.flight_sql.request import Request


def receipts(body: bytes, request: Request) -> bytes:
    """The newest receipts of the caller's tenant, `{"last": 10}`, or of the caller alone,
    `{"last": 1, "mine": true}`, or the one of a query, `{"query_id": "..."}`; always a list."""
    asked = read_body(body)
    tenant = request.identity.tenant
    query_id = asked.get("query_id")
    if query_id is not None:
        found = request.receipts.find(tenant, str(query_id))
        return encode([] if found is None else [found])
    last = asked.get("last", 10)
    if not isinstance(last, int):
        raise InvalidQuery("'last' must be a number")
    user = request.identity.user if asked.get("mine") is True else ""
    return encode(request.receipts.last(tenant, last, user))


def history(body: bytes, request: Request) -> bytes:
    """What the caller's tenant has asked of this gateway, by shape; the body is not read."""
    del body
    return encode(request.receipts.history.shapes(request.identity.tenant))


def datasets(body: bytes, request: Request) -> bytes:
    """The datasets of the caller's tenant and the epochs they serve; the body is not read."""
    del body
    found = [
        {"dataset": route.dataset_id.name, "epoch": route.epoch}
        for route in request.table.datasets_of(request.identity.tenant)
    ]
    return json.dumps(found).encode()


def cancel(body: bytes, request: Request) -> bytes:
    """End the caller's own call whose header x-accel-request says `{"request": "..."}`."""
    name = read_body(body).get("request")
    if not isinstance(name, str):
        raise InvalidQuery("'request' must be a text")
    return json.dumps(request.service.cancel(request.identity, name)).encode()


def explain(body: bytes, request: Request) -> bytes:
    """The plan of `{"sql": "..."}` as text."""
    sql = read_body(body).get("sql")
    if not isinstance(sql, str):
        raise InvalidQuery("'sql' must be a text")
    return json.dumps(request.service.explain(sql, request.identity)).encode()


def read_body(body: bytes) -> dict[str, Any]:
    try:
        read = json.loads(body or b"{}")
    except ValueError as error:
        raise InvalidQuery("the action's body is not JSON") from error
    if not isinstance(read, dict):
        raise InvalidQuery("the action's body is not a JSON object")
    return read
