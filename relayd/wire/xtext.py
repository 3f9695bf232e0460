"""xtext (RFC 3461 4) and utf-8-addr-xtext (RFC 6533 3): values of parameters that hold any character."""

from __future__ import annotations

import re
from typing import Final

_XTEXT: Final = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-F]{2})*")
_UTF8_XTEXT: Final = re.compile(r"(?:[!-*,-<>-\[\]-~\x80-\U0010ffff]|\+[0-9A-F]{2}|\\x\{[0-9A-F]{2,6}\})*")
_HEXCHAR: Final = re.compile(r"\+([0-9A-F]{2})")
_EMBEDDED: Final = re.compile(r"\\x\{([0-9A-F]{2,6})\}")
_SPECIAL: Final = re.compile(r"[^!-*,-<>-~]")
_UTF8_SPECIAL: Final = re.compile(r"[^!-*,-<>-\[\]-~]")


def decode_xtext(text: str) -> str:
    """What *text* stands for: printable ASCII and blanks.

    :raises ValueError: not xtext, or a control or something beyond ASCII is encoded in it.
    """
    if not _XTEXT.fullmatch(text):
        raise ValueError("not xtext")
    return _printable(_HEXCHAR.sub(lambda match: chr(int(match[1], 16)), text), ascii_only=True)


def decode_utf8_xtext(text: str) -> str:
    r"""What *text* stands for, with ``\x{…}`` for characters beyond ASCII, or these as they are.

    :raises ValueError: malformed, or a control is encoded in it.
    """
    if not _UTF8_XTEXT.fullmatch(text):
        raise ValueError("not utf-8-addr-xtext")
    text = _HEXCHAR.sub(lambda match: chr(int(match[1], 16)), text)
    return _printable(_EMBEDDED.sub(lambda match: chr(int(match[1], 16)), text), ascii_only=False)


def encode_xtext(text: str) -> str:
    """*text*, which is printable ASCII, as xtext.

    :raises ValueError: it is not.
    """
    return _SPECIAL.sub(lambda match: f"+{ord(match[0]):02X}", _printable(text, ascii_only=True))


def encode_utf8_xtext(text: str, *, raw: bool) -> str:
    """*text* as utf-8-addr-unitext (*raw*: SMTPUTF8 is in use) or utf-8-addr-xtext.

    :raises ValueError: there is a control in it.
    """

    def encoded(match: re.Match[str]) -> str:
        character = match[0]
        return character if raw and character > "\x7f" else f"\\x{{{ord(character):02X}}}"

    return _UTF8_SPECIAL.sub(encoded, _printable(text, ascii_only=False))


def _printable(text: str, *, ascii_only: bool) -> str:
    if not text.isprintable() or (ascii_only and not text.isascii()):
        raise ValueError("encodes what may not stand there")
    return text
