"""Connecting to a next hop as an ESMTP client."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, UNIXClientEndpoint
from twisted.internet.error import ConnectError, ConnectingCancelledError
from twisted.internet.error import TimeoutError as ConnectTimeout
from twisted.internet.protocol import Factory

from relayd.delivery.connection import Connection
from relayd.delivery.fault import PathFault, Stage
from relayd.delivery.outflow import InThread
from relayd.delivery.sasl import Authenticator
from relayd.delivery.target import Target, Timeouts
from relayd.delivery.tls import SERVED, ClientTls
from relayd.model import IPAddress, Reply
from relayd.settings import OutboundTls

DEFAULT_TIMEOUTS = Timeouts()


async def as_allowed(
    target: Target, opening: Callable[[Target], Deferred[Connection]], broken: Callable[[PathFault], None] | None = None
) -> Connection:
    """A connection to *target* by *opening*, which is :func:`connect`; where TLS breaks that nobody asked for, in the
    clear.

    :param broken: is told how TLS broke.
    :raises PathFault: there is none.
    """
    try:
        return await opening(target)
    except PathFault as fault:
        if not fault.cleartext:
            raise
        if broken is not None:
            broken(fault)
    # The message goes in the clear rather than not at all (RFC 7435 3).
    connection = await opening(replace(target, tls=OutboundTls.NONE))
    connection.target = target  # kept for whoever asks the same again
    return connection


def connect(
    reactor: Any,
    target: Target,
    *,
    hostname: str,
    tls: ClientTls,
    in_thread: InThread,
    timeouts: Timeouts = DEFAULT_TIMEOUTS,
    authenticator: Authenticator | None = None,
    made: Callable[[Connection], None] = lambda connection: None,
) -> Deferred[Connection]:
    """Connects to *target*, says EHLO, starts TLS and authenticates, as the target asks.

    :param hostname: relayd's own name, for EHLO.
    :param in_thread: where files are read (``BoundedPool.run``).
    :param made: is told of the connection as soon as it stands, before anything is said.
    :returns: fires with a usable connection; fails with :class:`PathFault`. Cancelling it gives up.
    """
    return Deferred.fromCoroutine(
        _connect(reactor, target, hostname, tls, timeouts, in_thread, authenticator or Authenticator(in_thread), made)
    )


async def _connect(
    reactor: Any,
    target: Target,
    hostname: str,
    tls: ClientTls,
    timeouts: Timeouts,
    in_thread: InThread,
    authenticator: Authenticator,
    made: Callable[[Connection], None],
) -> Connection:
    if target.level not in SERVED:
        reply = Reply.of(451, "4.7.5", f"TLS by {target.level.value} is not served")
        raise PathFault(Stage.CONNECT, reply, peer=str(target))
    factory = Factory.forProtocol(
        lambda: Connection(reactor, target, hostname, timeouts, tls, in_thread, authenticator)
    )
    factory.noisy = False
    seconds = min(timeouts.connect, target.haste)
    try:
        connection = cast(Connection, await _endpoint(reactor, target, seconds).connect(factory))
    except ConnectingCancelledError:
        raise
    except ConnectError as error:
        text = f"No connection: {_why(error, seconds)}"
        reply = Reply.of(451, "4.4.1", text)
        raise PathFault(Stage.CONNECT, reply, f"{target}: {text}", peer=str(target)) from None
    made(connection)
    await connection.open()
    return connection


def _endpoint(reactor: Any, target: Target, seconds: float) -> Any:
    address = target.address
    if address is None:
        return UNIXClientEndpoint(reactor, target.socket, seconds)
    kind = TCP4ClientEndpoint if address.version == 4 else TCP6ClientEndpoint
    return kind(reactor, str(address), target.port, seconds, _source(target.source_address, address))


def _source(source: str, address: IPAddress) -> tuple[str, int] | None:
    return (source, 0) if source and (":" in source) == (address.version == 6) else None


def _why(error: ConnectError, seconds: float) -> str:
    if isinstance(error, ConnectTimeout):
        return f"no answer within {seconds:g} s"
    return os.strerror(error.osError) if isinstance(error.osError, int) else str(error)
