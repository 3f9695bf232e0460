"""The content of DATA (RFC 5321 4.1.1.4, 4.5.2), in bulk over chunks.

Both directions hold back the few octets at the end of a chunk whose meaning the next chunk decides, so that
whatever is checked and replaced never spans two chunks. A stream starts as if a CRLF stood before it: thus a dot
that is the very first octet is a dot at the start of a line.
"""

from __future__ import annotations

import re
from typing import Final

from relayd.wire.octets import UncleanMessage, bare_lf_to_crlf, clean, fault

_LINE_START: Final = b"\r\n"  # stands before the first octet of a stream; never given out
_END: Final = b"\r\n.\r\n"

# Compiled literals are found, and replaced, up to twice as fast as by bytes.find and bytes.replace.
_DOT: Final = re.compile(rb"\r\n\.")
_TERMINATOR: Final = re.compile(rb"\r\n\.\r\n")

# Ends of a chunk that may begin something: the terminator, or, from a legacy client, a line with a dot.
_STRICT_HOLDS: Final = (b"\r\n.\r", b"\r\n.", b"\r\n", b"\r")
_LEGACY_HOLDS: Final = (*_STRICT_HOLDS, b"\n.\r", b"\n.", b"\n")


class DataReader:
    """Reads what follows the 354 to DATA, up to its end: CRLF.CRLF and nothing else.

    :param legacy: repair bare LF to CRLF. A line that holds one dot alone, and does not end DATA, stays as it is.
    :ivar fault: empty, or what was wrong first: ``bare CR``, ``bare LF``, ``NUL``. The message is to be read to its
        end and then refused; from the fault on there is no content.
    """

    __slots__ = ("_first", "_held", "_holds", "_legacy", "fault")

    def __init__(self, *, legacy: bool = False) -> None:
        self.fault = ""
        self._legacy = legacy
        self._holds = _LEGACY_HOLDS if legacy else _STRICT_HOLDS
        self._held = _LINE_START
        self._first = True

    def feed(self, octets: bytes) -> tuple[bytes, bytes | None]:
        """Take the next octets.

        :returns: content, un-dot-stuffed; and None as long as the end was not seen, else what came behind it.
            The reader is used up then.
        """
        octets = self._held + octets
        dot = _DOT.search(octets)
        end = _TERMINATOR.search(octets, dot.start()) if dot else None
        rest: bytes | None
        if end:
            rest = octets[end.end() :]
            octets = octets[: end.start() + 2]
            self._held = b""
        else:
            rest = None
            self._held = held = next((hold for hold in self._holds if octets.endswith(hold)), b"")
            if held:
                octets = octets[: -len(held)]
        if self.fault or not octets:
            return b"", rest
        content = self._decode(octets, dot is not None)
        if self._first:
            self._first = False
            content = content[len(_LINE_START) :]
        return content, rest

    def _decode(self, octets: bytes, dots: bool) -> bytes:
        if not clean(octets):
            self.fault = fault(octets, legacy=self._legacy)
            if self.fault:
                return b""
        elif not dots:
            return octets
        elif not octets.endswith(b"\n."):
            return _DOT.sub(b"\r\n", octets)
        return _unstuff_lines(octets)


def _unstuff_lines(octets: bytes) -> bytes:
    """Remove the dot-stuffing from lines that end in CRLF or LF, and end them all in CRLF.

    :param octets: what follows a final dot, and was held back, is the end of its line.
    """
    octets = octets.replace(b"\r\n", b"\n")
    if b"\n." in octets:
        # Dots that stand alone are doubled first. Neighbours share a line end: the second time finds the rest.
        for _ in range(2):
            octets = octets.replace(b"\n.\n", b"\n..\n")
        if octets.endswith(b"\n."):
            octets += b"."
        octets = octets.replace(b"\n.", b"\n")
    return bare_lf_to_crlf(octets)


class DataWriter:
    """Makes of a message what is sent after 354: dot-stuffed, ended by CRLF.CRLF.

    After :class:`UncleanMessage` only one thing is safe: to drop the connection, since what was written before
    has gone, and the end of data must not follow it.
    """

    __slots__ = ("_first", "_held")

    def __init__(self) -> None:
        self._held = _LINE_START
        self._first = True

    def write(self, octets: bytes) -> bytes:
        """The next octets to send.

        :raises UncleanMessage: bare CR, bare LF or NUL.
        """
        octets = self._held + octets
        self._held = held = b"\r\n" if octets.endswith(b"\r\n") else b"\r" if octets.endswith(b"\r") else b""
        if held:
            octets = octets[: -len(held)]
        if not octets:
            return b""
        if not clean(octets):
            raise UncleanMessage(fault(octets))
        octets = _DOT.sub(b"\r\n..", octets)
        if self._first:
            self._first = False
            octets = octets[len(_LINE_START) :]
        return octets

    def finish(self) -> bytes:
        """What ends the message, with the CRLF that its last line may lack.

        :raises UncleanMessage: the message ended in a bare CR.
        """
        if self._held == b"\r":
            raise UncleanMessage("bare CR")
        return b".\r\n" if self._first else _END
