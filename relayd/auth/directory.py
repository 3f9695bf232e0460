"""Passwords against the directory."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from functools import partial

from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred
from zope.interface import implementer

from relayd.auth.accounts import LONGEST_NAME, AccountsFile, AccountsFileError, prepared
from relayd.auth.checkers import AccountsChecker
from relayd.auth.credentials import IPassword, Password
from relayd.auth.lockout import AccountLockout, Limits, client_key, limits_of
from relayd.directory import Answers, Directory, Unavailable, User
from relayd.model import AUTH_UNAVAILABLE, Fault, Principal
from relayd.settings import Lockout

__all__ = ["LdapChecker", "PasswordChecker", "directory_principal"]


def directory_principal(user: User, mechanism: str, source: str) -> Principal:
    """The principal of a user of the directory."""
    return Principal(
        name=user.name or user.dn,
        mechanism=mechanism,
        source=source,
        upn=user.upn,
        sid=user.sid,
        groups=user.groups,
        addresses=user.addresses,
    )


@implementer(ICredentialsChecker)
class LdapChecker:
    """Checks name and password against the directory, by a bind.

    A right password is not bound again for *keep* seconds. A wrong one is not bound again while it stays wrong, that
    is, while the account keeps its password: a forgotten device that offers last year's password all day costs
    one bad-password count.

    :param lockout: past its limits no bind is tried, 454 4.7.0; one for all checkers.
    :param default_domain: what a bare name belongs to, by the listener's name.
    :param keep: seconds; 0: each password is bound.
    :param clock: seconds, monotonic.
    """

    credentialInterfaces = (IPassword,)

    def __init__(
        self,
        directory: Directory,
        lockout: AccountLockout,
        settings: Lockout,
        default_domain: Callable[[str], str],
        keep: float,
        clock: Callable[[], float],
    ) -> None:
        self._directory = directory
        self._lockout = lockout
        self._settings = settings
        self._default_domain = default_domain
        self._key = os.urandom(32)
        # By keyed hash of account and password: the password_set that it was right for, or wrong for, and how long.
        self._right: Answers[bytes, int] = Answers(lambda _: keep, clock)
        self._wrong: Answers[bytes, tuple[int, float]] = Answers(lambda kept: kept[1], clock)

    # cred hands any avatar id on to the realm; its annotation knows bytes alone.
    def requestAvatarId(self, credentials: Password) -> Deferred[Principal]:  # type: ignore[override]
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: Password) -> Principal:
        name, password = _readable(credentials)
        default_domain = self._default_domain(credentials.client.listener)
        user = await self._directory.find(name, default_domain)
        if user is None:
            raise UnauthorizedLogin("unknown account")
        limits = await limits_of(user, self._settings, self._directory)
        client = client_key(credentials.client.peer.address)
        user = await self._lockout.turns.take(
            user.key, partial(self._judge, name, default_domain, user, password, client, limits)
        )
        return directory_principal(user, credentials.mechanism, "ldap")

    async def _judge(
        self, name: str, default_domain: str, user: User, password: bytes, client: str, limits: Limits
    ) -> User:
        """The user as it is now.

        :raises UnauthorizedLogin: refused.
        """
        if why := self._lockout.blocked(user.key, client, limits):
            raise Fault(AUTH_UNAVAILABLE, f"too many failures of {user.name}, {why}: password not looked at")
        right = self._right.kept(self._digest(user, password))
        if right is None or right[0] != user.password_set or not user.state.good:
            return await self._verify(name, default_domain, user, password, client, limits)
        self._lockout.recognised(user.key, client)
        return user

    async def _verify(
        self, name: str, default_domain: str, user: User, password: bytes, client: str, limits: Limits
    ) -> User:
        """Asks the directory; the user as it is now.

        :raises UnauthorizedLogin: refused.
        """
        digest = self._digest(user, password)
        if (wrong := self._wrong.kept(digest)) is not None:
            now = await self._directory.find(name, default_domain, fresh=True)
            if now is not None and now.key == user.key and now.password_set == wrong[0][0]:
                raise UnauthorizedLogin("52e wrong password, as before: not bound again")
        try:
            refused = await self._directory.verify(user, password)
            if refused is not None and refused.wrong_password:
                # The entry may be one that was kept, and renamed since: a bind to its old name fails.
                now = await self._now(name, default_domain)
                if now is not None and now.key == user.key and now.dn != user.dn:
                    user = now
                    refused = await self._directory.verify(user, password)
        except Unavailable as fault:
            self._lockout.failed(user.key, client, limits, fault.asked)
            raise
        if refused is None:
            self._lockout.succeeded(user.key, client)
            self._right.put(digest, user.password_set)
            return user
        if refused.wrong_password:
            self._lockout.failed(user.key, client, limits, refused.failures)
            if user.password_set > 0:  # else a new password could not be told from the old
                self._wrong.put(digest, (user.password_set, limits.window))
        raise UnauthorizedLogin(str(refused))

    async def _now(self, name: str, default_domain: str) -> User | None:
        try:
            return await self._directory.find(name, default_domain, fresh=True)
        except Unavailable:
            return None

    def _digest(self, user: User, password: bytes) -> bytes:
        return hmac.digest(self._key, f"{len(user.key)}:{user.key}".encode() + password, hashlib.sha256)


def _readable(credentials: Password) -> tuple[str, bytes]:
    """Name and password, when they can be an account's.

    :raises UnauthorizedLogin: they cannot.
    """
    try:
        name = prepared(credentials.username.decode("utf-8"))
        credentials.password.decode("utf-8")
    except ValueError:
        raise UnauthorizedLogin("name or password is not UTF-8, or holds what SASLprep prohibits") from None
    if not credentials.password:
        # A directory takes a bind without a password for an anonymous one, and calls it success (RFC 4513 5.1.2).
        raise UnauthorizedLogin("empty password")
    if not name or len(name) > LONGEST_NAME:
        raise UnauthorizedLogin("no name of an account")
    return name, credentials.password


@implementer(ICredentialsChecker)
class PasswordChecker:
    """A name in the accounts file is checked there alone, any other in the directory alone."""

    credentialInterfaces = (IPassword,)

    def __init__(self, accounts: AccountsFile, local: AccountsChecker, directory: LdapChecker) -> None:
        self._accounts = accounts
        self._local = local
        self._directory = directory

    def requestAvatarId(self, credentials: Password) -> Deferred[Principal]:  # type: ignore[override]
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: Password) -> Principal:
        try:
            local = self._accounts.find(credentials.username.decode("utf-8", "replace"))
        except AccountsFileError as error:
            # Whose name it is cannot be told.
            raise Fault(AUTH_UNAVAILABLE, str(error)) from None
        checker = self._local if local is not None else self._directory
        return await checker.requestAvatarId(credentials)
