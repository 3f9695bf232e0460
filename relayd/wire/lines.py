"""Lines of a dialogue: commands, and what AUTH exchanges (RFC 5321 2.3.8, 4.5.3.1.4)."""

from __future__ import annotations

from relayd.model import Fault, Reply


class LineReader:
    """Cuts what a client sends into lines.

    :param limit: octets of the longest line, its line ending included. May be changed at any time.
    """

    __slots__ = ("_buffer", "_discarding", "_seen", "_start", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._buffer = bytearray()
        self._start = 0  # of the current line
        self._seen = 0  # no LF that could end the line stands before this
        self._discarding = False

    @property
    def empty(self) -> bool:
        """Whether everything that came was consumed."""
        return self._start == len(self._buffer) and not self._discarding

    def feed(self, octets: bytes) -> None:
        """Take the next octets."""
        if self._start:
            del self._buffer[: self._start]
            self._seen -= self._start
            self._start = 0
        self._buffer += octets

    def take(self) -> bytes:
        """All octets that were not consumed; the reader forgets them."""
        octets = bytes(self._buffer[self._start :])
        self.clear()
        return octets

    def clear(self) -> None:
        """Forget everything that was not consumed."""
        self._buffer = bytearray()
        self._start = self._seen = 0
        self._discarding = False

    def next(self, *, legacy: bool = False) -> bytes | None:
        """The next line without its ending; None: there is no complete one.

        :param legacy: LF alone ends a line too.
        :raises Fault: the line is bad: 500 5.5.6 too long, 500 5.5.2 bare CR, bare LF, NUL. Raised once a line, as soon
            as it is known; the line is dropped to its end, and what follows it can be read.
        """
        while True:
            end = self._buffer.find(b"\n", self._seen)
            if end < 0:
                self._wait()
                return None
            self._seen = end + 1
            ended = end > self._start and self._buffer[end - 1] == 13
            if not ended and not legacy:
                if not self._discarding:
                    self._discarding = True
                    if end - self._start > self.limit:
                        raise _too_long()
                    raise _fault("5.5.2", "Line ended by bare LF; CRLF is required")
                continue
            start, self._start = self._start, end + 1
            if self._discarding:
                self._discarding = False
                continue
            if end + 1 - start > self.limit:
                raise _too_long()
            line = bytes(self._buffer[start : end - 1 if ended else end])
            if b"\r" in line:
                raise _fault("5.5.2", "Bare CR in line")
            if b"\0" in line:
                raise _fault("5.5.2", "NUL in line")
            return line

    def _wait(self) -> None:
        """No LF in sight: drop what need not be held."""
        length = len(self._buffer)
        self._seen = length
        if self._discarding:
            # A CR at the end may be half of the line ending.
            self._start = length - 1 if length > self._start and self._buffer[-1] == 13 else length
        elif length - self._start > self.limit:
            self._discarding = True
            self._wait()
            raise _too_long()


def _fault(enhanced: str, text: str) -> Fault:
    return Fault(Reply.of(500, enhanced, text))


def _too_long() -> Fault:
    return _fault("5.5.6", "Line too long")
