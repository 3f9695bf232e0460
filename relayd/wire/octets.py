"""Which octets of a message may pass: CR and LF only as CRLF, no NUL (RFC 5321 2.3.8, 4.5.2; RFC 5322 4)."""

from __future__ import annotations

import re
from typing import Final

_UNCLEAN: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")
_NAMES: Final = {b"\r": "bare CR", b"\n": "bare LF", b"\0": "NUL"}


class UncleanMessage(ValueError):
    """A message holds octets that must never leave: bare CR, bare LF or NUL."""


def unclean(octets: bytes) -> str:
    """What is wrong with *octets*, by the first octet at fault: ``bare CR``, ``bare LF``, ``NUL``; empty = clean.

    *octets* must neither begin nor end within a CRLF.
    """
    pairs = octets.count(b"\r\n")
    if octets.count(b"\n") == pairs and octets.count(b"\r") == pairs and b"\0" not in octets:
        return ""
    found = _UNCLEAN.search(octets)
    assert found is not None
    return _NAMES[found[0]]
