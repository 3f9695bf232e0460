"""The malformed (and merely odd) mails of CPython's own test suite, from Debian's libpython3.11-testsuite."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["DIRECTORY", "as_crlf", "mails"]

DIRECTORY = Path("/usr/lib/python3.11/test/test_email/data")


def mails() -> dict[str, bytes]:
    """File name -> octets as they are in the file: most have LF line ends, some CRLF, some lack the last one.

    :raises FileNotFoundError: the package is not installed.
    """
    found = {path.name: path.read_bytes() for path in sorted(DIRECTORY.glob("msg_*.txt"))}
    if not found:
        raise FileNotFoundError(f"no mails in {DIRECTORY}: install libpython3.11-testsuite")
    return found


def as_crlf(mail: bytes) -> bytes:
    """The mail as SMTP carries it: CRLF ends each line and nothing else is a CR or LF (RFC 5321 2.3.8)."""
    text = re.sub(rb"\r\n|\r|\n", b"\r\n", mail)
    return text if text.endswith(b"\r\n") else text + b"\r\n"
