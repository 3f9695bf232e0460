"""NetrLogonSamLogonEx (MS-NRPC 3.5.4.5.1) on the wire. impacket has it too, and takes most of a logon's time for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from relayd.ndr import NdrReader, NdrWriter
from relayd.netlogon.faults import CannotTell
from relayd.netlogon.logon import Logon, NetworkLogon
from relayd.netlogon.statuses import LogonRefused

__all__ = ["OPERATION", "SamInfo", "decode_answer", "encode_request", "granted"]

OPERATION: Final = 39

# NETLOGON_LOGON_INFO_CLASS, NETLOGON_VALIDATION_INFO_CLASS: a network logon, NETLOGON_VALIDATION_SAM_INFO4.
_NETWORK, _SAM_INFO_4 = 2, 6
# MS-NRPC 2.2.1.4.15, ParameterControl: computers and controllers have accounts too; nobody becomes a guest.
_PARAMETERS: Final = 0x20 | 0x800 | 0x10
# MS-NRPC 2.2.1.4.13, UserFlags.
_GUEST: Final = 0x1
# MS-SAMR 2.2.1.9: the RID of the Guest account.
_GUEST_RID: Final = 501


@dataclass(frozen=True, slots=True)
class SamInfo:
    """What is taken of a NETLOGON_VALIDATION_SAM_INFO4 (MS-NRPC 2.2.1.4.13).

    :ivar flags: UserFlags.
    :ivar groups: RIDs of groups of the domain, and *extra* SIDs of others, those that are enabled.
    """

    name: str = ""
    domain: str = ""
    domain_sid: str = ""
    user: int = 0
    primary: int = 0
    flags: int = 0
    groups: tuple[int, ...] = ()
    extra: tuple[str, ...] = ()
    session_key: bytes = field(default=b"", repr=False)


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


def decode_answer(octets: bytes) -> tuple[int, SamInfo | None]:
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


def granted(info: SamInfo) -> Logon:
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
    return Logon(
        name=info.name,
        domain=info.domain,
        sid=f"{info.domain_sid}-{info.user}",
        group_sids=frozenset([*(f"{info.domain_sid}-{rid}" for rid in (info.primary, *info.groups)), *info.extra]),
        session_key=info.session_key,
    )


def _sam_info(ndr: NdrReader) -> SamInfo:
    ndr.skip(6 * 8)  # LogonTime to PasswordMustChange
    names = [ndr.string_header() for _ in range(6)]  # EffectiveName to HomeDirectoryDrive
    ndr.skip(4)  # LogonCount, BadPasswordCount
    user, primary, group_count, has_groups = ndr.u32(), ndr.u32(), ndr.u32(), ndr.u32()
    flags = ndr.u32()
    session_key = ndr.take(16)
    server, domain = ndr.string_header(), ndr.string_header()
    has_domain_sid = ndr.u32()
    ndr.skip(8 + 32)  # LMKey; UserAccountControl to Reserved4
    extra_count, has_extra = ndr.u32(), ndr.u32()
    last = [ndr.string_header() for _ in range(12)]  # DnsLogonDomainName to ExpansionString10
    # What the pointers point to follows in their order (C706 14.3.12.3).
    texts = [ndr.string(name) for name in names]
    groups = ndr.memberships(has_groups, group_count)
    ndr.string(server)
    domain_name = ndr.string(domain)
    domain_sid = ndr.sid() if has_domain_sid else ""
    extra = ndr.sids(has_extra, extra_count)
    for text in last:
        ndr.string(text)
    return SamInfo(
        name=texts[0],
        domain=domain_name,
        domain_sid=domain_sid,
        user=user,
        primary=primary,
        flags=flags,
        groups=tuple(groups),
        extra=tuple(sid for sid, enabled in extra if enabled),
        session_key=session_key,
    )
