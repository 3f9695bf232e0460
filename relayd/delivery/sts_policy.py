"""MTA-STS policies as text (RFC 8461 3): what a domain publishes of the TLS that its mail exchangers have. Pure."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

#: Seconds that a policy holds at most (RFC 8461 3.2): a year.
LONGEST_AGE: Final = 31_557_600

_RECORD = re.compile(r"v=STSv1(?:[ \t]*;[ \t]*[A-Za-z0-9][A-Za-z0-9_.-]{0,31}=[!-:<>-~]+)+(?:[ \t]*;[ \t]*)?")
_ID = re.compile(r";[ \t]*id=([!-:<>-~]+)")
_ID_VALUE = re.compile(r"[A-Za-z0-9]{1,32}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,31}")
_PATTERN = re.compile(r"(?:\*\.)?[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*")
_AGE = re.compile(r"[0-9]{1,10}")


class Mode(enum.Enum):
    ENFORCE = "enforce"
    TESTING = "testing"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Policy:
    """What a domain asks of those who send to it.

    :ivar exchangers: lower case; ``mx.example.org``, or ``*.example.org`` for one label more.
    :ivar max_age: seconds that it holds from when it was fetched.
    """

    mode: Mode
    exchangers: tuple[str, ...]
    max_age: int

    def allows(self, host: str) -> bool:
        """Whether *host* is one of the domain's mail exchangers (RFC 8461 4.1)."""
        host = host.lower().removesuffix(".")
        # RFC 6125 6.4.3, and no more of it: the wildcard is the whole left-most label.
        above = host.partition(".")[2]
        if "*" in host:
            return False
        return host in self.exchangers or (above != "" and f"*.{above}" in self.exchangers)

    def __str__(self) -> str:
        """As :func:`parsed` reads it."""
        lines = ["version: STSv1", f"mode: {self.mode.value}", f"max_age: {self.max_age}"]
        return "".join(f"{line}\n" for line in (*lines, *(f"mx: {pattern}" for pattern in self.exchangers)))


def published(records: Sequence[bytes]) -> str:
    """The id of the policy that the TXT records at ``_mta-sts.DOMAIN`` announce; "" where they announce none.

    :param records: the strings of each record, joined (RFC 8461 3.1).
    """
    ours = [record for record in records if record.startswith(b"v=STSv1;")]
    if len(ours) != 1:
        return ""
    text = ours[0].decode("latin-1")
    if not _RECORD.fullmatch(text):
        return ""
    found = _ID.search(text)  # the first one counts
    return found[1] if found and _ID_VALUE.fullmatch(found[1]) else ""


def fields(octets: bytes) -> Iterator[tuple[str, str]]:
    """The fields of a policy, in their order (RFC 8461 3.2). Empty lines are passed over.

    :raises ValueError: a line is no field.
    """
    try:
        text = octets.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip(" \t"):
            name, colon, value = line.partition(":")
            if not colon or not _NAME.fullmatch(name):
                raise ValueError(f"line {number} is no field")
            yield name, value.strip(" \t")


def parsed(octets: bytes) -> Policy:
    """A policy as it was fetched. Fields that are unknown are passed over; of those that repeat, the first one counts.

    :raises ValueError: it is none; the text says why.
    """
    first: dict[str, str] = {}
    exchangers: dict[str, None] = {}
    for name, value in fields(octets):
        if name == "mx":
            pattern = value.lower()
            if len(pattern) > 255 or not _PATTERN.fullmatch(pattern):
                raise ValueError("an mx is no host name")
            exchangers[pattern] = None
        else:
            first.setdefault(name, value)
    if first.get("version") != "STSv1":
        raise ValueError("its version is not STSv1")
    try:
        mode = Mode(first.get("mode"))
    except ValueError:
        raise ValueError("its mode is none of enforce, testing and none") from None
    age = first.get("max_age", "")
    if not _AGE.fullmatch(age):
        raise ValueError("its max_age is no number of seconds")
    if not exchangers and mode is not Mode.NONE:
        raise ValueError("it names no mx")
    return Policy(mode, tuple(exchangers), min(int(age), LONGEST_AGE))
