"""JSON lines between a host and its executors."""

from __future__ import annotations

from typing import Any

import msgspec

Message = dict[str, Any]

_ENCODER = msgspec.json.Encoder()
_DECODER = msgspec.json.Decoder(Message)


def to_line(message: Message) -> bytes:
    return _ENCODER.encode(message) + b"\n"


class LineBuffer:
    """Bytes in, whole messages out."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def feed(self, data: bytes) -> list[Message]:
        """The messages that `data` completes."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._rest, lines[0]))
            self._rest = []
        self._rest.append(rest)
        return [_DECODER.decode(line) for line in lines if line]
