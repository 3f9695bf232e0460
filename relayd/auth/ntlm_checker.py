"""The cred checkers of NTLM: what is refused before anybody is asked, and what a right answer must also hold.

A backend says whether an answer is right for an account. All else is looked at here, so that it holds for each backend.
"""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from zope.interface import implementer

from relayd.auth.accounts import LONGEST_NAME, same_name
from relayd.auth.credentials import INtlmResponse, NtlmResponse
from relayd.auth.directory import directory_principal
from relayd.auth.lockout import NO_LOCKOUT, AccountLockout, FailureCount, Limits, client_key, limits_of
from relayd.auth.ntlm import NtlmAccount, NtlmRefused
from relayd.auth.ntlm_messages import (
    OWN_NAMES,
    Authenticate,
    binding_hash,
    exported_session_key,
    mech_list_mic,
    message_mic,
    own_pairs,
    parse_authenticate,
)
from relayd.directory import Directory, Unavailable, User
from relayd.model import AUTH_UNAVAILABLE, Client, Fault, Principal
from relayd.settings import Lockout

__all__ = ["LocalNtlmChecker", "NtlmChecker"]

#: Stands for an account of another domain: its own policy is not to be had, this domain's is the best guess.
_FOREIGN: Final = User(dn="", name="")

#: What clients of this service call it, before the slash; ``host`` stands for all services of a host.
_SERVICES: Final = frozenset({"smtp", "smtpsvc", "host"})

#: ``ignore``, ``accept`` or ``require``, by the listener's name.
ChannelBinding = Callable[[str], str]
#: Group SIDs -> the same as a policy may spell them.
GroupsOf = Callable[[frozenset[str]], Awaitable[frozenset[str]]]


@dataclass(frozen=True, slots=True)
class _Claim:
    """Whom a client claims to be.

    :ivar user: None: the directory does not have the account.
    :ivar counted: what failures are counted for; the account itself first.
    """

    user: User | None
    counted: tuple[str, ...]
    limits: Limits


