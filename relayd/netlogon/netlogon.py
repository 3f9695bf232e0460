"""Netlogon, as the rest of relayd asks it: from the reactor, over the one channel that there is.

A controller keeps one channel's state for each machine account, and more of them bring no more, so one thread owns the
channel, and with it the secret and what rests: nothing here needs a lock.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol, TypeVar

from twisted.internet.defer import Deferred

from relayd import settings
from relayd.directory import Domain, Unavailable
from relayd.events import ControllerRests, Events
from relayd.model import AUTH_BUSY, IPAddress
from relayd.netlogon.faults import CannotTell, ChannelFault, MachineFault
from relayd.netlogon.logon import Logon, NetworkLogon
from relayd.netlogon.secret import Secret
from relayd.netlogon.statuses import LogonRefused
from relayd.threads import BoundedPool

__all__ = ["Channel", "Netlogon", "netlogon_missing"]

T = TypeVar("T")
Hosts = Sequence[tuple[str, tuple[IPAddress, ...]]]

#: Logons that may wait for the channel.
WAITING: Final = 64
#: How long a controller to which no channel could be opened is left alone, in seconds: doubled each time.
FIRST_REST: Final = 1.0
LONGEST_REST: Final = 60.0
#: A channel that was not used for so long, in seconds, is opened anew: what lies between may have forgotten it.
IDLE: Final = 60.0
#: How often one logon is asked at most: a controller may have counted it each time.
ASKS: Final = 2


class Channel(Protocol):
    """What is asked of a channel: see :class:`relayd.netlogon.channel.SecureChannel`."""

    host: str
    used: float

    @property
    def stale(self) -> bool: ...
    def logon(self, asked: NetworkLogon, until: float) -> Logon: ...
    def confirm(self, until: float) -> None: ...
    def abort(self) -> None: ...
    def close(self) -> None: ...


#: Opens a channel to a host at an address, for the account of a domain with a password (UTF-8), by a moment.
Opens = Callable[[str, IPAddress, str, str, bytes, float], Channel]


class Controllers(Protocol):
    """Who knows the controllers. :class:`relayd.directory.Directory` does."""

    settings: settings.Directory

    async def hosts(self) -> Hosts: ...
    async def domain(self) -> Domain: ...


def netlogon_missing() -> str:
    """What the machine lacks to speak Netlogon; empty: nothing."""
    if importlib.util.find_spec("impacket") is None:
        return "Netlogon needs the extra relayd[netlogon] (impacket)"
    return ""


class Netlogon:
    """Asks the domain's controllers about NTLM answers.

    :ivar logons: how often a controller was asked about one.
    :param reactor: takes the answers from the thread.
    :param clock: seconds, monotonic; for what rests.
    :param opens: opens channels; the default is a :class:`~relayd.netlogon.channel.SecureChannel`.
    :raises ValueError: *settings* name no computer or no secret_file.
    """

    def __init__(
        self,
        controllers: Controllers,
        settings: settings.Ntlm,
        reactor: Any,
        events: Events,
        *,
        clock: Callable[[], float] = time.monotonic,
        waiting: int = WAITING,
        opens: Opens | None = None,
    ) -> None:
        computer = settings.computer.removesuffix("$")
        if not computer or settings.secret_file is None:
            raise ValueError("netlogon needs ntlm.computer and ntlm.secret_file")
        self.account = f"{computer}$"
        self.logons = 0
        self._controllers = controllers
        self._reactor = reactor
        self._events = events
        self._clock = clock
        self._opens = opens or _secure_channel
        self._pool = BoundedPool("netlogon", reactor, threads=1, waiting=waiting, full=AUTH_BUSY)
        self._secret = Secret(settings.secret_file, clock)
        self._rests: dict[str, _Rest] = {}
        self._channel: Channel | None = None
        self._closed = False

    async def logon(self, account: str, domain: str, workstation: str, challenge: bytes, nt: bytes, lm: bytes) -> Logon:
        """The account that an NTLMv2 answer is right for.

        :param account: sAMAccountName, or a UPN with *domain* empty, as the client wrote it, like *workstation*.
        :param challenge: what was to be answered, 8 octets.
        :param nt: NtChallengeResponse; *lm* LmChallengeResponse.
        :raises LogonRefused: none.
        :raises Unavailable: nobody can tell; ``asked`` says how often a controller may have counted a failure.
        """
        asked = NetworkLogon(account, domain, workstation, challenge, nt, lm)

        def ask(channel: Channel, until: float) -> Logon:
            self.logons += 1  # in the one thread
            return channel.logon(asked, until)

        return await self._run(ask)

    async def domain(self) -> Domain:
        """The names of the domain.

        :raises Unavailable: nobody can tell.
        """
        try:
            return await self._controllers.domain()
        except Unavailable:
            s = self._controllers.settings
            if not s.netbios:
                raise
            return Domain(s.base, s.base, dns=s.domain, netbios=s.netbios)

    async def check(self) -> str:
        """Whether there is a channel, or one can be opened: empty, or why not."""
        try:
            await self._run(lambda channel, until: channel.confirm(until))
        except Unavailable as fault:
            return fault.detail
        return ""

    def close(self) -> Deferred[None]:
        """Asks no more, and ends the channel and its thread."""
        self._closed = True
        if (channel := self._channel) is not None:
            channel.abort()  # whoever waits for an answer hears that there is none
        ended = self._pool.end()

        def drop(result: None) -> None:
            self._drop()
            return result

        return ended.addCallback(drop)

    # ---- in the reactor ---------------------------------------------------------------------------------------

    async def _run(self, work: Callable[[Channel, float], T]) -> T:
        """Has *work* done over the channel, opened where it is not, all within the directory's time-out."""
        deadline = time.monotonic() + self._controllers.settings.timeout
        hosts: Hosts = ()
        spent = _Spent()
        while True:
            if self._closed:
                raise Unavailable("netlogon: closed", spent.asked)
            if self._channel is None:
                hosts = await self._hosts(spent)
            domain = await self._domain()
            try:
                return await self._pool.run(self._use, hosts, domain, work, deadline, spent)
            except _HostsWanted:
                hosts = await self._hosts(spent)
            except (MachineFault, CannotTell) as fault:
                raise Unavailable(f"netlogon: {fault}", spent.asked) from None

    async def _hosts(self, spent: _Spent) -> Hosts:
        try:
            return await self._controllers.hosts()
        except Unavailable as fault:
            fault.asked += spent.asked
            raise

    async def _domain(self) -> str:
        s = self._controllers.settings
        if name := s.netbios or s.domain:
            return name
        domain = await self._controllers.domain()
        return domain.netbios or domain.dns

    # ---- in the thread ----------------------------------------------------------------------------------------

    def _use(self, hosts: Hosts, domain: str, work: Callable[[Channel, float], T], deadline: float, spent: _Spent) -> T:
        """Does *work*, on another channel where one is lost meanwhile; in the thread."""
        while spent.asked < ASKS and not self._closed and (now := time.monotonic()) < deadline:
            channel = self._usable()
            # A channel that hangs leaves time for another one.
            until = now + (deadline - now) / 2 if channel is not None and not spent.reasons else deadline
            if channel is None:
                if not hosts:
                    raise _HostsWanted
                channel = self._channel = self._open(hosts, domain, deadline, spent)
            try:
                return work(channel, until)
            except LogonRefused as refused:
                refused.unanswered = spent.asked
                raise
            except ChannelFault as fault:
                self._drop()
                spent.asked += fault.asked
                spent.reasons.append(str(fault))
                if fault.timed_out:
                    spent.hung.add(channel.host)
        raise Unavailable(f"netlogon: {'; '.join(spent.reasons) or 'no time was left for it'}", spent.asked)

    def _usable(self) -> Channel | None:
        channel = self._channel
        if channel is not None and (channel.stale or time.monotonic() - channel.used > IDLE):
            self._drop()
        return self._channel

    def _open(self, hosts: Hosts, domain: str, deadline: float, spent: _Spent) -> Channel:
        """A channel to the first controller that gives one."""
        password = self._secret.read()
        rests = [(self._rests.setdefault(host, _Rest()), host, addresses) for host, addresses in hosts]
        awake = [known for known in rests if known[0].until <= self._clock()]
        awake.sort(key=lambda known: known[1] in spent.hung)
        if not awake:
            raise Unavailable(f"netlogon: {'; '.join(rest.why for rest, _, _ in rests)}", spent.asked)
        refused = []
        for index, (rest, host, addresses) in enumerate(awake):
            now = time.monotonic()
            until = now + (deadline - now) / (len(awake) - index)
            try:
                channel = self._reach(host, addresses, domain, password, until)
            except MachineFault as fault:
                refused.append(str(fault))
            except ChannelFault as fault:
                spent.reasons.append(str(fault))
                seconds = rest.failed(str(fault), self._clock())
                event = ControllerRests(host=f"netlogon {host}", seconds=seconds, reason=str(fault))
                self._reactor.callFromThread(self._events.emit, event)
            else:
                rest.worked()
                self._secret.worked()
                return channel
        if refused:
            self._secret.refused(password, "; ".join(refused))
            raise MachineFault("; ".join(refused))
        raise Unavailable(f"netlogon: {'; '.join(spent.reasons)}", spent.asked)

    def _reach(
        self, host: str, addresses: tuple[IPAddress, ...], domain: str, password: bytes, until: float
    ) -> Channel:
        reasons = []
        for index, address in enumerate(addresses):
            now = time.monotonic()
            if self._closed or now >= until:
                reasons.append(f"{host}: timed out")
                break
            share = now + (until - now) / (len(addresses) - index)
            try:
                return self._opens(host, address, self.account, domain, password, share)
            except ChannelFault as fault:
                reasons.append(str(fault))
        raise ChannelFault("; ".join(reasons) or f"{host}: has no address")

    def _drop(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


class _HostsWanted(Exception):
    """There is no channel any more, and nobody looked up where to open one."""


class _Spent:
    """What one logon has cost so far."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.asked = 0
        self.hung: set[str] = set()


class _Rest:
    """How long a controller is left alone."""

    def __init__(self) -> None:
        self.until = 0.0
        self.why = ""
        self._next = FIRST_REST

    def failed(self, why: str, now: float) -> float:
        """It rests from now on; for how long, in seconds."""
        rest, self._next = self._next, min(self._next * 2, LONGEST_REST)
        self.why, self.until = why, now + rest
        return rest

    def worked(self) -> None:
        self.until, self.why, self._next = 0.0, "", FIRST_REST


def _secure_channel(host: str, address: IPAddress, account: str, domain: str, password: bytes, until: float) -> Channel:
    # Here, in the thread: impacket takes a quarter of a second, and is an extra.
    try:
        from relayd.netlogon.channel import Machine, SecureChannel
    except ImportError as error:
        raise MachineFault(netlogon_missing() or f"impacket: {error}") from None
    return SecureChannel(host, address, Machine.of(account, domain, password), until)
