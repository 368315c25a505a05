"""Our own actions for clients that read shard by shard, where the shards are; JSON in and out."""

from __future__ import annotations

import base64
import json
from typing import Any

from accel_dask.errors import InvalidQuery
from accel_dask.model.epoch import ShardSummary
from flightsql_gateway.flight_sql.own_actions import read_body
from flightsql_gateway.flight_sql.request import Request
from flightsql_gateway.query import Query
from flightsql_gateway.request_pins import parse_shard, pin_of


def shards(body: bytes, request: Request) -> bytes:
    """The shards that `{"sql": "..."}`, over one dataset, reads of the epoch that serves now,
    in the epoch's order, with what is known of their values."""
    scans = request.service.shards(_text(body, "sql"), request.identity)
    routes = {scan.route.dataset_id: scan.route for scan in scans}
    if len(routes) != 1:
        raise InvalidQuery("only a query over one dataset can be read shard by shard")
    (route,) = routes.values()
    kept = sorted({index for scan in scans for index in scan.shards})
    found = {
        "tenant": route.dataset_id.tenant,
        "dataset": route.dataset_id.name,
        "epoch": route.epoch,
        "total_shards": len(route.shards),
        "shards": [_told(route.shards[index]) for index in kept],
    }
    return json.dumps(found).encode()


def ticket(body: bytes, request: Request) -> bytes:
    """A signed ticket for `{"sql": "...", "shard": "flights@12/<shard id>"}`, good until the
    query's deadline, and the executors that take it. No executor: none can answer it alone."""
    asked = parse_shard(_text(body, "shard"), request.identity.tenant)
    query = Query(
        sql=_text(body, "sql"),
        identity=request.identity,
        limits=request.limits,
        pins=(*request.pins, *pin_of(asked)),
        shard=asked,
    )
    plan, signed = request.service.hand_out(query)
    fragment = plan.fragments[0]
    candidates = () if fragment.inputs else fragment.candidates
    found = {
        "ticket": base64.b64encode(signed).decode(),
        "executors": [
            {"worker": one.worker, "address": one.address} for one in candidates if not one.is_cold
        ],
    }
    return json.dumps(found).encode()


def _told(shard: ShardSummary) -> dict[str, Any]:
    return {
        "shard": shard.shard_id,
        "rows": shard.rows,
        "stats": {
            one.name: {"nulls": one.null_count, "lower": one.lower, "upper": one.upper}
            for one in shard.stats
        },
    }


def _text(body: bytes, name: str) -> str:
    found = read_body(body).get(name)
    if not isinstance(found, str):
        raise InvalidQuery(f"{name!r} must be a text")
    return found
