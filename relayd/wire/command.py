"""Commands as a server reads them (RFC 5321 4.1.1)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from relayd.model import Body, Fault, Path, Recipient, Reply, Sender
from relayd.wire import parameters
from relayd.wire.path import BadAddress, PathParser

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BDAT: Final = re.compile(rb"([0-9]{1,20})(?:[ \t]+(LAST))?", re.IGNORECASE)
_HELLO_LIMIT: Final = 255  # octets


def parse_command(line: bytes) -> tuple[str, bytes]:
    """The verb in upper case, and the argument without the blanks around it.

    :raises Fault: 500 5.5.2: no verb, or one that is not printable ASCII.
    """
    verb, _, argument = line.strip(b" \t").partition(b" ")
    if b"\t" in verb:
        verb, _, argument = line.strip(b" \t").partition(b"\t")
    text = verb.decode("ascii", "replace")
    if not text or not text.isascii() or not text.isprintable():
        raise Fault(Reply.of(500, "5.5.2", "Command not recognized"))
    return text.upper(), argument.strip(b" \t")


def parse_hello(argument: bytes) -> str:
    """What a client calls itself in EHLO or HELO: anything, or nothing; only Received and the log show it.

    :raises Fault: 501 5.5.4: controls, or more than 255 octets.
    """
    name = argument.decode("utf-8", "replace")
    if len(argument) > _HELLO_LIMIT or _CONTROL.search(name):
        raise Fault(Reply.of(501, "5.5.4", "Invalid host name"))
    return name


_MAIL: Final[Mapping[str, bool]] = {"BODY": True, "AUTH": True}
_MAIL_DSN: Final[Mapping[str, bool]] = {"RET": True, "ENVID": True}
_RCPT_DSN: Final[Mapping[str, bool]] = {"NOTIFY": True, "ORCPT": True}


def parse_mail(
    argument: bytes, *, legacy: bool = False, smtputf8: bool = True, size: bool = True, dsn: bool = True
) -> Sender:
    """The argument of MAIL.

    :param legacy: the address may stand without angle brackets, and blanks before the colon.
    :param smtputf8: whether SMTPUTF8 was offered; likewise *size* and *dsn*.
    :raises Fault: 501 5.5.4 syntax, 501 5.1.7 address, 553 5.6.7 UTF-8 without SMTPUTF8, 555 5.5.4 parameter not known.
    """
    known = dict(_MAIL)
    if smtputf8:
        known["SMTPUTF8"] = False
    if size:
        known["SIZE"] = True
    if dsn:
        known.update(_MAIL_DSN)
    parser, path = _path(argument, "FROM", legacy=legacy, enhanced="5.1.7")
    found = parameters.parse_parameters(parser.text[parser.at :], known)
    utf8 = "SMTPUTF8" in found
    if not utf8 and not parser.text.isascii():
        raise _needs_smtputf8()
    return Sender(
        path=path,
        size=parameters.size(found["SIZE"]) if "SIZE" in found else 0,
        body=parameters.body(found["BODY"]) if "BODY" in found else Body.SEVEN_BIT,
        smtputf8=utf8,
        ret=parameters.ret(found["RET"]) if "RET" in found else "",
        envid=parameters.envid(found["ENVID"]) if "ENVID" in found else "",
        auth=parameters.auth(found["AUTH"]) if "AUTH" in found else None,
    )


def parse_rcpt(argument: bytes, *, legacy: bool = False, smtputf8_ok: bool, dsn: bool = True) -> Recipient:
    """The argument of RCPT.

    :param legacy: as for :func:`parse_mail`.
    :param smtputf8_ok: whether MAIL said SMTPUTF8.
    :raises Fault: 501 5.5.4 syntax, 501 5.1.3 address, 550 5.7.1 source route, 553 5.6.7 UTF-8 without SMTPUTF8,
        555 5.5.4 parameter not known.
    """
    parser, path = _path(argument, "TO", legacy=legacy, enhanced="5.1.3")
    if path.null:
        raise parser.fault("empty")
    found = parameters.parse_parameters(parser.text[parser.at :], _RCPT_DSN if dsn else {})
    if not smtputf8_ok and not parser.text.isascii():
        raise _needs_smtputf8()
    if parser.routed:
        raise Fault(Reply.of(550, "5.7.1", "Source routes are not relayed"))
    return Recipient(
        path=path,
        notify=parameters.notify(found["NOTIFY"]) if "NOTIFY" in found else frozenset(),
        orcpt=parameters.orcpt(found["ORCPT"]) if "ORCPT" in found else "",
    )


def parse_bdat(argument: bytes) -> tuple[int, bool]:
    """The argument of BDAT: size in octets, and whether the chunk is the last (RFC 3030 2).

    :raises Fault: 501 5.5.4.
    """
    match = _BDAT.fullmatch(argument)
    if match is None:
        raise parameters.bad_parameter("Syntax: BDAT size [LAST]")
    return int(match[1]), match[2] is not None


def _path(argument: bytes, keyword: str, *, legacy: bool, enhanced: str) -> tuple[PathParser, Path]:
    """The path behind ``FROM:`` or ``TO:``, and the parser, which stands behind the path."""
    try:
        text = argument.decode()
    except UnicodeDecodeError as error:
        raise BadAddress(Reply.of(501, enhanced, "Malformed UTF-8"), repr(argument)) from error
    before, colon, _ = text.partition(":")
    if not colon or (before.rstrip(" \t") if legacy else before).upper() != keyword:
        raise parameters.bad_parameter(f"Syntax: {'MAIL' if keyword == 'FROM' else 'RCPT'} {keyword}:<address>")
    at = len(before) + 1
    # RFC 5321 3.3 forbids blanks here; scripts have sent them for ever, and nothing depends on it.
    while text[at : at + 1] in (" ", "\t"):
        at += 1
    parser = PathParser(text, at, enhanced=enhanced)
    return parser, parser.path(bare=legacy)


def _needs_smtputf8() -> Fault:
    return Fault(Reply.of(553, "5.6.7", "SMTPUTF8 is needed for this address"))
