"""Trace information: the Received field (RFC 5321 4.4, RFC 5322 3.6.7), and where the header ends."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from email.utils import format_datetime, formatdate
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final

from relayd.wire.path import BadAddress, is_address_literal, is_domain, parse_address

_RECEIVED: Final = re.compile(rb"^received[ \t]*:", re.IGNORECASE | re.MULTILINE)
_ATOM: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]+")
_COMMENT_LIMIT: Final = 255  # characters of anything in a comment


def received_header(
    *,
    helo: str,
    client: str,
    names: tuple[str, ...],
    by: str,
    with_: str,
    message_id: str,
    tls: str,
    principal: str,
    recipient: str | None,
    at: float,
) -> bytes:
    """The Received field of a message that was accepted, folded, CRLF at its end.

    Whatever the client had a hand in is written as a domain only where it is one; else it stands in a comment,
    without the characters that have a meaning there.

    :param helo: what the client called itself.
    :param client: its address.
    :param names: its confirmed names; the first is shown.
    :param by: who received it.
    :param with_: the protocol (RFC 3848, RFC 6531 4.3): ``ESMTPSA``. Only ``UTF8…`` lets anything but ASCII into
        the field.
    :param message_id: the queue id.
    :param tls: version and cipher, or empty.
    :param principal: who authenticated, or empty.
    :param recipient: the one recipient; None where there are several, which must not learn of each other.
    :param at: when, seconds since the epoch.
    """
    utf8 = with_.upper().startswith("UTF8")
    literal = _literal(client)
    name = next((name for name in names if _is_host(name, utf8=utf8)), "")
    info = " ".join(part for part in (name, literal) if part)
    if _is_host(helo, utf8=utf8):
        source = helo
        comment = info
    else:
        source = literal or name or "unknown"
        comment = ", ".join(part for part in (_comment(f"helo={helo}", utf8=utf8) if helo else "", name) if part)
    lines = [f"Received: from {source}" + (f" ({comment})" if comment else "")]
    received = f"by {by if _is_host(by, utf8=utf8) else 'unknown'} with {_atom(with_)}"
    if tls:
        received += f" ({_comment(tls, utf8=utf8)})"
    lines.append(received)
    if principal:
        lines.append(f"(authenticated as {_comment(principal, utf8=utf8)})")
    last = f"id {_atom(message_id)}"
    if recipient is not None and _is_recipient(recipient, utf8=utf8):
        last += f" for <{recipient}>"
    lines.append(f"{last};")
    lines.append(_date(int(at)))
    return "\r\n\t".join(lines).encode() + b"\r\n"


def submitted_header(*, by: str, message_id: str, at: float) -> bytes:
    """The Received field of a message that came as a file, CRLF at its end (RFC 5321 4.4: no From clause is known).

    :param by: who took it.
    :param message_id: the queue id.
    :param at: when, seconds since the epoch.
    """
    host = by if _is_host(by, utf8=False) else "unknown"
    return f"Received: by {host} (pickup)\r\n\tid {_atom(message_id)};\r\n\t{_date(int(at))}\r\n".encode()


def missing_fields(header: bytes, hostname: str, message_id: str, at: float) -> bytes:
    """The Date and Message-ID that a header section lacks (RFC 6409 8.1, 8.3).

    :param at: when it was received, seconds since the epoch.
    """
    lowered = b"\r\n" + header.lower()
    added = b""
    if b"\r\ndate:" not in lowered:
        added += f"Date: {formatdate(at, localtime=True)}\r\n".encode()
    if b"\r\nmessage-id:" not in lowered:
        added += f"Message-ID: <{message_id}@{hostname}>\r\n".encode()
    return added


@lru_cache(maxsize=16)
def _date(at: int) -> str:
    return format_datetime(datetime.fromtimestamp(at, UTC))


@lru_cache(maxsize=1024)
def _literal(client: str) -> str:
    try:
        address = ip_address(client.partition("%")[0])
    except ValueError:
        return ""
    return f"[IPv6:{address}]" if isinstance(address, IPv6Address) else f"[{address}]"


@lru_cache(maxsize=1024)
def _is_host(text: str, *, utf8: bool) -> bool:
    if not text or len(text) > _COMMENT_LIMIT or not (utf8 or text.isascii()):
        return False
    return is_address_literal(text) if text[0] == "[" and text[-1] == "]" else is_domain(text)


def _is_recipient(text: str, *, utf8: bool) -> bool:
    try:
        parse_address(text)
    except BadAddress:
        return False
    return utf8 or text.isascii()


def _comment(text: str, *, utf8: bool) -> str:
    """*text* fit for a comment (RFC 5322 3.2.2)."""
    return "".join(
        "?"
        if character in "()" or not character.isprintable() or not (utf8 or character.isascii())
        else "\\\\"
        if character == "\\"
        else character
        for character in text[:_COMMENT_LIMIT]
    )


def _atom(text: str) -> str:
    return text if _ATOM.fullmatch(text) else "unknown"


def count_received(header: bytes) -> int:
    """How many Received fields there are in *header*: the hops a message has made (RFC 5321 6.3)."""
    return len(_RECEIVED.findall(header))


def header_block(octets: bytes) -> bytes:
    """The header at the start of a message up to and including the empty line; all of *octets* where there is none."""
    if octets.startswith(b"\r\n"):
        return octets[:2]
    end = octets.find(b"\r\n\r\n")
    return octets if end < 0 else octets[: end + 4]
