"""Prometheus metrics of a gateway, on a port of their own if one is set."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server

from flightsql_gateway.auth import Identity
from flightsql_gateway.receipts import Receipt

_BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Observes receipts."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._queries = Counter(
            "accel_gateway_queries_total",
            "Queries by tenant and outcome",
            ("tenant", "outcome"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "accel_gateway_query_seconds",
            "Total time of a query",
            ("tenant",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._rows = Counter(
            "accel_gateway_rows_total", "Rows sent", ("tenant",), registry=self.registry
        )

    def observe(self, identity: Identity, receipt: Receipt) -> None:
        self._queries.labels(identity.tenant, receipt.outcome).inc()
        self._seconds.labels(identity.tenant).observe(receipt.total_ms / 1000)
        self._rows.labels(identity.tenant).inc(receipt.rows)

    def serve(self, port: int, host: str) -> None:
        """Answer scrapes on a thread of its own."""
        start_http_server(port, addr=host, registry=self.registry)
