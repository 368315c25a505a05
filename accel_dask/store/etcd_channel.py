"""Calls to an etcd cluster over gRPC: one channel per member, failover, authentication."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import grpc

from accel_dask.config import StoreSettings
from accel_dask.errors import ConfigError, OutcomeUnknown, StoreMismatch, StoreUnavailable
from accel_dask.store import etcd_messages as pb
from accel_dask.store.etcd_failures import Meaning, describe, details_of, meaning_of, refusal
from accel_dask.store.etcd_headers import HeaderGuard

logger = logging.getLogger(__name__)

_METHODS: Final = {
    "Range": ("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse),
    "Txn": ("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse),
    "Compact": ("/etcdserverpb.KV/Compact", pb.CompactionRequest, pb.CompactionResponse),
    "LeaseGrant": (
        "/etcdserverpb.Lease/LeaseGrant",
        pb.LeaseGrantRequest,
        pb.LeaseGrantResponse,
    ),
    "LeaseRevoke": (
        "/etcdserverpb.Lease/LeaseRevoke",
        pb.LeaseRevokeRequest,
        pb.LeaseRevokeResponse,
    ),
    "Authenticate": (
        "/etcdserverpb.Auth/Authenticate",
        pb.AuthenticateRequest,
        pb.AuthenticateResponse,
    ),
    "Status": ("/etcdserverpb.Maintenance/Status", pb.StatusRequest, pb.StatusResponse),
}
_STREAMS: Final = {
    "Watch": ("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse),
    "LeaseKeepAlive": (
        "/etcdserverpb.Lease/LeaseKeepAlive",
        pb.LeaseKeepAliveRequest,
        pb.LeaseKeepAliveResponse,
    ),
}

_CHANNEL_OPTIONS: Final = (
    ("grpc.enable_retries", 0),  # a write must not be sent twice behind our back
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Finds dead connections; etcd tolerates a ping every 5 s while a call is open.
    ("grpc.keepalive_time_ms", 6000),
    ("grpc.keepalive_timeout_ms", 3000),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """Seconds allowed for one attempt at one member, and for a whole operation."""

    read_attempt: float = 1.0
    read: float = 6.0
    write_attempt: float = 4.0
    write: float = 9.0
    """Of a write that may be repeated, or that has not been sent yet."""
    bar: float = 1.0
    """How long a member that failed is asked last."""


class Member:
    """One endpoint with its own channel."""

    def __init__(self, address: str, credentials: Any) -> None:
        self.address = address
        self.verified = False
        """It has answered for the right cluster and the present, and not failed since."""
        self.barred_until = 0.0
        self.channel = (
            grpc.secure_channel(address, credentials, _CHANNEL_OPTIONS)
            if credentials
            else grpc.insecure_channel(address, _CHANNEL_OPTIONS)
        )
        self._calls = {
            name: self.channel.unary_unary(
                path,
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            for name, (path, request, response) in _METHODS.items()
        }
        self._streams = {
            name: self.channel.stream_stream(
                path,
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            for name, (path, request, response) in _STREAMS.items()
        }

    def call(self, method: str, request: Any, timeout: float, metadata: Any) -> Any:
        """Raises `grpc.RpcError`."""
        try:
            return self._calls[method](request, timeout=timeout, metadata=metadata)
        except ValueError as error:
            raise StoreUnavailable(f"{method}: the channel is closed") from error

    def stream(
        self, method: str, requests: Iterator[Any], timeout: float | None, metadata: Any
    ) -> Any:
        """An iterator of responses, with `cancel()`. Iterating raises `grpc.RpcError`."""
        try:
            return self._streams[method](requests, timeout=timeout, metadata=metadata)
        except ValueError as error:
            raise StoreUnavailable(f"{method}: the channel is closed") from error


class EtcdChannel:
    """The cluster as one thing to call. Thread-safe."""

    def __init__(self, settings: StoreSettings, deadlines: Deadlines | None = None) -> None:
        if not settings.endpoints:
            raise ConfigError("no endpoints of the state store are set: [store] endpoints")
        self.deadlines = deadlines or Deadlines()
        self.guard = HeaderGuard()
        self._settings = settings
        credentials = _credentials(settings)
        self.members = tuple(Member(_address(e), credentials) for e in settings.endpoints)
        self._preferred = 0
        self._token = ""
        self._anonymous = False
        """A user is set, but etcd has no authentication enabled."""
        self._token_lock = threading.Lock()
        self._closed = False

    def read(self, method: str, request: Any) -> Any:
        """The answer to a linearizable read, from whichever member gives one.

        Raises:
            StoreUnavailable: none did in time.
            StoreMismatch: those that did are of another cluster or of the past.
        """
        return self._repeat(method, request, self.deadlines.read, self._read_once)

    def write(
        self, method: str, request: Any, *, idempotent: bool, seconds: float | None = None
    ) -> tuple[Any, bool]:
        """The answer to a write, and whether an earlier attempt may have been applied too.

        Raises:
            StoreUnavailable: no member took it; nothing was changed.
            OutcomeUnknown: it was sent, and the answer was lost.
        """
        unknown: list[str] = []

        def once(member: Member, name: str, message: Any) -> Any:
            self._verify(member)
            try:
                attempt = min(seconds or math.inf, self.deadlines.write_attempt)
                return self._send(member, name, message, attempt)
            except grpc.RpcError as error:
                if meaning_of(error) is Meaning.UNKNOWN:
                    unknown.append(f"{member.address}: {describe(error)}")
                    if not idempotent:
                        self.report_failure(member)
                        raise OutcomeUnknown(
                            f"{name} was sent but its answer was lost ({unknown[-1]})"
                        ) from error
                raise

        try:
            answer = self._repeat(method, request, seconds or self.deadlines.write, once)
            return answer, bool(unknown)
        except (StoreUnavailable, StoreMismatch) as error:
            if unknown:
                raise OutcomeUnknown(f"{method}: {'; '.join(unknown[-3:])}") from error
            raise

    def verified_member(self, avoid: Member | None = None) -> Member:
        """A member that answers for the present; `avoid` only if it is the only one.

        Raises:
            StoreUnavailable, StoreMismatch: there is none now.
        """
        failures: list[Exception] = []
        for member in sorted(self._in_order(), key=lambda m: m is avoid):
            try:
                self._verify(member)
            except grpc.RpcError as error:
                self.report_failure(member)
                failures.append(StoreUnavailable(f"{member.address}: {describe(error)}"))
            except StoreMismatch as error:
                failures.append(error)
            else:
                return member
        raise self._no_answer("a member to watch", failures)

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What every call but `Authenticate` carries."""
        if self._settings.user and not self._token and not self._anonymous:
            self.renew_token("")
        return (("token", self._token),) if self._token else ()

    @property
    def token(self) -> str:
        return self._token

    def renew_token(self, rejected: str) -> None:
        """Log in again, unless another thread has since `rejected` was in use.

        Raises:
            ConfigError: no user is set but etcd wants one, or it does not accept ours.
            StoreUnavailable: no member answered.
        """
        if not self._settings.user:
            raise ConfigError("etcd demands a user; set [store] user and password")
        with self._token_lock:
            if self._token != rejected:
                return
            self._token = self._authenticate()

    def report_failure(self, member: Member) -> None:
        """`member` failed a call: verify it before the next write, ask others first."""
        member.verified = False
        member.barred_until = time.monotonic() + self.deadlines.bar

    def close(self) -> None:
        self._closed = True
        for member in self.members:
            member.channel.close()

    def _repeat(
        self,
        method: str,
        request: Any,
        seconds: float,
        once: Callable[[Member, str, Any], Any],
    ) -> Any:
        """`once` with one member after the other until one answers or time is up."""
        deadline = time.monotonic() + seconds
        pause = 0.05
        while True:
            failures: list[Exception] = []
            for member in self._in_order():
                if self._closed:
                    raise StoreUnavailable(f"{method}: this store is closed")
                try:
                    answer = once(member, method, request)
                except grpc.RpcError as error:
                    failures.append(self._failure(member, method, error))
                except (StoreMismatch, StoreUnavailable) as error:
                    self.report_failure(member)
                    failures.append(error)
                else:
                    self._preferred = self.members.index(member)
                    return answer
                if time.monotonic() >= deadline:
                    break
            if time.monotonic() + pause >= deadline:
                raise self._no_answer(method, failures)
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def _failure(self, member: Member, method: str, error: grpc.RpcError) -> Exception:
        if self._closed:
            raise StoreUnavailable(f"{method}: this store is closed") from error
        if meaning_of(error) is Meaning.REFUSED:
            raise refusal(error, method) from error
        self.report_failure(member)
        return StoreUnavailable(f"{member.address}: {describe(error)}")

    def _no_answer(self, what: str, failures: list[Exception]) -> StoreUnavailable | StoreMismatch:
        for failure in failures:
            if isinstance(failure, StoreMismatch):
                return failure
        return StoreUnavailable(
            f"{what}: no member of etcd answered in time; nothing was changed "
            f"({'; '.join(str(failure) for failure in failures)})"
        )

    def _in_order(self) -> list[Member]:
        """The members to try, the one that answered last first, those that failed last."""
        first = self._preferred
        ring = self.members[first:] + self.members[:first]
        now = time.monotonic()
        return sorted(ring, key=lambda member: member.barred_until > now)

    def _read_once(self, member: Member, method: str, request: Any) -> Any:
        answer = self._send(member, method, request, self._read_attempt_seconds())
        member.verified = True
        return answer

    def _read_attempt_seconds(self) -> float:
        """A lone member gets more time: there is no other to turn to."""
        return self.deadlines.read_attempt * (1 if len(self.members) > 1 else 3)

    def _verify(self, member: Member) -> None:
        if not member.verified:
            # Under our prefix, since the user may not be allowed to read anything else.
            probe = pb.RangeRequest(key=prefix_bytes(self._settings.prefix), count_only=True)
            self._read_once(member, "Range", probe)
            logger.debug("etcd member %s answers", member.address)

    def _send(self, member: Member, method: str, request: Any, timeout: float) -> Any:
        """One call; once more if the token had expired. Checks the answer's header."""
        floor = self.guard.floor()
        metadata = self.metadata()
        try:
            answer = member.call(method, request, timeout, metadata)
        except grpc.RpcError as error:
            if meaning_of(error) is not Meaning.STALE_LOGIN:
                raise
            self.renew_token(metadata[0][1] if metadata else "")
            answer = member.call(method, request, timeout, self.metadata())
        if method in ("Range", "Txn"):
            self.guard.check(answer.header, floor, member.address)
        else:
            self.guard.check_cluster(answer.header, member.address)
        return answer

    def _authenticate(self) -> str:
        """A new token. Sent without the old one, which the server would reject first."""
        request = pb.AuthenticateRequest(name=self._settings.user, password=self._settings.password)
        failures: list[Exception] = []
        for member in self._in_order():
            try:
                # Its password hash takes the server a while.
                answer = member.call("Authenticate", request, self.deadlines.write_attempt, ())
            except grpc.RpcError as error:
                if "authentication is not enabled" in details_of(error):
                    logger.warning("etcd has no authentication enabled; the user is not needed")
                    self._anonymous = True
                    return ""
                failures.append(self._failure(member, "Authenticate", error))
            else:
                return str(answer.token)
        raise self._no_answer("Authenticate", failures)


def prefix_bytes(prefix: str) -> bytes:
    """What all of the cluster's keys in etcd begin with."""
    return prefix.rstrip("/").encode() + b"/"


def _address(endpoint: str) -> str:
    return endpoint.strip().removeprefix("https://").removeprefix("http://").rstrip("/")


def _credentials(settings: StoreSettings) -> Any:
    secure = any(endpoint.startswith("https://") for endpoint in settings.endpoints)
    if not (settings.ca_file or settings.cert_file or secure):
        return None
    if bool(settings.cert_file) != bool(settings.key_file):
        raise ConfigError("[store] cert_file and key_file must be set together")
    return grpc.ssl_channel_credentials(
        root_certificates=_content(settings.ca_file),
        private_key=_content(settings.key_file),
        certificate_chain=_content(settings.cert_file),
    )


def _content(file: str) -> bytes | None:
    if not file:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {file} for TLS with the state store: {error}") from error
