"""A next hop in memory: the test says what it says, and reads what it was sent."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, BinaryIO

from twisted.internet.defer import Deferred, execute
from twisted.internet.error import ConnectionDone
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.python.failure import Failure

from relayd.delivery import ClientTls, Connection, Target, connect
from relayd.model import Path, Recipient, Reply, Sender
from relayd.settings import OutboundTls

TLS = ClientTls()
TARGET = Target("mx.example", ip_address("192.0.2.1"), tls=OutboundTls.NONE)
ALICE = Sender(Path("alice", "corp.example"))
BOB = Recipient(Path("bob", "partner.example"))
CAROL = Recipient(Path("carol", "partner.example"))
HELLO = b"Subject: hello\r\n\r\nhello\r\n"


@dataclass
class Body:
    """A message in memory, or, when *filed*, one that must be read from a file."""

    content: bytes
    filed: bool = False

    @property
    def size(self) -> int:
        return len(self.content)

    @property
    def octets(self) -> bytes | None:
        return None if self.filed else self.content

    def open(self) -> BinaryIO:
        return io.BytesIO(self.content)


class BrokenBody(Body):
    def open(self) -> BinaryIO:
        raise OSError(5, "Input/output error")


class Wire(StringTransport):
    """A transport in memory that notes aborts and TLS."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False
        self.tls: list[object] = []

    def abortConnection(self) -> None:
        self.aborted = True
        super().abortConnection()

    def startTLS(self, creator: object, normal: bool = True) -> None:
        self.tls.append(creator)


class Peer:
    """The other end of one connection that the client makes."""

    def __init__(self, factory: Any) -> None:
        self.wire = Wire()
        self.protocol = factory.buildProtocol(None)
        self.protocol.makeConnection(self.wire)
        self.open = True

    def read(self) -> bytes:
        """What the client wrote since it was last asked."""
        octets = self.wire.value()
        self.wire.clear()
        return octets

    def say(self, *lines: bytes) -> bytes:
        """Send reply lines in one segment; what the client writes then."""
        self.protocol.dataReceived(b"".join(line + b"\r\n" for line in lines))
        return self.read()

    def drop(self, reason: Exception | None = None) -> None:
        """Close the connection."""
        if self.open:
            self.open = False
            if self.wire.producer is not None:
                self.wire.producer.stopProducing()
            self.protocol.connectionLost(Failure(reason or ConnectionDone()))

    @property
    def ended(self) -> bool:
        """Whether the client ended the connection."""
        return self.wire.aborted or self.wire.disconnecting


class Net:
    """A reactor in memory; each connection that is asked for can be accepted as a :class:`Peer`."""

    def __init__(self) -> None:
        self.reactor = MemoryReactorClock()
        self.accepted = 0

    @property
    def attempts(self) -> int:
        return len(self.reactor.tcpClients)

    def accept(self) -> Peer:
        _host, _port, factory, _timeout, _source = self.reactor.tcpClients[self.accepted]
        self.accepted += 1
        return Peer(factory)

    def refuse(self, error: Exception) -> None:
        factory = self.reactor.tcpClients[self.accepted][2]
        self.accepted += 1
        factory.clientConnectionFailed(self.reactor.connectors[-1], Failure(error))

    def connect(self, target: Target = TARGET, **more: Any) -> Deferred[Connection]:
        return connect(self.reactor, target, hostname="relay.corp.example", tls=TLS, in_thread=in_thread, **more)

    def opened(self, *extensions: bytes, target: Target = TARGET) -> tuple[Peer, Connection]:
        """A connection to a next hop that offers *extensions*, ready to send."""
        result = Result(self.connect(target))
        peer = self.accept()
        greet(peer, *extensions)
        return peer, result.value


def greet(peer: Peer, *extensions: bytes) -> bytes:
    peer.say(b"220 mx.example ESMTP")
    return peer.say(*ehlo(*extensions))


def ehlo(*extensions: bytes) -> list[bytes]:
    lines = [b"mx.example", *extensions]
    return [*(b"250-" + line for line in lines[:-1]), b"250 " + lines[-1]]


def in_thread(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
    return execute(function, *arguments)


class Result:
    """What came of a Deferred."""

    def __init__(self, deferred: Deferred[Any]) -> None:
        self.outcomes: list[Any] = []
        deferred.addBoth(self.outcomes.append)

    @property
    def waiting(self) -> bool:
        return not self.outcomes

    @property
    def value(self) -> Any:
        assert self.outcomes, "nothing came of it yet"
        if isinstance(self.outcomes[0], Failure):
            self.outcomes[0].raiseException()
        return self.outcomes[0]

    def fault(self, kind: type[Exception]) -> Any:
        assert self.outcomes, "nothing came of it yet"
        assert isinstance(self.outcomes[0], Failure), self.outcomes[0]
        assert self.outcomes[0].check(kind), self.outcomes[0]
        return self.outcomes[0].value


def codes(replies: tuple[Reply, ...]) -> list[int]:
    return [reply.code for reply in replies]
