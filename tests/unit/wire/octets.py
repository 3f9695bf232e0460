"""What the tests of message data share: octets heavy in what matters, cut anywhere, and a plain reader."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

VECTORS = (
    b"\n.\n",
    b"\r.\r",
    b"\r.\n",
    b"\n.\r",
    b"\n.\r\n",
    b"\r\n.\n",
    b"\r.\r\n",
    b"\r\n.\r",
    b"\r\n\0.\r\n",
    b"\r\n.\0\r\n",
    b"\r\n.\r\r\n",
    b"\r\r\n.\r\r\n",
    b"\n\n.\r\n",
)
"""Octets that some servers take for the end of data."""

_PIECES = (b"\r\n", b"\r\n", b"\n", b"\r", b".", b"..", b"\0", b"a", b" ", b"\xff", b"\r\n.", b"\r\n..", *VECTORS)
_REPAIRABLE = (b"\r\n", b"\n", b"\n", b".", b".", b"..", b"a", b"\n.", b"\r\n.", b"\n.\n", b"\n.\r\n", b"\r\n.\n")
_CLEAN = (b"\r\n", b"\r\n", b".", b"..", b"a", b"text", b"\xc3\xa4", b"\r\n.", b"\r\n.\r\n")

raw = st.lists(st.sampled_from(_PIECES), max_size=24).map(b"".join) | st.binary(max_size=64)
"""Anything, and never far from a border case."""

repairable = st.lists(st.sampled_from(_REPAIRABLE)).map(b"".join)
"""What a legacy client may send: no bare CR, no NUL. CRLF.CRLF may be there."""

clean = st.lists(st.sampled_from(_CLEAN)).map(b"".join)
"""What may pass: CR and LF as CRLF alone, no NUL."""

cuts = st.lists(st.integers(0, 12), max_size=60)
"""Sizes of chunks; what they leave over comes in one more."""


def chunks(octets: bytes, sizes: list[int]) -> list[bytes]:
    """*octets* cut into chunks of these sizes, empty ones too."""
    pieces = []
    for size in sizes:
        pieces.append(octets[:size])
        octets = octets[size:]
    pieces.append(octets)
    return pieces


def first_fault(octets: bytes, *, legacy: bool = False) -> str:
    """What is wrong with *octets*, found octet by octet."""
    for at, octet in enumerate(octets):
        if octet == 0:
            return "NUL"
        if octet == 13 and octets[at + 1 : at + 2] != b"\n":
            return "bare CR"
        if octet == 10 and octets[max(at - 1, 0) : at] != b"\r" and not legacy:
            return "bare LF"
    return ""


@dataclass
class Reading:
    """What a reader of DATA makes of a stream. *content* counts only without *fault*; *rest* None: no end yet."""

    content: bytes
    fault: str
    rest: bytes | None


def read_line_by_line(stream: bytes, *, legacy: bool = False) -> Reading:
    """DATA as RFC 5321 4.5.2 tells it: take lines until one is a single dot. Slow, and plain to see."""
    lines: list[bytes] = []
    rest: bytes | None = stream
    while rest:
        line, ending, rest = rest.partition(b"\r\n")
        if line == b"." and ending:
            break
        lines.append(line + ending)
    else:
        rest = None
    raw_content = b"".join(lines)
    if legacy:
        lines = [line for whole in lines for line in _lf_lines(whole)]
    content = b"".join(line[1:] if line[:1] == b"." and line != b".\r\n" else line for line in lines)
    return Reading(content, first_fault(raw_content, legacy=legacy), rest)


def _lf_lines(octets: bytes) -> list[bytes]:
    """The lines in *octets*, each ended by CRLF where it had an LF."""
    *whole, last = octets.replace(b"\r\n", b"\n").split(b"\n")
    return [line + b"\r\n" for line in whole] + ([last] if last else [])


def unframed(octets: bytes) -> tuple[list[bytes], bool]:
    """The chunks of what a :class:`BdatWriter` wrote; whether the last one is the last and nothing follows."""
    parts = []
    last = False
    while octets and not last:
        command, _, octets = octets.partition(b"\r\n")
        verb, size, *rest = command.split(b" ")
        assert verb == b"BDAT"
        parts.append(octets[: int(size)])
        assert len(parts[-1]) == int(size)
        octets = octets[int(size) :]
        last = rest == [b"LAST"]
    return parts, last and not octets
