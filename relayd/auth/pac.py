"""The PAC: what a domain controller says of an account inside a Kerberos ticket (MS-PAC)."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Pac"]


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
