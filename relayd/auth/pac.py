"""The PAC: what a domain controller says of an account inside a Kerberos ticket (MS-PAC).

The ticket's service key signs it; whoever calls the decoders here has that signature checked before.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from relayd.ndr import NdrReader, utf16
from relayd.validation import ValidationInfo, validation_info

__all__ = ["Pac", "logon_info", "upn_dns_info"]

# MS-PAC 2.5, UserFlags: which of the optional lists count.
_EXTRA_SIDS = 0x20
_RESOURCE_GROUPS = 0x200


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
    ndr = NdrReader(octets, "KERB_VALIDATION_INFO")
    ndr.header()
    info, resources = validation_info(ndr, lambda ndr: (ndr.u32(), ndr.u32(), ndr.u32()))
    has_resource_sid, resource_count, has_resource = resources
    resource_sid = ndr.sid() if has_resource_sid else ""
    resource = ndr.memberships(has_resource, resource_count)

    sids = {f"{info.domain_sid}-{rid}" for rid in (*info.groups, info.primary)} if info.domain_sid else set()
    if info.flags & _EXTRA_SIDS:
        sids.update(info.extra)
    if info.flags & _RESOURCE_GROUPS and resource_sid:
        sids.update(f"{resource_sid}-{rid}" for rid in resource)
    return Pac(_account_sid(info), frozenset(sids), info.name, info.domain)


def _account_sid(info: ValidationInfo) -> str:
    if info.user and info.domain_sid:
        return f"{info.domain_sid}-{info.user}"
    # MS-PAC 2.5, UserId: zero says that the first of the extra SIDs is the account's.
    if not info.user and info.flags & _EXTRA_SIDS and info.first:
        return info.first
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
    return utf16(octets[offset : offset + length])
