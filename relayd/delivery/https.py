"""Asking a web server over verified HTTPS: token servers, published policies. Small questions, small answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from OpenSSL import SSL
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, TCP6ClientEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IConsumer, IStreamClientEndpoint
from twisted.internet.protocol import Protocol as StreamProtocol
from twisted.internet.protocol import connectionDone
from twisted.internet.ssl import optionsForClientTLS
from twisted.python.failure import Failure
from twisted.web.client import (
    Agent,
    HTTPConnectionPool,
    ResponseDone,
    ResponseFailed,
    ResponseNeverReceived,
)
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from zope.interface import implementer

from relayd.model import Fault, IPAddress

#: Addresses of a host that are tried.
ADDRESSES: Final = 4
#: Seconds until a connection must stand.
CONNECT: Final = 10.0


class HttpsFault(Exception):
    """No answer. The text says why, and holds nothing that was sent."""


class Addresses(Protocol):
    """What is needed of :class:`relayd.resolver.Resolver`."""

    async def addresses(self, host: str) -> tuple[IPAddress, ...]: ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answered.

    :ivar content_type: the media type, lower case, without its parameters.
    """

    code: int
    content_type: str
    octets: bytes


class Https:
    """Asks web servers.

    :param trust: the CAs whose certificates hold, as ``optionsForClientTLS`` takes them (``trustRoot``).
    """

    def __init__(self, reactor: Any, resolver: Addresses, trust: Any) -> None:
        self._reactor = reactor
        self._agent = Agent.usingEndpointFactory(
            reactor,
            _Endpoints(reactor, resolver, trust),
            HTTPConnectionPool(reactor, persistent=False),
        )

    async def fetch(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] = {},
        body: bytes = b"",
        limit: int = 64 * 1024,
        seconds: float = 30.0,
    ) -> Answer:
        """Asks once; redirects are not followed.

        :param limit: octets of the longest answer.
        :param seconds: for all of it.
        :raises HttpsFault: no answer, or none that may be believed.
        """
        parts = urlsplit(url)
        if parts.scheme != "https" or not parts.hostname:
            raise HttpsFault(f"{url}: only https:// is asked")
        work = Deferred.fromCoroutine(self._fetch(method, url, headers, body, limit))
        work.addTimeout(seconds, self._reactor)
        try:
            return await work
        except HttpsFault as fault:
            raise HttpsFault(f"{parts.hostname}: {fault}") from None
        except (TimeoutError, CancelledError):
            raise HttpsFault(f"{parts.hostname}: no answer within {seconds:g} s") from None
        except Fault as fault:
            raise HttpsFault(f"{parts.hostname}: {fault.detail or fault.reply}") from None
        except Exception as error:
            raise HttpsFault(f"{parts.hostname}: {_why(error)}") from None

    async def _fetch(self, method: str, url: str, headers: Mapping[str, str], body: bytes, limit: int) -> Answer:
        wanted = Headers({name: [value] for name, value in headers.items()})
        wanted.setRawHeaders("User-Agent", ["relayd"])
        response: Any = await self._agent.request(
            method.encode("ascii"), url.encode("ascii"), wanted, _Body(body) if body else None
        )
        reader = _Reader(limit)
        response.deliverBody(reader)
        octets = await reader.done
        kind = (response.headers.getRawHeaders("content-type") or [""])[0]
        return Answer(response.code, kind.partition(";")[0].strip().lower(), octets)


def _why(error: BaseException) -> str:
    """What went wrong, in words of the layer that knows."""
    while isinstance(error, ResponseFailed | ResponseNeverReceived) and error.reasons:
        error = error.reasons[0].value
    if isinstance(error, SSL.Error):
        errors = error.args[0] if error.args else ()
        return "; ".join(str(entry[-1]) for entry in errors) or "TLS ended"
    return str(error) or type(error).__name__


@implementer(IAgentEndpointFactory)
class _Endpoints:
    def __init__(self, reactor: Any, resolver: Addresses, trust: Any) -> None:
        self._reactor = reactor
        self._resolver = resolver
        self._trust = trust

    def endpointForURI(self, uri: Any) -> Any:
        host = uri.host.decode("ascii")
        # RFC 9110 4.3.4: the certificate holds for the host of the URI, or there is no request.
        tls = optionsForClientTLS(host.strip("[]"), trustRoot=self._trust)
        return wrapClientTLS(tls, _Host(self._reactor, self._resolver, host, uri.port))


@implementer(IStreamClientEndpoint)
class _Host:
    """The addresses of a host, one after the other."""

    def __init__(self, reactor: Any, resolver: Addresses, host: str, port: int) -> None:
        self._reactor = reactor
        self._resolver = resolver
        self._host = host
        self._port = port

    def connect(self, factory: Any) -> Deferred[Any]:
        return Deferred.fromCoroutine(self._connect(factory))

    async def _connect(self, factory: Any) -> Any:
        failed: ConnectError | None = None
        for address in (await self._resolver.addresses(self._host))[:ADDRESSES]:
            kind = TCP4ClientEndpoint if address.version == 4 else TCP6ClientEndpoint
            try:
                return await kind(self._reactor, str(address), self._port, CONNECT).connect(factory)
            except ConnectError as error:
                failed = error
        raise HttpsFault(f"no connection: {failed}" if failed is not None else "has no address")


@implementer(IBodyProducer)
class _Body:
    """A request's content, in one write."""

    def __init__(self, octets: bytes) -> None:
        self._octets = octets
        self.length = len(octets)

    def startProducing(self, consumer: IConsumer) -> Deferred[None]:
        consumer.write(self._octets)
        return succeed(None)

    def pauseProducing(self) -> None:
        """All was written."""

    def resumeProducing(self) -> None:
        """All was written."""

    def stopProducing(self) -> None:
        """All was written."""


class _Reader(StreamProtocol):
    """An answer's content, up to *limit* octets."""

    def __init__(self, limit: int) -> None:
        self.done: Deferred[bytes] = Deferred(lambda _: self._abort())
        self._limit = limit
        self._octets = bytearray()

    def dataReceived(self, data: bytes) -> None:
        self._octets += data
        if len(self._octets) > self._limit and not self.done.called:
            self._abort()
            self.done.errback(HttpsFault(f"more than {self._limit} octets"))

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self.done.called:
            return
        if reason.check(ResponseDone, PotentialDataLoss):
            self.done.callback(bytes(self._octets))
        else:
            self.done.errback(reason)

    def _abort(self) -> None:
        transport: Any = self.transport
        if transport is not None and hasattr(transport, "abortConnection"):
            transport.abortConnection()
        elif transport is not None:
            transport.loseConnection()
