"""Connections kept for reuse: the next message for the same target finds one that is open already."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from twisted.internet.defer import Deferred, DeferredList
from twisted.internet.interfaces import IDelayedCall

from relayd.delivery.client import DEFAULT_TIMEOUTS, as_allowed, connect
from relayd.delivery.connection import Connection
from relayd.delivery.fault import PathFault
from relayd.delivery.outflow import InThread
from relayd.delivery.sasl import Authenticator
from relayd.delivery.target import Target, Timeouts
from relayd.delivery.tls import ClientTls
from relayd.model import Recipient, Reply, Sender
from relayd.queue.store import MessageBody


@dataclass(frozen=True, slots=True)
class Sent:
    """What a next hop answered to a message.

    :ivar replies: one final reply a recipient, in their order.
    :ivar peer: ``host[address]:port``.
    :ivar tls: as :attr:`Connection.tls`.
    :ivar extensions: what the next hop offers (upper case): whether it takes over DSN requests, for one.
    :ivar broken: the connection broke on the way, and some replies are relayd's own for that reason.
    """

    replies: tuple[Reply, ...]
    peer: str
    tls: str
    extensions: frozenset[str]
    broken: bool = False


class _Kept:
    """The connections to one target: how many are *busy* (connecting or sending), and the *idle* ones, the last used
    at the end."""

    __slots__ = ("busy", "idle")

    def __init__(self) -> None:
        self.busy = 0
        self.idle: list[Connection] = []


class ConnectionPool:
    """Sends messages through connections that it opens, keeps for a while, and closes.

    It sets no limits of its own except that it closes idle connections when *most* are open; how many messages are
    on their way at once is for the scheduler to decide.

    :param hostname: relayd's own name, for EHLO.
    :param in_thread: where files are read.
    :param authenticator: for targets with a credential; None = passwords alone.
    :param idle_seconds: how long an unused connection is kept.
    :param messages: how many messages a connection carries at most.
    :param most: open connections, beyond which an idle one is closed for each new one.
    """

    def __init__(
        self,
        reactor: Any,
        *,
        hostname: str,
        tls: ClientTls,
        in_thread: InThread,
        authenticator: Authenticator | None = None,
        timeouts: Timeouts = DEFAULT_TIMEOUTS,
        idle_seconds: float = 5.0,
        messages: int = 100,
        most: int = 1000,
    ) -> None:
        self._reactor = reactor
        self._hostname = hostname
        self._tls = tls
        self._in_thread = in_thread
        self._authenticator = authenticator or Authenticator(in_thread)
        self._timeouts = timeouts
        self._idle_seconds = idle_seconds
        self._messages = messages
        self._most = most
        self._busy = 0
        self._kept: dict[Target, _Kept] = {}
        self._until: dict[Connection, tuple[float, _Kept]] = {}  # the idle ones, the longest idle first
        self._sweeper: IDelayedCall | None = None
        self._leaving: set[Deferred[None]] = set()
        self._closed = False

    @property
    def busy(self) -> int:
        """Connections that are being opened or used."""
        return self._busy

    @property
    def idle(self) -> int:
        """Connections that wait for a next message."""
        return len(self._until)

    def open_to(self, target: Target) -> int:
        """Connections to *target*, busy or idle."""
        kept = self._kept.get(target)
        return kept.busy + len(kept.idle) if kept else 0

    async def send(self, target: Target, sender: Sender, recipients: Sequence[Recipient], body: MessageBody) -> Sent:
        """Send one message to *target*.

        :raises PathFault: no recipient got an answer. A kept connection that turned out to be dead is not reported:
            a fresh one takes its place.
        """
        kept = self._kept.get(target)
        if kept is None:
            kept = self._kept[target] = _Kept()
        kept.busy += 1
        self._busy += 1
        try:
            while (connection := self._take(kept)) is not None:
                try:
                    return await self._through(connection, kept, sender, recipients, body)
                except PathFault as fault:
                    if not fault.stale:
                        raise
            return await self._through(await self._connect(target), kept, sender, recipients, body)
        finally:
            kept.busy -= 1
            self._busy -= 1
            if not (kept.busy or kept.idle):
                self._kept.pop(target, None)

    async def close(self) -> None:
        """Takes leave on all idle connections; those in use follow as they become free."""
        self._closed = True
        for connection in list(self._until):
            self._forget(connection)
            self._leave(connection)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        await DeferredList(list(self._leaving))

    async def _through(
        self,
        connection: Connection,
        kept: _Kept,
        sender: Sender,
        recipients: Sequence[Recipient],
        body: MessageBody,
    ) -> Sent:
        try:
            replies = await connection.send(sender, recipients, body)
        finally:
            usable = connection.usable
            if usable:
                self._keep(connection, kept)
        return Sent(replies, connection.peer, connection.tls, connection.offer.extensions, broken=not usable)

    async def _connect(self, target: Target) -> Connection:
        if self._until and self._busy + len(self._until) > self._most:
            oldest = next(iter(self._until))
            self._forget(oldest)
            self._leave(oldest)
        return await as_allowed(target, self._open)

    def _open(self, target: Target) -> Deferred[Connection]:
        return connect(
            self._reactor,
            target,
            hostname=self._hostname,
            tls=self._tls,
            in_thread=self._in_thread,
            authenticator=self._authenticator,
            timeouts=self._timeouts,
        )

    def _take(self, kept: _Kept) -> Connection | None:
        while kept.idle:
            connection = kept.idle.pop()
            del self._until[connection]
            if connection.usable:
                return connection
        return None

    def _keep(self, connection: Connection, kept: _Kept) -> None:
        if self._closed or connection.messages >= self._messages:
            self._leave(connection)
            return
        connection.closed = self._forget
        kept.idle.append(connection)
        self._until[connection] = (self._reactor.seconds() + self._idle_seconds, kept)
        if self._sweeper is None:
            self._sweeper = self._reactor.callLater(self._idle_seconds, self._sweep)

    def _forget(self, connection: Connection) -> None:
        """*connection* is told to leave, or is lost. It may be idle no longer."""
        _, kept = self._until.pop(connection, (0.0, None))
        if kept is not None:
            kept.idle.remove(connection)
            if not (kept.busy or kept.idle):
                self._kept.pop(connection.target, None)

    def _sweep(self) -> None:
        self._sweeper = None
        now = self._reactor.seconds()
        for connection, (until, _) in list(self._until.items()):
            if until > now:
                self._sweeper = self._reactor.callLater(until - now, self._sweep)
                break
            self._forget(connection)
            self._leave(connection)

    def _leave(self, connection: Connection) -> None:
        leaving = connection.quit()
        if not leaving.called:
            self._leaving.add(leaving)
            leaving.addBoth(lambda _: self._leaving.discard(leaving))