@implementer(ICredentialsChecker)
class NtlmChecker:
    """Checks answers of the domain's accounts, by the backends that ask its controllers.

    Whose failures are counted is looked up in the directory; who signed in is whom the controller names, whatever the
    client wrote. A bare name is the controller's own domain's, not ``default_domain``'s: the controller knows no other.

    :param directory: None: principals have no more than the backend's answer, and failures are counted by the name as
        it was written.
    :param lockout: past its limits nobody is asked, 454 4.7.0; one for all checkers.
    :param channel_binding: by the listener's name.
    :param groups_of: spells group SIDs that a directory user does not have from the directory.
    """

    credentialInterfaces = (INtlmResponse,)

    def __init__(
        self,
        directory: Directory | None,
        lockout: AccountLockout,
        settings: Lockout,
        channel_binding: ChannelBinding,
        groups_of: GroupsOf | None = None,
    ) -> None:
        self._directory = directory
        self._lockout = lockout
        self._settings = settings
        self._channel_binding = channel_binding
        self._groups_of = groups_of

    # cred hands any avatar id on to the realm; its annotation knows bytes alone.
    def requestAvatarId(self, credentials: NtlmResponse) -> Deferred[Principal]:  # type: ignore[override]
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: NtlmResponse) -> Principal:
        try:
            message = _acceptable(credentials, self._channel_binding)
            claim = await self._claim(message)
            account = await self._lockout.turns.take(
                claim.counted[-1], partial(self._judge, credentials, message, claim)
            )
        finally:
            credentials.exchange.abandon()
        return await self._principal(account, claim.user, credentials.mechanism)

    async def _claim(self, message: Authenticate) -> _Claim:
        """Whom the client claims to be.

        A controller may take a domain that it does not know for its own. So what fails as ``ANY\\alice`` counts for the
        directory's alice too, and ``ANY\\alice@corp.example`` for whoever has that UPN, or each domain that a client
        thinks of would be worth another guess.

        :raises UnauthorizedLogin: the directory has no such account in its domain.
        """
        written = _written(message.domain, message.user)
        bare = message.user.partition("@")[0]
        if self._directory is None:
            return _Claim(None, (bare.casefold(),), Limits.of(self._settings, NO_LOCKOUT))
        user = await self._directory.find(written)
        if user is not None:
            return _Claim(user, (user.key,), await limits_of(user, self._settings, self._directory))
        own = (await self._directory.domain()).is_called(message.domain)
        if own or not (message.domain or "@" in message.user):  # a UPN may be of another domain of the forest
            raise UnauthorizedLogin("unknown account")
        namesake = await self._directory.find(message.user) or await self._directory.find(bare)
        counted = (written.casefold(), *((namesake.key,) if namesake is not None else ()))
        limits = await limits_of(namesake or _FOREIGN, self._settings, self._directory)
        return _Claim(None, counted, limits)

    async def _judge(self, credentials: NtlmResponse, message: Authenticate, claim: _Claim) -> NtlmAccount:
        client = client_key(credentials.client.peer.address)
        for counted in claim.counted:
            if why := self._lockout.blocked(counted, client, claim.limits):
                raise Fault(AUTH_UNAVAILABLE, f"too many failures of {message.user}, {why}: answer not looked at")
        try:
            account = await credentials.exchange.verify(credentials.authenticate)
        except NtlmRefused as refused:
            self._failed(claim, client, refused.failures)
            raise
        except Unavailable as fault:
            self._failed(claim, client, fault.asked)
            raise
        _prove(account, message, credentials)
        self._lockout.succeeded(claim.counted[0], client)
        return account

    def _failed(self, claim: _Claim, client: str, times: int) -> None:
        for counted in claim.counted:
            self._lockout.failed(counted, client, claim.limits, times)

    async def _principal(self, account: NtlmAccount, user: User | None, mechanism: str) -> Principal:
        user = await self._named(account, user)
        known = frozenset(user.group_sids) if user is not None else frozenset()
        groups = account.group_sids
        if more := groups - known:
            groups |= await self._groups_of(more) if self._groups_of is not None else frozenset()
        if user is None:
            name = _written(account.domain, account.name)
            return Principal(name=name, mechanism=mechanism, source="ntlm", sid=account.sid, groups=groups)
        return replace(directory_principal(user, mechanism, "ntlm"), groups=user.groups | groups)

    async def _named(self, account: NtlmAccount, user: User | None) -> User | None:
        """Whom the controller named: seldom anybody but the *user* that the client's spelling led to."""
        if self._directory is None:
            return None
        if account.sid:
            return user if user is not None and user.sid == account.sid else await self._directory.find_sid(account.sid)
        own = not account.domain or (await self._directory.domain()).is_called(account.domain)
        if user is not None and own and user.name.casefold() == account.name.casefold():
            return user
        return await self._directory.find(_written(account.domain, account.name))


@implementer(ICredentialsChecker)
class LocalNtlmChecker:
    """Checks answers of local accounts, by :class:`relayd.auth.ntlm_accounts.AccountsBackend`.

    :param failures: past its limit for an account and client, 454 4.7.0 without a look; one with ``AccountsChecker``.
    :param channel_binding: by the listener's name.
    """

    credentialInterfaces = (INtlmResponse,)

    def __init__(self, failures: FailureCount, channel_binding: ChannelBinding) -> None:
        self._failures = failures
        self._channel_binding = channel_binding

    def requestAvatarId(self, credentials: NtlmResponse) -> Deferred[Principal]:  # type: ignore[override]
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: NtlmResponse) -> Principal:
        try:
            message = _acceptable(credentials, self._channel_binding)
            who = (same_name(message.user), client_key(credentials.client.peer.address))
            if self._failures.blocked(who):
                why = f"too many failures of {message.user} from {who[1]}: answer not looked at"
                raise Fault(AUTH_UNAVAILABLE, why)
            try:
                account = await credentials.exchange.verify(credentials.authenticate)
            except NtlmRefused as refused:
                if refused.wrong_password:
                    self._failures.failed(who)
                raise
            _prove(account, message, credentials)
        finally:
            credentials.exchange.abandon()
        self._failures.succeeded(who)
        return Principal(
            name=account.name,
            mechanism=credentials.mechanism,
            source="accounts",
            groups=account.group_sids,
            addresses=account.addresses,
        )


