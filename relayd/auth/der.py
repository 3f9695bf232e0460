"""DER (X.690) as tokens of authentication use it: one element after the other, whoever wrote them.

pyspnego's decoder is made for tokens of a friend: it takes what is cut short, copies what is left for each element, and
knows no longest length or OID, so that 64 KiB of a stranger's keep it busy for seconds. Nothing here takes longer than
to copy the octets a few times; how many elements and levels there may be, callers say by what they ask for.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BIT_STRING", "GENERAL_STRING", "INTEGER", "OCTET_STRING", "OID", "SEQUENCE"]
__all__ += ["Element", "children", "element", "fields", "integer", "oid", "whole"]

# Tags (X.690 8.1.2); of universal types, as DER has them.
INTEGER, BIT_STRING, OCTET_STRING, OID, GENERAL_STRING, SEQUENCE = 0x02, 0x03, 0x04, 0x06, 0x1B, 0x30

#: Octets of the longest length, OID and integer that are taken.
_LONGEST_LENGTH: Final = 4
_LONGEST_OID: Final = 64
_LONGEST_INTEGER: Final = 8

#: Tag and content.
Element = tuple[int, bytes]


def element(octets: bytes) -> tuple[Element, bytes]:
    """The first element, and what stands behind it.

    :raises ValueError: it is cut short.
    """
    if len(octets) < 2:
        raise ValueError("cut short")
    tag, length, at = octets[0], octets[1], 2
    if length & 0x80:
        at += length & 0x7F
        if not 2 < at <= 2 + _LONGEST_LENGTH:
            raise ValueError("a length of no known form")
        length = int.from_bytes(octets[2:at], "big")
    if at + length > len(octets):
        raise ValueError(f"cut short: {len(octets)} octets that say they are {at + length}")
    return (tag, octets[at : at + length]), octets[at + length :]


def whole(octets: bytes, tag: int) -> bytes:
    """The content of the one element that *octets* are.

    :raises ValueError: they are another, or more than one.
    """
    (found, content), rest = element(octets)
    if found != tag:
        raise ValueError(f"tag {tag:#x} expected, not {found:#x}")
    if rest:
        raise ValueError(f"{len(rest)} octets behind the end")
    return content


def children(octets: bytes, most: int) -> list[Element]:
    """The elements in a SEQUENCE.

    :param most: there may be no more.
    :raises ValueError: there are, or *octets* are no SEQUENCE.
    """
    left = whole(octets, SEQUENCE)
    found: list[Element] = []
    while left:
        if len(found) == most:
            raise ValueError(f"more than {most} elements")
        child, left = element(left)
        found.append(child)
    return found


def fields(octets: bytes, most: int = 16) -> dict[int, bytes]:
    """The contents of the fields of a SEQUENCE of tagged ones, by tag; some may be of a later version.

    :raises ValueError: there are more than *most*, or one twice, or *octets* are no SEQUENCE.
    """
    elements = children(octets, most)
    found = dict(elements)
    if len(found) != len(elements):
        raise ValueError("a field twice")
    return found


def integer(octets: bytes) -> int:
    """The INTEGER that *octets* are.

    :raises ValueError: they are none, or it is larger than any is.
    """
    content = whole(octets, INTEGER)
    if not 1 <= len(content) <= _LONGEST_INTEGER:
        raise ValueError("an INTEGER of no known size")
    return int.from_bytes(content, "big", signed=True)


def oid(element: Element) -> str:
    """The object identifier that *element* is, with dots.

    :raises ValueError: it is none, or longer than any is.
    """
    from spnego._asn1 import unpack_asn1_object_identifier

    tag, content = element
    if tag != OID or not 1 <= len(content) <= _LONGEST_OID or content[-1] & 0x80:
        raise ValueError("no OID")
    return str(unpack_asn1_object_identifier(content))
