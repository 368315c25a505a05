"""Tickets: signed, self-contained orders. An executor runs nothing else.

The signature is HMAC-SHA-256 (RFC 2104) over the payload, with the cluster's key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from accel_dask.errors import InvariantViolated, StaleEpoch, Unauthenticated
from accel_dask.model.executor import Attachment
from accel_dask.model.ids import EpochNumber, ShardId, TenantId

DATA_TABLE: Final = "data"
"""The table of a shard file with its rows."""
_SIGNATURE_BYTES = 32
_BLOCK_BYTES = 64
"""Of SHA-256."""
_INPUT_NAME = re.compile(r"input_[0-9]{1,6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochToken:
    """The epoch, and the shards of it, that a fragment reads."""

    dataset: str
    epoch: EpochNumber
    shards: tuple[ShardId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A peer executor, and the signed ticket of the part that it is asked for."""

    address: str
    ticket: bytes
    ticket_port: int = 0
    """Where it takes tickets as `ticket_stream` has it; 0: it takes them by Flight."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One peer's share of an input."""

    alternatives: tuple[Source, ...]
    """Executors that can give the same share; tried in order, until one gives its first batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A relation that a ticket's SQL names as `"<name>"`: the rows of its pieces, in their order.
    All pieces have one schema."""

    name: str
    """As `input_0`."""
    pieces: tuple[Piece, ...]
    max_rows: int
    """While this one is fetched: of all inputs of the ticket together."""
    max_bytes: int
    """As `max_rows`, in bytes of Arrow buffers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ticket:
    """One fragment of a query for one executor."""

    version: int
    query_id: str
    tenant: TenantId
    sql: str
    """Physical SQL: every table is an attached shard, named by `shard_relation`, or an input."""
    parameters: bytes = b""
    """Arrow IPC stream with one row, a column per `?`; empty: none."""
    tokens: tuple[EpochToken, ...]
    expires_at_ms: int
    """Wall clock; refused afterwards."""
    timeout_ms: int
    """From the moment the executor takes it."""
    max_result_rows: int
    max_result_bytes: int = 0
    """Of Arrow buffers; 0: the executor's quota."""
    max_cpu_ms: int = 0
    """0: the executor's quota."""
    measure: bool = False
    """Have the engine count rows scanned and peak memory, which takes it some 0.3 ms."""
    max_batch_bytes: int = 2 * 1024 * 1024
    describe_only: bool = False
    """Bind and return the schema with no rows."""
    inputs: tuple[Input, ...] = ()
    """What the executor fetches from its peers before it runs the SQL."""
    is_part: bool = False
    """For another executor's input: runs on slots of its own and has no inputs itself."""
    is_blind: bool = False
    """From a gateway that has lost the store, so that others may have its share of the tenant's
    concurrency. An executor whose host hears from the store refuses it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cancellation:
    """An order to stop a query under way; signed like its ticket. A call that still waits for
    its first batch cannot be ended from its client's side."""

    tenant: TenantId
    query_id: str
    signature: str = ""
    """Of the only ticket meant; empty: every ticket of the query. See `signature_of`."""


def shard_database(shard_id: ShardId) -> str:
    """The name under which executors attach a shard file."""
    return f"s_{shard_id}"


def shard_relation(shard_id: ShardId, table: str = DATA_TABLE) -> str:
    """The SQL name of a shard's table in an executor."""
    return f'"{shard_database(shard_id)}"."main"."{table}"'


def sign(payload: bytes, key: bytes) -> bytes:
    """`payload` behind its signature."""
    return _digest(payload, key) + payload


def signature_of(signed: bytes) -> str:
    """The signature of a signed ticket, in hex: its name among all tickets."""
    return signed[:_SIGNATURE_BYTES].hex()


def verify(signed: bytes, key: bytes) -> bytes:
    """The payload of `signed`.

    Raises:
        Unauthenticated: the signature is not this key's.
    """
    signature, payload = signed[:_SIGNATURE_BYTES], signed[_SIGNATURE_BYTES:]
    if not hmac.compare_digest(signature, _digest(payload, key)):
        raise Unauthenticated("the ticket's signature is not valid for this cluster")
    return payload


def _digest(payload: bytes, key: bytes) -> bytes:
    """As `hmac.digest`, whose look-up of the hash takes longer than a ticket's hashing."""
    inner, outer = _keyed(key)
    inside, outside = inner.copy(), outer.copy()
    inside.update(payload)
    outside.update(inside.digest())
    return outside.digest()


@lru_cache(maxsize=16)
def _keyed(key: bytes) -> tuple[hashlib._Hash, hashlib._Hash]:
    """The inner and the outer hash of the HMAC, with only the key in them."""
    short = hashlib.sha256(key).digest() if len(key) > _BLOCK_BYTES else key
    padded = short.ljust(_BLOCK_BYTES, b"\0")
    inner, outer = (bytes(byte ^ pad for byte in padded) for pad in (0x36, 0x5C))
    return hashlib.sha256(inner), hashlib.sha256(outer)


def fence(ticket: Ticket, tenant: TenantId, attached: AbstractSet[Attachment]) -> None:
    """Check that this executor serves all that `ticket` reads.

    Raises:
        StaleEpoch: another tenant's ticket, or an epoch or shard not attached here.
    """
    if ticket.tenant != tenant:
        raise StaleEpoch(f"this executor does not serve tenant {ticket.tenant}")
    for token in ticket.tokens:
        for shard_id in token.shards:
            # A tuple is as good as an `Attachment` here, and is made in half the time.
            if (token.dataset, token.epoch, shard_id) not in attached:
                raise StaleEpoch(
                    f"epoch {token.epoch} of {ticket.tenant}.{token.dataset} is not served "
                    "here (any more); plan the query again"
                )


def check_inputs(ticket: Ticket) -> None:
    """Check the form of what `ticket` asks of other executors.

    Raises:
        InvariantViolated: whoever wrote the ticket made a mistake.
    """
    if not ticket.inputs:
        return
    if ticket.is_part:
        raise InvariantViolated(f"the part {ticket.query_id} has inputs; a part asks nobody else")
    names = [one.name for one in ticket.inputs]
    if len(set(names)) != len(names) or not all(map(_INPUT_NAME.fullmatch, names)):
        raise InvariantViolated(f"the inputs of {ticket.query_id} are badly named: {names}")
    for one in ticket.inputs:
        if not one.pieces or not all(piece.alternatives for piece in one.pieces):
            raise InvariantViolated(f"{one.name} of {ticket.query_id} has nobody to ask")
