"""The parameters of MAIL and RCPT (RFC 5321 4.1.2, 1870, 6152, 6531, 3461, 4954)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from relayd.model import Body, Fault, Reply
from relayd.wire.path import parse_address
from relayd.wire.xtext import decode_utf8_xtext, decode_xtext

# RFC 5321 4.1.2; RFC 6531 3.3 adds what is beyond ASCII.
_PARAMETER: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*)(?:=([!-<>-~\x80-\U0010ffff]+))?")
_SIZE: Final = re.compile(r"[0-9]{1,20}")  # RFC 1870 4
_ATOM: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+")
_ENVID_LIMIT: Final = 100  # characters of xtext, RFC 3461 4.4
_ORCPT_LIMIT: Final = 500  # RFC 3461 4.2
_NOTIFY: Final = frozenset({"SUCCESS", "FAILURE", "DELAY"})


def bad_parameter(text: str, detail: str = "") -> Fault:
    """The fault for a parameter that is known and wrong."""
    return Fault(Reply.of(501, "5.5.4", text), detail)


def parse_parameters(text: str, known: Mapping[str, bool]) -> dict[str, str]:
    """The parameters in *text*, by upper-case keyword; the value is empty where none may stand.

    :param text: what comes behind the path, with the blank before it.
    :param known: the keywords that are offered, and whether each takes a value.
    :raises Fault: 555 5.5.4 not known, 501 5.5.4 malformed or given twice.
    """
    if not text:
        return {}
    if text[0] != " ":
        raise bad_parameter("Blank expected after the address")
    found: dict[str, str] = {}
    for word in text.split(" "):
        if not word:
            continue
        match = _PARAMETER.fullmatch(word)
        if match is None:
            raise bad_parameter("Malformed parameter")
        keyword, value = match[1].upper(), match[2]
        if keyword not in known:
            raise Fault(Reply.of(555, "5.5.4", "Parameter not recognized or not implemented"), keyword)
        if keyword in found:
            raise bad_parameter(f"{keyword} given twice")
        if (value is not None) != known[keyword]:
            raise bad_parameter(f"{keyword} needs a value" if known[keyword] else f"{keyword} takes no value")
        found[keyword] = value or ""
    return found


def size(value: str) -> int:
    """SIZE, octets (RFC 1870)."""
    if not _SIZE.fullmatch(value):
        raise bad_parameter("Malformed SIZE")
    return int(value)


def body(value: str) -> Body:
    """BODY (RFC 6152). BINARYMIME (RFC 3030) is not offered."""
    try:
        return Body(value.upper())
    except ValueError:
        raise bad_parameter("Unsupported BODY type") from None


def ret(value: str) -> str:
    """RET (RFC 3461 4.3)."""
    if value.upper() not in ("FULL", "HDRS"):
        raise bad_parameter("Malformed RET")
    return value.upper()


def envid(value: str) -> str:
    """ENVID, decoded (RFC 3461 4.4)."""
    if len(value) > _ENVID_LIMIT:
        raise bad_parameter("ENVID too long")
    try:
        return decode_xtext(value)
    except ValueError:
        raise bad_parameter("Malformed ENVID") from None


def auth(value: str) -> str:
    """AUTH, decoded: a mailbox, or empty for ``<>`` (RFC 4954 5; RFC 6533 3 for what is beyond ASCII)."""
    for decode in (decode_xtext, decode_utf8_xtext):
        try:
            mailbox = decode(value)
            return "" if mailbox == "<>" else str(parse_address(mailbox))
        except ValueError:
            continue
    raise bad_parameter("Malformed AUTH")


def notify(value: str) -> frozenset[str]:
    """NOTIFY (RFC 3461 4.1)."""
    items = value.upper().split(",")
    if items == ["NEVER"]:
        return frozenset(items)
    if not _NOTIFY.issuperset(items) or len(set(items)) != len(items):
        raise bad_parameter("Malformed NOTIFY")
    return frozenset(items)


def orcpt(value: str) -> str:
    """ORCPT: type, semicolon, address decoded (RFC 3461 4.2, RFC 6533 3)."""
    kind, semicolon, address = value.partition(";")
    if len(value.encode()) > _ORCPT_LIMIT:
        raise bad_parameter("ORCPT too long")
    if not semicolon or not address or not _ATOM.fullmatch(kind):
        raise bad_parameter("Malformed ORCPT")
    try:
        decoded = decode_utf8_xtext(address) if kind.lower() == "utf-8" else decode_xtext(address)
    except ValueError:
        raise bad_parameter("Malformed ORCPT") from None
    return f"{kind};{decoded}"
