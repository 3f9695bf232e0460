"""Replies, both ways (RFC 5321 4.2, RFC 2034)."""

from __future__ import annotations

import re
from typing import Final

from relayd.model import Fault, Reply

LINE_LIMIT: Final = 512  # octets with CRLF, RFC 5321 4.5.3.1.5

_CONTROLS: Final = dict.fromkeys((*range(32), *range(127, 160), 8232, 8233), "?")
_ENHANCED: Final = re.compile(r"[245]\.[0-9]{1,3}\.[0-9]{1,3}")
_LINE: Final = re.compile(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", re.DOTALL)
_LINES_LIMIT: Final = 512


def encode_reply(reply: Reply) -> bytes:
    """*reply* as it goes over the wire.

    Controls become ``?``. A text too long for a line goes on in a further line of the same reply; only a challenge
    (334) stays on its one line, however long it is (RFC 4954 4).

    :raises ValueError: the code or the enhanced code is none.
    """
    if not 200 <= reply.code <= 599 or (reply.enhanced and not _ENHANCED.fullmatch(reply.enhanced)):
        raise ValueError(f"no reply code: {reply.code} {reply.enhanced}")
    enhanced = f"{reply.enhanced} ".encode() if reply.enhanced else b""
    room = LINE_LIMIT - len("250 \r\n") - len(enhanced)
    texts: list[bytes] = []
    for line in reply.lines or ("",):
        text = line if line.isascii() and line.isprintable() else line.translate(_CONTROLS)
        octets = text.encode("utf-8", "replace")
        if len(octets) <= room or reply.code == 334:
            texts.append(octets)
        else:
            texts += _wrap(octets, room)
    code = b"%d" % reply.code
    parts = [b"%b-%b%b\r\n" % (code, enhanced, text) for text in texts[:-1]]
    parts.append(b"%b %b%b\r\n" % (code, enhanced, texts[-1]))
    return b"".join(parts)


def _wrap(text: bytes, room: int) -> list[bytes]:
    """*text* in pieces of *room* octets at most, cut at blanks where there are any, never inside a character."""
    pieces = []
    while len(text) > room:
        cut = text.rfind(b" ", 1, room + 1)
        if cut > 0:
            pieces.append(text[:cut])
            text = text[cut + 1 :]
            continue
        cut = room
        while text[cut] & 0xC0 == 0x80:
            cut -= 1
        pieces.append(text[:cut])
        text = text[cut:]
    pieces.append(text)
    return pieces


class ReplyReader:
    """Reads what a server answers. LF alone ends a line too.

    :param limit: octets of the longest reply, all its lines together.
    """

    __slots__ = ("_buffer", "_fault", "_limit", "_lines", "_seen", "_size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._seen = 0  # no LF stands before this
        self._lines: list[tuple[int, str]] = []  # of the reply that is not complete
        self._size = 0  # octets of these lines
        self._fault: Fault | None = None

    @property
    def empty(self) -> bool:
        """Whether nothing came behind the last complete reply: to be asked after the 220 to STARTTLS."""
        return not self._buffer and not self._lines and self._fault is None

    def feed(self, octets: bytes) -> list[Reply]:
        """Take the next octets.

        :returns: the replies that they complete. Those that stand before something unreadable are returned first;
            the fault is raised by the next call, and by each one after it.
        :raises Fault: 451 4.5.0: this is no SMTP reply, or it is too long. The connection is of no more use.
        """
        if self._fault is not None:
            raise self._fault
        self._buffer += octets
        replies: list[Reply] = []
        try:
            self._read(replies)
        except Fault as fault:
            self._fault = fault
            self._buffer.clear()
            if not replies:
                raise
        return replies

    def _read(self, replies: list[Reply]) -> None:
        start = 0
        while (end := self._buffer.find(b"\n", max(start, self._seen))) >= 0:
            line = bytes(self._buffer[start:end])
            self._size += end + 1 - start
            start = end + 1
            if self._size > self._limit or len(self._lines) >= _LINES_LIMIT:
                raise _unreadable("Reply too long", line)
            if (reply := self._line(line.rstrip(b"\r"))) is not None:
                replies.append(reply)
                self._size = 0
                self._lines = []
        del self._buffer[:start]
        self._seen = len(self._buffer)
        if self._size + self._seen > self._limit:
            raise _unreadable("Reply too long", bytes(self._buffer))

    def _line(self, line: bytes) -> Reply | None:
        match = _LINE.fullmatch(line)
        if match is None:
            raise _unreadable("Not an SMTP reply", line)
        code = int(match[1])
        if self._lines and self._lines[0][0] != code:
            raise _unreadable("Reply with two codes", line)
        text = (match[3] or b"").decode("utf-8", "replace").translate(_CONTROLS)
        self._lines.append((code, text))
        return None if match[2] == b"-" else _reply(code, [text for _, text in self._lines])


def _reply(code: int, lines: list[str]) -> Reply:
    """The reply, with the enhanced code taken off its lines where its class is that of the code (RFC 2034 4)."""
    enhanced = ""
    match = _ENHANCED.match(lines[0])
    if match and match[0][0] == str(code)[0] and lines[0][match.end() : match.end() + 1] in ("", " "):
        enhanced = match[0]
        lines = [
            line[len(enhanced) + 1 :] if line == enhanced or line.startswith(f"{enhanced} ") else line for line in lines
        ]
    return Reply(code, enhanced, tuple(lines))


def _unreadable(text: str, line: bytes) -> Fault:
    return Fault(Reply.of(451, "4.5.0", text), repr(line[:200]))
