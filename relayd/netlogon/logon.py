"""A network logon (MS-NRPC 2.2.1.4): what is asked, and who is let in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from relayd.netlogon.statuses import LogonRefused

__all__ = ["Logon", "NetworkLogon"]

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


def _encodable(name: str) -> bool:
    try:
        name.encode("utf-16-le")
    except UnicodeEncodeError:
        return False
    return True
