"""cred checkers: each vouches for one source of accounts. The avatar id is a Principal, or ANONYMOUS."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable
from functools import partial

from twisted.cred.checkers import ANONYMOUS, ICredentialsChecker
from twisted.cred.credentials import IAnonymous
from twisted.cred.error import UnauthorizedLogin
from twisted.internet.defer import Deferred, succeed
from zope.interface import implementer

from relayd.auth.accounts import LONGEST_NAME, Account, AccountsFile, AccountsFileError, same_name
from relayd.auth.credentials import IPassword, Password
from relayd.auth.lockout import FailureCount, client_key
from relayd.auth.turns import Turns
from relayd.model import AUTH_UNAVAILABLE, Fault, Principal
from relayd.threads import BoundedPool

#: How long a right password is not checked again, in seconds: devices log in for every message.
REMEMBERED = 60.0

#: An account, and where it is tried from.
_Who = tuple[str, str]


@implementer(ICredentialsChecker)
class AnonymousChecker:
    """Lets everybody in as nobody: whether a session without authentication may do anything is the policy's
    question, not cred's."""

    credentialInterfaces = (IAnonymous,)

    def requestAvatarId(self, credentials: object) -> Deferred[bytes | tuple[()]]:
        return succeed(ANONYMOUS)


@implementer(ICredentialsChecker)
class AccountsChecker:
    """Checks name and password against the accounts file, in a thread: argon2 is meant to be slow.

    :param pool: a full one is 454 4.7.0.
    :param failures: past its limit for an account and client, 454 4.7.0 without a look at the password.
    :param clock: seconds, monotonic.
    """

    credentialInterfaces = (IPassword,)

    def __init__(
        self, accounts: AccountsFile, pool: BoundedPool, failures: FailureCount, clock: Callable[[], float]
    ) -> None:
        self._accounts = accounts
        self._pool = pool
        self._failures = failures
        self._clock = clock
        self._key = os.urandom(32)
        self._remembered: dict[bytes, tuple[float, Account]] = {}
        self._turns = Turns()

    # cred hands any avatar id on to the realm; its annotation knows bytes alone.
    def requestAvatarId(self, credentials: Password) -> Deferred[Principal]:  # type: ignore[override]
        return Deferred.fromCoroutine(self._check(credentials))

    async def _check(self, credentials: Password) -> Principal:
        try:
            name = credentials.username.decode("utf-8")
            password = credentials.password.decode("utf-8")
        except UnicodeDecodeError:
            raise UnauthorizedLogin("name or password is not UTF-8") from None
        if not password:
            raise UnauthorizedLogin("empty password")
        if len(name) > LONGEST_NAME:
            raise UnauthorizedLogin("no name of an account is so long")
        who = (same_name(name), client_key(credentials.client.peer.address))
        account = await self._turns.take(who, partial(self._judge, who, name, password))
        self._failures.succeeded(who)
        return Principal(
            name=account.name,
            mechanism=credentials.mechanism,
            source="accounts",
            groups=frozenset(account.groups),
            addresses=account.addresses,
        )

    async def _judge(self, who: _Who, name: str, password: str) -> Account:
        """The account whose password it is.

        :raises UnauthorizedLogin: there is none.
        """
        if self._failures.blocked(who):
            raise Fault(AUTH_UNAVAILABLE, f"too many failures of {name} from {who[1]}: password not looked at")
        account = self._recall(name, password) or await self._verify(name, password)
        if account is None:
            self._failures.failed(who)
            raise UnauthorizedLogin("unknown account or wrong password")
        return account

    async def _verify(self, name: str, password: str) -> Account | None:
        try:
            account = await self._pool.run(self._accounts.verify, name, password)
        except AccountsFileError as error:
            raise Fault(AUTH_UNAVAILABLE, str(error)) from None
        if account is not None:
            if len(self._remembered) > 10_000:
                self._remembered.clear()
            self._remembered[self._digest(name, password)] = (self._clock() + REMEMBERED, account)
        return account

    def _recall(self, name: str, password: str) -> Account | None:
        """The account, when this very password was right of late and the account is still the same."""
        digest = self._digest(name, password)
        until, account = self._remembered.get(digest, (0.0, None))
        if account is None:
            return None
        try:
            if self._clock() < until and self._accounts.find(name) == account:
                return account
        except AccountsFileError:
            pass
        del self._remembered[digest]
        return None

    def _digest(self, name: str, password: str) -> bytes:
        return hmac.digest(self._key, f"{len(name)}:{name}{password}".encode(), hashlib.sha256)
