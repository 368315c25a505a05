"""The name filters of metadata commands: `%` and `_` as in LIKE, any text otherwise."""

from __future__ import annotations

import re


def matches(pattern: str | None, name: str) -> bool:
    """Whether `name` fits; None fits everything. Some clients send a whole SQL text here to see
    whether it is a table's name, so a long pattern is just one that fits nothing."""
    if pattern is None:
        return True
    if len(pattern) > 256:
        return False
    pieces = (
        {"%": ".*", "_": "."}.get(piece) or re.escape(piece.removeprefix("\\"))
        for piece in re.findall(r"\\.|.", pattern, re.DOTALL)
    )
    return re.fullmatch("".join(pieces), name, re.IGNORECASE | re.DOTALL) is not None


def optional(message: object, field: str) -> str | None:
    """An optional field: absent means no filter, empty means that there must be no name."""
    return getattr(message, field) if message.HasField(field) else None  # type: ignore[attr-defined]
