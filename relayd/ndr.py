"""NDR (C706 14) in little-endian order, as Kerberos' PAC and Netlogon have it. No Twisted, no I/O."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

__all__ = ["NdrReader", "NdrWriter", "utf16"]

#: Longer lists are no account's: 64 KiB, the longest token, hold no more.
MOST_SIDS: Final = 16384

# MS-PAC 2.2.1, Attributes: a group that is not enabled, or only there to be denied, gives nothing.
_ENABLED = 0x4
_DENY_ONLY = 0x10


def utf16(octets: bytes) -> str:
    """A text in UTF-16, without zeros at its end.

    :raises ValueError: it is none.
    """
    return octets.decode("utf-16-le").rstrip("\0")


class NdrReader:
    """Reads what it is asked for, one after the other.

    Each method raises :exc:`ValueError` where that is not there.

    :param what: the outermost structure, for the text of errors.
    """

    def __init__(self, octets: bytes, what: str) -> None:
        self._octets = octets
        self._at = 0
        self._what = what

    def take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._octets):
            raise ValueError(f"{self._what} is cut short")
        return self._octets[start : self._at]

    skip = take

    def u16(self) -> int:
        self.take(-self._at % 2)
        return int.from_bytes(self.take(2), "little")

    def u32(self) -> int:
        self.take(-self._at % 4)
        return int.from_bytes(self.take(4), "little")

    def header(self) -> None:
        """The header of type serialization version 1, and the pointer behind it (MS-RPCE 2.2.6)."""
        # MS-RPCE 2.2.6.1: version 1, little-endian, header of 8 octets; 2.2.6.2: how long the object is.
        if self.take(4) != b"\x01\x10\x08\x00":
            raise ValueError(f"{self._what} without its NDR header")
        self.skip(4)
        length = self.u32()
        self.skip(4)
        if length > len(self._octets) - self._at:
            raise ValueError(f"{self._what} is cut short")
        if not self.u32():
            raise ValueError(f"{self._what} is a null pointer")

    def string_header(self) -> tuple[int, int]:
        """Length in octets and pointer of an RPC_UNICODE_STRING (MS-DTYP 2.3.10)."""
        lengths = self.u32()
        return lengths & 0xFFFF, self.u32()

    def string(self, header: tuple[int, int]) -> str:
        """What the pointer of an RPC_UNICODE_STRING points to."""
        length, pointer = header
        if not pointer:
            return ""
        most, offset, actual = self.u32(), self.u32(), self.u32()
        if offset or actual > most or length > 2 * actual:
            raise ValueError(f"a string of {self._what} is longer than its array")
        return utf16(self.take(2 * actual)[:length])

    def _pairs(self, count: int) -> Iterator[tuple[int, int]]:
        """An array of *count* pairs of 32-bit numbers."""
        if self.u32() != count or count > MOST_SIDS:
            raise ValueError(f"a list of {self._what} is longer or shorter than it says")
        return struct.iter_unpack("<II", self.take(8 * count))

    def memberships(self, pointer: int, count: int) -> list[int]:
        """The RIDs of GROUP_MEMBERSHIPs (MS-PAC 2.2.2) that are enabled."""
        if not pointer:
            return []
        return [rid for rid, attributes in self._pairs(count) if _counts(attributes)]

    def sids(self, pointer: int, count: int) -> list[tuple[str, bool]]:
        """The SIDs of KERB_SID_AND_ATTRIBUTES (MS-PAC 2.2.1), and whether each is enabled."""
        if not pointer:
            return []
        pairs = self._pairs(count)
        return [(self.sid(), _counts(attributes)) for there, attributes in pairs if there]

    def sid(self) -> str:
        """An RPC_SID (MS-DTYP 2.4.2.3)."""
        count = self.u32()
        revision, subs, *top_octets = self.take(8)
        if revision != 1 or subs != count or not 1 <= subs <= 15:
            raise ValueError(f"an odd SID in {self._what}")
        authority = int.from_bytes(top_octets, "big")
        # MS-DTYP 2.4.2.1: a large authority is written in hexadecimal.
        top = str(authority) if authority < 1 << 32 else f"{authority:#014x}"
        return "-".join(("S-1", top, *map(str, struct.unpack(f"<{subs}I", self.take(4 * subs)))))


def _counts(attributes: int) -> bool:
    return bool(attributes & _ENABLED) and not attributes & _DENY_ONLY


class NdrWriter:
    """Writes one after the other; :attr:`octets` is what was written."""

    def __init__(self) -> None:
        self.octets = bytearray()
        self._pointers = 0

    def raw(self, octets: bytes) -> None:
        self.octets += octets

    def u16(self, number: int) -> None:
        self.octets += bytes(-len(self.octets) % 2) + number.to_bytes(2, "little")

    def u32(self, number: int) -> None:
        self.octets += bytes(-len(self.octets) % 4) + number.to_bytes(4, "little")

    def pointer(self) -> None:
        """To something; each to something else (C706 14.3.10)."""
        self._pointers += 1
        self.u32(0x0002_0000 + 4 * self._pointers)

    def counted(self, octets: bytes) -> None:
        """The fields of an RPC_UNICODE_STRING, or of a STRING (MS-NRPC 2.2.1.1.3): lengths, and the pointer to it."""
        self.u16(len(octets))
        self.u16(len(octets))
        self.pointer()

    def array(self, octets: bytes, size: int) -> None:
        """A conformant and varying array (C706 14.3.3.4) of elements that have *size* octets each."""
        count = len(octets) // size
        for number in (count, 0, count):
            self.u32(number)
        self.raw(octets)
