"""Records to bytes and back, checked against their types. JSON, so that people can read it."""

from __future__ import annotations

import hashlib
import threading
from typing import TypeVar

import msgspec

from accel_dask.errors import InvariantViolated

T = TypeVar("T")

_ENCODER = msgspec.json.Encoder(order="deterministic", decimal_format="string")
_DECODERS: dict[object, msgspec.json.Decoder[object]] = {}
_MAKING_DECODERS = threading.Lock()


def encode(record: object) -> bytes:
    """`record` as canonical JSON: equal records give equal bytes."""
    return _ENCODER.encode(record)


def decode(data: bytes, record_type: type[T]) -> T:
    """The `record_type` that `data` holds. Unknown fields are ignored, so that a newer
    writer does not break an older reader.

    Raises:
        InvariantViolated: `data` is not such a record.
    """
    decoder = _DECODERS.get(record_type) or _make_decoder(record_type)
    try:
        return decoder.decode(data)  # type: ignore[return-value]
    except msgspec.MsgspecError as error:
        raise InvariantViolated(f"not a {record_type.__name__}: {error}") from error


def _make_decoder(record_type: type[T]) -> msgspec.json.Decoder[object]:
    # msgspec reads a type's fields when the first decoder for it is made. Two threads that do so
    # at once, for types that share one, crash the process.
    with _MAKING_DECODERS:
        if record_type not in _DECODERS:
            _DECODERS[record_type] = msgspec.json.Decoder(record_type)
        return _DECODERS[record_type]


def digest(record: object) -> str:
    """SHA-256 of the canonical form, in hex."""
    return hashlib.sha256(encode(record)).hexdigest()
