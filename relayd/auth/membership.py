"""From an account that Windows vouched for to the principal that the policy knows.

A Kerberos ticket and a controller's answer to NTLM bring the account's SID and the SIDs of its groups. The directory is
asked only for what the policy wants beyond that: the names of groups, where a rule spells one by name or DN, and the
account's own addresses, where senders are held to them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from relayd.directory import Directory
from relayd.model import Principal
from relayd.settings import Relay

__all__ = ["Membership", "Wanted"]

_SID: Final = re.compile(r"S-1(-\d+)+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the policy of one listener wants to know of a principal beyond SIDs."""

    group_names: bool
    addresses: bool

    @classmethod
    def by(cls, relay: Relay) -> Wanted:
        """By its ``[relay]``."""
        own = relay.send_as == "own"
        groups = (*relay.groups, *(relay.send_as_groups if own else ()))
        return cls(any(_SID.fullmatch(group) is None for group in groups), own)


class Membership:
    """Completes principals whose groups are SIDs.

    :param directory: None: there is none, and a principal stays as it is.
    :param relay: the ``[relay]`` of a listener, by its name.
    """

    def __init__(self, directory: Directory | None, relay: Callable[[str], Relay]) -> None:
        self._directory = directory
        self._relay = relay

    async def complete(self, principal: Principal, listener: str) -> Principal:
        """*principal* with what the policy of *listener* wants of it.

        :raises relayd.directory.Unavailable: 454 4.7.0: the directory has to be asked, and cannot.
        """
        directory, wanted = self._directory, Wanted.by(self._relay(listener))
        if directory is None or not principal.sid:
            return principal
        if wanted.group_names:
            principal = replace(principal, groups=principal.groups | await directory.named_groups(principal.groups))
        if wanted.addresses:
            # A user of another domain is not there, and has no addresses that anybody here vouches for.
            user = await directory.find_sid(principal.sid)
            principal = replace(principal, addresses=user.addresses if user is not None else ())
        return principal
