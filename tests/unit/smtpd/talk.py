"""A session on a transport in memory, and a client's hands on it; with real TLS, and without a socket."""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ITLSTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from relayd.model import Peer
from relayd.settings import Authentication, Limits, Listener, TlsMode
from relayd.smtpd import MECHANISMS, MechanismFactory, RelayESMTP, VirtualServer
from tests.lab.ca import Leaf
from tests.unit.smtpd.fakes import FakeChecker, FakePolicy, FakeRealm, FakeResolver, portal, recorder


@implementer(ITLSTransport)
class MemoryTransport(StringTransport):
    """A TCP connection in memory that can start TLS as Twisted's do: the protocol keeps this transport.

    :ivar writes: what was written to the wire, one entry a ``write``.
    :ivar no_delay: what is written does not wait for the client to acknowledge what was before.
    """

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.protocol: Any = None
        self.tls: TLSMemoryBIOProtocol | None = None
        self.aborted = False
        self.no_delay = False

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.no_delay = enabled

    def write(self, data: bytes) -> None:
        if self.tls is None:
            self.writes.append(data)
            super().write(data)
        else:
            self.tls.write(data)

    def startTLS(self, ctx: Any, normal: bool = True) -> None:
        wrapped = self.protocol
        factory = TLSMemoryBIOFactory(ctx, False, None)
        raw = _Raw(self)
        self.protocol = tls = TLSMemoryBIOProtocol(factory, wrapped, False)
        tls.makeConnection(raw)
        self.tls = tls

    def getHandle(self) -> Any:
        assert self.tls is not None
        return self.tls.getHandle()

    def loseConnection(self) -> None:
        if self.tls is not None and not self.disconnecting:
            self.disconnecting = True
            self.tls.loseConnection()
        self.disconnecting = True

    def abortConnection(self) -> None:
        self.aborted = self.disconnecting = True


class _Raw:
    """What lies under TLS."""

    def __init__(self, transport: MemoryTransport) -> None:
        self._transport = transport

    def write(self, data: bytes) -> None:
        StringTransport.write(self._transport, data)

    def writeSequence(self, data: list[bytes]) -> None:
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        self._transport.disconnecting = True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class Talk:
    """A client in conversation with one session.

    :param limits: changes to the default limits of the listener.
    :param tls: the server side of TLS, where there shall be any.
    :param mechanisms: SASL mechanisms beyond those by password, and *checkers* their credentials.
    """

    def __init__(
        self,
        *,
        policy: FakePolicy | None = None,
        realm: FakeRealm | None = None,
        address: str = "192.0.2.7",
        tls: Any = None,
        mode: TlsMode = TlsMode.STARTTLS,
        max_failures: int = 3,
        protocol: type[RelayESMTP] = RelayESMTP,
        connect: bool = True,
        mechanisms: Mapping[str, MechanismFactory] | None = None,
        checkers: tuple[Any, ...] = (),
        **limits: Any,
    ) -> None:
        self.clock = Clock()
        self.policy = policy or FakePolicy()
        self.realm = realm or FakeRealm()
        self.checker = FakeChecker()
        self.resolver = FakeResolver()
        self.events, self.seen = recorder()
        self.server = VirtualServer(
            hostname="relay.example",
            listener=Listener(
                name="test",
                tls=mode,
                limits=replace(Limits(), **limits),
                authentication=Authentication(max_failures=max_failures),
            ),
            policy=self.policy,
            portal=portal(self.realm, self.checker, *checkers),
            events=self.events,
            reactor=self.clock,
            resolver=self.resolver,
            tls=tls,
            mechanisms={**MECHANISMS, **(mechanisms or {})},
        )
        self.session = protocol(self.server, Peer(ip_address(address), 40000))
        self.transport = MemoryTransport()
        self.transport.protocol = self.session
        self._client: ssl.SSLObject | None = None
        self._implicit: TLSMemoryBIOProtocol | None = None
        if connect:
            self.connect()

    def connect(self) -> None:
        if self.server.listener.tls is TlsMode.IMPLICIT:
            self._implicit = TLSMemoryBIOProtocol(TLSMemoryBIOFactory(self.server.tls, False, None), self.session)
            self.transport.protocol = self._implicit
            self._implicit.makeConnection(self.transport)
        else:
            self.session.makeConnection(self.transport)

    # The client's side.

    def send(self, octets: bytes) -> bytes:
        """Sends *octets* in one segment, and returns what comes back."""
        if self._client is not None:
            self._client.write(octets)
            self._pump()
        else:
            self.transport.protocol.dataReceived(octets)
        return self.read()

    def line(self, text: str) -> str:
        """Sends a line; the reply, without its last line ending."""
        return self.send(text.encode() + b"\r\n").decode().removesuffix("\r\n")

    def lines(self, *texts: str) -> list[str]:
        """Sends lines one by one; their replies."""
        return [self.line(text) for text in texts]

    def read(self) -> bytes:
        """What came since the last look."""
        if self._client is not None:
            self._pump()
            return b"".join(self._decrypted())
        octets = self.transport.value()
        self.transport.clear()
        return octets

    def hello(self, helo: str = "client.example") -> str:
        """Reads the greeting, and says EHLO."""
        self.read()
        return self.line(f"EHLO {helo}")

    def mail(self, *recipients: str) -> None:
        """Opens a transaction."""
        assert self.line("MAIL FROM:<a@b.example>").startswith("250")
        for recipient in recipients or ("c@d.example",):
            assert self.line(f"RCPT TO:<{recipient}>").startswith("250")

    def start_tls(self, certificate: Leaf | None = None) -> None:
        """The handshake, after 220 to STARTTLS or on an implicit TLS port.

        :param certificate: of the client.
        """
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if certificate is not None:
            context.load_cert_chain(certificate.chain, certificate.key)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._client = context.wrap_bio(self._in, self._out)
        for _ in range(4):
            with suppress(ssl.SSLWantReadError):
                self._client.do_handshake()
            self._pump()

    def _pump(self) -> None:
        for _ in range(3):
            out = self._out.read()
            if out:
                self.transport.protocol.dataReceived(out)
            answer = self.transport.value()
            self.transport.clear()
            if answer:
                self._in.write(answer)

    def _decrypted(self) -> Iterator[bytes]:
        assert self._client is not None
        with suppress(ssl.SSLError):
            while octets := self._client.read(65536):
                yield octets

    @property
    def closed(self) -> bool:
        """Whether the server ended the session."""
        return self.transport.disconnecting or (self._implicit is not None and self._implicit.disconnecting)

    @property
    def paused(self) -> bool:
        """Whether the server reads no more for now."""
        return self.transport.producerState == "paused"

    def hang_up(self) -> None:
        """The connection is gone."""
        self.transport.protocol.connectionLost(Failure(ConnectionDone()))

    def event(self, name: str) -> Any:
        """The last event of that name."""
        return next(event for event in reversed(self.seen) if event.name == name)

    def names(self) -> list[str]:
        """The names of all events, in order."""
        return [event.name for event in self.seen]


__all__ = ["MemoryTransport", "Talk"]
