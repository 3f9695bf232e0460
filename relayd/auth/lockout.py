"""How often somebody was wrong of late: the brake on guessing."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Final

from relayd.auth.turns import Turns
from relayd.directory import Directory, LockoutPolicy, User
from relayd.model import IPAddress
from relayd.settings import Lockout

__all__ = ["NO_LOCKOUT", "AccountLockout", "FailureCount", "Limits", "client_key", "limits_of"]

#: Failures of one account from one client, and how long they count, where nothing else is said.
FAILURES: Final = 10
FAILURE_WINDOW: Final = 900.0
#: Failures of one account from all clients, where the directory locks nobody: against guessing from many addresses.
FAILURES_OF_ALL: Final = 50
#: Of a directory that locks nobody.
NO_LOCKOUT: Final = LockoutPolicy(0, 0.0)


def client_key(address: IPAddress) -> str:
    """What failures are counted by: an address, or the /64 that one IPv6 host chooses its addresses from."""
    if isinstance(address, IPv6Address):
        return f"{IPv6Address(int(address) >> 64 << 64)}/64"
    return str(address)


class FailureCount:
    """Counts failures per key in a sliding window, for at most *keys* keys (the longest untouched go first).

    :param limit: failures from which on a key is blocked.
    :param seconds: the length of the window.
    :param clock: seconds, monotonic.
    """

    def __init__(self, limit: int, seconds: float, clock: Callable[[], float], keys: int = 10_000) -> None:
        self.limit = limit
        self.seconds = seconds
        self._clock = clock
        self._keys = keys
        self._failures: OrderedDict[Hashable, deque[float]] = OrderedDict()

    def blocked(self, key: Hashable) -> bool:
        """Whether *key* failed *limit* times in the window."""
        failures = self._failures.get(key)
        if failures is None:
            return False
        oldest = self._clock() - self.seconds
        while failures and failures[0] <= oldest:
            failures.popleft()
        if not failures:
            del self._failures[key]
        return len(failures) >= self.limit

    def failed(self, key: Hashable) -> None:
        failures = self._failures.setdefault(key, deque(maxlen=self.limit))
        failures.append(self._clock())
        self._failures.move_to_end(key)
        if len(self._failures) > self._keys:
            self._failures.popitem(last=False)

    def succeeded(self, key: Hashable) -> None:
        self._failures.pop(key, None)


@dataclass(frozen=True, slots=True)
class Limits:
    """How many failures of one account relayd lets through to the directory.

    :ivar client: from one client.
    :ivar strangers: from all clients together that never signed in as this account.
    :ivar known: from all clients together that did.
    :ivar window: seconds without a failure after which the count begins anew, as it does in the directory.
    """

    client: int
    strangers: int
    known: int
    window: float

    @classmethod
    def of(cls, lockout: Lockout, policy: LockoutPolicy) -> Limits:
        """What the administrator wrote, or, for ``auto``, half of what the directory's *policy* allows.

        Strangers have one half of the directory's threshold. Clients that are known have what is left of it but one, so
        that both together never lock the account. (A threshold of 1 or 2 cannot be halved so: one failure each.)
        """
        if not lockout.auto:
            return cls(lockout.failures, lockout.failures, lockout.failures, lockout.seconds)
        if policy.threshold <= 0:
            return cls(FAILURES, FAILURES_OF_ALL, FAILURES_OF_ALL, FAILURE_WINDOW)
        half = max(1, policy.threshold // 2)
        rest = max(1, policy.threshold - 1 - half)
        return cls(half, half, rest, policy.window or FAILURE_WINDOW)


async def limits_of(user: User, lockout: Lockout, directory: Directory) -> Limits:
    """The limits of *user*; the *directory* is asked for its policy where ``auto`` wants it.

    :raises relayd.directory.Unavailable: it has to be asked, and cannot.
    """
    return Limits.of(lockout, await directory.lockout_policy(user) if lockout.auto else NO_LOCKOUT)


class _Counts:
    """Failures by key, forgotten after a window without another; the longest untouched first when there are many.

    Unlike in :class:`FailureCount` the window begins anew with each failure. So does lockOutObservationWindow: failures
    that come one at a time, each within a window of the last, lock an account in the end.
    """

    def __init__(self, clock: Callable[[], float], keys: int) -> None:
        self._clock = clock
        self._keys = keys
        self._counts: OrderedDict[Hashable, tuple[int, float]] = OrderedDict()

    def count(self, key: Hashable, window: float) -> int:
        count, last = self._counts.get(key, (0, 0.0))
        return count if count and self._clock() - last <= window else 0

    def add(self, key: Hashable, window: float, times: int) -> None:
        self._counts[key] = (self.count(key, window) + times, self._clock())
        self._counts.move_to_end(key)
        if len(self._counts) > self._keys:
            self._counts.popitem(last=False)

    def forget(self, key: Hashable) -> None:
        self._counts.pop(key, None)


class _Book:
    """Failures by account and client, and by account."""

    def __init__(self, clock: Callable[[], float], keys: int) -> None:
        self.by_client = _Counts(clock, keys)
        self.by_account = _Counts(clock, keys)


class AccountLockout:
    """Keeps relayd from locking accounts in the directory, and a guesser from locking a service out of relayd.

    One for all mechanisms. Before a password or an answer is handed to the directory, :meth:`blocked` is asked; what
    the directory then counts as a failure goes to :meth:`failed`. A client that has signed in as an account is *known*
    for it: its attempts are counted apart from those of strangers, so whatever strangers do elsewhere, the known go on.

    :ivar turns: what is asked about one account is asked in turn, so that guesses made at once are counted too.
    :param clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float], keys: int = 50_000) -> None:
        self.turns = Turns()
        self._keys = keys
        self._accounts = _Book(clock, keys)
        self._names = _Book(clock, keys)
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def blocked(self, account: str, client: str, limits: Limits) -> str:
        """Why nothing of *account* from *client* may go to the directory now; empty: it may.

        :param account: what tells the account from others, however its name was written: its SID; or a name that the
            directory does not have.
        :param client: of :func:`client_key`.
        """
        book = self._book(account)
        if (count := book.by_client.count((account, client), limits.window)) >= limits.client:
            return f"{count} failures from {client}"
        known = (account, client) in self._known
        most = limits.known if known else limits.strangers
        if (count := book.by_account.count((account, known), limits.window)) >= most:
            return f"{count} failures from clients that are {'known' if known else 'not known'} for this account"
        return ""

    def failed(self, account: str, client: str, limits: Limits, times: int = 1) -> None:
        """The directory counted *times* failures, or may have."""
        if times <= 0:
            return
        book = self._book(account)
        book.by_client.add((account, client), limits.window, times)
        book.by_account.add((account, (account, client) in self._known), limits.window, times)

    def succeeded(self, account: str, client: str) -> None:
        """The directory let *account* in from *client*, and begins to count anew.

        What strangers did stays counted: a service that signs in all day must not win guesses for them.
        """
        book = self._book(account)
        book.by_client.forget((account, client))
        book.by_account.forget((account, True))
        self.recognised(account, client)

    def recognised(self, account: str, client: str) -> None:
        """*account* from *client* had the right password, and the directory was not asked."""
        self._known[account, client] = None
        self._known.move_to_end((account, client))
        if len(self._known) > self._keys:
            self._known.popitem(last=False)

    def _book(self, account: str) -> _Book:
        """Clients think up any number of names. They shall push nothing out of what is known of accounts, or their
        failures could be made forgotten while the directory still counts them."""
        return self._accounts if account.startswith("S-1-") else self._names
