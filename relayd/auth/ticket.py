"""Kerberos identities: who is it, that a ticket names?"""

from __future__ import annotations

from twisted.cred.checkers import ICredentialsChecker
from twisted.internet.defer import Deferred
from zope.interface import implementer

from relayd.auth.credentials import IKerberosIdentity, KerberosIdentity
from relayd.auth.directory import directory_principal
from relayd.auth.membership import Membership
from relayd.directory import Directory
from relayd.model import Principal

__all__ = ["KerberosChecker"]

_SOURCE = "kerberos"


@implementer(ICredentialsChecker)
class KerberosChecker:
    """Takes the word of a security context that is established. The KDC has judged the account when it gave the ticket.

    :param directory: asked for accounts whose ticket has no PAC; None: such an account has a name alone.
    """

    credentialInterfaces = (IKerberosIdentity,)

    def __init__(self, directory: Directory | None, membership: Membership) -> None:
        self._directory = directory
        self._membership = membership

    # cred hands any avatar id on to the realm; its annotation knows bytes alone.
    def requestAvatarId(self, credentials: KerberosIdentity) -> Deferred[Principal]:  # type: ignore[override]
        return Deferred.fromCoroutine(self._principal(credentials))

    async def _principal(self, identity: KerberosIdentity) -> Principal:
        pac = identity.pac
        if pac is None:
            return await self._without_pac(identity)
        principal = Principal(
            name=pac.name or identity.principal,
            mechanism=identity.mechanism,
            source=_SOURCE,
            upn=pac.upn or identity.principal,
            sid=pac.sid,
            groups=pac.group_sids,
        )
        return await self._membership.complete(principal, identity.client.listener)

    async def _without_pac(self, identity: KerberosIdentity) -> Principal:
        """Another KDC than Active Directory's gave the ticket, or the account wants none (MS-KILE 2.2.7, NA flag)."""
        name, _, realm = identity.principal.rpartition("@")
        # A realm is told from others by case too (RFC 4120 6.1); a domain's is its DNS name in capitals.
        if self._directory is not None and realm == (await self._directory.domain()).dns.upper():
            # By the account's name alone: a UPN may have the name of a realm that is not the domain's.
            user = await self._directory.find(f"{realm}\\{name}")
            if user is not None:
                return directory_principal(user, identity.mechanism, _SOURCE)
        return Principal(identity.principal, identity.mechanism, _SOURCE, upn=identity.principal)