def _written(domain: str, name: str) -> str:
    return f"{domain}\\{name}" if domain else name


def _acceptable(credentials: NtlmResponse, channel_binding: ChannelBinding) -> Authenticate:
    """The answer, when it is worth to be judged: all that can be told without its key.

    :raises UnauthorizedLogin: it is not.
    :raises Fault: 501 5.5.2: it is no AUTHENTICATE message.
    """
    message = parse_authenticate(credentials.authenticate)
    if message.anonymous:
        raise UnauthorizedLogin("anonymous NTLM session")
    if message.weakness:
        raise UnauthorizedLogin(f"{message.weakness}; NTLMv2 alone is taken")
    names = (message.user, message.domain, message.workstation)
    if any(len(name) > LONGEST_NAME or any(ord(c) < 32 for c in name) for name in names):
        raise UnauthorizedLogin("no name of an account, domain or computer")
    asked = own_pairs(credentials.exchange.challenge)
    # The client copies them (MS-NLMP 3.1.5.1.2): others were put into the challenge on its way, for a client that has
    # no MIC to notice it by.
    if any(asked.get(pair, b"") != message.pairs.get(pair, b"") for pair in OWN_NAMES):
        raise UnauthorizedLogin("answers a challenge with other names in its target info: it was altered, or another's")
    rule = channel_binding(credentials.client.listener)
    _insist_on_service(message, rule)
    _insist_on_binding(message, credentials.client, rule)
    if message.has_mic and not message.mic:
        raise UnauthorizedLogin("says that it has a MIC, and has none")
    return message


def _insist_on_service(message: Authenticate, rule: str) -> None:
    """Extended protection's other half: who was made to sign in to a web or file server is not relayed from there.

    The host is not looked at: a relay may be called by any alias.

    :raises UnauthorizedLogin: the answer is for a service that is none of mail.
    """
    service, slash, _ = message.target.partition("/")
    if rule != "ignore" and slash and service.casefold() not in _SERVICES:
        raise UnauthorizedLogin(
            f"an answer for {message.target[:255]}, not for this service: it was relayed from there"
        )


def _insist_on_binding(message: Authenticate, client: Client, rule: str) -> None:
    """Extended protection (MS-NLMP 3.2.5.1.2).

    :raises UnauthorizedLogin: the answer is for another channel, or for none and *rule* is ``require``.
    """
    if rule == "ignore":
        return
    if not message.binding:
        if rule == "require":
            raise UnauthorizedLogin("no channel binding, and the listener requires it")
        return
    channel = client.tls.binding if client.tls is not None else b""
    if not channel or not hmac.compare_digest(message.binding, binding_hash(channel)):
        raise UnauthorizedLogin("bound to another channel: the client speaks TLS with somebody between")


def _prove(account: NtlmAccount, message: Authenticate, credentials: NtlmResponse) -> None:
    """Checks what is signed under the session key.

    :raises UnauthorizedLogin: a signature is wrong; or SPNEGO needs one that never can be checked, since the backend
        gives no key: trying again would not help.
    :raises Fault: 454 4.7.0: there is a MIC that neither the backend nor a key of its has checked.
    """
    key = account.exported_key or (exported_session_key(account.session_key, message) if account.session_key else b"")
    if not key:
        if message.has_mic and not account.checked:
            raise Fault(AUTH_UNAVAILABLE, "there is no session key to check the client's MIC with")
        if credentials.mech_list_mic and credentials.list_in_doubt:
            raise UnauthorizedLogin(
                "SPNEGO: NTLM was not the first choice, and there is no session key to check the mechListMIC with"
            )
        return
    if message.has_mic:
        wanted = message_mic(key, credentials.exchange.negotiate, credentials.exchange.challenge, message)
        if not hmac.compare_digest(message.mic, wanted):
            raise UnauthorizedLogin("wrong MIC: a message was altered on its way")
    if credentials.mech_list_mic:
        wanted = mech_list_mic(key, message.flags, credentials.mech_list)
        if not hmac.compare_digest(credentials.mech_list_mic, wanted):
            raise UnauthorizedLogin("wrong mechListMIC: the SPNEGO mechanism list was altered on its way")
