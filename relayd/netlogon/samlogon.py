"""NetrLogonSamLogonEx (MS-NRPC 3.5.4.5.1) on the wire. impacket has it too, and takes most of a logon's time for it."""

from __future__ import annotations

from typing import Final

from relayd.ndr import NdrReader, NdrWriter
from relayd.netlogon.faults import CannotTell
from relayd.netlogon.logon import Logon, NetworkLogon
from relayd.netlogon.statuses import LogonRefused
from relayd.validation import ValidationInfo, validation_info

__all__ = ["OPERATION", "decode_answer", "encode_request", "granted"]

OPERATION: Final = 39

# NETLOGON_LOGON_INFO_CLASS, NETLOGON_VALIDATION_INFO_CLASS: a network logon, NETLOGON_VALIDATION_SAM_INFO4.
_NETWORK, _SAM_INFO_4 = 2, 6
# MS-NRPC 2.2.1.4.15, ParameterControl: computers and controllers have accounts too; nobody becomes a guest.
_PARAMETERS: Final = 0x20 | 0x800 | 0x10
# MS-NRPC 2.2.1.4.13, UserFlags.
_GUEST: Final = 0x1
# MS-SAMR 2.2.1.9: the RID of the Guest account.
_GUEST_RID: Final = 501


def encode_request(computer: str, asked: NetworkLogon) -> bytes:
    """The call that asks about *asked*, made by *computer*."""
    ndr = NdrWriter()
    ndr.u32(0)  # LogonServer
    ndr.pointer()
    ndr.array(f"{computer}\0".encode("utf-16-le"), 2)
    ndr.u16(_NETWORK)
    ndr.u16(_NETWORK)  # what the union holds
    ndr.pointer()
    names = [name.encode("utf-16-le") for name in (asked.domain, asked.account, asked.workstation)]
    domain, account, workstation = names
    # NETLOGON_LOGON_IDENTITY_INFO (2.2.1.4.15)
    ndr.counted(domain)
    ndr.u32(_PARAMETERS)
    ndr.raw(bytes(8))  # Reserved
    ndr.counted(account)
    ndr.counted(workstation)
    ndr.raw(asked.challenge)
    ndr.counted(asked.nt)
    ndr.counted(asked.lm)
    for name in names:
        ndr.array(name, 2)
    for response in (asked.nt, asked.lm):
        ndr.array(response, 1)
    ndr.u16(_SAM_INFO_4)
    ndr.u32(0)  # ExtraFlags
    return bytes(ndr.octets)


def decode_answer(octets: bytes) -> tuple[int, ValidationInfo | None]:
    """The status, and the account where there is one.

    :raises ValueError: it is no answer to such a call.
    """
    ndr = NdrReader(octets, "the answer")
    level, there = ndr.u16(), ndr.u32()
    if there and level != _SAM_INFO_4:
        raise ValueError(f"the answer has level {level}")
    info = _sam_info(ndr) if there else None
    ndr.skip(1)  # Authoritative
    ndr.u32()  # ExtraFlags
    return ndr.u32(), info


def granted(info: ValidationInfo) -> Logon:
    """The logon that *info* speaks of.

    :raises LogonRefused: the account was let in as a guest.
    :raises CannotTell: the answer lacks what every account has.
    """
    if info.flags & _GUEST or info.user == _GUEST_RID:
        raise LogonRefused(0, "let in as guest, which proves nothing", True)
    if not info.name or not info.user or not info.domain_sid:
        raise CannotTell("the answer names no account")
    if len(info.session_key) != 16 or not any(info.session_key):
        raise CannotTell(f"the answer about {info.name} has no session key")
    groups = (f"{info.domain_sid}-{rid}" for rid in (info.primary, *info.groups))
    return Logon(
        name=info.name,
        domain=info.domain,
        sid=f"{info.domain_sid}-{info.user}",
        group_sids=frozenset([*groups, *info.extra]),
        session_key=info.session_key,
    )


def _sam_info(ndr: NdrReader) -> ValidationInfo:
    info, last = validation_info(ndr, lambda ndr: [ndr.string_header() for _ in range(12)])
    for text in last:  # DnsLogonDomainName to ExpansionString10
        ndr.string(text)
    return info
