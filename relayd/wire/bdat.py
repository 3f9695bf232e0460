"""The chunks of BDAT (RFC 3030). BINARYMIME is not offered, so they obey the octet rules of DATA."""

from __future__ import annotations

from relayd.wire.octets import bare_lf_to_crlf, clean, fault


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
