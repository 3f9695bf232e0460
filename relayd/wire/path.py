"""Reverse-paths and forward-paths (RFC 5321 4.1.2, 4.1.3, 4.5.3.1; RFC 6531 3.3)."""

from __future__ import annotations

import re
import unicodedata
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from relayd.model import NULL_PATH, Fault, Path, Reply

DOMAIN_LIMIT: Final = 255  # octets, RFC 5321 4.5.3.1.2
# Octets with the angle brackets, RFC 5321 4.5.3.1.3. The local part alone has no limit: 64 is what everybody must take,
# and the senders that SRS and VERP make are longer.
PATH_LIMIT: Final = 256

# RFC 5321 4.1.2, RFC 6531 3.3: beyond ASCII all but controls, separators and what else does not print.
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-\x80-\U0010ffff]+"
_DOT_STRING: Final = re.compile(rf"{_ATOM}(?:\.{_ATOM})*")
_QUOTED_STRING: Final = re.compile(r'"(?:[ !#-\[\]-~\x80-\U0010ffff]|\\[ -~])*"')
_LITERAL: Final = re.compile(r"\[[!-Z^-~]*\]")
_DOMAIN: Final = re.compile(r"[A-Za-z0-9_.\-\x80-\U0010ffff]+")
_IDEOGRAPHIC_DOT: Final = re.compile("[\\u3002\\uff0e\\uff61]")  # what IDNA 2003 takes for a dot
# The underscore is no let-dig, but host names of Windows networks hold it.
_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9_])?"
_ASCII_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"  # 63 octets, RFC 1035 2.3.4
_LABELS: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_ASCII_LABELS: Final = re.compile(rf"{_ASCII_LABEL}(?:\.{_ASCII_LABEL})*")


class BadAddress(Fault, ValueError):
    """An address that RFC 5321 does not know. The reply is 501 with the enhanced code of what it was to be."""


class PathParser:
    """Reads one path out of a command's argument.

    :param enhanced: the enhanced code for a bad address: 5.1.7 sender, 5.1.3 recipient (RFC 3463 3.2).
    """

    __slots__ = ("_enhanced", "at", "routed", "text")

    def __init__(self, text: str, at: int = 0, *, enhanced: str = "5.1.3") -> None:
        self.text = text
        self.at = at  # what comes next
        self.routed = False  # whether a source route stood before the mailbox, and was dropped
        self._enhanced = enhanced

    def path(self, *, bare: bool = False) -> Path:
        """``<…>`` with a mailbox, a local part alone, or nothing.

        :param bare: the angle brackets may be missing.
        :raises BadAddress:
        """
        if bare and not self._sees("<"):
            return self.mailbox()
        self._take("<")
        if self._sees(">"):
            self.at += 1
            return NULL_PATH
        if self._sees("@"):
            self._source_route()
        path = self.mailbox()
        self._take(">")
        return path

    def mailbox(self) -> Path:
        """``local@domain``, or a local part alone."""
        local = self._local()
        domain = ""
        if self._sees("@"):
            self.at += 1
            domain = self._domain()
        path = Path(local, domain)
        if len(str(path).encode()) + 2 > PATH_LIMIT:
            raise self.fault("address too long")
        return path

    def fault(self, what: str) -> BadAddress:
        kind = "sender" if self._enhanced == "5.1.7" else "recipient"
        return BadAddress(Reply.of(501, self._enhanced, f"Bad {kind} address: {what}"))

    def _sees(self, character: str) -> bool:
        return self.text.startswith(character, self.at)

    def _take(self, character: str) -> None:
        if not self._sees(character):
            raise self.fault(f"{character} expected")
        self.at += 1

    def _source_route(self) -> None:
        """``@a,@b:`` (RFC 5321 4.1.2, appendix C): checked, and dropped."""
        while True:
            self._take("@")
            self._domain()
            if not self._sees(","):
                break
            self.at += 1
        self._take(":")
        self.routed = True

    def _local(self) -> str:
        pattern = _QUOTED_STRING if self._sees('"') else _DOT_STRING
        match = pattern.match(self.text, self.at)
        if match is None:
            raise self.fault("malformed local part")
        local = match[0]
        if not local.isascii() and not local.isprintable():
            raise self.fault("malformed local part")
        self.at = match.end()
        return local

    def _domain(self) -> str:
        literal = self._sees("[")
        match = (_LITERAL if literal else _DOMAIN).match(self.text, self.at)
        if match is None:
            raise self.fault("malformed domain")
        domain = match[0]
        if len(domain.encode()) > DOMAIN_LIMIT:
            raise self.fault("domain too long")
        if not (is_address_literal(domain) if literal else is_domain(domain)):
            raise self.fault("malformed address literal" if literal else "malformed domain")
        self.at = match.end()
        return domain


def is_domain(text: str) -> bool:
    """Whether *text* is a domain of A-labels, U-labels and plain labels (RFC 5321 4.1.2, RFC 6531 3.3)."""
    if text.isascii():
        return _ASCII_LABELS.fullmatch(text) is not None
    # What look-up folds must not turn into a dot, an @ or a slash: ideographic full stop, full-width forms, ligatures.
    folded = unicodedata.normalize("NFKC", text)
    if folded.count(".") != text.count(".") or not folded.isprintable() or _IDEOGRAPHIC_DOT.search(text):
        return False
    plain = "".join("x" if character > "\x7f" else character for character in folded)
    return _LABELS.fullmatch(plain) is not None


def is_address_literal(text: str) -> bool:
    """Whether *text* is ``[192.0.2.1]`` or ``[IPv6:2001:db8::1]`` (RFC 5321 4.1.3). No other kind is in use."""
    inner = text[1:-1]
    try:
        if inner[:5].upper() == "IPV6:":
            return "%" not in inner and bool(IPv6Address(inner[5:]))
        return bool(IPv4Address(inner))
    except ValueError:
        return False


def parse_address(text: str) -> Path:
    """The path of a plain address as administrators and headers write it: ``alice@example.org``, UTF-8 or not.

    A local part alone is a path without domain.

    :raises BadAddress: which is a :class:`ValueError` too.
    """
    parser = PathParser(text)
    path = parser.mailbox()
    if parser.at != len(text):
        raise parser.fault("malformed")
    return path
