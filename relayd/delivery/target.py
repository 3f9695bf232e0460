"""A next hop, with everything that decides whether a kept connection may serve it; and the time-outs on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from relayd.model import IPAddress, Tlsa
from relayd.settings import Credential, Delivery, OutboundTls


@dataclass(frozen=True, slots=True)
class Target:
    """One address of a next hop, and how to speak to it. Equal targets share kept connections.

    :ivar host: the host's name, for people and logs; an address literal's text where there is no name.
    :ivar verify_name: the name (or address) that its certificate must carry; also what SNI asks for. "" = *host*.
    :ivar source_address: the local address to connect from; ignored when it is of the other family. "" = any.
    :ivar lmtp: it speaks LMTP (RFC 2033).
    :ivar socket: the path of a unix socket, in place of address and port.
    :ivar haste: it has another address to try: seconds to connect in, at most.
    :ivar also: another name that its certificate may carry, where DANE names a CA.
    :ivar tlsa: what DANE holds the certificate to, where *tls* is DANE (RFC 7672).
    """

    host: str
    address: IPAddress | None
    port: int = 25
    tls: OutboundTls = OutboundTls.MAY
    verify_name: str = ""
    credential: Credential | None = None
    source_address: str = ""
    tlsa: tuple[Tlsa, ...] = ()
    lmtp: bool = False
    socket: str = ""
    also: str = ""
    haste: float = field(default=math.inf, compare=False)

    @property
    def name(self) -> str:
        """The name to ask and check for in TLS, without the final dot that DNS allows."""
        return (self.verify_name or self.host).strip("[]").removesuffix(".")

    @property
    def level(self) -> OutboundTls:
        """How TLS is really used: a credential raises what would not verify (design, promise 4)."""
        if self.credential is None or self.credential.allow_insecure:
            return self.tls
        if self.tls in (OutboundTls.NONE, OutboundTls.MAY, OutboundTls.REQUIRE):
            return OutboundTls.VERIFY
        return self.tls

    def __str__(self) -> str:
        return self.socket or f"{self.host}[{self.address}]:{self.port}"


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait, in seconds (RFC 5321 4.5.3.2).

    :ivar connect: until the connection stands.
    :ivar command: for the greeting, the TLS handshake, each reply, and each block of a message to be taken.
    :ivar final: for the reply to end-of-data.
    :ivar quit: for the reply to QUIT, and for the other end to close.
    """

    connect: float = 30.0
    command: float = 300.0
    final: float = 600.0
    quit: float = 5.0

    @classmethod
    def of(cls, delivery: Delivery) -> Timeouts:
        # RFC 5321 4.5.3.2.6: ten minutes at least after the final dot, or messages arrive twice.
        return cls(command=delivery.timeout, final=max(delivery.timeout, 600.0))
