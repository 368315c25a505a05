"""Builds a gateway out of its parts, starts it and ends it. The only place that knows them all."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

from accel_dask.config import GatewaySettings
from accel_dask.errors import ConfigError
from accel_dask.model.cluster import ClusterView
from accel_dask.query_planner.pipeline import warm_up
from accel_dask.store.base import StateStore
from flightsql_gateway.admission import Admission
from flightsql_gateway.auth import Authenticator, Identity
from flightsql_gateway.calls import CallWatch
from flightsql_gateway.execute import Execution
from flightsql_gateway.executor_client import ExecutorClients
from flightsql_gateway.fallback.governor import Fallback
from flightsql_gateway.flight_sql.server import FlightSqlServer, ServerAddress
from flightsql_gateway.load_figures import LoadFigures
from flightsql_gateway.metrics import Metrics
from flightsql_gateway.observations import Observations
from flightsql_gateway.query_service import QueryService
from flightsql_gateway.receipts import Receipt, Receipts
from flightsql_gateway.registration import Registration
from flightsql_gateway.routing_cache import RoutingCache
from flightsql_gateway.shares import Shares

log = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 10.0
_SHARES_SECONDS: Final = 5.0
"""How long a gateway waits at its start for its shares of the tenants' concurrency."""


class GatewayApp:
    """One gateway on `store`. Serves from `start` on."""

    def __init__(self, settings: GatewaySettings, store: StateStore) -> None:
        self._settings = settings
        self._store = store
        self._observations = Observations((self._observe,))
        self._receipts = Receipts(self._observations.settle)
        self._figures = LoadFigures()
        self._shares = Shares(store)
        self._admission = Admission(settings.concurrency, self._shares.limit, self._shares.wake)
        self._fallback = Fallback()
        self._metrics = Metrics(self._admission, self._fallback, self._observations.settle)
        self._watch = CallWatch(self._observations.settle)
        self._clients = ExecutorClients()
        self._registration: Registration | None = None
        self.routing: Final = RoutingCache(
            store,
            frozen_serving_seconds=settings.frozen_serving_seconds,
            on_applied=self._applied,
        )
        self._execution = Execution(self.routing, self._clients, self._shares.is_blind)
        self.service: Final = QueryService(
            self.routing,
            self._execution,
            self._watch,
            observations=self._observations,
            fallback=self._fallback,
            admission=self._admission,
        )
        self._server: FlightSqlServer | None = None

    def start(self, store_timeout_seconds: float = 30.0) -> str:
        """Follow the store, listen, register; the URL that clients use.

        Raises:
            StoreUnavailable: the store gave no listing in time.
            ConfigError: the address cannot be listened on, or a certificate not read.
        """
        warm_up()
        self.routing.start(store_timeout_seconds)
        authenticator = Authenticator(self.routing, self._settings.token_seconds)
        address = self._address()
        try:
            self._server = FlightSqlServer(
                address, self.service, self.routing, authenticator, self._receipts
            )
        except OSError as error:
            raise ConfigError(f"cannot listen on {address.location}: {error}") from error
        url = ServerAddress(
            host=address.host, port=self._server.port, certificate=address.certificate
        ).location
        if self._settings.metrics_port:
            self._metrics.serve(self._settings.metrics_port, self._settings.host)
        self._registration = Registration(
            self._store,
            self._figures,
            self._admission,
            self._shares,
            self._fallback,
            address=url,
            lease_seconds=self._settings.lease_seconds,
        )
        self._applied(self.routing.view)
        self._registration.start()
        self._shares.serve(self._registration.gateway, self._admission)
        self._shares.start(_SHARES_SECONDS)
        log.info("%s serves at %s", self._registration.gateway, url)
        return url

    def _address(self) -> ServerAddress:
        settings = self._settings
        certificate = private_key = b""
        if settings.tls_cert_file:
            try:
                certificate = Path(settings.tls_cert_file).read_bytes()
                private_key = Path(settings.tls_key_file).read_bytes()
            except OSError as error:
                raise ConfigError(f"cannot read the TLS certificate or its key: {error}") from error
        return ServerAddress(
            host=settings.host,
            port=settings.port,
            certificate=certificate,
            private_key=private_key,
        )

    def _applied(self, view: ClusterView) -> None:
        if self._registration is not None:
            self._registration.applied(view)
        self._shares.applied(view)

    def _observe(self, identity: Identity, receipt: Receipt) -> None:
        self._receipts.add(identity.tenant, receipt)
        failed = receipt.outcome not in {"OK", "QUERY_CANCELLED"}
        self._figures.add(identity.tenant, receipt.total_ms, failed=failed)
        self._metrics.observe(identity, receipt)

    def close(self, drain_seconds: float = DRAIN_SECONDS) -> bool:
        """Take no more calls, let those under way end, and leave. False: some were still running
        after `drain_seconds`; the caller should end the process."""
        is_drained = True
        if self._server is not None:
            # `shutdown` waits without a limit.
            drain = threading.Thread(target=self._server.shutdown, name="drain", daemon=True)
            drain.start()
            drain.join(drain_seconds)
            is_drained = not drain.is_alive()
        self._shares.close()
        if self._registration is not None:
            self._registration.close()
        self.routing.close()
        self._watch.close()
        self._execution.close()
        self._fallback.close()
        self._clients.close()
        return is_drained
