"""The directory, as the rest of relayd asks it: from the reactor, with answers that are reused for a while.

Threads open connections and wait for answers; which controller is asked, what is kept and what rests is decided in the
reactor, so nothing here needs a lock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path as File
from typing import Any, Final, TypeVar, cast

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall

from relayd import settings
from relayd.directory import lookups
from relayd.directory.answers import Answers
from relayd.directory.connecting import Connector, Probe, searcher_of
from relayd.directory.connection import Connection
from relayd.directory.controllers import IDLE, Controllers, Known, Purpose, Standing
from relayd.directory.entries import Group, LockoutPolicy, User
from relayd.directory.faults import ControllerFault, Refusal, SearcherFault, Unavailable
from relayd.directory.location import Dns, Location
from relayd.directory.names import Domain, account_name
from relayd.directory.operations import Operations
from relayd.events import ControllerRests, Events
from relayd.model import AUTH_BUSY, Fault, IPAddress, Reply
from relayd.threads import BoundedPool

__all__ = ["Directory"]

T = TypeVar("T")

#: Calls under way at most, and calls that may wait for a thread.
THREADS, WAITING = 8, 64
#: The same for recipients.
RECIPIENT_THREADS, RECIPIENTS_WAITING = 2, 64
#: How long "there is no such account" is kept at most, in seconds: the next day's new colleague shall not wait.
KEEP_NEGATIVE: Final = 10.0
#: How long what seldom changes is kept: the domain's names, and its lockout.
KEEP_DOMAIN, KEEP_LOCKOUT = 3600.0, 300.0
#: What stands for a policy that may not be read: the strictest that is sensible.
UNREADABLE: Final = LockoutPolicy(3, 1800.0)

_RECIPIENT_UNKNOWN_YET = Reply.of(451, "4.3.0", "Recipients cannot be looked up for now, please try again later")


class Directory:
    """A client of one directory.

    :param dns: looks up the controllers.
    :param reactor: takes the answers from the threads.
    :param keytab: whose own account searches where ``bind_user`` is empty; None: the system's.
    :param clock: seconds, monotonic; for what is kept and what rests.
    :raises ValueError: a server is no LDAP URL, or the CA file is none.
    """

    def __init__(
        self,
        settings: settings.Directory,
        dns: Dns,
        reactor: Any,
        events: Events,
        *,
        keytab: File | None = None,
        clock: Callable[[], float] = time.monotonic,
        threads: int = THREADS,
        waiting: int = WAITING,
    ) -> None:
        self.settings = settings
        self._reactor = reactor
        self._events = events
        self._clock = clock
        self._pool = BoundedPool("directory", reactor, threads=threads, waiting=waiting, full=AUTH_BUSY)
        self._recipient_pool = BoundedPool(
            "directory recipients", reactor, threads=RECIPIENT_THREADS, waiting=RECIPIENTS_WAITING
        )
        self._controllers = Controllers(clock)
        self._location = Location(settings, dns, reactor, self._controllers)
        self._connector = Connector(settings, searcher_of(settings, keytab, clock))
        self._pruning: IDelayedCall | None = None
        self._closed = False

        def keep(found: object) -> float:
            return settings.cache if found else min(settings.cache, KEEP_NEGATIVE)

        self._domains: Answers[str, Domain] = Answers(lambda _: KEEP_DOMAIN, clock)
        self._users: Answers[tuple[str, str], User | None] = Answers(keep, clock)
        self._groups: Answers[str, Group | None] = Answers(lambda _: settings.cache, clock)
        self._recipients: Answers[tuple[str, ...], bool] = Answers(keep, clock)
        self._lockouts: Answers[str, LockoutPolicy] = Answers(lambda _: KEEP_LOCKOUT, clock)

    # ---- what is asked ----------------------------------------------------------------------------------------

    async def find(self, name: str, default_domain: str = "", *, fresh: bool = False) -> User | None:
        """The user or computer called *name*; None where there is none.

        :param name: as :func:`relayd.directory.names.account_name` takes it; ``S-1-…`` is no name.
        :param default_domain: what a bare name belongs to.
        :param fresh: ask, whatever is kept.
        :raises Unavailable: the directory cannot be asked.
        """
        # A directory may tell "straße" from "strasse", which have one casefold(): case is ASCII's alone here.
        key = (name.lower() if name.isascii() else name, default_domain.casefold())
        return await self._users.get(key, partial(self._find, name, default_domain), fresh=fresh)

    async def find_sid(self, sid: str, *, fresh: bool = False) -> User | None:
        """The user or computer with this SID.

        :raises ValueError: *sid* is none.
        :raises Unavailable: the directory cannot be asked.
        """

        async def ask() -> User | None:
            domain = await self.domain()
            return await self._with_groups(domain, await self._search(partial(lookups.find_sid, domain, sid)))

        return await self._users.get((sid.casefold(), "\0sid"), ask, fresh=fresh)

    async def named_groups(self, sids: Iterable[str]) -> frozenset[str]:
        """The groups with these SIDs as a policy may spell them: SID, DN, name, ``CORP\\name``.

        The SID of no group here, one of another domain or of a user, stands for itself alone.

        :raises ValueError: one is no SID.
        :raises Unavailable: the directory cannot be asked.
        """
        return await self._spelled(await self.domain(), tuple(dict.fromkeys(sids)))

    async def find_mapping(self, identities: tuple[str, ...], *, fresh: bool = False) -> User | None:
        """The user or computer that has one of these values of altSecurityIdentities; None also where several have.

        :param identities: ``X509:<SKI>…`` and the like, of one certificate.
        :raises Unavailable: the directory cannot be asked.
        """

        async def ask() -> User | None:
            domain = await self.domain()
            found = await self._search(partial(lookups.find_mapping, domain, identities))
            return await self._with_groups(domain, found)

        return await self._users.get(("\0".join(identities), "\0mapping"), ask, fresh=fresh)

    async def verify(self, user: User, password: bytes) -> Refusal | None:
        """Whether *password* is the user's, by a bind; None: it is.

        :raises ValueError: *password* is empty.
        :raises Unavailable: the directory cannot be asked; ``asked`` says how many binds may have been counted.
        """
        if not password:
            raise ValueError("an empty password is never bound")

        binds = 0

        def bind(connection: Connection) -> Refusal | None:
            nonlocal binds  # one after the other, in whatever thread
            binds += 1
            return connection.bind(user.dn, password)

        refused = await self._run(Purpose.CHECK, bind)
        return refused and replace(refused, unanswered=binds - 1)

    async def has_recipient(self, *addresses: str) -> bool:
        """Whether one of the mail *addresses* is in the directory.

        :raises Fault: 451 4.3.0, the directory cannot be asked.
        """
        key = tuple(address.lower() for address in addresses)

        async def ask() -> bool:
            domain = await self.domain()
            return await self._run(Purpose.RECIPIENTS, partial(lookups.has_recipient, domain, key))

        try:
            return await self._recipients.get(key, ask)
        except Fault as fault:
            raise Fault(_RECIPIENT_UNKNOWN_YET, fault.detail) from None

    async def lockout_policy(self, user: User) -> LockoutPolicy:
        """When the directory locks this user's account. A policy that may not be read counts as strict.

        :raises Unavailable: the directory cannot be asked.
        """

        root = "" if user.policy else (await self.domain()).of(user.dn).root

        async def ask() -> LockoutPolicy:
            if user.policy:
                found = await self._search(partial(lookups.fine_grained_lockout, user.policy))
            else:
                found = await self._search(partial(lookups.domain_lockout, root))
            return found or UNREADABLE

        return await self._lockouts.get(user.policy or root, ask)

    async def domain(self) -> Domain:
        """What the directory says of itself.

        :raises Unavailable: the directory cannot be asked.
        """
        s = self.settings

        async def ask() -> Domain:
            return await self._search(partial(lookups.own_domain, s.base, s.domain, s.netbios))

        return await self._domains.get("", ask)

    async def probe(self) -> tuple[Probe, ...]:
        """Tries each controller, those that rest too.

        :raises Unavailable: the controllers cannot be found.
        """
        probes = []
        for known in await self._location.candidates(time.monotonic() + self.settings.timeout):
            until = time.monotonic() + self.settings.timeout
            try:
                addresses = await self._location.resolved(known.controller, until)
                done = await self._pool.run(self._connector.probe, known.controller, addresses, until)
            except (ControllerFault, Fault) as fault:
                done = Probe(str(known.controller), fault=str(fault))
            probes.append(done)
        return tuple(probes)

    async def hosts(self) -> tuple[tuple[str, tuple[IPAddress, ...]], ...]:
        """The controllers' names with their addresses, in the order to try them, whatever they are asked for. One that
        rests comes last, one without an address not at all.

        :raises Unavailable: none can be found.
        """
        return await self._location.hosts(time.monotonic() + self.settings.timeout)

    @property
    def searcher(self) -> str:
        """Who searches."""
        return self._connector.searcher

    def status(self) -> tuple[Standing, ...]:
        """How the controllers do that were asked so far."""
        return self._controllers.standings()

    def operations(self) -> Operations:
        """What was asked so far."""
        return self._connector.tally.so_far

    def close(self) -> Deferred[list[None]]:
        """Asks no more and closes all connections. Fires when the threads have ended, within the time-out."""
        self._closed = True
        if self._pruning is not None:
            self._pruning.cancel()
            self._pruning = None
        self._controllers.prune(time.monotonic() + 1)
        ended = gatherResults([self._pool.end(), self._recipient_pool.end()])

        def forget(done: list[None]) -> list[None]:
            self._connector.close()
            return done

        return ended.addCallback(forget)

    # ---- how it is asked --------------------------------------------------------------------------------------

    async def _find(self, name: str, default_domain: str) -> User | None:
        domain = await self.domain()
        wanted = account_name(name, default_domain, domain)
        if wanted is None:
            return None
        return await self._with_groups(domain, await self._search(partial(lookups.find_user, domain, wanted)))

    async def _with_groups(self, domain: Domain, user: User | None) -> User | None:
        return user and replace(user, groups=await self._spelled(domain, user.group_sids))

    async def _spelled(self, domain: Domain, sids: Sequence[str]) -> frozenset[str]:
        groups = {sid: self._groups.kept(sid) for sid in sids}
        if wanted := [sid for sid, kept in groups.items() if kept is None]:
            found = await self._search(partial(lookups.find_groups, domain, wanted))
            for sid in wanted:
                groups[sid] = (found.get(sid),)
                self._groups.put(sid, found.get(sid))
        spelled = set(sids)
        for kept in groups.values():
            if kept is not None and kept[0] is not None:
                spelled |= domain.spellings(kept[0])
        return frozenset(spelled)

    async def _search(self, work: Callable[[Connection], T]) -> T:
        return await self._run(Purpose.SEARCH, work)

    async def _run(self, purpose: Purpose, work: Callable[[Connection], T]) -> T:
        """Has *work* done by the first controller that can, all within the time-out."""
        deadline = time.monotonic() + self.settings.timeout
        candidates = await self._location.candidates(deadline)
        awake = [known for known in candidates if known.rests_until <= self._clock()]
        if not awake:
            raise Unavailable("; ".join(known.why for known in candidates) or "no controller")
        reasons, asked = [], 0
        for index, known in enumerate(awake):
            now = time.monotonic()
            # Each gets its share of what is left, so that one that hangs leaves time for the next.
            until = now + (deadline - now) / (len(awake) - index)
            try:
                result = await self._attempt(known, purpose, work, until)
            except ControllerFault as fault:
                reasons.append(str(fault))
                asked += fault.asked
                if seconds := known.failed(str(fault), self._clock()):
                    self._events.emit(ControllerRests(host=str(known.controller), seconds=seconds, reason=str(fault)))
                continue
            except SearcherFault as fault:
                raise Unavailable(str(fault)) from None
            known.worked()
            return result
        raise Unavailable("; ".join(reasons), asked)

    async def _attempt(self, known: Known, purpose: Purpose, work: Callable[[Connection], T], until: float) -> T:
        pool = self._recipient_pool if purpose is Purpose.RECIPIENTS else self._pool
        # In turn, or all who wait for a thread would have a connection of their own, and there would be few idle ones.
        return await pool.in_turn(partial(self._attempt_now, pool, known, purpose, work, until))

    async def _attempt_now(
        self, pool: BoundedPool, known: Known, purpose: Purpose, work: Callable[[Connection], T], until: float
    ) -> T:
        if self._closed:
            raise Unavailable("closed")
        idle = known.take(purpose)
        try:
            addresses = (idle.address,) if idle is not None else await self._location.resolved(known.controller, until)
            use: Callable[[], tuple[Connection, T]] = partial(
                self._connector.use, idle, known.controller, addresses, purpose, work, until
            )
            connection, result = await pool.run(use)
        except Unavailable:
            raise
        except Fault:  # the pool is full: nobody has touched the connection
            if idle is not None:
                known.put(purpose, idle)
            raise
        self._put(known, purpose, connection)
        return result

    def _put(self, known: Known, purpose: Purpose, connection: Connection) -> None:
        if self._closed:
            connection.close()
            return
        known.put(purpose, connection)
        if self._pruning is None:
            self._pruning = cast(IDelayedCall, self._reactor.callLater(IDLE, self._prune))

    def _prune(self) -> None:
        self._pruning = None
        if self._controllers.prune(time.monotonic() - IDLE):
            self._pruning = cast(IDelayedCall, self._reactor.callLater(IDLE, self._prune))
