"""The PAC: what a domain controller says of an account inside a Kerberos ticket (MS-PAC).

The ticket's service key signs it; whoever calls the decoders here has that signature checked before.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

__all__ = ["Pac", "logon_info", "upn_dns_info"]

#: Longer lists are no account's: 64 KiB, the longest token, hold no more.
MOST_SIDS: Final = 16384

# MS-PAC 2.5, UserFlags: which of the optional lists count.
_EXTRA_SIDS = 0x20
_RESOURCE_GROUPS = 0x200
# MS-PAC 2.2.1, Attributes: a group that is not enabled, or only there to be denied, gives nothing.
_ENABLED = 0x4
_DENY_ONLY = 0x10


@dataclass(frozen=True, slots=True)
class Pac:
    """What relayd takes from a PAC.

    :ivar sid: of the account.
    :ivar group_sids: of all its groups: those of its domain, extra SIDs, and the resource groups of relayd's domain.
    :ivar name: sAMAccountName (EffectiveName); *domain*: the NetBIOS name of its domain.
    :ivar upn: from UPN_DNS_INFO; empty where there is none.
    """

    sid: str
    group_sids: frozenset[str]
    name: str = ""
    domain: str = ""
    upn: str = ""


def logon_info(octets: bytes) -> Pac:
    """The account of a KERB_VALIDATION_INFO (MS-PAC 2.5), without a UPN.

    :raises ValueError: it is none, or cut short, or has no SID of the account.
    """
    ndr = _Ndr(octets)
    ndr.header()
    ndr.skip(6 * 8)  # LogonTime to PasswordMustChange
    names = [ndr.string_header() for _ in range(6)]  # EffectiveName to HomeDirectoryDrive
    ndr.skip(4)  # LogonCount, BadPasswordCount
    user, primary, group_count = ndr.u32(), ndr.u32(), ndr.u32()
    has_groups = ndr.u32()
    flags = ndr.u32()
    ndr.skip(16)  # UserSessionKey
    server, domain = ndr.string_header(), ndr.string_header()
    has_domain_sid = ndr.u32()
    ndr.skip(8 + 32)  # Reserved1; UserAccountControl to Reserved3
    extra_count, has_extra = ndr.u32(), ndr.u32()
    has_resource_sid, resource_count, has_resource = ndr.u32(), ndr.u32(), ndr.u32()
    # What the pointers point to follows in their order (C706 14.3.12.3).
    texts = [ndr.string(name) for name in names]
    groups = ndr.memberships(has_groups, group_count)
    ndr.string(server)
    domain_name = ndr.string(domain)
    domain_sid = ndr.sid() if has_domain_sid else ""
    extra = ndr.sids(has_extra, extra_count)
    resource_sid = ndr.sid() if has_resource_sid else ""
    resource = ndr.memberships(has_resource, resource_count)

    sids = {f"{domain_sid}-{rid}" for rid in (*groups, primary)} if domain_sid else set()
    if flags & _EXTRA_SIDS:
        sids.update(sid for sid, enabled in extra if enabled)
    if flags & _RESOURCE_GROUPS and resource_sid:
        sids.update(f"{resource_sid}-{rid}" for rid in resource)
    return Pac(_account_sid(user, domain_sid, flags, extra), frozenset(sids), texts[0], domain_name)


def _account_sid(user: int, domain_sid: str, flags: int, extra: list[tuple[str, bool]]) -> str:
    if user and domain_sid:
        return f"{domain_sid}-{user}"
    # MS-PAC 2.5, UserId: zero says that the first of the extra SIDs is the account's.
    if not user and flags & _EXTRA_SIDS and extra:
        return extra[0][0]
    raise ValueError("no SID of the account")


def upn_dns_info(octets: bytes) -> str:
    """The user principal name of a UPN_DNS_INFO (MS-PAC 2.10).

    :raises ValueError: it is none, or cut short.
    """
    if len(octets) < 12:
        raise ValueError("UPN_DNS_INFO is cut short")
    length, offset = struct.unpack_from("<HH", octets)
    if offset + length > len(octets):
        raise ValueError("the UPN lies outside of its UPN_DNS_INFO")
    return _text(octets[offset : offset + length])


def _text(octets: bytes) -> str:
    return octets.decode("utf-16-le").rstrip("\0")


class _Ndr:
    """Reads NDR (C706 14) in little-endian order: type serialization version 1 (MS-RPCE 2.2.6)."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self._at = 0

    def take(self, count: int) -> bytes:
        start, self._at = self._at, self._at + count
        if self._at > len(self._octets):
            raise ValueError("KERB_VALIDATION_INFO is cut short")
        return self._octets[start : self._at]

    skip = take

    def u32(self) -> int:
        self.take(-self._at % 4)
        return int.from_bytes(self.take(4), "little")

    def header(self) -> None:
        # MS-RPCE 2.2.6.1: version 1, little-endian, header of 8 octets; 2.2.6.2: how long the object is.
        if self.take(4) != b"\x01\x10\x08\x00":
            raise ValueError("KERB_VALIDATION_INFO without its NDR header")
        self.skip(4)
        length = self.u32()
        self.skip(4)
        if length > len(self._octets) - self._at:
            raise ValueError("KERB_VALIDATION_INFO is cut short")
        if not self.u32():
            raise ValueError("KERB_VALIDATION_INFO is a null pointer")

    def string_header(self) -> tuple[int, int]:
        """Length in octets and pointer of an RPC_UNICODE_STRING (MS-DTYP 2.3.10)."""
        lengths = self.u32()
        return lengths & 0xFFFF, self.u32()

    def string(self, header: tuple[int, int]) -> str:
        length, pointer = header
        if not pointer:
            return ""
        most, offset, actual = self.u32(), self.u32(), self.u32()
        if offset or actual > most or length > 2 * actual:
            raise ValueError("a string of KERB_VALIDATION_INFO is longer than its array")
        return _text(self.take(2 * actual)[:length])

    def _pairs(self, count: int) -> Iterator[tuple[int, int]]:
        """An array of *count* pairs of 32-bit numbers."""
        if self.u32() != count or count > MOST_SIDS:
            raise ValueError("a list of KERB_VALIDATION_INFO is longer or shorter than it says")
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
            raise ValueError("an odd SID in KERB_VALIDATION_INFO")
        authority = int.from_bytes(top_octets, "big")
        # MS-DTYP 2.4.2.1: a large authority is written in hexadecimal.
        top = str(authority) if authority < 1 << 32 else f"{authority:#014x}"
        return "-".join(("S-1", top, *map(str, struct.unpack(f"<{subs}I", self.take(4 * subs)))))


def _counts(attributes: int) -> bool:
    return bool(attributes & _ENABLED) and not attributes & _DENY_ONLY
