"""Content larger than a value of the store: compressed, in chunks, named by its hash."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass
from typing import Final

from accel_dask.codec import decode, encode
from accel_dask.errors import InvariantViolated, StoreError
from accel_dask.store.base import DeleteOp, PutOp, StateStore, Transaction
from accel_dask.store.keys import BLOBS, blob_key, blob_of, blob_prefix

CHUNK_BYTES: Final = 512 * 1024
_MAX_BLOB_BYTES: Final = 1024 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobHeader:
    """Chunk 0 of a blob; written last, so that a blob with a header is whole."""

    chunks: int
    size_bytes: int


def put_blob(store: StateStore, data: bytes) -> str:
    """Store `data`; its SHA-256 in hex, by which it is found again."""
    digest = hashlib.sha256(data).hexdigest()
    if store.get(blob_key(digest, 0)) is not None:
        return digest
    packed = zlib.compress(data)
    pieces = [packed[at : at + CHUNK_BYTES] for at in range(0, len(packed), CHUNK_BYTES)]
    header = encode(BlobHeader(chunks=len(pieces), size_bytes=len(data)))
    for index, piece in enumerate((*pieces, header), start=1):
        key = blob_key(digest, index if index <= len(pieces) else 0)
        store.commit(Transaction(ops=(PutOp(key, piece),), idempotent=True))
    return digest


def get_blob(store: StateStore, digest: str) -> bytes:
    """The content whose SHA-256 is `digest`.

    Raises:
        StoreError: there is no such blob, or it is damaged.
    """
    first = store.get(blob_key(digest, 0))
    if first is None:
        raise StoreError(f"there is no blob {digest} in the state store (any more)")
    try:
        header = decode(first.value, BlobHeader)
    except InvariantViolated as error:
        raise StoreError(f"blob {digest} is damaged: {error}") from error
    packed = bytearray()
    for index in range(1, header.chunks + 1):
        piece = store.get(blob_key(digest, index))
        if piece is None:
            raise StoreError(f"blob {digest} is damaged: chunk {index} is missing")
        packed += piece.value
    data = _unpack(bytes(packed), digest, header.size_bytes)
    if hashlib.sha256(data).hexdigest() != digest:
        raise StoreError(f"blob {digest} is damaged: its content has another hash")
    return data


def list_blobs(store: StateStore) -> tuple[str, ...]:
    """The digests of all blobs, also of those that were not stored to the end."""
    keys = (item.key for item in store.read(BLOBS, keys_only=True).items)
    return tuple(dict.fromkeys(map(blob_of, keys)))


def delete_blob(store: StateStore, digest: str) -> None:
    """Remove a blob, if it is there, all at once."""
    op = DeleteOp(blob_prefix(digest), prefix=True)
    store.commit(Transaction(ops=(op,), idempotent=True))


def _unpack(packed: bytes, digest: str, size_bytes: int) -> bytes:
    if not 0 <= size_bytes <= _MAX_BLOB_BYTES:
        raise StoreError(f"blob {digest} is damaged: its header says {size_bytes} bytes")
    inflate = zlib.decompressobj()
    try:
        data = inflate.decompress(packed, size_bytes + 1)
    except zlib.error as error:
        raise StoreError(f"blob {digest} is damaged: {error}") from error
    return data
