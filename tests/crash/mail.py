"""Messages that can be known again: each is a function of its token and size, so its receiver can check it whole."""

from __future__ import annotations

import re

__all__ = ["START", "content", "recognise"]

START = b"X-Token: "
_HEADER = re.compile(rb"X-Token: ([0-9a-z-]+)\r\nX-Size: ([0-9]+)\r\n\r\n")


def content(token: str, size: int) -> bytes:
    """A message that carries *token*, with a body of *size* octets or a little more; no line starts with a dot."""
    line = f"{token} {'.' * (74 - len(token))}\r\n".encode()
    return b"X-Token: %s\r\nX-Size: %d\r\n\r\n" % (token.encode(), size) + line * -(-size // len(line))


def recognise(received: bytes) -> str | None:
    """The token of a message that came whole and unchanged below the fields that relays put on top; else None."""
    start = received.find(START)
    header = _HEADER.match(received, start) if start >= 0 else None
    if header is None:
        return None
    token, size = header[1].decode(), int(header[2])
    return token if received[start:] == content(token, size) else None
