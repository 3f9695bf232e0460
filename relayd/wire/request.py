"""Commands as a client writes them."""

from __future__ import annotations

import re
from typing import Final

from relayd.model import Body, Path, Recipient, Sender
from relayd.wire.path import PathParser
from relayd.wire.xtext import encode_utf8_xtext, encode_xtext

_ATOM: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+")
_NOTIFY: Final = ("NEVER", "SUCCESS", "FAILURE", "DELAY")


def encode_mail(sender: Sender, *, size: int | None, extensions: frozenset[str]) -> bytes:
    """``MAIL FROM:<…>`` with those parameters that the server knows, CRLF included.

    :param size: octets of the message as it will be sent; None = not said.
    :param extensions: the keywords of the server's EHLO reply, upper case. A caller that must not show AUTH
        (RFC 4954 5) leaves it out.
    :raises ValueError: the sender does not fit into a command, or needs SMTPUTF8 and the server has it not.
    """
    utf8 = "SMTPUTF8" in extensions
    words = [f"MAIL FROM:<{_checked(sender.path, utf8=utf8)}>"]
    if size is not None and "SIZE" in extensions:
        words.append(f"SIZE={size:d}")
    if sender.body is Body.EIGHT_BIT and "8BITMIME" in extensions:
        words.append("BODY=8BITMIME")
    if utf8 and (sender.smtputf8 or not sender.path.ascii):
        words.append("SMTPUTF8")
    if "DSN" in extensions:
        if sender.ret:
            if sender.ret not in ("FULL", "HDRS"):
                raise ValueError(f"RET cannot be {sender.ret!r}")
            words.append(f"RET={sender.ret}")
        if sender.envid:
            words.append(f"ENVID={encode_xtext(sender.envid)}")
    if sender.auth is not None and "AUTH" in extensions:
        words.append(f"AUTH={_auth(sender.auth)}")
    return _command(words)


def encode_rcpt(recipient: Recipient, *, extensions: frozenset[str]) -> bytes:
    """``RCPT TO:<…>`` with those parameters that the server knows, CRLF included.

    :raises ValueError: as for :func:`encode_mail`.
    """
    utf8 = "SMTPUTF8" in extensions
    if recipient.path.null:
        raise ValueError("no recipient")
    words = [f"RCPT TO:<{_checked(recipient.path, utf8=utf8)}>"]
    if "DSN" in extensions:
        if recipient.notify:
            if not recipient.notify.issubset(_NOTIFY):
                raise ValueError("NOTIFY holds an unknown word")
            words.append("NOTIFY=" + ",".join(word for word in _NOTIFY if word in recipient.notify))
        if recipient.orcpt:
            words.append("ORCPT=" + _orcpt(recipient.orcpt, utf8=utf8))
    return _command(words)


def _auth(mailbox: str) -> str:
    if not mailbox:
        return "<>"
    return encode_xtext(mailbox) if mailbox.isascii() else encode_utf8_xtext(mailbox, raw=False)


def _orcpt(value: str, *, utf8: bool) -> str:
    kind, _, address = value.partition(";")
    if not address or not _ATOM.fullmatch(kind):
        raise ValueError("malformed ORCPT")
    if kind.lower() == "utf-8":
        return f"{kind};{encode_utf8_xtext(address, raw=utf8)}"
    return f"{kind};{encode_xtext(address)}"


def _checked(path: Path, *, utf8: bool) -> str:
    """*path* as text, after the same check that it passes when it comes in."""
    text = str(path)
    if text:
        parser = PathParser(f"<{text}>")
        if parser.path() != path or parser.routed or parser.at != len(text) + 2:
            raise ValueError("malformed address")
    if not utf8 and not path.ascii:
        raise ValueError("the address needs SMTPUTF8")
    return text


def _command(words: list[str]) -> bytes:
    line = " ".join(words)
    if not line.isprintable():
        raise ValueError("a control in a command")
    return line.encode() + b"\r\n"
