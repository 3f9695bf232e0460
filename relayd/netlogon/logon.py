"""A network logon (MS-NRPC 2.2.1.4): what is asked, and what a good answer holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from relayd.netlogon.faults import CannotTell
from relayd.netlogon.statuses import LogonRefused

__all__ = ["Logon", "NetworkLogon", "granted"]

# MS-NRPC 2.2.1.4.13, UserFlags.
_GUEST = 0x1
# MS-SAMR 2.2.1.9: the RID of the Guest account.
_GUEST_RID = 501
# MS-PAC 2.2.1: attributes of a group.
_ENABLED, _DENY_ONLY = 0x4, 0x10

#: Characters of a name, and octets of a response, at most: no account and no client has longer ones.
LONGEST_NAME: Final = 1024
LONGEST_RESPONSE: Final = 16 * 1024
#: An NTLMv2 response is longer than this; all older ones have these 24 octets (MS-NLMP 2.2.2.6).
_NTLM_V1: Final = 24


@dataclass(frozen=True, slots=True)
class NetworkLogon:
    """An answer to an NTLM challenge, as the client gave it (MS-NRPC 2.2.1.4.5).

    :ivar domain: may be empty: *account* is a UPN, or the controller looks for it in its own domain.
    :ivar challenge: 8 octets; *nt* the NTLMv2 response, *lm* the LMv2 response or zeros.
    :raises LogonRefused: no account can be meant.
    """

    account: str
    domain: str
    workstation: str
    challenge: bytes = field(repr=False)
    nt: bytes = field(repr=False)
    lm: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not self.account:
            raise LogonRefused(0, "anonymous", False)
        names = (self.account, self.domain, self.workstation)
        if any(len(name) > LONGEST_NAME or "\0" in name or not _encodable(name) for name in names):
            raise LogonRefused(0, "no name of an account", False)
        if len(self.challenge) != 8:
            raise ValueError("a challenge has 8 octets")
        if len(self.nt) <= _NTLM_V1:
            raise LogonRefused(0, "NTLMv1 or no response", False)
        if max(len(self.nt), len(self.lm)) > LONGEST_RESPONSE:
            raise LogonRefused(0, "the response is too long", False)


@dataclass(frozen=True, slots=True)
class Logon:
    """An account that a controller lets in.

    :ivar name: sAMAccountName; *domain* the NetBIOS name of its domain.
    :ivar group_sids: of all its groups, nested ones included.
    :ivar session_key: the session base key (MS-NLMP 3.3.2), 16 octets.
    """

    name: str
    domain: str
    sid: str
    group_sids: frozenset[str]
    session_key: bytes = field(repr=False)


def granted(info: Any) -> Logon:
    """The logon of a decoded NETLOGON_VALIDATION_SAM_INFO4 (MS-NRPC 2.2.1.4.13).

    :raises LogonRefused: the account was let in as a guest.
    :raises CannotTell: the answer lacks what every account has.
    """
    rid = int(info["UserId"])
    if int(info["UserFlags"]) & _GUEST or rid == _GUEST_RID:
        raise LogonRefused(0, "let in as guest, which proves nothing", True)
    name, domain_sid = _text(info["EffectiveName"]), _sid(info["LogonDomainId"])
    session_key = bytes(info["UserSessionKey"])
    if not name or not rid or not domain_sid:
        raise CannotTell("the answer names no account")
    if len(session_key) != 16 or not any(session_key):
        raise CannotTell(f"the answer about {name} has no session key")
    groups = {f"{domain_sid}-{info['PrimaryGroupId']}"}
    groups.update(f"{domain_sid}-{group['RelativeId']}" for group in info["GroupIds"] or () if _counts(group))
    groups.update(_sid(group["Sid"]) for group in info["ExtraSids"] or () if _counts(group))
    return Logon(
        name=name,
        domain=_text(info["LogonDomainName"]),
        sid=f"{domain_sid}-{rid}",
        group_sids=frozenset(groups - {""}),
        session_key=session_key,
    )


def _counts(group: Any) -> bool:
    return bool(int(group["Attributes"]) & _ENABLED) and not int(group["Attributes"]) & _DENY_ONLY


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _sid(value: Any) -> str:
    return str(value.formatCanonical()) if hasattr(value, "formatCanonical") else ""


def _encodable(name: str) -> bool:
    try:
        name.encode("utf-16-le")
    except UnicodeEncodeError:
        return False
    return True
