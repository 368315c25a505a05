"""One part of a query, asked of another executor of the tenant, however it is asked."""

from __future__ import annotations

import logging
import time
from typing import Final

from accel_dask.codec import decode
from accel_dask.errors import (
    AccelError,
    DeadlineExceeded,
    ExecutorUnavailable,
    InvariantViolated,
    NotResident,
    QueryError,
    ResourceExhausted,
    StaleEpoch,
)
from accel_dask.model.ids import TenantId
from accel_dask.model.measured import Measured
from accel_dask.model.ticket import Source, Ticket, check_inputs, verify
from accel_dask.worker_plugin.executor.peers import PeerClients

log = logging.getLogger(__name__)


class PartCall:
    """A call of one source, once."""

    def __init__(self, clients: PeerClients, source: Source, tenant: TenantId, key: bytes) -> None:
        """
        Raises:
            InvariantViolated: the source's ticket is not a part of a query of `tenant`.
        """
        self.source: Final = source
        self.part: Final = _checked(source, tenant, key)
        self.last_sign = time.monotonic()
        """When the peer was last heard of."""
        self.clients: Final = clients

    def __str__(self) -> str:
        return f"part {self.part.query_id} at {self.source.address}"

    def is_answering(self) -> bool:
        """Whether the peer's process answers anything at all. Blocks up to a second."""
        if not self.clients.is_answering(self.source):
            return False
        self.last_sign = time.monotonic()
        return True

    def measured(self) -> Measured | None:
        """What the peer measured, once everything has been read; None: it did not tell."""
        told = self._measured_text()
        try:
            return decode(told, Measured) if told else None
        except InvariantViolated as error:
            log.warning("%s told something unknown of its cost: %s", self, error)
            return None

    def _measured_text(self) -> bytes:
        raise NotImplementedError

    def translated(self, found: AccelError) -> AccelError:
        """What this query fails with when the peer told `found`. Without addresses; what the
        query itself is at fault for keeps its class."""
        tenant = self.part.tenant
        if isinstance(found, DeadlineExceeded) and "call's deadline passed" in str(found):
            return DeadlineExceeded(
                f"another executor of tenant {tenant} did not answer within the query's deadline"
            )
        if isinstance(found, QueryError | StaleEpoch | ResourceExhausted | NotResident):
            return found
        log.warning("%s: %s", self, found)
        return self.unavailable()

    def unavailable(self) -> ExecutorUnavailable:
        """What the query's client hears when the peer gives nothing."""
        return ExecutorUnavailable(
            f"another executor of tenant {self.part.tenant}, which has a part of the data, does "
            "not answer at the moment; send the query again"
        )


def _checked(source: Source, tenant: TenantId, key: bytes) -> Ticket:
    try:
        part = decode(verify(source.ticket, key), Ticket)
        check_inputs(part)
    except AccelError as error:
        raise _no_part(tenant) from error
    if not part.is_part or part.tenant != tenant:
        raise _no_part(tenant)
    return part


def _no_part(tenant: TenantId) -> InvariantViolated:
    return InvariantViolated(
        f"a query of tenant {tenant} asks for something that is not a part of it"
    )
