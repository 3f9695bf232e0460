"""Listening sockets: bound while the process may, served once everything behind them is up."""

from __future__ import annotations

import errno
import socket
from functools import lru_cache
from pathlib import Path as File
from typing import Any, Final

from twisted.internet.address import IPv4Address as TcpAddress
from twisted.internet.address import IPv6Address as Tcp6Address
from twisted.internet.defer import Deferred, DeferredList, maybeDeferred, succeed
from twisted.internet.interfaces import IAddress, IListeningPort
from twisted.internet.protocol import Factory
from twisted.protocols.tls import TLSMemoryBIOFactory

from relayd.model import Fault, Peer, Reply, client_address
from relayd.settings import TlsMode
from relayd.smtpd.session import RelayESMTP
from relayd.smtpd.tls import server_tls
from relayd.smtpd.virtual_server import VirtualServer

#: Connections that wait to be accepted; the system may allow fewer.
BACKLOG: Final = 1024
#: How long sessions in mid-message may go on after a stop, in seconds.
GRACE: Final = 10.0

_NO_IPV6: Final = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT})

# Few clients make most connections, and an address is slow to read.
_address = lru_cache(maxsize=4096)(client_address)


class SessionFactory(Factory):
    """Makes the sessions of one virtual server."""

    noisy = False

    def __init__(self, server: VirtualServer) -> None:
        self.server = server

    def buildProtocol(self, addr: IAddress | None) -> RelayESMTP:
        assert isinstance(addr, TcpAddress | Tcp6Address)
        return RelayESMTP(self.server, Peer(_address(addr.host), addr.port))


class Listening:
    """One virtual server on its socket.

    Three steps, since they belong to different moments of a start: :meth:`bind` may need root, :meth:`start` needs the
    queue to be open, :meth:`stop` waits for the sessions.

    :param server: its ``tls`` is filled in by :meth:`bind` where the listener speaks TLS and nobody did so before.
    :param directory: where the self-signed certificate is kept.
    """

    def __init__(self, server: VirtualServer, directory: File) -> None:
        self.server = server
        self._directory = directory
        self._socket: socket.socket | None = None
        self._port: IListeningPort | None = None
        self._bound: tuple[str, int] | None = None

    @property
    def bound(self) -> tuple[str, int]:
        """Address and port of the socket."""
        assert self._bound is not None, "not bound yet"
        return self._bound

    @property
    def address(self) -> str:
        """``192.0.2.1:25`` or ``[::]:25``."""
        host, port = self.bound
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    @property
    def text(self) -> str:
        """The listener for people: its name, its address, how it does TLS."""
        listener = self.server.listener
        return f"{listener.name} {self.address} ({listener.tls.value})"

    def bind(self) -> None:
        """Loads the certificate, and takes the address.

        :raises Fault: the certificate cannot be used, or the address cannot be had. Its detail says why.
        """
        server, listener = self.server, self.server.listener
        if listener.tls is not TlsMode.NONE and server.tls is None:
            server.tls = server_tls(listener.tls_settings, self._directory, server.hostname)
        self._socket = _listen(listener.address, listener.port, listener.name)
        host, port, *_ = self._socket.getsockname()
        self._bound = host, port

    def start(self) -> None:
        """Serves."""
        assert self._socket is not None, "not bound"
        factory: Any = SessionFactory(self.server)
        if self.server.listener.tls is TlsMode.IMPLICIT:
            assert self.server.tls is not None
            factory = TLSMemoryBIOFactory(self.server.tls, False, factory)
            factory.noisy = False
        reactor: Any = self.server.reactor
        with self._socket as bound:  # the reactor has a descriptor of its own
            self._port = reactor.adoptStreamPort(bound.fileno(), bound.family, factory)
        self._socket = None

    def stop(self) -> Deferred[Any]:
        """Takes no more connections, and ends the sessions: idle ones at once, others within :data:`GRACE`.

        The Deferred fires when all have gone.
        """
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        port, self._port = self._port, None
        stopped = maybeDeferred(port.stopListening) if port is not None else succeed(None)
        sessions = list(self.server.sessions.values())
        return DeferredList([stopped, *(session.shutdown(GRACE) for session in sessions)], consumeErrors=True)


def _listen(address: str, port: int, name: str) -> socket.socket:
    """A listening socket. ``::`` takes IPv4 too, and becomes 0.0.0.0 where there is no IPv6."""
    try:
        if ":" in address:
            try:
                return _bound(socket.AF_INET6, address, port)
            except OSError as error:
                if address != "::" or error.errno not in _NO_IPV6:
                    raise
                address = "0.0.0.0"
        return _bound(socket.AF_INET, address, port)
    except OSError as error:
        where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        raise Fault(
            Reply.of(421, "4.3.2", "Not listening"), f"listener {name}: cannot listen on {where}: {error.strerror}"
        ) from error


def _bound(family: int, address: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        made.bind((address, port))
        made.listen(BACKLOG)
        made.setblocking(False)
    except BaseException:
        made.close()
        raise
    return made


__all__ = ["BACKLOG", "GRACE", "Listening", "SessionFactory"]
