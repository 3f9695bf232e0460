"""The chunks of BDAT (RFC 3030), both ways. BINARYMIME is neither offered nor used, so they obey DATA's octet rules."""

from __future__ import annotations

from relayd.wire.octets import UncleanMessage, bare_lf_to_crlf, clean, fault


class BdatReader:
    """Reads one message that comes in counted chunks.

    :param legacy: repair bare LF to CRLF.
    :ivar fault: as in :class:`relayd.wire.data.DataReader`. Chunks are to be read to their ends all the same.
    """

    __slots__ = ("_complete", "_held", "_left", "_legacy", "fault")

    def __init__(self, *, legacy: bool = False) -> None:
        self.fault = ""
        self._legacy = legacy
        self._left = 0
        self._held = b""
        self._complete = True  # what was given out so far ends a line

    def start(self, size: int) -> None:
        """A BDAT command announced *size* octets."""
        self._left = size

    def feed(self, octets: bytes) -> tuple[bytes, bytes | None]:
        """Take the next octets.

        :returns: content; and None as long as the chunk is not complete, else what came behind it.
        """
        rest = octets[self._left :] if len(octets) >= self._left else None
        octets = octets[: self._left]
        self._left -= len(octets)
        return self._content(octets), rest

    def _content(self, octets: bytes) -> bytes:
        if self.fault or not octets:
            return b""
        octets = self._held + octets
        self._held = b"\r" if octets.endswith(b"\r") else b""
        if self._held:
            octets = octets[:-1]
        if not octets:
            return b""
        if not clean(octets):
            self.fault = fault(octets, legacy=self._legacy)
            if self.fault:
                return b""
            octets = bare_lf_to_crlf(octets)
        self._complete = octets.endswith(b"\r\n")
        return octets

    def finish(self) -> bytes:
        """After the chunk marked LAST: the CRLF that the message lacks, or nothing. May set *fault*."""
        if self._held and not self.fault:
            self.fault = "bare CR"
        return b"" if self.fault or self._complete else b"\r\n"


class BdatWriter:
    """Makes of a message what is sent where CHUNKING is offered: counted chunks, and no end of data to look for.

    After :class:`UncleanMessage` the connection must be dropped, or the chunks so far be the whole message.

    :ivar chunks: how many were made.
    """

    __slots__ = ("_complete", "_held", "chunks")

    def __init__(self) -> None:
        self.chunks = 0
        self._held = b""
        self._complete = True  # what was written so far ends a line

    def write(self, octets: bytes) -> bytes:
        """The next chunk, with its command; empty where nothing is to be sent yet.

        :raises UncleanMessage: bare CR, bare LF or NUL.
        """
        octets = self._checked(octets)
        return self._chunk(octets, b"") if octets else b""

    def finish(self) -> bytes:
        """The last chunk: the CRLF that the last line may lack, or nothing.

        :raises UncleanMessage: the message ended in a bare CR.
        """
        if self._held:
            raise UncleanMessage("bare CR")
        return self._chunk(b"" if self._complete else b"\r\n", b" LAST")

    def whole(self, octets: bytes) -> bytes:
        """All of a message in one chunk.

        :raises UncleanMessage: as :meth:`write` and :meth:`finish`.
        """
        octets = self._checked(octets)
        if self._held:
            raise UncleanMessage("bare CR")
        return self._chunk(octets if self._complete else octets + b"\r\n", b" LAST")

    def _checked(self, octets: bytes) -> bytes:
        octets = self._held + octets
        self._held = b"\r" if octets.endswith(b"\r") else b""
        if self._held:
            octets = octets[:-1]
        if octets:
            if not clean(octets):
                raise UncleanMessage(fault(octets))
            self._complete = octets.endswith(b"\r\n")
        return octets

    def _chunk(self, octets: bytes, last: bytes) -> bytes:
        self.chunks += 1
        return b"BDAT %d%b\r\n%b" % (len(octets), last, octets)
