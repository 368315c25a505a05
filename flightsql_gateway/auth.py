"""Who is asking: user name and token, or the bearer token that they are exchanged for.

Used by the front ends. Every refusal reads the same, so that nobody learns which users, tenants
or datasets there are. Tokens are signed and hold no state here: any gateway takes any of them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import time
from dataclasses import dataclass
from functools import lru_cache

from accel_dask.codec import decode, encode
from accel_dask.errors import InvariantViolated, Unauthenticated
from accel_dask.model.ids import TenantId
from accel_dask.model.tenant import User, hash_token
from accel_dask.model.ticket import sign, verify
from flightsql_gateway.routing_cache import RoutingCache

log = logging.getLogger(__name__)

_NOBODY = hash_token("")
_MAX_HEADER = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A user who has shown a token, and whose data may be asked for."""

    user: str
    tenant: TenantId


@dataclass(frozen=True, slots=True, kw_only=True)
class BearerToken:
    """What a bearer token says."""

    user: str
    token_hash: str
    """The start of the hash of the token it was given for: a new token voids it."""
    expires_at: int
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class Admission:
    """An authenticated call, and the bearer token to hand back, if any."""

    identity: Identity
    bearer: str | None = None


@lru_cache(maxsize=16)
def purpose_key(key: bytes, purpose: str) -> bytes:
    """A key of its own for each use of the cluster's key, so that nothing signed for one use
    passes for another."""
    return hmac.digest(key, purpose.encode(), hashlib.sha256)


class Authenticator:
    """Checks `authorization` headers against the users of the current routing table."""

    def __init__(self, routing: RoutingCache, token_seconds: float) -> None:
        self._routing = routing
        self._token_seconds = token_seconds

    def authenticate(self, header: str | None) -> Admission:
        """Who sent `header`.

        Raises:
            Unauthenticated: nobody that is known. The reason is not told.
        """
        if not header:
            raise Unauthenticated("send a user name and token, or a bearer token")
        kind, _, value = header[:_MAX_HEADER].partition(" ")
        if kind.lower() == "basic":
            return self._basic(value.strip())
        if kind.lower() == "bearer":
            return self._bearer(value.strip())
        raise _refused()

    def _basic(self, value: str) -> Admission:
        try:
            # Some drivers leave the padding out.
            text = base64.b64decode(value + "=" * (-len(value) % 4), validate=True).decode()
        except (binascii.Error, ValueError) as error:
            raise _refused() from error
        name, _, token = text.partition(":")
        user = self._routing.current().users.get(name)
        # Compared in any case: an unknown user takes as long as a wrong token.
        expected = user.token_sha256 if user else _NOBODY
        matches = hmac.compare_digest(hash_token(token), expected)
        if user is None or not matches or not token:
            log.info("refused: user name and token do not match")
            raise _refused()
        return Admission(_identity(user), f"Bearer {self._issue(user)}")

    def _bearer(self, value: str) -> Admission:
        try:
            claims = _claims(value, self._key())
        except (binascii.Error, ValueError, InvariantViolated, Unauthenticated) as error:
            raise _refused() from error
        user = self._routing.current().users.get(claims.user)
        if user is None or not hmac.compare_digest(
            user.token_sha256[:16].encode(), claims.token_hash.encode()
        ):
            log.info("refused: a bearer token of a user who is gone or has a new token")
            raise _refused()
        left = claims.expires_at - time.time()
        if left <= 0:
            raise Unauthenticated("the bearer token has expired; authenticate again")
        # Clients take over any token that comes back, so sessions outlive a token's life.
        renewed = f"Bearer {self._issue(user)}" if left < self._token_seconds / 2 else None
        return Admission(_identity(user), renewed)

    def _issue(self, user: User) -> str:
        claims = BearerToken(
            user=user.name,
            token_hash=user.token_sha256[:16],
            expires_at=int(time.time() + self._token_seconds),
        )
        signed = sign(encode(claims), self._key())
        return base64.urlsafe_b64encode(signed).decode().rstrip("=")

    def _key(self) -> bytes:
        return purpose_key(self._routing.ticket_key(), "bearer")


@lru_cache(maxsize=1024)
def _claims(value: str, key: bytes) -> BearerToken:
    """What a token says that `key` has signed; sessions send the same one with every call."""
    signed = base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))
    return decode(verify(signed, key), BearerToken)


def _identity(user: User) -> Identity:
    return Identity(user=user.name, tenant=user.tenant)


def _refused() -> Unauthenticated:
    return Unauthenticated("user name and token do not match")
