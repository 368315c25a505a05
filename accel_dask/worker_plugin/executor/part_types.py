"""The engine's own types of a part's columns, which Arrow alone does not keep.

Several of them arrive as something near (a HUGEINT as a DECIMAL, a UUID as text). A part's schema
names those in its metadata, and the executor that asked casts them back: a part that is read from
a peer has the very types that it would have if it were read here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from accel_dask.codec import decode, encode
from accel_dask.errors import UnsupportedQuery

_KEY: Final = b"accel.types"
_QUOTED: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"")
_CAST_BACK: Final = re.compile(r"\b(?:HUGEINT|UUID|JSON|ENUM)\b")
_LOST: Final = re.compile(r"\b(?:UHUGEINT|BIT|TIME WITH TIME ZONE)\b")


def with_types(schema: pa.Schema, types: Sequence[object]) -> pa.Schema:
    """`schema`, which says what the engine's `types` of its columns are, where it must.

    Raises:
        UnsupportedQuery: values of one of them do not survive the way.
    """
    texts = [str(kind) for kind in types]
    bare = [_QUOTED.sub("", text) for text in texts]
    for name, text in zip(schema.names, bare, strict=True):
        lost = _LOST.search(text)
        if lost:
            raise UnsupportedQuery(
                f"column {name} of type {lost[0]} cannot be gathered from several executors; "
                "cast it to VARCHAR"
            )
    if not any(map(_CAST_BACK.search, bare)):
        return schema
    told = [text if _CAST_BACK.search(b) else "" for text, b in zip(texts, bare, strict=True)]
    return schema.with_metadata({_KEY: encode(told)})


def types_to_cast(schema: pa.Schema) -> list[str] | None:
    """A type per column, empty where there is nothing to do; None: nothing to do at all."""
    told = (schema.metadata or {}).get(_KEY)
    return None if told is None else decode(told, list[str])


def typed_columns(schema: pa.Schema, types: Sequence[str]) -> str:
    """The select list that casts the columns of `schema` back to `types`."""
    columns = []
    for position, (name, kind) in enumerate(zip(schema.names, types, strict=True), start=1):
        quoted = '"' + name.replace('"', '""') + '"'
        value = f"CAST(#{position} AS {kind})" if kind else f"#{position}"
        columns.append(f"{value} AS {quoted}")
    return ", ".join(columns)
