"""What a controller says of an account that it let in: KERB_VALIDATION_INFO in a ticket's PAC (MS-PAC 2.5), and
NETLOGON_VALIDATION_SAM_INFO4 in its answer to NTLM (MS-NRPC 2.2.1.4.13). The first is the second with another end.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from relayd.ndr import NdrReader

__all__ = ["ValidationInfo", "validation_info"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ValidationInfo:
    """What both have, as far as relayd takes it.

    :ivar flags: UserFlags.
    :ivar user: RID of the account, and *primary* of its primary group, in the domain *domain_sid*.
    :ivar groups: RIDs of groups of the domain, and *extra* SIDs of others, those that are enabled.
    :ivar first: the first of the extra SIDs, enabled or not; empty where there is none.
    """

    name: str = ""
    domain: str = ""
    domain_sid: str = ""
    user: int = 0
    primary: int = 0
    flags: int = 0
    groups: tuple[int, ...] = ()
    extra: tuple[str, ...] = ()
    first: str = ""
    session_key: bytes = field(default=b"", repr=False)


def validation_info(ndr: NdrReader, end: Callable[[NdrReader], T]) -> tuple[ValidationInfo, T]:
    """Reads what both have.

    :param end: reads the fields that come last in the structure; what they point to is the caller's to read afterwards.
    :returns: with what *end* brought.
    :raises ValueError: it is none, or cut short.
    """
    ndr.skip(6 * 8)  # LogonTime to PasswordMustChange
    names = [ndr.string_header() for _ in range(6)]  # EffectiveName to HomeDirectoryDrive
    ndr.skip(4)  # LogonCount, BadPasswordCount
    user, primary, group_count, has_groups = ndr.u32(), ndr.u32(), ndr.u32(), ndr.u32()
    flags = ndr.u32()
    session_key = ndr.take(16)
    server, domain = ndr.string_header(), ndr.string_header()
    has_domain_sid = ndr.u32()
    ndr.skip(8 + 32)  # LMKey or Reserved1; UserAccountControl to the last that is reserved
    extra_count, has_extra = ndr.u32(), ndr.u32()
    rest = end(ndr)
    # What the pointers point to follows in their order (C706 14.3.12.3).
    texts = [ndr.string(name) for name in names]
    groups = ndr.memberships(has_groups, group_count)
    ndr.string(server)
    domain_name = ndr.string(domain)
    domain_sid = ndr.sid() if has_domain_sid else ""
    extra = ndr.sids(has_extra, extra_count)
    info = ValidationInfo(
        name=texts[0],
        domain=domain_name,
        domain_sid=domain_sid,
        user=user,
        primary=primary,
        flags=flags,
        groups=tuple(groups),
        extra=tuple(sid for sid, enabled in extra if enabled),
        first=extra[0][0] if extra else "",
        session_key=session_key,
    )
    return info, rest
