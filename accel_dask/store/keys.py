"""How paths and blobs are spelled as keys of the store; the only file that knows."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote, unquote

from accel_dask.model.ids import Path

RECORDS: Final = "record/"
"""All records lie under it, so that listing and watching them does not touch the blobs."""
BLOBS: Final = "blob/"

_EMPTY_SEGMENT: Final = "%"
"""Stands for an empty segment; a percent sign alone is never the result of an escape."""


def key_of(path: Path) -> str:
    """The key of the record at `path`. Segments are percent-escaped."""
    return RECORDS + "/".join(_escape(segment) for segment in path)


def keys_under(path: Path) -> str:
    """The prefix of the keys of all records whose path goes on after `path`."""
    return key_of(path) + "/" if path else RECORDS


def path_of(key: str) -> Path | None:
    """The path whose key is `key`; None if no path has it (a blob, or foreign)."""
    if not key.startswith(RECORDS):
        return None
    try:
        path = tuple(_unescape(segment) for segment in key[len(RECORDS) :].split("/"))
        return path if key_of(path) == key else None
    except UnicodeError:
        return None


def blob_key(digest: str, index: int) -> str:
    """The key of a blob's chunk. Chunk 0 is its header."""
    return f"{blob_prefix(digest)}{index}"


def blob_prefix(digest: str) -> str:
    """What the keys of a blob's chunks begin with."""
    return f"{BLOBS}{digest}/"


def blob_of(key: str) -> str:
    """The digest of the blob that the chunk at `key` belongs to."""
    return key.removeprefix(BLOBS).partition("/")[0]


def _escape(segment: str) -> str:
    return quote(segment, safe="", errors="surrogatepass") or _EMPTY_SEGMENT


def _unescape(segment: str) -> str:
    return "" if segment == _EMPTY_SEGMENT else unquote(segment, errors="surrogatepass")
