"""DuckDB's errors as ours: the class by kind, the text without anything of the inside."""

from __future__ import annotations

import re
from typing import Final

import duckdb
import pyarrow as pa

from accel_dask.errors import (
    AccelError,
    ExecutorUnavailable,
    InvalidQuery,
    MemoryLimit,
    QueryCancelled,
    ReadOnly,
    UnsupportedQuery,
)
from accel_dask.model.tenant import MIB, Quota

MAX_TEXT: Final = 400

# Errors from an open result arrive as Arrow's, so the kind is read off the text in both cases.
_KIND = re.compile(r"^\s*([A-Za-z][A-Za-z -]*?) Error: (.*)", re.DOTALL)
_INVALID: Final = frozenset(
    {
        "binder", "parser", "syntax", "catalog", "conversion", "invalid input", "out of range",
        "mismatch type", "expression", "constraint", "decimal", "divide by zero", "invalid type",
        "parameter not resolved", "parameter not allowed", "type", "unknown type", "sequence",
    }
)  # fmt: skip
_UNSUPPORTED: Final = frozenset(
    {
        "permission", "not implemented", "missing extension", "autoload", "http", "network",
        "internal", "dependency", "settings", "invalid configuration", "transactioncontext",
        "executor", "planner", "optimizer", "scheduler",
    }
)  # fmt: skip
_DAMAGE: Final = frozenset({"io", "serialization", "fatal", "connection"})

_SHARD = re.compile(r'"?\bs_[0-9a-f]{8,64}\b"?(\s*\.\s*"?main\b"?)?(\s*\.\s*"?\w+"?)?')
_PATH = re.compile(
    r"(?<![\w)])(?:file://)?(?:\.{0,2}/)+[\w.@+~%-]+(?:/[\w.@+~%-]*)*|\b[\w.-]+\.duckdb\b[.\w]*"
)
_READ_ONLY = re.compile(r"read-only mode")


def clean_text(text: str) -> str:
    """`text` of an engine error without physical SQL, shard names and paths, and not long."""
    text = re.split(r"\n\s*\n?LINE \d+:", text, maxsplit=1)[0]
    text = re.split(r"\n\s*Stack Trace:", text, maxsplit=1)[0]
    text = _PATH.sub("<...>", _SHARD.sub("the table", text))
    text = " ".join(text.split())
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 3] + "..."


def kind_of(error: BaseException) -> tuple[str, str]:
    """The engine's own kind of `error` in lower case, and the text behind it."""
    match = _KIND.match(str(error))
    return (match[1].lower(), match[2]) if match else ("", str(error))


def may_be_broken(error: BaseException) -> bool:
    """Whether the engine itself must be checked after `error`."""
    return kind_of(error)[0] in {"internal", "fatal"}


def is_of_engine(error: BaseException) -> bool:
    """Whether the engine or Arrow raised it, over the query; anything else is our own fault."""
    return isinstance(error, duckdb.Error | pa.ArrowException | OSError | MemoryError)


def translate(error: BaseException, tenant: str, quota: Quota) -> AccelError:
    """The error of our tree for `error`, which is of the engine."""
    kind, text = kind_of(error)
    if kind == "out of memory" or isinstance(error, MemoryError) or "bad_alloc" in text:
        return memory_limit(tenant, quota)
    if kind == "interrupt":
        return QueryCancelled(f"the query of tenant {tenant} was interrupted")
    if _READ_ONLY.search(text):
        return ReadOnly("the statement would change data; only queries are answered here")
    if kind in _INVALID:
        return InvalidQuery(clean_text(text))
    if kind in _UNSUPPORTED:
        return UnsupportedQuery(
            "the engine does not run this query here"
            + (f": {clean_text(text)}" if kind == "not implemented" else f" ({kind} error)")
        )
    if kind in _DAMAGE:
        return ExecutorUnavailable(f"the executor of tenant {tenant} could not read its data")
    return InvalidQuery(
        clean_text(text) or f"the engine refused the query ({type(error).__name__})"
    )


def memory_limit(tenant: str, quota: Quota) -> MemoryLimit:
    return MemoryLimit(
        f"the query needs more memory than tenant {tenant}'s executor has "
        f"({quota.executor_memory_bytes // MIB} MiB); filter or aggregate more, or ask for a "
        "larger executor_memory_bytes"
    )
