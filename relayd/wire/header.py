"""A message's header section as octets: fields in their order, each kept exactly as it came (RFC 5322 2.2)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from email.headerregistry import Address
from email.utils import getaddresses

from relayd.wire.path import BadAddress, parse_address

_FOLD = re.compile(rb"\r\n(?=[ \t])")
#: A field ends where the next line does not go on with white space.
_END = re.compile(rb"\r\n(?![ \t])")


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    :ivar name: lower case; empty for a line that is no field at all.
    :ivar octets: as it came, with its folding and final CRLF.
    """

    name: str
    octets: bytes

    @property
    def value(self) -> bytes:
        """What stands behind the colon, unfolded, without white space around it."""
        return _FOLD.sub(b"", self.octets.partition(b":")[2]).strip()


@dataclass(frozen=True, slots=True)
class Header:
    """The fields of a header section, from the top."""

    fields: tuple[Field, ...]

    @classmethod
    def parse(cls, octets: bytes) -> Header:
        """*octets*: the header section, up to the empty line, or with it and whatever follows."""
        return cls(tuple(_fields(section(octets))))

    def all(self, name: str) -> tuple[Field, ...]:
        """The fields called *name* (lower case), from the top."""
        return tuple(field for field in self.fields if field.name == name)

    def get(self, name: str) -> Field | None:
        return next((field for field in self.fields if field.name == name), None)

    def without(self, *names: str) -> Header:
        return Header(tuple(field for field in self.fields if field.name not in names))

    def replaced(self, old: Field, *new: Field) -> Header:
        """*new* stand where *old* stood."""
        at = self.fields.index(old)
        return Header((*self.fields[:at], *new, *self.fields[at + 1 :]))

    def __bytes__(self) -> bytes:
        return b"".join(field.octets for field in self.fields)


def section(octets: bytes) -> bytes:
    """The header section at the start of a message, with its last CRLF and without the empty line."""
    if octets.startswith(b"\r\n"):
        return b""
    end = octets.find(b"\r\n\r\n")
    return octets if end < 0 else octets[: end + 2]


def _fields(octets: bytes) -> Iterator[Field]:
    start = 0
    for end in _END.finditer(octets):
        yield _field(octets[start : end.end()])
        start = end.end()
    if start < len(octets):
        yield _field(octets[start:])


def _field(octets: bytes) -> Field:
    name, colon, _ = octets.partition(b":")
    name = name.rstrip(b" \t")  # obsolete, and seen (RFC 5322 4.5)
    # RFC 5322 3.6.8
    good = colon and name and all(33 <= octet <= 126 for octet in name)
    return Field(name.decode("ascii").lower() if good else "", octets)


def addresses(value: bytes) -> tuple[tuple[str, str], ...]:
    """The mailboxes of an address field's value, as (display name, address); groups are opened.

    :raises ValueError: it holds something that is no address.
    """
    text = value.decode("utf-8", "surrogateescape")
    found = []
    for name, address in getaddresses([text]):
        if not address and not name:
            continue
        try:
            path = parse_address(address)
        except BadAddress as error:
            raise ValueError(f"{text!r}: {error}") from None
        found.append((name, str(path)))
    return tuple(found)


def mailbox(name: str, address: str) -> str:
    """A mailbox with its display name, quoted where that is needed (RFC 5322 3.4)."""
    if not name:
        return address
    local, _, domain = address.rpartition("@")
    try:
        return str(Address(name, local, domain))
    except ValueError:
        return address


def sent_from(header: Header, address: str) -> bytes:
    """*header* with *address* in From:, under the display name that stood there; who stood there gets the replies,
    unless somebody else does."""
    old = header.get("from")
    if old is None:
        return b"From: %b\r\n" % address.encode() + bytes(header)
    try:
        name = next((name for name, _ in addresses(old.value)), "")
    except ValueError:
        name = ""
    new = [Field("from", f"From: {mailbox(name, address)}\r\n".encode("utf-8", "surrogateescape"))]
    if header.get("reply-to") is None and old.value:
        new.append(Field("reply-to", b"Reply-To:" + old.octets.partition(b":")[2]))
    kept = Header(tuple(field for field in header.fields if field.name != "from" or field is old))
    return bytes(kept.replaced(old, *new))
